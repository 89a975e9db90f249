//! Connection settings, validated once, from which every client is made.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::config::ClientConfig;

use crate::properties::{self, Redacted};

/// The first part of the names of the topics that halfmsg makes for itself, unless another is set.
pub const DEFAULT_TOPIC_PREFIX: &str = "halfmsg";

/// How to reach Kafka. Cheap to clone; its `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// Comma-separated `host:port` list (`KAFKA_BROKERS`).
    pub brokers: String,
    /// Any librdkafka property, applied last to every client, except the ones that correctness
    /// rests on (see [`KafkaConfig::validate`]).
    pub properties: BTreeMap<String, String>,
    /// The broker is the in-process mock cluster: topics exist already, cannot be verified, and
    /// each group has one member, which owns all partitions.
    pub embedded: bool,
}

/// A setting that would break a guarantee, or that is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No broker address.
    #[error("KAFKA_BROKERS is empty: give at least one host:port")]
    NoBrokers,
    /// An address without a port, or with one that is not a number.
    #[error("KAFKA_BROKERS names '{0}': it must be host:port")]
    BadBroker(String),
    /// A property on which the guarantees rest.
    #[error(
        "the Kafka property '{0}' is set by halfmsg itself and cannot be overridden: remove it"
    )]
    ReservedProperty(String),
    /// A name that librdkafka does not know, or a value that it does not take.
    #[error("the Kafka property '{name}' cannot be used: {reason}")]
    BadProperty {
        /// The property.
        name: String,
        /// What librdkafka says; never a secret value.
        reason: String,
    },
    /// Built without OpenSSL.
    #[error(
        "the Kafka property '{0}' needs OpenSSL, and this program was built without it: build it \
         with `--features tls` (Debian, Ubuntu: libssl-dev and pkg-config)"
    )]
    NotInThisBuild(String),
    /// librdkafka would take Kerberos, its default.
    #[error(
        "security.protocol={0}, but sasl.mechanism is not set: use PLAIN, SCRAM-SHA-256 or \
         SCRAM-SHA-512, as the brokers' listener has it"
    )]
    NoMechanism(String),
    /// The mechanism would be ignored.
    #[error(
        "sasl.mechanism={0}, but security.protocol is not sasl_plaintext or sasl_ssl: the brokers \
         would be contacted without a login"
    )]
    MechanismWithoutSasl(String),
    /// Mistyped: they are written in capitals.
    #[error(
        "sasl.mechanism is '{0}': use PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER, in capitals"
    )]
    UnknownMechanism(String),
    /// Kerberos is not built in.
    #[error(
        "sasl.mechanism=GSSAPI (Kerberos) is not built in: use PLAIN, SCRAM-SHA-256 or \
         SCRAM-SHA-512"
    )]
    NoKerberos,
    /// No name or no password.
    #[error(
        "sasl.mechanism={mechanism} needs sasl.username and sasl.password: {missing} is not set"
    )]
    NoCredentials {
        /// The mechanism.
        mechanism: String,
        /// The property that is missing.
        missing: &'static str,
    },
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("properties", &Redacted(&self.properties))
            .field("embedded", &self.embedded)
            .finish()
    }
}

impl KafkaConfig {
    /// Settings for a real cluster.
    pub fn new(brokers: impl Into<String>) -> Self {
        Self { brokers: brokers.into(), properties: BTreeMap::new(), embedded: false }
    }

