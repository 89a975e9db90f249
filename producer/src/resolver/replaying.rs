//! Reads a long log after a takeover on two threads: the resolver's polls and decodes, another applies.
//! What is replayed leads to nothing that is to be carried out, so neither has to wait for the other.
//!
//! It must never apply a record whose outcome may still be open, nor one that is not as expected:
//! those are left to `reading`, when everything before them is applied.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use halfmsg_protocol::{Body, Event, Record, ResolverCore, codec};
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};

use super::assignment::StoreContext;
use super::reading::{BYTES_PER_TURN, body_for};
use super::{Owned, Resolver};
use crate::parked::packed;

/// A replay of fewer records is not worth a thread, nor a line in the log.
pub(super) const LONG: i64 = 16_384;
/// Records between two looks at everything else.
const RECORDS_PER_TURN: usize = 16_384;
/// Records handed over at once. All of a turn may wait: on a machine that is busy with other things,
/// threads that wait for each other are slower than one.
const AT_ONCE: usize = 1_024;
const WAITING: usize = RECORDS_PER_TURN / AT_ONCE + 1;

/// A record that was carried out before progress was stored.
struct Replayed {
    partition: i32,
    offset: i64,
    appended_ms: i64,
    record: Record,
    body: Body,
}

/// Those whose records are replayed.
type Cores<'a> = BTreeMap<i32, &'a mut ResolverCore>;

/// Why a turn has ended.
pub(super) enum TurnEnd<'a> {
    /// There is nothing more to read now.
    Idle,
    /// So many records were read, or so many bytes.
    Bound,
    /// This comes next, and is no such record.
    Other(Result<BorrowedMessage<'a>, KafkaError>),
}

impl Resolver {
    /// Reads as much as there is of a long replay, up to a bound. `None` if none is under way.
    pub(super) fn read_replay<'a>(
        &mut self,
        consumer: &'a BaseConsumer<StoreContext>,
        wait: Duration,
    ) -> Option<TurnEnd<'a>> {
        let below = replayed_below(&self.owned)?;
        let owned = self.owned.iter_mut().filter(|(partition, _)| below.contains_key(partition));
        let cores = owned.map(|(partition, of)| (*partition, &mut of.core)).collect();
        turn(self.now, cores, (consumer, wait), &below)
    }
}

/// All that was read is applied when it returns. `None` if there is no thread for it: without one it
/// takes longer.
fn turn<'a>(
    now: Duration,
    cores: Cores<'_>,
    (consumer, wait): (&'a BaseConsumer<StoreContext>, Duration),
    below: &BTreeMap<i32, i64>,
) -> Option<TurnEnd<'a>> {
    let (heaps, taken) = mpsc::sync_channel(WAITING);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("halfmsg-replay".into());
        thread.spawn_scoped(scope, move || apply(now, cores, &taken)).ok()?;
        Some(read(consumer, wait, below, heaps))
    })
}

/// Below which offset a record of a partition leads to nothing, if one has many to replay. The last one
/// is not among them: what is due is asked about behind it.
fn replayed_below(owned: &BTreeMap<i32, Owned>) -> Option<BTreeMap<i32, i64>> {
    let is_read = |of: &&Owned| of.stopped.is_none() && of.core.is_replaying();
    let left = |of: &Owned| of.core.replays_below() - of.core.ledger().position();
    owned.values().filter(is_read).any(|of| left(of) >= LONG).then(|| {
        let all = owned.iter().filter(|(_, of)| is_read(of));
        all.map(|(partition, of)| (*partition, of.core.replays_below() - 1)).collect()
    })
}

fn apply(now: Duration, mut cores: Cores<'_>, taken: &mpsc::Receiver<Vec<Replayed>>) {
    let mut commands = Vec::new();
    for heap in taken {
        // Most are of one partition: its records come one behind the other.
        let first = heap.first().map(|replayed| replayed.partition);
        if let Some(core) = first.and_then(|partition| cores.get(&partition)) {
            let of_it = heap.iter().filter(|replayed| Some(replayed.partition) == first);
            core.look_ahead(of_it.map(|replayed| &replayed.record));
        }
        for Replayed { partition, offset, appended_ms, record, body } in heap {
            if let Some(core) = cores.get_mut(&partition) {
                core.step(now, Event::Record { offset, appended_ms, record, body }, &mut commands);
            }
        }
    }
    debug_assert!(commands.is_empty(), "a replay commands nothing: {commands:?}");
}

fn read<'a>(
    consumer: &'a BaseConsumer<StoreContext>,
    mut wait: Duration,
    below: &BTreeMap<i32, i64>,
    heaps: mpsc::SyncSender<Vec<Replayed>>,
) -> TurnEnd<'a> {
    let mut heap = Vec::with_capacity(AT_ONCE);
    let (mut records, mut bytes) = (0, 0);
    let end = loop {
        if records >= RECORDS_PER_TURN || bytes > BYTES_PER_TURN {
            break TurnEnd::Bound;
        }
        let message = match consumer.poll(wait) {
            None => break TurnEnd::Idle,
            Some(Err(error)) => break TurnEnd::Other(Err(error)),
            Some(Ok(message)) => message,
        };
        wait = Duration::ZERO;
        let Some(replayed) = replayed(&message, below) else {
            break TurnEnd::Other(Ok(message));
        };
        records += 1;
        bytes += message.payload_len();
        heap.push(replayed);
        if heap.len() >= AT_ONCE {
            // Whoever applies has died only if it panicked, which ends this thread, too.
            drop(heaps.send(std::mem::replace(&mut heap, Vec::with_capacity(AT_ONCE))));
        }
    };
    drop(heaps.send(heap));
    end
}

