//! Products that are there from the start, with their stock.

use super::products::insert_product_in_tx;
use super::receipts::{Received, receive_in_tx};
use super::{LOCK_TIMEOUT, StockStore, StoreError};
use crate::seed::{REFERENCE, SeedProduct};

impl StockStore {
    /// Adds those of these products that are not there, each with its receipt in one transaction;
    /// leaves the others as they are. Answers the skus that were added.
    ///
    /// Repeating is harmless, also by several replicas at once: whoever makes a product brings its
    /// stock.
    ///
    /// # Errors
    /// [`StoreError`]; products before the one that failed may have been added.
    pub async fn seed(&self, products: &[SeedProduct]) -> Result<Vec<String>, StoreError> {
        let mut added = Vec::new();
        for product in products {
            if self.seed_one(product).await? {
                added.push(product.sku.clone());
            }
        }
        Ok(added)
    }

    async fn seed_one(&self, product: &SeedProduct) -> Result<bool, StoreError> {
        let SeedProduct { sku, quantity, price_cents } = product;
        self.within(async {
            let transaction = self.begin(LOCK_TIMEOUT).await?;
            if !insert_product_in_tx(&transaction, sku, sku, *price_cents).await? {
                return Ok(false);
            }
            match receive_in_tx(&transaction, sku, REFERENCE, *quantity).await? {
                Received::Added { .. } => {}
                other => {
                    return Err(StoreError::Unreadable(format!("the stock of '{sku}': {other:?}")));
                }
            }
            transaction.commit().await?;
            Ok(true)
        })
        .await
    }
}
