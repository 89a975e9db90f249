//! One trace from the request to the restore, at a collector: also when it was a check-back that
//! decided, and when the process that began it is dead.

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

use super::collector::{Collector, Span};
use super::http::send;
use super::operators::park;
use super::shop::{Shop, ShopBuilder, TOKEN};
use crate::suite::{Env, PATIENCE, until};

/// The caller's own span.
const CALLER: &str = "b7ad6b7169203331";
const ORDER: &str = "order-svc";
const STOCK: &str = "stock-svc";
/// Spans that the collector does not take within this are lost, and it may stand still.
pub(super) const TAKEN_WITHIN_MS: &str = "120000";
/// In stock before each order.
const RECEIVED: i64 = 10;

/// A shop whose spans come here soon, with apples.
async fn shop(env: Env) -> (Shop, Collector) {
    shop_of(Shop::builder(env).await, &[]).await
}

/// This one, with further settings of order-svc.
async fn shop_of(mut builder: ShopBuilder, settings: &[(&str, &str)]) -> (Shop, Collector) {
    let collector = Collector::start().await;
    for (name, value) in settings {
        builder = builder.order(name, value);
    }
    let shop = builder
        .both("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url)
        .both("OTEL_BSP_SCHEDULE_DELAY", "50")
        .both("OTEL_EXPORTER_OTLP_TIMEOUT", TAKEN_WITHIN_MS)
        .open()
        .await;
    shop.seed("apple", 100, RECEIVED).await;
    (shop, collector)
}

fn traceparent(trace_id: &str) -> String {
    format!("00-{trace_id}-{CALLER}-01")
}

/// The only span of this name.
#[track_caller]
fn one<'a>(trace: &'a [Span], service: &str, name: &str) -> &'a Span {
    let found: Vec<_> =
        trace.iter().filter(|span| (&*span.service, &*span.name) == (service, name)).collect();
    let [one] = found[..] else { panic!("{} spans {service} {name} in {trace:#?}", found.len()) };
    one
}

/// The names of the spans about the message of a shop.
struct Names {
    create: String,
    commit: String,
    send: String,
    process: String,
}

impl Names {
    fn of(shop: &Shop) -> Self {
        let topic = &shop.ground.rollback_topic;
        let name = |verb: &str| format!("{verb} {topic}");
        Self {
            create: name("create"),
            commit: name("commit"),
            send: name("send"),
            process: name("process"),
        }
    }

    /// Services and names of what follows the half message.
    fn after_creation(&self) -> [(&str, &str); 3] {
        [(ORDER, &self.commit), (ORDER, &self.send), (STOCK, &self.process)]
    }
}

/// What follows a half message: who decides, delivers and handles it hangs below its creation.
#[track_caller]
fn follows(trace: &[Span], names: &Names, create: &str, origin: &str, transaction_id: &str) {
    let commit = one(trace, ORDER, &names.commit);
    assert_eq!(commit.attribute("halfmsg.decision.origin"), origin, "{commit:?}");
    assert_eq!(commit.kind, SpanKind::Client);
    let send = one(trace, ORDER, &names.send);
    assert_eq!((send.kind, send.attribute("messaging.operation.type")), (SpanKind::Client, "send"));
    let process = one(trace, STOCK, &names.process);
    assert_eq!(process.kind, SpanKind::Consumer);
    assert!(!process.attribute("messaging.consumer.group.name").is_empty(), "{process:?}");
    assert!(!process.attribute("messaging.kafka.offset").is_empty(), "{process:?}");
    for span in [commit, send, process] {
        assert_eq!(span.parent_id, create, "{span:?}");
        assert_eq!(span.attribute("messaging.system"), "kafka", "{span:?}");
        assert_eq!(span.attribute("messaging.message.id"), transaction_id, "{span:?}");
        assert!(!span.is_failed, "{span:?}");
    }
}

