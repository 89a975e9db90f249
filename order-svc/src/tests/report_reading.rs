//! What keeps the report from being kept is told while its consumer runs.

use halfmsg_consumer::{ConsumerConfig, ConsumerFamilies};
use halfmsg_kafka::EmbeddedBroker;
use halfmsg_service_kit::Letters;
use tokio_util::sync::CancellationToken;

use super::support::{TestDb, until};
use crate::metrics::OrderMetrics;
use crate::place::Topics;
use crate::report::Reporter;
use crate::report::store::ReportStore;
use crate::report::trouble::Trouble;

/// A broker that is away, here; a right that is missing is told by the same health.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_consumer_of_the_report_waits_for_is_told() {
    let db = TestDb::new().await;
    let connection = db.patient().await;
    let broker = EmbeddedBroker::start().unwrap();
    let [rollback, created, outbound] = ["rollback", "created", "outbound"].map(str::to_owned);
    for topic in [&rollback, &created, &outbound] {
        broker.create_topic(topic, 1).unwrap();
    }
    let trouble = Trouble::default();
    let reporter = Reporter {
        consumer: ConsumerConfig::new(broker.config(), connection.clone(), "report"),
        families: ConsumerFamilies::default(),
        topics: Topics { rollback, created, outbound },
        store: ReportStore::new(connection),
        metrics: OrderMetrics::default(),
        letters: Letters::default(),
        trouble: trouble.clone(),
    };
    broker.stop().unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(reporter.run(stop.clone()));
    until("it is told", async || {
        trouble.warnings().iter().any(|told| told.contains("falls behind")).then_some(())
    })
    .await;
    broker.resume().unwrap();
    until("it is over", async || trouble.warnings().is_empty().then_some(())).await;
    stop.cancel();
    running.await.unwrap();
}
