//! Letting go of the log: what was applied outlives its redo, whatever the moment of a crash; and the floor, which tells a log that was
//! cut short from one that ends.

mod shard_support;

use std::fs;
use std::path::Path;

use cluster_config::error::ErrorKind;
use cluster_config::ids::OperationId;
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};
use node::replication::storage::{CopyStorage, LogWrite, StorageError};
use node::shard::operation::EncodedEntry;
use node::shard::{Shard, ShardOptions};
use shard_support::{LogWriter, Place, commit, persist, put, rng, spec, unit_vector};

/// Ten entries of each of the terms 1 to 4, applied.
fn load(place: &Place, copy: u64) -> (Shard, LogWriter) {
    let mut rng = rng(3);
    let mut log = LogWriter::new();
    let shard = place.open(copy);
    for term in 1..=4 {
        log.term = PrimaryTerm(term);
        let mut entry = |number: u64| {
            let document = format!("d{}", (term * 10 + number) % 17);
            log.entry(vec![put(&document, &format!("text {term} {number}"), &unit_vector(&mut rng, 4))])
        };
        let entries: Vec<EncodedEntry> = (0..10).map(&mut entry).collect();
        commit(&shard, &entries);
    }
    (shard, log)
}

fn position(term: u64, seqno: u64) -> LogPosition {
    LogPosition { term: PrimaryTerm(term), seqno: SeqNo(seqno) }
}

/// The files as the operating system has them, without the copy knowing.
fn image(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("creates");
    for entry in fs::read_dir(from).expect("lists") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            image(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copies");
        }
    }
}

#[test]
fn a_purged_log_begins_later_and_changes_nothing_else() {
    let place = Place::new(spec(4));
    let (shard, mut log) = load(&place, 1);
    let before = shard.digest().expect("digest");
    // In the middle of a term, at the end of one, and everything.
    for (up_to, term) in [(5, 1), (25, 3), (30, 3), (40, 4)] {
        shard.purge(SeqNo(up_to)).expect("purges");
        shard.purge(SeqNo(up_to - 3)).expect("nothing to do");
        let check = |shard: &Shard| {
            let state = shard.state().expect("state");
            assert_eq!((state.purged, state.last), (position(term, up_to), position(4, 40)));
            assert_eq!(shard.term_at(SeqNo(up_to - 1)).expect("known"), None);
            let terms = (up_to..=40).map(|seqno| shard.term_at(SeqNo(seqno)).expect("known").expect("there").0);
            assert!(terms.eq((up_to..=40).map(|seqno| seqno.div_ceil(10))), "terms after {up_to}");
            assert!(matches!(shard.read(SeqNo(up_to), 10, 1 << 20), Err(StorageError::Refused(_))));
            let kept = shard.read(SeqNo(up_to + 1), 100, 1 << 20).expect("reads");
            assert!(kept.iter().map(|entry| entry.seqno.0).eq(up_to + 1..=40));
            let after = shard.digest().expect("digest");
            assert_eq!((after.documents, after.index_membership), (before.documents, before.index_membership));
            assert_eq!(after.log_from, SeqNo(up_to));
            let found = shard.find_operation(OperationId(1003)).expect("searches");
            assert_eq!(found, Some(SeqNo(3)), "the window of operation ids is not the log");
        };
        check(&shard);
        let copied = tempfile::tempdir().expect("temp dir");
        image(&place.options(1).dir, copied.path());
        check(&Shard::open(ShardOptions { dir: copied.path().into(), ..place.options(1) }).expect("opens"));
    }
    let next = log.entry(vec![put("new", "text", &[1.0, 0.0, 0.0, 0.0])]);
    commit(&shard, std::slice::from_ref(&next));
    assert_eq!(shard.read(SeqNo(41), 10, 1 << 20).expect("reads"), [next]);
    drop(shard);
    assert_eq!(place.open(1).state().expect("state").last, position(4, 41));
}

#[test]
fn only_what_is_applied_is_purged() {
    let place = Place::new(spec(4));
    let (shard, mut log) = load(&place, 1);
    persist(&shard, &[log.entry(vec![put("new", "text", &[1.0, 0.0, 0.0, 0.0])])]).expect("persists");
    assert!(matches!(shard.purge(SeqNo(41)), Err(StorageError::Refused(_))));
    shard.purge(SeqNo(40)).expect("purges");
    let cut = LogWrite { truncate_from: Some(SeqNo(40)), ..LogWrite::default() };
    assert!(matches!(shard.persist(cut), Err(StorageError::Refused(_))));
}

