//! The cost of the pure part: a half's whole life through the resolver core, the records of a long replay, and
//! the record format. What a broker costs comes on top and is far more.

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
/// Messages of a replay: more than are remembered once closed.
const REPLAYED: i64 = 200_000;
/// Records that are looked at ahead.
const AT_ONCE: usize = 1_024;

fn core(carried_out: i64) -> ResolverCore {
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
    let progress = Progress { low_water: 0, position: carried_out };
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
fn life(messages: i64) -> Vec<Event> {
    let mut events = Vec::new();
    let mut offset = 0;
    let mut offsets = Vec::new();
    let record = |offset, record, body| Event::Record { offset, appended_ms: 0, record, body };
    for n in 0..messages + OPEN {
        if n < messages {
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
        bencher.iter_batched(|| (core(0), life(MESSAGES)), run, BatchSize::LargeInput);
    });
    group.finish();
}

fn replay(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("replay");
    group.throughput(Throughput::Elements(2 * REPLAYED.unsigned_abs()));
    group.sample_size(20);
    let log = || {
        let is_record = |event: &Event| matches!(event, Event::Record { .. });
        let mut records = life(REPLAYED).into_iter().filter(is_record);
        let heaps = std::iter::from_fn(|| Some(records.by_ref().take(AT_ONCE).collect()));
        heaps.take_while(|heap: &Vec<Event>| !heap.is_empty()).collect::<Vec<_>>()
    };
    for (name, looks_ahead) in [("as_it_comes", false), ("looked_at_ahead", true)] {
        let run = |(mut core, heaps): (ResolverCore, Vec<Vec<Event>>)| {
            let mut commands = Vec::new();
            for heap in heaps {
                if looks_ahead {
                    core.look_ahead(heap.iter().filter_map(|event| match event {
                        Event::Record { record, .. } => Some(record),
                        _ => None,
                    }));
                }
                for event in heap {
                    core.step(Duration::ZERO, event, &mut commands);
                }
            }
            assert!(commands.is_empty(), "a replay commands nothing");
            core
        };
        let setup = || (core(2 * REPLAYED + 1), log());
        group.bench_function(name, |bencher| {
            bencher.iter_batched(setup, run, BatchSize::PerIteration);
        });
    }
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

criterion_group!(benches, resolver_core, replay, record_format);
criterion_main!(benches);
