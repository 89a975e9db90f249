//! stock-svc's database work: deductions that share a transaction beside one transaction each, and
//! restores in transactions of a consumer's batch beside one each, without the consumer itself.
//!
//! Both sides of a pair run one right after the other, in turns of who is first, on products of their
//! own; the ratio is that of the same round. Every run ends with a look at what is left: a deduction
//! that was lost or doubled fails it. Kafka is not needed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use halfmsg_migrations::{StockMigrator, migrate};
use halfmsg_service_kit::db::{DbOptions, connect};
use serde::Serialize;
use stock_svc::group_commit::{DEFAULT_ORDERS, GroupCommit};
use stock_svc::metrics::StockMetrics;
use stock_svc::model::{Item, Items};
use stock_svc::store::StockStore;
use stock_svc::store::barrier::{Deduct, DeductRequest, Restore, RestoreRequest};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::BenchArgs;
use super::report::{Latency, Spread};

/// Callers at once, but for the case of a single one.
const CALLERS: usize = 64;
/// Products of the case without a hot one.
const SKUS: usize = 100;
/// A single caller, and restores without a batch, have one transaction after the other: this part of
/// the work is enough to measure them.
const SLOW_PART: u64 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Case {
    /// One product, many callers.
    Hot,
    /// Many products, many callers.
    Spread,
    /// One product, one caller: what waiting for company would cost.
    Single,
    /// Restores, by one consumer.
    Restores,
}

const CASES: [Case; 4] = [Case::Hot, Case::Spread, Case::Single, Case::Restores];

impl Case {
    fn text(self, messages: usize) -> String {
        match self {
            Self::Hot => format!("deductions, 1 sku, {CALLERS} callers"),
            Self::Spread => format!("deductions, {SKUS} skus, {CALLERS} callers"),
            Self::Single => "deductions, 1 sku, 1 caller".into(),
            Self::Restores => format!("restores, {SKUS} skus, batches of {messages}"),
        }
    }
}

/// One side of a pair.
#[derive(Debug, Clone, Copy, Serialize)]
struct Run {
    case: Case,
    together: bool,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// Every run of an invocation.
#[derive(Debug, Default, Serialize)]
struct Runs {
    database: String,
    /// Restores of a transaction.
    messages: usize,
    runs: Vec<Run>,
}

/// Runs all rounds and prints.
pub(super) async fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let directory = tempfile::tempdir().context("a directory for SQLite")?;
    let url = match args.database_url.as_str() {
        "" => format!("sqlite://{}", directory.path().join("bench.db").display()),
        url => url.to_owned(),
    };
    let database = connect(&url, &DbOptions::default()).await?;
    migrate::<StockMigrator>(&database).await.context("the schema")?;
    let store = StockStore::new(database);
    let mut runs = Runs {
        database: format!("{:?}", store.backend()),
        messages: args.messages.max(1),
        runs: Vec::new(),
    };
    for round in 1..=args.runs {
        for case in CASES {
            let first = round % 2 == 0;
            for together in [first, !first] {
                let run = measure(&store, case, together, args)
                    .await
                    .with_context(|| format!("round {round}, {case:?}, together: {together}"))?;
                eprintln!("round {round}: {case:?}, together {together}: {:.0}/s", run.per_second);
                runs.runs.push(run);
            }
        }
    }
    match args.output {
        super::Output::Table => print!("{runs}"),
        super::Output::Json => println!("{}", serde_json::to_string_pretty(&runs)?),
    }
    Ok(())
}

async fn measure(
    store: &StockStore,
    case: Case,
    together: bool,
    args: &BenchArgs,
) -> anyhow::Result<Run> {
    let deductions = args.deductions;
    let skus = if case == Case::Hot || case == Case::Single { 1 } else { SKUS };
    let count = if case == Case::Single { deductions.div_ceil(SLOW_PART) } else { deductions };
    let shop = Shop::open(store, skus, count).await?;
    let (took, mut latencies) = match case {
        Case::Restores => {
            let mut orders = shop.deduct(true, CALLERS).await?.orders;
            if !together {
                orders.truncate(orders.len().div_ceil(SLOW_PART as usize));
            }
            shop.restore(orders, if together { args.messages.max(1) } else { 1 }).await?
        }
        case => {
            let callers = if case == Case::Single { 1 } else { CALLERS };
            let done = shop.deduct(together, callers).await?;
            shop.assert_left(0).await?;
            (done.took, done.latencies)
        }
    };
    latencies.sort();
    let done: u64 = latencies.len() as u64;
    let Latency { p50_ms, p99_ms, .. } = Latency::of(0, &latencies);
    Ok(Run { case, together, per_second: done as f64 / took.as_secs_f64(), p50_ms, p99_ms })
}

/// Products of a run of its own, with one piece for each deduction.
struct Shop {
    store: StockStore,
    skus: Vec<String>,
    count: u64,
}

struct Deducted {
    took: Duration,
    latencies: Vec<Duration>,
    orders: Vec<Uuid>,
}