/// All families share the write-ahead log, so wherever it ends, the applied state reaches as far as the purge.
#[test]
fn a_crash_anywhere_around_a_purge_finds_applied_what_has_lost_its_redo() {
    let place = Place::new(spec(4));
    let (shard, _) = load(&place, 1);
    let whole = shard.digest().expect("digest");
    shard.purge(SeqNo(33)).expect("purges");
    let source = place.options(1).dir;
    let images = tempfile::tempdir().expect("temp dir");
    let mut found = Vec::new();
    for torn_bytes in [0u64, 1, 30, 90, 400, 1500, 4000] {
        let dir = images.path().join(torn_bytes.to_string());
        image(&source, &dir);
        let logs = fs::read_dir(dir.join("rocksdb")).expect("lists").map(|entry| entry.expect("entry").path());
        let wal =
            logs.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().expect("a log");
        let length = fs::metadata(&wal).expect("metadata").len();
        fs::OpenOptions::new().write(true).open(&wal).expect("opens").set_len(length - torn_bytes).expect("cuts");
        let shard = Shard::open(ShardOptions { dir, ..place.options(1) }).expect("opens");
        shard.check().expect("invariants");
        let state = shard.state().expect("state");
        assert!(state.purged.seqno <= state.applied.seqno, "{state:?}");
        if state.applied.seqno == SeqNo(40) {
            assert_eq!(shard.digest().expect("digest").documents, whole.documents);
        }
        found.push((state.purged.seqno.0, state.applied.seqno.0));
    }
    assert!(found.contains(&(33, 40)) && found.iter().any(|(purged, _)| *purged == 0), "both sides: {found:?}");
}

#[test]
fn a_failed_purge_poisons_and_has_happened_or_not() {
    let scenario = fail::FailScenario::setup();
    for (point, is_purged) in [("shard-purge-before-write", false), ("shard-purge-after-write", true)] {
        let place = Place::new(spec(4));
        let (shard, _) = load(&place, 1);
        fail::cfg(point, "return").expect("fail point");
        let failed = shard.purge(SeqNo(20));
        fail::remove(point);
        assert!(matches!(failed, Err(StorageError::Io(_))), "{point}: {failed:?}");
        assert_eq!(shard.state().err(), failed.err(), "{point}");
        drop(shard);
        let state = place.open(1).state().expect("state");
        assert_eq!(state.purged.seqno, SeqNo(if is_purged { 20 } else { 0 }), "{point}");
        assert_eq!(state.last, position(4, 40));
    }
    scenario.teardown();
}

#[test]
fn a_log_that_ends_before_the_floor_is_corrupt_and_not_short() {
    let place = Place::new(spec(4));
    let (shard, mut log) = load(&place, 1);
    shard.keep_floor(SeqNo(40)).expect("remembers");
    shard.keep_floor(SeqNo(12)).expect("a lower one is ignored");
    // A tail that nobody acknowledged may be lost.
    persist(&shard, &[log.entry(vec![put("new", "text", &[1.0, 0.0, 0.0, 0.0])])]).expect("persists");
    let source = place.options(1).dir;
    drop(shard);
    assert_eq!(place.open(1).state().expect("state").floor, SeqNo(40));
    // Somebody restores an old database, or the write-ahead log lost its end.
    let copied = tempfile::tempdir().expect("temp dir");
    let other = Place::new(spec(4));
    let mut short = LogWriter::new();
    let shard = other.open(1);
    let entries: Vec<EncodedEntry> =
        (0..39).map(|_| short.entry(vec![put("d", "text", &[1.0, 0.0, 0.0, 0.0])])).collect();
    commit(&shard, &entries);
    drop(shard);
    image(&other.options(1).dir, copied.path());
    fs::copy(source.join("floor"), copied.path().join("floor")).expect("copies");
    let options = ShardOptions { dir: copied.path().into(), ..place.options(1) };
    let error = Shard::open(options).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("39") && error.to_string().contains("40"), "{error}");
}
