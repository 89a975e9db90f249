//! The limits on what clients send. Each function returns a detail that names the field.

use std::collections::HashSet;

use crate::problem::ApiError;

/// An order or a deduction has at most this many items.
pub const MAX_ITEMS: usize = 100;
/// The largest quantity of one item.
pub const MAX_QUANTITY: i64 = 1_000_000;
/// The longest sku, in characters.
pub const MAX_SKU: usize = 64;

/// A sku: 1 to 64 of `A-Z a-z 0-9 . _ -`.
///
/// # Errors
/// 422 `invalid_request`.
pub fn sku(field: &str, sku: &str) -> Result<(), ApiError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !sku.is_empty() && sku.len() <= MAX_SKU && sku.chars().all(allowed) {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "{field} must be 1 to {MAX_SKU} characters out of A-Z a-z 0-9 . _ -"
    )))
}

/// A quantity: 1 to 1,000,000.
///
/// # Errors
/// 422 `invalid_request`.
pub fn quantity(field: &str, quantity: i64) -> Result<(), ApiError> {
    if (1..=MAX_QUANTITY).contains(&quantity) {
        return Ok(());
    }
    Err(ApiError::invalid(format!("{field} must be 1 to {MAX_QUANTITY}, not {quantity}")))
}

/// A price in cents: 0 to 2^53, the largest integer that every JSON client reads exactly.
///
/// # Errors
/// 422 `invalid_request`.
pub fn price_cents(field: &str, cents: i64) -> Result<(), ApiError> {
    const LARGEST: i64 = 1 << 53;
    if (0..=LARGEST).contains(&cents) {
        return Ok(());
    }
    Err(ApiError::invalid(format!("{field} must be 0 to {LARGEST}, not {cents}")))
}

/// A text of 1 to `max_chars` characters without control characters (PostgreSQL cannot store a
/// NUL, and the others would break up the log).
///
/// # Errors
/// 422 `invalid_request`.
pub fn text(field: &str, text: &str, max_chars: usize) -> Result<(), ApiError> {
    let length = text.chars().count();
    if length == 0 || length > max_chars {
        return Err(ApiError::invalid(format!(
            "{field} must be 1 to {max_chars} characters long, not {length}"
        )));
    }
    if text.chars().any(char::is_control) {
        return Err(ApiError::invalid(format!("{field} must not contain control characters")));
    }
    Ok(())
}

/// The items of an order or a deduction: 1 to 100, each sku and quantity valid, no sku twice.
///
/// # Errors
/// 422 `invalid_request`.
pub fn items<'a>(items: impl ExactSizeIterator<Item = (&'a str, i64)>) -> Result<(), ApiError> {
    if items.len() == 0 || items.len() > MAX_ITEMS {
        let found = items.len();
        return Err(ApiError::invalid(format!("items must be 1 to {MAX_ITEMS}, not {found}")));
    }
    let mut seen = HashSet::new();
    for (index, (item_sku, item_quantity)) in items.enumerate() {
        sku(&format!("items[{index}].sku"), item_sku)?;
        quantity(&format!("items[{index}].quantity"), item_quantity)?;
        if !seen.insert(item_sku) {
            return Err(ApiError::invalid(format!(
                "items[{index}].sku names '{item_sku}' a second time: give each sku once"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skus_at_their_borders() {
        for good in ["a", "A-1_b.c", &"x".repeat(64)] {
            assert!(sku("sku", good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "ä", "a/b", "a\0", &"x".repeat(65)] {
            assert!(sku("sku", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_at_their_borders() {
        assert!(quantity("q", 1).is_ok() && quantity("q", 1_000_000).is_ok());
        for bad in [0, -1, 1_000_001, i64::MAX, i64::MIN] {
            assert!(quantity("q", bad).is_err(), "{bad}");
        }
        assert!(price_cents("p", 0).is_ok() && price_cents("p", -1).is_err());
        assert!(price_cents("p", i64::MAX).is_err());
    }

    #[test]
    fn texts_at_their_borders() {
        assert!(text("t", &"ä".repeat(3), 3).is_ok());
        for bad in ["", "abcd", "a\0", "a\n"] {
            assert!(text("t", bad, 3).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn items_name_the_culprit() {
        let detail = |list: &[(&str, i64)]| items(list.iter().copied()).unwrap_err().to_string();
        assert!(detail(&[]).contains("items must be"));
        assert!(detail(&[("a", 1), ("a", 1)]).contains("items[1].sku"));
        assert!(detail(&[("a", 1), ("b", 0)]).contains("items[1].quantity"));
        let many: Vec<_> = (0..101).map(|n| (format!("s{n}"), 1)).collect();
        let many: Vec<_> = many.iter().map(|(sku, n)| (sku.as_str(), *n)).collect();
        assert!(items(many[..100].iter().copied()).is_ok());
        assert!(detail(&many).contains("not 101"));
    }
}
