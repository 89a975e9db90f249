//! What one question comes to when listeners hang, panic, or take their time.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use halfmsg_protocol::TransactionId;

use super::*;

use crate::listener::{ListenerResult, LocalTransactionState, TransactionListener, erase};

mod blocked;
mod many;

const DEADLINE: Duration = Duration::from_millis(200);
const HALVES: usize = 256;

pub(super) fn half(number: usize) -> HalfMessage {
    let id = TransactionId::from_bytes((number as u128 + 1).to_be_bytes());
    HalfMessage {
        transaction_id: id,
        local_transaction_id: id,
        purpose: "test".into(),
        topic: "topic".into(),
        key: Some(Bytes::from(number.to_string())),
        headers: Vec::new(),
        payload: None,
        partition: 0,
        offset: 0,
        epoch: 0,
        attempts: 0,
    }
}

fn number(half: &HalfMessage) -> usize {
    half.key.as_deref().and_then(|key| std::str::from_utf8(key).ok()?.parse().ok()).expect("ours")
}

/// What happens in a call in which one of these is.
#[derive(Clone, Copy)]
enum Bad {
    Hangs,
    Panics,
    GivesTooFew,
}

/// Answers for all of a call together; each call's halves are kept.
struct Batches {
    bad: Arc<Mutex<Vec<usize>>>,
    how: Bad,
    calls: Arc<Mutex<Vec<Vec<usize>>>>,
}

#[async_trait]
impl TransactionListener for Batches {
    type Arg = ();

    async fn execute_local_transaction(
        &self,
        _: &HalfMessage,
        (): (),
    ) -> ListenerResult<LocalTransactionState> {
        Ok(LocalTransactionState::Unknown)
    }

    async fn check_local_transaction(
        &self,
        _: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        unreachable!("asked for all together")
    }

    async fn check_local_transactions(
        &self,
        halves: &[HalfMessage],
    ) -> Vec<ListenerResult<LocalTransactionState>> {
        let asked: Vec<usize> = halves.iter().map(number).collect();
        self.calls.lock().unwrap().push(asked.clone());
        let is_bad = asked.iter().any(|half| self.bad.lock().unwrap().contains(half));
        match self.how {
            Bad::Hangs if is_bad => std::future::pending().await,
            Bad::Panics if is_bad => panic!("expected"),
            Bad::GivesTooFew if is_bad => Vec::new(),
            _ => halves.iter().map(|_| Ok(LocalTransactionState::Rollback)).collect(),
        }
    }
}

struct Rig {
    checker: Checker,
    how: Bad,
    bad: Arc<Mutex<Vec<usize>>>,
    calls: Arc<Mutex<Vec<Vec<usize>>>>,
}

impl Rig {
    fn new(how: Bad, bad: &[usize]) -> Self {
        let (bad, calls) = (Arc::new(Mutex::new(bad.to_vec())), Arc::default());
        let listener = Batches { bad: Arc::clone(&bad), how, calls: Arc::clone(&calls) };
        Self { checker: checker(listener), how, bad, calls }
    }

    fn listener(&self) -> Batches {
        let (bad, calls) = (Arc::clone(&self.bad), Arc::clone(&self.calls));
        Batches { bad, how: self.how, calls }
    }

    async fn ask(&self, halves: std::ops::Range<usize>) -> Vec<Answer> {
        self.checker.ask(halves.map(asked).collect()).await
    }

