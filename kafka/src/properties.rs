//! What a person may set of librdkafka: which properties are refused, which values are secret, and
//! whether this build can do what they ask for. It must never repeat a secret value.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;

use crate::config::ConfigError;

/// Overriding one of these would give up a guarantee without a word, or would itself be overridden.
/// Everything else passes through.
const RESERVED: &[&str] = &[
    // An acknowledged record is stored once, and every record's end is heard of.
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "transactional.id",
    "transaction.timeout.ms",
    "delivery.timeout.ms",
    "message.timeout.ms",
    "delivery.report.only.error",
    // Progress is stored by halfmsg alone, at the broker, after the work; nothing uncommitted is read.
    "auto.commit.enable",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "offset.store.method",
    "auto.offset.reset",
    "enable.partition.eof",
    "isolation.level",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "partition.assignment.strategy",
    // A missing topic is an error; the brokers are those of KAFKA_BROKERS, and real.
    "allow.auto.create.topics",
    "bootstrap.servers",
    "metadata.broker.list",
    "test.mock.num.brokers",
    // Follow from halfmsg's own settings and bounds.
    "batch.num.messages",
    "message.max.bytes",
    "partitioner",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queued.max.messages.kbytes",
    "statistics.interval.ms",
    "topic.metadata.propagation.max.ms",
];

/// What librdkafka has in every build, of what [`security`] asks about.
const MECHANISMS: &[(&str, &str)] = &[
    ("PLAIN", "sasl_plain"),
    ("SCRAM-SHA-256", "sasl_scram"),
    ("SCRAM-SHA-512", "sasl_scram"),
    ("OAUTHBEARER", "sasl_oauthbearer"),
    ("GSSAPI", "sasl_gssapi"),
];
/// Shown instead of a secret.
const HIDDEN: &str = "(hidden)";

/// Refuses what is reserved, unknown or out of range, and what this build cannot do.
pub(crate) fn check(properties: &BTreeMap<String, String>) -> Result<(), ConfigError> {
    let reserved = properties.keys().find(|name| RESERVED.contains(&name.as_str()));
    if let Some(name) = reserved {
        return Err(ConfigError::ReservedProperty(name.clone()));
    }
    security(properties, &features())?;
    properties.iter().try_for_each(|(name, value)| one(name, value))
}

/// The parts that this build of librdkafka has.
fn features() -> String {
    let native = ClientConfig::new().create_native_config();
    native.and_then(|native| native.get("builtin.features")).unwrap_or_default()
}

fn security(properties: &BTreeMap<String, String>, features: &str) -> Result<(), ConfigError> {
    let has = |feature: &str| features.split(',').any(|found| found.trim() == feature);
    let get = |name: &str| properties.get(name).map(|value| value.trim());
    let protocol = get("security.protocol").unwrap_or("plaintext").to_ascii_lowercase();
    if !has("ssl") {
        let of_tls = |name: &&String| {
            name.starts_with("ssl.") || *name == "enable.ssl.certificate.verification"
        };
        if let Some(name) = properties.keys().find(of_tls) {
            return Err(ConfigError::NotInThisBuild(name.clone()));
        }
        if protocol.ends_with("ssl") {
            return Err(ConfigError::NotInThisBuild(format!("security.protocol={protocol}")));
        }
    }
    let Some(mechanism) = get("sasl.mechanism").or_else(|| get("sasl.mechanisms")) else {
        let needed = protocol.starts_with("sasl_");
        return if needed { Err(ConfigError::NoMechanism(protocol)) } else { Ok(()) };
    };
    if !protocol.starts_with("sasl_") {
        return Err(ConfigError::MechanismWithoutSasl(mechanism.to_owned()));
    }
    let known = MECHANISMS.iter().find(|(name, _)| *name == mechanism);
    let Some((_, feature)) = known else {
        return Err(ConfigError::UnknownMechanism(mechanism.to_owned()));
    };
    match () {
        () if mechanism == "GSSAPI" && !has(feature) => Err(ConfigError::NoKerberos),
        () if !has(feature) => {
            Err(ConfigError::NotInThisBuild(format!("sasl.mechanism={mechanism}")))
        }
        () if mechanism == "PLAIN" || mechanism.starts_with("SCRAM-") => {
            let missing = ["sasl.username", "sasl.password"]
                .into_iter()
                .find(|name| get(name).is_none_or(str::is_empty));
            missing.map_or(Ok(()), |name| {
                Err(ConfigError::NoCredentials { mechanism: mechanism.to_owned(), missing: name })
            })
        }
        () => Ok(()),
    }
}

/// Lets librdkafka itself look at one property.
fn one(name: &str, value: &str) -> Result<(), ConfigError> {
    let Err(error) = ClientConfig::new().set(name, value).create_native_config() else {
        return Ok(());
    };
    let reason = match error {
        // librdkafka repeats the value.
        _ if is_secret(name) => "its value is not accepted".to_owned(),
        KafkaError::ClientConfig(_, reason, _, _) => reason,
        error => error.to_string(),
    };
    Err(ConfigError::BadProperty { name: name.to_owned(), reason })
}

