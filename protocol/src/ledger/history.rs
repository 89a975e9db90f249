//! What happened to one message, as far as it goes along with it: the records that say so are deleted with
//! the store's oldest, and a parked message outlives them. It must never decide anything.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::codec;
use crate::ids::TransactionId;
use crate::record::{AskedBy, HalfMeta, Record, Reopen};

/// So many bytes are kept of each message that was asked about; the oldest steps give way.
const HISTORY_BYTES: usize = 1_024;
/// Each text of a step is cut to so many bytes.
const HISTORY_TEXT_BYTES: usize = 160;

/// What [`History::bytes`] begin with: of another version nothing is known.
const VERSION: u8 = 1;
/// The version, and how many steps were left out.
const HEAD: usize = 5;
/// Of a step: its offset, its time, and the length of its record.
const STEP_HEAD: usize = 18;

/// The checks, parks and reopenings of a message so far, and the decision that its target refused, in at most
/// 1 KiB. Cheap to clone; one without steps takes no memory. Two ledgers that differ in it alone
/// behave alike, so it has no part in their hash.
///
/// As bytes: the version (1), how many steps were left out (4, little endian), then of each its offset (8), its time (8), the
/// length of its record (2) and that, as `codec::pack` makes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History(Option<Arc<[u8]>>);

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
        let packed = codec::pack(&shortened(record));
        let length = u16::try_from(packed.len()).expect("its texts are cut");
        let step = STEP_HEAD + packed.len();
        let (mut left_out, mut kept) = (self.left_out(), self.encoded_steps());
        while !kept.is_empty() && HEAD + kept.len() + step > HISTORY_BYTES {
            kept = split_step(kept).map_or(&[], |(_, rest)| rest);
            left_out = left_out.saturating_add(1);
        }
        let mut bytes = Vec::with_capacity(HEAD + kept.len() + step);
        bytes.push(VERSION);
        bytes.extend_from_slice(&left_out.to_le_bytes());
        bytes.extend_from_slice(kept);
        bytes.extend_from_slice(&offset.to_le_bytes());
        bytes.extend_from_slice(&at_ms.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&packed);
        self.0 = Some(bytes.into());
    }

    /// Whether nothing is known but that it was stored.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Earlier steps that are not kept.
    pub fn left_out(&self) -> u32 {
        let bytes = self.bytes().and_then(|bytes| bytes.get(1..)?.first_chunk());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    /// The steps that are kept of the message of this identity, oldest first.
    pub fn steps(&self, id: TransactionId) -> impl Iterator<Item = PastStep> {
        let mut rest = self.encoded_steps();
        std::iter::from_fn(move || {
            let ((offset, at_ms, packed), behind) = split_step(rest)?;
            rest = behind;
            Some(PastStep { offset, at_ms, record: codec::unpack(id, packed).ok()? })
        })
    }

    /// As bytes. `None` if there are no steps.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.0.as_deref()
    }

    /// What these bytes say of the message of this identity, as far as they can be read and as much as is
    /// kept: a history is there to be shown, and nothing may depend on it. Never panics.
    pub fn read(id: TransactionId, bytes: &[u8]) -> Self {
        let bytes = &bytes[..bytes.len().min(HISTORY_BYTES)];
        let Some((&[VERSION, ..], mut rest)) = bytes.split_first_chunk::<HEAD>() else {
            return Self::NONE;
        };
        while let Some(((_, _, packed), behind)) = split_step(rest)
            && codec::unpack(id, packed).is_ok()
        {
            rest = behind;
        }
        let read = bytes.len() - rest.len();
        Self((read > HEAD).then(|| bytes[..read].into()))
    }

    fn encoded_steps(&self) -> &[u8] {
        self.bytes().and_then(|bytes| bytes.get(HEAD..)).unwrap_or_default()
    }
}

impl Hash for History {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// Offset, time and record of the first step, and what stands behind it.
type Split<'a> = ((i64, i64, &'a [u8]), &'a [u8]);

