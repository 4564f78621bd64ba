//! A whole copy as files: taken from one copy while it is written to, made another one's own.

mod shard_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use cluster_config::error::ErrorKind;
use cluster_config::ids::{CollectionId, CopyId, Lineage, ShardId};
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};
use node::replication::storage::{CopyStorage, LogWrite, StorageError};
use node::shard::operation::EncodedEntry;
use node::shard::{Shard, ShardOptions};
use shard_support::*;

fn documents(log: &mut LogWriter, seed: u64, count: usize) -> Vec<EncodedEntry> {
    let mut rng = rng(seed);
    let entry =
        |n: usize| log.entry(vec![put(&format!("d{}", n % 40), &format!("text {n}"), &unit_vector(&mut rng, 4))]);
    (0..count).map(entry).collect()
}

fn checkpoint_dir(place: &Place, name: &str) -> PathBuf {
    place.dir.path().join(name)
}

/// The options of copy 2, in the directory of a checkpoint.
fn into_copy_2(place: &Place, dir: &Path) -> ShardOptions {
    ShardOptions { dir: dir.to_path_buf(), may_create: false, ..place.options(2) }
}

#[test]
fn a_checkpoint_becomes_another_copy_and_the_log_goes_on_from_there() {
    let place = Place::new(spec(4));
    let mut log = LogWriter::new();
    let source = place.open(1);
    let entries = documents(&mut log, 1, 90);
    commit(&source, &entries);
    // What is not committed may be overwritten by a later primary, and must not travel.
    let tail = documents(&mut log, 2, 5);
    persist(&source, &tail).expect("persists");
    let dir = checkpoint_dir(&place, "checkpoint");
    let taken = source.checkpoint(&dir).expect("taken");
    assert_eq!(taken.base, LogPosition { term: TERM, seqno: SeqNo(90) });
    let at_base = source.digest().expect("digest");

    let base = Shard::adopt_snapshot(into_copy_2(&place, &dir), PrimaryTerm(7)).expect("adopted");
    assert_eq!(base, taken.base);
    let copy = Shard::open(into_copy_2(&place, &dir)).expect("opens as copy 2");
    copy.check().expect("invariants");
    let state = copy.state().expect("state");
    assert_eq!((state.copy, state.lineage), (CopyId(2), Lineage(1)));
    assert_eq!((state.purged, state.last, state.applied), (base, base, base));
    assert_eq!(state.current_term, PrimaryTerm(7), "what this copy promised before holds");
    let digest = copy.digest().expect("digest");
    assert_eq!((digest.documents, digest.index_membership), (at_base.documents, at_base.index_membership));
    assert!(matches!(copy.read(SeqNo(90), 1, 1), Err(StorageError::Refused(_))), "its log begins after the base");
    assert_eq!(copy.find_operation(entries[89].operation_id).expect("finds"), Some(SeqNo(90)), "the window travels");

    // A later primary wrote something else after the base.
    log.next = SeqNo(91);
    log.term = PrimaryTerm(8);
    let later = documents(&mut log, 3, 30);
    commit(&copy, &later);
    source
        .persist(LogWrite { term: Some(PrimaryTerm(8)), truncate_from: Some(SeqNo(91)), entries: later.clone() })
        .expect("persists");
    source.apply(&later).expect("applies");
    let digests = [&source, &copy].map(|shard| shard.digest().expect("digest"));
    assert_eq!(
        (digests[0].documents, digests[0].index_membership),
        (digests[1].documents, digests[1].index_membership)
    );
    drop(copy);
    let copy = Shard::open(into_copy_2(&place, &dir)).expect("opens again");
    assert_eq!(copy.digest().expect("digest").documents, digests[0].documents);
}

#[test]
fn a_checkpoint_taken_while_writing_is_at_one_applied_position() {
    let place = Place::new(spec(4));
    let mut log = LogWriter::new();
    let source = place.open(1);
    let entries = documents(&mut log, 1, 2000);
    let is_written = AtomicBool::new(false);
    let taken: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| {
            for chunk in entries.chunks(7) {
                commit(&source, chunk);
            }
            is_written.store(true, Ordering::Release);
        });
        let mut taken = Vec::new();
        while !is_written.load(Ordering::Acquire) {
            let dir = checkpoint_dir(&place, &format!("checkpoint-{}", taken.len()));
            taken.push((source.checkpoint(&dir).expect("taken"), dir));
        }
        taken
    });
    assert!(taken.len() > 1, "the writer was too fast for this test to say anything");
    let reference = place.open(3);
    let mut applied = 0;
    for (checkpoint, dir) in taken {
        let base = checkpoint.base.seqno.0 as usize;
        assert!(base.is_multiple_of(7) || base == entries.len(), "all of a batch or nothing, not {base}");
        commit(&reference, &entries[applied..base]);
        applied = base;
        Shard::adopt_snapshot(into_copy_2(&place, &dir), PrimaryTerm(0)).expect("adopted");
        let copy = Shard::open(into_copy_2(&place, &dir)).expect("opens");
        let digests = [&reference, &copy].map(|shard| shard.digest().expect("digest"));
        assert_eq!(digests[0].documents, digests[1].documents, "at {base}");
        assert_eq!(digests[0].index_membership, digests[1].index_membership, "at {base}");
    }
}

#[test]
fn a_checkpoint_of_something_else_or_damaged_is_not_adopted() {
    let place = Place::new(spec(4));
    let mut log = LogWriter::new();
    let source = place.open(1);
    commit(&source, &documents(&mut log, 1, 50));
    let original = checkpoint_dir(&place, "checkpoint");
    source.checkpoint(&original).expect("taken");
    assert!(source.checkpoint(&original).is_err(), "it is there already");
    assert!(original.join("rocksdb").exists() || source.state().is_ok(), "and the copy goes on");
    source.state().expect("not poisoned");

    let original = checkpoint_dir(&place, "another");
    source.checkpoint(&original).expect("taken");
    let wrong: [fn(&mut ShardOptions); 4] = [
        |options| options.cluster_id = "other".into(),
        |options| options.shard = ShardId { collection: CollectionId(2), index: 0 },
        |options| options.lineage = Lineage(2),
        |options| options.spec.dim = 8,
    ];
    for (case, change) in wrong.into_iter().enumerate() {
        let mut options = into_copy_2(&place, &original);
        change(&mut options);
        let refused = Shard::adopt_snapshot(options, PrimaryTerm(0)).expect_err("of something else");
        assert_eq!(refused.kind(), ErrorKind::Conflict, "case {case}: {refused}");
    }
    let tables = fs::read_dir(original.join("rocksdb")).expect("lists").map(|entry| entry.expect("entry").path());
    let largest = tables
        .filter(|path| path.extension().is_some_and(|extension| extension == "sst"))
        .max_by_key(|path| fs::metadata(path).expect("metadata").len())
        .expect("has a table");
    // Not through the hard link: the source's own file would rot with it.
    let mut bytes = fs::read(&largest).expect("reads");
    fs::remove_file(&largest).expect("unlinks");
    bytes[100] ^= 1;
    fs::write(&largest, bytes).expect("writes");
    let refused = Shard::adopt_snapshot(into_copy_2(&place, &original), PrimaryTerm(0)).expect_err("is damaged");
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
    source.digest().expect("the source is whole");
}
