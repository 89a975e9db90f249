//! Every command of `halfmsg` that README.md and docs/ name in the middle of a sentence or in README.md's table:
//! run on a store and databases that have what it is about, with what it ends with and says. Those in
//! blocks are run as blocks.

use std::collections::BTreeSet;
use std::fs;

use halfmsg_protocol::HEADER;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::Value;

use super::NEVER_MS;
use super::found;
use super::shell::Shell;
use crate::suite::garbage::NEWER;
use crate::suite::services::cli::environment;
use crate::suite::services::operators::park;
use crate::suite::services::shop::Shop;
use crate::suite::services::shop::settled::VOID_DEADLINE;
use crate::suite::topic::{Entry, write};
use crate::suite::turns::alone;
use crate::suite::{Env, PATIENCE, until};

/// A command: as documents have it, what it needs behind that, and what it says. What stands for something of
/// the reader's own is put in, in all three.
type Line = (&'static str, &'static str, &'static [&'static str]);

/// `<id>` is of a parked message.
const OF_A_PARKED_ONE: [Line; 4] = [
    ("halfmsg parked", "", &["<id>"]),
    ("halfmsg show <id>", "", &["<id>", "parked"]),
    ("halfmsg resume <id> --reason …", "", &["<id> is "]),
    ("halfmsg redeliver <id> --force", "--reason 'a second copy'", &["<id> stands again at "]),
];
/// Of an open one whose order stands: its decision was lost.
const OF_AN_OPEN_ONE: [Line; 3] = [
    ("halfmsg pending", "", &["<id>"]),
    ("halfmsg show <transaction id>", "", &["<id>", "stored", "open"]),
    ("halfmsg check <id>", "--reason 'to be sure' --url http://127.0.0.1:8080", &["<id>"]),
];
const OF_ANOTHER: [Line; 1] =
    [("halfmsg rollback", "<id> --force --reason 'its order stands'", &["<id> is rolled_back"])];
/// Of one whose process died.
const OF_A_DEAD_ONE: [Line; 3] = [
    ("halfmsg commit", "<id> --force --reason 'its process died'", &["<id> is committed"]),
    ("halfmsg journal", "", &["<id>", "its process died", "done"]),
    ("halfmsg journal --id <id>", "", &["<id>", "its process died", "done"]),
];
/// `<id>` and `<another>` are dead letters of the subscriber NAME.
const OF_DEAD_LETTERS: [Line; 6] = [
    ("halfmsg dead-letters list", "--subscriber NAME", &["<id>", "<another>"]),
    ("halfmsg dead-letters list --subscriber NAME", "", &["<id>", "<another>"]),
    ("halfmsg dead-letters list --subscriber stock-svc.deductions", "", &["no dead letters"]),
    ("halfmsg dead-letters show", "<id> --subscriber NAME", &["<id>", "not an order"]),
    ("halfmsg dead-letters replay", "<id> --subscriber NAME", &["1 queued"]),
    (
        "halfmsg dead-letters discard",
        "<another> --reason 'garbage' --subscriber NAME",
        &["<another> is discarded"],
    ),
];
const OF_A_FOREIGN_RECORD: [Line; 1] =
    [("halfmsg parked --foreign", "", &["<partition>@<offset>", "it has no halfmsg header"])];
const OF_A_NEWER_RECORD: [Line; 1] = [(
    "halfmsg skip <partition>@<offset>",
    "--reason 'nobody needs it'",
    &["<partition>@<offset> is passed"],
)];
/// Once no replica runs.
const OF_PROGRESS: [Line; 3] = [
    (
        "halfmsg reset-progress <partition> --to end",
        "--reason 'a test' --yes",
        &["done: partition <partition> is replayed from <offset>"],
    ),
    (
        "halfmsg reset-progress <partition> --to <offset>",
        "--reason 'a test' --yes",
        &["done: partition <partition> is replayed from <offset>"],
    ),
    (
        "halfmsg reset-progress <partition> --to start",
        "--reason 'a test' --yes",
        &["done: partition <partition> is replayed from "],
    ),
];
/// What needs nothing but a broker and databases.
const OF_NOTHING: [Line; 7] = [
    ("halfmsg topics --create", "", &["STORE"]),
    ("halfmsg migrate order-svc", "--database-url 'ORDERS'", &["the schema is up to date"]),
    ("halfmsg migrate stock-svc", "--database-url 'STOCK'", &["the schema is up to date"]),
    ("halfmsg completion <shell>", "", &["_halfmsg"]),
    ("halfmsg order-svc --help", "", &["HALFMSG_LISTEN", "HALFMSG_CHECK_AFTER_MS"]),
    ("halfmsg stock-svc --help", "", &["HALFMSG_LISTEN", "HALFMSG_MESSAGES_TOGETHER"]),
    ("halfmsg bench --mode stock", "--runs 1 --deductions 64", &["deductions, 1 sku"]),
];
/// The services themselves: every shop of the tests is these two.
const SERVICES: [&str; 2] = ["halfmsg order-svc", "halfmsg stock-svc"];
/// Commands that are named without all that they need, and which of the above is run for them.
const NAMED: [(&str, &str); 6] = [
    ("halfmsg check", "halfmsg check <id>"),
    ("halfmsg migrate", "halfmsg migrate order-svc"),
    ("halfmsg reset-progress", "halfmsg reset-progress <partition> --to start"),
    ("halfmsg reset-progress <partition> --to …", "halfmsg reset-progress <partition> --to start"),
    ("halfmsg resume", "halfmsg resume <id> --reason …"),
    ("halfmsg skip", "halfmsg skip <partition>@<offset>"),
];

