//! What the resolver's thread tells everybody else without being asked.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::resolver::Owned;

/// State that both sides see.
pub(crate) struct Shared {
    /// Per store partition, bytes of the log that replay needs.
    retained: Vec<AtomicU64>,
    /// The store's partitions when they were last counted.
    counted: AtomicI32,
    resolver_runs: AtomicBool,
    /// Whether any partition is stopped: what every prepare asks, without the lock.
    any_stopped: AtomicBool,
    state: Mutex<State>,
}

/// What the resolver says of itself.
#[derive(Default)]
pub(crate) struct Standing {
    /// Partitions are ours to take, and not taken yet.
    pub(crate) taking_over: bool,
    /// Why nothing is read at all, if its consumer is being replaced.
    pub(crate) renewing: Option<String>,
    /// What has waited for too long to be carried out, and for what.
    pub(crate) overdue: Option<String>,
    /// Which halves cannot be asked about, and why.
    pub(crate) failing: Option<String>,
    /// Of whose logs something was missing when they were taken over, and what.
    pub(crate) cut: Vec<String>,
}

#[derive(Default)]
struct State {
    standing: Standing,
    /// The group has said which partitions are ours; there may be none left for this replica.
    joined: bool,
    stopped: BTreeMap<i32, String>,
    broker: Option<String>,
    /// What this client has no right to, if the broker said so.
    denied: Option<String>,
    /// Why the last attempt to take partitions over did not give all, if that is known.
    takeover: Option<String>,
}

impl State {
    /// Takes in which partitions are stopped, and why; false if that was known.
    fn stops(&mut self, stopped: &BTreeMap<i32, &str>) -> bool {
        let is_known =
            |(of, why): (&i32, &&str)| self.stopped.get(of).is_some_and(|was| was == why);
        if self.stopped.len() == stopped.len() && stopped.iter().all(is_known) {
            return false;
        }
        self.stopped = stopped.iter().map(|(of, why)| (*of, (*why).to_owned())).collect();
        true
    }
}

impl Shared {
    pub(crate) fn new(partitions: i32) -> Self {
        let count = usize::try_from(partitions).unwrap_or(0);
        Self {
            retained: (0..count).map(|_| AtomicU64::new(0)).collect(),
            counted: AtomicI32::new(partitions),
            resolver_runs: AtomicBool::new(true),
            any_stopped: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    /// Called by the resolver from time to time.
    pub(crate) fn publish(&self, owned: &BTreeMap<i32, Owned>, mut standing: Standing) {
        for (partition, owned) in owned {
            let ledger = owned.core.ledger();
            let slot = usize::try_from(*partition).ok().and_then(|at| self.retained.get(at));
            if let Some(slot) = slot {
                slot.store(ledger.retained_bytes(), Ordering::Relaxed);
            }
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.joined |= standing.taking_over || !owned.is_empty();
        standing.taking_over |= owned.values().any(Owned::is_behind);
        state.standing = standing;
        let stopped = owned.iter().filter_map(|(of, owned)| Some((*of, owned.stopped.as_deref()?)));
        if state.stops(&stopped.collect()) {
            self.any_stopped.store(!state.stopped.is_empty(), Ordering::Relaxed);
        }
    }

    /// The resolver's thread has ended.
    pub(crate) fn resolver_ended(&self) {
        self.resolver_runs.store(false, Ordering::Relaxed);
    }

    /// The group has dealt its partitions out, and left none for this replica.
    pub(crate) fn joined(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).joined = true;
    }

    /// What the last look at the broker gave.
    pub(crate) fn broker(&self, problem: Option<String>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).broker = problem;
    }

    /// The store has so many partitions now.
    pub(crate) fn count(&self, partitions: i32) {
        self.counted.store(partitions, Ordering::Relaxed);
    }

    /// The number of the store's partitions when they were last counted: some may have been added
    /// since the start, and given to another replica.
    pub(crate) fn counted(&self) -> i32 {
        self.counted.load(Ordering::Relaxed)
    }

    /// The number of the store's partitions, as it was at the start.
    pub(crate) fn partitions(&self) -> i32 {
        i32::try_from(self.retained.len()).unwrap_or(i32::MAX)
    }

    /// Why taking partitions over did not give all of them; `None` once it did.
    pub(crate) fn takeover_failed(&self, why: Option<String>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).takeover = why;
    }

