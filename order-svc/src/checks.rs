//! Answers check-backs from the orders' rows, for the purposes whose fence is that row.
//!
//! It must never answer from anything else, and never before there is a row.

use halfmsg_producer::{HalfMessage, ListenerResult, LocalTransactionState, TransactionId};
use halfmsg_service_kit::telemetry::LIFE;

use crate::decision::Fate;
use crate::draft::Draft;
use crate::model::{Flow, Order, OrderStatus};
use crate::payload::PayloadError;
use crate::store::fence::Fenced;
use crate::store::{OrderStore, StoreError};

/// Asks the rows. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RowChecks {
    store: OrderStore,
}

impl RowChecks {
    /// On this store.
    pub fn new(store: OrderStore) -> Self {
        Self { store }
    }

    /// What became of the local transactions of these half messages; `read` gives the draft that
    /// one was stored for.
    pub async fn states(
        &self,
        halves: &[HalfMessage],
        read: impl Fn(&HalfMessage) -> Result<Draft, PayloadError>,
    ) -> Vec<ListenerResult<LocalTransactionState>> {
        let (drafts, places) = drafts(halves, read);
        let found = self.store.fence_check(&drafts).await;
        let mut states = Vec::with_capacity(halves.len());
        for (half, place) in halves.iter().zip(places) {
            let draft = place.and_then(|at| drafts.get(at).zip(found.get(at)));
            states.push(match draft {
                Some((draft, found)) => self.state(half.transaction_id, draft, found).await,
                None => Ok(LocalTransactionState::Unknown),
            });
        }
        states
    }

    /// Completes a row that was written void before its half message was known.
    pub async fn adopt(&self, fate: &Fate, by: TransactionId) {
        if fate.is_unclaimed()
            && let Err(error) = self.store.adopt(fate.id, by).await
        {
            tracing::debug!(order_id = %fate.id, %error, "the row keeps its own transaction id");
        }
    }

    async fn state(
        &self,
        transaction_id: TransactionId,
        draft: &Draft,
        found: &Result<Fenced, StoreError>,
    ) -> ListenerResult<LocalTransactionState> {
        let &Draft { id: order_id, flow, .. } = draft;
        let Fenced { fate, tombstone } = match found {
            Ok(found) => found,
            // Somebody looked: its local transaction is under way, or its row is no sense to this version.
            Err(
                error @ (StoreError::Contended(_)
                | StoreError::Unreadable(_)
                | StoreError::UnreadableOrder { .. }),
            ) => {
                tracing::warn!(%order_id, %transaction_id, %error, "the order's fate is not known yet");
                return Ok(LocalTransactionState::Unknown);
            }
            Err(error) => return Err(error.clone().into()),
        };
        if *tombstone {
            let and = match flow {
                Flow::Rollback => ", and its stock is restored",
                Flow::Saga => "",
            };
            tracing::info!(
                target: LIFE, %order_id, %transaction_id,
                "check-back found no order: it is void now{and}"
            );
        }
        match fate.decides(transaction_id, flow) {
            Ok(state) => {
                self.adopt(fate, transaction_id).await;
                Ok(state)
            }
            Err(error) => {
                tracing::error!(%order_id, %transaction_id, "{error}: it stays unknown");
                Ok(LocalTransactionState::Unknown)
            }
        }
    }
}

/// The drafts of the halves that can be read, and where each half's is among them.
fn drafts(
    halves: &[HalfMessage],
    read: impl Fn(&HalfMessage) -> Result<Draft, PayloadError>,
) -> (Vec<Draft>, Vec<Option<usize>>) {
    let mut drafts = Vec::with_capacity(halves.len());
    let mut places = Vec::with_capacity(halves.len());
    for half in halves {
        places.push(match read(half) {
            Ok(draft) => {
                drafts.push(draft);
                Some(drafts.len() - 1)
            }
            Err(error) => {
                let (transaction_id, partition) = (half.transaction_id, half.partition);
                let offset = half.offset;
                let key = half.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
                tracing::error!(
                    %transaction_id, key, partition, offset,
                    "{error}: it stays unknown"
                );
                None
            }
        });
    }
    (drafts, places)
}

/// Says in the log what became of an order.
pub(crate) fn tell_life(order: &Order) {
    let Order { id: order_id, transaction_id, .. } = order;
    match (order.status, &order.reason) {
        (OrderStatus::Void, reason) => tracing::info!(
            target: LIFE, %order_id, %transaction_id,
            "order void: {}", reason.as_deref().unwrap_or("no reason given")
        ),
        (status, _) => tracing::info!(
            target: LIFE, %order_id, %transaction_id,
            "order {}: {} cents", status.as_str(), order.total_cents
        ),
    }
}
