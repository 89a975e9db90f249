//! The bare loop: HALF, its acknowledgement, COMMIT, delivery, and nothing else. What the engine is
//! measured by; no use to anybody, because it forgets everything when it ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use halfmsg_kafka::KafkaConfig;
use rdkafka::ClientContext;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};

use super::phase::{PACE_TICK, Phase, payload};
use super::topics::{PARTITIONS, Topics};

mod resolver;

/// `linger.ms` of librdkafka and of Java clients since 4.0 (KIP-1030), where nobody has set it.
pub(crate) const DEFAULT_LINGER_MILLIS: &str = "5";
/// Bytes of a COMMIT, about what the engine's takes.
const COMMIT_BYTES: usize = 60;
/// Where a record says what it is, behind the transaction's number.
const KIND_AT: usize = 8;
/// Where a COMMIT names its half's offset.
const HALF_AT: std::ops::Range<usize> = 16..24;
const HALF: u8 = b'H';
const COMMIT: u8 = b'C';
/// Transactions begun before acknowledgements are looked at again.
const BEGUN_AT_ONCE: u64 = 64;

/// A delivery report: the record's tag, and where it stands.
struct Ack {
    tag: usize,
    at: Result<(i32, i64), KafkaError>,
}

struct Acks(mpsc::Sender<Ack>);

impl ClientContext for Acks {}

impl ProducerContext for Acks {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, tag: usize) {
        let at = match result {
            Ok(message) => Ok((message.partition(), message.offset())),
            Err((error, _)) => Err(error.clone()),
        };
        // The loop may have ended.
        drop(self.0.send(Ack { tag, at }));
    }
}

type Client = ThreadedProducer<Acks>;

fn client(
    kafka: &KafkaConfig,
    settings: &[(&str, &str)],
) -> anyhow::Result<(Client, mpsc::Receiver<Ack>)> {
    let (sender, acks) = mpsc::channel();
    let mut config = kafka.producer();
    for (name, value) in settings {
        config.set(*name, *value);
    }
    Ok((config.create_with_context(Acks(sender))?, acks))
}

fn send(
    client: &Client,
    topic: &str,
    partition: i32,
    value: &[u8],
    tag: usize,
) -> Result<(), KafkaError> {
    let record: BaseRecord<'_, [u8], [u8], usize> =
        BaseRecord::with_opaque_to(topic, tag).partition(partition).payload(value);
    client.send(record).map_err(|(error, _)| error)
}

/// Source and resolver.
pub(crate) struct Bare {
    store: String,
    client: Client,
    acks: mpsc::Receiver<Ack>,
    stop: Arc<AtomicBool>,
    resolver: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Bare {
    /// Creates the store and starts the resolver. The linger is that of all its producers, if not the engine's.
    pub(crate) async fn start(
        topics: &mut Topics,
        exactly_once: bool,
        linger_millis: Option<&str>,
    ) -> anyhow::Result<Self> {
        let store = format!("{}.store", topics.group);
        topics.create(&store).await?;
        let settings = linger_millis.map(|millis| ("linger.ms", millis));
        let (client, acks) = client(&topics.kafka, settings.as_slice())?;
        let stop = Arc::new(AtomicBool::new(false));
        let resolver = resolver::Resolver::new(topics, &store, exactly_once, settings)?;
        let thread = {
            let stop = Arc::clone(&stop);
            let named = std::thread::Builder::new().name("bench-resolver".into());
            named.spawn(move || resolver.run(&stop))?
        };
        Ok(Self { store, client, acks, stop, resolver: Some(thread) })
    }

    /// Carries a phase's transactions through to their COMMIT's acknowledgement. Blocks.
    pub(crate) fn transact(
        &self,
        phase: &Phase,
        in_flight: u64,
        payload_bytes: usize,
    ) -> anyhow::Result<()> {
        let (mut begun, mut done) = (0, 0);
        while done < phase.count() {
            let may_begin = phase.due().min(done + in_flight).min(begun + BEGUN_AT_ONCE);
            while begun < may_begin {
                self.half(phase, begun, payload_bytes)?;
                begun += 1;
            }
            let mut next = self.acks.recv_timeout(PACE_TICK).ok();
            while let Some(ack) = next {
                done += u64::from(self.acknowledged(phase, ack)?);
                next = self.acks.try_recv().ok();
            }
        }
        Ok(())
    }

    fn half(&self, phase: &Phase, index: u64, payload_bytes: usize) -> anyhow::Result<()> {
        let number = phase.number(index);
        let mut value = payload(number, payload_bytes);
        value[KIND_AT] = HALF;
        let partition = i32::try_from(number % PARTITIONS.unsigned_abs() as u64)?;
        Ok(send(&self.client, &self.store, partition, &value, tag(index, HALF)?)?)
    }

    /// True if that ended a transaction.
    fn acknowledged(&self, phase: &Phase, ack: Ack) -> anyhow::Result<bool> {
        let (partition, offset) = ack.at?;
        if ack.tag & 1 == 1 {
            return Ok(true);
        }
        let index = (ack.tag >> 1) as u64;
        let number = phase.number(index);
        let mut value = payload(number, COMMIT_BYTES);
        value[KIND_AT] = COMMIT;
        value[HALF_AT].copy_from_slice(&offset.to_le_bytes());
        phase.committing(number);
        send(&self.client, &self.store, partition, &value, tag(index, COMMIT)?)?;
        Ok(false)
    }

    /// Ends the resolver.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.resolver.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended.context("the bare loop's resolver"),
            Some(Err(_)) => Err(anyhow!("the bare loop's resolver panicked")),
            None => Ok(()),
        }
    }
}

fn tag(index: u64, kind: u8) -> anyhow::Result<usize> {
    Ok(usize::try_from(index)? << 1 | usize::from(kind == COMMIT))
}

/// One wait of the resolver for a record.
const POLL: Duration = Duration::from_millis(10);
