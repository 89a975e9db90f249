//! `halfmsg bench`: transactions per second, and the time from the commit's call to the message at a
//! reader, against a broker of yours or the in-process one.
//!
//! Figures of one machine compare with figures of the same run only; the in-process broker says
//! nothing about Kafka.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use async_trait::async_trait;
use halfmsg_kafka::{EmbeddedBroker, KafkaConfig, TopicSpec, ensure_topic};
use halfmsg_producer::{
    HalfMessage, ListenerResult, LocalTransactionState, Message, ProducerConfig,
    TransactionListener, TransactionProducer,
};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;

mod reader;

use reader::Reader;

/// Messages must be seen within this after the last commit.
const SEEN_DEADLINE: Duration = Duration::from_secs(60);
/// Partitions of store and target.
const PARTITIONS: i32 = 8;

/// `halfmsg bench`.
#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    /// host:port of the brokers; unset, the in-process broker
    #[arg(long, env = "KAFKA_BROKERS", default_value = "")]
    brokers: String,
    /// Transactions of one run at full speed
    #[arg(long, default_value_t = 100_000)]
    transactions: u64,
    /// Transactions under way at once
    #[arg(long, default_value_t = 1_024)]
    in_flight: u64,
    /// Bytes of each payload, 8 at least
    #[arg(long, default_value_t = 256)]
    payload_bytes: usize,
    /// Transactions per second of a run for latency
    #[arg(long, default_value_t = 50)]
    rate: u64,
    /// Seconds of a run for latency
    #[arg(long, default_value_t = 10)]
    latency_seconds: u64,
    /// Runs of each kind
    #[arg(long, default_value_t = 3)]
    runs: u32,
}

/// Nobody asks it: every transaction of the benchmark is decided.
struct Undecided;

#[async_trait]
impl TransactionListener for Undecided {
    type Arg = ();

    async fn execute_local_transaction(
        &self,
        _half: &HalfMessage,
        (): (),
    ) -> ListenerResult<LocalTransactionState> {
        Ok(LocalTransactionState::Unknown)
    }

    async fn check_local_transaction(
        &self,
        _half: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        Ok(LocalTransactionState::Unknown)
    }
}

/// Runs and prints.
///
/// # Errors
/// A broker that does not answer, or a message that was not seen.
pub(crate) async fn run(args: BenchArgs) -> anyhow::Result<()> {
    ensure!(args.payload_bytes >= 8, "--payload-bytes must be 8 at least");
    ensure!(args.in_flight > 0 && args.rate > 0 && args.runs > 0, "counts must be 1 at least");
    let embedded = match args.brokers.as_str() {
        "" => Some(EmbeddedBroker::start().context("starting the in-process broker")?),
        _ => None,
    };
    let kafka =
        embedded.as_ref().map_or_else(|| KafkaConfig::new(&args.brokers), EmbeddedBroker::config);
    let kind = if kafka.embedded { "in-process broker" } else { "Kafka" };
    println!(
        "{kind} at {}; {} B payloads, {PARTITIONS} partitions",
        kafka.brokers, args.payload_bytes
    );
    for run in 1..=args.runs {
        let bench = Bench::start(&kafka, embedded.as_ref(), &args).await?;
        let figures = bench.throughput(&args).await?;
        println!("run {run}: at full speed, {} under way: {figures}", args.in_flight);
        bench.end(&kafka).await;
        let bench = Bench::start(&kafka, embedded.as_ref(), &args).await?;
        let latency = bench.latency(&args).await?;
        println!("run {run}: at {}/s: commit call -> message seen {latency}", args.rate);
        bench.end(&kafka).await;
    }
    Ok(())
}

struct Bench {
    producer: TransactionProducer,
    reader: Reader,
    target: String,
    topics: Vec<String>,
    payload_bytes: usize,
    epoch: Instant,
}

impl Bench {
    async fn start(
        kafka: &KafkaConfig,
        embedded: Option<&EmbeddedBroker>,
        args: &BenchArgs,
    ) -> anyhow::Result<Self> {
        let group = format!("bench-{}", uuid::Uuid::new_v4().simple());
        let mut config = ProducerConfig::new(kafka.clone(), "bench", group.as_str());
        config.store_partitions = PARTITIONS;
        config.max_transactions = usize::try_from(args.in_flight)?;
        let target = format!("{group}.target");
        let topics = vec![config.store_topic(), config.parked_topic(), target.clone()];
        match embedded {
            Some(broker) => {
                topics.iter().try_for_each(|topic| broker.create_topic(topic, PARTITIONS))?;
            }
            None => create(kafka, &target).await?,
        }
        let epoch = Instant::now();
        let reader = Reader::start(kafka, &target, PARTITIONS, epoch)?;
        let producer =
            TransactionProducer::builder(config).listener("bench", Undecided).start().await?;
        let until = Instant::now() + SEEN_DEADLINE;
        while let Err(problem) = producer.health() {
            ensure!(Instant::now() < until, "not ready: {problem}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Self { producer, reader, target, topics, payload_bytes: args.payload_bytes, epoch })
    }

    /// One transaction. Its number is in the payload; the time of the commit's call, which is not
    /// known yet when the payload is stored, is told to the reader.
    async fn transact(&self, number: u64) -> anyhow::Result<()> {
        let mut payload = vec![b'x'; self.payload_bytes];
        payload[..8].copy_from_slice(&number.to_le_bytes());
        let transaction = self.producer.begin("bench", Message::new(&self.target, payload)).await?;
        self.reader.committing(number, self.epoch.elapsed());
        transaction.commit().await?;
        Ok(())
    }

    async fn throughput(&self, args: &BenchArgs) -> anyhow::Result<String> {
        let started = self.epoch.elapsed();
        let next = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let workers = (0..args.in_flight).map(|_| {
            let next = Arc::clone(&next);
            async move {
                loop {
                    let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if number >= args.transactions {
                        return anyhow::Ok(());
                    }
                    self.transact(number).await?;
                }
            }
        });
        futures::future::try_join_all(workers).await?;
        let last = self.reader.wait(args.transactions, SEEN_DEADLINE).await?;
        let seconds = last.saturating_sub(started).as_secs_f64();
        let per_second = args.transactions as f64 / seconds;
        Ok(format!(
            "{per_second:.0} transactions/s; commit call -> message seen {}",
            self.reader.latency()
        ))
    }

    async fn latency(&self, args: &BenchArgs) -> anyhow::Result<String> {
        let count = args.rate * args.latency_seconds;
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(args.rate)?);
        for number in 0..count {
            ticks.tick().await;
            self.transact(number).await?;
        }
        self.reader.wait(count, SEEN_DEADLINE).await?;
        Ok(self.reader.latency())
    }

    async fn end(self, kafka: &KafkaConfig) {
        self.producer.shutdown().await;
        self.reader.stop();
        if kafka.embedded {
            return;
        }
        let names: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        let deleted = async {
            let admin: AdminClient<DefaultClientContext> = kafka.admin().create()?;
            admin.delete_topics(&names, &AdminOptions::new()).await
        };
        if let Err(error) = deleted.await {
            println!("the topics of this run are left behind: {error}");
        }
    }
}

async fn create(kafka: &KafkaConfig, target: &str) -> anyhow::Result<()> {
    let spec = TopicSpec {
        name: target.to_owned(),
        partitions: PARTITIONS,
        replication_factor: -1,
        settings: Default::default(),
        required: Vec::new(),
    };
    ensure_topic(kafka, &spec, Duration::from_secs(10)).await.context("creating the target")?;
    Ok(())
}
