//! Why an order is void: the text in its row, and the answer that a client gets for it.
//!
//! The answer is a function of the row alone, so a repeated request, a request that met a crash
//! and the first request all hear the same.

use crate::model::Flow;

/// Why an order is void. Its name is the stable `type` of the problem that clients see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VoidReason {
    /// The prices could not be asked for; nothing was deducted.
    PriceLookupFailed,
    /// A product does not exist; nothing was deducted.
    UnknownSku,
    /// The total is more than can be counted in cents; nothing was deducted.
    AmountTooLarge,
    /// There is not enough stock; nothing was deducted.
    InsufficientStock,
    /// stock-svc could not be reached; nothing was deducted.
    StockUnreachable,
    /// stock-svc did not answer the deduction in time: it may have deducted.
    DeductTimeout,
    /// stock-svc answered the deduction with an error: it may have deducted.
    DeductFailed,
    /// Something failed between the deduction and the order.
    AfterDeductFailed,
    /// The order could not be stored.
    OrderInsertFailed,
    /// The check-back was first: it found no order and wrote the tombstone.
    Fenced,
    /// A repeated request found its predecessor neither finished nor alive.
    Abandoned,
}

impl VoidReason {
    /// Every reason.
    pub const ALL: [Self; 11] = [
        Self::PriceLookupFailed,
        Self::UnknownSku,
        Self::AmountTooLarge,
        Self::InsufficientStock,
        Self::StockUnreachable,
        Self::DeductTimeout,
        Self::DeductFailed,
        Self::AfterDeductFailed,
        Self::OrderInsertFailed,
        Self::Fenced,
        Self::Abandoned,
    ];

    /// Its name, in the row and in the problem's type.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PriceLookupFailed => "price_lookup_failed",
            Self::UnknownSku => "unknown_sku",
            Self::AmountTooLarge => "amount_too_large",
            Self::InsufficientStock => "insufficient_stock",
            Self::StockUnreachable => "stock_unreachable",
            Self::DeductTimeout => "deduct_timeout",
            Self::DeductFailed => "deduct_failed",
            Self::AfterDeductFailed => "after_deduct_failed",
            Self::OrderInsertFailed => "order_insert_failed",
            Self::Fenced => "fenced",
            Self::Abandoned => "abandoned",
        }
    }

    /// The HTTP status of the answer.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::UnknownSku | Self::AmountTooLarge => 422,
            Self::InsufficientStock | Self::Fenced | Self::Abandoned => 409,
            Self::PriceLookupFailed | Self::StockUnreachable | Self::DeductFailed => 502,
            Self::DeductTimeout => 504,
            Self::AfterDeductFailed | Self::OrderInsertFailed => 500,
        }
    }

    /// What it means, in a sentence.
    pub const fn title(self, flow: Flow) -> &'static str {
        match (self, flow) {
            (Self::OrderInsertFailed, Flow::Saga) => "The order could not be stored; it is void.",
            (Self::Fenced, Flow::Saga) => "The order took too long and was given up; it is void.",
            (Self::Abandoned, Flow::Saga) => {
                "The order was given up after its request ended; it is void."
            }
            _ => self.title_of_rollback(),
        }
    }

    const fn title_of_rollback(self) -> &'static str {
        match self {
            Self::PriceLookupFailed => "The prices could not be looked up; the order is void.",
            Self::UnknownSku => "A product does not exist; the order is void.",
            Self::AmountTooLarge => "The total is too large to be counted; the order is void.",
            Self::InsufficientStock => "There is not enough stock; the order is void.",
            Self::StockUnreachable => "The stock could not be reached; the order is void.",
            Self::DeductTimeout => {
                "The stock did not answer in time; the order is void and its stock is restored."
            }
            Self::DeductFailed => {
                "The stock answered with an error; the order is void and its stock is restored."
            }
            Self::AfterDeductFailed => {
                "The order failed after the deduction; it is void and its stock is restored."
            }
            Self::OrderInsertFailed => {
                "The order could not be stored; it is void and its stock is restored."
            }
            Self::Fenced => {
                "The order took too long and was given up; it is void and its stock is restored."
            }
            Self::Abandoned => {
                "The order was given up after its request ended; it is void and its stock is \
                 restored."
            }
        }
    }

    /// The text of the row: the name, and the detail if there is one.
    pub fn to_text(self, detail: &str) -> String {
        if detail.is_empty() {
            self.as_str().to_owned()
        } else {
            format!("{}: {detail}", self.as_str())
        }
    }

    /// The reason and the detail of a row's text; none for a text of a later version.
    pub fn of_text(text: &str) -> Option<(Self, &str)> {
        let (name, detail) = text.split_once(": ").unwrap_or((text, ""));
        Self::ALL.into_iter().find(|reason| reason.as_str() == name).map(|reason| (reason, detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rows_text_gives_the_reason_back() {
        for reason in VoidReason::ALL {
            assert_eq!(VoidReason::of_text(&reason.to_text("")), Some((reason, "")));
            let text = reason.to_text("apple: 3 of 5");
            assert_eq!(VoidReason::of_text(&text), Some((reason, "apple: 3 of 5")));
        }
        assert_eq!(VoidReason::of_text("from the future"), None);
    }
}
