//! What happened to one message, as far as it goes along with it: the records that say so are deleted with
//! the store's oldest, and a parked message outlives them. It must never decide anything.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::codec;
use crate::record::{AskedBy, HalfMeta, Record, Reopen};

/// So many steps are kept; the oldest give way.
const HISTORY_STEPS: usize = 16;
/// Each text of a step is cut to so many bytes.
const HISTORY_TEXT_BYTES: usize = 160;

/// Offset, time, and the length of the record.
const STEP_HEAD: usize = 18;

/// The checks, decisions, parks and reopenings of a message so far, within bounds. Cheap to clone; one
/// without steps takes no memory. Two ledgers that differ in it alone behave alike, so it has no part in
/// their hash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History(Option<Arc<Kept>>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Kept {
    steps: VecDeque<Step>,
    left_out: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    offset: i64,
    at_ms: i64,
    record: Box<[u8]>,
}

/// One step of a [`History`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastStep {
    /// Where its record stood in the store.
    pub offset: i64,
    /// When that was appended, milliseconds since the epoch.
    pub at_ms: i64,
    /// What it said; texts may be cut, and a REOPEN names no application, purpose or topic.
    pub record: Record,
}

impl History {
    /// Nothing but that it was stored.
    pub const NONE: Self = Self(None);

    pub(super) fn push(&mut self, record: Record, offset: i64, at_ms: i64) {
        let record = codec::encode(&shortened(record)).into_boxed_slice();
        let kept = Arc::make_mut(self.0.get_or_insert_default());
        if kept.steps.len() == HISTORY_STEPS {
            kept.steps.pop_front();
            kept.left_out = kept.left_out.saturating_add(1);
        }
        kept.steps.push_back(Step { offset, at_ms, record });
    }

    /// Whether nothing is known but that it was stored.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Earlier steps that are not kept.
    pub fn left_out(&self) -> u32 {
        self.0.as_ref().map_or(0, |kept| kept.left_out)
    }

    /// The steps that are kept, oldest first.
    pub fn steps(&self) -> impl Iterator<Item = PastStep> {
        let steps = self.0.iter().flat_map(|kept| &kept.steps);
        steps.filter_map(|&Step { offset, at_ms, ref record }| {
            let record = codec::decode(record).ok()?;
            Some(PastStep { offset, at_ms, record })
        })
    }

    /// As bytes: how many steps were left out (4, little endian), then of each its offset (8), its time (8),
    /// the length of its record (2) and that. `None` if there are none.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let kept = self.0.as_ref()?;
        let mut bytes = kept.left_out.to_le_bytes().to_vec();
        for Step { offset, at_ms, record } in &kept.steps {
            bytes.extend_from_slice(&offset.to_le_bytes());
            bytes.extend_from_slice(&at_ms.to_le_bytes());
            let length = u16::try_from(record.len()).expect("its texts are cut");
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(record);
        }
        Some(bytes)
    }

    /// What these bytes say, as far as they can be read: a history is there to be shown, and nothing may
    /// depend on it. Never panics.
    pub fn decode(bytes: &[u8]) -> Self {
        let Some((left_out, mut rest)) = bytes.split_first_chunk() else { return Self::default() };
        let mut kept = Kept { steps: VecDeque::new(), left_out: u32::from_le_bytes(*left_out) };
        while kept.steps.len() < HISTORY_STEPS
            && let Some((step, behind)) = read_step(rest)
        {
            kept.steps.push_back(step);
            rest = behind;
        }
        Self((!kept.steps.is_empty()).then(|| Arc::new(kept)))
    }
}

