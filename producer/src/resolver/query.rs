//! What the views and operators ask a resolver; answered between two polls, from memory.

use halfmsg_protocol::{Closed, HalfOffset, Open, ParkedHalf, TransactionId};
use tokio::sync::oneshot;

use super::{Event, Resolver};

/// Which halves a list shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HalfState {
    /// Nobody decided yet.
    Open,
    /// Given up on.
    Parked,
}

/// A question to the resolver.
pub(crate) enum Query {
    /// Halves in the order of partition and offset, from a place on.
    List {
        state: Option<HalfState>,
        from: (i32, i64),
        limit: usize,
        reply: oneshot::Sender<Vec<Seen>>,
    },
    /// One half.
    Find { id: TransactionId, reply: oneshot::Sender<Option<Seen>> },
    /// Ask about this half now; answers whether it is open here.
    CheckNow { id: TransactionId, reply: oneshot::Sender<bool> },
    /// The offset of the next record of a partition, if it is owned here.
    Position { partition: i32, reply: oneshot::Sender<Option<i64>> },
}

/// A half as it was seen.
pub(crate) struct Seen {
    pub(crate) partition: i32,
    pub(crate) what: What,
}

pub(crate) enum What {
    /// Open; with the time until its next check, if none is under way.
    Open(Open, Option<std::time::Duration>),
    /// Parked; whether that is written to the parked topic yet.
    Parked(ParkedHalf, bool),
    Closed(Closed),
}

impl Seen {
    fn place(&self) -> (i32, i64) {
        let offset = match &self.what {
            What::Open(open, _) => open.half.offset,
            What::Parked(parked, _) => parked.half.offset,
            What::Closed(closed) => closed.half,
        };
        (self.partition, offset.0)
    }
}

impl Resolver {
    // Whoever asked may have gone away: an answer that nobody takes is dropped.
    pub(super) fn query(&mut self, query: Query) {
        match query {
            Query::List { ref reply, .. } if reply.is_closed() => {}
            Query::Find { ref reply, .. } if reply.is_closed() => {}
            Query::List { state, from, limit, reply } => {
                let _ = reply.send(self.list(state, from, limit));
            }
            Query::Find { id, reply } => {
                let _ = reply.send(self.find(id));
            }
            Query::CheckNow { id, reply } => {
                let _ = reply.send(self.check_now(id));
            }
            Query::Position { partition, reply } => {
                let position =
                    self.owned.get(&partition).map(|owned| owned.core.ledger().position());
                let _ = reply.send(position);
            }
        }
    }

    fn list(&self, state: Option<HalfState>, from: (i32, i64), limit: usize) -> Vec<Seen> {
        let mut found = Vec::new();
        for (partition, owned) in self.owned.range(from.0..) {
            if found.len() >= limit {
                break;
            }
            let begin = HalfOffset(if *partition == from.0 { from.1 } else { 0 });
            let ledger = owned.core.ledger();
            let mut here = Vec::new();
            if state != Some(HalfState::Parked) {
                here.extend(
                    ledger.open_from(begin).take(limit).map(|open| self.open(*partition, open)),
                );
            }
            if state != Some(HalfState::Open) {
                here.extend(ledger.parked_from(begin).take(limit).map(|parked| Seen {
                    partition: *partition,
                    what: What::Parked(parked.clone(), owned.core.is_park_durable(parked)),
                }));
            }
            here.sort_by_key(Seen::place);
            found.extend(here);
        }
        found.truncate(limit);
        found
    }

    fn find(&self, id: TransactionId) -> Option<Seen> {
        self.owned.iter().find_map(|(partition, owned)| {
            let ledger = owned.core.ledger();
            if let Some(open) = ledger.find_open(id) {
                return Some(self.open(*partition, open));
            }
            let what = match ledger.find_parked(id) {
                Some(parked) => What::Parked(parked.clone(), owned.core.is_park_durable(parked)),
                None => What::Closed(ledger.find_closed(id)?.clone()),
            };
            Some(Seen { partition: *partition, what })
        })
    }

    fn open(&self, partition: i32, open: &Open) -> Seen {
        let now = self.started.elapsed();
        let next =
            self.owned.get(&partition).and_then(|owned| owned.core.next_check(open.half.offset));
        let until = next.map(|due| due.saturating_sub(now));
        Seen { partition, what: What::Open(open.clone(), until) }
    }

    fn check_now(&mut self, id: TransactionId) -> bool {
        let found = self.owned.iter().find_map(|(partition, owned)| {
            let half = owned.core.ledger().find_open(id)?.half.offset;
            Some((*partition, owned.generation, half))
        });
        let Some((partition, generation, half)) = found else { return false };
        self.step(partition, Some(generation), Event::CheckNow { half });
        true
    }
}
