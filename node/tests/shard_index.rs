//! Training and indexing as logged operations, end to end: the same index on every copy, however often it was reopened.

mod shard_support;

use cluster_config::error::ErrorKind;
use cluster_config::filter::{Condition, DOCUMENT_ID_FIELD, FieldValue, Filter, Predicate};
use cluster_config::operation::Operation;
use cluster_config::search::{SearchKnobs, ShardAnswer, ShardHit, ShardQuery};
use node::replication::storage::CopyStorage;
use node::shard::{IndexState, Maintenance, Shard, ShardDigest};
use node::vector::Cancel;
use shard_support::primary::Primary;
use shard_support::*;

const DIM: usize = 32;
const ROWS: usize = 3000;

/// Points around 40 centres, so that lists mean something.
fn clustered(seed: u64, count: usize) -> Vec<Vec<f32>> {
    let mut rng = rng(seed);
    let centres: Vec<Vec<f32>> = {
        let mut fixed = shard_support::rng(99);
        (0..40).map(|_| unit_vector(&mut fixed, DIM)).collect()
    };
    (0..count)
        .map(|number| {
            let noise = unit_vector(&mut rng, DIM);
            let mixed: Vec<f32> = centres[number % 40].iter().zip(&noise).map(|(c, n)| c + 0.6 * n).collect();
            let length = mixed.iter().map(|value| value * value).sum::<f32>().sqrt();
            mixed.into_iter().map(|value| value / length).collect()
        })
        .collect()
}

fn place() -> Place {
    let mut spec = spec(DIM as u32);
    spec.pca_dim = Some(16);
    spec.index.training_floor = 1000;
    Place::new(spec)
}

fn answers(shard: &Shard, queries: &[Vec<f32>], exact: bool) -> Vec<ShardAnswer> {
    let knobs = SearchKnobs { exact, ..SearchKnobs::default() };
    let ask = |vector: &Vec<f32>| ShardQuery { knobs: knobs.clone(), ..query(vector, 10) };
    queries.iter().map(|vector| shard.search(&ask(vector), &Cancel::never()).expect("searches")).collect()
}

/// What must be the same on all copies: everything but who answered. Compared with [`assert_same`], which shows one difference.
/// Of the documents from some id on, too many to be compared exactly.
fn filtered_answers(shard: &Shard, queries: &[Vec<f32>]) -> Vec<ShardAnswer> {
    let predicate = Predicate::Range { lower: Some((FieldValue::Keyword("a12".into()), true)), upper: None };
    let condition = Condition { field: DOCUMENT_ID_FIELD.into(), predicate };
    let filter = Filter { must: vec![condition], ..Filter::default() };
    let ask = |vector: &Vec<f32>| ShardQuery { filter: filter.clone(), ..query(vector, 10) };
    queries.iter().map(|vector| shard.search(&ask(vector), &Cancel::never()).expect("searches")).collect()
}

fn comparable(answers: Vec<ShardAnswer>) -> Vec<ShardAnswer> {
    answers.into_iter().map(|answer| ShardAnswer { position: Default::default(), ..answer }).collect()
}

fn hits(answers: Vec<ShardAnswer>) -> Vec<Vec<ShardHit>> {
    answers.into_iter().map(|answer| answer.hits).collect()
}

fn assert_same<T: PartialEq + std::fmt::Debug>(left: Vec<T>, right: &[T], what: &str) {
    assert_eq!(left.len(), right.len());
    for (number, (left, right)) in left.iter().zip(right).enumerate() {
        assert_eq!(left, right, "{what}: query {number}");
    }
}

fn digest(shard: &Shard) -> ShardDigest {
    ShardDigest { position: Default::default(), ..shard.digest().expect("digest") }
}

fn recall(found: &[ShardAnswer], exact: &[ShardAnswer]) -> f64 {
    let mut hits = 0;
    let mut wanted = 0;
    for (found, exact) in found.iter().zip(exact) {
        wanted += exact.hits.len();
        hits += exact.hits.iter().filter(|hit| found.hits.iter().any(|other| other.row == hit.row)).count();
    }
    hits as f64 / wanted as f64
}

