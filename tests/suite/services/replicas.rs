//! CONFORMANCE 23 and 27: two replicas of order-svc on one database. One is killed, or paused and let go on;
//! the other takes its partitions over, and every message is at its target once. What operators see is the same
//! at each.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::process::Process;
use super::shop::settled::VOID_DEADLINE;
use super::shop::{Calls, Service, Shop};
use crate::suite::env::PARTITIONS;
use crate::suite::random::Random;
use crate::suite::reader::{Delivered, Reader};
use crate::suite::turns::{Alone, alone};
use crate::suite::{Env, PATIENCE, until};

const RECEIVED: i64 = 10_000;
/// Clients of one burst, and the orders of each, all of which leave a message to deliver.
const CLIENTS: usize = 4;
const EACH: usize = 6;
const BURST: usize = CLIENTS * EACH;
/// After this the group gives a silent replica up.
const SESSION: Duration = Duration::from_secs(10);
/// From there to the first delivery by the one that has taken over.
const TAKEOVER: Duration = Duration::from_secs(2);
/// What a loaded machine adds to it, at the worst.
const MARGIN: Duration = Duration::from_secs(60);
/// A loaded machine is quiet in one of so many: one takeover within the promise shows that nothing in it
/// waits for longer.
const TRIES: usize = 5;
/// Waiting until nothing is under way, a check-back after a session that ran out included.
const QUIET_DEADLINE: Duration = Duration::from_secs(300);
/// The resolver's line about what the group has given it.
const ASSIGNED: &str = "the group has assigned partitions";
/// Its line when they are taken over.
const TAKEN_OVER: &str = "the store's partitions are taken over";

/// A shop with a second replica of order-svc, each of which owns half of the store's partitions.
struct Pair {
    shop: Shop,
    second: Service,
    // Last: the machine is given back when both have ended.
    _alone: Alone,
}

impl Pair {
    async fn open(env: Env, instance_ids: [&str; 2]) -> Self {
        let alone = alone().await;
        let builder = Shop::builder(env).await;
        // Two replicas under load on a machine that may have two cores; and short, so that what a dead one leaves is
        // checked soon.
        let mut shop = builder
            .order("HALFMSG_INSTANCE_ID", instance_ids[0])
            // Which replica delivers is told by the lines about a message's life.
            .order("HALFMSG_LOG", "info,halfmsg::life=info")
            .order("HALFMSG_PREPARE_DEADLINE_MS", "2500")
            .order("HALFMSG_LOCAL_DEADLINE_MS", "3000")
            .order("HALFMSG_DECISION_DEADLINE_MS", "1000")
            .order("HALFMSG_STOCK_DEADLINE_MS", "1500")
            .order("HALFMSG_CHECK_AFTER_MS", "5600")
            .order("HALFMSG_ANSWER_DEADLINE_MS", "9000")
            .order("HALFMSG_IDEMPOTENCY_LEASE_MS", "6600")
            .open()
            .await;
        let second = join(&mut shop, instance_ids[1]).await;
        Self { shop, second, _alone: alone }
    }

    /// Waits until nothing is under way, every order has failed and is restored, and more messages
    /// than so many are at their target, each once; how many.
    async fn ends_with_more_than(&self, before: usize) -> usize {
        let books = self.shop.conservation(QUIET_DEADLINE).await;
        assert_eq!(books.available["apple"], RECEIVED, "every order fails");
        // A few orders of a burst fail before their deduct, and leave nothing to deliver.
        let delivered = books.delivered.len();
        assert!(delivered > before + BURST / 4, "{delivered} delivered, {before} before");
        delivered
    }

    /// Orders by the second replica that all fail after their deduct: a message each.
    fn burst(&self, name: &str) -> JoinHandle<()> {
        burst(self.shop.of_replica(&self.second), name.to_owned())
    }
}

/// Starts a second replica, and waits until each has its half of the store's partitions.
async fn join(shop: &mut Shop, instance_id: &str) -> Service {
    shop.seed("apple", 100, RECEIVED).await;
    let mut second = shop.order.replica(instance_id);
    second.start();
    second.ready(&shop.calls.http).await;
    owns(shop.order.process(), 0, PARTITIONS / 2).await;
    owns(second.process(), 0, PARTITIONS / 2).await;
    second
}

