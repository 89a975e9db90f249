//! What is counted of orders.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::model::{Order, OrderStatus};
use crate::reason::VoidReason;

#[derive(Debug, Clone, Copy, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// The counters of placed orders. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct OrderMetrics {
    orders: Family<Outcome, Counter>,
    cancels: Family<Outcome, Counter>,
    answers: Family<Outcome, Counter>,
    report_facts: Counter,
    stuck: Gauge,
    oldest_pending_seconds: Gauge,
}

impl OrderMetrics {
    /// Adds the counters. What is known in advance begins at 0: of a series that appears with its
    /// first event, a scraper sees no increase.
    pub fn register(&self, registry: &mut Registry) {
        let void = VoidReason::ALL.into_iter().map(VoidReason::as_str);
        let others = ["confirmed", "pending_stock", "not_begun", "unknown"];
        begin(&self.orders, void.chain(others));
        begin(&self.cancels, ["cancelled"]);
        begin(&self.answers, ["confirmed", "rejected", "repeated", "cancelled_before"]);
        registry.register(
            "orders",
            "Requests for orders by outcome: confirmed, pending_stock, why void, not_begun or unknown",
            self.orders.clone(),
        );
        registry.register(
            "order_cancels",
            "Cancellations that were not answered from the order's row at once, by outcome",
            self.cancels.clone(),
        );
        registry.register(
            "order_stock_answers",
            "Answers of stock-svc by what became of them: confirmed, rejected, repeated, \
             cancelled_before",
            self.answers.clone(),
        );
        registry.register(
            "order_report_facts",
            "Events that told the product report something new",
            self.report_facts.clone(),
        );
        registry.register(
            "halfmsg_orders_stuck",
            "Orders that have waited for their stock for longer than HALFMSG_STUCK_AFTER_MS",
            self.stuck.clone(),
        );
        registry.register(
            "halfmsg_orders_oldest_pending_seconds",
            "Age of the oldest order that waits for its stock; 0 if none does",
            self.oldest_pending_seconds.clone(),
        );
    }

    pub(crate) fn cancelled(&self, outcome: &'static str) {
        self.cancels.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn answered(&self, outcome: &'static str) {
        self.answers.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn reported(&self, facts: u64) {
        self.report_facts.inc_by(facts);
    }

    pub(crate) fn stuck(&self, orders: u64, oldest_seconds: i64) {
        self.stuck.set(i64::try_from(orders).unwrap_or(i64::MAX));
        self.oldest_pending_seconds.set(oldest_seconds);
    }

    pub(crate) fn placed(&self, order: &Order) {
        let reason = order.reason.as_deref().and_then(VoidReason::of_text);
        self.count(match (order.status, reason) {
            (OrderStatus::Void, Some((reason, _))) => reason.as_str(),
            (status, _) => status.as_str(),
        });
    }

    pub(crate) fn not_begun(&self) {
        self.count("not_begun");
    }

    pub(crate) fn unknown(&self) {
        self.count("unknown");
    }

    fn count(&self, outcome: &'static str) {
        self.orders.get_or_create(&Outcome { outcome }).inc();
    }
}

fn begin(family: &Family<Outcome, Counter>, outcomes: impl IntoIterator<Item = &'static str>) {
    for outcome in outcomes {
        family.get_or_create(&Outcome { outcome }).inc_by(0);
    }
}
