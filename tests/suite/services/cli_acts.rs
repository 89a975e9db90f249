//! What the acts of the command line do to messages: each is proven by what is delivered afterwards,
//! not by what the command says of itself.

use std::time::Duration;

use halfmsg_producer::{HalfState, ProducerConfig, TransactionId};
use halfmsg_protocol::HEADER;
use serde_json::Value;

use super::cli::{Ended, run};
use super::terminal;
use crate::suite::broker::Broker;
use crate::suite::garbage::NEWER;
use crate::suite::progress::{carried_out, store_by_hand, stored};
use crate::suite::reader::{counts, once_each};
use crate::suite::setup::{Setup, text};
use crate::suite::told::Do;
use crate::suite::topic::{Entry, write};
use crate::suite::{Env, PATIENCE, until};

/// The command line on one group.
struct Acts {
    environment: Vec<(String, String)>,
}

impl Acts {
    fn on(config: &ProducerConfig) -> Self {
        let environment = [
            ("KAFKA_BROKERS", config.kafka.brokers.as_str()),
            ("HALFMSG_TOPIC_PREFIX", &config.topic_prefix),
            ("HALFMSG_GROUP", &config.group),
            ("USER", "olga"),
        ];
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self { environment: environment.map(owned).into() }
    }

    async fn run(&self, arguments: &[&str]) -> Ended {
        let said = [arguments, &["--output", "json"]].concat();
        run(&self.environment, &said).await
    }

    /// An act upon a message, which is done. A parked one that its owner asks about and parks again, between the
    /// record that opens it and the decision, is acted upon again: so it is told.
    async fn act(&self, verb: &str, id: TransactionId, force: bool) -> Value {
        let id = id.to_string();
        let mut arguments = vec![verb, &id, "--reason", "as the test wants"];
        arguments.extend(force.then_some("--force"));
        until(PATIENCE, "an act to be done", async || {
            let ended = self.run(&arguments).await;
            match ended.error().contains("it was parked or reopened meanwhile") {
                true => Err(format!("{ended:?}")),
                false => Ok(ended.expect(0).json()),
            }
        })
        .await
    }
}

/// Rolled back, resumed, committed and sent again: each does that and nothing else.
pub(crate) async fn cli_acts_do_what_their_names_say(env: Env) {
    let mut config = env.asking_group().await;
    config.max_checks = 1;
    let setup = Setup::with(env, config, Do::Unknown).await;
    let acts = Acts::on(&setup.config);
    let sent = setup.send(0, Do::Commit).await;
    let [dropped, committed, resumed] = <[_; 3]>::try_from(setup.leave_open(1..4).await)
        .unwrap_or_else(|left| panic!("{left:?}"))
        .map(|receipt| receipt.transaction_id);
    // The only check that they have tells nothing.
    setup.listed(HalfState::Parked, 3).await;
    let listed = acts.run(&["parked"]).await.expect(0).json();
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(3), "{listed}");

    assert_eq!(acts.act("rollback", dropped, true).await["state"], "rolled_back");
    assert_eq!(acts.act("commit", committed, true).await["state"], "committed");
    setup.told.check(text(3), &[Do::Commit]);
    // Its owner may have asked by now.
    let opened = acts.act("resume", resumed, false).await;
    assert_eq!(opened["epoch"], 1, "{opened}");
    assert!(["open", "committed"].iter().any(|state| opened["state"] == *state), "{opened}");
    setup.shows(resumed, "its check to commit it", |seen| seen.half.state == "committed").await;
    setup.none_open().await;
    let delivered = setup.reader.everything_of(&setup.config).await;
    assert_eq!(counts(&delivered), once_each([0, 2, 3].map(text)), "the dropped one never");

    let unforced = ["redeliver", &sent.transaction_id.to_string(), "--reason", "x"];
    acts.run(&unforced).await.expect(4);
    let copy = acts.act("redeliver", sent.transaction_id, true).await;
    assert_eq!(copy["topic"], setup.target.as_str(), "{copy}");
    let mut twice = once_each([0, 2, 3].map(text));
    twice.insert(text(0), 2);
    assert_eq!(counts(&setup.reader.everything_of(&setup.config).await), twice);
    setup.producer.shutdown().await;
}

