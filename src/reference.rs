//! docs/configuration.md, written out of the settings' own definitions: names, defaults and meanings
//! are clap's and the config structs', bounds are what the programs themselves say to a wrong value.
//! It must never state a setting's default or bound by itself.
//!
//! `HALFMSG_UPDATE_DOCS=1 cargo test -p halfmsg --bin halfmsg` writes the file; without it the test
//! fails if the file is stale.
//!
//! # Layout
//! - this file: the document
//! - [`commands`]: commands that documents name
//! - [`flags`]: what clap knows, and what a wrong value is told
//! - [`structs`]: fields of config structs: their comments from the source, their defaults by `Debug`
//! - [`sources`]: what the sources read

mod commands;
mod flags;
mod sources;
mod structs;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use flags::Row;

/// Variables that no program of ours defines by clap: name, who reads it, what it is.
const OTHERS: [(&str, &str, &str); 17] = [
    ("RUST_LOG", "both services", "read where `HALFMSG_LOG` is unset"),
    (
        "MARIADB_URL",
        "the tests",
        "a MariaDB to use, in place of one that scripts/test starts; so are `KAFKA_BROKERS` and `DATABASE_URL`",
    ),
    (
        "HALFMSG_SERVERS",
        "scripts/kafka, postgres, mariadb",
        "`local` or `docker`: what runs the servers of tests; unset, whichever is there",
    ),
    (
        "HALFMSG_TEST_KAFKA_SCRIPT",
        "the tests",
        "starts a broker of a test's own; scripts/test sets it",
    ),
    (
        "HALFMSG_TEST_POSTGRES_SCRIPT",
        "the tests",
        "starts a database server of a test's own; scripts/test sets it",
    ),
    (
        "HALFMSG_TEST_POSTGRES",
        "the tests of both services",
        "a PostgreSQL to run them on, in place of SQLite",
    ),
    (
        "HALFMSG_TEST_CHROMEDRIVER",
        "the tests",
        "the chromedriver to use, if not the one in the path",
    ),
    (
        "HALFMSG_TEST_CHROMIUM",
        "the tests",
        "the browser to use, if not the one that chromedriver finds",
    ),
    ("HALFMSG_TEST_COMPOSE", "the tests", "how Docker Compose is called; scripts/test sets it"),
    ("HALFMSG_TEST_PROMTOOL", "the tests", "the promtool to use; scripts/test sets it"),
    ("HALFMSG_TEST_SCREENSHOTS", "the tests", "a directory for pictures of the console"),
    (
        "HALFMSG_TEST_SOAK_CYCLES",
        "the soak",
        "how long it loads the store, in cycles of some 15 s; 2 unless set",
    ),
    ("HALFMSG_MODEL", "the model check", "`large`: the large bounds"),
    ("HALFMSG_UPDATE_DOCS", "the test of this file", "`1` writes it"),
    ("HALFMSG_ORDER_PORT", "docker-compose.yml", "the published port of order-svc"),
    ("HALFMSG_STOCK_PORT", "docker-compose.yml", "the published port of stock-svc"),
    (
        "HALFMSG_DB_PASSWORD",
        "docker-compose.yml",
        "the password of its databases; counts only while their volume is empty",
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn document() -> String {
    let mut text = String::from(HEAD);
    section(&mut text, "The services", SERVICES, &flags::services());
    section(&mut text, "Operators' commands", OPERATORS, &flags::operators());
    section(&mut text, "The demonstration, the probe, the measurement", REST, &flags::rest());
    text.push_str("\n## Other variables\n\n| variable | read by | meaning |\n|---|---|---|\n");
    for (name, reader, meaning) in OTHERS {
        let _ = writeln!(text, "| `{name}` | {reader} | {meaning} |");
    }
    text.push_str(OTEL);
    text.push_str(LIBRARIES);
    for table in structs::tables() {
        let _ = write!(text, "\n### `{}`\n\n{}", table.name, table.text());
    }
    text
}

const HEAD: &str = "\
<!-- Written by: HALFMSG_UPDATE_DOCS=1 cargo test -p halfmsg --bin halfmsg reference. Do not edit. -->
# Configuration

Written out of the programs' own definitions; a test fails when it is stale. A setting is a flag or an environment
variable; the flag wins, and an empty variable counts as unset. All mistakes are reported at once at start, one line
each; the column *must be* is what such a line says.
";
const SERVICES: &str = "`halfmsg order-svc` and `halfmsg stock-svc`.";
const OPERATORS: &str = "Each talks to the brokers or to a database directly, but for `check`.";
const REST: &str = "\
`halfmsg` without a command is the demonstration; it also reads `HALFMSG_ADMIN_TOKEN` (unset, it makes one),
`HALFMSG_LOG` and `RUST_LOG`.";
const OTEL: &str = "\nTraces are switched on by OpenTelemetry's own variables, `OTEL_…`: [traces.md](traces.md).\n";
const LIBRARIES: &str = "
## In a program of your own

The fields of the libraries' settings. What a service sets by a variable is in the table above; the rest it leaves at
these defaults.
";

fn section(text: &mut String, title: &str, about: &str, rows: &[Row]) {
    let _ = write!(text, "\n## {title}\n\n{about}\n\n");
    text.push_str("| setting | default | must be | meaning | read by |\n|---|---|---|---|---|\n");
    for row in rows {
        let _ = writeln!(text, "{}", row.line());
    }
}

#[test]
fn the_reference_is_what_the_code_says() {
    let (path, text) = (root().join("docs/configuration.md"), document());
    if std::env::var_os("HALFMSG_UPDATE_DOCS").is_some_and(|set| set == "1") {
        std::fs::write(&path, &text).expect("docs/configuration.md can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(text.lines()).find(|(found, wanted)| found != wanted);
    assert!(
        found == text,
        "docs/configuration.md is stale; first difference: {differs:#?}\nwrite it with \
         HALFMSG_UPDATE_DOCS=1 cargo test -p halfmsg --bin halfmsg"
    );
}

/// What is read is listed, and what is listed is read.
#[test]
fn every_variable_is_listed_and_every_listed_one_is_read() {
    let text = document();
    let is_listed = |name: &str| text.contains(&format!("`{name}`"));
    let read = sources::read();
    for (name, place) in &read {
        let known = is_listed(name) || sources::INTERNAL.contains(&name.as_str());
        assert!(known, "{name}, in {place}, is not in docs/configuration.md");
    }
    let internal = sources::INTERNAL.iter().copied();
    for name in OTHERS.iter().map(|(name, ..)| *name).chain(internal) {
        assert!(read.contains_key(name), "nothing reads {name}");
    }
}

/// Documents name no variable that is not there.
#[test]
fn documents_name_only_what_exists() {
    let text = document();
    for (name, place) in sources::named_in_documents() {
        assert!(text.contains(&format!("`{name}`")), "{place} names {name}, which nothing reads");
    }
}
