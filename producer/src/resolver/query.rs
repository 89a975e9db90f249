//! What the views and operators ask a resolver; answered between two polls, from memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use halfmsg_protocol::{Closed, Half, HalfOffset, Ledger, Open, ParkedHalf, TransactionId};
use tokio::sync::oneshot;

use super::{Owned, Resolver};

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
        reply: oneshot::Sender<Known<Vec<Seen>>>,
    },
    /// One half.
    Find { id: TransactionId, reply: oneshot::Sender<Known<Option<Seen>>> },
    /// Open and parked halves that share this local transaction.
    Sharing { local: TransactionId, reply: oneshot::Sender<Known<Vec<TransactionId>>> },
    /// The offset of the next record of a partition, if it is owned here.
    Position { partition: i32, reply: oneshot::Sender<Option<i64>> },
}

/// What is known here, and of which partitions everything is known.
#[derive(Default)]
pub(crate) struct Known<T> {
    pub(crate) partitions: BTreeSet<i32>,
    /// Those of them that stand still, and why: of what lies behind that nothing is known.
    pub(crate) stopped: BTreeMap<i32, String>,
    pub(crate) what: T,
}

/// A half as it was seen.
pub(crate) struct Seen {
    pub(crate) partition: i32,
    /// Whether it is in the memory of this replica, which owns its partition.
    pub(crate) owned: bool,
    /// Why nothing more of its partition is read, if so.
    pub(crate) stopped: Option<String>,
    pub(crate) what: What,
}

pub(crate) enum What {
    /// Open; with the time until its next check, if none is under way.
    Open(Open, Option<std::time::Duration>),
    /// Parked; whether every owner to come knows it.
    Parked(ParkedHalf, bool),
    Closed(Closed),
}

impl Seen {
    /// The ordering key, unless the message is closed: nothing keeps it then.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        match &self.what {
            What::Open(open, _) => open.half.body.key.as_deref(),
            What::Parked(parked, _) => parked.half.body.key.as_deref(),
            What::Closed(_) => None,
        }
    }

    pub(crate) fn place(&self) -> (i32, i64) {
        let offset = match &self.what {
            What::Open(open, _) => open.half.offset,
            What::Parked(parked, _) => parked.half.offset,
            What::Closed(closed) => closed.half,
        };
        (self.partition, offset.0)
    }
}

/// The halves in this state from an offset on: at most so many open, and so many parked.
pub(crate) fn select(
    ledger: &Ledger,
    state: Option<HalfState>,
    begin: HalfOffset,
    limit: usize,
) -> (Vec<&Open>, Vec<&ParkedHalf>) {
    let count = |shown: bool| if shown { limit } else { 0 };
    let open = ledger.open_from(begin).take(count(state != Some(HalfState::Parked)));
    let parked = ledger.parked_from(begin).take(count(state != Some(HalfState::Open)));
    (open.collect(), parked.collect())
}

/// The halves that share this local transaction and are not decided.
pub(crate) fn sharing(
    ledger: &Ledger,
    local: TransactionId,
) -> impl Iterator<Item = TransactionId> {
    let open = ledger.open_from(HalfOffset(0)).map(|open| &open.half);
    let parked = ledger.parked_from(HalfOffset(0)).map(|parked| &parked.half);
    let shares = move |half: &&Arc<Half>| half.meta.local_transaction == Some(local);
    open.chain(parked).filter(shares).map(|half| half.meta.id)
}

impl Resolver {
    // Whoever asked may have gone away: an answer that nobody takes is dropped.
    pub(super) fn query(&mut self, query: Query) {
        match query {
            Query::List { ref reply, .. } if reply.is_closed() => {}
            Query::Find { ref reply, .. } if reply.is_closed() => {}
            Query::List { state, from, limit, reply } => {
                let what = self.list(state, from, limit);
                let _ = reply.send(self.known(what));
            }
            Query::Find { id, reply } => {
                let what = self.find(id);
                let _ = reply.send(self.known(what));
            }
            Query::Sharing { local, reply } => {
                let known = self.owned.values().filter(|owned| !owned.is_behind());
                let what = known.flat_map(|owned| sharing(owned.core.ledger(), local)).collect();
                let _ = reply.send(self.known(what));
            }
            Query::Position { partition, reply } => {
                let position =
                    self.owned.get(&partition).map(|owned| owned.core.ledger().position());
                let _ = reply.send(position);
            }
        }
    }

    /// This, and the partitions of which everything up to the takeover was read, or up to where they
    /// stand still.
    fn known<T>(&self, what: T) -> Known<T> {
        let known = || self.owned.iter().filter(|(_, owned)| !owned.is_behind());
        let why = |(partition, owned): (&i32, &Owned)| Some((*partition, owned.stopped.clone()?));
        Known {
            partitions: known().map(|(partition, _)| *partition).collect(),
            stopped: known().filter_map(why).collect(),
            what,
        }
    }

    fn list(&self, state: Option<HalfState>, from: (i32, i64), limit: usize) -> Vec<Seen> {
        let mut found = Vec::new();
        for (partition, owned) in self.owned.range(from.0..) {
            if found.len() >= limit {
                break;
            }
            if owned.is_behind() {
                continue;
            }
            let begin = HalfOffset(if *partition == from.0 { from.1 } else { 0 });
            let ledger = owned.core.ledger();
            let (open, parked) = select(ledger, state, begin, limit);
            let mut here: Vec<Seen> =
                open.into_iter().map(|open| self.open(*partition, open)).collect();
            here.extend(parked.into_iter().map(|parked| self.parked(*partition, owned, parked)));
            here.sort_by_key(Seen::place);
            found.extend(here);
        }
        found.truncate(limit);
        found
    }

    fn find(&self, id: TransactionId) -> Option<Seen> {
        let known = self.owned.iter().filter(|(_, owned)| !owned.is_behind());
        known.into_iter().find_map(|(partition, owned)| {
            let ledger = owned.core.ledger();
            if let Some(open) = ledger.find_open(id) {
                return Some(self.open(*partition, open));
            }
            if let Some(parked) = ledger.find_parked(id) {
                return Some(self.parked(*partition, owned, parked));
            }
            let closed = ledger.find_closed(id)?.clone();
            Some(self.seen(*partition, What::Closed(closed)))
        })
    }

    fn seen(&self, partition: i32, what: What) -> Seen {
        let stopped = self.owned.get(&partition).and_then(|owned| owned.stopped.clone());
        Seen { partition, owned: true, stopped, what }
    }

    fn parked(&self, partition: i32, owned: &Owned, parked: &ParkedHalf) -> Seen {
        let durable = owned.core.is_park_durable(parked);
        self.seen(partition, What::Parked(parked.clone(), durable))
    }

    fn open(&self, partition: i32, open: &Open) -> Seen {
        let now = self.started.elapsed();
        let next =
            self.owned.get(&partition).and_then(|owned| owned.core.next_check(open.half.offset));
        let until = next.map(|due| due.saturating_sub(now));
        self.seen(partition, What::Open(open.clone(), until))
    }
}
