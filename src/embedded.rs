//! The demonstration: an in-process broker, SQLite in a temporary directory, both services as child
//! processes. One command, a Rust toolchain, nothing else.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use halfmsg_kafka::EmbeddedBroker;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::banner::{Places, banner};
use crate::child::{Service, supervise};
use crate::health;

/// Both services are ready within this, or it fails.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Partitions of each topic.
const PARTITIONS: i32 = 4;
/// Everything that the services talk by: the in-process broker makes no topic by itself.
const TOPICS: [&str; 5] = [
    "halfmsg.order-svc.store",
    "halfmsg.order-svc.parked",
    "stock.rollback",
    "order.created",
    "stock.outbound",
];
/// The demonstration's stock.
const SEED: &str = "apple=100,banana=50,cherry=10";

/// Settings of the demonstration.
#[derive(clap::Args)]
pub(crate) struct EmbeddedArgs {
    /// The port of order-svc; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    order_port: u16,
    /// The port of stock-svc; 0 takes a free one
    #[arg(long, default_value_t = 8081)]
    stock_port: u16,
}

/// Runs it until Ctrl-C or SIGTERM.
///
/// # Errors
/// A port that is taken, a service that does not start or dies again and again.
pub(crate) async fn run(args: EmbeddedArgs) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("watching for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    let broker = EmbeddedBroker::start().context("starting the in-process broker")?;
    for topic in TOPICS {
        broker.create_topic(topic, PARTITIONS).with_context(|| format!("creating {topic}"))?;
    }
    let directory = tempfile::Builder::new()
        .prefix("halfmsg-")
        .tempdir()
        .context("making a temporary directory")?;
    let places = Places {
        order: address("--order-port", args.order_port)?,
        stock: address("--stock-port", args.stock_port)?,
        kafka: broker.config().brokers,
        token: std::env::var("HALFMSG_ADMIN_TOKEN")
            .ok()
            .filter(|token| !token.is_empty())
            .unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string()),
    };
    let stop = CancellationToken::new();
    let mut children = JoinSet::new();
    for service in services(&places, directory.path()) {
        children.spawn(supervise(service, stop.clone()));
    }
    let ended = tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        failed = serve(&places, &mut children) => failed,
    };
    stop.cancel();
    tokio::select! {
        // The second Ctrl-C does not wait for anything: dropping the children kills them.
        _ = interrupt.recv() => {}
        () = async { while children.join_next().await.is_some() {} } => {}
    }
    ended
}

/// Waits until the services answer, says so, and goes on until a child gives up.
async fn serve(places: &Places, children: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    let gave_up = async {
        match children.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(error)) => Err(error).context("a supervisor failed"),
            None => Ok(()),
        }
    };
    let announce = async {
        for address in [places.stock, places.order] {
            ready(&format!("http://{address}/health/ready")).await?;
        }
        println!("{}", banner(places));
        std::future::pending::<anyhow::Result<()>>().await
    };
    tokio::select! {
        result = gave_up => result,
        result = announce => result,
    }
}

async fn ready(url: &str) -> anyhow::Result<()> {
    let until = Instant::now() + READY_DEADLINE;
    loop {
        match health::ask(url, Duration::from_secs(1)).await {
            Ok(()) => return Ok(()),
            Err(problem) if Instant::now() > until => {
                bail!("{url} was not ready within {} s: {problem}", READY_DEADLINE.as_secs());
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn services(places: &Places, directory: &Path) -> [Service; 2] {
    let common = |listen: SocketAddr, database: &str| {
        vec![
            ("KAFKA_BROKERS", places.kafka.clone()),
            ("DATABASE_URL", format!("sqlite://{}", directory.join(database).display())),
            ("HALFMSG_LISTEN", listen.to_string()),
            ("HALFMSG_EMBEDDED", "on".to_owned()),
            ("HALFMSG_FAULTS", "on".to_owned()),
            ("HALFMSG_ADMIN_TOKEN", places.token.clone()),
            ("HALFMSG_TOPIC_PREFIX", "halfmsg".to_owned()),
        ]
    };
    let mut stock = common(places.stock, "stock.db");
    stock.push(("HALFMSG_SEED", SEED.to_owned()));
    let mut order = common(places.order, "orders.db");
    order.push(("HALFMSG_GROUP", "order-svc".to_owned()));
    order.push(("STOCK_URL", format!("http://{}", places.stock)));
    [
        Service { name: "stock-svc", environment: stock },
        Service { name: "order-svc", environment: order },
    ]
}

/// The loopback address of a port that is free now.
fn address(flag: &str, port: u16) -> anyhow::Result<SocketAddr> {
    let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = TcpListener::bind(wanted).with_context(|| {
        format!("port {port} cannot be listened on; choose another with {flag}")
    })?;
    listener.local_addr().context("the address of a port")
}