    /// The broker refuses what the resolver must be allowed; `None` once it does not any more.
    pub(crate) fn denied(&self, what: Option<String>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).denied = what;
    }

    /// Bytes of a partition's log that replay needs.
    pub(crate) fn retained(&self, partition: i32) -> u64 {
        let slot = usize::try_from(partition).ok().and_then(|at| self.retained.get(at));
        slot.map_or(0, |slot| slot.load(Ordering::Relaxed))
    }

    /// Why nothing that is stored in this partition would be carried out, if so.
    pub(crate) fn stuck(&self, partition: i32) -> Option<String> {
        if !self.resolver_runs.load(Ordering::Relaxed) {
            return Some("the resolver has ended: restart this process".into());
        }
        if !self.any_stopped.load(Ordering::Relaxed) {
            return None;
        }
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.stopped.get(&partition).cloned()
    }

    /// What is wrong although the producer is ready.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.standing.failing.iter().chain(&state.standing.cut).cloned().collect()
    }

    /// Why the producer is not ready, if it is not.
    pub(crate) fn health(&self) -> Result<(), String> {
        if !self.resolver_runs.load(Ordering::Relaxed) {
            return Err("the resolver has ended".into());
        }
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(problem) = &state.broker {
            return Err(format!("Kafka does not answer: {problem}"));
        }
        if let Some(denied) = &state.denied {
            return Err(denied.clone());
        }
        if let Some(reason) = state.stopped.values().next() {
            return Err(format!("a partition is stopped: {reason}"));
        }
        let Standing { taking_over, renewing, overdue, failing: _, cut: _ } = &state.standing;
        if let Some(why) = renewing.as_ref() {
            return Err(why.clone());
        }
        if !state.joined {
            return Err("joining the producer group".into());
        }
        if *taking_over {
            return Err(match &state.takeover {
                Some(why) => format!("the store's partitions cannot be taken over: {why}"),
                None => "the store's partitions are being taken over".into(),
            });
        }
        overdue.clone().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_ready_once_the_group_has_dealt_out_even_if_it_got_nothing() {
        let shared = Shared::new(1);
        shared.publish(&BTreeMap::new(), Standing::default());
        assert_eq!(shared.health(), Err("joining the producer group".into()));
        shared.joined();
        assert_eq!(shared.health(), Ok(()));
    }

    #[test]
    fn a_resolver_that_stands_still_is_told() {
        let shared = Shared::new(1);
        let taking_over = Standing { taking_over: true, ..Standing::default() };
        shared.publish(&BTreeMap::new(), taking_over);
        assert!(shared.health().is_err_and(|why| why.contains("taken over")));
        shared.publish(&BTreeMap::new(), Standing::default());
        assert_eq!(shared.health(), Ok(()));
        let renewing = Standing { renewing: Some("made anew".into()), ..Standing::default() };
        shared.publish(&BTreeMap::new(), renewing);
        assert_eq!(shared.health(), Err("made anew".into()));
        let overdue = Standing { overdue: Some("for 31 s".into()), ..Standing::default() };
        shared.publish(&BTreeMap::new(), overdue);
        assert_eq!(shared.health(), Err("for 31 s".into()));
    }

    /// Between two looks the stop of one partition may end and that of another begin.
    #[test]
    fn as_many_other_stops_take_the_place_of_those_before() {
        let mut state = State::default();
        let mut stops = |stopped: &[(i32, &'static str)]| {
            let is_new = state.stops(&stopped.iter().copied().collect());
            let shown = state.stopped.iter().map(|(of, why)| (*of, why.clone()));
            assert!(shown.eq(stopped.iter().map(|(of, why)| (*of, (*why).to_owned()))));
            is_new
        };
        assert!(stops(&[(1, "a newer record")]));
        assert!(!stops(&[(1, "a newer record")]), "nothing new");
        assert!(stops(&[(2, "a newer record")]));
        assert!(stops(&[(2, "another log")]), "for another reason");
        assert!(stops(&[]));
    }

    /// What is lost must not take a replica out of service that goes on with the rest.
    #[test]
    fn a_log_that_was_cut_is_a_warning() {
        let shared = Shared::new(1);
        shared.joined();
        let cut = Standing { cut: vec!["s[0]: cut".into()], ..Standing::default() };
        shared.publish(&BTreeMap::new(), cut);
        assert_eq!((shared.health(), shared.warnings()), (Ok(()), vec!["s[0]: cut".to_owned()]));
    }

    /// One message that cannot be asked about must not take a replica out of service.
    #[test]
    fn checks_that_fail_are_a_warning_and_the_replica_stays_ready() {
        let shared = Shared::new(1);
        shared.joined();
        let failing = Standing { failing: Some("away".into()), ..Standing::default() };
        shared.publish(&BTreeMap::new(), failing);
        assert_eq!((shared.health(), shared.warnings()), (Ok(()), vec!["away".to_owned()]));
        shared.publish(&BTreeMap::new(), Standing::default());
        assert!(shared.warnings().is_empty());
    }
}
