//! The cost of the pure part, per message: a half's whole life through the resolver core, and the
//! record format. What a broker costs comes on top and is far more.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use halfmsg_protocol::{
    Backoff, Body, CoreConfig, Decision, Epoch, Event, HalfMeta, HalfOffset, HalfRef, Origin,
    Progress, Record, ResolverCore, Takeover, TransactionId, Verdict, codec,
};

/// Messages per round.
const MESSAGES: i64 = 10_000;
/// Halves that are open at the same time.
const OPEN: i64 = 1_000;

fn core() -> ResolverCore {
    let config = CoreConfig {
        check_after: Duration::from_secs(6),
        check_backoff: Backoff { initial: Duration::from_secs(10), max: Duration::from_secs(300) },
        max_checks: 15,
        max_age: Duration::from_secs(86_400),
        no_listener_grace: Duration::from_secs(120),
        retry_delay: Duration::from_secs(1),
        check_batch: 100,
        check_batch_bytes: usize::MAX,
        check_batches: 8,
        copy_window: Duration::ZERO,
    };
    let progress = Progress { low_water: 0, position: 0 };
    let now = Duration::ZERO;
    ResolverCore::new(config, Takeover { progress, parked: Vec::new(), wall_ms: 0, now })
}

fn half(n: i64) -> Record {
    Record::Half(Arc::new(HalfMeta {
        id: id(n),
        application: "order-svc".into(),
        purpose: "order.rollback".into(),
        topic: "stock.rollback".into(),
        timestamp_ms: 1_753_000_000_123,
        check_after: None,
        local_transaction: None,
    }))
}

fn commit(n: i64, offset: i64) -> Record {
    Record::Decision(Decision {
        of: HalfRef { id: id(n), half: HalfOffset(offset), epoch: Epoch(0) },
        verdict: Verdict::Commit,
        origin: Origin::Producer,
        operator: None,
        reason: String::new(),
    })
}

fn id(n: i64) -> TransactionId {
    TransactionId::from_bytes(i128::from(n).to_be_bytes())
}

fn body() -> Body {
    Body {
        key: Some(Bytes::from_static(b"order-1")),
        headers: Vec::new(),
        payload: Some(Bytes::from_static(&[7; 256])),
    }
}

/// HALF, COMMIT and the delivery's acknowledgement of every message, [`OPEN`] halves deep.
fn life() -> Vec<Event> {
    let mut events = Vec::new();
    let mut offset = 0;
    let mut offsets = Vec::new();
    let record = |offset, record, body| Event::Record { offset, appended_ms: 0, record, body };
    for n in 0..MESSAGES + OPEN {
        if n < MESSAGES {
            offsets.push(offset);
            events.push(record(offset, half(n), body()));
            offset += 1;
        }
        if let Some(done) = n.checked_sub(OPEN).filter(|done| *done >= 0) {
            let index = usize::try_from(done).expect("not negative");
            events.push(record(offset, commit(done, offsets[index]), Body::default()));
            events.push(Event::CarriedOut { at: offset });
            offset += 1;
        }
    }
    events
}

fn resolver_core(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("resolver_core");
    group.throughput(Throughput::Elements(MESSAGES.unsigned_abs()));
    group.sample_size(20);
    group.bench_function("half_commit_carried_out", |bencher| {
        let run = |(mut core, events): (ResolverCore, Vec<Event>)| {
            let mut commands = Vec::new();
            for event in events {
                core.step(Duration::ZERO, event, &mut commands);
                black_box(&commands);
                commands.clear();
            }
            assert_eq!(core.progress().expect("not replaying").position, 2 * MESSAGES);
            core
        };
        bencher.iter_batched(|| (core(), life()), run, BatchSize::LargeInput);
    });
    group.finish();
}

fn record_format(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    group.throughput(Throughput::Elements(1));
    for (name, record) in [("half", half(1)), ("commit", commit(1, 1))] {
        group.bench_function(format!("encode_{name}"), |bencher| {
            bencher.iter(|| codec::encode(black_box(&record)));
        });
        let bytes = codec::encode(&record);
        group.bench_function(format!("decode_{name}"), |bencher| {
            bencher.iter(|| codec::decode(black_box(&bytes)));
        });
    }
    group.finish();
}

criterion_group!(benches, resolver_core, record_format);
criterion_main!(benches);
