//! Every setting of order-svc: environment variables, the same as flags, checked all at once;
//! `times`: the durations.

mod times;

use std::time::Duration;

use clap::Parser;
use halfmsg_producer::{CrashPoint, Emission, ProducerConfig};
use halfmsg_service_kit::KafkaConfig;
use halfmsg_service_kit::db::DbOptions;
use halfmsg_service_kit::{
    Common, CommonSettings, Delivery, DeliverySettings, Mistakes, ServiceDefaults,
};

use crate::listener::LocalTimes;
use crate::place::{PlaceLimits, Topics};
use crate::stock::StockClient;
use crate::store::StoreLimits;
use times::Times;

/// The service's name, and the application's name in the half-message store.
pub const NAME: &str = "order-svc";
const DEFAULTS: ServiceDefaults = ServiceDefaults { name: NAME, listen: "127.0.0.1:8080" };
/// The bounds of every setting in milliseconds.
const MILLIS: std::ops::RangeInclusive<u64> = 10..=86_400_000;
/// The fault slow-local stalls this much longer than the later of local deadline and first check.
const STALL_MORE: Duration = Duration::from_secs(1);
/// What the producer takes at most.
const MAX_BODY_BUDGET_BYTES: usize = 1 << 40;
/// Connections of the check-back: as many as checks run at once.
const CHECK_CONNECTIONS: u32 = 4;

/// The producer's own, which are those of the service where it sets none.
fn producer_defaults() -> ProducerConfig {
    ProducerConfig::new(KafkaConfig::new(""), NAME, NAME)
}

fn millis(of: impl Fn(ProducerConfig) -> Duration) -> String {
    of(producer_defaults()).as_millis().to_string()
}

/// Orders: places them, and answers the check-backs about them
#[derive(Debug, Clone, Parser)]
#[command(name = NAME)]
pub struct Settings {
    /// What both services are told.
    #[command(flatten)]
    pub common: CommonSettings,

    /// The address of stock-svc; http only
    #[arg(long, env = "STOCK_URL", default_value = "http://127.0.0.1:8081")]
    pub stock_url: String,

    /// The producer group: the replicas that share one store of half messages
    #[arg(long, env = "HALFMSG_GROUP", default_value = NAME)]
    pub group: String,

    /// The topic by which orders of flow B ask for their stock
    #[arg(long, env = "HALFMSG_CREATED_TOPIC", default_value = "order.created")]
    pub created_topic: String,

    /// The topic of stock-svc's answers to them
    #[arg(long, env = "HALFMSG_OUTBOUND_TOPIC", default_value = "stock.outbound")]
    pub outbound_topic: String,

    /// The topic that stock-svc restores from
    #[arg(long, env = "HALFMSG_ROLLBACK_TOPIC", default_value = "stock.rollback")]
    pub rollback_topic: String,

    /// Partitions of the store, if it is created
    #[arg(long, env = "HALFMSG_STORE_PARTITIONS", default_value_t = producer_defaults().store_partitions.to_string())]
    pub store_partitions: String,

    /// Storing a half message, in milliseconds
    #[arg(long, env = "HALFMSG_PREPARE_DEADLINE_MS", default_value_t = millis(|config| config.prepare_deadline))]
    pub prepare_deadline_ms: String,

    /// The local transaction, in milliseconds; past it the check decides
    #[arg(long, env = "HALFMSG_LOCAL_DEADLINE_MS", default_value_t = millis(|config| config.local_deadline))]
    pub local_deadline_ms: String,

    /// Storing a decision, in milliseconds
    #[arg(long, env = "HALFMSG_DECISION_DEADLINE_MS", default_value_t = millis(|config| config.decision_deadline))]
    pub decision_deadline_ms: String,

    /// How long a record that the store does not acknowledge is sent again and again, in
    /// milliseconds; at least the prepare and the decision deadline, and the same in all replicas of the
    /// group
    #[arg(long, env = "HALFMSG_STORE_TIMEOUT_MS", default_value_t = millis(|config| config.store_timeout))]
    pub store_timeout_ms: String,

    /// Price lookup and deduction together, in milliseconds; less than the local deadline
    #[arg(long, env = "HALFMSG_STOCK_DEADLINE_MS", default_value = "1500")]
    pub stock_deadline_ms: String,

    /// From storing a half message to its first check, in milliseconds
    #[arg(long, env = "HALFMSG_CHECK_AFTER_MS", default_value_t = millis(|config| config.check_after))]
    pub check_after_ms: String,

    /// From the first check to the second, in milliseconds; doubles from check to check, up to 5 minutes
    #[arg(long, env = "HALFMSG_CHECK_INTERVAL_MS", default_value_t = millis(|config| config.check_backoff.initial))]
    pub check_interval_ms: String,

    /// Checks without an answer before a half message is parked
    #[arg(long, env = "HALFMSG_MAX_CHECKS", default_value_t = producer_defaults().max_checks.to_string())]
    pub max_checks: String,

