//! The bare loop's resolver: reads the store, delivers what is committed, stores progress.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message as _;
use rdkafka::producer::Producer as _;
use rdkafka::{Offset, TopicPartitionList};

use super::{Ack, Client, HALF, HALF_AT, KIND_AT, POLL, client, send};
use crate::bench::topics::{PARTITIONS, Topics, every_partition};

/// Deliveries of one Kafka transaction.
const BATCH: usize = 4_096;
/// The longest that a Kafka transaction stays open for more.
const BATCH_WAIT: Duration = Duration::from_millis(20);
/// Between two commits of progress, at-least-once.
const COMMIT_INTERVAL: Duration = Duration::from_millis(200);
/// One call about a Kafka transaction, and the acknowledgements before its end.
const STEP: Duration = Duration::from_secs(30);

/// One partition of the store.
#[derive(Default)]
struct Partition {
    /// Halves without a decision, by offset.
    open: BTreeMap<i64, Vec<u8>>,
    /// Offsets of halves whose delivery is not acknowledged.
    sending: BTreeSet<i64>,
    position: i64,
}

impl Partition {
    fn low_water(&self) -> i64 {
        let open = self.open.first_key_value().map(|(offset, _)| *offset);
        let sending = self.sending.first().copied();
        [open, sending].into_iter().flatten().fold(self.position, i64::min)
    }
}

pub(super) struct Resolver {
    store: String,
    target: String,
    consumer: BaseConsumer,
    client: Client,
    acks: mpsc::Receiver<Ack>,
    partitions: Vec<Partition>,
    exactly_once: bool,
    /// Exactly-once: since when a Kafka transaction is open, and its deliveries.
    opened: Option<Instant>,
    deliveries: usize,
    committed: Instant,
}

impl Resolver {
    pub(super) fn new(
        topics: &Topics,
        store: &str,
        exactly_once: bool,
        setting: Option<(&str, &str)>,
    ) -> anyhow::Result<Self> {
        let consumer: BaseConsumer = topics.kafka.consumer(&topics.group).create()?;
        consumer.assign(&every_partition(&consumer, store, Offset::Beginning)?)?;
        let id = [("transactional.id", topics.group.as_str()), ("transaction.timeout.ms", "15000")];
        let transactional = id.into_iter().filter(|_| exactly_once);
        let settings: Vec<_> = transactional.chain(setting).collect();
        let (client, acks) = client(&topics.kafka, &settings)?;
        if exactly_once {
            client.init_transactions(STEP)?;
        }
        Ok(Self {
            store: store.to_owned(),
            target: topics.target.clone(),
            consumer,
            client,
            acks,
            partitions: (0..PARTITIONS).map(|_| Partition::default()).collect(),
            exactly_once,
            opened: None,
            deliveries: 0,
            committed: Instant::now(),
        })
    }

    /// Until it is told to stop and has nothing under way.
    pub(super) fn run(mut self, stop: &AtomicBool) -> anyhow::Result<()> {
        loop {
            let idle = !self.poll()?;
            if self.exactly_once {
                self.end_transaction(idle)?;
            } else {
                self.take_acks()?;
            }
            if idle && self.opened.is_none() && stop.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
    }

    /// False if no record was there.
    fn poll(&mut self) -> anyhow::Result<bool> {
        let wait = if self.opened.is_some() { Duration::ZERO } else { POLL };
        let deliver = match self.consumer.poll(wait) {
            None => return Ok(false),
            // Transient: the client goes on by itself.
            Some(Err(_)) => return Ok(true),
            Some(Ok(message)) => {
                let value = message.payload().unwrap_or_default();
                let partition = message.partition();
                let state = &mut self.partitions[usize::try_from(partition)?];
                state.position = message.offset() + 1;
                if value[KIND_AT] == HALF {
                    state.open.insert(message.offset(), value.to_vec());
                    return Ok(true);
                }
                let half = i64::from_le_bytes(value[HALF_AT].try_into()?);
                state.open.remove(&half).map(|value| (partition, half, value))
            }
        };
        if let Some((partition, half, value)) = deliver {
            self.deliver(partition, half, &value)?;
        }
        Ok(true)
    }

    fn deliver(&mut self, partition: i32, half: i64, value: &[u8]) -> anyhow::Result<()> {
        if !self.exactly_once {
            self.partitions[usize::try_from(partition)?].sending.insert(half);
        } else if self.opened.is_none() {
            self.client.begin_transaction()?;
            self.opened = Some(Instant::now());
        }
        self.deliveries += 1;
        let tag = usize::try_from(half)? * PARTITIONS.unsigned_abs() as usize
            + usize::try_from(partition)?;
        Ok(send(&self.client, &self.target, partition, value, tag)?)
    }

    fn take_acks(&mut self) -> anyhow::Result<()> {
        while let Ok(ack) = self.acks.try_recv() {
            ack.at?;
            let count = PARTITIONS.unsigned_abs() as usize;
            let half = i64::try_from(ack.tag / count)?;
            self.partitions[ack.tag % count].sending.remove(&half);
        }
        if self.committed.elapsed() >= COMMIT_INTERVAL {
            self.committed = Instant::now();
            let offsets = self.offsets()?;
            if offsets.count() > 0 {
                self.consumer.commit(&offsets, CommitMode::Async)?;
            }
        }
        Ok(())
    }

    /// Acknowledgements first, then offsets, then the commit: any other order waits for 100 ms.
    fn end_transaction(&mut self, idle: bool) -> anyhow::Result<()> {
        let Some(opened) = self.opened else { return Ok(()) };
        if !idle && self.deliveries < BATCH && opened.elapsed() < BATCH_WAIT {
            return Ok(());
        }
        for _ in 0..self.deliveries {
            self.acks.recv_timeout(STEP).context("no acknowledgement")?.at?;
        }
        let group = self.consumer.group_metadata().context("the group is not known")?;
        self.client.send_offsets_to_transaction(&self.offsets()?, &group, STEP)?;
        self.client.commit_transaction(STEP)?;
        self.opened = None;
        self.deliveries = 0;
        Ok(())
    }

    /// (L, P) of every partition that was read.
    fn offsets(&self) -> anyhow::Result<TopicPartitionList> {
        let mut offsets = TopicPartitionList::new();
        for (partition, state) in (0..PARTITIONS).zip(&self.partitions) {
            if state.position > 0 {
                let mut element = offsets.add_partition(&self.store, partition);
                element.set_offset(Offset::Offset(state.low_water()))?;
                element.set_metadata(format!("P={}", state.position));
            }
        }
        Ok(offsets)
    }
}
