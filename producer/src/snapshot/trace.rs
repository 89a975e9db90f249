//! The whole life of one message: every record about it, and what each led to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use halfmsg_protocol::{Half, HalfOffset, Ledger, Outcome, Record, TransactionId, Verdict};
use rdkafka::consumer::Consumer;
use rdkafka::message::{BorrowedMessage, Message};

use super::walk::{Found, Look, Walk, read, walk};
use super::{SnapshotError, count, unreachable};
use crate::config::ProducerConfig;
use crate::parked::users_body;
use crate::resolver::query::{Seen, What};
use crate::stored;

/// Records about one message that are remembered; beyond, the newest are left out.
const STEPS_KEPT: usize = 1_000;

/// Records at the end of a partition that are looked through for what was closed lately.
pub(crate) const LATELY: i64 = 50_000;

/// A message that is stored so long after its id was made may be the second of that id.
const STORED_WITHIN_MS: i64 = 10_000;

/// A record about the message.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) offset: i64,
    pub(crate) at_ms: i64,
    pub(crate) record: Record,
    /// What it led to; nothing if the log does not reach back far enough to tell.
    pub(crate) outcome: Option<Outcome>,
}

/// What the log says about one message.
pub(crate) struct Traced {
    pub(crate) partition: i32,
    /// The message itself, if the log still holds its HALF or a REOPEN.
    pub(crate) half: Option<Arc<Half>>,
    pub(crate) steps: Vec<Step>,
    /// Records that were left out.
    pub(crate) more: usize,
    /// The records of this message alone: each partition's state is the sum of its messages'.
    ledger: Ledger,
}

impl Traced {
    fn new(partition: i32) -> Self {
        let ledger = Ledger::new(0, []);
        Self { partition, half: None, steps: Vec::new(), more: 0, ledger }
    }

    /// How it stands, if the log holds its life from the beginning.
    pub(crate) fn seen(&self, id: TransactionId) -> Option<Seen> {
        let what = match (self.ledger.find_open(id), self.ledger.find_parked(id)) {
            (Some(open), _) => What::Open(open.clone(), None),
            (None, Some(parked)) => What::Parked(parked.clone(), true),
            (None, None) => What::Closed(self.ledger.find_closed(id)?.clone()),
        };
        Some(Seen { partition: self.partition, owned: false, stopped: None, what })
    }

    /// Where the message itself stands, if this begins with a copy of it: what is said of it is about
    /// the first one. What names none before was said when the copy was all that anybody knew of.
    fn copied_from(&self) -> Option<(i32, HalfOffset)> {
        let first = self.steps.first().filter(|step| matches!(step.record, Record::Half(_)))?;
        let named = self.steps.iter().filter_map(|step| match &step.record {
            Record::Half(_) => None,
            Record::Decision(decision) => Some(decision.of.half),
            Record::Checked(checked) => Some(checked.of.half),
            Record::Park(park) => Some(park.of.half),
            Record::Reopen(reopen) => Some(reopen.of.half),
        });
        let before = named.min().filter(|half| half.0 < first.offset)?;
        Some((self.partition, before))
    }

    /// Whether this may begin with another message that was stored under the id of one before, and is
    /// lost: nobody could tell from here. Whoever looks here knows that no message of this id is open;
    /// and an id begins with the moment when it was made, shortly before its message is stored.
    fn may_be_second(&self, id: TransactionId) -> bool {
        let Some(Step { record: Record::Half(_), at_ms, .. }) = self.steps.first() else {
            return false;
        };
        let made_ms = id.as_bytes()[..6].iter().fold(0, |ms, byte| ms << 8 | i64::from(*byte));
        at_ms.saturating_sub(made_ms) > STORED_WITHIN_MS || self.ledger.find_closed(id).is_none()
    }

    /// The offset of the decision that delivers it, if it is committed.
    pub(crate) fn committed_at(&self, id: TransactionId) -> Option<i64> {
        let closed = self.ledger.find_closed(id)?;
        (closed.verdict == Verdict::Commit).then_some(closed.decided_at)
    }

