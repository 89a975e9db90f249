//! Pages of orders.

use tokio::time::Instant;

use super::support::{TestDb, apples, transaction};
use crate::draft::{Draft, Prices};
use crate::model::{Order, OrderId, OrderStatus};
use crate::store::list::OrderFilter;

#[tokio::test]
async fn pages_are_complete_newest_first_and_stay_so_while_orders_come() {
    let db = TestDb::new().await;
    let store = db.store().await;
    let moment = halfmsg_service_kit::db::now();
    let mut ids = Vec::new();
    for n in 0..7 {
        let draft = Draft::new(OrderId::generate(), transaction(), &apples(1));
        let order = draft.standing(&Prices::from([("apple".to_owned(), 1)])).unwrap();
        // Some share their moment, so that the id must tell them apart.
        let created_at = moment + chrono::TimeDelta::microseconds(n / 3);
        store.insert_order(&Order { created_at, ..order }, Instant::now()).await.unwrap();
        ids.push(draft.id);
    }
    let mut filter = OrderFilter { status: None, before: None, limit: 2, after: None };
    let mut seen = Vec::new();
    loop {
        let page = store.list(filter).await.unwrap();
        assert!(page.orders.len() <= 2);
        seen.extend(page.orders.iter().map(|order| (order.created_at, order.id)));
        if seen.len() == 2 {
            let late = Draft::new(OrderId::generate(), transaction(), &apples(1));
            let void = late.void("fenced".into(), None, false);
            let created_at = moment + chrono::TimeDelta::hours(1);
            store.write_void(&Order { created_at, ..void }).await.unwrap();
        }
        let Some(next) = page.next else { break };
        filter.after = Some(next);
    }
    assert!(seen.is_sorted_by(|a, b| (b.0, a.1) < (a.0, b.1)), "{seen:?}");
    let mut found: Vec<_> = seen.into_iter().map(|(_, id)| id).collect();
    found.sort();
    ids.sort();
    assert_eq!(found, ids);

    let void =
        OrderFilter { status: Some(OrderStatus::Void), before: None, limit: 10, after: None };
    let page = store.list(void).await.unwrap();
    assert_eq!((page.orders.len(), page.next), (1, None));
    assert_eq!(page.orders[0].items[0].sku, "apple");
}