    /// From a request for an order to its answer, in milliseconds
    #[arg(long, env = "HALFMSG_ANSWER_DEADLINE_MS", default_value = "10000")]
    pub answer_deadline_ms: String,

    /// How long an Idempotency-Key waits for its first request, in milliseconds
    #[arg(long, env = "HALFMSG_IDEMPOTENCY_LEASE_MS", default_value = "15000")]
    pub idempotency_lease_ms: String,

    /// Between two times that the store is trimmed below what a replay needs, in milliseconds; 0:
    /// never
    #[arg(long, env = "HALFMSG_TRIM_INTERVAL_MS", default_value_t = millis(|config| config.trim_interval.unwrap_or_default()))]
    pub trim_interval_ms: String,

    /// An order that waits longer than this for its stock counts as stuck, in milliseconds
    #[arg(long, env = "HALFMSG_STUCK_AFTER_MS", default_value = "60000")]
    pub stuck_after_ms: String,

    /// Bytes of the messages of open halves that are kept in memory; those beyond are read from the
    /// store again when they are needed
    #[arg(long, env = "HALFMSG_BODY_BUDGET_BYTES", default_value_t = producer_defaults().body_budget_bytes.to_string())]
    pub body_budget_bytes: String,

    /// Its consumers.
    #[command(flatten)]
    pub delivery: DeliverySettings,

    /// How committed messages reach their topic: exactly-once (read-committed readers see each
    /// once) or at-least-once. Unset: exactly-once, on the embedded broker at-least-once
    #[arg(long, env = "HALFMSG_EMISSION", default_value = "", hide_default_value = true)]
    pub emission: String,

    /// Tests only, needs HALFMSG_FAULTS=on: abort after-decision (its record is stored),
    /// after-delivery (before its progress is stored) or after-commit (of their transaction)
    #[arg(long, env = "HALFMSG_CRASH_AT", default_value = "", hide_default_value = true)]
    pub crash_at: String,
}

/// The settings after validation. It has no `Debug`: the database's address has a password.
#[derive(Clone)]
pub struct Config {
    /// What both services are told.
    pub common: Common,
    /// The pool of the check-back.
    pub check_db: DbOptions,
    /// The client of stock-svc.
    pub stock: StockClient,
    /// The producer.
    pub producer: ProducerConfig,
    /// The topics of half messages and of their answers.
    pub topics: Topics,
    /// Its consumers.
    pub delivery: Delivery,
    /// From when on an order that waits is stuck.
    pub stuck_after: Duration,
    /// The bounds of the store.
    pub store: StoreLimits,
    /// The times of the local transaction.
    pub local: LocalTimes,
    /// The bounds of placing an order.
    pub place: PlaceLimits,
}

impl Settings {
    /// Reads every value.
    ///
    /// # Errors
    /// All mistakes, one line each.
    pub fn validate(&self) -> Result<Config, Mistakes> {
        let mut mistakes = Mistakes::new();
        let config = self.read(&mut mistakes);
        mistakes.clone().finish()?;
        config.ok_or(mistakes)
    }

    fn read(&self, mistakes: &mut Mistakes) -> Option<Config> {
        let common = self.common.validate(&DEFAULTS, mistakes);
        mistakes.name("HALFMSG_GROUP", &self.group);
        let topics = self.topics(mistakes);
        let stock = StockClient::new(&self.stock_url);
        if let Err(error) = &stock {
            mistakes.add(error.to_string());
        }
        let times = Times::read(self, mistakes);
        if let Some(times) = &times {
            times.check(mistakes);
        }
        let max_checks = mistakes.number("HALFMSG_MAX_CHECKS", &self.max_checks, 1..=1_000_000_u32);
        let partitions =
            mistakes.number("HALFMSG_STORE_PARTITIONS", &self.store_partitions, 1..=10_000_i32);
        let body_budget = mistakes.number(
            "HALFMSG_BODY_BUDGET_BYTES",
            &self.body_budget_bytes,
            1..=MAX_BODY_BUDGET_BYTES,
        );
        let delivery = self.delivery.read(mistakes);
        let stuck_after = mistakes.millis("HALFMSG_STUCK_AFTER_MS", &self.stuck_after_ms, MILLIS);
        let crash_at = self.crash_point(mistakes);
        let emission = self.emission(mistakes);
        let trim_interval =
            mistakes.millis_or_never("HALFMSG_TRIM_INTERVAL_MS", &self.trim_interval_ms, MILLIS);
        let (common, times) = (common?, times?);
        if crash_at.is_some() && !common.faults {
            mistakes.add("HALFMSG_CRASH_AT is set: it needs HALFMSG_FAULTS=on");
        }
        let delivery = delivery?;
        let defaults = ProducerConfig::new(common.kafka.clone(), NAME, &self.group);
        let producer = ProducerConfig {
            emission: emission.unwrap_or(defaults.emission),
            trim_interval: trim_interval?,
            topic_prefix: common.topic_prefix.clone(),
            instance_id: common.instance_id.clone(),
            store_partitions: partitions?,
            replication_factor: delivery.topic.replication_factor,
            min_insync_replicas: delivery.topic.min_insync_replicas,
            max_checks: max_checks?,
            body_budget_bytes: body_budget?,
            check_concurrency: CHECK_CONNECTIONS as usize,
            crash_at,
            ..times.producer(defaults)
        };
        // Every mistake above has its line already; what is left is the producer's own.
        if mistakes.lines().is_empty()
            && let Err(error) = producer.validate()
        {
            mistakes.add(error.to_string());
        }
        let store = StoreLimits {
            deadline: times.local / 3,
            local_deadline: times.local,
            check_budget: producer.check_deadline * 2 / 3,
            ..StoreLimits::default()
        };
        let stall = times.check_after.max(times.local) + STALL_MORE;
        Some(Config {
            check_db: DbOptions {
                max_connections: CHECK_CONNECTIONS,
                sqlite_busy_timeout: store.lock_timeout,
                ..common.db.clone()
            },
            stock: stock.ok()?,
            topics,
            delivery,
            stuck_after: stuck_after?,
            local: LocalTimes { stock: times.stock, stall },
            place: PlaceLimits { answer: times.answer, lease: times.lease },
            store,
            producer,
            common,
        })
    }

