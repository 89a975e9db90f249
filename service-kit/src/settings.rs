//! The settings that both services have: environment variables, and the same as flags.
//!
//! An empty environment variable counts as unset ([`parse`]), and all mistakes are reported at
//! once ([`Mistakes`]), one clear line each.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;

use clap::{Args, Command, Parser};
use halfmsg_db::DbOptions;
use halfmsg_kafka::{DEFAULT_TOPIC_PREFIX, KafkaConfig};

use crate::auth::AdminToken;
use crate::mistakes::Mistakes;
use crate::telemetry::{self, DEFAULT_FILTER, LogFormat, LogSettings};

/// What addresses of databases begin with.
const DATABASES: [&str; 3] = ["postgres://", "postgresql://", "sqlite:"];

/// What both services are told. All values are text until [`CommonSettings::validate`].
#[derive(Clone, Args)]
pub struct CommonSettings {
    /// Kafka's addresses: host:port, separated by commas
    #[arg(long, env = "KAFKA_BROKERS", default_value = "")]
    pub kafka_brokers: String,

    /// librdkafka properties for every client: name=value, separated by commas (a comma in a
    /// value is written \,)
    #[arg(
        long,
        env = "HALFMSG_KAFKA_PROPERTIES",
        default_value = "",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    pub kafka_properties: String,

    /// on: Kafka is the launcher's in-process broker
    #[arg(long, env = "HALFMSG_EMBEDDED", default_value = "off")]
    pub embedded: String,

    /// The service's database: postgres://user:password@host:5432/name or sqlite:///path/file.db
    #[arg(long, env = "DATABASE_URL", default_value = "", hide_env_values = true)]
    pub database_url: String,

    /// At most this many database connections
    #[arg(long, env = "HALFMSG_DB_CONNECTIONS", default_value_t = DbOptions::default().max_connections.to_string())]
    pub db_connections: String,

    /// address:port to listen on [default: a loopback port of the service]
    #[arg(long, env = "HALFMSG_LISTEN", default_value = "", hide_default_value = true)]
    pub listen: String,

    /// The prefix of the topics that halfmsg makes for itself
    #[arg(long, env = "HALFMSG_TOPIC_PREFIX", default_value = DEFAULT_TOPIC_PREFIX)]
    pub topic_prefix: String,

    /// A name that stays the same when this replica restarts; its partitions then come back to it
    /// at once. Leave it unset where replicas are scaled
    #[arg(long, env = "HALFMSG_INSTANCE_ID", default_value = "", hide_default_value = true)]
    pub instance_id: String,

    /// The token of operators' calls; without one they are refused
    #[arg(
        long,
        env = "HALFMSG_ADMIN_TOKEN",
        default_value = "",
        hide_default_value = true,
        hide_env_values = true
    )]
    pub admin_token: String,

    /// on: the header X-Fault induces failures
    #[arg(long, env = "HALFMSG_FAULTS", default_value = "off")]
    pub faults: String,

    /// on: end when standard input ends
    #[arg(long, env = "HALFMSG_PARENT_PIPE", default_value = "off")]
    pub parent_pipe: String,

    /// What is logged, as in RUST_LOG (which is read if this is unset)
    #[arg(long, env = "HALFMSG_LOG", default_value = "", hide_default_value = true)]
    pub log: String,

    /// text or json
    #[arg(long, env = "HALFMSG_LOG_FORMAT", default_value = "text")]
    pub log_format: String,
}

/// What a service fills in where nothing is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceDefaults {
    /// The service's name in logs and in the database's list of connections.
    pub name: &'static str,
    /// Its loopback address.
    pub listen: &'static str,
}

/// The common settings after validation. It has no `Debug`: two of its fields hold secrets.
#[derive(Clone)]
pub struct Common {
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// The address of the database, with its password: never log it.
    pub database_url: String,
    /// The bounds of the pool.
    pub db: DbOptions,
    /// Where to listen.
    pub listen: SocketAddr,
    /// The prefix of our own topics.
    pub topic_prefix: String,
    /// The stable name of this replica.
    pub instance_id: Option<String>,
    /// The operators' token.
    pub admin_token: AdminToken,
    /// Whether X-Fault is obeyed.
    pub faults: bool,
    /// Whether the end of standard input ends the service.
    pub parent_pipe: bool,
    /// The log.
    pub log: LogSettings,
}

