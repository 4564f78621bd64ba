//! A later generation takes the place of an earlier one: put there by hand, wanted by more rows, wanted by other rows.

use cluster_config::operation::Operation;
use node::replication::storage::CopyStorage;
use node::shard::{IndexState, Maintenance};
use node::vector::Cancel;

use super::*;
use crate::shard_support::primary::{Primary, input_after_a_pause};

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
fn a_shard_that_drifted_from_what_it_was_trained_on_trains_again_by_itself() {
    let place = place();
    let (shard, other) = (place.open(1), place.open(2));
    let mut primary = Primary::new(&shard);
    primary.load("a", &clustered_in(0..DIM / 2, 20, ROWS));
    primary.maintain();
    // These differ along axes that the projection cut off: to the first generation they are nearly all one point.
    let rows = (ROWS + ROWS / 3) as u64;
    primary.load("b", &clustered_in(DIM / 2..DIM, 21, ROWS / 3));
    let queries = clustered_in(DIM / 2..DIM, 22, 40);
    let exact = answers(&shard, &queries, true);
    let recall_now = || recall(&answers(&shard, &queries, false), &exact);

    let index = |generation| Maintenance::IndexUpTo { generation, row_end: rows };
    assert_eq!(primary.maintain_once(), Some(index(1)));
    assert_eq!(primary.maintain_once(), Some(Maintenance::MeasureEffort));
    let drifted = input_after_a_pause(&shard);
    assert!(drifted.lists_wanted < 2 * drifted.lists, "it has not outgrown its lists: {drifted:?}");
    let recall_drifted = recall_now();
    assert!(recall_drifted < 0.6, "at all that the default effort may scan: {recall_drifted}");
    assert_eq!(primary.maintain(), [Maintenance::Train, index(2), Maintenance::MeasureEffort]);
    let renewed = input_after_a_pause(&shard);
    println!("recall@10 {recall_drifted:.3}, renewed {:.3}; {drifted:?}, {renewed:?}", recall_now());
    assert_eq!((renewed.generation, renewed.indexed_row_end, renewed.measured_row_end), (2, rows, rows));
    assert!(renewed.recall_measured > drifted.recall_measured, "{drifted:?} became {renewed:?}");
    assert!(recall_now() >= 0.9, "recall@10 is {}", recall_now());

    // The copy that only followed has the same index, and neither keeps anything of the earlier generation.
    persist(&other, &primary.entries).expect("persists");
    primary.entries.chunks(7).for_each(|portion| other.apply(portion).expect("applies"));
    assert_eq!(digest(&other), digest(&shard));
    let expected = comparable(answers(&shard, &queries, false));
    assert_same(comparable(answers(&other, &queries, false)), &expected, "the second copy");
    for (number, copy) in [(1, shard), (2, other)] {
        copy.close().expect("closes");
        drop(copy);
        assert_eq!(records_of_generation(&place, number, 1), [0, 0, 0]);
        let [pieces, reduced, steps] = records_of_generation(&place, number, 2);
        assert!(pieces > 0 && reduced == rows && steps > 0, "{pieces} pieces, {reduced} reduced, {steps} steps");
        assert_same(comparable(answers(&place.open(number), &queries, false)), &expected, "reopened");
    }
}

/// What a closed copy's database holds of a generation: its pieces, vectors reduced by it, steps of its index.
fn records_of_generation(place: &Place, copy: u64, generation: u64) -> [u64; 3] {
    let mut options = rocksdb::Options::default();
    // Without it RocksDB reads through a null pointer here.
    options.set_track_and_verify_wals_in_manifest(true);
    let dir = place.options(copy).dir.join("rocksdb");
    let db = rocksdb::DB::open_cf_for_read_only(&options, dir, ["index", "reduced", "meta"], false).expect("opens");
    let number = generation.to_be_bytes();
    let count = |family, tag: &[u8]| {
        let (family, prefix) = (db.cf_handle(family).expect("there"), [tag, &number[..]].concat());
        let from = rocksdb::IteratorMode::From(&prefix, rocksdb::Direction::Forward);
        let keys = db.iterator_cf(family, from).map(|entry| entry.expect("reads").0);
        keys.take_while(|key| key.starts_with(&prefix)).count() as u64
    };
    [count("index", &[1]), count("reduced", &[]), count("meta", &[7])]
}