#[test]
fn a_load_is_trained_and_indexed_until_the_tail_is_empty_and_every_copy_has_the_same_index() {
    let place = place();
    let shard = place.open(1);
    let mut primary = Primary::new(&shard);
    primary.load("d", &clustered(1, ROWS));
    assert_eq!(shard.stats().index_state, IndexState::Exact);
    let queries = clustered(2, 60);
    let exact = answers(&shard, &queries, false);
    assert!(exact.iter().all(|answer| answer.rows_exact == ROWS as u64 && answer.codes_scanned == 0));

    let work = primary.maintain();
    let index = Maintenance::IndexUpTo { generation: 1, row_end: ROWS as u64 };
    assert_eq!(work, [Maintenance::Train, index, Maintenance::MeasureEffort]);
    let stats = shard.stats();
    assert_eq!((stats.rows_indexed, stats.rows_tail, stats.generation), (ROWS as u64, 0, 1));
    assert_eq!((stats.index_state, stats.codes), (IndexState::Indexed, ROWS as u64));
    assert_eq!(shard.next_maintenance(), None);

    let indexed = answers(&shard, &queries, false);
    assert!(indexed.iter().all(|answer| answer.rows_exact == 0 && answer.codes_scanned > 0));
    assert_eq!(indexed[0].position.generation, 1);
    let share = indexed.iter().map(|a| a.codes_scanned).sum::<u64>() as f64 / (indexed.len() * ROWS) as f64;
    let recall = recall(&indexed, &exact);
    println!("recall@10 {recall:.3} at {share:.2} of the codes");
    assert!(recall >= 0.9, "recall@10 is {recall}");
    assert_same(hits(answers(&shard, &queries, true)), &hits(exact), "the exact knob ignores the index");

    // Later rows are an exact tail, deleted ones are gone from index and tail alike, replaced ones have moved.
    primary.load("e", &clustered(3, 100));
    let first = answers(&shard, &queries[..1], false)[0].hits[0].clone();
    primary.write(vec![delete(&first.document_id), delete("e0"), put("e1", "again", &queries[0])]);
    let now = answers(&shard, &queries, false);
    assert_eq!(now[0].rows_exact, 99);
    assert_eq!(now[0].hits[0].document_id, "e1");
    assert!(
        now.iter()
            .flat_map(|answer| &answer.hits)
            .all(|hit| hit.document_id != first.document_id && hit.document_id != "e0")
    );
    let stats = shard.stats();
    assert_eq!((stats.rows_indexed, stats.rows_tail, stats.codes), (ROWS as u64 - 1, 99, ROWS as u64));
    primary.maintain();
    let stats = shard.stats();
    assert_eq!((stats.rows_tail, stats.codes), (0, ROWS as u64 + 99));

    // A second copy applies the same log in other portions.
    let other = place.open(2);
    persist(&other, &primary.entries).expect("persists");
    primary.entries.chunks(3).for_each(|portion| other.apply(portion).expect("applies"));
    other.check().expect("invariants");
    assert_eq!(digest(&other), digest(&shard));
    let expected = comparable(answers(&shard, &queries, false));
    assert_same(comparable(answers(&other, &queries, false)), &expected, "the second copy");
}

#[test]
fn a_reopened_index_is_the_same_whether_stored_extended_or_rebuilt() {
    let place = place();
    let queries = clustered(5, 40);
    let vectors = clustered(4, ROWS);
    let shard = place.open(1);
    let mut primary = Primary::new(&shard);
    primary.load("a", &vectors[..1800]);
    primary.maintain();
    primary.load("b", &vectors[1800..2200]);
    primary.write(vec![delete("a7"), delete("b3")]);
    primary.maintain();
    let half_way = comparable(answers(&shard, &queries, false));
    let half_way_entries = primary.entries.clone();

    // Rebuilt: the copy was killed before it ever stored its index.
    let rebuilt = place.open(2);
    persist(&rebuilt, &half_way_entries).expect("persists");
    rebuilt.apply(&half_way_entries).expect("applies");
    drop(rebuilt);
    let rebuilt = place.open(2);
    assert_same(comparable(answers(&rebuilt, &queries, false)), &half_way, "rebuilt");

    // Stored: closed well. Then grown by further steps and killed: the stored index is extended by what it lacks.
    rebuilt.close().expect("closes");
    drop(rebuilt);
    let stored = place.open(2);
    assert_same(comparable(answers(&stored, &queries, false)), &half_way, "stored");
    primary.load("c", &vectors[2200..]);
    primary.write(vec![delete("a8"), delete("c3"), put("a9", "again", &queries[3])]);
    primary.maintain();
    let whole = comparable(answers(&shard, &queries, false));
    assert_ne!(whole, half_way);
    let later = &primary.entries[half_way_entries.len()..];
    commit(&stored, later);
    assert_same(comparable(answers(&stored, &queries, false)), &whole, "stored and grown");
    drop(stored);
    let extended = place.open(2);
    assert_same(comparable(answers(&extended, &queries, false)), &whole, "stored, grown and extended");
    assert_eq!(digest(&extended), digest(&shard));
    // Storing again alternates the slots and changes nothing.
    for _ in 0..3 {
        extended.flush().expect("flushes");
    }
    drop(extended);
    assert_same(comparable(answers(&place.open(2), &queries, false)), &whole, "stored again");
}

