//! The store in memory, the clock, and what carries out what the cores command.
//!
//! It must never decide anything about a message: that is the core's, which reads every record back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use halfmsg_protocol::{
    Body, Command, CoreConfig, Event, Half, HalfOffset, Ignored, ParkedState, Progress, Question,
    Record, ResolverCore, Takeover, TransactionId, codec,
};
use rdkafka::message::Headers;

use super::{Fault, Parked};
use crate::clock;
use crate::listener::LocalTransactionState;
use crate::message::HalfMessage;
use crate::resolver::delivery::delivered_headers;

/// A message as it reached its topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// Its identity, by which a consumer's inbox knows it.
    pub transaction_id: TransactionId,
    /// The topic.
    pub topic: String,
    /// The ordering key.
    pub key: Option<Bytes>,
    /// The headers, `halfmsg-transaction-id` among them.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// The payload.
    pub payload: Option<Bytes>,
}

/// What survives the process: the half-message store, the progress, the parked messages, what was
/// delivered, and the time.
#[derive(Debug, Default)]
pub struct TestStore {
    partitions: Vec<Partition>,
    pub(super) delivered: Vec<Delivered>,
    /// What was decided, as a listener would be asked about it.
    pub(super) decided: Vec<(HalfMessage, LocalTransactionState)>,
    pub(super) conflicts: usize,
    /// The wall clock at the beginning, and what has passed since.
    began_ms: i64,
    pub(super) now: Duration,
}

#[derive(Debug, Default)]
struct Partition {
    records: Vec<Stored>,
    progress: Option<Progress>,
    parked: BTreeMap<TransactionId, ParkedState>,
}

/// A record as Kafka would keep it.
#[derive(Debug)]
struct Stored {
    appended_ms: i64,
    header: Vec<u8>,
    body: Body,
}

impl TestStore {
    pub(super) fn new(partitions: i32) -> Self {
        let partitions = (0..partitions).map(|_| Partition::default()).collect();
        Self { partitions, began_ms: clock::wall_ms(), ..Self::default() }
    }

    pub(super) fn dropped(&self) -> Vec<TransactionId> {
        let rolled_back =
            self.decided.iter().filter(|(_, state)| *state == LocalTransactionState::Rollback);
        rolled_back.map(|(half, _)| half.transaction_id).collect()
    }

    fn wall_ms(&self) -> i64 {
        self.began_ms.saturating_add(i64::try_from(self.now.as_millis()).unwrap_or(i64::MAX))
    }
}

/// A question that a core asks, and the partition that it is about.
pub(super) type Asked = (i32, Vec<Question>);

/// One process at work on a store.
pub(super) struct World {
    pub(super) store: TestStore,
    pub(super) faults: Vec<Fault>,
    pub(super) crashed: bool,
    cores: Vec<Core>,
}

struct Core {
    core: ResolverCore,
    /// The offset of the next record to be read.
    next: usize,
}

impl World {
    /// Takes all partitions over.
    pub(super) fn new(store: TestStore, config: &CoreConfig) -> Self {
        let take_over = |partition: &Partition| {
            let progress = partition.progress.unwrap_or(Progress { low_water: 0, position: 0 });
            let parked = partition.parked.values().cloned().collect();
            let takeover = Takeover { progress, parked, wall_ms: store.wall_ms(), now: store.now };
            let core = ResolverCore::new(config.clone(), takeover);
            Core { core, next: usize::try_from(progress.low_water).unwrap_or(0) }
        };
        let cores = store.partitions.iter().map(take_over).collect();
        Self { store, faults: Vec::new(), crashed: false, cores }
    }

    /// Whether this fault was injected; it is used up then.
    pub(super) fn takes(&mut self, fault: Fault) -> bool {
        let found = self.faults.iter().position(|injected| *injected == fault);
        found.map(|at| self.faults.remove(at)).is_some()
    }

    /// At which wait of a local transaction the process is to die.
    pub(super) fn takes_crash_during_local(&mut self) -> Option<u32> {
        let waits = self.faults.iter().find_map(|fault| match fault {
            Fault::CrashDuringLocal { waits } => Some(*waits),
            _ => None,
        })?;
        self.takes(Fault::CrashDuringLocal { waits });
        Some(waits)
    }

    pub(super) fn partitions(&self) -> i32 {
        i32::try_from(self.cores.len()).unwrap_or(i32::MAX)
    }

    /// Appends a record, and gives its offset.
    pub(super) fn append(&mut self, partition: i32, record: &Record, body: Body) -> i64 {
        let appended_ms = self.store.wall_ms();
        let Some(log) = self.store.partitions.get_mut(index(partition)) else { return -1 };
        log.records.push(Stored { appended_ms, header: codec::encode(record), body });
        i64::try_from(log.records.len()).unwrap_or(i64::MAX) - 1
    }

    /// Reads and carries out everything that is there now; what is to be asked is given back.
    pub(super) fn turn(&mut self) -> Vec<Asked> {
        let mut asked = Vec::new();
        for partition in 0..self.partitions() {
            self.feed(partition, vec![Event::Tick], &mut asked);
        }
        asked
    }

