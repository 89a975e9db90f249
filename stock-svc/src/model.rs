//! Items, refusals, and what the database keeps of them.

use std::fmt::{self, Display};

use halfmsg_service_kit::{ApiError, validate};
use serde::{Deserialize, Serialize};

/// So many of a product.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// The product.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]+$", example = "apple")]
    pub sku: String,
    /// How many.
    #[schema(minimum = 1, maximum = 1_000_000, example = 2)]
    pub quantity: i64,
}

impl Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.quantity, self.sku)
    }
}

/// Items in words, as in `1 x apple, 2 x banana`.
pub(crate) fn in_words(items: &[Item]) -> String {
    items.iter().map(Item::to_string).collect::<Vec<_>>().join(", ")
}

/// The items of a deduction: valid, each sku once, in the order of the skus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Items(Vec<Item>);

impl Items {
    /// Checks the limits and sorts.
    ///
    /// # Errors
    /// 422 `invalid_request`.
    pub fn new(mut items: Vec<Item>) -> Result<Self, ApiError> {
        validate::items(items.iter().map(|item| (item.sku.as_str(), item.quantity)))?;
        items.sort_by(|a, b| a.sku.cmp(&b.sku));
        Ok(Self(items))
    }

    /// The items, in the order of their skus.
    pub fn iter(&self) -> impl Iterator<Item = &Item> {
        self.0.iter()
    }

    /// The skus in their order.
    pub fn skus(&self) -> Vec<String> {
        self.0.iter().map(|item| item.sku.clone()).collect()
    }

    /// The form in which the database keeps them, equal for equal items.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers can be written as JSON")
    }
}

impl Display for Items {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&in_words(&self.0))
    }
}

/// What a deduction is. The names are those in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeductionState {
    /// The items are taken from the stock.
    Deducted,
    /// Nothing was taken, for the reason kept with it.
    Refused,
    /// Taken and given back.
    Restored,
    /// Given up before anything was taken.
    Void,
}

impl DeductionState {
    /// Its name in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deducted => "deducted",
            Self::Refused => "refused",
            Self::Restored => "restored",
            Self::Void => "void",
        }
    }

    /// The state of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Deducted, Self::Refused, Self::Restored, Self::Void]
            .into_iter()
            .find(|state| state.as_str() == name)
    }
}

/// Why nothing was deducted. Kept in the database: a repeated request gets the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Refusal {
    /// Less is there than was asked for.
    InsufficientStock {
        /// The first such sku.
        sku: String,
        /// How many were asked for.
        requested: i64,
        /// How many were there.
        available: i64,
    },
    /// There is no such product.
    UnknownSku {
        /// The first such sku.
        sku: String,
    },
    /// A test asked for it.
    Induced,
}

impl Refusal {
    /// The form in which the database keeps it.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers can be written as JSON")
    }
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InsufficientStock { sku, requested, available } => {
                write!(f, "{requested} of '{sku}' were asked for, {available} are there")
            }
            Self::UnknownSku { sku } => write!(f, "there is no product '{sku}'"),
            Self::Induced => f.write_str("refused because X-Fault asked for it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(sku: &str, quantity: i64) -> Item {
        Item { sku: sku.into(), quantity }
    }

    #[test]
    fn equal_items_are_kept_alike_in_any_order() {
        let one = Items::new(vec![item("b", 2), item("a", 1)]).unwrap();
        let other = Items::new(vec![item("a", 1), item("b", 2)]).unwrap();
        assert_eq!(one.to_json(), other.to_json());
        assert_eq!(one.to_string(), "1 x a, 2 x b");
        assert_ne!(one.to_json(), Items::new(vec![item("a", 1)]).unwrap().to_json());
    }

    #[test]
    fn refusals_come_back_as_they_were() {
        for refusal in [
            Refusal::InsufficientStock { sku: "a".into(), requested: 2, available: 1 },
            Refusal::UnknownSku { sku: "a".into() },
            Refusal::Induced,
        ] {
            assert_eq!(serde_json::from_str::<Refusal>(&refusal.to_json()).unwrap(), refusal);
        }
    }

    #[test]
    fn states_have_the_names_of_the_schema() {
        for name in ["deducted", "refused", "restored", "void"] {
            assert_eq!(DeductionState::from_name(name).unwrap().as_str(), name);
        }
        assert_eq!(DeductionState::from_name("lost"), None);
    }
}
