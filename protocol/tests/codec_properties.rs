//! The codec over arbitrary records and arbitrary bytes.

use std::sync::Arc;
use std::time::Duration;

use halfmsg_protocol::codec::{DecodeError, MAX_TEXT_BYTES, decode, encode};
use halfmsg_protocol::{
    AskedBy, CheckOutcome, Checked, Decision, Epoch, HalfMeta, HalfOffset, HalfRef, Origin, Park,
    ParkCause, Record, Reopen, TransactionId, Verdict,
};
use proptest::prelude::*;

/// Any text within the bound, of characters of one to four bytes.
fn text() -> impl Strategy<Value = String> {
    "[a-z.\u{0}üß漢🦀]{0,40}"
}

fn of() -> impl Strategy<Value = HalfRef> {
    (any::<[u8; 16]>(), 0..=i64::MAX, any::<u32>()).prop_map(|(id, half, epoch)| HalfRef {
        id: TransactionId::from_bytes(id),
        half: HalfOffset(half),
        epoch: Epoch(epoch),
    })
}

fn meta() -> impl Strategy<Value = HalfMeta> {
    let check_after = prop::option::of(any::<u64>().prop_map(Duration::from_millis));
    let local = prop::option::of(any::<[u8; 16]>().prop_map(TransactionId::from_bytes));
    (any::<[u8; 16]>(), text(), text(), text(), any::<i64>(), check_after, local).prop_map(
        |(id, application, purpose, topic, timestamp_ms, check_after, local_transaction)| {
            HalfMeta {
                id: TransactionId::from_bytes(id),
                application,
                purpose,
                topic,
                timestamp_ms,
                check_after,
                local_transaction,
            }
        },
    )
}

fn decision() -> impl Strategy<Value = Record> {
    let verdict = prop::sample::select(vec![Verdict::Commit, Verdict::Rollback]);
    let origin = prop::sample::select(vec![Origin::Producer, Origin::CheckBack, Origin::Operator]);
    (of(), verdict, origin, prop::option::of(text()), text()).prop_map(
        |(of, verdict, origin, operator, reason)| {
            Record::Decision(Decision { of, verdict, origin, operator, reason })
        },
    )
}

fn checked() -> impl Strategy<Value = Record> {
    let outcome = prop::sample::select(vec![CheckOutcome::Unknown, CheckOutcome::Failed]);
    let asked_by = prop::option::of(
        (text(), text()).prop_map(|(operator, reason)| Box::new(AskedBy { operator, reason })),
    );
    (of(), any::<u32>(), outcome, text(), asked_by).prop_map(
        |(of, attempt, outcome, reason, asked_by)| {
            Record::Checked(Checked { of, attempt, outcome, reason, asked_by })
        },
    )
}

fn park() -> impl Strategy<Value = Record> {
    let cause = prop::sample::select(vec![
        ParkCause::MaxChecks,
        ParkCause::MaxAge,
        ParkCause::NoListener,
        ParkCause::Undeliverable,
    ]);
    (of(), any::<u32>(), cause, text()).prop_map(|(of, attempts, cause, reason)| {
        Record::Park(Park { of, attempts, cause, reason })
    })
}

fn reopen() -> impl Strategy<Value = Record> {
    (of(), meta(), text(), text()).prop_map(|(of, meta, operator, reason)| {
        // A record has one identity: that of the half.
        let meta = Arc::new(HalfMeta { id: of.id, ..meta });
        Record::Reopen(Box::new(Reopen { of, meta, operator, reason }))
    })
}

fn record() -> impl Strategy<Value = Record> {
    prop_oneof![
        meta().prop_map(|meta| Record::Half(Arc::new(meta))),
        decision(),
        checked(),
        park(),
        reopen()
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(record in record()) {
        prop_assert_eq!(decode(&encode(&record)), Ok(record));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        prop_assert!(matches!(decode(&bytes), Err(DecodeError::Foreign(_))));
    }

    /// Past magic and checksum too: what is behind them is as arbitrary.
    #[test]
    fn no_checked_bytes_panic(
        version in 0..4_u8,
        kind in 0..9_u8,
        id in any::<[u8; 16]>(),
        fields in prop::collection::vec((0..14_u8, prop::collection::vec(any::<u8>(), 0..10)), 0..8),
        tail in prop::collection::vec(any::<u8>(), 0..5),
    ) {
        let mut bytes = b"hmsg".to_vec();
        bytes.extend([version, kind, 0, 0, 0, 0]);
        bytes.extend(id);
        for (tag, value) in fields {
            bytes.push(if tag > 11 { tag - 12 + 0x80 } else { tag });
            bytes.extend(u16::try_from(value.len()).unwrap().to_le_bytes());
            bytes.extend(value);
        }
        bytes.extend(tail);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..6]), &bytes[10..]);
        bytes[6..10].copy_from_slice(&crc.to_le_bytes());
        // Whatever is believed can be written again and says the same.
        if let Ok(record) = decode(&bytes) {
            prop_assert_eq!(decode(&encode(&record)), Ok(record));
        }
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character(
        before in 0..4_usize,
        letter in prop::sample::select(vec!['a', 'ü', '漢', '🦀']),
        more in 0..300_usize,
    ) {
        let letters = MAX_TEXT_BYTES / letter.len_utf8() + more;
        let reason = "x".repeat(before) + &letter.to_string().repeat(letters);
        let of = HalfRef {
            id: TransactionId::from_bytes([7; 16]),
            half: HalfOffset(0),
            epoch: Epoch(0),
        };
        let outcome = CheckOutcome::Failed;
        let reason_cut = reason.clone();
        let checked = Checked { of, attempt: 1, outcome, reason: reason_cut, asked_by: None };
        match decode(&encode(&Record::Checked(checked))) {
            Ok(Record::Checked(read)) => {
                prop_assert!(reason.starts_with(&read.reason));
                prop_assert!(read.reason.len() <= MAX_TEXT_BYTES);
                let full = reason.len() <= MAX_TEXT_BYTES;
                prop_assert!(full || read.reason.len() + letter.len_utf8() > MAX_TEXT_BYTES);
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }
}