fn replayed(message: &BorrowedMessage<'_>, below: &BTreeMap<i32, i64>) -> Option<Replayed> {
    let (partition, offset) = (message.partition(), message.offset());
    below.get(&partition).filter(|below| offset < **below)?;
    let record = codec::decode(packed(message)?).ok()?;
    let body = body_for(&record, message);
    let appended_ms = message.timestamp().to_millis().unwrap_or(0);
    Some(Replayed { partition, offset, appended_ms, record, body })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use halfmsg_kafka::EmbeddedBroker;
    use halfmsg_protocol::{
        Decision, Epoch, HEADER, HalfMeta, HalfOffset, HalfRef, Origin, Progress, Takeover,
        TransactionId, Verdict,
    };
    use rdkafka::consumer::Consumer;
    use rdkafka::message::{Header, OwnedHeaders};
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    use rdkafka::{Offset, TopicPartitionList};

    use super::*;
    use crate::config::ProducerConfig;
    use crate::metrics::Metrics;
    use crate::resolver::assignment;

    const PATIENCE: Duration = Duration::from_secs(120);
    /// More than one turn reads; each has a COMMIT.
    const HALVES: i64 = 10_000;
    /// Somebody else's record stands here.
    const FOREIGN: i64 = 30;

    fn id(number: i64) -> TransactionId {
        TransactionId::from_bytes(i128::from(number).to_be_bytes())
    }

    fn half(number: i64) -> Record {
        Record::Half(Arc::new(HalfMeta {
            id: id(number),
            application: "tests".into(),
            purpose: "p".into(),
            topic: "t".into(),
            timestamp_ms: 0,
            check_after: None,
            local_transaction: None,
        }))
    }

    fn commit(number: i64, at: i64) -> Record {
        let of = HalfRef { id: id(number), half: HalfOffset(at), epoch: Epoch::default() };
        let (verdict, origin) = (Verdict::Commit, Origin::Producer);
        Record::Decision(Decision { of, verdict, origin, operator: None, reason: String::new() })
    }

    /// Halves with their commits, and the last one open; a foreign record among them. Its length.
    fn written(broker: &EmbeddedBroker, store: &str) -> i64 {
        broker.create_topic(store, 1).expect("a topic");
        let producer: BaseProducer = broker.config().producer().create().expect("a client");
        let mut next = 0;
        let mut write = |record: Option<&Record>| {
            let packed = record.map_or_else(|| b"not ours".to_vec(), codec::encode);
            let headers = OwnedHeaders::new().insert(Header { key: HEADER, value: Some(&packed) });
            let record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(store);
            let sent = producer.send(record.partition(0).headers(headers).payload(b"x"));
            sent.map_err(|(error, _)| error).expect("room in the queue");
            next += 1;
            next - 1
        };
        for number in 0..HALVES {
            if number == FOREIGN / 2 {
                write(None);
            }
            let at = write(Some(&half(number)));
            write(Some(&commit(number, at)));
        }
        let end = write(Some(&half(HALVES))) + 1;
        producer.flush(PATIENCE).expect("stored");
        end
    }

    #[test]
    fn everything_but_the_last_and_what_is_none_of_ours_is_applied_by_turns() {
        let broker = EmbeddedBroker::start().expect("a loopback port");
        let config = ProducerConfig::new(broker.config(), "tests", "group");
        let store = config.store_topic();
        let end = written(&broker, &store);
        let consumer = assignment::consumer(&config, 1, Metrics::default()).expect("a client");
        consumer.fetch_metadata(Some(&store), PATIENCE).expect("the topic is known");
        let mut place = TopicPartitionList::new();
        place.add_partition_offset(&store, 0, Offset::Beginning).expect("an offset");
        consumer.assign(&place).expect("assigned");
        let progress = Progress { low_water: 0, position: end };
        let takeover = Takeover { progress, parked: Vec::new(), wall_ms: 0, now: Duration::ZERO };
        let mut core = ResolverCore::new(config.core(), takeover);
        let below = BTreeMap::from([(0, core.replays_below() - 1)]);
        let (until, mut others) = (Instant::now() + PATIENCE, Vec::new());
        let mut bounds = 0;
        while others.len() < 2 {
            assert!(Instant::now() < until, "{others:?}, {}", core.ledger().position());
            let cores = BTreeMap::from([(0, &mut core)]);
            let wait = Duration::from_millis(50);
            match turn(Duration::ZERO, cores, (&consumer, wait), &below).expect("a thread") {
                TurnEnd::Idle => {}
                TurnEnd::Bound => bounds += 1,
                TurnEnd::Other(Err(error)) => panic!("{error}"),
                TurnEnd::Other(Ok(message)) => {
                    let offset = message.offset();
                    assert_eq!(core.ledger().position(), offset, "all before it is applied");
                    core.step(Duration::ZERO, Event::Foreign { offset }, &mut Vec::new());
                    others.push(offset);
                }
            }
        }
        assert_eq!(others, [FOREIGN, end - 1]);
        assert!(bounds > 0, "a turn has a bound");
        assert_eq!(core.ledger().open_count(), 0, "every decision was applied behind its half");
    }
}
