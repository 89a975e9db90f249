//! Calls that are given up: nobody asks about their halves, or takes their place, before they have
//! really ended.

use std::sync::mpsc;

use tokio::sync::oneshot;

use super::*;
use crate::checker::calling::ABORT_PATIENCE;
use crate::listener::ListenerError;

/// Its checks block their thread, as no async code may, until they are let go; each tells when it
/// begins, and that it has ended.
struct Blocks {
    let_go: Mutex<mpsc::Receiver<()>>,
    seen: Arc<Mutex<Vec<(usize, &'static str)>>>,
}

#[async_trait]
impl TransactionListener for Blocks {
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
        let seen = |what| self.seen.lock().unwrap().push((number(half), what));
        seen("begins");
        let let_go = self.let_go.lock().unwrap().recv();
        seen("ends");
        let_go.map(|()| LocalTransactionState::Rollback).map_err(|_| ListenerError::from("gone"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_that_blocks_its_thread_keeps_its_halves_and_its_place_until_it_ends() {
    let (let_go, seen) = (mpsc::channel(), Arc::<Mutex<Vec<_>>>::default());
    let listener = Blocks { let_go: Mutex::new(let_go.1), seen: Arc::clone(&seen) };
    let listeners = HashMap::from([("test".to_owned(), erase(listener))]);
    let checker = Arc::new(Checker::new("app".into(), listeners, DEADLINE, 1));
    let answers = loop {
        let answers = checker.ask(vec![asked(1)]).await;
        // On a machine that stands still a call may be given up before it begins.
        if !seen.lock().unwrap().is_empty() {
            break answers;
        }
    };
    assert!(matches!(&answers[..], [Answer::Failed(why)] if why.contains(BLOCKS)), "{answers:?}");
    // Not asked about again, and not forgotten either.
    assert_eq!(checker.ask(vec![asked(1)]).await, [Answer::NotAsked(NotAsked::Blocked)]);
    assert_eq!(*seen.lock().unwrap(), [(1, "begins")]);
    // There is one place, and it is taken.
    let other = tokio::spawn({
        let checker = Arc::clone(&checker);
        async move { answered(&checker, 2).await }
    });
    // More often than there are calls, also of those that are given up.
    (0..1_000).for_each(|_| let_go.0.send(()).unwrap());
    assert_eq!(other.await.unwrap(), Answer::Rollback);
    assert_eq!(answered(&checker, 1).await, Answer::Rollback);
    let calls = [(1, "begins"), (1, "ends"), (2, "begins"), (2, "ends")];
    assert_eq!(seen.lock().unwrap()[..4], calls, "one at a time");
}

/// What is answered in the end: a machine that stands still leaves no time for a place, or for a call.
async fn answered(checker: &Checker, number: usize) -> Answer {
    let until = tokio::time::Instant::now() + 60 * ABORT_PATIENCE;
    loop {
        match checker.ask_one(asked(number)).await {
            answer @ (Answer::NotAsked(_) | Answer::Failed(_)) => {
                assert!(tokio::time::Instant::now() < until, "{answer:?}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            answer => return answer,
        }
    }
}

/// A suspect that waits for no place was not asked: it has not failed once more.
#[tokio::test(start_paused = true)]
async fn a_suspect_without_a_place_was_not_asked() {
    let rig = Rig::new(Bad::Hangs, &[0, 1]);
    assert_eq!(failed(&rig.ask(0..2).await), [0, 1]);
    let (checker, calls) = (Arc::new(rig.checker), rig.calls);
    calls.lock().unwrap().clear();
    // Of four calls at once one may be about a suspect, and this one hangs.
    let first = tokio::spawn({
        let checker = Arc::clone(&checker);
        async move { checker.ask(vec![asked(0)]).await }
    });
    while calls.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let answers = checker.ask(vec![asked(1), asked(2)]).await;
    assert_eq!(answers, [Answer::NotAsked(NotAsked::NoPlace), Answer::Rollback]);
    assert!(matches!(&first.await.unwrap()[..], [Answer::Failed(_)]));
    assert!(!calls.lock().unwrap().iter().flatten().any(|half| *half == 1));
}

/// Its halves would be taken to be under way for ever, without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_that_blocks_is_told_as_such_also_if_its_question_was_cancelled() {
    let (let_go, seen) = (mpsc::channel(), Arc::<Mutex<Vec<_>>>::default());
    let listener = Blocks { let_go: Mutex::new(let_go.1), seen: Arc::clone(&seen) };
    let checker = checker(listener);
    let has_begun = async {
        while seen.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let ask = async {
        while seen.lock().unwrap().is_empty() {
            let answers = checker.ask(vec![asked(1)]).await;
            // Else it was given up before it began, on a machine that stands still.
            assert!(seen.lock().unwrap().is_empty(), "{answers:?}");
        }
    };
    tokio::select! {
        biased;
        () = has_begun => {}
        () = ask => {}
    }
    let is_told = async {
        loop {
            match &checker.ask(vec![asked(1)]).await[..] {
                [Answer::NotAsked(NotAsked::Busy)] => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                [Answer::NotAsked(NotAsked::Blocked)] => break,
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(60 * ABORT_PATIENCE, is_told).await.expect("it is known to block");
    assert_eq!(*seen.lock().unwrap(), [(1, "begins")]);
    let_go.0.send(()).unwrap();
}

/// Hangs, tells that it has begun, and tells when it is dropped.
struct Tells {
    begun: Mutex<Option<oneshot::Sender<()>>>,
    dropped: Mutex<Option<oneshot::Sender<()>>>,
}

#[async_trait]
impl TransactionListener for Tells {
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
        let begun = self.begun.lock().unwrap().take();
        let Some(begun) = begun else { return Ok(LocalTransactionState::Rollback) };
        let _dropped = self.dropped.lock().unwrap().take();
        begun.send(()).expect("somebody waits");
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_question_that_is_cancelled_ends_its_call() {
    let (begun, has_begun) = oneshot::channel();
    let (dropped, is_dropped) = oneshot::channel();
    let (begun, dropped) = (Mutex::new(Some(begun)), Mutex::new(Some(dropped)));
    let checker = checker(Tells { begun, dropped });
    let until = tokio::time::Instant::now() + DEADLINE / 2;
    tokio::select! {
        answers = checker.ask(vec![asked(1)]) => panic!("{answers:?}"),
        begun = has_begun => begun.expect("it is called"),
    }
    assert!(is_dropped.await.is_err(), "its sender is dropped with the call");
    assert!(tokio::time::Instant::now() < until, "and not by its deadline");
    assert_eq!(checker.ask(vec![asked(1)]).await, [Answer::Rollback]);
}

/// Its error cannot even be told.
#[derive(Debug)]
struct Untold;

impl std::fmt::Display for Untold {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("expected")
    }
}

impl std::error::Error for Untold {}

struct FailsUntold;

#[async_trait]
impl TransactionListener for FailsUntold {
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
        Err(Untold.into())
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_that_panics_when_it_is_told_is_the_listeners_panic() {
    let answers = checker(FailsUntold).ask(vec![asked(1)]).await;
    assert!(
        matches!(&answers[..], [Answer::Failed(why)] if why.contains("panicked")),
        "{answers:?}"
    );
}