/// Sends them; a replica that dies or stands still answers none of its own.
fn burst(calls: Calls, name: String) -> JoinHandle<()> {
    tokio::spawn(async move {
        let clients = (0..CLIENTS).map(async |client| {
            for number in 0..EACH {
                let place = calls.place(&[("apple", 1)]).user(&format!("{name}-{client}-{number}"));
                let _ = place.fault("after-deduct").try_send().await;
            }
        });
        join_all(clients).await;
    })
}

/// Waits until a replica delivers, by what it has logged from this byte on; the first message's identity.
async fn delivers(process: &Process, from: usize) -> String {
    until(PATIENCE, "messages to be delivered", async || {
        let log = process.log();
        let mut news = log.get(from..).unwrap_or_default().lines();
        let line = news.find(|line| line.contains("committed: delivering")).ok_or("none is")?;
        let id = line.split_once("transaction_id=").ok_or("no identity")?.1;
        Ok::<_, &str>(id.split_whitespace().next().unwrap_or_default().to_owned())
    })
    .await
}

/// Waits until what a replica has logged from this byte on ends with taking over so many.
async fn owns(process: &Process, from: usize, partitions: i32) {
    let wanted = format!("partitions={partitions} ");
    until(PATIENCE, &format!("{partitions} partitions to be taken over"), async || {
        let log = process.log();
        let news = log.get(from..).unwrap_or_default();
        let line = news.lines().rfind(|line| line.contains(ASSIGNED) || line.contains(TAKEN_OVER));
        let line = line.unwrap_or("nothing about partitions");
        match line.contains(TAKEN_OVER) && line.contains(&wanted) {
            true => Ok(()),
            false => Err(line.to_owned()),
        }
    })
    .await;
}

/// Waits until a replica, by what it has logged from this byte on, has taken so many over and delivers.
async fn owns_and_delivers(process: &Process, from: usize, partitions: i32) -> String {
    owns(process, from, partitions).await;
    // From there on until it has taken them over nothing is its own.
    let assigned = process.log().rfind(ASSIGNED).expect("it has said so");
    delivers(process, assigned).await
}

/// SIGKILL while messages are on their way: the other has the dead one's partitions and delivers within
/// the session timeout and two seconds, and finishes what it had begun.
pub(crate) async fn c23_long_a_killed_replica_is_replaced(env: Env) {
    let mut pair = Pair::open(env, ["", ""]).await;
    let (mut delivered, mut took) = (0, Vec::new());
    let first = pair.shop.calls.clone();
    while took.len() < TRIES && took.iter().all(|took| *took > SESSION + TAKEOVER) {
        took.push(kill_first(&mut pair, took.len()).await);
        // What it was doing is settled by the other, which is asked until the first is back.
        pair.shop.calls = first.of_replica(&pair.second);
        delivered = pair.ends_with_more_than(delivered).await;
        // Back, it has its part again.
        let before = pair.second.process().log().len();
        pair.shop.calls = first.clone();
        pair.shop.restart_orders().await;
        owns(pair.second.process(), before, PARTITIONS / 2).await;
    }
    println!("delivered again after SIGKILL within {took:?}");
    assert!(took.iter().all(|took| *took < SESSION + TAKEOVER + MARGIN), "{took:?}");
    assert!(took.iter().any(|took| *took <= SESSION + TAKEOVER), "{took:?}");
    pair.burst("again").await.expect("no panic");
    let delivered = pair.ends_with_more_than(delivered).await;
    println!("{delivered} delivered");
}

