//! Rows 17 to 20: who is asked, when nobody was there for long, and how many at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use halfmsg_producer::{
    HalfMessage, HalfState, ListenerResult, LocalTransactionState, Message, ProducerConfig,
    StartError, TransactionId, TransactionListener, TransactionProducer,
};
use halfmsg_protocol::Record;
use tokio::sync::watch;

use super::checking::unasked;
use super::env::asked_soon;
use super::reader::{Reader, counts, once_each};
use super::setup::{Setup, text};
use super::store::read_store;
use super::told::{Do, PURPOSE, Told};
use super::{Env, PATIENCE, until};

/// Nobody is there until every half is long due, and older than the age at which it is parked:
/// nothing happens to it before it was really asked about.
pub(crate) async fn c17_nobody_there_for_long(env: Env) {
    const HALVES: usize = 24;
    let mut config = env.group().await;
    config.max_age = Duration::from_millis(500);
    let mut setup = Setup::with(env, config, Do::Commit).await;
    let stored = Instant::now();
    setup.leave_open(0..HALVES).await;
    let last = Instant::now();
    setup.producer.shutdown().await;
    assert!(setup.told.checked().is_empty(), "asked after {:?}", stored.elapsed());
    setup.config = asked_soon(setup.config);
    let long = 2 * setup.config.check_after;
    until(2 * long + PATIENCE, "every half to be long due", async || {
        if last.elapsed() > long { Ok(()) } else { Err("not yet") }
    })
    .await;
    let store = read_store(&setup.config).await;
    assert_eq!(store.len(), HALVES);
    assert!(store.iter().all(|record| matches!(record, Record::Half(_))), "{store:?}");

    // One that cannot be told shows that the age does park once it was asked about.
    setup.told.check(text(1), &[Do::Unknown]);
    for number in (2..HALVES).step_by(2) {
        setup.told.check(text(number), &[Do::Rollback]);
    }
    setup.start_again().await;
    setup.none_open().await;
    let parked = setup.listed(HalfState::Parked, 1).await;
    assert_eq!(parked[0].attempts, 1, "{parked:?}");
    assert!(parked[0].last_outcome.as_ref().is_some_and(|said| said.starts_with("max_age")));
    let id = parked[0].transaction_id.parse().expect("an identity");
    let shown = setup.shows(id, "the parked half", |half| half.half.state == "parked").await;
    let events: Vec<_> = shown.history.iter().map(|entry| entry.event).collect();
    assert_eq!(events, ["stored", "checked", "parked"], "{:#?}", shown.history);
    assert_eq!(shown.payload, Some(text(1)));
    assert_eq!(setup.told.checked().len(), HALVES, "each was asked about once");
    let committed = (0..HALVES).filter(|number| *number == 0 || number % 2 == 1 && *number != 1);
    setup.ends_with(committed).await;
}

/// Another group, which sends messages of its own, is not asked, nor is another application; one that takes the
/// group's name is refused where the broker can tell whose it is.
pub(crate) async fn c18_only_its_own_group_and_application_are_asked(env: Env) {
    const HALVES: usize = 16;
    let config = env.group().await;
    let unhurried = config.clone();
    let mut others = config.clone();
    others.group = env.named("others");
    env.broker.expect_group(&others).await;
    let strangers = Told::otherwise(Do::Rollback);
    let another_group = Env::start(&others, &strangers).await;
    let others = Others::send(&env, others, &another_group).await;
    let mut setup = Setup::with(env, config, Do::Commit).await;
    setup.leave_open(0..HALVES).await;
    setup.ask_soon().await;
    setup.none_open().await;
    assert_eq!(setup.told.checked().len(), HALVES);

    let mut config = setup.config.clone();
    config.application = "strangers".into();
    // Nobody is asked before the stranger is there.
    setup.config = unhurried;
    setup.restart().await;
    setup.leave_open(HALVES..2 * HALVES).await;
    setup.producer.shutdown().await;
    setup.config = asked_soon(setup.config);
    let builder = TransactionProducer::builder(config.clone());
    match builder.listener(PURPOSE, strangers.clone()).start().await {
        Ok(stranger) => {
            assert!(config.kafka.embedded, "another application has taken the group's name");
            let wanted = u64::try_from(HALVES).expect("a few");
            until(PATIENCE, "checks that are not for this application", async || {
                let tried = unasked(&stranger);
                if tried >= wanted { Ok(()) } else { Err(format!("{tried} were")) }
            })
            .await;
            stranger.shutdown().await;
        }
        Err(StartError::ForeignGroup { group, owner, application }) => {
            let told = (group, owner, application);
            assert_eq!(told, (config.group, "tests".into(), "strangers".into()));
        }
        Err(error) => panic!("{error}"),
    }
    setup.start_again().await;
    setup.none_open().await;
    assert!(strangers.checked().is_empty(), "strangers were asked");
    another_group.shutdown().await;
    others.end(&setup, &strangers).await;
    setup.ends_with(0..2 * HALVES).await;
}