impl CommonSettings {
    /// Reads every value; `None` if at least one mistake was added.
    pub fn validate(&self, defaults: &ServiceDefaults, mistakes: &mut Mistakes) -> Option<Common> {
        let before = mistakes.lines().len();
        let kafka = self.kafka(mistakes);
        if self.database_url.is_empty() {
            mistakes.add("DATABASE_URL is not set: give postgres://… or sqlite://…");
        } else if self.database_url.starts_with("mysql:") {
            mistakes.add("DATABASE_URL names MySQL: the services run on PostgreSQL and SQLite");
        } else if !DATABASES.iter().any(|known| self.database_url.starts_with(known)) {
            // Not repeated: it may have a password in it.
            mistakes.add("DATABASE_URL is not understood: it must be postgres://… or sqlite://…");
        }
        let listen = if self.listen.is_empty() { defaults.listen } else { &self.listen };
        let listen = mistakes.parse("HALFMSG_LISTEN", listen, "an address such as 127.0.0.1:8080");
        let connections =
            mistakes.number("HALFMSG_DB_CONNECTIONS", &self.db_connections, 2..=1000_u32);
        mistakes.name("HALFMSG_TOPIC_PREFIX", &self.topic_prefix);
        if !self.instance_id.is_empty() {
            mistakes.name("HALFMSG_INSTANCE_ID", &self.instance_id);
        }
        if !self.admin_token.chars().all(|c| c.is_ascii_graphic()) {
            mistakes.add("HALFMSG_ADMIN_TOKEN must be visible ASCII characters without spaces");
        }
        let faults = mistakes.switch("HALFMSG_FAULTS", &self.faults);
        let parent_pipe = mistakes.switch("HALFMSG_PARENT_PIPE", &self.parent_pipe);
        let log = self.log(mistakes);
        if mistakes.lines().len() > before {
            return None;
        }
        Some(Common {
            kafka,
            database_url: self.database_url.clone(),
            db: DbOptions {
                max_connections: connections?,
                application: defaults.name.into(),
                ..DbOptions::default()
            },
            listen: listen?,
            topic_prefix: self.topic_prefix.clone(),
            instance_id: (!self.instance_id.is_empty()).then(|| self.instance_id.clone()),
            admin_token: AdminToken::new(Some(self.admin_token.clone())),
            faults: faults?,
            parent_pipe: parent_pipe?,
            log,
        })
    }

    /// The settings of the log alone, needed before all others can be reported.
    pub fn log(&self, mistakes: &mut Mistakes) -> LogSettings {
        let unset_as_none = |value: String| (!value.is_empty()).then_some(value);
        let filter = unset_as_none(self.log.clone())
            .or_else(|| std::env::var("RUST_LOG").ok().and_then(unset_as_none))
            .unwrap_or_else(|| DEFAULT_FILTER.into());
        if let Err(error) = telemetry::check_filter(&filter) {
            mistakes.add(format!(
                "HALFMSG_LOG is '{filter}': it must be a filter as in RUST_LOG; {error}"
            ));
        }
        let format = match self.log_format.as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                mistakes.add(format!("HALFMSG_LOG_FORMAT is '{other}': it must be text or json"));
                LogFormat::Text
            }
        };
        LogSettings { filter, format }
    }

    fn kafka(&self, mistakes: &mut Mistakes) -> KafkaConfig {
        let kafka = KafkaConfig {
            brokers: self.kafka_brokers.clone(),
            properties: kafka_properties(&self.kafka_properties, mistakes),
            embedded: mistakes.switch("HALFMSG_EMBEDDED", &self.embedded).unwrap_or(false),
        };
        if let Err(error) = kafka.validate() {
            mistakes.add(error.to_string());
        }
        kafka
    }
}

impl fmt::Debug for CommonSettings {
    /// Without the values, some of which are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommonSettings").field("listen", &self.listen).finish_non_exhaustive()
    }
}

/// Reads HALFMSG_REPLICATION_FACTOR and HALFMSG_MIN_INSYNC_REPLICAS, which -1 leaves to the broker.
pub fn replication(factor: &str, in_sync: &str, mistakes: &mut Mistakes) -> Option<(i32, i32)> {
    let mut read = |name, raw| {
        let number = mistakes.number(name, raw, -1..=100_i32)?;
        if number == 0 {
            mistakes.add(format!("{name} is '0': use -1 or at least 1"));
        }
        (number != 0).then_some(number)
    };
    let factor = read("HALFMSG_REPLICATION_FACTOR", factor);
    let in_sync = read("HALFMSG_MIN_INSYNC_REPLICAS", in_sync);
    let (factor, in_sync) = (factor?, in_sync?);
    if factor > 0 && in_sync > factor {
        mistakes.add(format!(
            "HALFMSG_MIN_INSYNC_REPLICAS ({in_sync}) must be at most HALFMSG_REPLICATION_FACTOR \
             ({factor}): nothing could be written"
        ));
        return None;
    }
    Some((factor, in_sync))
}

/// Reads `name=value` pairs, separated by commas; a comma in a value is written `\,`.
pub fn kafka_properties(list: &str, mistakes: &mut Mistakes) -> BTreeMap<String, String> {
    const COMMA: char = '\u{1}';
    let mut found = BTreeMap::new();
    for pair in list.replace("\\,", &COMMA.to_string()).split(',').map(str::trim) {
        if pair.is_empty() {
            continue;
        }
        let pair = pair.replace(COMMA, ",");
        match pair.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() => {
                found.insert(name.trim().to_owned(), value.trim().to_owned());
            }
            // The value may be a secret: only the name is repeated.
            _ => mistakes
                .add("HALFMSG_KAFKA_PROPERTIES has an entry that must be name=value, and is not"),
        }
    }
    found
}