impl Shop {
    async fn open(store: &StockStore, skus: usize, count: u64) -> anyhow::Result<Self> {
        // Of two ids of a moment the first parts are the same: this one takes the random part.
        let name = Uuid::now_v7().simple().to_string();
        let skus: Vec<String> = (0..skus).map(|number| format!("{name}-{number}")).collect();
        for (number, sku) in skus.iter().enumerate() {
            store.put_product(sku, "bench", 1).await?;
            let share = count / skus.len() as u64;
            let more = u64::from((number as u64) < count % skus.len() as u64);
            if share + more > 0 {
                store.receive(sku, "bench", i64::try_from(share + more)?).await?;
            }
        }
        Ok(Self { store: store.clone(), skus, count })
    }

    async fn deduct(&self, together: bool, callers: usize) -> anyhow::Result<Deducted> {
        let orders = if together { DEFAULT_ORDERS } else { 1 };
        let group = GroupCommit::new(self.store.clone(), StockMetrics::default(), orders);
        let (next, began) = (Arc::new(AtomicU64::new(0)), Instant::now());
        let mut tasks = JoinSet::new();
        for _ in 0..callers {
            let (group, next) = (group.clone(), Arc::clone(&next));
            let (skus, count) = (self.skus.clone(), self.count);
            tasks.spawn(async move { call(&group, &next, &skus, count).await });
        }
        let (mut latencies, mut orders) = (Vec::new(), Vec::new());
        while let Some(ended) = tasks.join_next().await {
            for (order, latency) in ended?? {
                orders.push(order);
                latencies.push(latency);
            }
        }
        Ok(Deducted { took: began.elapsed(), latencies, orders })
    }

    async fn restore(
        &self,
        orders: Vec<Uuid>,
        batch: usize,
    ) -> anyhow::Result<(Duration, Vec<Duration>)> {
        let (began, mut latencies) = (Instant::now(), Vec::new());
        for part in orders.chunks(batch) {
            let request = |order_id: &Uuid| RestoreRequest {
                order_id: *order_id,
                skus: Vec::new(),
                reason: Some("bench".into()),
            };
            let requests: Vec<_> = part.iter().map(request).collect();
            let asked = Instant::now();
            let done = self.store.restore(&requests).await?;
            ensure!(done.iter().all(|one| matches!(one, Restore::Restored(_))), "{done:?}");
            latencies.extend(part.iter().map(|_| asked.elapsed()));
        }
        let took = began.elapsed();
        self.assert_left(orders.len() as u64).await?;
        Ok((took, latencies))
    }

    async fn assert_left(&self, expected: u64) -> anyhow::Result<()> {
        let mut left = 0;
        for sku in &self.skus {
            let product = self.store.product(sku).await?.context("a product is gone")?;
            left += product.available;
        }
        ensure!(left == i64::try_from(expected)?, "{left} pieces are left instead of {expected}");
        Ok(())
    }
}

async fn call(
    group: &GroupCommit,
    next: &AtomicU64,
    skus: &[String],
    count: u64,
) -> anyhow::Result<Vec<(Uuid, Duration)>> {
    let mut done = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= count {
            return Ok(done);
        }
        let sku = skus[usize::try_from(number)? % skus.len()].clone();
        let items = Items::new(vec![Item { sku, quantity: 1 }])
            .map_err(|error| anyhow::anyhow!("{}", error.body()))?;
        let order_id = Uuid::now_v7();
        let asked = Instant::now();
        let answer = group
            .deduct(DeductRequest { order_id, items, induced: false, transaction_id: None })
            .await?;
        ensure!(answer == Deduct::Deducted { before: false }, "{answer:?}");
        done.push((order_id, asked.elapsed()));
    }
}

impl Runs {
    fn of(&self, case: Case, together: bool) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.case == case && run.together == together)
    }
}

impl fmt::Display for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; median (least..most) of the runs", self.database)?;
        for case in CASES {
            writeln!(f, "\n{} ({} runs)", case.text(self.messages), self.of(case, true).count())?;
            for (name, together) in [("one transaction each", false), ("together", true)] {
                let rate = Spread::of(self.of(case, together).map(|run| run.per_second));
                let p50 = Spread::of(self.of(case, together).map(|run| run.p50_ms));
                let p99 = Spread::of(self.of(case, together).map(|run| run.p99_ms));
                let (rate, p50) = (Spread::text(rate, 0), Spread::text(p50, 2));
                let p99 = Spread::text(p99, 2);
                writeln!(f, "  {name:<22}{rate}/s, p50 ms {p50}, p99 ms {p99}")?;
            }
            let pairs = self.of(case, true).zip(self.of(case, false));
            let ratio = Spread::of(pairs.map(|(one, other)| one.per_second / other.per_second));
            writeln!(f, "  {:<22}{}", "ratio", Spread::text(ratio, 2))?;
        }
        Ok(())
    }
}