    fn take_calls(&self) -> Vec<Vec<usize>> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

fn checker(listener: impl TransactionListener) -> Checker {
    let listeners = HashMap::from([("test".to_owned(), erase(listener))]);
    Checker::new("app".into(), listeners, DEADLINE, 4)
}

fn asked(number: usize) -> Asked {
    Asked { application: "app".into(), half: half(number) }
}

/// The places of all that were not answered.
fn failed(answers: &[Answer]) -> Vec<usize> {
    let failed = answers.iter().enumerate().filter(|(_, answer)| **answer != Answer::Rollback);
    failed.map(|(at, _)| at).collect()
}

#[tokio::test(start_paused = true)]
async fn one_half_that_hangs_or_panics_keeps_no_other_from_being_answered() {
    for (how, culprit) in [(Bad::Hangs, 77), (Bad::Panics, 0), (Bad::GivesTooFew, HALVES - 1)] {
        let rig = Rig::new(how, &[culprit]);
        let answers = rig.ask(0..HALVES).await;
        assert_eq!(failed(&answers), [culprit]);
        assert!(matches!(&answers[culprit], Answer::Failed(_)), "{:?}", answers[culprit]);
        let calls = rig.take_calls();
        let in_vain = calls.iter().filter(|call| call.contains(&culprit)).count();
        assert_eq!(in_vain, 9, "256, 128, 64, 32, 16, 8, 4, 2, 1");
        assert!(calls.len() <= 17, "{} calls", calls.len());
        // It is known now: it comes alone, and last.
        assert_eq!(failed(&rig.ask(0..HALVES).await), [culprit]);
        let calls = rig.take_calls();
        assert_eq!(calls.last(), Some(&vec![culprit]));
        assert!(calls.len() <= 4, "{} calls", calls.len());
        // And it is trusted again once it was answered.
        rig.bad.lock().unwrap().clear();
        rig.ask(0..HALVES).await;
        rig.take_calls();
        assert_eq!(failed(&rig.ask(0..HALVES).await), [] as [usize; 0]);
        assert_eq!(rig.take_calls().len(), 1, "all of them together");
    }
}

#[tokio::test(start_paused = true)]
async fn the_answers_of_the_others_do_not_wait_for_the_one_that_hangs() {
    let rig = Rig::new(Bad::Hangs, &[1]);
    let told = Mutex::new(Vec::new());
    let note = |at: usize, answer: Answer| told.lock().unwrap().push((at, answer));
    rig.checker.ask_each((0..2).map(asked).collect(), &note).await;
    let told = told.into_inner().unwrap();
    assert_eq!(told[0], (0, Answer::Rollback));
    assert!(told.len() == 2 && matches!(told[1], (1, Answer::Failed(_))), "{told:?}");
}

/// What is told as failed counts against its age.
#[tokio::test(start_paused = true)]
async fn a_listener_that_always_fails_is_asked_a_bounded_number_of_times() {
    let rig = Rig::new(Bad::GivesTooFew, &(0..HALVES).collect::<Vec<_>>());
    let (mut sizes, mut unasked) = (Vec::new(), 0);
    for _ in 0..9 {
        let answers = rig.ask(0..HALVES).await;
        let calls = rig.take_calls();
        let asked: HashSet<usize> = calls.iter().flatten().copied().collect();
        for (at, answer) in answers.iter().enumerate() {
            match answer {
                Answer::Failed(_) => assert!(asked.contains(&at), "{at} failed unasked"),
                Answer::NotAsked(NotAsked::NoPlace) => assert!(!asked.contains(&at), "{at}"),
                other => panic!("{other:?}"),
            }
        }
        unasked += HALVES - asked.len();
        assert!(calls.len() <= 36, "{} calls", calls.len());
        sizes.push(calls[0].len());
    }
    assert!(sizes.is_sorted_by(|a, b| a >= b) && sizes[0] == HALVES, "{sizes:?}");
    assert!(unasked > 0, "each question had the time for all");
    // Whoever is well is answered, and the others are asked about again soon.
    rig.bad.lock().unwrap().truncate(HALVES / 2);
    let mut well = HashSet::new();
    for _ in 0..20 {
        for (at, answer) in rig.ask(0..HALVES).await.into_iter().enumerate() {
            match answer {
                Answer::Rollback => drop(well.insert(at)),
                Answer::Failed(_) | Answer::NotAsked(NotAsked::Busy | NotAsked::NoPlace) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(well, (HALVES / 2..HALVES).collect());
}

/// Asks about one after the other, as a listener does that has no method for many.
struct OneByOne {
    takes: Duration,
    hangs: Option<usize>,
    calls: Arc<AtomicUsize>,
}

#[async_trait]
impl TransactionListener for OneByOne {
    type Arg = ();

    async fn execute_local_transaction(
        &self,
        _: &HalfMessage,
        (): (),
    ) -> ListenerResult<LocalTransactionState> {
        Ok(LocalTransactionState::Unknown)
    }

    async fn check_local_transaction(
        &self,
        half: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        assert!(check_time_left().is_some_and(|left| left < DEADLINE));
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.hangs == Some(number(half)) {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(self.takes).await;
        Ok(LocalTransactionState::Rollback)
    }
}

#[tokio::test(start_paused = true)]
async fn one_after_the_other_what_was_answered_in_time_counts() {
    assert_eq!(check_time_left(), None, "no check is under way");
    let calls = Arc::new(AtomicUsize::new(0));
    // More than one call has time for.
    let takes = DEADLINE / 20;
    let checker = checker(OneByOne { takes, hangs: None, calls: Arc::clone(&calls) });
    let answers = checker.ask((0..40).map(asked).collect()).await;
    assert_eq!(failed(&answers), [] as [usize; 0]);
    let calls = calls.load(Ordering::Relaxed);
    assert!((40..60).contains(&calls), "{calls}: at most one is begun in vain in each call");
}

#[tokio::test(start_paused = true)]
async fn one_after_the_other_only_the_one_that_hangs_fails() {
    let (takes, calls) = (Duration::ZERO, Arc::new(AtomicUsize::new(0)));
    let checker = checker(OneByOne { takes, hangs: Some(100), calls: Arc::clone(&calls) });
    let answers = checker.ask((0..HALVES).map(asked).collect()).await;
    assert_eq!(failed(&answers), [100]);
    assert!(matches!(&answers[100], Answer::Failed(why) if why.contains("longer than it may")));
    assert_eq!(calls.load(Ordering::Relaxed), HALVES + 1, "the culprit twice");
}
