//! What a log means, in the plainest words: the lives of every half message, and how each of them
//! ended. Nothing but records; no progress, no owner, no crash. It must never use the ledger.

use halfmsg_protocol::{HalfRef, ParkCause, Record, TransactionId, Verdict};

/// How a life stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Open { attempts: u32 },
    Decided { verdict: Verdict, at: i64 },
    Parked { at: i64 },
}

/// From a HALF, or the REOPEN that counts, to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) stored_at: i64,
    pub(crate) fate: Fate,
    /// A decision came that contradicts the one that counts.
    pub(crate) contradicted: bool,
    /// A decision came while it was parked, or for a life that was over.
    pub(crate) late: bool,
}

impl Life {
    pub(crate) fn is_decided_at(&self, offset: i64) -> bool {
        matches!(self.fate, Fate::Decided { at, .. } if at == offset)
    }
}

/// One half message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct History {
    pub(crate) id: TransactionId,
    pub(crate) offset: i64,
    pub(crate) lives: Vec<Life>,
}

impl History {
    pub(crate) fn last(&self) -> (u32, &Life) {
        let epoch = u32::try_from(self.lives.len() - 1).expect("it is small");
        (epoch, &self.lives[self.lives.len() - 1])
    }
}

/// The halves of a log, in their order.
pub(crate) fn read<'a>(records: impl IntoIterator<Item = &'a Option<Record>>) -> Vec<History> {
    let mut halves = Vec::new();
    for (offset, record) in (0..).zip(records) {
        if let Some(record) = record {
            apply(&mut halves, offset, record);
        }
    }
    halves
}

/// Takes one more record in.
pub(crate) fn apply(halves: &mut Vec<History>, offset: i64, record: &Record) {
    let of = match record {
        Record::Half(meta) => {
            let lives = vec![life(offset)];
            return halves.push(History { id: meta.id, offset, lives });
        }
        Record::Decision(decision) => decision.of,
        Record::Checked(checked) => checked.of,
        Record::Park(park) => park.of,
        Record::Reopen(reopen) => reopen.of,
    };
    let named = |half: &&mut History| half.offset == of.half.0 && half.id == of.id;
    if let Some(half) = halves.iter_mut().find(named) {
        about(half, offset, record, of);
    }
}

fn about(half: &mut History, offset: i64, record: &Record, of: HalfRef) {
    let epoch = half.last().0;
    let last = half.lives.len() - 1;
    let now = &mut half.lives[last];
    if let Record::Decision(decision) = record {
        now.late |= of.epoch.0 < epoch || matches!(now.fate, Fate::Parked { .. });
        now.contradicted |=
            matches!(now.fate, Fate::Decided { verdict, .. } if verdict != decision.verdict);
    }
    match (record, now.fate) {
        (Record::Decision(decision), Fate::Open { .. }) if of.epoch.0 <= epoch => {
            now.fate = Fate::Decided { verdict: decision.verdict, at: offset };
        }
        (Record::Checked(checked), Fate::Open { attempts })
            if of.epoch.0 == epoch && checked.attempt == attempts + 1 =>
        {
            now.fate = Fate::Open { attempts: attempts + 1 };
        }
        (Record::Park(park), Fate::Open { attempts })
            if of.epoch.0 == epoch
                && park.attempts == attempts
                && park.cause != ParkCause::Undeliverable =>
        {
            now.fate = Fate::Parked { at: offset };
        }
        // That a commit was refused and parked is no record: it is taken from this, that nobody
        // opens again what is not durably parked.
        (
            Record::Reopen(_),
            Fate::Parked { .. } | Fate::Decided { verdict: Verdict::Commit, .. },
        ) if of.epoch.0 == epoch => half.lives.push(life(offset)),
        _ => {}
    }
}

fn life(stored_at: i64) -> Life {
    let fate = Fate::Open { attempts: 0 };
    Life { stored_at, fate, contradicted: false, late: false }
}
