//! Row 35: deductions and restores that meet at their barrier, on the tier's database.

use super::Env;

/// 35. Whatever the order in which deducts and restores of an order come and meet, one effect.
pub(crate) async fn c35_deducts_and_restores_meet_at_the_barrier(env: Env) {
    let database = env.database().await;
    stock_svc::scenarios::all(database.url()).await;
}
