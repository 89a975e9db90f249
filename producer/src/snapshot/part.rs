//! One partition as it was found: its state as a fold over the records that are read, beside what of
//! it is carried out and what the parked topic holds.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use halfmsg_protocol::{
    HalfOffset, Ledger, Open, Outcome, ParkedHalf, ParkedState, Progress, TransactionId,
};
use rdkafka::message::{BorrowedMessage, Message};

use super::Wanted;
use super::walk::{self, Found, Walk, read};
use crate::parked::{self, ParkedPartition};
use crate::resolver::query::{Seen, What};
use crate::stored::Place;

/// A partition as it was found.
pub(crate) struct Part {
    pub(crate) partition: i32,
    pub(crate) ledger: Ledger,
    pub(crate) place: Place,
    /// Records below are carried out.
    pub(crate) position: i64,
    /// Where and why nothing behind is read, by this look and by any owner.
    pub(crate) stopped: Option<String>,
    /// Committed, and its delivery is not stored as progress: by the offset of the decision.
    pub(crate) undelivered: BTreeMap<i64, HalfOffset>,
    /// Decisions that deliver and are carried out, from [`Wanted::from`] on.
    pub(crate) delivered: u64,
    /// What the parked topic holds: half and offset of the PARK.
    parked: HashSet<(HalfOffset, i64)>,
    /// Records of a newer format that are passed.
    skipped: BTreeSet<i64>,
}

impl Part {
    pub(super) fn new(
        partition: i32,
        place: Place,
        found: ParkedPartition,
        wanted: &Wanted,
    ) -> Self {
        let at = |offset| Progress { low_water: offset, position: offset };
        let (begin, stopped) = match (place.begin(), wanted.from) {
            (Ok(begin), _) => (begin, None),
            (Err(_), Some(_)) => (at(place.start), None),
            (Err(why), None) => (at(place.end), Some(format!("partition {partition}: {why}"))),
        };
        // A look that begins between two copies of a message would not know them for what they are.
        let from = match wanted.from {
            Some(from) if from < begin.low_water => place.start,
            _ => begin.low_water,
        };
        let ParkedPartition { states, skipped } = found;
        let entries = states.iter().filter_map(|state| match state {
            ParkedState::Parked(parked) => Some((parked.half.offset, parked.parked_at)),
            ParkedState::Settled { .. } => None,
        });
        Self {
            partition,
            place,
            position: begin.position,
            stopped,
            undelivered: BTreeMap::new(),
            delivered: 0,
            parked: entries.collect(),
            skipped,
            ledger: Ledger::new(from, states).lets_linger(Duration::MAX),
        }
    }

    pub(super) fn take_in(
        &mut self,
        message: &BorrowedMessage<'_>,
        store: &str,
        wanted: &Wanted,
    ) -> Walk {
        let offset = message.offset();
        match read(message) {
            Found::Record { record, appended_ms } => {
                let id = record.id();
                let outcome = if wanted.body_of == Some(id) {
                    let body = parked::users_body(message);
                    self.ledger.apply(record, body, offset, appended_ms)
                } else {
                    let part = (walk::key(message), message.payload());
                    self.ledger.apply_keyed(record, part, offset, appended_ms)
                };
                match (&outcome, offset < self.position) {
                    (Outcome::Deliver { .. }, true) => {
                        self.delivered += u64::from(wanted.from.is_some_and(|from| offset >= from));
                    }
                    (Outcome::Deliver { half, .. }, false) => {
                        self.undelivered.insert(offset, half.offset);
                    }
                    _ => {}
                }
                if offset < self.position {
                    self.ledger.replayed(offset);
                }
            }
            Found::Foreign => self.ledger.pass(offset + 1),
            Found::Newer(_) if self.skipped.contains(&offset) => self.ledger.pass(offset + 1),
            Found::Newer(error) => {
                self.stopped = Some(format!("{store}[{}]@{offset}: {error}", self.partition));
                return Walk::Leave;
            }
        }
        Walk::On
    }

    /// Parked ones that a next owner could not know from the parked topic.
    pub(crate) fn unwritten(&self) -> impl Iterator<Item = &ParkedHalf> {
        let is_written = |parked: &ParkedHalf| {
            self.is_durable(parked) || self.parked.contains(&(parked.half.offset, parked.parked_at))
        };
        self.ledger.parked_from(HalfOffset(0)).filter(move |parked| !is_written(parked))
    }

    /// Whether every owner to come knows that it is parked, as the resolver's core has it.
    fn is_durable(&self, parked: &ParkedHalf) -> bool {
        parked.parked_at < self.position
    }

    fn seen(&self, what: What) -> Seen {
        Seen { partition: self.partition, owned: false, stopped: self.stopped.clone(), what }
    }

    pub(crate) fn open(&self, open: &Open) -> Seen {
        self.seen(What::Open(open.clone(), None))
    }

    pub(crate) fn parked(&self, parked: &ParkedHalf) -> Seen {
        self.seen(What::Parked(parked.clone(), self.is_durable(parked)))
    }

    /// The message of this identity, if this partition has it.
    pub(crate) fn find(&self, id: TransactionId) -> Option<Seen> {
        if let Some(open) = self.ledger.find_open(id) {
            return Some(self.open(open));
        }
        match self.ledger.find_parked(id) {
            Some(parked) => Some(self.parked(parked)),
            None => {
                self.ledger.find_closed(id).map(|closed| self.seen(What::Closed(closed.clone())))
            }
        }
    }
}