/// An order that fails after the deduction: the producer commits, the stock comes back.
pub(crate) async fn traced_from_the_request_to_the_restore(env: Env) {
    let (shop, collector) = shop(env).await;
    let (id, names) = ("0af7651916cd43dd8448eb211c80319c", Names::of(&shop));
    let place = shop.place(&[("apple", 1)]).fault("after-deduct");
    let failed = place.header("traceparent", &traceparent(id)).send().await;
    let order = failed.expect_problem(500, "after_deduct_failed").order_id();
    let order = shop.becomes(order, "void").await;
    let transaction_id = order["transaction_id"].as_str().expect("a half message");
    let local = "local_transaction order.rollback";
    let mut wanted = names.after_creation().to_vec();
    // The product report, which order-svc keeps, reads the topic too.
    wanted.extend([(ORDER, "POST /orders"), (ORDER, local), (ORDER, &*names.process)]);
    let trace = collector.trace(id, PATIENCE, &wanted).await;

    let request = one(&trace, ORDER, "POST /orders");
    assert_eq!((request.kind, &*request.parent_id), (SpanKind::Server, CALLER));
    assert_eq!(request.attribute("http.response.status_code"), "500");
    assert!(request.is_failed);
    let create = one(&trace, ORDER, &names.create);
    assert_eq!((create.kind, &create.parent_id), (SpanKind::Producer, &request.span_id));
    assert_eq!(create.attribute("messaging.message.id"), transaction_id);
    let local = one(&trace, ORDER, local);
    assert_eq!((&local.parent_id, local.attribute("halfmsg.outcome")), (&create.span_id, "commit"));
    for asked in ["GET /products", "POST /deductions"] {
        let client = one(&trace, ORDER, asked);
        assert_eq!((client.kind, &client.parent_id), (SpanKind::Client, &local.span_id));
        let server = one(&trace, STOCK, asked);
        assert_eq!((server.kind, &server.parent_id), (SpanKind::Server, &client.span_id));
    }
    follows(&trace, &names, &create.span_id, "producer", transaction_id);
    assert_eq!(trace.len(), 11, "nothing else is in it: {trace:#?}");
    shop.stock_is("apple", RECEIVED).await;
}

/// A local transaction that stalls: the check that follows at once decides, in the same trace.
pub(crate) async fn traced_when_the_check_decides(env: Env) {
    let (shop, collector) = shop_of(Shop::builder(env).await.checked_soon(), &[]).await;
    let (id, names) = ("1af7651916cd43dd8448eb211c80319c", Names::of(&shop));
    let place = shop.place(&[("apple", 1)]).fault("slow-local");
    let fenced = place.header("traceparent", &traceparent(id)).send().await.expect(409);
    let order = shop.becomes(fenced.order_id(), "void").await;
    let transaction_id = order["transaction_id"].as_str().expect("a half message");
    let check = "check order.rollback";
    let mut wanted = names.after_creation().to_vec();
    wanted.extend([(ORDER, check), (ORDER, &*names.create)]);
    let trace = collector.trace(id, PATIENCE, &wanted).await;
    let create = one(&trace, ORDER, &names.create);
    follows(&trace, &names, &create.span_id, "check-back", transaction_id);
    let check = one(&trace, ORDER, check);
    assert_eq!((&check.parent_id, check.attribute("halfmsg.outcome")), (&create.span_id, "commit"));
    linked_both_ways(&collector, check, &create.span_id).await;
}

/// The process dies with its spans: its successor goes on in the trace that the message carries.
pub(crate) async fn traced_when_a_successor_decides(env: Env) {
    a_successor_decides(shop(env).await, "2af7651916cd43dd8448eb211c80319c").await;
}

/// The same where memory has no room for the body of an open message, which has the context.
pub(crate) async fn traced_when_the_body_had_left_memory(env: Env) {
    let no_room = [("HALFMSG_BODY_BUDGET_BYTES", "1")];
    let shop = shop_of(Shop::builder(env).await, &no_room).await;
    a_successor_decides(shop, "7af7651916cd43dd8448eb211c80319c").await;
}