/// Kills it under load; how long it takes until a reader sees what the second delivers in its place.
async fn kill_first(pair: &mut Pair, number: usize) -> Duration {
    let (before, first) =
        (pair.second.process().log().len(), pair.shop.order.process().log().len());
    let ground = &pair.shop.ground;
    let reader = Reader::start(&ground.kafka(), &ground.rollback_topic).await;
    let named = |name: &str| format!("{name}-{number}");
    let bursts = [pair.burst(&named("second")), burst(pair.shop.calls.clone(), named("first"))];
    delivers(pair.shop.order.process(), first).await;
    pair.shop.order.kill();
    let killed = Instant::now();
    // In the store's partitions of both.
    let meanwhile = pair.burst(&named("meanwhile"));
    let id = owns_and_delivers(pair.second.process(), before, PARTITIONS).await;
    until(PATIENCE, "a reader to see it", async || {
        let seen = reader.seen();
        let is_it = |message: &Delivered| message.transaction_id.to_string() == id;
        if seen.iter().any(is_it) { Ok(()) } else { Err(format!("{} others", seen.len())) }
    })
    .await;
    let took = killed.elapsed();
    for burst in bursts.into_iter().chain([meanwhile]) {
        burst.await.expect("no panic");
    }
    took
}

/// SIGSTOP while messages are on their way, then SIGCONT: what it had in hand was delivered by the
/// other meanwhile, and it delivers none of it again; it is a member again, and works.
pub(crate) async fn c23_long_a_paused_replica_is_fenced(env: Env) {
    let mut pair = Pair::open(env, ["order-svc-1", "order-svc-2"]).await;
    let before = pair.second.process().log().len();
    let bursts = [pair.burst("second"), burst(pair.shop.calls.clone(), "first".into())];
    delivers(pair.shop.order.process(), 0).await;
    pair.shop.order.process().signal("STOP");
    owns(pair.second.process(), before, PARTITIONS).await;
    let second = pair.shop.calls.of_replica(&pair.second);
    let first = std::mem::replace(&mut pair.shop.calls, second);
    pair.burst("meanwhile").await.expect("no panic");
    let delivered = pair.ends_with_more_than(0).await;

    let paused = pair.shop.order.process().log().len();
    let owned = pair.second.process().log().len();
    pair.shop.order.process().signal("CONT");
    owns(pair.shop.order.process(), paused, PARTITIONS / 2).await;
    owns(pair.second.process(), owned, PARTITIONS / 2).await;
    for burst in bursts {
        burst.await.expect("no panic");
    }
    pair.burst("together").await.expect("no panic");
    let delivered = pair.ends_with_more_than(delivered).await;

    // It works: alone, it serves and delivers.
    let paused = pair.shop.order.process().log().len();
    pair.second.kill();
    owns(pair.shop.order.process(), paused, PARTITIONS).await;
    pair.shop.calls = first;
    burst(pair.shop.calls.clone(), "alone".into()).await.expect("no panic");
    let delivered = pair.ends_with_more_than(delivered).await;
    println!("{delivered} delivered");
}

/// Replicas are killed and paused at any moment under load, one after the other, and come back, at once or when
/// the other has taken all over: what they had begun is settled, and every message is at its target once.
pub(crate) async fn c27_long_replicas_are_killed(env: Env) {
    const KILLS: usize = 8;
    // With names that survive, a killed replica has its partitions back as soon as it is up.
    let mut pair = Pair::open(env, ["order-svc-1", "order-svc-2"]).await;
    let mut random = Random::new(2_327);
    let (mut bursts, mut replaced_dead) = (Vec::new(), 0);
    for number in 0..KILLS {
        bursts.push(burst(pair.shop.calls.clone(), format!("first-{number}")));
        bursts.push(pair.burst(&format!("second-{number}")));
        // In the middle of them, where exactly is drawn.
        sleep(Duration::from_millis(random.below(2_500))).await;
        let (mut victim, mut other) = (&mut pair.shop.order, &mut pair.second);
        if random.chance(50) {
            std::mem::swap(&mut victim, &mut other);
        }
        let from = other.process().log().len();
        let is_replaced = number % 2 == 1;
        if random.chance(70) || number == KILLS - 1 {
            victim.kill();
            if is_replaced {
                owns(other.process(), from, PARTITIONS).await;
                replaced_dead += 1;
            }
            victim.start();
        } else {
            victim.process().signal("STOP");
            if is_replaced {
                owns(other.process(), from, PARTITIONS).await;
            } else {
                sleep(Duration::from_millis(random.below(6_000))).await;
            }
            victim.process().signal("CONT");
        }
    }
    assert!(replaced_dead > 0, "none that died was replaced");
    for burst in bursts {
        burst.await.expect("no panic");
    }
    pair.shop.order.ready(&pair.shop.calls.http).await;
    pair.second.ready(&pair.shop.calls.http).await;
    let delivered = pair.ends_with_more_than(KILLS * BURST / 4).await;
    println!("{delivered} delivered");
}

