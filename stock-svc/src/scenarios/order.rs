//! One request after the other, in every order.

use halfmsg_service_kit::db::begin_write;
use sea_orm::DatabaseConnection;
use uuid::Uuid;

use super::{
    available, item, items, moved, movements, new_sku, product, request, restore, restore_one,
    store_of,
};
use crate::model::{DeductionState, Refusal};
use crate::seed::SeedProduct;
use crate::store::barrier::{Deduct, DeductRequest, Restore, deduct_all_in_tx};
use crate::store::receipts::{MAX_AVAILABLE, Received};

/// Null compensation: nothing comes back, and the late deduct takes nothing.
pub async fn restore_before_deduct(database: &DatabaseConnection) {
    let store = store_of(database);
    let (sku, order) = (product(&store, 10).await, Uuid::now_v7());
    assert_eq!(restore_one(database, order, &sku).await, Restore::Voided);
    let late = store.deduct(order, &items(&[(&sku, 3)]), false).await.unwrap();
    assert_eq!(late, Deduct::OrderVoid(DeductionState::Void));
    let again = restore_one(database, order, &sku).await;
    assert_eq!(again, Restore::Before(DeductionState::Void));
    assert_eq!(available(&store, &sku).await, 10);
    assert_eq!(movements(&store, order).await, moved(&sku, &[("void", 0)]));
}

/// The hanging request: what was restored is not taken again.
pub async fn deduct_after_restore(database: &DatabaseConnection) {
    let store = store_of(database);
    let (sku, order) = (product(&store, 10).await, Uuid::now_v7());
    let wanted = items(&[(&sku, 3)]);
    let done = store.deduct(order, &wanted, false).await.unwrap();
    assert_eq!(done, Deduct::Deducted { before: false });
    assert_eq!(available(&store, &sku).await, 7);
    // The quantity comes from the movements, the product too.
    let back = restore_one(database, order, "another").await;
    assert_eq!(back, Restore::Restored(vec![item(&sku, 3)]));
    for late in [wanted, items(&[(&sku, 1)])] {
        let late = store.deduct(order, &late, false).await.unwrap();
        assert_eq!(late, Deduct::OrderVoid(DeductionState::Restored));
    }
    assert_eq!(available(&store, &sku).await, 10);
    assert_eq!(movements(&store, order).await, moved(&sku, &[("deduct", 3), ("restore", 3)]));
}

/// A repetition of either changes nothing.
pub async fn restore_twice_and_deduct_twice(database: &DatabaseConnection) {
    let store = store_of(database);
    let (sku, order) = (product(&store, 10).await, Uuid::now_v7());
    let wanted = items(&[(&sku, 3)]);
    for before in [false, true, true] {
        let done = store.deduct(order, &wanted, false).await.unwrap();
        assert_eq!(done, Deduct::Deducted { before });
    }
    assert_eq!(available(&store, &sku).await, 7);
    // Twice in one batch, and once more.
    let twice = [request(order, &sku), request(order, &sku)];
    let answers = restore(database, &twice).await.unwrap();
    let before = Restore::Before(DeductionState::Restored);
    assert_eq!(answers, [Restore::Restored(vec![item(&sku, 3)]), before.clone()]);
    assert_eq!(restore_one(database, order, &sku).await, before);
    assert_eq!(available(&store, &sku).await, 10);
    assert_eq!(movements(&store, order).await, moved(&sku, &[("deduct", 3), ("restore", 3)]));
}

/// The first answer stands, and a restore of it changes nothing.
pub async fn a_refused_deduct_repeated_after_stock_came_in(database: &DatabaseConnection) {
    let store = store_of(database);
    let (sku, order) = (product(&store, 2).await, Uuid::now_v7());
    let wanted = items(&[(&sku, 3)]);
    let refusal = Refusal::InsufficientStock { sku: sku.clone(), requested: 3, available: 2 };
    let first = store.deduct(order, &wanted, false).await.unwrap();
    assert_eq!(first, Deduct::Refused { refusal: refusal.clone(), before: false });
    store.receive(&sku, "more", 10).await.unwrap();
    let second = store.deduct(order, &wanted, false).await.unwrap();
    assert_eq!(second, Deduct::Refused { refusal, before: true });
    let restored = restore_one(database, order, &sku).await;
    assert_eq!(restored, Restore::Before(DeductionState::Refused));
    let third = store.deduct(order, &wanted, false).await.unwrap();
    assert_eq!(third, second, "a restore of a refused deduction leaves it refused");
    assert_eq!(available(&store, &sku).await, 12);
    assert_eq!(movements(&store, order).await, []);
}

/// One order cannot take two different things, whether the first was deducted or refused.
pub async fn other_items_change_nothing(database: &DatabaseConnection) {
    let store = store_of(database);
    let sku = product(&store, 10).await;
    for first in [3, 11] {
        let order = Uuid::now_v7();
        store.deduct(order, &items(&[(&sku, first)]), false).await.unwrap();
        let other = store.deduct(order, &items(&[(&sku, 4)]), false).await.unwrap();
        assert_eq!(other, Deduct::OtherItems);
    }
    assert_eq!(available(&store, &sku).await, 7);
}

