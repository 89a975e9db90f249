//! `GET /events`: what is told, what is told again, and what ends it.

use std::time::Duration;

use reqwest::Response;
use serde_json::{Map, Value};

use super::shop::Shop;
use crate::suite::{Env, PATIENCE};

/// One order on the stream, from its half message to its end.
const CONFIRMED: [&str; 4] = ["half_stored", "order", "local_transaction", "decided"];
/// The bound of the service.
const WATCHERS: usize = 64;
/// A stop lets no watcher hold it up.
const STOP_DEADLINE: Duration = PATIENCE;

/// A watcher's connection.
pub(super) struct Watching {
    answer: Response,
    rest: String,
    last_id: String,
}

/// An event as it was told.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Told {
    id: String,
    pub(super) name: String,
    data: Value,
    /// All of it, as the document's schema has an event.
    pub(super) fields: Value,
}

impl Watching {
    pub(super) async fn from(shop: &Shop, last_id: Option<&str>) -> Self {
        let answer = Self::ask(shop, last_id).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Self { answer, rest: String::new(), last_id: String::new() }
    }

    async fn ask(shop: &Shop, last_id: Option<&str>) -> Response {
        let mut request = shop.http.get(shop.order_url("/events"));
        if let Some(id) = last_id {
            request = request.header("Last-Event-ID", id);
        }
        request.send().await.expect("order-svc answers")
    }

    /// The next event; nothing if the service has ended the stream.
    pub(super) async fn next(&mut self) -> Option<Told> {
        loop {
            while let Some((frame, rest)) = self.rest.split_once("\n\n") {
                let told = Told::parse(frame);
                self.rest = rest.to_owned();
                if let Some(told) = told {
                    self.last_id.clone_from(&told.id);
                    return Some(told);
                }
            }
            let piece = tokio::time::timeout(PATIENCE, self.answer.chunk()).await;
            let piece = piece.expect("an event or a heartbeat").ok().flatten()?;
            self.rest.push_str(&String::from_utf8_lossy(&piece));
        }
    }

    /// Reads until an event of this name comes, and gives all up to it.
    async fn until(&mut self, name: &str) -> Vec<Told> {
        self.until_one(name, |_| true).await
    }

    /// The same, until one of this name about which this is so.
    async fn until_one(&mut self, name: &str, wanted: impl Fn(&Told) -> bool) -> Vec<Told> {
        let mut told = Vec::new();
        loop {
            let event = self.next().await.unwrap_or_else(|| panic!("no {name} came: {told:?}"));
            let is_last = event.name == name && wanted(&event);
            told.push(event);
            if is_last {
                return told;
            }
        }
    }
}

/// The complete events of a stream as its schema has them: the list of their fields.
pub(crate) fn fields_of_all(stream: &str) -> Value {
    let complete = stream.rsplit_once("\n\n").map_or("", |(complete, _)| complete);
    let events = complete.split("\n\n").filter(|block| block.contains("data: "));
    events.map(fields).collect()
}

fn fields(block: &str) -> Value {
    let fields = block.lines().filter_map(|line| line.split_once(": "));
    fields.map(|(name, value)| (name.to_owned(), Value::from(value))).collect::<Map<_, _>>().into()
}

impl Told {
    /// A comment, or what has no data, is none.
    fn parse(frame: &str) -> Option<Self> {
        let field =
            |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let data = serde_json::from_str(field("data")?).expect("data are JSON");
        let (id, name) = (field("id")?.to_owned(), field("event")?.to_owned());
        Some(Self { id, name, data, fields: fields(frame) })
    }
}

/// The life of an order in its order; who comes back hears what it missed, and after a restart is
/// told to read the lists.
pub(crate) async fn events_are_told_and_told_again(env: Env) {
    let mut shop = Shop::open(env).await;
    shop.seed("apple", 100, 10).await;
    let mut watching = Watching::from(&shop, None).await;
    let hello = watching.next().await.expect("a greeting");
    assert_eq!((hello.name.as_str(), &hello.data["faults"]), ("hello", &Value::Bool(true)));
    let order = shop.place(&[("apple", 1)]).send().await.expect(201).body;
    let of_order = |told: &Told| told.data["order_id"] == order["id"];
    let all = watching.until_one("dropped", of_order).await;
    let held_up = shop.held_up();
    let was_held_up =
        |told: &Told| held_up.iter().any(|id| told.data["order_id"] == id.to_string());
    let told: Vec<_> = all.iter().filter(|told| !was_held_up(told)).collect();
    let names: Vec<_> = told.iter().map(|told| told.name.as_str()).collect();
    for name in CONFIRMED {
        assert!(names.contains(&name), "{names:?}");
    }
    assert_eq!(names[0], "half_stored");
    for event in &told {
        assert_eq!(event.data["order_id"], order["id"], "{event:?}");
        assert_eq!(event.data["transaction_id"], order["transaction_id"], "{event:?}");
    }
    let decided = told.iter().find(|told| told.name == "decided").expect("a decision");
    assert_eq!(
        (&decided.data["by"], &decided.data["verdict"]),
        (&"producer".into(), &"rollback".into())
    );

    // From the greeting on, everything once more, byte for byte.
    let mut again = Watching::from(&shop, Some(&hello.id)).await;
    assert_eq!(again.next().await.expect("a greeting").name, "hello");
    assert_eq!(again.until_one("dropped", of_order).await, all);

    let last_id = watching.last_id.clone();
    drop((watching, again));
    shop.place(&[("apple", 1)]).fault("crash-after-deduct").send_and_lose().await;
    shop.order.check_soon();
    shop.survive_crash().await;
    let mut after = Watching::from(&shop, Some(&last_id)).await;
    let reset = after.next().await.expect("a reset");
    assert_eq!((reset.name.as_str(), &reset.data["reason"]), ("reset", &"other_process".into()));
    let told = after.until("delivered").await;
    // The first order's may be told again: its owner died before it stored how far it was.
    let dead = &told.last().expect("a delivery").data["transaction_id"];
    let told: Vec<_> = told.iter().filter(|told| told.data["transaction_id"] == *dead).collect();
    let decided = told.iter().find(|told| told.name == "decided").expect("a decision");
    assert_eq!(decided.data["by"], "check-back", "{told:?}");
    assert!(told.iter().any(|told| told.name == "checked"), "{told:?}");
    assert!(told.iter().any(|told| told.data["status"] == "void"), "{told:?}");
}

/// There is a bound on watchers, a place is free again when one goes, and a stop ends them all.
pub(crate) async fn events_have_bounds_and_do_not_hold_up_a_stop(env: Env) {
    let mut shop = Shop::open(env).await;
    let mut watchers = Vec::new();
    for _ in 0..WATCHERS {
        watchers.push(Watching::from(&shop, None).await);
    }
    let refused = Watching::ask(&shop, None).await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["retry-after"]),
        (503, &"5".parse().expect("a header"))
    );
    watchers.pop();
    crate::suite::until(PATIENCE, "a place to be free again", async || {
        let status = Watching::ask(&shop, None).await.status();
        if status == 200 { Ok(()) } else { Err(status) }
    })
    .await;
    shop.order.process().signal("TERM");
    let status = shop.order.process().end(STOP_DEADLINE).await;
    assert!(status.success(), "{status}");
    for watcher in &mut watchers {
        while watcher.next().await.is_some() {}
    }
}
