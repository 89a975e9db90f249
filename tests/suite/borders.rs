//! Rows 28 and 31: what a message may be, and in which order messages arrive.

use std::collections::HashMap;

use futures::future::join_all;
use halfmsg_producer::{HalfState, Invalid, Message, PrepareError, TransactionId};
use halfmsg_protocol::Record;

use super::Env;
use super::random::Random;
use super::reader::Delivered;
use super::setup::{Setup, answered, operator};
use super::store::read_store;
use super::told::{Do, PURPOSE};

/// A payload at the limit passes, key and headers counted; one byte more is refused and not
/// stored.
pub(crate) async fn c28_payload_at_the_limit(env: Env) {
    let setup = Setup::new(env, Do::Rollback).await;
    let (key, header) = (vec![0xFE; 40], ("name", vec![0xFD; 56]));
    let rest = setup.config.max_message_bytes - key.len() - header.0.len() - header.1.len();
    let message = |payload: Vec<u8>| {
        Message::new(&setup.target, payload).key(key.clone()).header(header.0, header.1.clone())
    };
    let payload: Vec<u8> = (0..rest).map(|at| (at % 251).to_le_bytes()[0]).collect();
    let longer = [payload.as_slice(), &[0]].concat();
    let refused = setup.producer.send_in_transaction(PURPOSE, message(longer), Do::Commit).await;
    match refused {
        Err(PrepareError::Invalid(Invalid::TooLarge { bytes, max_bytes })) => {
            assert_eq!((bytes, max_bytes), (max_bytes + 1, setup.config.max_message_bytes));
        }
        other => panic!("one byte too many: {other:?}"),
    }
    assert!(setup.told.executed().is_empty());
    assert!(read_store(&setup.config).await.is_empty());
    let sent = setup.producer.send_in_transaction(PURPOSE, message(payload.clone()), Do::Commit);
    sent.await.expect("it is stored");
    let delivered = setup.reader.everything_of(&setup.config).await;
    assert_eq!(delivered.len(), 1);
    let entry = &delivered[0].entry;
    assert!(entry.payload.as_ref() == Some(&payload), "another payload");
    assert_eq!(entry.key, Some(key));
    assert_eq!(entry.headers, [(header.0.to_owned(), Some(header.1))]);
    setup.producer.shutdown().await;
}

/// Messages of every shape, decided at once or parked and resumed after a restart.
pub(crate) async fn c28_everything_arrives_byte_for_byte(env: Env) {
    let mut config = env.group().await;
    config.max_checks = 1;
    let mut setup = Setup::with(env, config, Do::Unknown).await;
    let mut sent: HashMap<TransactionId, Message> = HashMap::new();
    let mut parked = Vec::new();
    for message in shapes(&setup.target) {
        let at_once = setup.producer.begin(PURPOSE, message.clone()).await.expect("it is stored");
        at_once.commit().await.expect("it is stored");
        let later = setup.producer.begin(PURPOSE, message.clone()).await.expect("it is stored");
        parked.push(later.receipt().transaction_id);
        for transaction in [at_once, later] {
            sent.insert(transaction.receipt().transaction_id, message.clone());
        }
    }
    setup.ask_soon().await;
    setup.listed(HalfState::Parked, parked.len()).await;
    setup.restart().await;
    setup.told.set_otherwise(Do::Commit);
    setup.listed(HalfState::Parked, parked.len()).await;
    for id in &parked {
        let admin = setup.producer.admin();
        let resumed = answered(async || admin.resume(*id, operator(false)).await).await;
        resumed.expect("it is parked");
    }
    setup.none_open().await;
    for asked in setup.told.checked() {
        let message = &sent[&asked.half.transaction_id];
        assert_eq!(asked.half.key, message.key);
        assert_eq!(asked.half.headers, message.headers);
        assert_eq!(asked.half.payload, message.payload);
    }
    let delivered = setup.reader.everything_of(&setup.config).await;
    assert_eq!(delivered.len(), sent.len(), "{delivered:#?}");
    let store = read_store(&setup.config).await;
    for found in &delivered {
        arrived_as(found, &sent[&found.transaction_id], &store);
        sent.remove(&found.transaction_id).expect("it is delivered once");
    }
    setup.producer.shutdown().await;
}