async fn a_successor_decides((mut shop, collector): (Shop, Collector), id: &str) {
    let names = Names::of(&shop);
    let place = shop.place(&[("apple", 1)]).fault("crash-after-deduct");
    place.header("traceparent", &traceparent(id)).send_and_lose().await;
    shop.order.check_soon();
    shop.survive_crash().await;
    let check = "check order.rollback";
    let mut wanted = names.after_creation().to_vec();
    wanted.push((ORDER, check));
    let trace = collector.trace(id, PATIENCE, &wanted).await;
    let order = shop.only_order_of("ann").await;
    let transaction_id = order["transaction_id"].as_str().expect("a half message");
    let check = one(&trace, ORDER, check);
    assert_ne!(check.parent_id, CALLER, "it is below the half message's creation");
    follows(&trace, &names, &check.parent_id, "check-back", transaction_id);
    linked_both_ways(&collector, check, &check.parent_id).await;
    shop.stock_is("apple", RECEIVED).await;
}

/// Flow B: the question, its answer and what the answer did are one trace, from span to span.
pub(crate) async fn traced_through_an_answer(env: Env) {
    let (shop, collector) = shop(env).await;
    let id = "3af7651916cd43dd8448eb211c80319c";
    let place = shop.place(&[("apple", 1)]).saga().header("traceparent", &traceparent(id));
    let accepted = place.send().await.expect(202);
    shop.becomes(accepted.order_id(), "confirmed").await;
    let asked = format!("process {}", shop.ground.created_topic);
    let answered = format!("process {}", shop.ground.outbound_topic);
    let created = format!("create {}", shop.ground.created_topic);
    let wanted = [(ORDER, &*created), (STOCK, &*asked), (ORDER, &*answered)];
    let trace = collector.trace(id, PATIENCE, &wanted).await;
    let asked = one(&trace, STOCK, &asked);
    assert_eq!(asked.parent_id, one(&trace, ORDER, &created).span_id);
    // The product report reads the answers too, below the same span.
    let answers = trace.iter().filter(|span| span.name == answered);
    assert!(answers.clone().all(|answer| answer.parent_id == asked.span_id), "{trace:#?}");
}

/// What an operator does is in the message's trace, and links to the trace of the operator's request.
pub(crate) async fn traced_when_an_operator_decides(env: Env) {
    let late = [("HALFMSG_CHECK_AFTER_MS", "600000")];
    let (shop, collector) = shop_of(Shop::builder(env).await, &late).await;
    let topic = shop.ground.rollback_topic.clone();
    for (id, verb, name) in [
        ("4af7651916cd43dd8448eb211c80319c", "rollback", format!("rollback {topic}")),
        ("5af7651916cd43dd8448eb211c80319c", "check", format!("check_now {topic}")),
    ] {
        let place = shop.place(&[("apple", 1)]).fault("decision-lost");
        let lost = place.header("traceparent", &traceparent(id)).send().await.expect(201);
        let transaction_id = lost.transaction_id();
        shop.half_is(&transaction_id, "open").await;
        shop.settle(&transaction_id, verb, false).await.expect(200);
        let wanted = [(ORDER, &*name), (ORDER, &*format!("create {topic}"))];
        let trace = collector.trace(id, PATIENCE, &wanted).await;
        let act = one(&trace, ORDER, &name);
        assert_eq!(act.parent_id, one(&trace, ORDER, wanted[1].1).span_id);
        by_olga(&collector, act, &transaction_id, verb).await;
    }
}

