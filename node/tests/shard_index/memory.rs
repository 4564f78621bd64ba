//! The memory of a shard: what its ledger counts, what the kernel counts, what a training takes.

use cluster_config::collection::{CollectionSpec, Metric};
use cluster_config::units::ByteSize;
use node::vector::{Generation, init_thread};
use tikv_jemalloc_ctl::{Access, AsName};

use super::*;
use crate::shard_support::primary::Primary;

#[test]
fn memory_that_grows_with_rows_is_counted() {
    let place = place();
    let shard = place.open(1);
    let mut primary = Primary::new(&shard);
    let empty = shard.memory();
    primary.load("a", &clustered(12, 1200));
    let loaded = shard.stats();
    let label_bytes = 64;
    assert_eq!(loaded.memory.rescoring, empty.rescoring + 1200 * (2 * DIM as u64 + label_bytes));
    assert_eq!(loaded.memory.tail, loaded.memory.rescoring);
    primary.maintain();
    let indexed = shard.stats();
    assert!(indexed.memory.codes >= loaded.memory.codes + 1200 * 8, "codes and row numbers: {indexed:?}");
    assert_eq!(indexed.memory.tail, 0);
    assert!(indexed.disk_bytes > 0);
}

/// `cargo nextest run --release -p node --test shard_index --run-ignored only --no-capture`
#[test]
#[ignore = "loads 50,000 vectors; ops/test --full"]
fn the_ledger_agrees_with_what_the_kernel_counts() {
    const DIM: usize = 384;
    const ROWS: usize = 50_000;
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("counted");
        line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
    };
    let place = Place::new(shard_support::spec(DIM as u32));
    let shard = place.open(1);
    let allocator = || node::memory::allocator_overhead();
    let base = resident() - allocator();
    let mut primary = Primary::new(&shard);
    let mut rng = rng(1);
    for portion in 0..ROWS / 250 {
        let puts = (0..250).map(|n| put(&format!("d{}", portion * 250 + n), "a gloss", &unit_vector(&mut rng, DIM)));
        primary.write(puts.collect());
        // A primary's log is not kept in memory.
        primary.entries.clear();
    }
    primary.maintain();
    let memory = shard.memory();
    let (counted, cache, overhead) = (resident(), place.resources.cache_usage_bytes() as u64, allocator());
    let accounted = base + memory.anonymous() + cache + overhead;
    println!(
        "{ROWS} rows: base {base}, {memory:?}, cache {cache}, allocator {overhead}; accounted {accounted}, counted {counted}"
    );
    let off = accounted.abs_diff(counted) as f64 / counted as f64;
    assert!(off <= 0.15, "{:.1} % off", 100.0 * off);
}

/// What FAISS takes beside the sample and what is made of it: distances from 4,096 vectors to 1,024 centroids at a time; and little
/// at this dimension for the covariances and axes of a projection, and for centroids.
const WORKING_MEMORY: u64 = (16 << 20) + (1 << 20);

#[test]
fn a_training_keeps_to_its_memory() {
    const DIM: u32 = 128;
    const PARTS: u32 = 4;
    let memory = ByteSize::mib(12);
    let rows = Generation::training_rows_within(DIM as usize, memory);
    // Codebooks are learnt part by part of the vectors, from a copy of it.
    let part = (rows as u32 * DIM / PARTS) as u64 * 4;
    for (pca_dim, nbits, metric) in [
        (Some(64), 4, Metric::Cosine),
        (Some(64), 4, Metric::Dot),
        // All that is made of the sample is as large as the sample, and codebooks of 8 bits learn from all of it.
        (None, 8, Metric::Cosine),
    ] {
        let mut spec = CollectionSpec { metric, pca_dim, ..shard_support::spec(DIM) };
        (spec.index.nbits, spec.index.m) = (nbits, Some(PARTS));
        let peak = peak_bytes(move || {
            let mut rng = rng(1);
            let mut sample = Vec::with_capacity(rows * DIM as usize);
            (0..rows).for_each(|_| sample.extend(unit_vector(&mut rng, DIM as usize)));
            Generation::train(1, &spec, sample, rows as u64, &Cancel::never()).expect("trains")
        });
        println!("{nbits} bits, {pca_dim:?}, {metric:?}: {rows} rows, {peak} bytes");
        assert!(peak <= memory.0 + part + WORKING_MEMORY, "{peak} bytes");
    }
}

/// The most that a computation holds at any moment, by the allocator's account of the thread that it runs on.
fn peak_bytes<T: Send>(computation: impl FnOnce() -> T + Send) -> u64 {
    let measured = || {
        init_thread();
        let result = computation();
        let peak = "thread.peak.read\0".name().read().expect("counted");
        drop(result);
        peak
    };
    std::thread::scope(|scope| scope.spawn(measured).join().expect("computes"))
}
