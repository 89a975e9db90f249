//! What a log means: one half after the other, nothing but its records, no progress, no crash.

use halfmsg_protocol::{HalfRef, Origin, ParkCause, Record, TransactionId, Verdict};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Open { epoch: u32, attempts: u32, stored_at: i64 },
    Committed { at: i64 },
    RolledBack,
    Parked { epoch: u32, attempts: u32, cause: ParkCause, at: i64 },
}

#[derive(Debug, Clone)]
pub(crate) struct SpecHalf {
    pub(crate) id: TransactionId,
    pub(crate) offset: i64,
    pub(crate) state: State,
    pub(crate) reopened: u32,
    /// Where its client wrote it again.
    pub(crate) copies: Vec<i64>,
    /// Where somebody stored another message under its id, which is lost.
    pub(crate) others: Vec<i64>,
    topic: String,
    /// Its application has decided, so that no copy follows.
    pub(crate) is_acknowledged: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Spec {
    pub(crate) halves: Vec<SpecHalf>,
}

impl Spec {
    pub(crate) fn of<'a>(records: impl IntoIterator<Item = (i64, &'a Record)>) -> Self {
        let mut spec = Self::default();
        for (offset, record) in records {
            spec.apply(offset, record);
        }
        spec
    }

    fn named(&mut self, of: HalfRef) -> Option<&mut SpecHalf> {
        let stands_at = |half: &SpecHalf, at| half.offset == at || half.copies.contains(&at);
        self.halves.iter_mut().find(|half| stands_at(half, of.half.0) && half.id == of.id)
    }

    fn apply(&mut self, offset: i64, record: &Record) {
        match record {
            Record::Half(meta) => {
                if let Some(half) = self.halves.iter_mut().find(|half| half.id == meta.id) {
                    let is_copy = half.topic == meta.topic;
                    return if is_copy { &mut half.copies } else { &mut half.others }.push(offset);
                }
                self.halves.push(SpecHalf {
                    id: meta.id,
                    offset,
                    state: State::Open { epoch: 0, attempts: 0, stored_at: offset },
                    reopened: 0,
                    copies: Vec::new(),
                    others: Vec::new(),
                    topic: meta.topic.clone(),
                    is_acknowledged: false,
                });
            }
            Record::Decision(decision) => {
                let Some(half) = self.named(decision.of) else { return };
                half.is_acknowledged |= decision.origin == Origin::Producer;
                let State::Open { epoch, .. } = half.state else { return };
                if decision.of.epoch.0 <= epoch {
                    half.state = match decision.verdict {
                        Verdict::Commit => State::Committed { at: offset },
                        Verdict::Rollback => State::RolledBack,
                    };
                }
            }
            Record::Checked(checked) => {
                let Some(half) = self.named(checked.of) else { return };
                if let State::Open { epoch, attempts, .. } = &mut half.state
                    && *epoch == checked.of.epoch.0
                    && *attempts + 1 == checked.attempt
                {
                    *attempts += 1;
                }
            }
            Record::Park(park) => {
                let Some(half) = self.named(park.of) else { return };
                let State::Open { epoch, attempts, .. } = half.state else { return };
                let matches = epoch == park.of.epoch.0 && attempts == park.attempts;
                if matches && park.cause != ParkCause::Undeliverable {
                    half.state = State::Parked { epoch, attempts, cause: park.cause, at: offset };
                }
            }
            Record::Reopen(reopen) => {
                let Some(half) = self.named(reopen.of) else { return };
                let State::Parked { epoch, .. } = half.state else { return };
                if epoch == reopen.of.epoch.0 {
                    half.reopened += 1;
                    half.state = State::Open { epoch: epoch + 1, attempts: 0, stored_at: offset };
                }
            }
        }
    }
}