/// A contradiction is seen as well; what was parked is opened again in the trace that it had.
pub(crate) async fn traced_when_an_operator_resumes(env: Env) {
    let late = [("HALFMSG_CHECK_AFTER_MS", "600000"), ("HALFMSG_MAX_CHECKS", "1")];
    let (mut shop, collector) = shop_of(Shop::builder(env).await, &late).await;
    let topic = shop.ground.rollback_topic.clone();
    let id = park(&mut shop, "ann").await;
    shop.settle(&id, "rollback", true).await.expect_problem(409, "contradiction");
    shop.settle(&id, "resume", false).await.expect(200);
    let [refused, resumed, decided] =
        ["rollback", "resume", "commit"].map(|verb| format!("{verb} {topic}"));
    let about = async |name: &str| {
        until(PATIENCE, name, async || {
            let all = collector.spans().into_iter();
            let mut found = all.filter(|span| span.attribute("messaging.message.id") == id);
            found.find(|span| span.name == name).ok_or("no such span")
        })
        .await
    };
    let (refused, resumed) = (about(&refused).await, about(&resumed).await);
    assert!(refused.is_failed && !resumed.is_failed, "{refused:?} {resumed:?}");
    by_olga(&collector, &refused, &id, "rollback").await;
    by_olga(&collector, &resumed, &id, "resume").await;
    let decided = about(&decided).await;
    assert_eq!(decided.attribute("halfmsg.decision.origin"), "check-back");
    for span in [&refused, &resumed] {
        assert_eq!((&span.trace_id, &span.parent_id), (&decided.trace_id, &decided.parent_id));
    }
}

/// So is the replay of a dead letter, here one that fails again.
pub(crate) async fn traced_when_a_dead_letter_is_replayed(env: Env) {
    let (shop, collector) = shop(env).await;
    let (id, topic) = ("6af7651916cd43dd8448eb211c80319c", &shop.ground.rollback_topic);
    let producer: FutureProducer = shop.ground.kafka().producer().create().expect("a producer");
    let parent = traceparent(id);
    let headers = OwnedHeaders::new().insert(Header { key: "traceparent", value: Some(&parent) });
    let record: FutureRecord<'_, str, str> =
        FutureRecord::to(topic).payload("not an event").headers(headers);
    producer.send(record, PATIENCE).await.expect("it is acknowledged");
    let letter = until(PATIENCE, "the dead letter", async || {
        let list = shop.get_stock("/dead-letters").await.expect(200);
        list.body["items"][0]["id"].as_str().map(str::to_owned).ok_or(list.text)
    })
    .await;
    let url = shop.stock_url(&format!("/dead-letters/{letter}/replay"));
    let replayed = send(shop.http.post(url).bearer_auth(TOKEN)).await.expect("stock-svc answers");
    replayed.expect_problem(409, "replay_failed");
    let name = format!("replay {topic}");
    let trace = collector.trace(id, PATIENCE, &[(STOCK, &name)]).await;
    let replay = one(&trace, STOCK, &name);
    assert_eq!((&*replay.parent_id, replay.is_failed), (CALLER, true));
    linked_to(&collector, replay, STOCK, "POST /dead-letters/{id}/replay").await;
}

async fn by_olga(collector: &Collector, act: &Span, transaction_id: &str, verb: &str) {
    assert_eq!(act.attribute("halfmsg.operator"), "olga", "{act:?}");
    assert_eq!(act.attribute("halfmsg.decision.origin"), "operator", "{act:?}");
    assert_eq!(act.attribute("messaging.message.id"), transaction_id, "{act:?}");
    linked_to(collector, act, ORDER, &format!("POST /halves/{{transaction_id}}/{verb}")).await;
}

/// The span links to a request, which is in another trace.
async fn linked_to(collector: &Collector, act: &Span, service: &str, request: &str) {
    let [(trace_id, span_id)] = &act.links[..] else { panic!("one link: {act:?}") };
    assert_ne!(trace_id, &act.trace_id);
    let trace = collector.trace(trace_id, PATIENCE, &[(service, request)]).await;
    assert_eq!(&one(&trace, service, request).span_id, span_id);
}

/// The call that asked is in a trace of its own, and links to the half message, which links back.
async fn linked_both_ways(collector: &Collector, check: &Span, create: &str) {
    let [(batch_trace, batch)] = &check.links[..] else { panic!("one link: {check:?}") };
    assert_ne!(batch_trace, &check.trace_id);
    let name = "check_back order.rollback";
    let trace = collector.trace(batch_trace, PATIENCE, &[(ORDER, name)]).await;
    let asked = one(&trace, ORDER, name);
    assert_eq!((&asked.span_id, asked.parent_id.as_str()), (batch, ""));
    let half = (check.trace_id.clone(), create.to_owned());
    assert!(asked.links.contains(&half), "{asked:?} does not link to {half:?}");
}