    /// Checks the addresses and refuses properties that would break a guarantee, that librdkafka
    /// does not know, or that this build cannot serve (TLS and SCRAM need the feature `tls`).
    ///
    /// # Errors
    /// The first mistake found, in words that name the setting.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.brokers.trim().is_empty() {
            return Err(ConfigError::NoBrokers);
        }
        for broker in self.brokers.split(',').map(str::trim) {
            let port = broker.rsplit_once(':').and_then(|(host, port)| {
                (!host.is_empty()).then(|| port.parse::<u16>().ok()).flatten()
            });
            if port.is_none() {
                return Err(ConfigError::BadBroker(broker.to_owned()));
            }
        }
        properties::check(&self.properties)
    }

    /// Settings for an administrative client.
    pub fn admin(&self) -> ClientConfig {
        self.with(&[])
    }

    /// Settings for an idempotent producer: acknowledged by all in-sync replicas, no lingering
    /// (batches form under load by themselves, a linger costs its full value per hop; the store has a second
    /// client, which waits).
    pub fn producer(&self) -> ClientConfig {
        self.with(&[
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("linger.ms", "0"),
            ("retry.backoff.ms", "10"),
        ])
    }

    /// Settings for a consumer that commits by itself, after the work is done.
    ///
    /// `fetch.queue.backoff.ms` of 20 because the default of 1,000 lets the consumer sleep
    /// whenever its queue is full. A heartbeat a second, because the others of a group hear by theirs that
    /// one is gone: what it had is taken over within the session timeout and two seconds.
    pub fn consumer(&self, group: &str) -> ClientConfig {
        self.with(&[
            ("group.id", group),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "earliest"),
            ("fetch.queue.backoff.ms", "20"),
            ("fetch.wait.max.ms", "100"),
            ("session.timeout.ms", "10000"),
            ("heartbeat.interval.ms", "1000"),
        ])
    }

    fn with(&self, settings: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config.set("allow.auto.create.topics", "false");
        config.set("log.connection.close", "false");
        // A broker that is back must be found within a second, not within the default ten.
        config.set("reconnect.backoff.max.ms", "1000");
        for (name, value) in settings {
            config.set(*name, *value);
        }
        for (name, value) in &self.properties {
            // Of two names of one setting, which one holds would be chance.
            let name = if name == "queue.buffering.max.ms" { "linger.ms" } else { name.as_str() };
            config.set(name, value);
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_name_of_the_linger_holds_for_every_producer() {
        let mut config = KafkaConfig::new("a:9092");
        config.properties.insert("queue.buffering.max.ms".into(), "7".into());
        let producer = config.producer();
        assert_eq!(producer.get("linger.ms"), Some("7"));
        assert_eq!(producer.get("queue.buffering.max.ms"), None);
    }

    #[test]
    fn accepts_a_list_of_brokers() {
        assert_eq!(KafkaConfig::new("a:9092, b:9093").validate(), Ok(()));
    }

    #[test]
    fn names_the_broken_address() {
        assert_eq!(KafkaConfig::new("").validate(), Err(ConfigError::NoBrokers));
        for bad in ["a", "a:", ":9092", "a:port"] {
            assert_eq!(KafkaConfig::new(bad).validate(), Err(ConfigError::BadBroker(bad.into())));
        }
    }

    #[test]
    fn refuses_a_property_that_breaks_a_guarantee() {
        let mut config = KafkaConfig::new("a:9092");
        config.properties.insert("acks".into(), "1".into());
        assert_eq!(config.validate(), Err(ConfigError::ReservedProperty("acks".into())));
    }

    #[test]
    fn other_properties_reach_every_client() {
        let mut config = KafkaConfig::new("a:9092");
        let pass = [
            ("security.protocol", "sasl_plaintext"),
            ("sasl.mechanism", "PLAIN"),
            ("sasl.username", "ann"),
            ("sasl.password", "s3cret"),
            ("client.id", "shop"),
            ("compression.type", "lz4"),
            ("compression.level", "3"),
            ("socket.timeout.ms", "5000"),
            ("socket.keepalive.enable", "true"),
            ("broker.address.family", "v4"),
        ];
        config.properties.extend(pass.map(|(name, value)| (name.into(), value.into())));
        assert_eq!(config.validate(), Ok(()));
        for client in [config.admin(), config.producer(), config.consumer("g")] {
            for (name, value) in pass {
                assert_eq!(client.get(name), Some(value), "{name}");
            }
        }
        assert!(!format!("{config:?}").contains("s3cret"));
    }

    #[cfg(feature = "tls")]
    #[test]
    fn tls_properties_reach_every_client_too() {
        let mut config = KafkaConfig::new("a:9092");
        let pass = [
            ("security.protocol", "ssl"),
            ("ssl.ca.location", "/ca.pem"),
            ("ssl.key.password", "s3cret"),
            ("ssl.endpoint.identification.algorithm", "https"),
            ("enable.ssl.certificate.verification", "true"),
        ];
        config.properties.extend(pass.map(|(name, value)| (name.into(), value.into())));
        assert_eq!(config.validate(), Ok(()));
        for client in [config.admin(), config.producer(), config.consumer("g")] {
            assert!(pass.iter().all(|(name, value)| client.get(name) == Some(value)));
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_is_refused_by_a_build_without_it() {
        let mut config = KafkaConfig::new("a:9092");
        config.properties.insert("security.protocol".into(), "ssl".into());
        let refused = config.validate();
        assert_eq!(refused, Err(ConfigError::NotInThisBuild("security.protocol=ssl".into())));
    }
}