/// What is open is listed by either replica, whichever owns its partition, in the same order and under the same
/// identities, also while a replica stops and when it is gone; each is settled by whoever is asked.
pub(crate) async fn operators_see_every_half_at_either_replica(env: Env) {
    // No check comes by itself.
    let builder = Shop::builder(env).await.order("HALFMSG_CHECK_AFTER_MS", "600000");
    let mut shop = builder.order("HALFMSG_INSTANCE_ID", "").open().await;
    let mut second = join(&mut shop, "").await;
    let (first, other) = (shop.calls.clone(), shop.of_replica(&second));
    let mut lost = BTreeSet::new();
    // Until each owns some of them.
    let (here, there) = loop {
        let answer = shop.place(&[("apple", 1)]).fault("decision-lost").send().await.expect(201);
        lost.insert(answer.transaction_id());
        let listed = until(VOID_DEADLINE, "the same list at both", async || {
            let (here, there) = (first.halves("open").await?, other.halves("open").await?);
            let ids = (ids(&here), ids(&there));
            let own = own(&here).count() + own(&there).count();
            // The lost ones, and what is still under way of those that were held up.
            let is_whole = ids.0 == ids.1 && own == here.len() && here.len() == lost.len();
            if is_whole { Ok((here, there)) } else { Err(format!("{here:#?}, and {there:#?}")) }
        });
        let (here, there) = listed.await;
        if own(&here).next().is_some() && own(&there).next().is_some() {
            break (here, there);
        }
    };
    assert_eq!(ids(&here).into_iter().collect::<BTreeSet<_>>(), lost);
    for half in here.iter().chain(&there) {
        assert_eq!((&half["state"], &half["purpose"]), (&"open".into(), &"order.rollback".into()));
    }
    let of_other = own(&there).next().expect("it owns some").clone();
    let id = of_other["transaction_id"].as_str().expect("an id");
    for calls in [&first, &other] {
        let one = calls.get(&format!("/halves/{id}")).await.expect(200).body;
        assert_eq!((&one["state"], &one["offset"]), (&"open".into(), &of_other["offset"]));
    }

    // Gone in good order, what it owned is listed by the other, at once and when that has it.
    second.process().signal("TERM");
    let all = ids(&here);
    let listed = async || until(VOID_DEADLINE, "a whole list", || first.halves("open")).await;
    assert_eq!(ids(&listed().await), all, "while it stops");
    second.process().end(PATIENCE).await;
    assert_eq!(ids(&listed().await), all, "when it is gone");
    until(VOID_DEADLINE, "all to be the other's", async || {
        let here = first.halves("open").await?;
        assert_eq!(ids(&here), all, "after it");
        if own(&here).count() == all.len() { Ok(()) } else { Err(format!("{here:#?}")) }
    })
    .await;
    for id in &all {
        let done = shop.settle(id, "rollback", false).await.expect(200);
        assert_eq!(done.body["state"], "rolled_back");
    }
    let books = shop.conservation(VOID_DEADLINE).await;
    let sold = i64::try_from(all.len()).expect("a few");
    assert_eq!((books.available["apple"], books.delivered.len()), (RECEIVED - sold, 0));
}

/// The identities, in the order of the list.
fn ids(halves: &[Value]) -> Vec<String> {
    let id = |half: &Value| half["transaction_id"].as_str().expect("an id").to_owned();
    halves.iter().map(id).collect()
}

/// Those of the partitions that the replica owns which was asked: only it knows when they are checked.
fn own(halves: &[Value]) -> impl Iterator<Item = &Value> {
    halves.iter().filter(|half| !half["next_check_at"].is_null())
}