/// One lack or one unknown sku refuses the whole order; the exact rest can be taken.
pub async fn all_or_none(database: &DatabaseConnection) {
    let store = store_of(database);
    let (much, little) = (product(&store, 10).await, product(&store, 1).await);
    let lack = store.deduct(Uuid::now_v7(), &items(&[(&much, 5), (&little, 2)]), false).await;
    let refusal = Refusal::InsufficientStock { sku: little.clone(), requested: 2, available: 1 };
    assert_eq!(lack.unwrap(), Deduct::Refused { refusal, before: false });
    let unknown = store.deduct(Uuid::now_v7(), &items(&[(&much, 5), ("nothing", 1)]), false).await;
    let refusal = Refusal::UnknownSku { sku: "nothing".into() };
    assert_eq!(unknown.unwrap(), Deduct::Refused { refusal, before: false });
    let exact = store.deduct(Uuid::now_v7(), &items(&[(&much, 10), (&little, 1)]), false).await;
    assert_eq!(exact.unwrap(), Deduct::Deducted { before: false });
    assert_eq!((available(&store, &much).await, available(&store, &little).await), (0, 0));
}

/// Many deductions in one transaction end as if each came after the one before: the earlier ones
/// take what there is, a repetition hears the first answer, a void order stays void.
pub async fn a_batch_is_as_one_after_the_other(database: &DatabaseConnection) {
    let store = store_of(database);
    let (sku, other) = (product(&store, 10).await, product(&store, 10).await);
    let ids: [Uuid; 5] = std::array::from_fn(|_| Uuid::now_v7());
    let [small, large, rest, void, before] = ids;
    restore_one(database, void, &sku).await;
    store.deduct(before, &items(&[(&other, 1)]), false).await.unwrap();
    let request = |order_id, wanted: &[(&str, i64)]| DeductRequest {
        order_id,
        items: items(wanted),
        induced: false,
        transaction_id: None,
    };
    // Not in the order of their ids.
    let requests = [
        request(rest, &[(&sku, 6), (&other, 2)]),
        request(small, &[(&sku, 3)]),
        request(large, &[(&sku, 2)]),
        request(void, &[(&sku, 1)]),
        request(small, &[(&sku, 3)]),
        request(large, &[(&sku, 2)]),
        request(before, &[(&other, 1)]),
        request(small, &[(&sku, 1)]),
    ];
    let transaction = begin_write(database).await.unwrap();
    let answers = deduct_all_in_tx(&transaction, &requests).await.unwrap();
    transaction.commit().await.unwrap();
    let refusal = Refusal::InsufficientStock { sku: sku.clone(), requested: 2, available: 1 };
    assert_eq!(
        answers,
        [
            Deduct::Deducted { before: false },
            Deduct::Deducted { before: false },
            Deduct::Refused { refusal: refusal.clone(), before: false },
            Deduct::OrderVoid(DeductionState::Void),
            Deduct::Deducted { before: true },
            Deduct::Refused { refusal, before: true },
            Deduct::Deducted { before: true },
            Deduct::OtherItems,
        ]
    );
    assert_eq!((available(&store, &sku).await, available(&store, &other).await), (1, 7));
    assert_eq!(movements(&store, small).await, moved(&sku, &[("deduct", 3)]));
    assert_eq!(movements(&store, large).await, []);
}

/// A reference counts once per sku, and only with its quantity.
pub async fn a_receipt_counts_once(database: &DatabaseConnection) {
    let store = store_of(database);
    let (sku, other) = (product(&store, 0).await, product(&store, 0).await);
    for (sku, quantity, expected) in [
        (sku.as_str(), 5, Received::Added { available: 5 }),
        (&sku, 5, Received::Before { available: 5 }),
        (&sku, 6, Received::OtherQuantity(5)),
        (&other, 6, Received::Added { available: 6 }),
        ("nothing", 5, Received::UnknownSku),
    ] {
        assert_eq!(store.receive(sku, "r", quantity).await.unwrap(), expected);
    }
    // One too many leaves no trace: the reference can be used again.
    let most = store.receive(&sku, "most", MAX_AVAILABLE).await.unwrap();
    assert_eq!(most, Received::TooMany);
    let most = store.receive(&sku, "most", MAX_AVAILABLE - 5).await.unwrap();
    assert_eq!(most, Received::Added { available: MAX_AVAILABLE });
    assert_eq!(store.receive(&sku, "one", 1).await.unwrap(), Received::TooMany);
    assert_eq!(available(&store, &sku).await, MAX_AVAILABLE);
}

/// A seed adds what is not there, at every start, and touches nothing else.
pub async fn a_seed_counts_once(database: &DatabaseConnection) {
    let store = store_of(database);
    let (there, new) = (product(&store, 0).await, new_sku());
    let seed =
        [&there, &new].map(|sku| SeedProduct { sku: sku.clone(), quantity: 7, price_cents: 120 });
    assert_eq!(store.seed(&seed).await.unwrap(), std::slice::from_ref(&new));
    let order = store.deduct(Uuid::now_v7(), &items(&[(&new, 2)]), false).await.unwrap();
    assert_eq!(order, Deduct::Deducted { before: false });
    assert_eq!(store.seed(&seed).await.unwrap(), Vec::<String>::new());
    let found = store.product(&new).await.unwrap().unwrap();
    assert_eq!((found.price_cents, found.available), (120, 5));
    let found = store.product(&there).await.unwrap().unwrap();
    assert_eq!((found.price_cents, found.available), (100, 0));
    assert_eq!(store.receive(&new, "seed", 7).await.unwrap(), Received::Before { available: 5 });
}
