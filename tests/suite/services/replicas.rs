//! CONFORMANCE 23: two replicas of order-svc on one database. One is killed, or paused and let go on;
//! the other takes its partitions over, and every message is at its target once.

use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::task::JoinHandle;

use super::heavy::alone;
use super::process::Process;
use super::shop::{Calls, Service, Shop};
use crate::suite::env::PARTITIONS;
use crate::suite::{Env, PATIENCE, until};

const RECEIVED: i64 = 10_000;
/// Orders of one burst, all of which leave a message to deliver.
const BURST: usize = 24;
/// After this the group gives a silent replica up.
const SESSION: Duration = Duration::from_secs(10);
/// From there to the end of the takeover.
const TAKEOVER: Duration = Duration::from_secs(2);
/// What a loaded machine adds to it.
const MARGIN: Duration = Duration::from_secs(4);
/// Waiting until nothing is under way, a check-back after a session that ran out included.
const QUIET_DEADLINE: Duration = Duration::from_secs(90);
/// The resolver's line about what the group has given it.
const ASSIGNED: &str = "the group has assigned partitions";
/// Its line when they are taken over.
const TAKEN_OVER: &str = "the store's partitions are taken over";

/// A shop with a second replica of order-svc, each of which owns half of the store's partitions.
struct Pair {
    shop: Shop,
    second: Service,
    // Last: the machine is given back when both have ended.
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

impl Pair {
    async fn open(env: Env, instance_ids: [&str; 2]) -> Self {
        let alone = alone().await;
        let builder = Shop::builder(env).await;
        let mut shop = builder.order("HALFMSG_INSTANCE_ID", instance_ids[0]).open().await;
        shop.seed("apple", 100, RECEIVED).await;
        let mut second = shop.order.replica(instance_ids[1]);
        second.start();
        second.ready(&shop.calls.http).await;
        owns(shop.order.process(), 0, PARTITIONS / 2).await;
        owns(second.process(), 0, PARTITIONS / 2).await;
        Self { shop, second, _alone: alone }
    }

    /// Orders by the second replica that all fail after their deduct: a message each.
    fn burst(&self, name: &str) -> JoinHandle<()> {
        burst(self.shop.of_replica(&self.second), name.to_owned())
    }
}

/// Sends them at once; a replica that dies or stands still answers none of its own.
fn burst(calls: Calls, name: String) -> JoinHandle<()> {
    tokio::spawn(async move {
        let place = |number: usize| {
            let place = calls.place(&[("apple", 1)]).user(&format!("{name}-{number}"));
            place.fault("after-deduct").try_send()
        };
        join_all((0..BURST).map(place)).await;
    })
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

/// SIGKILL while messages are on their way: the other has the dead one's partitions within the
/// session timeout and two seconds, and finishes what it had begun.
pub(crate) async fn c23_long_a_killed_replica_is_replaced(env: Env) {
    let mut pair = Pair::open(env, ["", ""]).await;
    let before = pair.second.process().log().len();
    let bursts = [pair.burst("second"), burst(pair.shop.calls.clone(), "first".into())];
    until(PATIENCE, "the bursts to reach the stock", async || {
        let left = pair.shop.available("apple").await;
        if left < RECEIVED { Ok(()) } else { Err("nothing is deducted") }
    })
    .await;
    pair.shop.order.kill();
    let killed = Instant::now();
    owns(pair.second.process(), before, PARTITIONS).await;
    let took = killed.elapsed();
    println!("taken over {took:?} after SIGKILL");
    assert!(took < SESSION + TAKEOVER + MARGIN, "taken over after {took:?}");
    for burst in bursts {
        burst.await.expect("no panic");
    }
    // What it was doing is settled by the other, which is asked from here on.
    pair.shop.calls = pair.shop.calls.of_replica(&pair.second);
    let books = pair.shop.conservation(QUIET_DEADLINE).await;
    println!("{} delivered, {} orders", books.delivered.len(), books.orders.len());
    assert!(books.delivered.len() >= BURST, "{} delivered", books.delivered.len());
    assert_eq!(books.available["apple"], RECEIVED, "every order failed");
    // Back, it has its part again.
    pair.shop.restart_orders().await;
    owns(pair.second.process(), before, PARTITIONS / 2).await;
    pair.burst("again").await.expect("no panic");
    let books = pair.shop.conservation(QUIET_DEADLINE).await;
    assert!(books.delivered.len() >= 2 * BURST);
}

/// SIGSTOP while messages are on their way, then SIGCONT: what it had in hand was delivered by the
/// other meanwhile, and it delivers none of it again; it is a member again, and works.
pub(crate) async fn c23_long_a_paused_replica_is_fenced(env: Env) {
    let mut pair = Pair::open(env, ["order-svc-1", "order-svc-2"]).await;
    let before = pair.second.process().log().len();
    let bursts = [pair.burst("second"), burst(pair.shop.calls.clone(), "first".into())];
    until(PATIENCE, "the bursts to reach the stock", async || {
        let left = pair.shop.available("apple").await;
        if left < RECEIVED { Ok(()) } else { Err("nothing is deducted") }
    })
    .await;
    pair.shop.order.process().signal("STOP");
    owns(pair.second.process(), before, PARTITIONS).await;
    let second = pair.shop.calls.of_replica(&pair.second);
    let first = std::mem::replace(&mut pair.shop.calls, second);
    pair.burst("meanwhile").await.expect("no panic");
    pair.shop.conservation(QUIET_DEADLINE).await;

    let paused = pair.shop.order.process().log().len();
    let owned = pair.second.process().log().len();
    pair.shop.order.process().signal("CONT");
    owns(pair.shop.order.process(), paused, PARTITIONS / 2).await;
    owns(pair.second.process(), owned, PARTITIONS / 2).await;
    for burst in bursts {
        burst.await.expect("no panic");
    }
    let books = pair.shop.conservation(QUIET_DEADLINE).await;
    assert!(books.delivered.len() >= 2 * BURST, "{} delivered", books.delivered.len());

    // It works: alone, it serves and delivers.
    let paused = pair.shop.order.process().log().len();
    pair.second.kill();
    owns(pair.shop.order.process(), paused, PARTITIONS).await;
    pair.shop.calls = first;
    burst(pair.shop.calls.clone(), "alone".into()).await.expect("no panic");
    let books = pair.shop.conservation(QUIET_DEADLINE).await;
    assert!(books.delivered.len() >= 3 * BURST, "{} delivered", books.delivered.len());
    assert_eq!(books.available["apple"], RECEIVED, "every order failed");
}
