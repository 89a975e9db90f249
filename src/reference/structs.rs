//! The settings of the libraries: names and meanings out of the source, defaults as `Debug` shows
//! them, bounds as the structs tell them.

use std::fmt::{Debug, Write as _};
use std::fs;

use halfmsg_consumer::{ConsumerConfig, TopicSettings};
use halfmsg_kafka::KafkaConfig;
use halfmsg_producer::fence::FenceOptions;
use halfmsg_producer::{ProducerConfig, SnapshotLimits};
use halfmsg_service_kit::db::DbOptions;
use sea_orm::DatabaseConnection;

const MIB: u64 = 1_024 * 1_024;

/// A struct with its fields.
pub(super) struct Table {
    pub(super) name: &'static str,
    source: &'static str,
    /// Fields that a program must give, which have no default.
    given: &'static [&'static str],
    defaults: String,
    ranges: Vec<(&'static str, &'static str)>,
}

pub(super) fn tables() -> Vec<Table> {
    let kafka = || KafkaConfig::new("");
    let producer = ProducerConfig::new(kafka(), "", "");
    let consumer = ConsumerConfig::new(kafka(), DatabaseConnection::default(), "");
    let plain = |name, source, given, defaults: &dyn Debug| Table {
        name,
        source,
        given,
        defaults: format!("{defaults:?}"),
        ranges: Vec::new(),
    };
    vec![
        Table {
            ranges: producer.ranges(),
            ..plain(
                "ProducerConfig",
                "producer/src/config.rs",
                &["kafka", "application", "group"],
                &producer,
            )
        },
        Table {
            ranges: consumer.ranges(),
            ..plain(
                "ConsumerConfig",
                "consumer/src/config.rs",
                &["kafka", "database", "subscriber"],
                &consumer,
            )
        },
        plain("TopicSettings", "consumer/src/config.rs", &[], &TopicSettings::default()),
        plain("KafkaConfig", "kafka/src/config.rs", &["brokers"], &kafka()),
        plain("DbOptions", "db/src/connect.rs", &[], &DbOptions::default()),
        plain("FenceOptions", "producer/src/fence/check.rs", &[], &FenceOptions::default()),
        plain("SnapshotLimits", "producer/src/snapshot.rs", &[], &SnapshotLimits::default()),
    ]
}

impl Table {
    pub(super) fn text(&self) -> String {
        let (fields, defaults) = (self.fields(), fields_of(&self.defaults));
        let names = |all: &[(String, String)]| -> Vec<String> {
            all.iter().map(|(name, _)| name.clone()).collect()
        };
        assert_eq!(names(&fields), names(&defaults), "the fields of {}", self.name);
        for (name, _) in &self.ranges {
            let field = name.split('.').next().unwrap_or(name);
            assert!(fields.iter().any(|(known, _)| known == field), "{}: {name}", self.name);
        }
        let mut text = String::from("| field | default | must be | meaning |\n|---|---|---|---|\n");
        for ((name, meaning), (_, default)) in fields.iter().zip(defaults) {
            let default = match self.given.contains(&name.as_str()) {
                true => "you give it".to_owned(),
                false => format!("`{}`", readable(name, &default)),
            };
            let _ = writeln!(text, "| `{name}` | {default} | {} | {meaning} |", self.range(name));
        }
        text
    }

    fn range(&self, field: &str) -> String {
        let of_field = |name: &str| {
            name == field || name.strip_prefix(field).is_some_and(|rest| rest.starts_with('.'))
        };
        let ranges = self.ranges.iter().filter(|(name, _)| of_field(name));
        let mut found: Vec<&str> = ranges.map(|(_, range)| *range).collect();
        found.dedup();
        found.join("; ")
    }

    /// Public fields with their comments, in the order of the source.
    fn fields(&self) -> Vec<(String, String)> {
        let text = fs::read_to_string(super::root().join(self.source)).expect("a source file");
        let begin = format!("pub struct {} {{\n", self.name);
        let (_, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("no {begin}"));
        let (body, _) = rest.split_once("\n}").expect("a struct ends");
        let (mut fields, mut meaning) = (Vec::new(), Vec::new());
        for line in body.lines().map(str::trim) {
            if let Some(words) = line.strip_prefix("///") {
                meaning.push(words.trim());
            } else if let Some((name, _)) =
                line.strip_prefix("pub ").and_then(|l| l.split_once(':'))
            {
                assert!(!meaning.is_empty(), "{name} of {} has no meaning", self.name);
                fields.push((name.to_owned(), without_links(&meaning.join(" "))));
                meaning.clear();
            }
        }
        fields
    }
}

/// Links of rustdoc lead nowhere here.
fn without_links(text: &str) -> String {
    text.replace("[`", "`").replace("`]", "`").replace('|', "\\|")
}

/// What stands between the outermost braces of a `Debug`, by field.
fn fields_of(debug: &str) -> Vec<(String, String)> {
    let (_, inner) = debug.split_once(" { ").expect("a struct");
    let inner = inner.strip_suffix(" }").expect("its end");
    let (mut parts, mut part, mut depth) = (Vec::new(), String::new(), 0_i32);
    for c in inner.chars() {
        match c {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push(c);
    }
    parts.push(part);
    let pair = |part: String| {
        let (name, value) = part.trim().split_once(": ").expect("name and value");
        (name.to_owned(), value.to_owned())
    };
    parts.into_iter().map(pair).collect()
}

/// Durations of whole hours and days, and bytes of whole MiB, by those; numbers in groups.
fn readable(name: &str, value: &str) -> String {
    if let Ok(number) = value.parse::<u64>() {
        return match name.ends_with("_bytes") && number % MIB == 0 && number > 0 {
            true => format!("{} MiB", number / MIB),
            false => grouped(number),
        };
    }
    let mut text = String::new();
    for word in value.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let end = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).len();
        let (word, rest) = word.split_at(end);
        text.push_str(&duration(word));
        text.push_str(rest);
    }
    text
}

fn duration(word: &str) -> String {
    let Some(seconds) = word.strip_suffix('s').and_then(|word| word.parse::<u64>().ok()) else {
        return word.to_owned();
    };
    match seconds {
        0 => "0".into(),
        _ if seconds % 86_400 == 0 && seconds > 86_400 => format!("{} days", seconds / 86_400),
        _ if seconds % 3_600 == 0 => format!("{} h", seconds / 3_600),
        _ if seconds % 60 == 0 && seconds > 60 => format!("{} min", seconds / 60),
        _ => format!("{seconds} s"),
    }
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A field that nothing but the definition names is read by nobody.
#[test]
fn every_field_is_used() {
    for table in tables() {
        let package = table.source.split('/').next().expect("a package");
        let mut text = String::new();
        for path in super::sources::rust_below(&super::root().join(package).join("src")) {
            text.push_str(&fs::read_to_string(path).expect("a source file"));
        }
        for (name, _) in table.fields() {
            let used = text.match_indices(&format!(".{name}")).any(|(at, found)| {
                !text[at + found.len()..]
                    .starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            });
            assert!(used, "nothing reads {} of {}", name, table.name);
        }
    }
}
