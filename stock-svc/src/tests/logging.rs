//! What the log says of an answer that tells its client nothing: whose it was.

use std::io;
use std::sync::{Arc, Mutex};

use sea_orm::ConnectionTrait;
use serde_json::json;
use uuid::Uuid;

use super::http::World;

/// The lines that this thread logs.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    /// The only one that has all of these.
    fn only(&self, parts: &[&str]) -> String {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let of = |line: &&str| parts.iter().all(|part| line.contains(part));
        let found: Vec<_> = text.lines().filter(of).map(str::to_owned).collect();
        assert_eq!(found.len(), 1, "{parts:?} in {text}");
        found[0].clone()
    }

    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let writer = self.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
        tracing::subscriber::set_default(log.finish())
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Its `error_id` leads from the answer to the line, and the line to the order. All on one thread,
/// which is the one that is listened to.
#[tokio::test]
async fn a_row_that_cannot_be_read_is_logged_with_its_order() {
    let (world, order) = (World::seeded().await, Uuid::now_v7());
    let too_many = json!([{"sku": "apple", "quantity": 1_000}]);
    assert_eq!(world.deduct(order, too_many.clone()).await.status, 409);
    // As a later version may write it.
    world.database.execute_unprepared("UPDATE deduction SET reason = 'melted'").await.unwrap();
    let lines = Lines::default();
    let _guard = lines.listen();
    let answer = world.deduct(order, too_many).await;
    assert_eq!((answer.status, &answer.body["code"]), (500, &json!("internal_error")));
    assert_eq!(answer.body["order_id"], json!(order));
    let error_id = answer.body["error_id"].as_str().unwrap();
    let line = lines.only(&["internal error", &format!("error_id={error_id}")]);
    assert!(line.contains(&format!("order_id={order}")), "{line}");
}

#[tokio::test]
async fn a_database_that_is_away_is_logged_with_the_order() {
    let (world, order) = (World::seeded().await, Uuid::now_v7());
    world.database.clone().close().await.unwrap();
    let lines = Lines::default();
    let _guard = lines.listen();
    let answer = world.deduct(order, json!([{"sku": "apple", "quantity": 1}])).await;
    assert_eq!((answer.status, &answer.body["code"]), (503, &json!("database_unavailable")));
    assert_eq!(answer.body["order_id"], json!(order));
    lines.only(&["WARN", &format!("order_id={order}")]);
}