#[test]
fn pieces_left_over_from_a_dead_primary_do_not_mix_with_a_new_generation() {
    let place = place();
    let shard = place.open(1);
    let mut primary = Primary::new(&shard);
    primary.load("a", &clustered(6, 1200));
    let piece = |generation, piece, piece_count, byte| Operation::InstallGeneration {
        generation,
        piece,
        piece_count,
        bytes: vec![byte; 100],
    };
    // The first primary dies after two of three pieces; its last piece never comes, or comes out of order.
    primary.write_own(piece(1, 0, 3, 1));
    primary.write_own(piece(1, 1, 3, 2));
    primary.write_own(piece(1, 1, 3, 2));
    primary.write_own(Operation::IndexUpTo { generation: 1, row_end: 100 });
    assert_eq!((shard.stats().generation, shard.stats().rows_tail), (0, 1200));
    // The next one trains its own.
    primary.maintain();
    assert_eq!(shard.stats().generation, 1);
    let queries = clustered(7, 20);
    let before = comparable(answers(&shard, &queries, false));
    // What is late of the old one is ignored, also a step of a generation that is not installed.
    primary.write_own(piece(1, 2, 3, 3));
    primary.write_own(Operation::IndexUpTo { generation: 2, row_end: 100 });
    primary.write_own(Operation::IndexUpTo { generation: 1, row_end: 5 });
    primary.write_own(Operation::IndexUpTo { generation: 1, row_end: u64::MAX });
    assert_same(comparable(answers(&shard, &queries, false)), &before, "leftovers");
    drop(shard);
    assert_same(comparable(answers(&place.open(1), &queries, false)), &before, "leftovers, reopened");
}

#[test]
fn a_second_generation_takes_the_place_of_the_first_once_it_holds_as_much() {
    let place = place();
    let shard = place.open(1);
    let mut primary = Primary::new(&shard);
    primary.load("a", &clustered(8, 1200));
    primary.maintain();
    primary.load("a", &clustered(9, 1500));
    let queries = clustered(10, 30);
    let exact = answers(&shard, &queries, true);
    let before = answers(&shard, &queries, false);
    let pieces = shard.train(&Cancel::never()).expect("trains");
    pieces.into_iter().for_each(|piece| primary.write_own(piece));
    let stats = shard.stats();
    assert_eq!((stats.generation, stats.index_state, stats.codes), (1, IndexState::Building, 1200));
    primary.write_own(Operation::IndexUpTo { generation: 2, row_end: 800 });
    assert_same(hits(answers(&shard, &queries, false)), &hits(before), "the first one serves meanwhile");

    // Half-way, a copy is killed, and goes on where it was.
    let third = place.open(3);
    persist(&third, &primary.entries).expect("persists");
    third.apply(&primary.entries).expect("applies");
    drop(third);
    let third = place.open(3);
    assert_eq!(digest(&third), digest(&shard));
    let half_way = primary.entries.len();

    primary.maintain();
    let stats = shard.stats();
    assert_eq!((stats.generation, stats.index_state, stats.codes), (2, IndexState::Indexed, 1500));
    commit(&third, &primary.entries[half_way..]);
    assert_eq!(digest(&third), digest(&shard));
    let expected = comparable(answers(&shard, &queries, false));
    assert_same(comparable(answers(&third, &queries, false)), &expected, "the killed copy");
    let indexed = answers(&shard, &queries, false);
    assert!(recall(&indexed, &exact) >= 0.9);
    let entries = primary.entries;
    shard.close().expect("closes");
    drop(shard);
    let shard = place.open(1);
    assert_same(comparable(answers(&shard, &queries, false)), &comparable(indexed), "reopened");
    let other = place.open(2);
    persist(&other, &entries).expect("persists");
    other.apply(&entries).expect("applies");
    assert_eq!(digest(&other), digest(&shard));
}