/// Reads flags and environment of this process; ends it with clap's message on a wrong flag.
pub fn parse<P: Parser>() -> P {
    parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
}

/// Reads flags and environment. An empty environment variable counts as unset, because that is
/// what `NAME=` in an env file or in compose is meant to say.
///
/// # Errors
/// clap's, for a wrong flag.
pub fn parse_from<P: Parser>(
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<P, clap::Error> {
    let mut command = without_empty_variables(P::command());
    let mut matches = command.try_get_matches_from_mut(arguments)?;
    P::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// Reads flags alone, as if the environment were empty: for tests, and for what describes the settings.
///
/// # Errors
/// clap's, for a wrong flag.
pub fn parse_flags<P: Parser>(
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<P, clap::Error> {
    let mut matches = without_variables(P::command()).try_get_matches_from(arguments)?;
    P::from_arg_matches_mut(&mut matches)
}

fn without_variables(command: Command) -> Command {
    let command = command.mut_args(|argument| argument.env(None::<&'static str>));
    command.mut_subcommands(without_variables)
}

fn without_empty_variables(command: Command) -> Command {
    let command = command.mut_args(|argument| {
        let empty = argument
            .get_env()
            .is_some_and(|name| std::env::var_os(name).is_some_and(|value| value.is_empty()));
        if empty { argument.env(None::<&'static str>) } else { argument }
    });
    command.mut_subcommands(without_empty_variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: ServiceDefaults = ServiceDefaults { name: "x-svc", listen: "127.0.0.1:8080" };

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        common: CommonSettings,
    }

    fn validate(arguments: &[&str]) -> (Option<Common>, Vec<String>) {
        let arguments = [&["x"], arguments].concat();
        let cli: Cli = parse_flags(arguments).unwrap();
        let mut mistakes = Mistakes::new();
        let common = cli.common.validate(&DEFAULTS, &mut mistakes);
        (common, mistakes.lines().to_vec())
    }

    #[test]
    fn the_least_is_two_settings() {
        let (common, mistakes) =
            validate(&["--kafka-brokers", "k:9092", "--database-url", "sqlite://x.db"]);
        assert_eq!(mistakes, Vec::<String>::new());
        let common = common.unwrap();
        assert!(common.listen.ip().is_loopback());
        assert_eq!(common.topic_prefix, "halfmsg");
        assert!(!common.faults && !common.admin_token.is_set() && common.instance_id.is_none());
    }

    #[test]
    fn reports_every_mistake_at_once() {
        let (common, mistakes) = validate(&[
            "--kafka-brokers=k",
            "--kafka-properties=acks",
            "--listen=8080",
            "--faults=yes",
            "--db-connections=1",
            "--topic-prefix=a b",
            "--log-format=xml",
            "--log=x=loud",
        ]);
        assert!(common.is_none());
        for name in [
            "KAFKA_BROKERS",
            "HALFMSG_KAFKA_PROPERTIES",
            "DATABASE_URL",
            "HALFMSG_LISTEN",
            "HALFMSG_FAULTS",
            "HALFMSG_DB_CONNECTIONS",
            "HALFMSG_TOPIC_PREFIX",
            "HALFMSG_LOG_FORMAT is",
            "HALFMSG_LOG is",
        ] {
            assert_eq!(mistakes.iter().filter(|line| line.contains(name)).count(), 1, "{name}");
        }
    }

    #[test]
    fn properties_may_contain_commas() {
        let mut mistakes = Mistakes::new();
        let found = kafka_properties("a=1, sasl.password=x\\,y=z ,", &mut mistakes);
        assert_eq!(mistakes, Mistakes::new());
        assert_eq!(found["a"], "1");
        assert_eq!(found["sasl.password"], "x,y=z");
    }

    #[test]
    fn replication_is_left_to_the_broker_or_makes_sense() {
        let read = |factor, in_sync| {
            let mut mistakes = Mistakes::new();
            (replication(factor, in_sync, &mut mistakes), mistakes.lines().len())
        };
        assert_eq!(read("-1", "-1"), (Some((-1, -1)), 0));
        assert_eq!(read("3", "2"), (Some((3, 2)), 0));
        assert_eq!(read("-1", "2"), (Some((-1, 2)), 0));
        assert_eq!(read("2", "3"), (None, 1));
        assert_eq!(read("0", "x"), (None, 2));
    }

    #[test]
    fn secrets_are_not_shown() {
        let (common, _) =
            validate(&["--kafka-brokers=k:1", "--database-url=sqlite://x", "--admin-token=s3cret"]);
        assert!(!format!("{:?}", common.unwrap().admin_token).contains("s3cret"));
    }
}