fn split_step(bytes: &[u8]) -> Option<Split<'_>> {
    let (head, rest) = bytes.split_first_chunk::<STEP_HEAD>()?;
    let (offset, head) = head.split_first_chunk()?;
    let (at_ms, length) = head.split_first_chunk()?;
    let length = usize::from(u16::from_le_bytes(length.try_into().ok()?));
    let (record, rest) = rest.split_at_checked(length)?;
    Some(((i64::from_le_bytes(*offset), i64::from_le_bytes(*at_ms), record), rest))
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
    use crate::ids::{Epoch, HalfOffset};
    use crate::record::{Checked, HalfRef};

    const ID: TransactionId = TransactionId::from_bytes([7; 16]);

    fn checked(attempts: u32, reason: &str) -> Checked {
        let of = HalfRef { id: ID, half: HalfOffset(3), epoch: Epoch(1) };
        Checked::unknown(of, attempts, reason.into())
    }

    fn of_steps(steps: impl IntoIterator<Item = Checked>) -> History {
        let mut history = History::default();
        for (step, offset) in steps.into_iter().zip(10..) {
            history.push(Record::Checked(step), offset, 1_000);
        }
        history
    }

    #[test]
    fn the_last_steps_are_kept_and_the_others_counted() {
        assert!(History::NONE.is_empty() && History::NONE.bytes().is_none());
        let history = of_steps((0..100).map(|n| checked(n, "not yet")));
        let offsets: Vec<i64> = history.steps(ID).map(|step| step.offset).collect();
        let left_out = i64::from(history.left_out());
        assert_eq!(offsets, (10 + left_out..110).collect::<Vec<_>>());
        assert!(offsets.len() >= 15, "a message is checked so often: {offsets:?}");
        let bytes = history.bytes().unwrap();
        assert!(bytes.len() <= HISTORY_BYTES, "{}", bytes.len());
        assert_eq!(History::read(ID, bytes), history);
        let last = history.steps(ID).last().unwrap();
        assert_eq!(last.record, Record::Checked(checked(99, "not yet")));
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let long = checked(0, &"x€".repeat(1_000)).asked_by("ö".repeat(100), "r".repeat(2_000));
        let history = of_steps([long.clone(), long]);
        let Some(PastStep { record: Record::Checked(kept), .. }) = history.steps(ID).next() else {
            panic!("one step");
        };
        let asked = kept.asked_by.unwrap();
        let lengths = [kept.reason.len(), asked.operator.len(), asked.reason.len()];
        assert_eq!(lengths, [160, 160, 160]);
        assert!(kept.reason.ends_with('€'));
    }

    /// Whatever stands in a topic that others may write to.
    #[test]
    fn bytes_that_are_none_of_ours_are_as_much_as_can_be_read() {
        let history = of_steps([checked(0, "a"), checked(1, "b")]);
        let bytes = history.bytes().unwrap().to_vec();
        for end in 0..bytes.len() {
            let steps = History::read(ID, &bytes[..end]).steps(ID).count();
            assert!(steps < 2, "{end}: {steps}");
        }
        let mut damaged = bytes.clone();
        // The kind of the second record.
        damaged[HEAD + (bytes.len() - HEAD) / 2 + STEP_HEAD] = 0xee;
        assert_eq!(History::read(ID, &damaged).steps(ID).count(), 1);
        assert_eq!(History::read(ID, &[0xff; 100]), History::NONE);
        let step = &bytes[HEAD..];
        let endless = [&bytes[..HEAD], &step.repeat(100)].concat();
        let kept = History::read(ID, &endless);
        assert!(kept.bytes().unwrap().len() <= HISTORY_BYTES && kept.steps(ID).count() > 2);
        let mut newer = bytes;
        newer[0] = VERSION + 1;
        assert_eq!(History::read(ID, &newer), History::NONE);
    }

    /// They lie in the parked topic for as long as their message does.
    #[test]
    fn its_bytes_are_as_ever() {
        let history = of_steps([checked(0, "no")]);
        let hex: String =
            history.bytes().unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        let head = "0100000000";
        let step = "0a00000000000000e8030000000000002300";
        let record = "0406080003000000000000000704000100000009040001000000\
                      0a0100018202006e6f";
        assert_eq!(hex, format!("{head}{step}{record}"));
    }
}
