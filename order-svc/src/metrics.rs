//! What is counted of orders.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
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
}

impl OrderMetrics {
    /// Adds the counters.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "orders",
            "Requests for orders by outcome: confirmed, why void, not_begun or unknown",
            self.orders.clone(),
        );
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
