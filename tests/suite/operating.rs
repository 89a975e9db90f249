//! Row 11 and what operators do: late decisions, every partition from any replica, and the client
//! that works without an application.

use halfmsg_producer::{
    AdminError, Backoff, HalfFilter, HalfState, HalfView, OperatorClient, OperatorRequest,
    ProducerConfig, ResetTo, SnapshotLimits, TransactionId, TransactionProducer,
};
use halfmsg_protocol::HEADER;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::env::NEVER;
use super::fence::{Orders, confirmed, delivered_are, message, start};
use super::garbage::NEWER;
use super::progress::carried_out;
use super::reader::{counts, once_each};
use super::setup::{Setup, answered, operator, text};
use super::told::{Do, PURPOSE};
use super::topic::{Entry, read_all, write};
use super::{Env, PATIENCE, until};

/// A page that has everything.
const ALL: usize = 1_000;

/// With more patience than any machine stands still.
pub(crate) fn client(config: &ProducerConfig) -> OperatorClient {
    let client = OperatorClient::new(config.kafka.clone(), &config.topic_prefix, &config.group);
    let limits = SnapshotLimits { deadline: PATIENCE, ..SnapshotLimits::default() };
    client.expect("valid names").limits(limits)
}

async fn listed_by(client: &OperatorClient) -> Vec<HalfView> {
    let filter = HalfFilter { limit: ALL, ..HalfFilter::default() };
    client.list(filter).await.expect("Kafka answers").items
}

