//! Row 6: Kafka answers, but slowly.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use halfmsg_producer::{HalfState, PrepareError, TransactionProducer};
use tokio::time::{sleep, timeout};

use super::metrics::metric;
use super::progress::carried_out;
use super::setup::{Setup, text};
use super::told::{Do, PURPOSE};
use super::turns::alone;
use super::{Env, PATIENCE};

/// Far more than may be under way.
const CALLERS: usize = 2_000;
const UNDER_WAY: usize = 4;
/// So long a caller waits; longer than the broker stands still.
const PREPARE_DEADLINE: Duration = Duration::from_secs(2);
/// And so long for a place.
const PLACE_DEADLINE: Duration = Duration::from_secs(1);
/// Over it, on a loaded machine.
const MARGIN: Duration = Duration::from_secs(20);
/// Of the time, more than nine tenths: that it goes on and stands still again takes a moment.
const STANDS_STILL: Duration = Duration::from_millis(1_500);
/// Transactions of one round.
const EACH: usize = 1_000;
/// A loaded machine is quiet in one of so many rounds.
const TRIES: usize = 3;
/// What is to be seen of a slow broker: transactions, and callers who are refused.
const SLOWLY: usize = 100;
const REFUSED: usize = 300;
/// Between two looks at what is under way.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// What became of the calls so far.
#[derive(Default)]
struct Calls {
    next: usize,
    /// Committed, and told so: the number, and the identity.
    committed: Vec<(usize, String)>,
    /// Committed, and not told so in time: the check-back is.
    in_the_end: Vec<usize>,
    /// Stored or not, when the deadline came.
    unknown: usize,
    refused: usize,
    /// Stored, and not decided yet.
    open: usize,
}

impl Calls {
    /// Records that nobody waits for, and a client may still have.
    fn given_up(&self) -> usize {
        self.in_the_end.len() + self.unknown
    }
}

/// Callers who begin anew as soon as they have their answer, until a round is over.
struct Callers<'a> {
    setup: &'a Setup,
    calls: Mutex<Calls>,
}