impl Hash for History {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

fn read_step(bytes: &[u8]) -> Option<(Step, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<STEP_HEAD>()?;
    let (offset, head) = head.split_first_chunk()?;
    let (at_ms, length) = head.split_first_chunk()?;
    let length = usize::from(u16::from_le_bytes(length.try_into().ok()?));
    let (record, rest) = rest.split_at_checked(length)?;
    let (offset, at_ms) = (i64::from_le_bytes(*offset), i64::from_le_bytes(*at_ms));
    Some((Step { offset, at_ms, record: record.into() }, rest))
}

/// The same with short texts, and without what the message itself says.
fn shortened(record: Record) -> Record {
    match record {
        Record::Half(meta) => Record::Half(meta),
        Record::Decision(mut decision) => {
            cut(&mut decision.reason);
            decision.operator.iter_mut().for_each(cut);
            Record::Decision(decision)
        }
        Record::Checked(mut checked) => {
            cut(&mut checked.reason);
            if let Some(AskedBy { operator, reason }) = checked.asked_by.as_deref_mut() {
                cut(operator);
                cut(reason);
            }
            Record::Checked(checked)
        }
        Record::Park(mut park) => {
            cut(&mut park.reason);
            Record::Park(park)
        }
        Record::Reopen(reopen) => {
            let Reopen { of, meta, mut operator, mut reason } = *reopen;
            let meta = Arc::new(HalfMeta {
                id: of.id,
                application: String::new(),
                purpose: String::new(),
                topic: String::new(),
                timestamp_ms: meta.timestamp_ms,
                check_after: None,
                local_transaction: None,
            });
            cut(&mut operator);
            cut(&mut reason);
            Record::Reopen(Box::new(Reopen { of, meta, operator, reason }))
        }
    }
}

fn cut(text: &mut String) {
    text.truncate(text.floor_char_boundary(HISTORY_TEXT_BYTES));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, HalfOffset, TransactionId};
    use crate::record::{Checked, HalfRef};

    fn checked(attempts: u32, reason: &str) -> Record {
        let id = TransactionId::from_bytes([7; 16]);
        let of = HalfRef { id, half: HalfOffset(3), epoch: Epoch(1) };
        let checked = Checked::unknown(of, attempts, reason.into());
        Record::Checked(checked.asked_by("ö".repeat(100), "r".repeat(2_000)))
    }

    #[test]
    fn the_last_steps_are_kept_and_the_others_counted() {
        let mut history = History::default();
        assert!(history.is_empty() && history.encode().is_none());
        for n in 0..20 {
            history.push(checked(n, "not yet"), 10 + i64::from(n), 1_000);
        }
        let offsets: Vec<i64> = history.steps().map(|step| step.offset).collect();
        assert_eq!(offsets, (14..30).collect::<Vec<_>>());
        assert_eq!(history.left_out(), 4);
        assert_eq!(History::decode(&history.encode().unwrap()), history);
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let mut history = History::default();
        history.push(checked(0, &"x€".repeat(1_000)), 1, 2);
        let Some(PastStep { record: Record::Checked(kept), .. }) = history.steps().next() else {
            panic!("one step");
        };
        let asked = kept.asked_by.unwrap();
        let lengths = [kept.reason.len(), asked.operator.len(), asked.reason.len()];
        assert_eq!(lengths, [160, 160, 160]);
        assert!(kept.reason.ends_with('€'));
        assert!(history.encode().unwrap().len() < 1_024);
    }

    /// Whatever stands in a topic that others may write to.
    #[test]
    fn bytes_that_are_none_of_ours_are_as_much_as_can_be_read() {
        let mut history = History::default();
        history.push(checked(0, "a"), 1, 2);
        history.push(checked(1, "b"), 3, 4);
        let bytes = history.encode().unwrap();
        for end in 0..bytes.len() {
            let steps = History::decode(&bytes[..end]).steps().count();
            assert!(steps < 2, "{end}: {steps}");
        }
        let mut damaged = bytes.clone();
        damaged[40] ^= 1;
        assert_eq!(History::decode(&damaged).steps().count(), 1);
        assert_eq!(History::decode(&[0xff; 100]).steps().count(), 0);
    }
}
