//! A consumer in a process of its own, which is killed as the kernel kills: nothing runs any more,
//! nothing is closed.
//!
//! The process is this test program again, told by its environment to run one test only, which is a
//! consumer then.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use halfmsg_consumer::{Consumer, ConsumerConfig};
use halfmsg_kafka::KafkaConfig;
use halfmsg_service_kit::db::connect;
use tokio_util::sync::CancellationToken;

use super::ground::Ground;
use super::handler::Effects;
use crate::suite::database::patient;
use crate::suite::turns::alone;
use crate::suite::{Env, until};

/// The name of the test that the process runs.
const TEST: &str = "consuming_process";
/// Topic, subscriber, brokers and database, in this order.
const SETTINGS: [&str; 4] = [
    "HALFMSG_TEST_CONSUMING_TOPIC",
    "HALFMSG_TEST_CONSUMING_SUBSCRIBER",
    "HALFMSG_TEST_CONSUMING_BROKERS",
    "HALFMSG_TEST_CONSUMING_DATABASE",
];

/// The messages of the stream.
const MESSAGES: usize = 50_000;
/// How often the consumer is killed in it.
const KILLS: usize = 20;
/// For the whole stream.
const DEADLINE: Duration = Duration::from_secs(600);

/// A consumer process; killed when dropped.
struct Process(Child);

impl Process {
    fn start(ground: &Ground, subscriber: &str) -> Self {
        let program = std::env::current_exe().expect("this program");
        let values = [
            ground.topic.as_str(),
            subscriber,
            &ground.env.kafka().brokers.clone(),
            ground.database_url(),
        ];
        let mut command = Command::new(program);
        command.args(["--exact", TEST, "--nocapture"]).envs(SETTINGS.into_iter().zip(values));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(child.expect("a process"))
    }

    fn kill(&mut self) {
        self.0.kill().expect("it can be killed");
        self.0.wait().expect("it has ended");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Killed twenty times in a stream of 50,000 messages: each is applied once.
pub(crate) async fn c34_long_killed_20_times_in_50000_messages(env: Env) {
    let _alone = alone().await;
    let ground = Ground::new(env).await;
    let subscriber = ground.env.named("subscriber");
    let send_part = async |part: usize| {
        let numbers = (0..MESSAGES / 10).map(|n| n + part * MESSAGES / 10);
        ground.send_all(numbers.map(|n| (format!("k{}", n % 1_000), format!("m{n}")))).await;
    };
    for part in 0..9 {
        send_part(part).await;
    }
    for kill in 1..=KILLS {
        // Whatever the one before has done beyond its share: it is killed at work, not before it began.
        let at_work = count(&ground).await + 1;
        let so_far = at_work.max(MESSAGES * 9 / 10 * kill / (KILLS + 1));
        let mut process = Process::start(&ground, &subscriber);
        until(DEADLINE, &format!("{so_far} effects"), async || {
            let effects = count(&ground).await;
            if effects >= so_far { Ok(()) } else { Err(effects.to_string()) }
        })
        .await;
        process.kill();
    }
    // However late the last kill came, there is something behind it.
    send_part(9).await;
    let process = Process::start(&ground, &subscriber);
    ground.sees_within(MESSAGES, DEADLINE).await;
    drop(process);
    ground.one_each((0..MESSAGES).map(|n| format!("m{n}"))).await;
}

async fn count(ground: &Ground) -> usize {
    use sea_orm::ConnectionTrait;
    use sea_orm::sea_query::{Expr, ExprTrait, Query};
    let mut select = Query::select();
    select.expr_as(Expr::col("seq").count(), "effects").from("effect");
    let row = ground.pool.query_one(&select).await.expect("the table").expect("a row");
    let effects: i64 = row.try_get("", "effects").expect("a number");
    usize::try_from(effects).expect("not negative")
}

/// The other side. Run as a test like others it has no settings, and must refuse to consume.
pub(crate) async fn consuming_process(_: Env) {
    let found = SETTINGS.map(|name| std::env::var(name).ok());
    let [Some(topic), Some(subscriber), Some(brokers), Some(database)] = found else {
        assert!(found.iter().all(Option::is_none), "some settings only: {found:?}");
        return;
    };
    let pool = connect(&database, &patient()).await.expect("the database answers");
    let config = ConsumerConfig {
        // The next one takes the partitions back at once.
        instance_id: Some(format!("{subscriber}.instance")),
        ..ConsumerConfig::new(KafkaConfig::new(brokers), pool, subscriber)
    };
    let consumer = Consumer::builder(config).subscribe(topic, Effects::all());
    consumer.run(CancellationToken::new()).await.expect("it consumes until it is killed");
}
