//! The state that is explored: the store's log, the parked topic, stored progress, what the target
//! has seen, the owners that are alive, and what may still happen.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use halfmsg_protocol::{ParkedState, Progress, Record, TransactionId};

use crate::law::{self, History};
use crate::owner::{Owner, Write};

/// How often each thing that nobody has to do may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Budget {
    /// Messages that are prepared.
    pub(crate) halves: u8,
    /// Decisions of producers and operators: right, late, repeated, contradicting.
    pub(crate) decisions: u8,
    /// Decisions of operators in a life that a REOPEN began.
    pub(crate) resolved: u8,
    /// Answers of the listener that decide; it may answer UNKNOWN as often as it is asked.
    pub(crate) answers: u8,
    /// Checks that cannot be made now, or that nobody has a place for.
    pub(crate) not_asked: u8,
    /// Questions to an owner without a listener.
    pub(crate) unheard: u8,
    /// Checks that fail.
    pub(crate) failed: u8,
    /// REOPENs of an operator, each by what any live owner shows, or one showed.
    pub(crate) reopens: u8,
    /// Deliveries that the target refuses.
    pub(crate) refusals: u8,
    /// Records that are lost, or said to be lost, on their way to the store; transactions that
    /// are aborted.
    pub(crate) failures: u8,
    /// Deaths of the owner.
    pub(crate) crashes: u8,
    /// Takeovers while the old owner goes on.
    pub(crate) stale: u8,
    /// Records that are none of ours.
    pub(crate) foreign: u8,
}

/// A new owner on its way: it has fenced the old one and read progress, not yet the parked topic.
pub(crate) type Starting = Option<Progress>;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct World {
    /// A place without a record is none of ours.
    pub(crate) log: Arc<Vec<Option<Record>>>,
    /// What the log means, and its hash: kept up record by record, because every state asks.
    pub(crate) law: Arc<Vec<History>>,
    log_hash: u64,
    pub(crate) progress: Progress,
    pub(crate) topic: Arc<BTreeMap<TransactionId, ParkedState>>,
    /// How often the delivery that a decision led to is visible; counted up to 2.
    pub(crate) delivered: BTreeMap<i64, u8>,
    /// Records that are none of ours, once a copy of them is in the parked topic.
    pub(crate) copied: BTreeSet<i64>,
    /// The oldest first; the last one owns the partition, unless another is starting.
    pub(crate) owners: Vec<Owner>,
    pub(crate) starting: Starting,
    /// An owner found out that it is fenced.
    pub(crate) fenced: bool,
    pub(crate) budget: Budget,
}

impl Hash for World {
    fn hash<H: Hasher>(&self, into: &mut H) {
        let Self {
            log: _,
            law: _,
            log_hash,
            progress,
            topic,
            delivered,
            copied,
            owners,
            starting,
            fenced,
            budget,
        } = self;
        (log_hash, progress, topic, delivered, copied, owners, starting, fenced, budget).hash(into);
    }
}

impl World {
    pub(crate) fn new(owner: Owner, budget: Budget) -> Self {
        Self {
            log: Arc::default(),
            law: Arc::default(),
            log_hash: 0,
            progress: Progress { low_water: 0, position: 0 },
            topic: Arc::default(),
            delivered: BTreeMap::new(),
            copied: BTreeSet::new(),
            owners: vec![owner],
            starting: None,
            fenced: false,
            budget,
        }
    }

    pub(crate) fn end(&self) -> i64 {
        i64::try_from(self.log.len()).expect("it is small")
    }

    pub(crate) fn append(&mut self, record: Option<Record>) {
        let mut hasher = DefaultHasher::new();
        (self.log_hash, &record).hash(&mut hasher);
        self.log_hash = hasher.finish();
        if let Some(record) = &record {
            let end = self.end();
            law::apply(Arc::make_mut(&mut self.law), end, record);
        }
        Arc::make_mut(&mut self.log).push(record);
    }

    /// Whether the transactions of this owner are not accepted any more.
    pub(crate) fn is_fenced(&self, owner: usize) -> bool {
        self.starting.is_some() || owner + 1 != self.owners.len()
    }

    pub(crate) fn deliver(&mut self, at: i64) {
        let times = self.delivered.entry(at).or_default();
        *times = (*times + 1).min(2);
    }

    pub(crate) fn times_delivered(&self, at: i64) -> u8 {
        self.delivered.get(&at).copied().unwrap_or(0)
    }

    pub(crate) fn write(&mut self, write: Write) {
        let topic = Arc::make_mut(&mut self.topic);
        match write.state {
            Some(state) => drop(topic.insert(write.key, state)),
            None => drop(topic.remove(&write.key)),
        }
    }

    /// What the log below the stored position means.
    pub(crate) fn law_below_progress(&self) -> Vec<History> {
        law::read(
            self.log.iter().take(usize::try_from(self.progress.position).expect("it is small")),
        )
    }
}