    /// Feeds these events and whatever follows from them.
    pub(super) fn feed(&mut self, partition: i32, events: Vec<Event>, asked: &mut Vec<Asked>) {
        let (now, at) = (self.store.now, index(partition));
        let mut events = VecDeque::from(events);
        let mut commands = Vec::new();
        while let Some(event) = events.pop_front().or_else(|| self.read(at)) {
            let Some(core) = self.cores.get_mut(at) else { return };
            core.core.step(now, event, &mut commands);
            for command in commands.drain(..) {
                events.extend(self.carry_out(partition, command, asked));
            }
        }
        self.store_progress(at);
    }

    fn read(&mut self, at: usize) -> Option<Event> {
        let core = self.cores.get_mut(at)?;
        let stored = self.store.partitions.get(at)?.records.get(core.next)?;
        let offset = i64::try_from(core.next).unwrap_or(i64::MAX);
        core.next += 1;
        Some(match codec::decode(&stored.header) {
            Ok(record) => {
                let (appended_ms, body) = (stored.appended_ms, stored.body.clone());
                Event::Record { offset, appended_ms, record, body }
            }
            Err(_) => Event::Foreign { offset },
        })
    }

    /// Carries a command out; what there is to report.
    fn carry_out(
        &mut self,
        partition: i32,
        command: Command,
        asked: &mut Vec<Asked>,
    ) -> Option<Event> {
        match command {
            Command::Deliver { at, half, settled } => {
                self.deliver(partition, &half);
                if let Some(of) = settled {
                    self.mark(partition, of.id, ParkedState::Settled { of, at });
                }
                Some(Event::CarriedOut { at })
            }
            Command::Settle { at, settled } => {
                self.mark(partition, settled.id, ParkedState::Settled { of: settled, at });
                Some(Event::CarriedOut { at })
            }
            Command::WriteParked { at, parked } => {
                self.mark(partition, parked.half.meta.id, ParkedState::Parked(parked));
                Some(Event::CarriedOut { at })
            }
            Command::CopyForeign { at } => Some(Event::CarriedOut { at }),
            Command::Ask(questions) => {
                asked.push((partition, questions));
                None
            }
            Command::Append(record) => {
                self.append(partition, &record, Body::default());
                None
            }
            Command::Note { why, .. } => {
                self.store.conflicts += usize::from(why == Ignored::Conflict);
                None
            }
            Command::Dropped { half, .. } => {
                self.decided(partition, &half, LocalTransactionState::Rollback);
                None
            }
        }
    }

    fn deliver(&mut self, partition: i32, half: &Arc<Half>) {
        let header = |(name, value): (&str, Option<&[u8]>)| {
            (name.to_owned(), value.map(Bytes::copy_from_slice))
        };
        let headers = delivered_headers(half);
        let delivered = Delivered {
            transaction_id: half.meta.id,
            topic: half.meta.topic.clone(),
            key: half.body.key.clone(),
            headers: headers.iter().map(|found| header((found.key, found.value))).collect(),
            payload: half.body.payload.clone(),
        };
        if self.takes(Fault::DeliveredTwice) {
            self.store.delivered.push(delivered.clone());
        }
        self.store.delivered.push(delivered);
        self.decided(partition, half, LocalTransactionState::Commit);
    }

    fn decided(&mut self, partition: i32, half: &Half, state: LocalTransactionState) {
        self.store.decided.push((HalfMessage::new(partition, half, 0, 0), state));
    }

    fn mark(&mut self, partition: i32, id: TransactionId, state: ParkedState) {
        if let Some(log) = self.store.partitions.get_mut(index(partition)) {
            log.parked.insert(id, state);
        }
    }

    fn store_progress(&mut self, at: usize) {
        let (Some(core), Some(log)) = (self.cores.get_mut(at), self.store.partitions.get_mut(at))
        else {
            return;
        };
        if let Some(progress) = core.core.progress() {
            log.progress = Some(progress);
            for id in core.core.progress_stored(progress) {
                log.parked.remove(&id);
            }
        }
    }

    /// When the next check is due.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.cores.iter().filter_map(|core| core.core.next_due()).min()
    }

    /// The messages that await a decision.
    pub(super) fn open(&self) -> Vec<TransactionId> {
        let halves = self.cores.iter().flat_map(|core| core.core.ledger().open_from(HalfOffset(0)));
        halves.map(|open| open.half.meta.id).collect()
    }

    /// The messages that were given up on.
    pub(super) fn parked(&self) -> Vec<Parked> {
        let halves =
            self.cores.iter().flat_map(|core| core.core.ledger().parked_from(HalfOffset(0)));
        halves.map(|one| Parked::new(one.half.meta.id, one.cause, &one.reason)).collect()
    }
}

fn index(partition: i32) -> usize {
    usize::try_from(partition).unwrap_or(usize::MAX)
}
