//! Figures for DESIGN.md.

use std::time::Instant;

use node::replication::storage::CopyStorage;
use node::vector::Cancel;

use super::*;
use crate::shard_support::primary::Primary;

/// `cargo nextest run --release -p node --test shard_index --run-ignored only --no-capture`
#[test]
#[ignore = "prints figures for DESIGN.md; asserts nothing about time"]
fn figures_of_one_shard_of_a_50_000_vector_load() {
    const DIM: usize = 384;
    const ROWS: usize = 12_500;
    const PER_ENTRY: usize = 250;
    let place = Place::new(shard_support::spec(DIM as u32));
    let shard = place.open(1);
    let mut rng = rng(1);
    let mut log = LogWriter::new();
    let mut entries = Vec::new();
    for first in (0..ROWS).step_by(PER_ENTRY) {
        let puts = (first..first + PER_ENTRY).map(|n| {
            put(&format!("d{n}"), "a gloss of some sixty characters, as WordNet has", &unit_vector(&mut rng, DIM))
        });
        entries.push(log.entry(puts.collect()));
    }
    let started = Instant::now();
    for entry in &entries {
        persist(&shard, std::slice::from_ref(entry)).expect("persists");
    }
    println!("persist: {:.0} rows/s in entries of {PER_ENTRY}", ROWS as f64 / started.elapsed().as_secs_f64());
    let started = Instant::now();
    for entry in &entries {
        shard.apply(std::slice::from_ref(entry)).expect("applies");
    }
    println!("apply: {:.0} rows/s", ROWS as f64 / started.elapsed().as_secs_f64());
    let queries: Vec<_> = (0..200).map(|_| unit_vector(&mut rng, DIM)).collect();
    let time_searches = |what: &str| {
        let mut micros: Vec<u128> = queries
            .iter()
            .map(|vector| {
                let started = Instant::now();
                shard.search(&query(vector, 10), &Cancel::never()).expect("searches");
                started.elapsed().as_micros()
            })
            .collect();
        micros.sort_unstable();
        println!("search, {what}: p50 {} us, p99 {} us", micros[100], micros[198]);
    };
    time_searches("exact");
    let mut primary = Primary { shard: &shard, log, entries };
    let started = Instant::now();
    let work = primary.maintain();
    println!("maintenance {work:?}: {:.2} s", started.elapsed().as_secs_f64());
    time_searches("indexed");
    let started = Instant::now();
    shard.digest().expect("digest");
    println!("digest: {:.2} s", started.elapsed().as_secs_f64());
    println!("{:?}", shard.stats());
    drop(shard);
    let started = Instant::now();
    let shard = place.open(1);
    println!("open after a kill, index rebuilt: {:.2} s", started.elapsed().as_secs_f64());
    shard.close().expect("closes");
    drop(shard);
    let started = Instant::now();
    drop(place.open(1));
    println!("open after a close: {:.2} s", started.elapsed().as_secs_f64());
}
