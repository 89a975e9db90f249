//! One owner of the partition: the program's resolver core, and the shell around it as values.
//!
//! What the shell awaits (a read, an acknowledgement, a transaction) is a value here that lies
//! still until the model chooses to let it happen; whatever lies here is lost when the owner dies.

use std::collections::{BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use halfmsg_protocol::{
    Command, CoreConfig, Event, HalfRef, ParkedState, Progress, Record, ResolverCore, Takeover,
    TransactionId,
};

/// No world lasts that long: what is due then is not done.
pub(crate) const NEVER: Duration = Duration::from_secs(1 << 40);

/// A delivery on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Delivery {
    /// The decision's offset.
    pub(crate) at: i64,
    pub(crate) id: TransactionId,
    /// The parked topic's mark that belongs to it.
    pub(crate) mark: Option<HalfRef>,
}

/// A record on its way to the parked topic; these arrive in their order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Write {
    /// The outcome that is carried out with it, if any.
    pub(crate) at: Option<i64>,
    pub(crate) key: TransactionId,
    pub(crate) state: Option<ParkedState>,
}

/// What goes into a transaction, in the order of the commands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Item {
    Deliver(Delivery),
    Write(Write),
    /// A copy of a record that is none of ours.
    Copy(i64),
}

impl Item {
    /// The outcome that it carries out.
    pub(crate) fn at(&self) -> Option<i64> {
        match self {
            Item::Deliver(delivery) => Some(delivery.at),
            Item::Write(write) => write.at,
            Item::Copy(at) => Some(*at),
        }
    }
}

/// A closed batch with the progress that goes into the same Kafka transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Transaction {
    pub(crate) items: Vec<Item>,
    pub(crate) progress: Progress,
    /// It is committed, and the owner does not know it yet.
    pub(crate) committed: bool,
}

/// What is under way in the emission that is modelled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Emission {
    AtLeastOnce {
        deliveries: Vec<Delivery>,
        copies: Vec<i64>,
        writes: VecDeque<Write>,
        /// Carried out, not reported yet.
        done: BTreeSet<i64>,
        /// Progress that is stored and not known to be.
        stored: Option<Progress>,
    },
    ExactlyOnce {
        collected: Vec<Item>,
        transaction: Option<Transaction>,
    },
}

/// An owner, alive.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    pub(crate) core: Arc<ResolverCore>,
    now: Duration,
    /// The offset that it reads next.
    pub(crate) next: i64,
    /// The halves of each question that are not answered yet.
    pub(crate) questions: Vec<Vec<HalfRef>>,
    /// Records on their way to the store, in their order.
    pub(crate) appends: VecDeque<Record>,
    /// The progress that it stored last; a new owner stores it at once, moved or not.
    pub(crate) stored: Option<Progress>,
    pub(crate) emission: Emission,
}

impl Hash for Owner {
    fn hash<H: Hasher>(&self, into: &mut H) {
        let Self { core, now, next, questions, appends, stored, emission } = self;
        core.fingerprint(*now, into);
        (next, questions, appends, stored, emission).hash(into);
    }
}

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        let hash = |owner: &Self| {
            let mut hasher = std::hash::DefaultHasher::new();
            owner.hash(&mut hasher);
            hasher.finish()
        };
        hash(self) == hash(other)
    }
}

impl Owner {
    pub(crate) fn new(
        config: CoreConfig,
        exactly_once: bool,
        progress: Progress,
        parked: Vec<ParkedState>,
    ) -> Self {
        let takeover = Takeover { progress, parked, wall_ms: 0, now: Duration::ZERO };
        let emission = match exactly_once {
            true => Emission::ExactlyOnce { collected: Vec::new(), transaction: None },
            false => Emission::AtLeastOnce {
                deliveries: Vec::new(),
                copies: Vec::new(),
                writes: VecDeque::new(),
                done: BTreeSet::new(),
                stored: None,
            },
        };
        Self {
            core: Arc::new(ResolverCore::new(config, takeover)),
            now: Duration::ZERO,
            next: progress.low_water,
            questions: Vec::new(),
            appends: VecDeque::new(),
            stored: None,
            emission,
        }
    }

    /// Feeds one event to the program's core and keeps what it commands.
    pub(crate) fn step(&mut self, event: Event) {
        let mut commands = Vec::new();
        Arc::make_mut(&mut self.core).step(self.now, event, &mut commands);
        for command in commands {
            self.command(command);
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Append(record) => self.appends.push_back(without_reason(record)),
            Command::Ask(batch) => {
                self.questions.push(batch.iter().map(|question| question.of).collect());
            }
            Command::Deliver { at, half, settled: mark } => {
                self.emit(Item::Deliver(Delivery { at, id: half.meta.id, mark }));
            }
            Command::Settle { at, settled } => self.emit(Item::Write(mark(at, settled))),
            Command::WriteParked { at, parked } => {
                let key = parked.half.meta.id;
                let state = Some(ParkedState::Parked(parked));
                self.emit(Item::Write(Write { at: Some(at), key, state }));
            }
            Command::CopyForeign { at } => self.emit(Item::Copy(at)),
            Command::Note { .. } | Command::Dropped { .. } => {}
        }
    }

    fn emit(&mut self, item: Item) {
        match (&mut self.emission, item) {
            (Emission::ExactlyOnce { collected, .. }, item) => collected.push(item),
            (Emission::AtLeastOnce { deliveries, .. }, Item::Deliver(it)) => deliveries.push(it),
            (Emission::AtLeastOnce { writes, .. }, Item::Write(it)) => writes.push_back(it),
            (Emission::AtLeastOnce { copies, .. }, Item::Copy(at)) => copies.push(at),
        }
    }

    /// When its clock has something to do that it has not done.
    pub(crate) fn due(&self) -> Option<Duration> {
        self.core
            .next_due()
            .filter(|due| *due > self.now && *due < NEVER && !self.core.is_replaying())
    }

    /// Time passes until then.
    pub(crate) fn tick(&mut self) {
        if let Some(due) = self.due() {
            self.now = due;
            self.step(Event::Tick);
        }
    }

    /// The target refuses the delivery of this decision for good.
    pub(crate) fn refused(&mut self, at: i64) {
        self.step(Event::DeliveryRefused { at, reason: String::new(), wall_ms: 0 });
    }

    /// Progress is stored, and it knows: marks that nobody needs any more are removed.
    pub(crate) fn progress_stored(&mut self, progress: Progress) {
        self.stored = Some(progress);
        for key in Arc::make_mut(&mut self.core).progress_stored(progress) {
            self.emit(Item::Write(Write { at: None, key, state: None }));
        }
    }
}

/// What is told to people depends on the clock, by which two cores may differ that are the same
/// state: kept, the number of states would depend on which of them is met first.
fn without_reason(mut record: Record) -> Record {
    if let Record::Park(park) = &mut record {
        park.reason.clear();
    }
    record
}

/// The mark of a message that was settled by the decision at this offset.
pub(crate) fn mark(at: i64, of: HalfRef) -> Write {
    Write { at: Some(at), key: of.id, state: Some(ParkedState::Settled { of, at }) }
}