    fn topics(&self, mistakes: &mut Mistakes) -> Topics {
        let named = [
            ("HALFMSG_ROLLBACK_TOPIC", &self.rollback_topic),
            ("HALFMSG_CREATED_TOPIC", &self.created_topic),
            ("HALFMSG_OUTBOUND_TOPIC", &self.outbound_topic),
        ];
        mistakes.different_topics(&named);
        let [rollback, created, outbound] = named.map(|(_, name)| name.clone());
        Topics { rollback, created, outbound }
    }

    fn crash_point(&self, mistakes: &mut Mistakes) -> Option<CrashPoint> {
        match self.crash_at.as_str() {
            "" => None,
            "after-decision" => Some(CrashPoint::AfterDecision),
            "after-delivery" => Some(CrashPoint::AfterDelivery),
            "after-commit" => Some(CrashPoint::AfterCommit),
            other => {
                mistakes.add(format!(
                    "HALFMSG_CRASH_AT is '{other}': it must be after-decision, after-delivery, \
                     after-commit or unset"
                ));
                None
            }
        }
    }

    fn emission(&self, mistakes: &mut Mistakes) -> Option<Emission> {
        if self.emission.is_empty() {
            return None;
        }
        let read = self.emission.parse::<Emission>();
        read.map_err(|error| mistakes.add(format!("HALFMSG_EMISSION is {error}"))).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: [&str; 3] = ["x", "--kafka-brokers=k:9092", "--database-url=sqlite://x.db"];

    fn lines(more: &[&str]) -> Vec<String> {
        let arguments = LEAST.iter().chain(more).copied();
        let settings: Settings =
            halfmsg_service_kit::settings::parse_flags(arguments).expect("known flags");
        settings.validate().err().map_or_else(Vec::new, |mistakes| mistakes.lines().to_vec())
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(lines(&[]), Vec::<String>::new());
    }

    #[test]
    fn https_is_refused_in_clear_words() {
        let lines = lines(&["--stock-url=https://stock"]);
        assert!(lines[0].contains("STOCK_URL") && lines[0].contains("only http"), "{lines:?}");
    }

    #[test]
    fn a_crash_point_needs_faults() {
        let at = "--crash-at=after-delivery";
        assert_eq!(lines(&[at]), ["HALFMSG_CRASH_AT is set: it needs HALFMSG_FAULTS=on"]);
        assert_eq!(lines(&[at, "--faults=on"]), Vec::<String>::new());
        assert!(lines(&["--crash-at=sometimes"])[0].starts_with("HALFMSG_CRASH_AT is 'sometimes'"));
    }

    #[test]
    fn emission_is_one_of_two() {
        for emission in ["--emission=at-least-once", "--emission=exactly-once"] {
            assert_eq!(lines(&[emission]), Vec::<String>::new());
        }
        let lines = lines(&["--emission=twice"]);
        assert!(lines[0].starts_with("HALFMSG_EMISSION is 'twice'"), "{lines:?}");
    }

    #[test]
    fn every_mistake_is_one_line() {
        let lines = lines(&[
            "--group=a b",
            "--max-checks=0",
            "--local-deadline-ms=5000",
            "--stock-deadline-ms=5000",
            "--idempotency-lease-ms=1000",
        ]);
        for name in [
            "HALFMSG_GROUP is",
            "HALFMSG_MAX_CHECKS is",
            "HALFMSG_STOCK_DEADLINE_MS (5s)",
            "HALFMSG_PREPARE_DEADLINE_MS (2s)",
            "HALFMSG_IDEMPOTENCY_LEASE_MS (1s)",
        ] {
            assert_eq!(lines.iter().filter(|line| line.starts_with(name)).count(), 1, "{lines:?}");
        }
    }
}
