//! Hundreds of halves whose checks hang, and others among them and behind them: a core and a checker
//! together, as the resolver drives them, on a paused clock.

use std::collections::HashSet;

use halfmsg_protocol::{
    Backoff, Body, Command, CoreConfig, Event, HalfMeta, HalfOffset, HalfRef, Progress, Record,
    ResolverCore, Takeover, TransactionId,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::*;

const HANGING: usize = 500;
const CONCURRENCY: usize = 4;
const CHECK_AFTER: Duration = Duration::from_secs(6);
const CHECK_DEADLINE: Duration = Duration::from_secs(3);
/// One that is well is stored so often.
const EVERY: Duration = Duration::from_millis(700);
/// A question takes ten deadlines to find who is to blame, and four more for who is in doubt or was
/// found before; one is under way when a half becomes due, and the half is in the next one.
const LONGEST_WAIT: Duration = Duration::from_secs(2 * 14 * 3);

fn config() -> CoreConfig {
    CoreConfig {
        check_after: CHECK_AFTER,
        check_backoff: Backoff { initial: Duration::from_secs(10), max: Duration::from_secs(300) },
        max_checks: 15,
        max_age: Duration::from_secs(24 * 3_600),
        no_listener_grace: Duration::from_secs(3_600),
        retry_delay: Duration::from_secs(1),
        check_batch: 256,
        check_batch_bytes: 1_024 * 1_024,
        check_batches: CONCURRENCY,
        copy_window: Duration::ZERO,
    }
}

enum Told {
    Answered(HalfRef, Answer),
    Over,
}

/// A partition and its listener.
struct Partition {
    core: ResolverCore,
    checker: Arc<Checker>,
    began: Instant,
    next: i64,
    to_self: mpsc::UnboundedSender<Told>,
    told: mpsc::UnboundedReceiver<Told>,
    stored: HashMap<TransactionId, Duration>,
    /// How long each that was answered had waited since it was due.
    waited: HashMap<TransactionId, Duration>,
}

impl Partition {
    fn new(rig: Rig) -> Self {
        let listeners = HashMap::from([("test".to_owned(), erase(rig.listener()))]);
        let checker = Checker::new("app".into(), listeners, CHECK_DEADLINE, CONCURRENCY);
        let progress = Progress { low_water: 0, position: 0 };
        let takeover = Takeover { progress, parked: Vec::new(), wall_ms: 0, now: Duration::ZERO };
        let (to_self, told) = mpsc::unbounded_channel();
        Self {
            core: ResolverCore::new(config(), takeover),
            checker: Arc::new(checker),
            began: Instant::now(),
            next: 0,
            to_self,
            told,
            stored: HashMap::new(),
            waited: HashMap::new(),
        }
    }

    fn store(&mut self, number: usize) -> TransactionId {
        let HalfMessage { transaction_id: id, purpose, topic, key, .. } = half(number);
        self.stored.insert(id, self.began.elapsed());
        let meta = HalfMeta {
            id,
            application: "app".into(),
            purpose,
            topic,
            timestamp_ms: 0,
            check_after: None,
            local_transaction: None,
        };
        self.append(Record::Half(meta.into()), Body { key, ..Body::default() });
        id
    }

    fn append(&mut self, record: Record, body: Body) {
        let (offset, appended_ms) = (self.next, self.began.elapsed().as_millis() as i64);
        self.next += 1;
        if let Record::Decision(decision) = &record {
            let waited = self.began.elapsed() - self.stored[&decision.of.id] - CHECK_AFTER;
            self.waited.insert(decision.of.id, waited);
        }
        self.step(Event::Record { offset, appended_ms, record, body });
    }

    fn step(&mut self, event: Event) {
        let mut commands = Vec::new();
        self.core.step(self.began.elapsed(), event, &mut commands);
        for command in commands {
            match command {
                Command::Ask(questions) => {
                    let (checker, to_self) = (Arc::clone(&self.checker), self.to_self.clone());
                    tokio::spawn(async move {
                        let asked = questions.iter().map(|question| Asked {
                            application: "app".into(),
                            half: HalfMessage::new(0, &question.half, 0, question.attempts),
                        });
                        let tell = |at: usize, answer: Answer| {
                            let of = questions[at].of;
                            to_self.send(Told::Answered(of, answer)).expect("it is read");
                        };
                        checker.ask_each(asked.collect(), &tell).await;
                        to_self.send(Told::Over).expect("it is read");
                    });
                }
                Command::Append(record) => self.append(record, Body::default()),
                Command::Dropped { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Goes on until then.
    async fn run_until(&mut self, until: Instant) {
        loop {
            let due = self.core.next_due().map_or(until, |due| self.began + due);
            tokio::select! {
                told = self.told.recv() => match told.expect("we hold one end") {
                    Told::Answered(of, answer) => self.step(Event::Answered { of, answer }),
                    Told::Over => self.step(Event::BatchOver),
                },
                () = tokio::time::sleep_until(until) => return,
                // What is due may have to wait for a place.
                () = tokio::time::sleep_until(due.max(Instant::now() + Duration::from_millis(20))) => {
                    self.step(Event::Tick);
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn hundreds_that_hang_hold_up_none_that_is_well() {
    let bad: Vec<usize> = (0..HANGING).map(|number| 2 * number).collect();
    let mut partition = Partition::new(Rig::new(Bad::Hangs, &bad));
    // One that is well beside each that hangs, all due at once.
    let mut well: HashSet<TransactionId> = HashSet::new();
    for number in 0..2 * HANGING {
        let id = partition.store(number);
        if number % 2 == 1 {
            well.insert(id);
        }
    }
    // And others behind them, all the time, until all of the hanging are found and long after.
    let mut later: HashSet<TransactionId> = HashSet::new();
    let over = Instant::now() + Duration::from_secs(3_600);
    let mut number = 2 * HANGING + 1;
    while Instant::now() < over {
        let next = Instant::now() + EVERY;
        partition.run_until(next).await;
        later.insert(partition.store(number));
        number += 2;
    }
    partition.run_until(over + LONGEST_WAIT + CHECK_AFTER).await;
    let longest = |of: &HashSet<TransactionId>| {
        let waited = of.iter().map(|id| partition.waited.get(id).copied());
        waited.map(|waited| waited.unwrap_or(Duration::MAX)).max()
    };
    let (beside, behind) = (longest(&well).expect("some"), longest(&later).expect("some"));
    println!("the longest waits: beside them {beside:?}, behind them {behind:?}");
    assert!(behind <= LONGEST_WAIT, "one that came later waited for {behind:?}");
    // No longer than if each that hangs was asked about alone, one after the other.
    let all_found = CHECK_DEADLINE * (HANGING as u32);
    assert!(beside <= all_found, "one beside them waited for {beside:?}");
    assert_eq!(partition.waited.len(), well.len() + later.len(), "no other is decided");
    assert_eq!(partition.core.ledger().open_count(), HANGING);
    let mut open = partition.core.ledger().open_from(HalfOffset(0));
    assert!(open.all(|open| open.failing_since_ms.is_some()), "each is shown as failing");
}
