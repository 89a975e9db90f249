//! What the log says of an answer that tells its client nothing: whose it was.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use sea_orm::ConnectionTrait;

use super::support::{Shop, transaction};
use crate::model::OrderId;
use crate::place::order_problem;
use crate::store::StoreError;

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
    let shop = Shop::open().await;
    let placed = shop.order(1, &[]).await;
    let (id, transaction) = (placed.text("id"), placed.text("transaction_id"));
    let database = shop.db.patient().await;
    // As a later version may write it.
    let unchecked = match shop.db.is_sqlite() {
        true => "PRAGMA ignore_check_constraints = ON",
        false => "ALTER TABLE orders DROP CONSTRAINT orders_status_check",
    };
    let melt = format!("{unchecked}; UPDATE orders SET status = 'melted'");
    database.execute_unprepared(&melt).await.unwrap();
    let lines = Lines::default();
    let guard = lines.listen();
    let cancel = Request::post(format!("/orders/{id}/cancel")).body(Body::empty()).unwrap();
    for (what, answer) in [
        ("shown", shop.get(&format!("/orders/{id}")).await),
        ("cancelled", shop.call(cancel).await),
        ("listed", shop.get("/orders").await),
    ] {
        assert_eq!((answer.status, answer.text("code")), (500, "internal_error"), "{what}");
        let line = lines.only(&[&format!("error_id={}", answer.text("error_id"))]);
        assert!(line.contains(&format!("order_id={id}")), "{what}: {line}");
        assert!(line.contains(&format!("transaction_id={transaction}")), "{what}: {line}");
        assert_eq!(answer.text("order_id"), id, "{what}");
    }
    drop(guard);
    shop.service.stop().await;
}

#[test]
fn a_database_that_is_away_is_logged_with_the_order() {
    let (lines, id, transaction) = (Lines::default(), OrderId::generate(), transaction());
    let guard = lines.listen();
    let problem = order_problem(id, Some(transaction), StoreError::TimedOut(Duration::ZERO));
    drop(guard);
    assert_eq!(problem.status(), 503);
    lines.only(&[&format!("order_id={id}"), &format!("transaction_id={transaction}")]);
}
