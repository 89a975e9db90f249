//! Golden bytes: the record format as it stands in users' logs. A byte that changes here breaks
//! every store that was ever written; a new version gets new constants beside these.
//!
//! The constants were computed outside this code, from the format's description in `codec`.

use std::sync::Arc;
use std::time::Duration;

use halfmsg_protocol::codec::{DecodeError, decode, encode};
use halfmsg_protocol::{
    CheckOutcome, Checked, Decision, Epoch, HalfMeta, HalfOffset, HalfRef, Origin, Park, ParkCause,
    Record, Reopen, TransactionId, Verdict,
};

const HALF: &str = "\
    686d736701016ae07ad501985f2e7c1a7f0080000000000000010109006f726465722d737663020e\
    006f726465722e726f6c6c6261636b030e0073746f636b2e726f6c6c6261636b0408007b3af12698\
    010000050800c409000000000000";
const HALF_DEFAULT_CHECK: &str = "\
    686d73670101a4cf939301985f2e7c1a7f0080000000000000010109006f726465722d737663020e\
    006f726465722e726f6c6c6261636b030e0073746f636b2e726f6c6c6261636b0408007b3af12698\
    010000";
const COMMIT: &str = "\
    686d736701021ceeb81601985f2e7c1a7f0080000000000000010608000504030201000000070400\
    0000000008010001";
const ROLLBACK: &str = "\
    686d7367010327b9a03701985f2e7c1a7f0080000000000000010608000504030201000000070400\
    02000000080100038103006164618213006b65696e2042657374616e6420c3bc62726967";
const CHECKED: &str = "\
    686d73670104092af2b101985f2e7c1a7f0080000000000000010608000504030201000000070400\
    00000000090400030000000a01000282090074696d6564206f7574";
/// The same, asked for by an operator; a reader that does not know it reads the one above.
const CHECKED_BY_HAND: &str = "\
    686d7367010470223ad401985f2e7c1a7f0080000000000000010608000504030201000000070400\
    00000000090400030000000a01000282090074696d6564206f7574810300616461830a00746f2062\
    652073757265";
const PARK: &str = "\
    686d73670105a0370d8701985f2e7c1a7f0080000000000000010608000504030201000000070400\
    010000000904000f0000000b0100018209006e6f20616e73776572";
const REOPEN: &str = "\
    686d736701067524095601985f2e7c1a7f0080000000000000010608000504030201000000070400\
    010000000109006f726465722d737663020e006f726465722e726f6c6c6261636b030e0073746f63\
    6b2e726f6c6c6261636b0408007b3af12698010000050800c409000000000000810300616461820e\
    00746172676574206973206261636b";
/// COMMIT with the field 0xFE, which a reader may skip.
const SKIPPABLE_FIELD: &str = "\
    686d73670102742a1f7201985f2e7c1a7f0080000000000000010608000504030201000000070400\
    0000000008010001fe05006c61746572";
/// COMMIT with the field 12, which it may not.
const UNKNOWN_FIELD: &str = "\
    686d7367010241e1104701985f2e7c1a7f0080000000000000010608000504030201000000070400\
    00000000080100010c05006c61746572";
/// COMMIT of version 2.
const NEWER_VERSION: &str = "\
    686d7367020290a7147501985f2e7c1a7f0080000000000000010608000504030201000000070400\
    0000000008010001";
/// Kind 7.
const UNKNOWN_KIND: &str = "\
    686d736701079aeabeb501985f2e7c1a7f0080000000000000010608000504030201000000070400\
    0000000008010001";
/// COMMIT of origin 9.
const UNKNOWN_ORIGIN: &str = "\
    686d73670102d3b6619c01985f2e7c1a7f0080000000000000010608000504030201000000070400\
    0000000008010009";

