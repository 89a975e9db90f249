//! Which partitions are ours to take, and when: never two takeovers at once, and a partition that was
//! lost no sooner than the group has had its say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::claim::Claim;

/// A partition that another owner has fenced is taken again no sooner: by then the group has had
/// two heartbeats to say that it is not ours any more, so that two replicas never fence each other
/// in turn.
const CONFIRMED_AFTER: Duration = Duration::from_secs(5);
/// The longest pause; it doubles from one loss to the next.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Partitions that are ours to take.
#[derive(Default)]
pub(crate) struct Wanted {
    not_before: BTreeMap<i32, Instant>,
    /// The takeover under way, by its generation.
    taking: Option<(u64, Arc<Claim>)>,
    /// Takeovers that are over or count no more, as long as a thread of theirs may fence somebody: one
    /// that was not waited for, or one whose lane makes its client anew.
    others: Vec<Arc<Claim>>,
    /// How often each was lost since it last carried something out.
    losses: BTreeMap<i32, u32>,
}

impl Wanted {
    pub(super) fn add(&mut self, partitions: impl IntoIterator<Item = i32>, at: Instant) {
        self.not_before.extend(partitions.into_iter().map(|partition| (partition, at)));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.not_before.is_empty()
    }

    /// How many are ours to take, and not taken.
    pub(super) fn count(&self) -> usize {
        self.not_before.len()
    }

    pub(super) fn clear(&mut self) {
        self.not_before.clear();
        self.withdraw();
    }

    /// The takeover under way counts no more, and no lane of those before may fence any more.
    pub(super) fn withdraw(&mut self) {
        self.others.extend(self.taking.take().map(|(_, claim)| claim));
        self.others.iter().for_each(|claim| claim.withdraw());
    }

    /// Whether no takeover of before fences anybody: once withdrawn, each ends its call within
    /// `worker::INIT_STEP`.
    pub(super) fn is_quiet(&mut self) -> bool {
        // Held by nobody else, nobody is left who could.
        self.others.retain(|claim| Arc::strong_count(claim) > 1 || !claim.is_quiet());
        self.others.iter().all(|claim| claim.is_quiet())
    }

    /// A takeover begins.
    pub(super) fn takes(&mut self, generation: u64, claim: Arc<Claim>) {
        self.taking = Some((generation, claim));
    }

    /// Whether it is the takeover under way, and counts.
    pub(super) fn is_taking(&self, generation: u64) -> bool {
        self.taking.as_ref().is_some_and(|(taking, _)| *taking == generation)
    }

    /// A takeover has ended; false if it counts no more.
    pub(super) fn taken(&mut self, generation: u64) -> bool {
        let taken = self.taking.take_if(|(taking, _)| *taking == generation);
        let counts = taken.is_some();
        self.others.extend(taken.map(|(_, claim)| claim));
        counts
    }

    /// The partition is owned now.
    pub(super) fn owned(&mut self, partition: i32) {
        self.not_before.remove(&partition);
    }

    /// What is to be taken now. One takeover at a time: an older one would fence the lanes of a newer.
    pub(super) fn due(&mut self) -> Vec<i32> {
        if self.taking.is_some() || !self.is_quiet() {
            return Vec::new();
        }
        let now = Instant::now();
        let due = self.not_before.iter().filter(|(_, at)| **at <= now);
        due.map(|(partition, _)| *partition).collect()
    }

    /// It is to be taken again after this pause.
    pub(super) fn lost(&mut self, partition: i32) -> Duration {
        let losses = self.losses.entry(partition).or_default();
        let pause = pause_after(*losses);
        *losses += 1;
        self.not_before.insert(partition, Instant::now() + pause);
        pause
    }

    /// It carries outcomes out: its next loss is the first again.
    pub(super) fn works(&mut self, partition: i32) {
        self.losses.remove(&partition);
    }
}

/// The pause after so many losses before.
pub(super) fn pause_after(losses: u32) -> Duration {
    CONFIRMED_AFTER.saturating_mul(1 << losses.min(8)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_takeover_that_counts_no_more_is_waited_for_while_it_fences() {
        let (mut wanted, claim) = (Wanted::default(), Arc::<Claim>::default());
        wanted.takes(1, Arc::clone(&claim));
        let fencing = claim.fence().expect("nobody has withdrawn it");
        wanted.clear();
        assert!(!wanted.taken(1) && claim.is_withdrawn());
        wanted.add([3], Instant::now());
        assert!(!wanted.is_quiet() && wanted.due().is_empty(), "its call is under way");
        assert!(claim.fence().is_none(), "no other begins");
        drop(fencing);
        assert_eq!(wanted.due(), [3]);
    }

    #[test]
    fn a_takeover_that_is_over_is_waited_for_while_a_thread_of_it_fences() {
        let (mut wanted, claim) = (Wanted::default(), Arc::<Claim>::default());
        wanted.takes(1, Arc::clone(&claim));
        let late = claim.fence().expect("nobody has withdrawn it");
        assert!(wanted.taken(1), "one of its partitions did not answer in time");
        wanted.add([3], Instant::now());
        assert!(wanted.due().is_empty(), "that one's call is under way");
        drop(late);
        assert_eq!(wanted.due(), [3]);
        let anew = claim.fence().expect("a lane may make its client anew");
        assert!(!wanted.is_quiet());
        wanted.withdraw();
        drop(anew);
        assert!(wanted.is_quiet() && claim.fence().is_none(), "not once it is given up");
        drop(claim);
        assert!(wanted.is_quiet() && wanted.others.is_empty());
    }

    #[test]
    fn a_lost_partition_waits_longer_from_loss_to_loss() {
        let mut wanted = Wanted::default();
        assert_eq!(wanted.lost(3), CONFIRMED_AFTER);
        assert_eq!(wanted.lost(3), CONFIRMED_AFTER * 2);
        (0..40).for_each(|_| assert!(wanted.lost(3) <= LONGEST_PAUSE));
        assert_eq!(wanted.lost(3), LONGEST_PAUSE);
        assert!(wanted.due().is_empty(), "not before its time");
        wanted.works(3);
        assert_eq!(wanted.lost(3), CONFIRMED_AFTER);
    }
}
