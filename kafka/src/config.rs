//! Connection settings, validated once, from which every client is made.

use std::collections::BTreeMap;

use rdkafka::config::ClientConfig;

/// How to reach Kafka. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    #[error("KAFKA_BROKERS names '{0}', which is not host:port")]
    BadBroker(String),
    /// A property on which the guarantees rest.
    #[error(
        "the Kafka property '{0}' is set by halfmsg itself and cannot be overridden: remove it"
    )]
    ReservedProperty(String),
}

/// Overriding one of these would silently give up a guarantee.
const RESERVED: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "auto.offset.reset",
    "bootstrap.servers",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "isolation.level",
    "message.timeout.ms",
    "metadata.broker.list",
    "partition.assignment.strategy",
    "request.required.acks",
    "transactional.id",
];

impl KafkaConfig {
    /// Settings for a real cluster.
    pub fn new(brokers: impl Into<String>) -> Self {
        Self { brokers: brokers.into(), properties: BTreeMap::new(), embedded: false }
    }

    /// Checks the addresses and refuses properties that would break a guarantee.
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
        match self.properties.keys().find(|name| RESERVED.contains(&name.as_str())) {
            Some(name) => Err(ConfigError::ReservedProperty(name.clone())),
            None => Ok(()),
        }
    }

    /// Settings for an administrative client.
    pub fn admin(&self) -> ClientConfig {
        self.with(&[])
    }

    /// Settings for an idempotent producer: acknowledged by all in-sync replicas, no lingering
    /// (batches form under load by themselves, a linger costs its full value per hop).
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
    /// whenever its queue is full.
    pub fn consumer(&self, group: &str) -> ClientConfig {
        self.with(&[
            ("group.id", group),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "earliest"),
            ("fetch.queue.backoff.ms", "20"),
            ("fetch.wait.max.ms", "100"),
            ("session.timeout.ms", "10000"),
            ("heartbeat.interval.ms", "2000"),
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
            config.set(name, value);
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn passes_other_properties_through() {
        let mut config = KafkaConfig::new("a:9092");
        config.properties.insert("socket.timeout.ms".into(), "5000".into());
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.producer().get("socket.timeout.ms"), Some("5000"));
    }
}
