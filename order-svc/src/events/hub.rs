//! Takes events in and keeps the last of them, so that whoever comes back hears what it missed.
//!
//! It must never make anybody wait: a lock is held for as long as it takes to push one event, or to
//! copy a bounded number of pointers.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use halfmsg_producer::{LifeEvent, LifeObserver, TransactionId};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::data::OrderMoved;
use super::event::{Event, What, cut};
use crate::model::{Order, OrderId, OrderStatus};

/// Events that are kept for those who come back.
pub(super) const KEPT_EVENTS: usize = 8_192;
/// Watchers at once; more are refused.
pub(super) const MAX_SUBSCRIBERS: usize = 64;
/// Who comes for the first time hears so many of the last events.
const FIRST_EVENTS: u64 = 500;
/// Characters of the name of this process's events.
const BOOT_CHARS: usize = 12;

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Process {
    boot: String,
}

/// The events of this process. Cheap to clone.
#[derive(Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

struct Inner {
    /// Tells the events of this process from those of an earlier one.
    boot: String,
    ring: Mutex<Ring>,
    /// The number of the last event.
    last: watch::Sender<u64>,
    places: Arc<Semaphore>,
    closed: CancellationToken,
}

#[derive(Default)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    /// The number of the last event; the first is 1.
    last: u64,
}

impl Ring {
    /// The number of the event before the oldest one kept.
    fn begin(&self) -> u64 {
        self.last - self.events.len() as u64
    }
}

/// Where a watcher begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    /// It hears what comes after this number.
    pub(super) after: u64,
    /// Why it must read the lists again, if so.
    pub(super) reset: Option<&'static str>,
}

/// The watcher is further behind than what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooFarBehind;

impl Default for Hub {
    fn default() -> Self {
        let boot = Uuid::new_v4().simple().to_string()[..BOOT_CHARS].to_owned();
        let (last, _) = watch::channel(0);
        let places = Arc::new(Semaphore::new(MAX_SUBSCRIBERS));
        let closed = CancellationToken::new();
        Self { inner: Arc::new(Inner { boot, ring: Mutex::default(), last, places, closed }) }
    }
}

impl Hub {
    /// An order has this status, since its row says so.
    pub fn order(&self, order: &Order) {
        let Order { id, transaction_id, status, updated_at, .. } = *order;
        // A void row that was written before its half message was known names itself.
        let known = transaction_id.as_uuid() != id.as_uuid();
        let reason = order.reason.as_deref();
        self.status(known.then_some(transaction_id), id, (status, updated_at), reason);
    }

    /// An order that waited has this status, since its row says so, by what stock-svc answered.
    pub fn answered(&self, id: OrderId, since: (OrderStatus, DateTime<Utc>), reason: Option<&str>) {
        self.status(None, id, since, reason);
    }

    fn status(
        &self,
        transaction_id: Option<TransactionId>,
        id: OrderId,
        (status, since): (OrderStatus, DateTime<Utc>),
        reason: Option<&str>,
    ) {
        self.push(Event {
            transaction_id,
            order_id: Some(id.as_uuid()),
            at_ms: Some(since.timestamp_millis()),
            what: What::Order(OrderMoved { status, reason: reason.map(cut) }),
        });
    }

    /// Adds what tells this process's figures from those of another replica behind the same address:
    /// the name that its events have.
    pub fn register(&self, registry: &mut Registry) {
        let info: Family<Process, Gauge> = Family::default();
        info.get_or_create(&Process { boot: self.boot().to_owned() }).set(1);
        registry.register(
            "halfmsg_process_info",
            "1; the label boot is what the ids of this process's events begin with",
            info,
        );
    }

    /// Ends every stream; new ones are refused.
    pub fn close(&self) {
        self.inner.closed.cancel();
    }

    pub(super) fn closed(&self) -> &CancellationToken {
        &self.inner.closed
    }

    pub(super) fn boot(&self) -> &str {
        &self.inner.boot
    }