    fn take_in(&mut self, message: &BorrowedMessage<'_>, record: Record, at_ms: i64) {
        let offset = message.offset();
        let body = users_body(message);
        let whole = match &record {
            Record::Half(meta) => Some((meta.clone(), HalfOffset(offset))),
            Record::Reopen(reopen) => Some((reopen.meta.clone(), reopen.of.half)),
            _ => None,
        };
        if let Some((meta, offset)) = whole
            && self.half.is_none()
        {
            self.half = Some(Arc::new(Half::new(meta, body.clone(), offset, message.offset())));
        }
        let begins = matches!(&record, Record::Half(_));
        let known = begins || self.steps.first().is_some_and(|first| first.outcome.is_some());
        self.park_if_refused(&record, at_ms);
        let outcome = self.ledger.apply(record.clone(), body, offset, at_ms);
        if self.steps.len() < STEPS_KEPT {
            let outcome = known.then_some(outcome);
            self.steps.push(Step { offset, at_ms, record, outcome });
        } else {
            self.more += 1;
        }
    }
}

impl Traced {
    /// What the target refused is parked without a record of the store: the REOPEN of the very life
    /// that was committed tells that it was.
    fn park_if_refused(&mut self, record: &Record, at_ms: i64) {
        let Record::Reopen(reopen) = record else { return };
        let closed = self.ledger.find_closed(reopen.of.id);
        let committed = closed.filter(|closed| closed.epoch == reopen.of.epoch);
        if let Some(decided_at) = committed.map(|closed| closed.decided_at) {
            self.ledger.refuse(decided_at, String::new(), at_ms);
        }
    }
}

/// Where to look.
#[derive(Debug, Clone)]
pub(crate) enum Where {
    /// In the last records of every partition but these; so many of each.
    Lately(BTreeSet<i32>, i64),
    /// Everywhere, from the beginning of the logs.
    Everywhere,
    /// In this partition, from its HALF on.
    From(i32, HalfOffset),
}

/// Looks for every record about a message. Blocks, within the look's bounds.
///
/// # Errors
/// [`SnapshotError`].
pub(crate) fn trace(
    config: &ProducerConfig,
    id: TransactionId,
    place: Where,
    look: &Look,
) -> Result<Option<Traced>, SnapshotError> {
    let store = config.store_topic();
    let client = stored::client(&config.kafka, &store).map_err(|error| unreachable(&error))?;
    let partitions: Vec<i32> = match &place {
        Where::From(partition, _) => vec![*partition],
        Where::Everywhere => (0..count(&client, &store, look)?).collect(),
        Where::Lately(except, _) => {
            (0..count(&client, &store, look)?).filter(|of| !except.contains(of)).collect()
        }
    };
    let (mut ranges, mut cut) = (BTreeMap::new(), BTreeSet::new());
    for partition in partitions {
        let bounds = client.fetch_watermarks(&store, partition, look.step());
        let (mut start, end) = bounds.map_err(|error| unreachable(&error))?;
        start = match place {
            Where::From(_, half) => start.max(half.0).min(end),
            Where::Lately(_, records) => {
                let lately = start.max(end.saturating_sub(records));
                if lately > start {
                    cut.insert(partition);
                }
                lately
            }
            Where::Everywhere => start,
        };
        ranges.insert(partition, start..end);
    }
    let mut traced: Option<Traced> = None;
    walk(&config.kafka, &store, &ranges, look, |message| match read(message) {
        Found::Record { record, appended_ms } if record.id() == id => {
            let traced = traced.get_or_insert_with(|| Traced::new(message.partition()));
            traced.take_in(message, record, appended_ms);
            Walk::Stay
        }
        _ => Walk::On,
    })?;
    let anew = match (&place, &traced) {
        (Where::Lately(..), Some(traced)) if cut.contains(&traced.partition) => {
            let whole = (traced.partition, HalfOffset(0));
            traced.copied_from().or(traced.may_be_second(id).then_some(whole))
        }
        _ => None,
    };
    match anew {
        Some((partition, half)) => trace(config, id, Where::From(partition, half), look),
        None => Ok(traced),
    }
}
