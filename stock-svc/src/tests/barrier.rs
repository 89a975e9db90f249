//! The barrier.

use super::support::TestDb;
use crate::scenarios;

#[tokio::test(flavor = "multi_thread")]
async fn c35_the_barrier() {
    scenarios::all(&TestDb::new().await.url).await;
}