    /// A place for one more watcher, if there is one.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.inner.places).try_acquire_owned().ok()
    }

    /// Hears that there are new events.
    pub(super) fn listen(&self) -> watch::Receiver<u64> {
        self.inner.last.subscribe()
    }

    /// Where a watcher begins that has heard everything up to `last_id`, or comes for the first
    /// time. What is still known of the time before is told behind a reset, too.
    pub(super) fn start(&self, last_id: Option<&str>) -> Start {
        let ring = self.ring();
        let reset = |reason| Start { after: ring.begin(), reset: Some(reason) };
        let Some(last_id) = last_id else {
            let after = ring.last.saturating_sub(FIRST_EVENTS).max(ring.begin());
            return Start { after, reset: None };
        };
        let Some((boot, seq)) = last_id.rsplit_once('-') else { return reset("unknown_id") };
        let Ok(seq) = seq.parse::<u64>() else { return reset("unknown_id") };
        if boot != self.inner.boot {
            return reset("other_process");
        }
        match seq {
            seq if seq > ring.last => reset("unknown_id"),
            seq if seq < ring.begin() => reset("too_old"),
            after => Start { after, reset: None },
        }
    }

    /// Events behind a number, at most so many.
    pub(super) fn after(&self, seq: u64, most: usize) -> Result<Vec<Arc<Event>>, TooFarBehind> {
        let ring = self.ring();
        let skip = seq.checked_sub(ring.begin()).ok_or(TooFarBehind)?;
        let skip = usize::try_from(skip).map_err(|_| TooFarBehind)?;
        Ok(ring.events.iter().skip(skip).take(most).cloned().collect())
    }

    fn push(&self, event: Event) {
        let last = {
            let mut ring = self.ring();
            if ring.events.len() == KEPT_EVENTS {
                ring.events.pop_front();
            }
            ring.events.push_back(Arc::new(event));
            ring.last += 1;
            ring.last
        };
        // Two at once may come here in the other order: the number never goes back.
        self.inner.last.send_if_modified(|known| {
            let is_news = last > *known;
            *known = last.max(*known);
            is_news
        });
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.inner.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LifeObserver for Hub {
    fn observe(&self, event: &LifeEvent<'_>) {
        if let Some(event) = Event::of(event) {
            self.push(event);
        }
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hub({})", self.inner.boot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(events: usize) -> Hub {
        let hub = Hub::default();
        for _ in 0..events {
            let id = OrderId::generate();
            hub.answered(id, (OrderStatus::Confirmed, DateTime::UNIX_EPOCH), None);
        }
        hub
    }

    fn id(hub: &Hub, seq: u64) -> String {
        format!("{}-{seq}", hub.boot())
    }

    #[test]
    fn who_comes_back_hears_what_it_missed() {
        let hub = hub(10);
        let start = hub.start(Some(&id(&hub, 7)));
        assert_eq!(start, Start { after: 7, reset: None });
        assert_eq!(hub.after(7, 100).map(|events| events.len()), Ok(3));
        assert_eq!(hub.after(7, 2).map(|events| events.len()), Ok(2));
        assert_eq!(hub.after(10, 2).map(|events| events.len()), Ok(0));
    }

    #[test]
    fn what_cannot_be_replayed_is_a_reset() {
        let hub = hub(KEPT_EVENTS + 5);
        let begins = |last: &str| hub.start(Some(last));
        assert_eq!(begins(&id(&hub, 4)), Start { after: 5, reset: Some("too_old") });
        assert_eq!(begins(&id(&hub, 5)), Start { after: 5, reset: None });
        assert_eq!(begins("another-7").reset, Some("other_process"));
        let future = id(&hub, KEPT_EVENTS as u64 + 6);
        for unknown in ["", "x", "-", &format!("{}-x", hub.boot()), &future] {
            assert_eq!(begins(unknown).reset, Some("unknown_id"), "{unknown}");
        }
        assert_eq!(hub.after(4, 1), Err(TooFarBehind));
    }

    #[test]
    fn a_newcomer_hears_the_last_ones() {
        assert_eq!(hub(3).start(None), Start { after: 0, reset: None });
        assert_eq!(hub(600).start(None), Start { after: 100, reset: None });
    }

    #[test]
    fn watchers_have_a_bound() {
        let hub = Hub::default();
        let places: Vec<_> = (0..MAX_SUBSCRIBERS).map_while(|_| hub.place()).collect();
        assert_eq!(places.len(), MAX_SUBSCRIBERS);
        assert!(hub.place().is_none());
        drop(places);
        assert!(hub.place().is_some());
    }
}