fn lines() -> impl Iterator<Item = &'static Line> {
    let all: [&[Line]; 9] = [
        &OF_A_PARKED_ONE,
        &OF_AN_OPEN_ONE,
        &OF_ANOTHER,
        &OF_A_DEAD_ONE,
        &OF_DEAD_LETTERS,
        &OF_A_FOREIGN_RECORD,
        &OF_A_NEWER_RECORD,
        &OF_PROGRESS,
        &OF_NOTHING,
    ];
    all.into_iter().flatten()
}

/// A new command needs a line above; a line without a command is old.
pub(super) fn are_known() {
    let run: BTreeSet<&str> = lines().map(|(written, ..)| *written).collect();
    assert_eq!(run.len(), lines().count(), "each is run once");
    let mut known = run.clone();
    for (named, line) in &NAMED {
        assert!(run.contains(line), "{named} stands for {line}, which is not run");
        known.insert(named);
    }
    known.extend(SERVICES);
    let documented = found::own();
    let documented: BTreeSet<&str> = documented.iter().map(String::as_str).collect();
    let unknown: Vec<_> = documented.difference(&known).collect();
    assert!(unknown.is_empty(), "no test runs {unknown:?}");
    let old: Vec<_> = known.difference(&documented).collect();
    assert!(old.is_empty(), "no document has {old:?}");
}

/// All of them, in an order in which each finds what it is about.
pub(crate) async fn documented_halfmsg_commands(env: Env) {
    let _alone = alone().await;
    let builder = Shop::builder(env).await.order("HALFMSG_CHECK_AFTER_MS", NEVER_MS);
    let builder = builder.order("HALFMSG_MAX_CHECKS", "1");
    let mut shop = builder.both("HALFMSG_RETRY_LEVELS_MS", "none").open().await;
    are_the_services(&mut shop);
    shop.seed("apple", 100, 50).await;
    of_halves(&mut shop).await;
    of_dead_letters(&shop).await;
    of_nothing(&shop).await;
    of_the_store(&mut shop).await;
}

/// What the shop's processes were started as.
fn are_the_services(shop: &mut Shop) {
    for (service, written) in [&mut shop.order, &mut shop.stock].into_iter().zip(SERVICES) {
        let line = fs::read(format!("/proc/{}/cmdline", service.process().id()));
        let line = String::from_utf8(line.expect("a running process")).expect("text");
        let line = line.trim_end_matches('\0').replace('\0', " ");
        assert!(line.ends_with(written), "{line} is not {written}");
    }
}

async fn of_halves(shop: &mut Shop) {
    let parked = park(shop, "ann").await;
    for line in &OF_A_PARKED_ONE {
        if line.0.starts_with("halfmsg redeliver") {
            assert_eq!(shop.half_ends(&parked).await, "committed");
        }
        run(shop, &[("<id>", &parked)], line).await;
    }
    for (lines, ends) in [(&OF_AN_OPEN_ONE[..], "rolled_back"), (&OF_ANOTHER[..], "rolled_back")] {
        let lost = shop.place(&[("apple", 1)]).fault("decision-lost").send().await.expect(201);
        let lost = lost.transaction_id();
        shop.half_is(&lost, "open").await;
        for line in lines {
            run(shop, &[("<id>", &lost), ("<transaction id>", &lost)], line).await;
        }
        assert_eq!(shop.half_ends(&lost).await, ends);
    }
    shop.place(&[("apple", 2)]).fault("crash-after-deduct").send_and_lose().await;
    shop.survive_crash().await;
    let dead = until(VOID_DEADLINE, "the half message of the dead process", async || {
        let open = shop.halves("open").await?;
        let id = open.first().and_then(|half| half["transaction_id"].as_str());
        id.map(str::to_owned).ok_or("none".to_owned())
    })
    .await;
    for line in &OF_A_DEAD_ONE {
        run(shop, &[("<id>", &dead)], line).await;
    }
    assert_eq!(shop.half_ends(&dead).await, "committed");
}

