//! Facts about an order, and what they add to the sums of its products. Pure.
//!
//! A fact is learned once; the order in which facts come, and how often, makes no difference.

use std::collections::BTreeMap;

use crate::payload::PricedItem;

/// What an event says about an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// It was placed, with these items.
    Ordered(Vec<PricedItem>),
    /// stock-svc answered.
    Answered(Ending),
    /// It was cancelled.
    Cancelled,
}

/// What stock-svc answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The stock was deducted.
    Confirmed,
    /// It was refused.
    Rejected,
}

impl Ending {
    /// Its name in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Rejected => "rejected",
        }
    }

    /// The ending of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Confirmed, Self::Rejected].into_iter().find(|ending| ending.as_str() == name)
    }
}

/// What is known of an order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Known {
    /// Its items, once it is known that it was placed.
    pub items: Option<Vec<PricedItem>>,
    /// The first answer.
    pub answer: Option<Ending>,
    /// Whether it was cancelled. That stands above the answer.
    pub cancelled: bool,
}

/// A quantity and what it costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// Pieces.
    pub quantity: i64,
    /// Cents.
    pub cents: i64,
}

/// The sums of a product, or what is to be added to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    /// Of all orders.
    pub ordered: Amount,
    /// Of those confirmed and not cancelled.
    pub confirmed: Amount,
    /// Of those rejected and not cancelled.
    pub rejected: Amount,
    /// Of those cancelled.
    pub cancelled: Amount,
}

/// A sum that does not fit into 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sum of the report is more than {}", i64::MAX)]
pub struct TooLarge;

impl Known {
    /// Learns a fact; false if it says nothing new.
    pub fn learn(&mut self, fact: Fact) -> bool {
        match fact {
            Fact::Ordered(items) if self.items.is_none() => self.items = Some(items),
            Fact::Answered(ending) if self.answer.is_none() => self.answer = Some(ending),
            Fact::Cancelled if !self.cancelled => self.cancelled = true,
            _ => return false,
        }
        true
    }

    /// What this order adds to the sums of its products; nothing until it is known to be placed.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn sums(&self) -> Result<BTreeMap<String, Sums>, TooLarge> {
        let mut sums: BTreeMap<String, Sums> = BTreeMap::new();
        for item in self.items.iter().flatten() {
            let quantity = i64::from(item.quantity);
            let cents = quantity.checked_mul(item.unit_price_cents).ok_or(TooLarge)?;
            let of_product = sums.entry(item.sku.clone()).or_default();
            let added = self.of(Amount { quantity, cents });
            *of_product = of_product.plus(&added).ok_or(TooLarge)?;
        }
        Ok(sums)
    }

    fn of(&self, amount: Amount) -> Sums {
        let sums = Sums { ordered: amount, ..Sums::default() };
        match (self.cancelled, self.answer) {
            (true, _) => Sums { cancelled: amount, ..sums },
            (false, Some(Ending::Confirmed)) => Sums { confirmed: amount, ..sums },
            (false, Some(Ending::Rejected)) => Sums { rejected: amount, ..sums },
            (false, None) => sums,
        }
    }
}

impl Amount {
    fn plus(self, other: Self) -> Option<Self> {
        let quantity = self.quantity.checked_add(other.quantity)?;
        Some(Self { quantity, cents: self.cents.checked_add(other.cents)? })
    }

    fn minus(self, other: Self) -> Option<Self> {
        let quantity = self.quantity.checked_sub(other.quantity)?;
        Some(Self { quantity, cents: self.cents.checked_sub(other.cents)? })
    }
}

impl Sums {
    /// Both together; nothing if it does not fit.
    pub fn plus(&self, other: &Self) -> Option<Self> {
        self.with(other, Amount::plus)
    }

    /// This without the other; nothing if it does not fit.
    pub fn minus(&self, other: &Self) -> Option<Self> {
        self.with(other, Amount::minus)
    }

    fn with(&self, other: &Self, both: fn(Amount, Amount) -> Option<Amount>) -> Option<Self> {
        Some(Self {
            ordered: both(self.ordered, other.ordered)?,
            confirmed: both(self.confirmed, other.confirmed)?,
            rejected: both(self.rejected, other.rejected)?,
            cancelled: both(self.cancelled, other.cancelled)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered() -> Fact {
        let item = |sku: &str, quantity, unit_price_cents| PricedItem {
            sku: sku.into(),
            quantity,
            unit_price_cents,
        };
        Fact::Ordered(vec![item("a", 3, 100), item("b", 1, 50)])
    }

    /// Every order of the facts, each once or twice, gives the same.
    #[test]
    fn facts_may_come_in_any_order_and_again() {
        let facts = [ordered(), Fact::Answered(Ending::Confirmed), Fact::Cancelled];
        for cancelled in [false, true] {
            let count = if cancelled { 3 } else { 2 };
            let expected = Amount { quantity: 3, cents: 300 };
            for first in 0..count {
                for second in 0..count {
                    let mut known = Known::default();
                    let order = [first, second].into_iter().chain(0..count).chain(0..count);
                    for at in order {
                        known.learn(facts[at].clone());
                    }
                    let sums = known.sums().expect("small sums")["a"];
                    assert_eq!(sums.ordered, expected);
                    let (confirmed, taken_back) = (sums.confirmed, sums.cancelled);
                    let none = Amount::default();
                    let (standing, gone) =
                        if cancelled { (none, expected) } else { (expected, none) };
                    assert_eq!((confirmed, taken_back, sums.rejected), (standing, gone, none));
                }
            }
        }
    }

    #[test]
    fn an_order_that_was_never_announced_counts_nothing() {
        let mut known = Known::default();
        assert!(known.learn(Fact::Cancelled) && !known.learn(Fact::Cancelled));
        assert_eq!(known.sums(), Ok(BTreeMap::new()));
    }

    #[test]
    fn the_first_answer_stands() {
        let mut known = Known::default();
        assert!(known.learn(Fact::Answered(Ending::Rejected)));
        assert!(!known.learn(Fact::Answered(Ending::Confirmed)));
        known.learn(ordered());
        assert_eq!(known.sums().expect("small")["b"].rejected, Amount { quantity: 1, cents: 50 });
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let item = PricedItem { sku: "a".into(), quantity: 2, unit_price_cents: i64::MAX };
        let known = Known { items: Some(vec![item]), ..Known::default() };
        assert_eq!(known.sums(), Err(TooLarge));
    }
}