/// What another group of the same process has sent.
struct Others {
    config: ProducerConfig,
    reader: Reader,
    committed: TransactionId,
    dropped: TransactionId,
    left: TransactionId,
}

impl Others {
    /// One of each kind, under a payload that the first group has, too.
    async fn send(env: &Env, config: ProducerConfig, producer: &TransactionProducer) -> Self {
        let target = env.topic("target-of-others").await;
        let reader = Reader::start(&config.kafka, &target).await;
        let message = |number| Message::new(&target, text(number)).key("one");
        let send = async |number, local| {
            let sent = producer.send_in_transaction(PURPOSE, message(number), local).await;
            let sent = sent.expect("it is stored");
            assert!(sent.decision_recorded, "{sent:?}");
            sent.transaction_id
        };
        let (committed, dropped) = (send(0, Do::Commit).await, send(1, Do::Rollback).await);
        let begun = producer.begin(PURPOSE, message(2)).await.expect("it is stored");
        let left = begun.leave_open().transaction_id;
        Self { config, reader, committed, dropped, left }
    }

    /// Asked now, its own listener and no other answers for the one that is open; its store has its own messages
    /// and no others, and so has its target.
    async fn end(self, setup: &Setup, told: &Told) {
        told.check(text(2), &[Do::Commit]);
        let producer = Env::start(&asked_soon(self.config.clone()), told).await;
        self.reader.sees(&text(2)).await;
        let asked: Vec<_> = told.checked().iter().map(|asked| asked.half.transaction_id).collect();
        assert_eq!(asked, [self.left]);
        assert_eq!(setup.told.checks_of(self.left).len(), 0);
        let delivered = self.reader.everything_of(&self.config).await;
        assert_eq!(counts(&delivered), once_each([text(0), text(2)]));
        let delivered: Vec<_> = delivered.iter().map(|message| message.transaction_id).collect();
        assert_eq!(delivered, [self.committed, self.left]);
        let own = BTreeSet::from([self.committed, self.dropped, self.left]);
        assert_eq!(stored(&self.config).await, own);
        assert!(stored(&setup.config).await.is_disjoint(&own), "in the store of another group");
        producer.shutdown().await;
    }
}

/// The identities of all that a group's store has.
async fn stored(config: &ProducerConfig) -> BTreeSet<TransactionId> {
    read_store(config).await.iter().map(Record::id).collect()
}

/// One that does not answer, one that panics and one that fails hold up their own batches only;
/// others of the same partition go on.
pub(crate) async fn c19_a_slow_check_holds_up_only_its_own_batch(env: Env) {
    const HALVES: usize = 60;
    const SLOW: usize = 5;
    let mut config = env.group().await;
    config.check_batch = 4;
    // Nothing but its release ends it.
    config.check_deadline = 5 * PATIENCE;
    let own_batch = config.check_batch;
    let mut setup = Setup::with(env, config, Do::Commit).await;
    setup.told.check(text(SLOW), &[Do::Block, Do::Commit]);
    setup.told.check(text(21), &[Do::Panic, Do::Panic, Do::Commit]);
    setup.told.check(text(42), &[Do::Fail, Do::Commit]);
    let mut ids = Vec::new();
    for number in 0..HALVES {
        let message = Message::new(&setup.target, text(number)).key("one key");
        let begun = setup.producer.begin(PURPOSE, message).await.expect("it is stored");
        ids.push(begun.leave_open());
    }
    assert!(ids.iter().all(|receipt| receipt.partition == ids[0].partition));
    setup.ask_soon().await;
    let open = until(PATIENCE, "all but one batch to be decided", async || {
        let open = setup.list(HalfState::Open).await.map_err(|error| error.to_string())?;
        let slow_is_asked = !setup.told.checks_of(ids[SLOW].transaction_id).is_empty();
        match slow_is_asked && open.len() <= own_batch {
            true => Ok(open),
            false => Err(format!("{} are open", open.len())),
        }
    })
    .await;
    let slow = ids[SLOW].transaction_id.to_string();
    assert!(open.iter().any(|half| half.transaction_id == slow), "nobody answered for it");
    assert_eq!(setup.told.checks_of(ids[SLOW].transaction_id).len(), 1, "it is asked once at once");
    setup.told.release();
    setup.ends_with(0..HALVES).await;
}