fn bytes(hex: &str) -> Vec<u8> {
    assert_eq!(hex.len() % 2, 0, "{hex}");
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("it is hexadecimal");
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn id() -> TransactionId {
    "01985f2e-7c1a-7f00-8000-000000000001".parse().expect("it is a UUID")
}

fn of(epoch: u32) -> HalfRef {
    HalfRef { id: id(), half: HalfOffset(0x01_0203_0405), epoch: Epoch(epoch) }
}

fn meta(check_after: Option<Duration>) -> Arc<HalfMeta> {
    Arc::new(HalfMeta {
        id: id(),
        application: "order-svc".into(),
        purpose: "order.rollback".into(),
        topic: "stock.rollback".into(),
        timestamp_ms: 1_753_000_000_123,
        check_after,
        local_transaction: None,
    })
}

fn commit() -> Record {
    Record::Decision(Decision {
        of: of(0),
        verdict: Verdict::Commit,
        origin: Origin::Producer,
        operator: None,
        reason: String::new(),
    })
}

fn checked() -> Checked {
    Checked {
        of: of(0),
        attempt: 3,
        outcome: CheckOutcome::Failed,
        reason: "timed out".into(),
        asked_by: None,
    }
}

fn golden() -> Vec<(&'static str, Record)> {
    let after = Some(Duration::from_millis(2_500));
    vec![
        (HALF, Record::Half(meta(after))),
        (HALF_DEFAULT_CHECK, Record::Half(meta(None))),
        (COMMIT, commit()),
        (
            ROLLBACK,
            Record::Decision(Decision {
                of: of(2),
                verdict: Verdict::Rollback,
                origin: Origin::Operator,
                operator: Some("ada".into()),
                reason: "kein Bestand übrig".into(),
            }),
        ),
        (CHECKED, Record::Checked(checked())),
        (CHECKED_BY_HAND, Record::Checked(checked().asked_by("ada".into(), "to be sure".into()))),
        (
            PARK,
            Record::Park(Park {
                of: of(1),
                attempts: 15,
                cause: ParkCause::MaxChecks,
                reason: "no answer".into(),
            }),
        ),
        (
            REOPEN,
            Record::Reopen(Box::new(Reopen {
                of: of(1),
                meta: meta(after),
                operator: "ada".into(),
                reason: "target is back".into(),
            })),
        ),
    ]
}

#[test]
fn every_kind_is_written_as_these_bytes() {
    for (hex, record) in golden() {
        assert_eq!(encode(&record), bytes(hex), "{record:?}");
    }
}

#[test]
fn these_bytes_are_read_as_every_kind() {
    for (hex, record) in golden() {
        assert_eq!(decode(&bytes(hex)), Ok(record));
    }
}

#[test]
fn a_field_that_may_be_skipped_is() {
    assert_eq!(decode(&bytes(SKIPPABLE_FIELD)), Ok(commit()));
}

#[test]
fn what_only_a_newer_program_understands_is_newer() {
    for hex in [UNKNOWN_FIELD, NEWER_VERSION, UNKNOWN_KIND, UNKNOWN_ORIGIN] {
        let read = decode(&bytes(hex));
        assert!(matches!(read, Err(DecodeError::Newer(_))), "{hex}: {read:?}");
    }
}

#[test]
fn damage_at_any_byte_is_foreign_never_newer() {
    for (hex, _) in golden() {
        let whole = bytes(hex);
        for at in 0..whole.len() {
            for damage in [0x01, 0x80, 0xFF] {
                let mut damaged = whole.clone();
                damaged[at] ^= damage;
                let read = decode(&damaged);
                assert!(matches!(read, Err(DecodeError::Foreign(_))), "byte {at}: {read:?}");
            }
        }
    }
}

#[test]
fn a_cut_record_is_foreign_and_one_with_a_tail_too() {
    for (hex, _) in golden() {
        let whole = bytes(hex);
        for length in 0..whole.len() {
            let read = decode(&whole[..length]);
            assert!(matches!(read, Err(DecodeError::Foreign(_))), "{length} bytes: {read:?}");
        }
        let longer = [whole.as_slice(), &[0]].concat();
        assert!(matches!(decode(&longer), Err(DecodeError::Foreign(_))));
    }
}
