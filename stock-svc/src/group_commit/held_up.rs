//! What becomes of deductions that failed together. Those whose product somebody else holds wait until it
//! is free, holding nothing meanwhile, and then queue up again; the others go again, without them.
//!
//! Nothing here may keep a group waiting: only a transaction that has one of the patient places waits
//! for longer than [`SHARED_LOCK_WAIT`]. Nor may one product that is held keep those of another one
//! waiting that is free again: for want of a place it is looked at again and again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::{HeldUp, Shared, Waiting};
use crate::store::{LOCK_TIMEOUT, SHARED_LOCK_WAIT, StoreError};

/// So often a product is looked at that somebody holds, where there is no place to wait for its lock.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// After a transaction that failed for one of its deductions, nobody knows which.
pub(super) async fn sort_out(shared: &Arc<Shared>, mut group: Vec<Waiting>, error: StoreError) {
    tracing::debug!(%error, orders = group.len(), "deductions that failed together go apart");
    if error.is_contended() {
        group = put_aside(shared, group).await;
        if group.is_empty() {
            return;
        }
        // Most often nobody holds up what is left.
        let Err((left, _)) = shared.together(group, SHARED_LOCK_WAIT).await else { return };
        group = left;
    } else if group.len() == 1 {
        return group.into_iter().for_each(|one| one.tell(Err(error.clone())));
    }
    for one in group {
        shared.tasks.spawn(alone(Arc::clone(shared), one));
    }
}

/// Leaves those whose product somebody else holds to the wait for it, and gives back the others.
async fn put_aside(shared: &Arc<Shared>, group: Vec<Waiting>) -> Vec<Waiting> {
    let skus = group.iter().flat_map(Waiting::skus);
    let place = shared.places.short.acquire().await;
    let held = shared.store.locked_elsewhere(skus).await;
    drop(place);
    let held = match held {
        Ok(held) => held,
        Err(error) => {
            tracing::debug!(%error, "nobody can tell which products are held");
            return group;
        }
    };
    let mut free = Vec::new();
    for one in group {
        match one.skus().find(|sku| held.contains(sku)) {
            Some(sku) => wait_for(shared, sku, one),
            None => free.push(one),
        }
    }
    free
}

fn wait_for(shared: &Arc<Shared>, sku: String, one: Waiting) {
    let mut queue = shared.queue();
    let held_up = HeldUp::from(one);
    if let Some(others) = queue.held_up.get_mut(&sku) {
        others.push_back(held_up);
        return;
    }
    queue.held_up.insert(sku.clone(), [held_up].into());
    shared.tasks.spawn(wait(Arc::clone(shared), sku));
}

/// Until the product is free, and who wants it queues up again; or until nobody wants it any more.
async fn wait(shared: Arc<Shared>, sku: String) {
    loop {
        // In a task of its own: if it panics, its callers are told.
        let seen = match shared.tasks.spawn(look(Arc::clone(&shared), sku.clone())).await {
            Ok(seen) => seen,
            Err(error) => {
                tracing::error!(%error, "the wait for a product broke off");
                Err(StoreError::Unreadable("a deduction broke off".into()))
            }
        };
        match seen {
            Ok(Seen::Free) => return go_on(&shared, &sku),
            Ok(Seen::Held) => {
                if !is_still_wanted(&shared, &sku) {
                    return;
                }
            }
            Err(error) => {
                let all = shared.queue().held_up.remove(&sku).into_iter().flatten();
                return all.for_each(|HeldUp { one, .. }| one.tell(Err(error.clone())));
            }
        }
    }
}

/// How a product was found.
enum Seen {
    Free,
    Held,
}

/// In a patient place as long as one order would wait, and in turn with whoever else waits for the lock;
/// else from outside, in a while.
async fn look(shared: Arc<Shared>, sku: String) -> Result<Seen, StoreError> {
    let Ok(_place) = shared.places.patient.try_acquire() else {
        sleep(LOOK_AGAIN).await;
        let _only = shared.places.looking.acquire().await;
        let _place = shared.places.short.acquire().await;
        let held = shared.store.locked_elsewhere([sku]).await?;
        return Ok(if held.is_empty() { Seen::Free } else { Seen::Held });
    };
    match shared.store.wait_for_stock(&sku).await {
        Ok(()) => Ok(Seen::Free),
        Err(error) if error.is_contended() => Ok(Seen::Held),
        Err(error) => Err(error),
    }
}

/// Not in the place where they waited: somebody may hold it again before it is their turn.
fn go_on(shared: &Arc<Shared>, sku: &str) {
    let queue = &mut *shared.queue();
    for HeldUp { one, .. } in queue.held_up.remove(sku).into_iter().flatten() {
        shared.queue_up(queue, one);
    }
}

/// Tells those who have waited for as long as one order would, and leaves out who is gone. Whether
/// anybody is left.
fn is_still_wanted(shared: &Shared, sku: &str) -> bool {
    let queue = &mut *shared.queue();
    let Some(waiting) = queue.held_up.remove(sku) else { return false };
    let mut left = VecDeque::with_capacity(waiting.len());
    for HeldUp { one, since } in waiting {
        if since.elapsed() >= LOCK_TIMEOUT {
            let (order_id, error) = (one.request.order_id, StoreError::Held(sku.to_owned()));
            let transaction_id = one.request.transaction_id.map(tracing::field::display);
            tracing::warn!(%order_id, transaction_id, "{error}");
            one.tell(Err(error));
        } else if !one.answer.is_closed() {
            left.push_back(HeldUp { one, since });
        }
    }
    let wanted = !left.is_empty();
    if wanted {
        queue.held_up.insert(sku.to_owned(), left);
    }
    wanted
}

/// What failed together is asked for alone; meanwhile others go on.
async fn alone(shared: Arc<Shared>, one: Waiting) {
    let turn = shared.places.alone.acquire().await;
    if one.answer.is_closed() {
        return;
    }
    let Err((group, error)) = shared.together(vec![one], SHARED_LOCK_WAIT).await else { return };
    if !error.is_contended() {
        return group.into_iter().for_each(|one| one.tell(Err(error.clone())));
    }
    let group = put_aside(&shared, group).await;
    drop(turn);
    for one in group {
        // Somebody works on the same order.
        if !shared.places.has_patient {
            one.tell(Err(error.clone()));
            continue;
        }
        let _place = shared.places.patient.acquire().await;
        if one.answer.is_closed() {
            continue;
        }
        if let Err((group, error)) = shared.together(vec![one], LOCK_TIMEOUT).await {
            group.into_iter().for_each(|one| one.tell(Err(error.clone())));
        }
    }
}