/// A COMMIT that comes after the parking changes nothing, and is seen; opened again and asked, the
/// message is delivered once.
pub(crate) async fn c11_a_late_commit_stays_parked_until_it_is_reopened(env: Env) {
    let mut config = env.group().await;
    config.max_checks = 2;
    let setup = Setup::with(env, config, Do::Unknown).await;
    let begun = setup.producer.begin(PURPOSE, setup.message(0)).await.expect("it is stored");
    let id = begun.receipt().transaction_id;
    // Asked once; the second time it is the check-back that asks.
    let asked = answered(async || setup.producer.admin().check(id, operator(false)).await).await;
    asked.expect("it is open");
    setup.listed(HalfState::Parked, 1).await;
    begun.commit().await.expect("the record is stored");
    let seen = setup
        .shows(id, "the late COMMIT to be seen", |seen| {
            seen.history.iter().any(|entry| entry.event == "ignored")
        })
        .await;
    assert_eq!(seen.half.state, "parked", "{seen:#?}");
    let ignored = seen.history.iter().find(|entry| entry.event == "ignored").expect("seen above");
    assert!(ignored.detail.contains("COMMIT") && ignored.detail.contains("conflict"), "{seen:#?}");
    let events: Vec<_> = seen.history.iter().map(|entry| entry.event).collect();
    assert_eq!(events, ["stored", "checked", "checked", "parked", "ignored"], "{seen:#?}");
    until(PATIENCE, "the conflict to be counted", async || match setup.producer.conflicts() {
        1 => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(counts(&setup.reader.everything_of(&setup.config).await), once_each([]));

    setup.told.check(text(0), &[Do::Commit]);
    let resumed = answered(async || setup.producer.admin().resume(id, operator(false)).await).await;
    resumed.expect("it is parked");
    setup.reader.sees(&text(0)).await;
    let seen = setup.shows(id, "it to be committed", |seen| seen.half.state == "committed").await;
    let reopened = seen.history.iter().find(|entry| entry.event == "reopened");
    assert!(reopened.is_some_and(|entry| entry.detail.contains("ann")), "{seen:#?}");
    for action in ["check", "resume"] {
        let acts = acts(&setup.config, action).await;
        let is_it = |act: &Value| act["detail"]["transaction_id"] == id.to_string();
        assert!(acts.iter().any(|act| is_it(act) && act["outcome"] == "done"), "{acts:?}");
    }
    setup.ends_with(0..1).await;
}

/// The order stands, so its message is never delivered, whoever asks for it and however.
pub(crate) async fn c11_an_operator_cannot_contradict_the_fence(env: Env) {
    let orders = Orders::new(&env).await;
    let config = env.group().await;
    let target = env.topic("target").await;
    let (producer, reader) = start(&config, &target, orders.listener.clone()).await;
    let id = order_svc::model::OrderId::generate();
    let begun = producer.begin(PURPOSE_OF_ORDERS, message(id, &target)).await;
    let begun = begun.expect("it is stored");
    let transaction_id = begun.receipt().transaction_id;
    let inserted = orders.store.insert_order(&confirmed(id, transaction_id), Instant::now()).await;
    inserted.expect("the database answers");
    let receipt = begun.leave_open();
    for force in [false, true] {
        let commit =
            async || producer.admin().commit(receipt.transaction_id, operator(force)).await;
        let against = answered(commit).await;
        assert!(matches!(against, Err(AdminError::Contradiction { .. })), "{against:?}");
    }
    let with =
        answered(async || producer.admin().rollback(receipt.transaction_id, operator(false)).await);
    assert_eq!(with.await.expect("the row agrees").state, "rolled_back");
    delivered_are(&reader, &config, Vec::new()).await;
    producer.shutdown().await;
}

/// The purpose that the listener of orders answers for.
const PURPOSE_OF_ORDERS: &str = order_svc::payload::PURPOSE;

/// Whichever replica is asked shows all, and settles what is another's.
pub(crate) async fn c11_every_replica_sees_and_settles_every_partition(env: Env) {
    const COUNT: usize = 32;
    let mut config = env.group().await;
    // The owner does not ask again by itself either.
    config.check_backoff = Backoff { initial: NEVER, max: NEVER };
    config.max_checks = 1;
    let setup = Setup::with(env, config, Do::Unknown).await;
    let other = Env::start(&setup.config, &setup.told).await;
    setup.leave_open(0..COUNT).await;
    // A replica knows when its own halves are checked next, and of no others.
    let all = until(PATIENCE, "both replicas to show all, and to own some", async || {
        let here = all_of(&setup.producer).await?;
        let there = all_of(&other).await?;
        let own = |halves: &[HalfView]| halves.iter().filter(|half| is_own(half)).count();
        let (mine, theirs) = (own(&here), own(&there));
        let complete = here.len() == COUNT && there.len() == COUNT && mine + theirs == COUNT;
        if complete && mine > 0 && theirs > 0 {
            Ok(here)
        } else {
            Err(format!("{} and {}, own {mine} and {theirs}", here.len(), there.len()))
        }
    })
    .await;
    assert!(all.is_sorted_by_key(|half| (half.partition, half.offset)), "{all:?}");
    let pages = in_pages(&setup.producer, 5).await;
    assert_eq!(ids(&pages), ids(&all), "pages go across replicas");

    let foreign: Vec<_> = all.iter().filter(|half| !is_own(half)).collect();
    let [agreed, forced, checked, parked, ..] = foreign.as_slice() else { panic!("{foreign:?}") };
    let admin = setup.producer.admin();
    let id = |half: &HalfView| half.transaction_id.parse().expect("an id");
    let payload = |half: &HalfView| {
        let (admin, id) = (admin.clone(), id(half));
        async move {
            let found = answered(async || admin.get(id).await).await;
            found.expect("Kafka answers").expect("it is open").payload
        }
    };
    let mut texts = Vec::new();
    for half in [agreed, checked, parked] {
        texts.push(payload(half).await.expect("text"));
    }
    setup.told.check(texts[0].clone(), &[Do::Commit]);
    let done = answered(async || admin.commit(id(agreed), operator(false)).await).await;
    let done = done.expect("the listener agrees");
    assert_eq!(done.state, "committed");
    let unforced = answered(async || admin.rollback(id(forced), operator(false)).await).await;
    assert!(matches!(unforced, Err(AdminError::NeedsForce { .. })), "{unforced:?}");
    let done = answered(async || admin.rollback(id(forced), operator(true)).await).await;
    let done = done.expect("forced");
    assert_eq!(done.state, "rolled_back");
    setup.told.check(texts[1].clone(), &[Do::Commit]);
    let done = answered(async || admin.check(id(checked), operator(false)).await).await;
    let done = done.expect("it is asked here");
    assert_eq!(done.state, "committed");
    // The only attempt that it has: its owner parks it.
    let unknown = answered(async || admin.check(id(parked), operator(false)).await).await;
    let unknown = unknown.expect("it is asked here");
    assert_eq!(unknown.attempts, 1, "{unknown:?}");
    setup.listed(HalfState::Parked, 1).await;
    setup.told.check(texts[2].clone(), &[Do::Commit]);
    let resumed = answered(async || admin.resume(id(parked), operator(false)).await).await;
    let resumed = resumed.expect("it is parked");
    assert_eq!(resumed.epoch, 1, "{resumed:?}");
    for (closed, state) in [(agreed, "committed"), (forced, "rolled_back")] {
        let seen = answered(async || admin.get(id(closed)).await).await.expect("Kafka answers");
        let seen = seen.expect("closed lately");
        assert_eq!(seen.half.state, state, "{seen:#?}");
    }
    for text in &texts {
        setup.reader.sees(text).await;
    }
    let delivered = setup.reader.everything_of(&setup.config).await;
    assert_eq!(counts(&delivered), once_each(texts));
    other.shutdown().await;
    setup.producer.shutdown().await;
}

async fn all_of(producer: &TransactionProducer) -> Result<Vec<HalfView>, String> {
    let filter = HalfFilter { state: Some(HalfState::Open), limit: ALL, cursor: None };
    let page = producer.admin().list(filter).await.map_err(|error| error.to_string())?;
    Ok(page.items)
}

async fn in_pages(producer: &TransactionProducer, limit: usize) -> Vec<HalfView> {
    let (mut all, mut cursor) = (Vec::new(), None);
    loop {
        let filter = HalfFilter { state: None, limit, cursor };
        let page = answered(async || producer.admin().list(filter.clone()).await).await;
        let page = page.expect("Kafka answers");
        all.extend(page.items);
        match page.next_cursor {
            Some(next) => cursor = Some(next),
            None => return all,
        }
    }
}

fn is_own(half: &HalfView) -> bool {
    half.next_check_at.is_some()
}

fn ids(halves: &[HalfView]) -> Vec<&str> {
    halves.iter().map(|half| half.transaction_id.as_str()).collect()
}

/// The message once it is decided by force. An act whose end was not told in time is done again, and may find it
/// decided.
async fn forced(
    client: &OperatorClient,
    id: TransactionId,
    mut act: impl AsyncFnMut() -> Result<HalfView, AdminError>,
) -> HalfView {
    let mut in_doubt = false;
    until(PATIENCE, "a decision by force", async || match act().await {
        Err(error @ (AdminError::Unreachable(_) | AdminError::Incomplete(_))) => Err(error),
        Err(error @ (AdminError::Unavailable(_) | AdminError::Unseen(_))) => {
            in_doubt = true;
            Err(error)
        }
        Err(AdminError::AlreadyClosed { .. }) if in_doubt => {
            client.show(id).await.map(|shown| shown.half)
        }
        done => Ok(done.expect("forced")),
    })
    .await
}

/// With no replica running, half messages are seen and decided by force; the next replica carries
/// that out.
pub(crate) async fn operators_decide_while_the_service_is_down(env: Env) {
    let mut setup = Setup::new(env, Do::Unknown).await;
    let left = setup.leave_open(0..3).await;
    setup.producer.shutdown().await;
    let client = client(&setup.config);
    assert_eq!(listed_by(&client).await.len(), 3);
    let cursor = Some("2000000000-0".to_owned());
    let behind = client.list(HalfFilter { limit: ALL, state: None, cursor }).await;
    assert_eq!(behind.expect("a place that may be").items, []);
    let [committed, dropped] = [left[0].transaction_id, left[1].transaction_id];
    let detail = client.show(committed).await.expect("it is open");
    assert_eq!(detail.payload.as_deref(), Some(text(0).as_str()));
    match client.commit(committed, operator(false)).await {
        Err(AdminError::NeedsForce { why }) => assert!(why.contains("no listener"), "{why}"),
        other => panic!("{other:?}"),
    }
    let commit = async || client.commit(committed, operator(true)).await;
    assert_eq!(forced(&client, committed, commit).await.state, "committed");
    let rollback = async || client.rollback(dropped, operator(true)).await;
    assert_eq!(forced(&client, dropped, rollback).await.state, "rolled_back");
    let again = client.rollback(committed, operator(true)).await;
    assert!(matches!(again, Err(AdminError::AlreadyClosed { .. })), "{again:?}");
    assert_eq!(listed_by(&client).await.len(), 1);

    setup.producer = Env::start(&setup.config, &setup.told).await;
    setup.reader.sees(&text(0)).await;
    let delivered = setup.reader.everything_of(&setup.config).await;
    assert_eq!(counts(&delivered), once_each([text(0)]));
    setup.producer.shutdown().await;
    // Long decided, it is still found, with the name of who decided it.
    let detail = client.show(committed).await.expect("the log has it");
    assert_eq!(detail.half.state, "committed");
    assert!(detail.history.iter().any(|entry| entry.detail.contains("ann")), "{detail:#?}");
    // And when the store is trimmed, the journal is.
    for (action, id) in [("commit", committed), ("rollback", dropped)] {
        let acts = acts(&setup.config, action).await;
        assert!(acts.iter().any(|act| act["outcome"] == "done"), "{acts:?}");
        for act in acts {
            let detail = json!({"transaction_id": id.to_string(), "forced": true});
            assert_eq!(act["detail"], detail, "what was refused is no act");
        }
    }
}

/// Only a record of a newer format can be skipped; what lies behind it is seen then.
pub(crate) async fn operators_skip_a_record_of_a_newer_format_only(env: Env) {
    let setup = Setup::new(env, Do::Unknown).await;
    let before = setup.leave_open(std::iter::once(0)).await;
    let (partition, readable) = (before[0].partition, before[0].offset);
    setup.producer.shutdown().await;
    let headers = vec![(HEADER.to_owned(), Some(NEWER.to_vec()))];
    let newer = Entry { partition, headers, ..Entry::default() };
    let store = setup.config.store_topic();
    let offset = write(&setup.config.kafka, &store, &newer).await;
    let client = client(&setup.config);
    let listed = client.list(HalfFilter { limit: ALL, ..HalfFilter::default() }).await;
    let listed = listed.expect("Kafka answers");
    let [stopped] = &listed.missing_partitions[..] else { panic!("{listed:?}") };
    assert_eq!((listed.items.len(), stopped.partition, stopped.stopped), (1, partition, true));
    assert!(stopped.reason.contains(&format!("{store}[{partition}]@{offset}")), "{listed:?}");
    let decided = client.commit(before[0].transaction_id, operator(true)).await;
    assert!(matches!(decided, Err(AdminError::Stopped(_))), "{decided:?}");

    for wrong in [readable, offset + 1] {
        let refused = client.skip(partition, wrong, operator(false)).await;
        assert!(matches!(refused, Err(AdminError::Refused(_))), "{wrong}: {refused:?}");
    }
    client.skip(partition, offset, operator(false)).await.expect("it is of a newer format");
    let listed = client.list(HalfFilter { limit: ALL, ..HalfFilter::default() }).await;
    assert_eq!(listed.expect("Kafka answers").missing_partitions, []);
    let id = before[0].transaction_id;
    let rollback = async || client.rollback(id, operator(true)).await;
    assert_eq!(forced(&client, id, rollback).await.state, "rolled_back");
    assert_eq!(journal(&setup.config, "skip").await, ["begun", "done"]);
}

/// A replica that stands still at it goes on by itself, and so does the next one.
pub(crate) async fn operators_skip_a_record_while_a_replica_stands_still(env: Env) {
    let mut setup = Setup::new(env, Do::Rollback).await;
    let sent = setup.send(0, Do::Commit).await;
    let headers = vec![(HEADER.to_owned(), Some(NEWER.to_vec()))];
    let newer = Entry { partition: sent.partition, headers, ..Entry::default() };
    let offset = write(&setup.config.kafka, &setup.config.store_topic(), &newer).await;
    until(PATIENCE, "the partition to be stopped", async || match setup.producer.health() {
        Err(reason) if reason.contains("stopped") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let skipped = client(&setup.config).skip(sent.partition, offset, operator(false)).await;
    skipped.expect("it is of a newer format");
    setup.ready().await;
    for round in 1..=2 {
        // The same key, so the same partition.
        let number = 8 * round;
        assert_eq!(setup.send(number, Do::Commit).await.partition, sent.partition);
        setup.reader.sees(&text(number)).await;
        if round == 1 {
            setup.restart().await;
        }
    }
    setup.producer.shutdown().await;
}

/// Refused while a replica runs; refused without force where messages would be lost; afterwards
/// the log is replayed from there.
pub(crate) async fn operators_reset_progress(env: Env) {
    let mut setup = Setup::new(env, Do::Unknown).await;
    // Of one key, so in one partition.
    let numbers = [0, 8, 16];
    for number in numbers {
        setup.send(number, Do::Commit).await;
    }
    let left = setup.leave_open(std::iter::once(24)).await;
    let partition = left[0].partition;
    carried_out(&setup.config, &[]).await;
    let client = client(&setup.config);
    let plan = client.plan_reset(partition, ResetTo::Start).await.expect("Kafka answers");
    assert_eq!((plan.forgotten, plan.delivered_again), (0, 3), "{plan:?}");
    match client.reset_progress(&plan, operator(false)).await {
        Err(AdminError::Refused(why)) => assert!(why.contains("stop all of them"), "{why}"),
        other => panic!("a running group was reset: {other:?}"),
    }
    setup.producer.shutdown().await;

    client.reset_progress(&plan, operator(false)).await.expect("nobody runs");
    setup.producer = Env::start(&setup.config, &setup.told).await;
    let delivered = setup.reader.everything_of(&setup.config).await;
    let twice = numbers.map(|number| (text(number), 2));
    assert_eq!(counts(&delivered), twice.into(), "replayed from the start");
    setup.producer.shutdown().await;

    let plan = client.plan_reset(partition, ResetTo::End).await.expect("Kafka answers");
    assert_eq!((plan.forgotten, plan.delivered_again), (1, 0), "{plan:?}");
    assert_eq!(plan.forgotten_halves[0].transaction_id, left[0].transaction_id.to_string());
    let unforced = client.reset_progress(&plan, operator(false)).await;
    assert!(matches!(unforced, Err(AdminError::Refused(_))), "{unforced:?}");
    client.reset_progress(&plan, operator(true)).await.expect("forced");
    assert_eq!(listed_by(&client).await, []);
    let outside = client.plan_reset(partition, ResetTo::Offset(1_000_000)).await;
    assert!(matches!(outside, Err(AdminError::Refused(_))), "{outside:?}");
    let journal = journal(&setup.config, "reset-progress").await;
    assert_eq!(journal.len(), 6, "{journal:?}");
    assert!(journal[1].contains("replicas of the group are running"), "{journal:?}");
}

/// A second copy of what was delivered, and of nothing else.
pub(crate) async fn operators_redeliver_what_was_delivered(env: Env) {
    let setup = Setup::new(env, Do::Unknown).await;
    let sent = setup.send(0, Do::Commit).await;
    let dropped = setup.send(1, Do::Rollback).await;
    let left = setup.leave_open(std::iter::once(2)).await;
    let first = setup.reader.sees(&text(0)).await;
    carried_out(&setup.config, &[]).await;
    let client = client(&setup.config);
    for id in [dropped.transaction_id, left[0].transaction_id] {
        let refused = client.redeliver(id, operator(true)).await;
        assert!(matches!(refused, Err(AdminError::Refused(_))), "{refused:?}");
    }
    let unforced = client.redeliver(sent.transaction_id, operator(false)).await;
    assert!(matches!(unforced, Err(AdminError::Refused(_))), "{unforced:?}");
    let copy = client.redeliver(sent.transaction_id, operator(true)).await.expect("forced");
    assert_eq!(copy.partition, first.entry.partition, "the same key, the same partition");
    let delivered = setup.reader.everything_of(&setup.config).await;
    let [one, two] = delivered.as_slice() else { panic!("{delivered:?}") };
    assert_eq!(one.transaction_id, two.transaction_id);
    let same = |entry: &Entry| {
        (entry.key.clone(), entry.headers.clone(), entry.payload.clone(), entry.timestamp_ms)
    };
    assert_eq!(same(&one.entry), same(&two.entry));
    assert_eq!(journal(&setup.config, "redeliver").await, ["begun", "done"]);
    setup.producer.shutdown().await;
}

/// How the acts of this kind went, as the parked topic tells it.
async fn journal(config: &ProducerConfig, action: &str) -> Vec<String> {
    let outcome = |act: &Value| act["outcome"].as_str().unwrap_or_default().to_owned();
    acts(config, action).await.iter().map(outcome).collect()
}

/// What the journal says of such acts, each with the operator's name and reason.
pub(crate) async fn acts(config: &ProducerConfig, action: &str) -> Vec<Value> {
    let entries = read_all(&config.kafka, &config.parked_topic()).await;
    let acts = entries.iter().filter_map(|entry| {
        let key = String::from_utf8(entry.key.clone()?).ok()?;
        let said: Value = serde_json::from_slice(entry.payload.as_deref()?).ok()?;
        let is_it = key.starts_with("halfmsg.journal-") && said["action"] == action;
        let OperatorRequest { operator, reason, .. } = operator(false);
        is_it.then(|| {
            assert_eq!((&said["operator"], &said["reason"]), (&operator.into(), &reason.into()));
            said.clone()
        })
    });
    acts.collect()
}
