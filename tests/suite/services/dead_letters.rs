//! What stock-svc has given up on, seen and settled from the command line.

use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::Value;

use super::cli::{Ended, environment, run};
use super::shop::Shop;
use crate::suite::{Env, PATIENCE, until};

/// Nothing that can be restored.
const PAYLOADS: [&str; 2] = ["{\"order_id\":7}", "[]"];

/// Listed, shown, replayed in vain by the running service, discarded; and the exit codes.
pub(crate) async fn cli_settles_dead_letters(env: Env) {
    let mut shop = Shop::open(env).await;
    let mut environment = environment(&shop);
    environment.push(("DATABASE_URL".into(), shop.ground.stock_url()));
    let subscriber = shop.ground.stock_group.clone();
    let command = async |arguments: &[&str]| -> Ended {
        let place = ["--subscriber", &subscriber, "--output", "json"];
        run(&environment, &[&["dead-letters"], arguments, &place].concat()).await
    };
    let producer: FutureProducer = shop.ground.kafka().producer().create().expect("a producer");
    for payload in PAYLOADS {
        let record: FutureRecord<'_, str, str> =
            FutureRecord::to(&shop.ground.rollback_topic).payload(payload);
        producer.send(record, PATIENCE).await.expect("it is acknowledged");
    }
    let listed = async |filter: &[&str], count: usize, attempts: i64| -> Vec<Value> {
        until(PATIENCE, "the dead letters", async || {
            let list = command(&[&["list"], filter].concat()).await.expect(0).json();
            let items = list["items"].as_array().expect("a list").clone();
            let seen = items.iter().all(|one| one["attempts"].as_i64() >= Some(attempts));
            if items.len() == count && seen { Ok(items) } else { Err(list.to_string()) }
        })
        .await
    };
    let letters = listed(&[], 2, 1).await;
    assert!(letters.iter().all(|letter| letter.get("payload").is_none()), "{letters:?}");
    let id = letters[0]["id"].as_str().expect("an id").to_owned();
    let shown = command(&["show", &id]).await.expect(0).json();
    assert_eq!(shown["state"], "open");
    assert!(PAYLOADS.map(Value::from).contains(&shown["payload"]), "{shown}");
    let queued = command(&["replay", "--cause", "decoded", "--rate", "50"]).await.expect(0).json();
    assert_eq!(queued["queued"], 2);
    listed(&["--state", "open"], 2, 2).await;
    // What is queued while the service is down waits for it.
    shop.stock.kill();
    assert_eq!(command(&["replay", &id]).await.expect(0).json()["queued"], 1);
    command(&["discard", &id, "--reason", "x"]).await.expect(4);
    shop.restart_stock().await;
    listed(&["--state", "open"], 2, 2).await;
    let done = command(&["discard", &id, "--reason", "garbage"]).await.expect(0).json();
    assert_eq!(done["discard_reason"], "garbage");
    command(&["replay", &id]).await.expect(4);
    listed(&["--state", "discarded"], 1, 3).await;
    let unknown = "01985f2e-7c1a-7f00-8000-000000000000";
    command(&["show", unknown]).await.expect(3);
    command(&["discard", unknown, "--reason", "x"]).await.expect(3);
    for wrong in [&["replay"][..], &["replay", &id, "--all"], &["discard", &id, "--reason", " "]] {
        command(wrong).await.expect(2);
    }
}
