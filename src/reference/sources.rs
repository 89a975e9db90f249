//! What the sources and scripts read of the environment, found by its text.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Set by a test for the process that it starts: no setting of a person's.
pub(super) const INTERNAL: [&str; 8] = [
    "HALFMSG_TEST_CONSUMING_BROKERS",
    "HALFMSG_TEST_CONSUMING_DATABASE",
    "HALFMSG_TEST_CONSUMING_SUBSCRIBER",
    "HALFMSG_TEST_CONSUMING_TOPIC",
    "HALFMSG_TEST_SOAK_BROKERS",
    "HALFMSG_TEST_SOAK_GROUP",
    "HALFMSG_TEST_SOAK_TARGET",
    "HALFMSG_TEST_SUITE_THREADS",
];
/// Ours, and those of others that we read.
const OURS: [&str; 6] =
    ["HALFMSG_", "KAFKA_BROKERS", "DATABASE_URL", "MARIADB_URL", "STOCK_URL", "RUST_LOG"];
const CODE: [&str; 15] = [
    "consumer",
    "db",
    "kafka",
    "migrations",
    "order-svc",
    "producer",
    "protocol",
    "service-kit",
    "src",
    "stock-svc",
    "tests",
    "traces",
    "tutorial",
    "scripts",
    ".ci",
];
const FILES: [&str; 3] = ["docker-compose.yml", "Dockerfile", "docker/postgres-databases.sh"];

/// Every variable that is named where it is read, with a place.
pub(super) fn read() -> BTreeMap<String, String> {
    let root = super::root();
    let below = CODE.iter().flat_map(|name| files_below(&root.join(name)));
    let mut found = BTreeMap::new();
    for path in below.chain(FILES.iter().map(|name| root.join(name))) {
        // The reference itself names what it lists.
        if path.starts_with(root.join("src/reference")) || path == root.join("src/reference.rs") {
            update_switch(&mut found);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap_or_default();
        let is_rust = path.extension().is_some_and(|extension| extension == "rs");
        let place = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
        for name in words(&text, is_rust) {
            found.entry(name).or_insert_with(|| place.clone());
        }
    }
    assert!(found.len() > 30, "{found:?}");
    found
}

/// The one variable that the reference reads itself.
fn update_switch(found: &mut BTreeMap<String, String>) {
    found.insert("HALFMSG_UPDATE_DOCS".into(), "src/reference.rs".into());
}

/// In Rust a whole literal, elsewhere a word.
fn words(text: &str, is_rust: bool) -> Vec<String> {
    let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find(is_name) {
        let word = &rest[begin..];
        let end = word.find(|c| !is_name(c)).unwrap_or(word.len());
        let (before, behind) = (rest[..begin].ends_with('"'), word[end..].starts_with('"'));
        let whole = !is_rust || (before && behind);
        if whole && is_ours(&word[..end]) {
            found.push(word[..end].to_owned());
        }
        rest = &word[end..];
    }
    found
}

fn is_ours(name: &str) -> bool {
    let known =
        OURS.iter().any(|ours| name == *ours || ours.ends_with('_') && name.starts_with(ours));
    known && !name.ends_with('_')
}

/// Every variable of ours that README.md or a document names, with the place.
pub(super) fn named_in_documents() -> Vec<(String, String)> {
    let root = super::root();
    let documents = files_below(&root.join("docs")).into_iter();
    let more = ["README.md", "ARCHITECTURE.md"].map(|name| root.join(name));
    let mut found = Vec::new();
    for path in documents.chain(more) {
        if path.extension().is_some_and(|extension| extension == "md") {
            let text = fs::read_to_string(&path).expect("a document");
            let place = path.display().to_string();
            found.extend(words(&text, false).into_iter().map(|name| (name, place.clone())));
        }
    }
    assert!(found.len() > 10, "{found:?}");
    found
}

pub(super) fn rust_below(directory: &Path) -> Vec<PathBuf> {
    let rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    files_below(directory).into_iter().filter(rust).collect()
}

pub(super) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap_or_else(|error| panic!("{directory:?}: {error}")) {
        let path = entry.expect("an entry of a directory").path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}