/// Whether the value must not be shown. Of what belongs to authentication only what is known to be
/// harmless is shown, so that a property of a later librdkafka is not.
fn is_secret(name: &str) -> bool {
    let harmless =
        ["sasl.mechanism", "sasl.mechanisms", "sasl.username", "sasl.oauthbearer.method"];
    let telling = ["password", "passphrase", "secret", "token", "credential", ".pem", "private"];
    (name.starts_with("sasl.") && !harmless.contains(&name))
        || telling.iter().any(|part| name.contains(part))
}

/// Shows properties without their secrets.
pub(crate) struct Redacted<'a>(pub(crate) &'a BTreeMap<String, String>);

impl fmt::Debug for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |(name, value)| (name, if is_secret(name) { HIDDEN } else { value });
        f.debug_map().entries(self.0.iter().map(|(name, value)| shown((name, value)))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHOUT_TLS: &str = "gzip,snappy,sasl,regex,lz4,sasl_plain,plugins";
    const WITH_TLS: &str = "gzip,snappy,ssl,sasl,sasl_plain,sasl_scram,sasl_oauthbearer";

    fn properties(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn sasl(protocol: &str, mechanism: &str) -> BTreeMap<String, String> {
        properties(&[
            ("security.protocol", protocol),
            ("sasl.mechanism", mechanism),
            ("sasl.username", "ann"),
            ("sasl.password", "pw"),
        ])
    }

    #[test]
    fn every_reserved_property_is_refused_and_is_one_that_librdkafka_knows() {
        for name in RESERVED {
            let refused = check(&properties(&[(name, "1")]));
            assert_eq!(refused, Err(ConfigError::ReservedProperty((*name).to_owned())));
            let unknown = format!("{:?}", one(name, "no such value"));
            assert!(!unknown.contains("No such configuration"), "{name}: {unknown}");
        }
    }

    #[test]
    fn plain_without_tls_works_in_every_build() {
        for features in [WITHOUT_TLS, WITH_TLS, &self::features()] {
            assert_eq!(security(&sasl("SASL_PLAINTEXT", "PLAIN"), features), Ok(()));
            assert_eq!(security(&BTreeMap::new(), features), Ok(()));
        }
    }

    #[test]
    fn what_needs_tls_is_refused_without_it_and_the_line_says_what_to_build() {
        let asks = [
            sasl("SASL_SSL", "PLAIN"),
            sasl("sasl_plaintext", "SCRAM-SHA-256"),
            sasl("sasl_plaintext", "SCRAM-SHA-512"),
            properties(&[("security.protocol", "ssl")]),
            properties(&[("ssl.ca.location", "/ca.pem")]),
        ];
        for asked in asks {
            let refused = security(&asked, WITHOUT_TLS).unwrap_err();
            assert!(refused.to_string().contains("--features tls"), "{refused}");
            assert_eq!(security(&asked, WITH_TLS), Ok(()));
        }
    }

    #[test]
    fn half_a_login_is_refused() {
        for (asked, part) in [
            (properties(&[("security.protocol", "sasl_ssl")]), "sasl.mechanism is not set"),
            (properties(&[("sasl.mechanism", "PLAIN")]), "security.protocol"),
            (sasl("sasl_ssl", "plain"), "'plain'"),
            (sasl("sasl_ssl", "GSSAPI"), "Kerberos"),
            (
                properties(&[
                    ("security.protocol", "sasl_plaintext"),
                    ("sasl.mechanism", "PLAIN"),
                    ("sasl.username", "ann"),
                ]),
                "sasl.password",
            ),
        ] {
            let refused = security(&asked, WITH_TLS).unwrap_err().to_string();
            assert!(refused.contains(part), "{refused}");
        }
    }

    #[test]
    fn names_and_values_are_checked_and_a_secret_is_not_repeated() {
        let unknown = one("scoket.timeout.ms", "1").unwrap_err().to_string();
        assert!(unknown.contains("scoket.timeout.ms"), "{unknown}");
        let wrong = one("socket.timeout.ms", "soon").unwrap_err().to_string();
        assert!(wrong.contains("socket.timeout.ms"), "{wrong}");
        let secret = one("sasl.password", "s3c\0ret").unwrap_err().to_string();
        assert!(secret.contains("sasl.password") && !secret.contains("s3c"), "{secret}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let secret = [
            "sasl.password",
            "sasl.oauthbearer.config",
            "sasl.oauthbearer.client.secret",
            "sasl.oauthbearer.assertion.private.key.pem",
            "sasl.kerberos.kinit.cmd",
            "sasl.something.of.tomorrow",
            "ssl.key.password",
            "ssl.key.pem",
            "ssl.certificate.pem",
            "ssl.keystore.password",
        ];
        let shown = [("sasl.username", "ann"), ("client.id", "shop"), ("ssl.key.location", "/k")];
        let mut all: BTreeMap<String, String> = properties(&shown);
        all.extend(secret.map(|name| (name.to_owned(), "s3cret".to_owned())));
        let text = format!("{:?}", Redacted(&all));
        assert!(!text.contains("s3cret"), "{text}");
        assert_eq!(text.matches(HIDDEN).count(), secret.len());
        assert!(text.contains("\"sasl.username\": \"ann\"") && text.contains("\"/k\""), "{text}");
    }
}