#[test]
fn copies_answer_alike_at_every_stage_of_an_index() {
    let place = place();
    let (shard, other) = (place.open(1), place.open(2));
    let mut primary = Primary::new(&shard);
    let queries = clustered(18, 30);
    let mut applied = 0;
    let mut compare = |primary: &Primary, stage: &str| {
        // In portions of another size than here.
        let entries = &primary.entries[applied..];
        persist(&other, entries).expect("persists");
        entries.chunks(7).for_each(|portion| other.apply(portion).expect("applies"));
        applied = primary.entries.len();
        for ask in [|shard: &Shard, queries: &[Vec<f32>]| answers(shard, queries, false), filtered_answers] {
            let expected = ask(&shard, &queries);
            assert!(expected.iter().all(|answer| answer.codes_scanned > 0), "{stage}: the index is used");
            assert_same(comparable(ask(&other, &queries)), &comparable(expected), stage);
        }
    };
    primary.load("a", &clustered(16, ROWS));
    primary.maintain();
    compare(&primary, "indexed");
    primary.load("b", &clustered(17, 150));
    primary.write((0..150).map(|number| delete(&format!("a{}", 20 * number))).collect());
    compare(&primary, "with a tail and dead rows");
    shard.train(&Cancel::never()).expect("trains").into_iter().for_each(|piece| primary.write_own(piece));
    primary.write_own(Operation::IndexUpTo { generation: 2, row_end: 1000 });
    assert_eq!(shard.stats().index_state, IndexState::Renewing);
    compare(&primary, "half-way to the next generation");
    primary.maintain();
    assert_eq!((shard.stats().generation, shard.stats().rows_tail), (2, 0));
    compare(&primary, "renewed");
}

#[test]
fn a_shard_that_outgrew_its_lists_trains_again_by_itself() {
    let place = place();
    let shard = place.open(1);
    let mut primary = Primary::new(&shard);
    primary.load("a", &clustered(13, 1000));
    primary.maintain();
    let lists = shard.maintenance_input(Default::default()).lists;
    primary.load("b", &clustered(14, 3600));
    let work = primary.maintain();
    assert_eq!(work.iter().filter(|work| **work == Maintenance::Train).count(), 1, "{work:?}");
    let grown = shard.maintenance_input(Default::default());
    assert!(grown.lists >= 2 * lists, "{lists} lists became {}", grown.lists);
    assert_eq!((grown.generation, grown.renewal, grown.rows_tail), (2, None, 0));
    assert_eq!(grown.measured_row_end, 4600, "efforts are measured of the new one");
    let queries = clustered(15, 40);
    assert!(recall(&answers(&shard, &queries, false), &answers(&shard, &queries, true)) >= 0.9);
}

#[test]
fn training_needs_rows_and_can_be_cancelled() {
    let place = place();
    let shard = place.open(1);
    assert_eq!(shard.train(&Cancel::never()).expect_err("no rows").kind(), ErrorKind::Conflict);
    let mut primary = Primary::new(&shard);
    primary.load("a", &clustered(11, 1100));
    let cancel = Cancel::never();
    cancel.cancel();
    assert_eq!(shard.train(&cancel).expect_err("cancelled").kind(), ErrorKind::Cancelled);
    assert!(shard.state().is_ok(), "a cancelled training leaves the copy as it was");
    assert_eq!(shard.stats().index_state, IndexState::Exact);
}

#[test]
fn a_search_of_the_index_at_the_default_effort_is_sampled_and_compared() {
    let place = place();
    let shard = place.open(1);
    let mut primary = Primary::new(&shard);
    primary.load("a", &clustered(16, 1200));
    let queries = clustered(17, 1);
    answers(&shard, &queries, false);
    assert!(!shard.has_sample(), "exact search has nothing to show");
    primary.maintain();
    answers(&shard, &queries, true);
    let named = SearchKnobs { nprobe: Some(1), ..SearchKnobs::default() };
    shard.search(&ShardQuery { knobs: named, ..query(&queries[0], 10) }, &Cancel::never()).expect("searches");
    assert!(!shard.has_sample(), "the caller chose the effort");
    answers(&shard, &queries, false);
    assert!(shard.has_sample());
    shard.check_sample(&Cancel::never()).expect("compares");
    assert!(!shard.has_sample());
    assert_eq!(shard.recall_at_10(), None, "one sample says nothing");
}

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

/// `cargo nextest run --release -p node --test shard_index --run-ignored only --no-capture`
#[test]
#[ignore = "prints figures for DESIGN.md; asserts nothing about time"]
fn figures_of_one_shard_of_a_50_000_vector_load() {
    use std::time::Instant;
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