/// A record that stops its partition is passed, so that what lies behind it is delivered.
pub(crate) async fn cli_skips_a_record_that_stops_its_partition(env: Env) {
    let setup = Setup::new(env, Do::Rollback).await;
    let acts = Acts::on(&setup.config);
    let sent = setup.send(0, Do::Commit).await;
    let headers = vec![(HEADER.to_owned(), Some(NEWER.to_vec()))];
    let newer = Entry { partition: sent.partition, headers, ..Entry::default() };
    let offset = write(&setup.config.kafka, &setup.config.store_topic(), &newer).await;
    until(PATIENCE, "the partition to be stopped", async || match setup.producer.health() {
        Err(reason) if reason.contains("stopped") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    // What lies before it is listed, and the exit code says that it is not everything.
    let pending = acts.run(&["pending"]).await.expect(6);
    let missing = &pending.json()["missing_partitions"][0];
    assert_eq!(
        (&missing["partition"], &missing["stopped"]),
        (&sent.partition.into(), &true.into())
    );
    assert!(pending.error().contains(r#""code":"incomplete""#), "{pending:?}");
    let place = format!("{}@{offset}", sent.partition);
    let skipped = acts.run(&["skip", &place, "--reason", "a test wrote it"]).await.expect(0);
    assert_eq!(skipped.json()["offset"], offset, "{skipped:?}");
    setup.ready().await;
    // The same key, so the same partition.
    assert_eq!(setup.send(8, Do::Commit).await.partition, sent.partition);
    setup.reader.sees(&text(8)).await;
    setup.producer.shutdown().await;
}

/// Records of the store that are none of ours are listed, a page at a time, until their copies are deleted.
pub(crate) async fn cli_lists_foreign_records(env: Env) {
    let setup = Setup::new(env, Do::Unknown).await;
    let acts = Acts::on(&setup.config);
    let none = run(&acts.environment, &["parked", "--foreign"]).await.expect(0);
    assert_eq!(none.out(), "no foreign records\n");
    let store = setup.config.store_topic();
    let mut places = Vec::new();
    for (partition, payload) in [(0, "a"), (1, "bc"), (1, "def")] {
        let headers = vec![("theirs".to_owned(), Some(vec![0xFF])), ("null".to_owned(), None)];
        let payload = Some(payload.into());
        let foreign = Entry { partition, headers, payload, ..Entry::default() };
        places.push((partition, write(&setup.config.kafka, &store, &foreign).await));
    }
    let listed = async |more: &[&str]| {
        let arguments = [&["parked", "--foreign"], more].concat();
        acts.run(&arguments).await.expect(0).json()
    };
    let of = |list: &Value| {
        let items = list["items"].as_array().expect("a list").iter();
        let place = |item: &Value| {
            let partition = item["partition"].as_i64().and_then(|of| i32::try_from(of).ok());
            (partition.expect("a partition"), item["offset"].as_i64().expect("an offset"))
        };
        items.map(place).collect::<Vec<_>>()
    };
    let all = until(PATIENCE, "all of them to be copied", async || {
        let all = listed(&[]).await;
        if of(&all) == places { Ok(all) } else { Err(all) }
    })
    .await;
    assert_eq!(all["next_cursor"], Value::Null);
    let first = &all["items"][0];
    assert_eq!((&first["bytes"], &first["whole"]), (&1.into(), &true.into()), "{first}");
    assert_eq!(first["reason"], "it has no halfmsg header", "{first}");
    assert_eq!(first["headers"], serde_json::json!(["theirs", "null"]), "{first}");
    let copied = first["copied_at"].as_str().expect("a time");
    assert!(copied.ends_with('Z') && !copied.starts_with("1970"), "{copied}");

    let page = listed(&["--limit", "2"]).await;
    assert_eq!(of(&page), places[..2], "{page}");
    let cursor = page["next_cursor"].as_str().expect("there is one more");
    let page = listed(&["--limit", "2", "--cursor", cursor]).await;
    assert_eq!((of(&page), &page["next_cursor"]), (places[2..].to_vec(), &Value::Null), "{page}");
    let (partition, offset) = places[0];
    let text = run(&acts.environment, &["parked", "--foreign", "--limit", "1"]).await.expect(0);
    for part in [&format!("{partition}@{offset} "), "theirs, null", "there are more: --cursor 1-"] {
        assert!(text.out().contains(part), "{text:?}");
    }
    let parked = acts.run(&["parked"]).await.expect(0).json();
    assert_eq!(parked["items"], serde_json::json!([]), "they are no half messages");

    let key = Some(format!("foreign-{partition}-{offset}").into_bytes());
    let deleted = Entry { partition, key, ..Entry::default() };
    write(&setup.config.kafka, &setup.config.parked_topic(), &deleted).await;
    assert_eq!(of(&listed(&[]).await), places[1..]);
    setup.producer.shutdown().await;
}

/// Acts are listed newest first, a page at a time, those of one message by its id; what is none of ours under the
/// journal's keys is counted, and an act without an end is said to be one.
pub(crate) async fn cli_lists_what_operators_did(env: Env) {
    let setup = Setup::new(env, Do::Unknown).await;
    let acts = Acts::on(&setup.config);
    let none = run(&acts.environment, &["journal"]).await.expect(0);
    assert_eq!((none.out(), none.error()), ("no acts\n", ""));
    let [first, second] = <[_; 2]>::try_from(setup.leave_open(0..2).await)
        .unwrap_or_else(|left| panic!("{left:?}"))
        .map(|receipt| receipt.transaction_id.to_string());
    for (verb, id) in [("rollback", &first), ("commit", &second)] {
        let settle = [verb, id, "--reason", "as the test wants", "--force", "--operator", "otto"];
        acts.run(&settle).await.expect(0);
    }
    let listed =
        async |more: &[&str]| acts.run(&[&["journal"], more].concat()).await.expect(0).json();
    let all = listed(&[]).await;
    let items = all["items"].as_array().expect("a list");
    let about = |act: &Value| (act["action"].clone(), act["transaction_id"].clone());
    let expected = [("commit", &second), ("rollback", &first)];
    let expected = expected.map(|(verb, id)| (verb.into(), id.as_str().into()));
    assert_eq!(items.iter().map(about).collect::<Vec<_>>(), expected, "{all}");
    assert_eq!((&all["unreadable"], &all["next_cursor"]), (&0.into(), &Value::Null), "{all}");
    for act in items {
        assert_eq!((&act["operator"], &act["outcome"]), (&"otto".into(), &"done".into()), "{act}");
        assert_eq!((&act["reason"], &act["forced"]), (&"as the test wants".into(), &true.into()));
        let at = |name: &str| act[name].as_str().expect("a time").to_owned();
        assert!(at("began_at") <= at("ended_at") && !at("began_at").starts_with("1970"), "{act}");
    }
    let of_one = listed(&["--id", &first]).await;
    assert_eq!(of_one["items"], Value::from(vec![items[1].clone()]), "{of_one}");

    let page = listed(&["--limit", "1"]).await;
    assert_eq!(page["items"], Value::from(vec![items[0].clone()]), "{page}");
    let cursor = page["next_cursor"].as_str().expect("there is one more");
    let page = listed(&["--limit", "1", "--cursor", cursor]).await;
    let rest = Value::from(vec![items[1].clone()]);
    assert_eq!((&page["items"], &page["next_cursor"]), (&rest, &Value::Null), "{page}");
    acts.run(&["journal", "--cursor", "3-17"]).await.expect(2);

    // Nobody's act, and one that nobody ended.
    let parked = setup.config.parked_topic();
    let begun = serde_json::json!({
        "action": "skip", "operator": "\u{1b}[2J", "reason": "x", "at": "2026-01-31T12:00:00Z",
        "detail": {"partition": 0, "offset": 17}, "outcome": "begun",
    });
    let id = "01985f2e-7c1a-7f00-8000-000000000000";
    for (key, payload) in [("theirs", b"\xFF".to_vec()), (id, begun.to_string().into_bytes())] {
        let key = Some(format!("halfmsg.journal-{key}").into_bytes());
        let entry = Entry { partition: 0, key, payload: Some(payload), ..Entry::default() };
        write(&setup.config.kafka, &parked, &entry).await;
    }
    let all = listed(&[]).await;
    assert_eq!((&all["unreadable"], &all["items"][2]["offset"]), (&1.into(), &17.into()), "{all}");
    let text = run(&acts.environment, &["journal"]).await.expect(0);
    let unended = "its end is not written down: look at the partition";
    for part in [&second, "otto", "0@17", "\\u{1b}[2J", unended] {
        assert!(text.out().contains(part), "{part}: {text:?}");
    }
    assert!(
        text.error().contains("1 records under the journal's keys could not be read"),
        "{text:?}"
    );
    setup.producer.shutdown().await;
}

/// An act whose record is stored and whose effect may not be read has an exit code of its own, and so has a look
/// that may not read all there is.
pub(crate) async fn cli_tells_what_it_could_not_see(env: Env) {
    let mut config = env.asking_group().await;
    config.max_checks = 1;
    let setup = Setup::with(env, config, Do::Unknown).await;
    let acts = Acts::on(&setup.config);
    let left = setup.leave_open(0..1).await[0];
    let (id, partition) = (left.transaction_id, left.partition);
    setup.listed(HalfState::Parked, 1).await;
    setup.none_open().await;
    setup.producer.shutdown().await;
    // A replay begins where everything is carried out, and not where copies of what is closed may begin.
    let (_, metadata) = stored(&setup.config, partition).await;
    let (_, end) = metadata.split_once("P=").expect("progress");
    let end = end.parse().expect("an offset");
    store_by_hand(&setup.config, partition, (end, metadata.clone())).await;

    // Of the store nothing needs to be read to find it, but its commit does to be seen.
    let by_id = id.to_string();
    let commit = ["commit", &by_id, "--reason", "x", "--force", "--max-records", "0"];
    let unseen = acts.run(&commit).await.expect(7);
    assert!(unseen.error().contains(r#""code":"effect_unseen""#), "{unseen:?}");
    let shown = acts.run(&["show", &by_id]).await.expect(0).json();
    assert_eq!(shown["state"], "committed", "its record is stored: {shown}");

    let incomplete = acts.run(&["pending", "--max-records", "0"]).await.expect(6);
    assert!(incomplete.error().contains(r#""code":"incomplete""#), "{incomplete:?}");
}

/// Progress goes back to the start once nobody runs, and what was delivered comes again.
pub(crate) async fn cli_resets_progress_of_a_group_that_is_down(env: Env) {
    let mut setup = Setup::new(env, Do::Unknown).await;
    let acts = Acts::on(&setup.config);
    let sent = setup.send(0, Do::Commit).await;
    let left = setup.leave_open(std::iter::once(8)).await;
    assert_eq!(left[0].partition, sent.partition, "of one key, so in one partition");
    carried_out(&setup.config, &[]).await;
    let partition = sent.partition.to_string();
    let unsaid = ["reset-progress", &partition, "--to", "start", "--reason", "once more"];
    let back = [&unsaid[..], &["--yes"]].concat();
    let running = acts.run(&back).await.expect(4);
    assert!(running.error().contains("stop all of them"), "{running:?}");
    setup.producer.shutdown().await;

    // Where nobody can be asked, and nobody has said it, nothing is done.
    let before = stored(&setup.config, sent.partition).await;
    for nobody in [acts.run(&unsaid).await, run(&acts.environment, &unsaid).await] {
        let nobody = nobody.expect(2);
        assert!(nobody.error().contains("repeat with --yes"), "{nobody:?}");
    }
    let declined = terminal::run(&acts.environment, &unsaid, "n\n").await.expect(4);
    assert!(declined.error().contains("Go on? [y/N]"), "{declined:?}");
    assert!(
        declined.error().contains("1 committed messages may be delivered again"),
        "{declined:?}"
    );
    assert_eq!(stored(&setup.config, sent.partition).await, before);

    let plan = acts.run(&back).await.expect(0).json();
    assert_ne!(stored(&setup.config, sent.partition).await, before);
    assert_eq!((&plan["delivered_again"], &plan["forgotten"]), (&1.into(), &0.into()), "{plan}");
    setup.producer = Env::start(&setup.config, &setup.told).await;
    let delivered = setup.reader.everything_of(&setup.config).await;
    assert_eq!(counts(&delivered), [(text(0), 2)].into(), "replayed from the start");
    setup.producer.shutdown().await;

    let agreed = terminal::run(&acts.environment, &unsaid, "y\n").await.expect(0);
    assert!(agreed.out().contains("done: partition"), "{agreed:?}");

    // An open message would be forgotten: that needs force, whatever else is said.
    let end = ["reset-progress", &partition, "--to", "end", "--reason", "drop it", "--yes"];
    acts.run(&end).await.expect(4);
    acts.run(&[&end[..], &["--force"]].concat()).await.expect(0);
    let pending = acts.run(&["pending"]).await.expect(0).json();
    assert_eq!(pending["items"], serde_json::json!([]));
}

/// A look that takes long is shown on a terminal and nowhere else, and its result is what it was.
pub(crate) async fn cli_shows_how_far_a_long_look_has_come(env: Env) {
    let setup = Setup::new(env, Do::Unknown).await;
    setup.leave_open(0..3).await;
    setup.producer.shutdown().await;
    let Broker::Embedded(broker) = &setup.env.broker else { panic!("it is in this process") };
    // With a few questions on the way to a record, more than the half second without a bar.
    broker.round_trip_time(Duration::from_millis(200)).expect("it runs");
    let acts = Acts::on(&setup.config);
    let pending = ["pending", "--output", "json", "--timeout-seconds", "600"];
    let shown = terminal::run(&acts.environment, &pending, "").await.expect(0);
    assert!(shown.error().contains("reading the store"), "{shown:?}");
    let piped = run(&acts.environment, &pending).await.expect(0);
    assert_eq!(piped.error(), "", "standard error is no terminal there");
    for ended in [shown, piped] {
        assert_eq!(ended.json()["items"].as_array().map(Vec::len), Some(3), "{ended:?}");
    }
}

/// The group's topics are made as asked for, once.
pub(crate) async fn cli_creates_the_topics_of_a_group(env: Env) {
    let config = env.group().await;
    let acts = Acts::on(&config);
    let missing = acts.run(&["topics"]).await.expect(3);
    assert!(missing.error().contains(&config.store_topic()), "{missing:?}");
    for status in ["created", "verified"] {
        let topics = acts.run(&["topics", "--create", "--partitions", "3"]).await.expect(0).json();
        let items = topics["items"].as_array().expect("a list");
        for name in [config.store_topic(), config.parked_topic()] {
            let found = items.iter().find(|item| item["name"] == name.as_str());
            let found = found.unwrap_or_else(|| panic!("{topics}"));
            let (is, has) = (&found["status"], &found["partitions"]);
            assert_eq!((is, has), (&status.into(), &3.into()), "{topics}");
        }
    }
}
