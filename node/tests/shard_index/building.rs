//! A load is trained and indexed, and the index is the same on every copy, however it came by it.

use cluster_config::error::ErrorKind;
use cluster_config::operation::Operation;
use cluster_config::search::{SearchKnobs, ShardQuery};
use node::replication::storage::CopyStorage;
use node::shard::{IndexState, Maintenance, Shard};
use node::vector::Cancel;

use super::*;
use crate::shard_support::primary::Primary;

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
