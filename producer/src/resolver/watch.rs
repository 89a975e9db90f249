//! What the resolver tells about itself: whether it stands still, and how old what it holds is.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use halfmsg_protocol::{Epoch, HalfOffset, Ledger, ParkCause, Progress};

use super::emitter::{Item, JobEnd, Trouble, Work};
use super::{Owned, Resolver};
use crate::admin::view::{rfc3339, stored_ms};
use crate::clock;
use crate::metrics::Metrics;
use crate::shared::Standing;

/// An outcome that is not carried out for longer is told as a problem: a broker that moves takes
/// less, and a target that is missing is refused before.
pub(crate) const OUTCOME_OVERDUE: Duration = Duration::from_secs(30);

/// Between two counts of the parked messages, and two looks for the oldest open one: each may go through
/// all of them, and there may be very many.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// Messages that are parked and not yet counted: only progress that is stored tells that no owner
/// parks them again.
#[derive(Default)]
pub(crate) struct Uncounted(Vec<(i64, ParkCause)>);

impl Uncounted {
    /// The record at this offset, or the refusal of its delivery, parks a message.
    pub(super) fn parked(&mut self, at: i64, cause: ParkCause) {
        self.0.push((at, cause));
    }

    /// Those that count now.
    pub(super) fn stored(&mut self, progress: Progress) -> Vec<ParkCause> {
        let counts = self.0.extract_if(.., |(at, _)| *at < progress.position);
        counts.map(|(_, cause)| cause).collect()
    }
}

/// A consumer that could not go on, until the group has dealt out to its successor.
pub(crate) struct Renewal {
    /// When the successor is made.
    pub(super) due: Instant,
    pub(super) why: String,
}

/// How long the deliveries of a batch took since their decisions were stored.
pub(super) fn observe_deliveries(metrics: &Metrics, items: &[Item], end: &JobEnd) {
    let JobEnd::Done(troubles) = end else { return };
    let wall_ms = clock::wall_ms();
    let mut troubles = troubles.iter().peekable();
    for (index, item) in items.iter().enumerate() {
        let trouble = troubles.next_if(|(at, _)| *at == index).map(|(_, trouble)| trouble);
        let is_done = matches!(trouble, None | Some(Trouble::Unmarked(_)));
        // A broker that keeps no times says 0.
        if is_done && item.appended_ms > 0 && matches!(item.work, Work::Deliver(..)) {
            let took = u64::try_from(wall_ms - item.appended_ms).unwrap_or(0);
            metrics.delivered_after(Duration::from_millis(took));
        }
    }
}

/// When the oldest open half was stored. One that was reopened keeps its place, and not all of them
/// know when that was. Behind the first that is in its first life, all were stored later.
fn oldest_ms(ledger: &Ledger) -> Option<i64> {
    let mut oldest: Option<i64> = None;
    for open in ledger.open_from(HalfOffset(0)) {
        let stored = stored_ms(open);
        oldest = Some(oldest.map_or(stored, |oldest| oldest.min(stored)));
        if open.epoch == Epoch::default() {
            break;
        }
    }
    oldest
}

impl Resolver {
    /// Brings up to date what others see.
    pub(super) fn publish(&mut self) {
        let standing = Standing {
            taking_over: !self.wanted.is_empty(),
            renewing: self.renewing(),
            overdue: self.overdue(),
            failing: self.failing(),
            cut: self.owned.values().filter_map(|owned| owned.cut.clone()).collect(),
        };
        self.shared.publish(&self.owned, standing);
        let stopped = self.owned.values().filter(|owned| owned.stopped.is_some()).count();
        self.metrics.standing_still(stopped, self.wanted.count());
        let wall_ms = clock::wall_ms();
        let counts = self.counted.is_none_or(|at| at.elapsed() >= COUNT_INTERVAL);
        if counts {
            self.counted = Some(Instant::now());
        }
        for (partition, owned) in &self.owned {
            let ledger = owned.core.ledger();
            self.metrics.open(*partition, ledger.open_count(), ledger.failing_count());
            if counts {
                let age = oldest_ms(ledger).map_or(0, |oldest| wall_ms.saturating_sub(oldest));
                self.metrics.oldest_open(*partition, age);
                self.metrics.parked_now(*partition, ledger.parked_count());
            }
        }
        let owned: BTreeSet<i32> = self.owned.keys().copied().collect();
        for gone in self.shown.difference(&owned) {
            self.metrics.not_owned(*gone);
        }
        self.shown = owned;
    }