/// Keys, headers and payloads at their borders.
fn shapes(target: &str) -> Vec<Message> {
    let every_byte: Vec<u8> = (0..=255).collect();
    let sixty = (0..60).fold(Message::new(target, "sixty headers"), |message, number| {
        message.header(format!("header-{}", number % 40), vec![number; usize::from(number)])
    });
    let mut odd = Message::new(target, every_byte.clone()).key(every_byte.clone());
    odd.headers = vec![
        ("null".into(), None),
        ("empty".into(), Some(Vec::new().into())),
        ("".into(), Some(b"a header without a name".as_slice().into())),
        ("grün-绿".into(), Some(every_byte.into())),
        // Names that are ours in the parked topic are the user's everywhere else.
        ("halfmsg-key".into(), Some(b"mine".as_slice().into())),
        ("halfmsg-half".into(), Some(b"mine".as_slice().into())),
        ("halfmsg-null-payload".into(), None),
    ];
    let null = Message { payload: None, ..Message::new(target, "") };
    let an_hour_ago = (chrono::Utc::now() - chrono::TimeDelta::hours(1)).timestamp_millis();
    vec![
        Message::new(target, ""),
        null.clone(),
        null.key("a key"),
        Message::new(target, "empty key").key(""),
        Message::new(target, "an hour ago").timestamp_ms(an_hour_ago),
        Message::new(target, vec![0xFF, 0x00, 0xFE]).key(vec![0xC3, 0x28]),
        sixty,
        odd,
    ]
}

#[track_caller]
fn arrived_as(found: &Delivered, message: &Message, store: &[Record]) {
    let Delivered { transaction_id, entry } = found;
    assert_eq!(entry.key.as_deref(), message.key.as_deref());
    assert_eq!(entry.payload.as_deref(), message.payload.as_deref());
    let headers = message.headers.iter();
    let headers = headers.map(|(name, value)| (name.clone(), value.as_ref().map(|v| v.to_vec())));
    assert_eq!(entry.headers, headers.collect::<Vec<_>>());
    let stored = store.iter().find_map(|record| match record {
        Record::Half(meta) if meta.id == *transaction_id => Some(meta.timestamp_ms),
        _ => None,
    });
    assert_eq!(entry.timestamp_ms, stored, "the timestamp is that of the half");
    assert!(message.timestamp_ms.is_none_or(|given| stored == Some(given)), "{stored:?}");
}

/// Messages of one key arrive in the order of their commits, whatever the order of their halves.
pub(crate) async fn c31_order_of_commits_within_a_key(env: Env) {
    const KEYS: usize = 5;
    const EACH: usize = 30;
    let setup = Setup::new(env, Do::Rollback).await;
    let in_key = |key: usize| {
        let setup = &setup;
        async move {
            let mut begun = Vec::new();
            for number in 0..EACH {
                let message = Message::new(&setup.target, format!("{key}/{number}"));
                let message = message.key(format!("key {key}"));
                let transaction = setup.producer.begin(PURPOSE, message).await;
                begun.push((number, transaction.expect("it is stored")));
            }
            let mut random = Random::new(u64::try_from(key).expect("a few"));
            let mut order = Vec::new();
            while !begun.is_empty() {
                let at = random.below(u64::try_from(begun.len()).expect("a few"));
                let (number, transaction) = begun.swap_remove(usize::try_from(at).expect("a few"));
                transaction.commit().await.expect("it is stored");
                order.push(format!("{key}/{number}"));
            }
            order
        }
    };
    let orders = join_all((0..KEYS).map(in_key)).await;
    let delivered = setup.reader.everything_of(&setup.config).await;
    assert_eq!(delivered.len(), KEYS * EACH);
    for (key, order) in orders.into_iter().enumerate() {
        let prefix = format!("{key}/");
        let of_key = delivered.iter().map(Delivered::text).filter(|text| text.starts_with(&prefix));
        assert_eq!(of_key.collect::<Vec<_>>(), order, "key {key}");
    }
    setup.producer.shutdown().await;
}
