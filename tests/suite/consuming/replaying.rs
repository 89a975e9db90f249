//! Replays of dead letters on PostgreSQL that end in the middle of their COMMIT: whoever asks again learns what
//! became of it, and it has one effect. And one that a replica has in hand while it is discarded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use halfmsg_consumer::{
    ConsumerConfig, DeadLetterError, DeadLetterFilter, DeadLetterState, ReplayError, Replayed,
};
use sea_orm::{ConnectionTrait, DbBackend, Statement, TransactionTrait};
use uuid::Uuid;

use super::ground::{Ground, Running};
use super::handler::{Effects, Rule};
use crate::suite::{Env, PATIENCE, until};

/// The deadline of a replay that is to be late; the database cancels a COMMIT that hangs for three times as long.
const ATTEMPT: Duration = Duration::from_secs(3);
/// The COMMIT of an effect waits for this lock, however long.
const HOLD: &str = "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS \
     'BEGIN PERFORM pg_advisory_xact_lock(36); RETURN NULL; END'; \
     CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON effect DEFERRABLE INITIALLY DEFERRED \
     FOR EACH ROW EXECUTE FUNCTION hold()";
const TAKE: &str = "SELECT pg_advisory_xact_lock(36)";
/// The connections of this database that wait for it.
const WAITING: &str = "SELECT pid, query FROM pg_stat_activity \
     WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'advisory'";

/// How it ends.
#[derive(Debug, Clone, Copy)]
enum Ending {
    /// Nobody waits for it any more, as when the process is killed; the database carries it out.
    Killed,
    /// The database ends it: its server is killed, say.
    Cut,
    /// Its deadline passes.
    Late,
}

/// A backend in the middle of a COMMIT, if there is one.
async fn committing(ground: &Ground) -> Option<i32> {
    let select = Statement::from_string(DbBackend::Postgres, WAITING);
    let row = ground.pool.query_one_raw(select).await.expect("it answers")?;
    let query: String = row.try_get("", "query").expect("a text");
    assert!(query.eq_ignore_ascii_case("commit"), "it waits in {query}");
    Some(row.try_get("", "pid").expect("a number"))
}

pub(crate) async fn c36_a_replay_that_ends_in_its_commit_has_one_effect(env: Env) {
    let endings = [Ending::Killed, Ending::Cut, Ending::Late];
    let ground = Ground::new(env).await;
    let fails = Arc::new(AtomicBool::new(true));
    let failing = fails.clone();
    let handler = Effects::by(move |_| match failing.load(Ordering::Acquire) {
        true => Rule::Fail,
        false => Rule::Apply,
    });
    let running = ground.start(ground.config(), &handler);
    for number in 0..endings.len() {
        ground.send("k", &format!("m{number}")).await;
    }
    let dead = endings.len() as u64;
    running.counts("dead letters", |metrics| metrics.dead_letters() == dead).await;
    fails.store(false, Ordering::Release);
    ground.pool.execute_unprepared(HOLD).await.expect("a trigger");
    let letters = running.dead_letters.list(&DeadLetterFilter::default(), None, 10).await;
    let letters: Vec<Uuid> = letters.expect("it answers").iter().map(|letter| letter.id).collect();
    let config = ConsumerConfig { attempt_deadline: ATTEMPT, ..ground.config() };
    let hurried = ground.start(config, &handler);
    let mut behind = 0;
    for (number, (id, ending)) in letters.into_iter().zip(endings).enumerate() {
        let by = if matches!(ending, Ending::Late) { &hurried } else { &running };
        let was_done = end_in_commit(&ground, by, id, ending).await;
        assert!(!(was_done && matches!(ending, Ending::Cut)), "the database had ended it");
        behind += u32::from(was_done);
        let effects = ground.effects().await.len();
        assert_eq!(effects, number + 1, "{ending:?}: one effect each");
    }
    assert!(behind > 0, "no COMMIT was carried out behind the back of who had asked for it");
    running.stop().await;
    hurried.stop().await;
    ground.one_each((0..endings.len()).map(|number| format!("m{number}"))).await;
}

/// One that is queued can be discarded, unless a replica has it in hand: then it is left to that one.
pub(crate) async fn c36_a_queued_dead_letter_in_hand_is_not_discarded(env: Env) {
    let ground = Ground::new(env).await;
    let running = ground.start(ground.config(), &Effects::by(|_| Rule::Fail));
    ground.send("k", "m").await;
    running.counts("a dead letter", |metrics| metrics.dead_letters() == 1).await;
    let letters = running.dead_letters.clone();
    // What a replica would do is done here.
    running.stop().await;
    let id = letters.list(&DeadLetterFilter::default(), None, 1).await.expect("it answers")[0].id;
    letters.queue(id).await.expect("it is open");
    let replica = ground.pool.begin().await.expect("a transaction");
    let claim = Statement::from_string(DbBackend::Postgres, "SELECT id FROM retry FOR UPDATE");
    assert!(replica.query_one_raw(claim).await.expect("it answers").is_some());
    let refused = letters.discard(id, "a test").await;
    assert!(matches!(refused, Err(DeadLetterError::BeingTried(_))), "{refused:?}");
    let letter = letters.find(id).await.expect("it answers").expect("the letter");
    assert_eq!(letter.state, DeadLetterState::Queued);
    replica.rollback().await.expect("it is let go");
    let gone = letters.discard(id, "a test").await.expect("nobody has it");
    assert_eq!((gone.state, ground.rows("retry").await), (DeadLetterState::Discarded, 0));
}

/// A replay that ends so, and another one; whether the first had happened.
async fn end_in_commit(ground: &Ground, running: &Running, id: Uuid, ending: Ending) -> bool {
    let before = ground.effects().await.len();
    let holder = ground.pool.begin().await.expect("a transaction");
    holder.execute_unprepared(TAKE).await.expect("nobody else has it");
    let begin = || {
        let letters = running.dead_letters.clone();
        tokio::spawn(async move { letters.replay(id).await })
    };
    let mut replay = begin();
    let commit = until(PATIENCE, "its COMMIT to wait", async || {
        let commit = committing(ground).await;
        if commit.is_none() && replay.is_finished() {
            // Its time was over before.
            replay = begin();
        }
        commit.ok_or("none does")
    })
    .await;
    match ending {
        Ending::Killed => {
            replay.abort();
            assert!(replay.await.is_err_and(|ended| ended.is_cancelled()));
        }
        Ending::Cut => {
            let cut = format!("SELECT pg_terminate_backend({commit})");
            ground.pool.execute_unprepared(&cut).await.expect("it is ended");
            let ended = replay.await.expect("no panic");
            assert!(matches!(ended, Err(ReplayError::Unavailable(_))), "{ended:?}");
        }
        Ending::Late => {
            let ended = replay.await.expect("no panic");
            assert!(matches!(ended, Err(ReplayError::Unavailable(_))), "{ended:?}");
        }
    }
    holder.rollback().await.expect("it is let go");
    until(PATIENCE, "the COMMIT to end", async || match committing(ground).await {
        None => Ok(()),
        Some(backend) => Err(format!("{backend} waits")),
    })
    .await;
    let again = until(PATIENCE, "an answer to who asks again", async || {
        running.dead_letters.replay(id).await.map_err(|error| error.to_string())
    })
    .await;
    let (was_done, letter) = match again {
        Replayed::Before(letter) => (true, letter),
        Replayed::Done(letter) => (false, letter),
    };
    assert_eq!((letter.id, letter.state), (id, DeadLetterState::Replayed));
    assert_eq!(ground.effects().await.len(), before + 1, "{ending:?}, done before: {was_done}");
    was_done
}