    /// Why the store is not read at all, if its consumer is being replaced, or was and the group has
    /// not dealt out to the new one yet.
    fn renewing(&mut self) -> Option<String> {
        let has_any = !self.owned.is_empty() || !self.wanted.is_empty();
        self.renewal.take_if(|_| has_any);
        self.renewal.as_ref().map(|renewal| renewal.why.clone())
    }

    /// Halves that cannot be asked about, and why the first of them.
    fn failing(&self) -> Option<String> {
        let ledgers = || self.owned.values().map(|owned| owned.core.ledger());
        let first = ledgers().filter_map(Ledger::first_failing);
        let first = first.min_by_key(|open| open.failing_since_ms)?;
        let since = rfc3339(first.failing_since_ms.unwrap_or_default());
        let why = first.last_outcome.as_ref().map_or("", |(_, why)| why.as_str());
        Some(format!(
            "the checks of {} open half messages fail, of purpose '{}' since {since}: {why}; they are \
             asked again, and no attempt is counted",
            ledgers().map(Ledger::failing_count).sum::<usize>(),
            first.half.meta.purpose
        ))
    }

    /// What has waited for too long to be carried out, and for what.
    fn overdue(&self) -> Option<String> {
        let oldest = |(partition, owned): (&i32, &Owned)| {
            Some((self.now.saturating_sub(owned.lane.oldest()?), *partition))
        };
        let oldest = self.owned.iter().filter_map(oldest).max();
        self.metrics.oldest_outcome(oldest.map_or(Duration::ZERO, |(age, _)| age));
        let (age, partition) = oldest.filter(|(age, _)| *age > OUTCOME_OVERDUE)?;
        let lane = &self.owned.get(&partition)?.lane;
        let why = lane.trouble().unwrap_or("the brokers have not answered yet");
        Some(format!(
            "{}[{partition}]: an outcome has not been carried out for {} s: {why}",
            self.store,
            age.as_secs()
        ))
    }
}

#[cfg(test)]
mod tests {
    use halfmsg_protocol::TransactionId;

    use super::*;
    use crate::admin::view::ages::{id, reopened};

    #[test]
    fn a_parked_message_counts_once_and_only_when_nobody_parks_it_again() {
        let mut uncounted = Uncounted::default();
        uncounted.parked(5, ParkCause::MaxChecks);
        uncounted.parked(9, ParkCause::Undeliverable);
        let at = |position| Progress { low_water: 0, position };
        assert_eq!(uncounted.stored(at(5)), []);
        assert_eq!(uncounted.stored(at(6)), [ParkCause::MaxChecks]);
        assert_eq!(uncounted.stored(at(9)), []);
        assert_eq!(uncounted.stored(at(20)), [ParkCause::Undeliverable]);
        assert_eq!(uncounted.stored(at(20)), []);
    }

    #[test]
    fn reopening_makes_no_half_younger() {
        let stored = |ids| oldest_ms(&reopened(ids));
        assert_eq!(stored([id(990), id(1_990)]), Some(990));
        // A clock that is ahead, and an id that tells nothing: then at least the other one counts.
        assert_eq!(stored([id(9_000), id(1_990)]), Some(2_000));
        assert_eq!(stored([TransactionId::from_bytes([1; 16]), id(1_990)]), Some(2_000));
        assert_eq!(oldest_ms(&Ledger::new(0, [])), None);
    }
}
