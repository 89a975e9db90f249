//! The demonstration's stock: what `HALFMSG_SEED` says, and what it costs.

use std::collections::HashSet;

use halfmsg_service_kit::{Mistakes, validate};

use crate::store::receipts::MAX_RECEIPT;

/// The reference of the receipt that brings a seeded product.
pub const REFERENCE: &str = "seed";

/// Prices of the products that the documentation orders, in cents.
const PRICES: [(&str, i64); 3] = [("apple", 120), ("banana", 80), ("cherry", 250)];
/// The price of any other product, in cents.
const OTHER_PRICE: i64 = 100;

/// A product that is added at start if it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedProduct {
    /// Its identity, and its name.
    pub sku: String,
    /// How many come in.
    pub quantity: i64,
    /// The price of one, in cents.
    pub price_cents: i64,
}

/// Reads `sku=quantity,…`; every entry that is wrong adds a line to the mistakes.
pub(crate) fn read(name: &str, text: &str, mistakes: &mut Mistakes) -> Vec<SeedProduct> {
    let mut seen = HashSet::new();
    let mut products = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        match product(entry) {
            Some(product) if seen.insert(product.sku.clone()) => products.push(product),
            Some(product) => mistakes.add(format!("{name} names '{}' twice", product.sku)),
            None => mistakes.add(format!(
                "{name} has the entry '{entry}': it must be sku=quantity, as in apple=100, with \
                 a quantity from 1 to {MAX_RECEIPT}"
            )),
        }
    }
    products
}

fn product(entry: &str) -> Option<SeedProduct> {
    let (sku, quantity) = entry.split_once('=')?;
    let (sku, quantity) = (sku.trim(), quantity.trim().parse().ok()?);
    validate::sku("sku", sku).ok()?;
    if !(1..=MAX_RECEIPT).contains(&quantity) {
        return None;
    }
    let priced = PRICES.iter().find(|(priced, _)| *priced == sku);
    let price_cents = priced.map_or(OTHER_PRICE, |(_, cents)| *cents);
    Some(SeedProduct { sku: sku.to_owned(), quantity, price_cents })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<SeedProduct>, usize) {
        let mut mistakes = Mistakes::new();
        let products = super::read("HALFMSG_SEED", text, &mut mistakes);
        (products, mistakes.lines().len())
    }

    #[test]
    fn reads_products_and_knows_their_prices() {
        let (products, mistakes) = read("apple=100, banana=50,cherry=10,pear=1,");
        let found: Vec<_> =
            products.iter().map(|p| (p.sku.as_str(), p.quantity, p.price_cents)).collect();
        let wanted =
            [("apple", 100, 120), ("banana", 50, 80), ("cherry", 10, 250), ("pear", 1, 100)];
        assert_eq!((found.as_slice(), mistakes), (wanted.as_slice(), 0));
        assert_eq!(read(""), (Vec::new(), 0));
    }

    #[test]
    fn names_every_wrong_entry() {
        for wrong in
            ["apple", "apple=", "=1", "apple=0", "apple=-1", "a b=1", "apple=1000000001", "a=b=1"]
        {
            assert_eq!(read(wrong), (Vec::new(), 1), "{wrong}");
        }
        assert_eq!(read("apple=1,apple=2").1, 1);
    }
}