/// In one question with hundreds of others, for as long as it takes until somebody mends them.
pub(crate) async fn c19_one_that_hangs_or_panics_for_good_holds_up_no_other(env: Env) {
    const HALVES: usize = 300;
    const HANGS: usize = 5;
    const PANICS: usize = 177;
    let mut config = env.group().await;
    config.check_deadline = Duration::from_millis(500);
    let mut setup = Setup::with(env, config, Do::Commit).await;
    setup.told.check(text(HANGS), &[Do::Block]);
    setup.told.check(text(PANICS), &[Do::Panic]);
    let mut ids = Vec::new();
    for number in 0..HALVES {
        let message = Message::new(&setup.target, text(number)).key("one key");
        ids.push(setup.producer.begin(PURPOSE, message).await.expect("it is stored").leave_open());
    }
    setup.ask_soon().await;
    let culprits = [HANGS, PANICS].map(|number| ids[number].transaction_id.to_string());
    until(PATIENCE, "all but the two to be decided, and those to fail", async || {
        let open = setup.list(HalfState::Open).await.map_err(|error| error.to_string())?;
        let fails = |id: &String| {
            open.iter().any(|of| of.transaction_id == *id && of.failing_since.is_some())
        };
        match open.len() == 2 && culprits.iter().all(fails) {
            true => Ok(()),
            false => Err(format!("{} are open", open.len())),
        }
    })
    .await;
    setup.told.check(text(PANICS), &[Do::Commit]);
    setup.told.release();
    setup.told.check(text(HANGS), &[Do::Commit]);
    setup.ends_with(0..HALVES).await;
}

/// More than fit one question, all due at once: asked in parallel, never more questions at once
/// than allowed, and about no half twice.
pub(crate) async fn c20_open_halves_are_checked_in_parallel(env: Env) {
    let mut config = env.group().await;
    let halves = if config.kafka.embedded { 1_000 } else { 10_000 };
    config.check_batch = 50;
    let mut setup = Setup::with(env, config, Do::Rollback).await;
    setup.leave_open(0..halves).await;
    setup.producer.shutdown().await;
    setup.config = asked_soon(setup.config);
    let counting = Counting::until(setup.config.check_concurrency);
    let began = Instant::now();
    setup.producer = counting.start(&setup.config).await;
    setup.ready().await;
    setup.none_open().await;
    let took = began.elapsed();
    let (most, asked) = (*counting.most.borrow(), counting.asked());
    println!("{halves} halves checked in {took:?}, {most} questions at once");
    assert_eq!(most, setup.config.check_concurrency, "questions at once");
    assert_eq!(asked.len(), halves);
    assert!(asked.values().all(|times| *times == 1), "asked about a half twice");
    let delivered = setup.reader.everything_of(&setup.config).await;
    assert_eq!(counts(&delivered), once_each((0..halves).map(text)));
    setup.producer.shutdown().await;
}

/// A listener that commits everything, and counts how many questions are put to it at once. The
/// first wait for each other, until there are as many as were expected: that there are fewer shows
/// in a failed test, not in a lucky schedule.
#[derive(Clone)]
struct Counting {
    expected: usize,
    now: Arc<Mutex<usize>>,
    most: watch::Sender<usize>,
    asked: Arc<Mutex<BTreeMap<TransactionId, usize>>>,
}

impl Counting {
    fn until(expected: usize) -> Self {
        let (now, asked) = (Arc::default(), Arc::default());
        Self { expected, now, most: watch::Sender::new(0), asked }
    }

    async fn start(&self, config: &ProducerConfig) -> TransactionProducer {
        let builder = TransactionProducer::builder(config.clone());
        builder.listener(PURPOSE, self.clone()).start().await.expect("the producer starts")
    }

    fn asked(&self) -> BTreeMap<TransactionId, usize> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One question more, or less.
    fn count(&self, change: impl Fn(&mut usize)) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut now);
        self.most.send_modify(|most| *most = now.max(*most));
    }
}

#[async_trait]
impl TransactionListener for Counting {
    type Arg = ();

    async fn execute_local_transaction(
        &self,
        _half: &HalfMessage,
        _arg: (),
    ) -> ListenerResult<LocalTransactionState> {
        Ok(LocalTransactionState::Unknown)
    }

    async fn check_local_transaction(
        &self,
        _half: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        Ok(LocalTransactionState::Unknown)
    }

    async fn check_local_transactions(
        &self,
        halves: &[HalfMessage],
    ) -> Vec<ListenerResult<LocalTransactionState>> {
        self.count(|now| *now += 1);
        let mut seen = self.most.subscribe();
        // Cancelled at the check deadline, if they never come together.
        let _ = seen.wait_for(|most| *most >= self.expected).await;
        {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            for half in halves {
                *asked.entry(half.transaction_id).or_default() += 1;
            }
        }
        self.count(|now| *now -= 1);
        halves.iter().map(|_| Ok(LocalTransactionState::Commit)).collect()
    }
}
