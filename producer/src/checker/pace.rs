//! What is known of a listener from calls before: how many halves it answers for at once, which it
//! failed for alone, and which were not singled out when a question was over. It must never keep a
//! half from being asked about.

use std::collections::{BTreeMap, HashMap};

use halfmsg_protocol::{Answer, TransactionId};

use super::call::is_not_reached;
use crate::message::HalfMessage;

/// So many halves that failed, alone or with others, are known; the oldest is forgotten first, which
/// costs the next question about it one search more.
const BLAMED_KEPT: usize = 10_000;
/// From here on a call is bounded by the question only; it is the largest `check_batch`.
const UNBOUNDED: usize = 10_000;

/// What is known of a half that is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing bad.
    Clean,
    /// A call of this question did not reach it.
    NotReached,
    /// It was in a call of this question that failed.
    Failed,
    /// It was in a call of an earlier question that failed, and was not asked about alone.
    Doubted,
    /// It failed alone.
    Suspect,
}

/// A half that failed.
#[derive(Debug)]
struct Blamed {
    /// Its place in the order of failures.
    at: u64,
    /// It failed alone; else it is only in doubt.
    alone: bool,
}

/// Of one purpose's listener.
#[derive(Debug)]
pub(super) struct Pace {
    most: usize,
    most_doubted: usize,
    blamed: HashMap<TransactionId, Blamed>,
    order: BTreeMap<u64, TransactionId>,
    failures: u64,
}

impl Default for Pace {
    fn default() -> Self {
        let (blamed, order) = (HashMap::new(), BTreeMap::new());
        Self { most: UNBOUNDED, most_doubted: 1, blamed, order, failures: 0 }
    }
}

impl Pace {
    /// The most halves of the next call about these.
    pub(super) fn most(&self, kind: Kind) -> usize {
        match kind {
            Kind::Doubted => self.most_doubted,
            Kind::Suspect => 1,
            Kind::Clean | Kind::NotReached | Kind::Failed => self.most,
        }
    }

    /// A call about these gave no answers: the next one about such asks about half as many, at least
    /// one; of those in doubt, about one. One alone says nothing of how large calls may be.
    pub(super) fn failed(&mut self, kind: Kind, halves: &[HalfMessage]) {
        match (kind, halves) {
            (_, [one]) => self.blame(one.transaction_id, true),
            (Kind::Clean, _) => self.most = (halves.len() / 2).max(1),
            (Kind::Doubted, _) => self.most_doubted = 1,
            _ => {}
        }
    }

    /// A call about these gave no answers and goes on: when they can be asked about again, each is
    /// asked about alone, because another call of several might end the same way.
    pub(super) fn blocked(&mut self, halves: &[HalfMessage]) {
        halves.iter().for_each(|half| self.blame(half.transaction_id, true));
    }

    /// A call about these gave answers. If it was as large as may be, and all were reached, the next
    /// may be twice that.
    pub(super) fn answered(&mut self, kind: Kind, halves: &[HalfMessage], answers: &[Answer]) {
        let most = match kind {
            Kind::Clean => Some(&mut self.most),
            Kind::Doubted => Some(&mut self.most_doubted),
            Kind::NotReached | Kind::Failed | Kind::Suspect => None,
        };
        if let Some(most) = most.filter(|most| halves.len() >= **most)
            && !answers.iter().any(is_not_reached)
        {
            *most = most.saturating_mul(2).min(UNBOUNDED);
        }
        if self.blamed.is_empty() {
            return;
        }
        for (half, _) in halves.iter().zip(answers).filter(|(_, answer)| !is_not_reached(answer)) {
            self.trust(half.transaction_id);
        }
    }

    /// What is known of it.
    pub(super) fn kind(&self, id: TransactionId) -> Kind {
        match self.blamed.get(&id) {
            None => Kind::Clean,
            Some(Blamed { alone: false, .. }) => Kind::Doubted,
            Some(Blamed { alone: true, .. }) => Kind::Suspect,
        }
    }

    /// The place of its last failure: who failed longest ago has the least.
    pub(super) fn blamed_at(&self, id: TransactionId) -> Option<u64> {
        self.blamed.get(&id).map(|blamed| blamed.at)
    }

    /// It failed together with others, and nobody had the time to find out whether it is to blame.
    pub(super) fn doubt(&mut self, id: TransactionId) {
        if self.kind(id) == Kind::Clean {
            self.blame(id, false);
        }
    }

    /// Until it was answered, it is asked about alone and last; one in doubt, behind the others.
    fn blame(&mut self, id: TransactionId, alone: bool) {
        self.trust(id);
        self.failures += 1;
        self.blamed.insert(id, Blamed { at: self.failures, alone });
        self.order.insert(self.failures, id);
        if self.order.len() > BLAMED_KEPT
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.blamed.remove(&oldest);
        }
    }

    fn trust(&mut self, id: TransactionId) {
        if let Some(blamed) = self.blamed.remove(&id) {
            self.order.remove(&blamed.at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> TransactionId {
        TransactionId::from_bytes((number as u128).to_be_bytes())
    }

    fn halves(count: usize) -> Vec<HalfMessage> {
        (0..count).map(super::super::tests::half).collect()
    }

    #[test]
    fn calls_shrink_to_one_by_failures_and_grow_back_by_answers() {
        let mut pace = Pace::default();
        let mut sizes = Vec::new();
        for _ in 0..10 {
            let halves = halves(pace.most(Kind::Clean).min(256));
            sizes.push(halves.len());
            pace.failed(Kind::Clean, &halves);
        }
        assert_eq!(sizes, [256, 128, 64, 32, 16, 8, 4, 2, 1, 1]);
        for kind in [Kind::Clean, Kind::Doubted] {
            pace.answered(kind, &halves(1), &[Answer::Commit]);
            assert_eq!(pace.most(kind), 2);
            pace.answered(kind, &halves(1), &[Answer::Commit]);
            assert_eq!(pace.most(kind), 2, "a small call proves nothing of a larger one");
            for _ in 0..20 {
                let halves = halves(pace.most(kind));
                pace.answered(kind, &halves, &vec![Answer::Commit; halves.len()]);
            }
            assert_eq!(pace.most(kind), UNBOUNDED);
        }
        pace.failed(Kind::Doubted, &halves(256));
        let sizes = [Kind::Doubted, Kind::Clean, Kind::Suspect].map(|kind| pace.most(kind));
        assert_eq!(sizes, [1, UNBOUNDED, 1], "each has a pace of its own");
    }

    #[test]
    fn knows_so_many_that_failed() {
        let mut pace = Pace::default();
        for number in 0..=BLAMED_KEPT {
            pace.doubt(id(number));
            assert_eq!(pace.kind(id(number)), Kind::Doubted);
            pace.blame(id(number), true);
            pace.doubt(id(number));
            assert_eq!(pace.kind(id(number)), Kind::Suspect, "it failed alone");
        }
        assert_eq!((pace.blamed.len(), pace.order.len()), (BLAMED_KEPT, BLAMED_KEPT));
        assert_eq!(pace.kind(id(0)), Kind::Clean);
        assert!(pace.blamed_at(id(1)) < pace.blamed_at(id(2)));
        pace.blame(id(1), true);
        assert!(pace.blamed_at(id(1)) > pace.blamed_at(id(BLAMED_KEPT)), "it failed again");
        pace.trust(id(1));
        assert!(pace.kind(id(1)) == Kind::Clean && pace.order.len() == BLAMED_KEPT - 1);
    }
}
