//! The induced failures of `POST /orders`, for demonstrations and tests.

use halfmsg_producer::TransactionId;

use crate::model::{Flow, OrderId};

/// The header that asks for one.
pub const HEADER: &str = "x-fault";

/// A failure that a client may ask for while faults are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// stock-svc fails the price lookup.
    PriceLookup,
    /// stock-svc refuses the deduction.
    DeductRefused,
    /// stock-svc deducts and does not answer.
    DeductTimeout,
    /// An error between the deduction and the order.
    AfterDeduct,
    /// The order's database transaction fails.
    OrderInsert,
    /// The order is committed, the decision is not sent.
    DecisionLost,
    /// The local transaction stalls past its deadline and past the first check.
    SlowLocal,
    /// The process aborts when the half message is stored.
    CrashAfterHalf,
    /// The process aborts when the stock is deducted.
    CrashAfterDeduct,
    /// The process aborts when the order is committed.
    CrashAfterOrder,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 10] = [
        Self::PriceLookup,
        Self::DeductRefused,
        Self::DeductTimeout,
        Self::AfterDeduct,
        Self::OrderInsert,
        Self::DecisionLost,
        Self::SlowLocal,
        Self::CrashAfterHalf,
        Self::CrashAfterDeduct,
        Self::CrashAfterOrder,
    ];

    /// Its name in the header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PriceLookup => "price-lookup",
            Self::DeductRefused => "deduct-refused",
            Self::DeductTimeout => "deduct-timeout",
            Self::AfterDeduct => "after-deduct",
            Self::OrderInsert => "order-insert",
            Self::DecisionLost => "decision-lost",
            Self::SlowLocal => "slow-local",
            Self::CrashAfterHalf => "crash-after-half",
            Self::CrashAfterDeduct => "crash-after-deduct",
            Self::CrashAfterOrder => "crash-after-order",
        }
    }

    /// Whether it can be asked for in this flow: in flow B no order deducts anything itself.
    pub const fn is_of(self, flow: Flow) -> bool {
        match flow {
            Flow::Rollback => true,
            Flow::Saga => matches!(
                self,
                Self::PriceLookup
                    | Self::OrderInsert
                    | Self::DecisionLost
                    | Self::CrashAfterHalf
                    | Self::CrashAfterOrder
            ),
        }
    }

    /// The fault of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.as_str() == name)
    }
}

/// Ends the process on the spot, as a kill would, if `asked` is the fault of this `point`.
pub(crate) fn crash_at(
    point: Fault,
    asked: Option<Fault>,
    order_id: OrderId,
    transaction_id: TransactionId,
) {
    if asked == Some(point) {
        tracing::error!(
            target: "halfmsg::life", %order_id, %transaction_id, fault = point.as_str(), "induced crash"
        );
        std::process::abort();
    }
}
