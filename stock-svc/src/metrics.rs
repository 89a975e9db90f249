//! What became of deductions and restores.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Counters by outcome. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct StockMetrics {
    deductions: Family<Outcome, Counter>,
    restores: Family<Outcome, Counter>,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

impl StockMetrics {
    /// Registers them as `stock_deductions_total` and `stock_restores_total`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("stock_deductions", "Answered deductions", self.deductions.clone());
        registry.register("stock_restores", "Restores asked for", self.restores.clone());
    }

    pub(crate) fn deduction(&self, outcome: &'static str) {
        self.deductions.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn restore(&self, outcome: &'static str) {
        self.restores.get_or_create(&Outcome { outcome }).inc();
    }
}
