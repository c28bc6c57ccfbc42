//! What one operation costs the load thread besides the kernel: drawing it, its key's
//! slot, its encoding, its reply, its place in the histogram, and once a turn the ledger.

use std::hint::black_box;
use std::path::PathBuf;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use redmesh_agent::load::ledger::Ledger;
use redmesh_agent::load::resp::{Parsed, Skim, parse};
use redmesh_agent::load::workload::{Digits, KeyPrefix, Source, slot_of, worker_uuid};
use redmesh_agent::stats::Recorder;
use redmesh_api::ids::{HostId, RunId};
use redmesh_api::run::Counts;
use redmesh_api::workload::{Keys, Pick, ValueBytes, Verb, Workload};
use uuid::Uuid;

/// Replies in one read, in the order of what 2000 workers and 30 servers bring.
const BATCH: usize = 64;

fn run() -> RunId {
    RunId(Uuid::from_u128(1))
}

fn keys(c: &mut Criterion) {
    let uuid = worker_uuid(run(), HostId(1), 1, 0);
    let prefix = KeyPrefix::new(uuid);
    let key = format!("{uuid}-1000000");
    let mut n = 1_000_000u64;
    let mut group = c.benchmark_group("key");
    group.throughput(Throughput::Elements(1));
    group.bench_function("slot of the whole key", |b| b.iter(|| slot_of(black_box(key.as_bytes()))));
    group.bench_function("slot from the prefix's state", |b| {
        b.iter(|| {
            n += 1;
            prefix.slot(&Digits::new(black_box(n)))
        });
    });
    let mut out = Vec::with_capacity(1024);
    group.bench_function("slot and SET command", |b| {
        b.iter(|| {
            n += 1;
            out.clear();
            let digits = Digits::new(black_box(n));
            prefix.encode_set(&digits, &mut out);
            prefix.slot(&digits)
        });
    });
    group.finish();
}

/// A cache: mostly reads, some keys wanted far more than others.
fn cache() -> Workload {
    Workload {
        name: "cache".into(),
        keys: Keys::Pool { count: 10_000_000, pick: Pick::Zipf { exponent: 0.99 } },
        value: ValueBytes::Uniform { min: 64, max: 1024 },
        mix: vec![(Verb::Get, 9), (Verb::Set, 1)],
        ttl_s: Some(300),
        ..Workload::uuid_counter()
    }
}

fn operations(c: &mut Criterion) {
    let prefix = KeyPrefix::new(worker_uuid(run(), HostId(1), 1, 0));
    let mut group = c.benchmark_group("operation");
    group.throughput(Throughput::Elements(1));
    let mut out = Vec::with_capacity(4096);
    for workload in [Workload::uuid_counter(), cache()] {
        let mut source = Source::new(&workload, 1);
        let mut n = 1_000_000u64;
        group.bench_function(&workload.name, |b| {
            b.iter(|| {
                n += 1;
                out.clear();
                let op = source.draw(black_box(n));
                source.encode(&prefix, &op, &mut out);
                source.slot(&prefix, &op)
            });
        });
    }
    group.finish();
}

fn replies(c: &mut Criterion) {
    let batch = b"+OK\r\n".repeat(BATCH);
    let mut group = c.benchmark_group("reply");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("a batch of +OK", |b| {
        b.iter(|| {
            let (mut at, mut seen) = (0, 0);
            while let Parsed::Ok(used) = parse(black_box(&batch[at..])) {
                at += used;
                seen += 1;
            }
            seen
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("MOVED", |b| b.iter(|| parse(black_box(b"-MOVED 3999 127.0.0.1:6381\r\n"))));
    let bulk = [b"$544\r\n", [b'x'; 544].as_slice(), b"\r\n"].concat();
    group.bench_function("a value of 544 bytes", |b| b.iter(|| parse(black_box(&bulk))));
    let array = [b"*10\r\n".as_slice(), &bulk.repeat(10)].concat();
    let mut skim = Skim::new();
    group.bench_function("10 values, skimmed", |b| b.iter(|| skim.feed(black_box(&array))));
    group.finish();
}

fn account(c: &mut Criterion) {
    let (mut recorder, _view) = Recorder::new();
    let mut us = 1u64;
    c.bench_function("record a service time", |b| {
        b.iter(|| {
            us = us * 7 % 1_000_003;
            recorder.record(black_box(us));
        });
    });

    let path: PathBuf = std::env::temp_dir().join(format!("redmesh-bench-{}.ledger", std::process::id()));
    let ledger =
        Ledger::create(&path, run(), HostId(1), 1, 1, 1).expect("a ledger in the temporary directory");
    let mut slot = ledger.slots().next().expect("one slot per thread");
    let mut counts = Counts::default();
    c.bench_function("account for a turn on file", |b| {
        b.iter(|| {
            counts.issued += 1;
            slot.write(&counts, false)
        });
    });
    std::fs::remove_file(&path).expect("removes what it created");
}

criterion_group!(parts, keys, operations, replies, account);
criterion_main!(parts);
