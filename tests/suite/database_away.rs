//! Row 15, on real Kafka and PostgreSQL: a database that is away burns no attempts.

use std::time::Duration;

use async_trait::async_trait;
use halfmsg_migrations::{FenceMigrator, migrate};
use halfmsg_producer::fence::{self, FenceOptions};
use halfmsg_producer::{
    HalfMessage, HalfState, ListenerResult, LocalTransactionState, TransactionListener,
    TransactionProducer,
};
use halfmsg_protocol::Backoff;
use halfmsg_service_kit::db::{DbOptions, connect};
use sea_orm::DatabaseConnection;

use super::database::{Database, Kind, patient};
use super::env::asked_soon;
use super::metrics::metric;
use super::services::proxy::Proxy;
use super::setup::Setup;
use super::told::{Do, PURPOSE};
use super::{Env, PATIENCE, until};

const HALVES: usize = 16;
const MAX_CHECKS: u32 = 3;

/// Answers from the fence table.
struct Fenced(DatabaseConnection);

#[async_trait]
impl TransactionListener for Fenced {
    type Arg = ();

    async fn execute_local_transaction(
        &self,
        _half: &HalfMessage,
        (): (),
    ) -> ListenerResult<LocalTransactionState> {
        Ok(LocalTransactionState::Unknown)
    }

    async fn check_local_transaction(
        &self,
        half: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        fence::check_one(&self.0, half, FenceOptions::default()).await
    }

    async fn check_local_transactions(
        &self,
        halves: &[HalfMessage],
    ) -> Vec<ListenerResult<LocalTransactionState>> {
        fence::check(&self.0, halves, FenceOptions::default()).await
    }
}

/// A pool that reaches the database through a cable that can be cut.
async fn behind_a_proxy(database: &Database) -> (Proxy, DatabaseConnection) {
    let (head, rest) = database.url().rsplit_once('@').expect("an address with a user");
    let (host, name) = rest.split_once('/').expect("an address with a database");
    let proxy = Proxy::to(host).await;
    let url = format!("{head}@127.0.0.1:{}/{name}", proxy.port());
    // One that is away is soon given up; what has a connection is waited for.
    let options = DbOptions { acquire_timeout: Duration::from_millis(500), ..patient() };
    let pool = connect(&url, &options).await.expect("the proxy passes on");
    (proxy, pool)
}

/// The database of the checks is away for longer than all attempts and intervals together, and a
/// replica is stopped and another started meanwhile: nothing is parked, all of it is shown, and when
/// the database is back each half is decided as its local transaction ended.
pub(crate) async fn c15_a_database_that_is_away_burns_no_attempts(env: Env) {
    let mut config = env.group().await;
    config.check_backoff =
        Backoff { initial: Duration::from_millis(50), max: Duration::from_millis(200) };
    config.max_checks = MAX_CHECKS;
    let database = Database::new(Kind::Postgres).await;
    let db = database.connect(&patient()).await;
    migrate::<FenceMigrator>(&db).await.expect("the schema can be made");
    let (proxy, checks) = behind_a_proxy(&database).await;
    let mut setup = Setup::with(env, config, Do::Unknown).await;
    let start = async |setup: &Setup| {
        let builder = TransactionProducer::builder(setup.config.clone());
        builder.listener(PURPOSE, Fenced(checks.clone())).start().await.expect("it starts")
    };
    setup.producer.shutdown().await;
    setup.producer = start(&setup).await;
    setup.ready().await;
    let halves = setup.leave_open(0..HALVES).await;
    for half in halves.iter().step_by(2) {
        let tx = fence::begin_write(&db).await.expect("this pool has its own way");
        fence::enter_in_tx(&tx, half.transaction_id).await.expect("no check was made yet");
        tx.commit().await.expect("it answers");
    }
    proxy.cut();
    // From now on they are asked about.
    setup.producer.shutdown().await;
    setup.config = asked_soon(setup.config);
    setup.producer = start(&setup).await;
    setup.ready().await;
    in_vain(&setup).await;
    setup.producer.shutdown().await;
    setup.producer = start(&setup).await;
    setup.ready().await;
    in_vain(&setup).await;
    // Brokers alone tell it as well: a person looks while the service is down.
    let wanted = format!("the checks of {HALVES} open");
    until(PATIENCE, "a warning about all of them", async || {
        let warnings = setup.producer.warnings();
        let is_told = warnings.iter().any(|warning| warning.contains(&wanted));
        if is_told { Ok(()) } else { Err(format!("{warnings:?}")) }
    })
    .await;
    proxy.mend().await;
    setup.none_open().await;
    until(PATIENCE, "no warning any more", async || match setup.producer.warnings() {
        none if none.is_empty() => Ok(()),
        warnings => Err(format!("{warnings:?}")),
    })
    .await;
    setup.listed(HalfState::Parked, 0).await;
    setup.ends_with((0..HALVES).step_by(2)).await;
}

/// Every half is asked about more often than attempts are allowed.
async fn in_vain(setup: &Setup) {
    let least = HALVES as u64 * u64::from(MAX_CHECKS + 2);
    until(PATIENCE, "many checks to fail", async || {
        match metric(&setup.producer, "halfmsg_checks_total{outcome=\"failed\"}") {
            failed if failed >= least => Ok(()),
            failed => Err(format!("{failed} did")),
        }
    })
    .await;
    until(PATIENCE, "each half to be shown as failing", async || {
        let open = setup.list(HalfState::Open).await.map_err(|error| error.to_string())?;
        let failing = open.iter().filter(|half| half.failing_since.is_some()).count();
        if failing == HALVES { Ok(()) } else { Err(format!("{open:#?}")) }
    })
    .await;
    for half in setup.listed(HalfState::Open, HALVES).await {
        assert_eq!(half.attempts, 0, "{half:?}");
        let outcome = half.last_outcome.expect("it is told");
        assert!(outcome.starts_with("failed: the database of the fence is"), "{outcome}");
    }
    setup.listed(HalfState::Parked, 0).await;
    // New messages can be taken.
    setup.ready().await;
}