impl Callers<'_> {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has all of them call until this is seen, and waits for their last answers; the transactions per second.
    async fn round(&self, is_over: impl Fn(&Calls) -> bool) -> f64 {
        let (began, before) = (Instant::now(), self.calls().committed.len());
        let callers = (0..CALLERS).map(async |_| {
            while !is_over(&self.calls()) {
                self.call().await;
            }
        });
        let all = timeout(PATIENCE, join_all(callers)).await;
        let calls = self.calls();
        let seen = format!("{} committed, {} refused", calls.committed.len(), calls.refused);
        assert!(all.is_ok(), "the round does not end: {seen}");
        (calls.committed.len() - before) as f64 / began.elapsed().as_secs_f64()
    }

    /// One transaction, or a refusal when the deadline has come.
    async fn call(&self) {
        let number = {
            let mut calls = self.calls();
            calls.next += 1;
            calls.next
        };
        let began = Instant::now();
        let begun = self.setup.producer.begin(PURPOSE, self.setup.message(number)).await;
        let took = began.elapsed();
        assert!(took < PREPARE_DEADLINE + MARGIN, "told after {took:?}");
        match begun {
            Ok(transaction) => {
                let open = {
                    let mut calls = self.calls();
                    calls.open += 1;
                    calls.open
                };
                assert!(open <= UNDER_WAY, "{open} are open");
                let committed = transaction.commit().await;
                let mut calls = self.calls();
                calls.open -= 1;
                match committed {
                    Ok(()) => {
                        let id = transaction.receipt().transaction_id.to_string();
                        calls.committed.push((number, id));
                    }
                    Err(_) => {
                        self.setup.told.check(text(number), &[Do::Commit]);
                        calls.in_the_end.push(number);
                    }
                }
            }
            Err(PrepareError::Backpressure(why)) => {
                assert_eq!(why, format!("{UNDER_WAY} transactions are open"));
                assert!(took >= PLACE_DEADLINE, "refused after {took:?}");
                self.calls().refused += 1;
            }
            // The broker stood still for too long, or it is once more time to see whether the target is there.
            Err(PrepareError::Unavailable { reason, transaction_id, .. }) => {
                let why = match transaction_id {
                    Some(_) => "no acknowledgement within the deadline",
                    None => "Kafka did not answer about topic",
                };
                assert!(reason.starts_with(why), "{reason}");
                let is_late = took >= PREPARE_DEADLINE || transaction_id.is_none();
                assert!(is_late, "{reason}: after {took:?}");
                self.calls().unknown += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    /// Looks at what the producer says of itself, for ever: never more than is allowed, however many call. The
    /// most of both is told.
    async fn watch(&self, most: &Mutex<(usize, usize)>) {
        loop {
            let (under_way, queued) = under_way(&self.setup.producer);
            let given_up = self.calls().given_up();
            assert!(under_way <= UNDER_WAY, "{under_way} under way");
            // Of each one under way a record, and what the client has to say of it.
            let bound = 2 * UNDER_WAY + given_up;
            assert!(queued <= bound, "{queued} queued, with {given_up} given up");
            {
                let mut most = most.lock().unwrap_or_else(PoisonError::into_inner);
                *most = (most.0.max(under_way), most.1.max(queued));
            }
            sleep(LOOK_INTERVAL).await;
        }
    }
}

/// Transactions that have their places, and records that the store's clients hold.
fn under_way(producer: &TransactionProducer) -> (usize, usize) {
    let gauge = |name: &str| usize::try_from(metric(producer, name)).expect("a few");
    (gauge("halfmsg_transactions_under_way "), gauge("halfmsg_store_queue_records "))
}

/// Lets the broker stand still nearly all of the time, until this is over; then it goes on.
async fn slow_down<T>(env: &Env, until: impl Future<Output = T>) -> T {
    let is_over = Cell::new(false);
    let meanwhile = async {
        let result = until.await;
        is_over.set(true);
        result
    };
    let slow = async {
        // Never left in the midst of it: a script that pauses would go on behind the last one.
        while !is_over.get() {
            env.broker.pause().await;
            sleep(STANDS_STILL).await;
            env.broker.unpause().await;
        }
    };
    tokio::join!(meanwhile, slow).0
}

/// A broker that stands still most of the time slows callers: some get their answers, late, those who find no
/// place in time are refused at their deadline, and neither places nor queues take more than they have. In
/// the end every committed message is at its target once.
pub(crate) async fn c06_a_slow_broker_slows_callers(env: Env) {
    let _alone = alone().await;
    let env = env.with_own_broker().await;
    let mut config = env.group().await;
    config.max_transactions = UNDER_WAY;
    config.prepare_deadline = PREPARE_DEADLINE;
    let mut setup = Setup::with(env, config, Do::Rollback).await;
    setup.ready().await;

    let callers = Callers { setup: &setup, calls: Mutex::default() };
    let began = Instant::now();
    let mut fast = 0_f64;
    for round in 1..=TRIES {
        fast = fast.max(callers.round(|calls| calls.committed.len() >= round * EACH).await);
    }
    let (committed, refused) = {
        let calls = callers.calls();
        (calls.committed.len(), calls.refused)
    };
    let most = Mutex::default();
    let is_over = |calls: &Calls| {
        calls.committed.len() >= committed + SLOWLY && calls.refused >= refused + REFUSED
    };
    let watched = async {
        tokio::select! {
            slow = callers.round(is_over) => slow,
            () = callers.watch(&most) => unreachable!("it watches for ever"),
        }
    };
    let slow = slow_down(&setup.env, watched).await;
    let most = most.into_inner().expect("no panic");
    let calls = callers.calls.into_inner().expect("no panic");
    println!(
        "{fast:.0}/s, then {slow:.0}/s: {} refused, {} given up; at most {} under way, {} queued",
        calls.refused - refused,
        calls.given_up(),
        most.0,
        most.1,
    );
    assert!(slow < fast / 2.0, "{slow}/s, and {fast}/s before");
    // Who gave up has had a place for so long: nobody gets one to store in vain.
    let times = began.elapsed().div_duration_f64(PREPARE_DEADLINE - PLACE_DEADLINE);
    let bound = UNDER_WAY * (1 + times.ceil() as usize);
    assert!(calls.given_up() <= bound, "{} given up, more than {bound}", calls.given_up());
    assert!(most.0 == UNDER_WAY && most.1 > 0, "not seen at work: {most:?}");

    // What was decided is not open, whatever became of the others.
    carried_out(&setup.config, &[]).await;
    let decided: BTreeSet<&str> = calls.committed.iter().map(|(_, id)| id.as_str()).collect();
    let open = setup.list(HalfState::Open).await.expect("Kafka answers");
    let open: Vec<_> =
        open.iter().filter(|half| decided.contains(half.transaction_id.as_str())).collect();
    assert!(open.is_empty(), "{open:#?}");
    setup.ask_soon().await;
    let committed = calls.committed.into_iter().map(|(number, _)| number);
    setup.ends_with(committed.chain(calls.in_the_end)).await;
}
