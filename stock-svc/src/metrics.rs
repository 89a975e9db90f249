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
    deduction_transactions: Counter,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

impl StockMetrics {
    /// Registers them as `stock_deductions_total`, `stock_restores_total` and
    /// `stock_deduction_transactions_total`.
    /// What is known in advance begins at 0: of a series that appears with its first event, a scraper
    /// sees no increase.
    pub fn register(&self, registry: &mut Registry) {
        for outcome in ["deducted", "repeated", "refused", "order_void", "conflict"] {
            self.deductions.get_or_create(&Outcome { outcome }).inc_by(0);
        }
        for outcome in ["restored", "void", "repeated"] {
            self.restores.get_or_create(&Outcome { outcome }).inc_by(0);
        }
        registry.register("stock_deductions", "Answered deductions", self.deductions.clone());
        registry.register("stock_restores", "Restores asked for", self.restores.clone());
        registry.register(
            "stock_deduction_transactions",
            "Transactions of deductions asked for over HTTP",
            self.deduction_transactions.clone(),
        );
    }

    pub(crate) fn deduction_transaction(&self) {
        self.deduction_transactions.inc();
    }

    pub(crate) fn deduction(&self, outcome: &'static str) {
        self.deductions.get_or_create(&Outcome { outcome }).inc();
    }

    /// How many transactions deductions over HTTP have begun.
    #[cfg(any(test, feature = "scenarios"))]
    pub(crate) fn deduction_transactions(&self) -> u64 {
        self.deduction_transactions.get()
    }

    pub(crate) fn restore(&self, outcome: &'static str) {
        self.restores.get_or_create(&Outcome { outcome }).inc();
    }
}
