//! Kafka's own tools, as docs/kafka.md and docs/operations.md name them, on a broker to which happens what they
//! are named for.

use std::fs;

use halfmsg_producer::Emission;

use super::shell::Shell;
use crate::suite::broker::Broker;
use crate::suite::hanging::{PARTITION, is_read, make_hang};
use crate::suite::progress::carried_out;
use crate::suite::setup::Setup;
use crate::suite::told::Do;
use crate::suite::{Env, PATIENCE, until};

/// As the documents have them, and what they need besides.
const FIND: (&str, &str) = (
    "kafka-transactions.sh find-hanging",
    "--topic __consumer_offsets --max-transaction-timeout 0",
);
const ABORT: (&str, &str) = ("kafka-transactions.sh abort", "--topic __consumer_offsets");
const DELETE: (&str, &str) = ("kafka-delete-records.sh", "--offset-json-file");

/// Progress that hangs is found and ended by hand, and then a replica with emission at-least-once takes the
/// partition over, which could not end it. Records that are carried out can be deleted by hand, too.
pub(crate) async fn documented_kafka_tools(env: Env) {
    let mut setup = Setup::new(env.with_own_broker().await, Do::Rollback).await;
    setup.send_all(20, |_| Do::Commit).await;
    carried_out(&setup.config, &[]).await;
    setup.producer.shutdown().await;
    make_hang(&setup).await;

    let shell = shell(&setup);
    let found = until(PATIENCE, FIND.0, async || {
        let ended = shell.run(&format!("{} {}", FIND.0, FIND.1)).await;
        match (ended.code, place(&ended.said)) {
            (Some(0), Some(place)) => Ok(place),
            (code, _) => Err(format!("{code:?}: {}", ended.said)),
        }
    })
    .await;
    let (partition, start) = found;
    let at = format!("--partition {partition} --start-offset {start}");
    let ended = shell.run(&format!("{} {} {at}", ABORT.0, ABORT.1)).await;
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    until(PATIENCE, "progress that can be read", async || is_read(&setup).await).await;

    let (store, file) = (setup.config.store_topic(), tempfile::NamedTempFile::new());
    let file = file.expect("a temporary file");
    let cut = serde_json::json!({
        "version": 1,
        "partitions": [{ "topic": store, "partition": PARTITION, "offset": -1 }],
    });
    fs::write(file.path(), cut.to_string()).expect("it can be written");
    let ended = shell.run(&format!("{} {} {}", DELETE.0, DELETE.1, file.path().display())).await;
    let is_cut = ended.said.contains(&format!("partition: {store}-{PARTITION}\tlow_watermark: "));
    assert!(is_cut && ended.code == Some(0), "{ended:?}");

    setup.config.emission = Emission::AtLeastOnce;
    setup.start_again().await;
    for number in 20..40 {
        setup.send(number, Do::Commit).await;
    }
    setup.ends_with(0..40).await;
}

/// The tools of the broker's own version.
fn shell(setup: &Setup) -> Shell {
    let Broker::Own(kafka) = &setup.env.broker else { panic!("a broker of its own") };
    let server = format!("--bootstrap-server {}", setup.config.kafka.brokers);
    let with_server = |tool: &str| format!("{} {server}", kafka.tool(tool));
    let (transactions, delete) = (with_server("transactions"), with_server("delete-records"));
    Shell::with(&[("kafka-transactions.sh", &transactions), ("kafka-delete-records.sh", &delete)])
}

/// Partition and first offset of the only transaction that the tool has found: below a line with the names of
/// its columns.
fn place(said: &str) -> Option<(i32, i64)> {
    let row = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut rows =
        said.lines().map(row).skip_while(|row| row.first().is_none_or(|first| first != "Topic"));
    let (names, found) = (rows.next()?, rows.next()?);
    let cell = |name: &str| {
        let at = names.iter().position(|found| found == name)?;
        found.get(at).map(String::as_str)
    };
    Some((cell("Partition")?.parse().ok()?, cell("StartOffset")?.parse().ok()?))
}
