//! What one write costs the load thread besides the kernel: its key's slot, its
//! encoding, its reply, its place in the histogram, and once a turn the ledger.

use std::hint::black_box;
use std::path::PathBuf;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use redmesh_agent::load::ledger::Ledger;
use redmesh_agent::load::resp::{Parsed, parse};
use redmesh_agent::load::workload::{Digits, KeyPrefix, slot_of, worker_uuid};
use redmesh_agent::stats::Recorder;
use redmesh_api::ids::{HostId, RunId};
use redmesh_api::run::Counts;
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
    let ledger = Ledger::create(&path, run(), HostId(1), 1, 1).expect("a ledger in the temporary directory");
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

criterion_group!(parts, keys, replies, account);
criterion_main!(parts);