async fn of_dead_letters(shop: &Shop) {
    let producer: FutureProducer = shop.ground.kafka().producer().create().expect("a producer");
    for _ in 0..2 {
        let topic = &shop.ground.rollback_topic;
        let record: FutureRecord<'_, str, str> = FutureRecord::to(topic).payload("not an order");
        producer.send(record, PATIENCE).await.expect("it is acknowledged");
    }
    let ids = until(VOID_DEADLINE, "two dead letters", async || {
        let list = shop.get_stock("/dead-letters?state=open").await.expect(200).body;
        let id = |letter: &Value| letter["id"].as_str().map(str::to_owned);
        let ids: Vec<_> = list["items"].as_array().into_iter().flatten().filter_map(id).collect();
        <[String; 2]>::try_from(ids).map_err(|ids| format!("{ids:?}"))
    })
    .await;
    let [id, another] = &ids;
    let put_in = [("<id>", id), ("<another>", another), ("NAME", &shop.ground.stock_group)];
    let put_in = put_in.map(|(from, to)| (from, to.as_str()));
    for line in &OF_DEAD_LETTERS {
        run(shop, &put_in, line).await;
    }
}

async fn of_nothing(shop: &Shop) {
    let (orders, stock) = (shop.ground.orders_url(), shop.ground.stock_url());
    let store = shop.ground.group.store_topic();
    let put_in = [("ORDERS", orders.as_str()), ("STOCK", &stock), ("STORE", &store)];
    let put_in = [&put_in[..], &[("<shell>", "bash")]].concat();
    for line in &OF_NOTHING {
        run(shop, &put_in, line).await;
    }
}

async fn of_the_store(shop: &mut Shop) {
    let (store, partition) = (shop.ground.group.store_topic(), 0);
    let foreign = Entry { partition, payload: Some(b"a text".to_vec()), ..Entry::default() };
    let offset = write(&shop.ground.kafka(), &store, &foreign).await.to_string();
    run(shop, &[("<partition>", "0"), ("<offset>", &offset)], &OF_A_FOREIGN_RECORD[0]).await;
    let headers = vec![(HEADER.to_owned(), Some(NEWER.to_vec()))];
    let newer = Entry { partition, headers, ..Entry::default() };
    let offset = write(&shop.ground.kafka(), &store, &newer).await.to_string();
    run(shop, &[("<partition>", "0"), ("<offset>", &offset)], &OF_A_NEWER_RECORD[0]).await;

    shop.order.process().signal("TERM");
    shop.order.process().end(PATIENCE).await;
    // Where the log ends, only its owner knew until now.
    let plan = Shell { environment: environment(shop), ..Shell::with(&[]) };
    let command = "halfmsg reset-progress 0 --to end --reason 'a test' --yes --output json";
    let plan = until(VOID_DEADLINE, "a group that nobody is in", async || {
        let ended = plan.run(command).await;
        let json = ended.said.rfind('}').map_or("", |end| &ended.said[..=end]);
        match (ended.code, serde_json::from_str::<Value>(json)) {
            (Some(0), Ok(plan)) => Ok(plan),
            _ => Err(format!("{ended:?}")),
        }
    })
    .await;
    let end = plan["to"].to_string();
    for line in &OF_PROGRESS {
        run(shop, &[("<partition>", "0"), ("<offset>", &end)], line).await;
    }
}

/// Runs one, until it ends well: a command that is refused has done nothing.
async fn run(shop: &Shop, put_in: &[(&str, &str)], (written, more, says): &Line) {
    let service = shop.order_url("");
    let always =
        [("--reason …", "--reason 'the lock is gone'"), ("http://127.0.0.1:8080", &service)];
    let put_in = [put_in, &always].concat();
    let mut environment = environment(shop);
    if written.contains("dead-letters") {
        environment.push(("DATABASE_URL".into(), shop.ground.stock_url()));
    }
    let shell = Shell { environment, ..Shell::with(&put_in) };
    let command = format!("{written} {more}");
    let wanted = says.iter().map(|part| {
        put_in.iter().fold((*part).to_owned(), |text, (from, to)| text.replace(from, to))
    });
    let wanted: Vec<_> = wanted.collect();
    until(VOID_DEADLINE, &command, async || {
        let ended = shell.run(&command).await;
        let is_there = |part: &String| ended.said.contains(part.as_str());
        if ended.code == Some(0) && wanted.iter().all(is_there) {
            Ok(())
        } else {
            Err(format!("{ended:?}, not {wanted:?}"))
        }
    })
    .await;
}
