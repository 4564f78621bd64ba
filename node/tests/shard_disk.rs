//! The disk of a copy: what survives a crash, what is refused, what is noticed.

mod shard_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, Lineage, OperationId};
use cluster_config::operation::Operation;
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};
use node::disk::DiskWatch;
use node::replication::storage::{CopyStorage, LogWrite, StorageError};
use node::shard::operation::EncodedEntry;
use node::shard::{IndexState, ShardError, ShardOptions};
use node::vector::Cancel;
use prometheus::IntGauge;
use rand::Rng;
use shard_support::*;

fn barriers(log: &mut LogWriter, count: usize) -> Vec<EncodedEntry> {
    (0..count).map(|_| log.entry_of(OperationId(0), vec![Operation::Barrier])).collect()
}

fn position(term: u64, seqno: u64) -> LogPosition {
    LogPosition { term: PrimaryTerm(term), seqno: SeqNo(seqno) }
}

#[test]
fn an_empty_directory_is_no_copy_that_has_served() {
    let place = Place::new(spec(4));
    let lost = || ShardOptions { may_create: false, ..place.options(1) };
    let error = node::shard::Shard::open(lost()).err().expect("nothing is there");
    assert_eq!(error.kind(), cluster_config::error::ErrorKind::NotFound);
    assert!(node::shard::Shard::open(lost()).is_err(), "the refusal must not have created anything");
    drop(place.open(1));
    assert!(node::shard::Shard::open(lost()).is_ok(), "a copy that is there opens");
}

#[test]
fn a_log_is_appended_read_cut_and_found_again() {
    let place = Place::new(spec(4));
    let mut log = LogWriter::new();
    let shard = place.open(1);
    let state = shard.state().expect("state");
    assert_eq!((state.last, state.applied, state.purged), Default::default());
    assert_eq!(shard.read(SeqNo(1), 10, 1000).expect("reads"), []);

    let first = barriers(&mut log, 5);
    persist(&shard, &first).expect("persists");
    log.term = PrimaryTerm(3);
    let second = barriers(&mut log, 3);
    persist(&shard, &second).expect("persists");
    let all: Vec<_> = first.iter().chain(&second).cloned().collect();
    assert_eq!(shard.read(SeqNo(1), 100, 1 << 20).expect("reads"), all);
    assert_eq!(shard.read(SeqNo(4), 2, 1 << 20).expect("reads"), all[3..5]);
    assert_eq!(shard.read(SeqNo(4), 9, 1).expect("reads"), all[3..4], "at least one entry");
    assert_eq!(shard.read(SeqNo(9), 9, 1).expect("reads"), []);
    let terms: Vec<_> = (0..10).map(|s| shard.term_at(SeqNo(s)).expect("term").map(|term| term.0)).collect();
    assert_eq!(terms, [Some(0), Some(1), Some(1), Some(1), Some(1), Some(1), Some(3), Some(3), Some(3), None]);

    // A later primary overwrites the tail from entry 5 on.
    log.next = SeqNo(5);
    log.term = PrimaryTerm(4);
    let third = barriers(&mut log, 2);
    let write = LogWrite { term: Some(PrimaryTerm(4)), truncate_from: Some(SeqNo(5)), entries: third.clone() };
    shard.persist(write).expect("persists");
    let check = |shard: &node::shard::Shard| {
        let state = shard.state().expect("state");
        assert_eq!(state.last, position(4, 6));
        assert_eq!(state.current_term, PrimaryTerm(4));
        assert_eq!((state.copy, state.lineage), (CopyId(1), Lineage(1)));
        let read = shard.read(SeqNo(1), 100, 1 << 20).expect("reads");
        assert_eq!(read, first[..4].iter().chain(&third).cloned().collect::<Vec<_>>());
        let terms: Vec<_> = (4..8).map(|s| shard.term_at(SeqNo(s)).expect("term").map(|term| term.0)).collect();
        assert_eq!(terms, [Some(1), Some(4), Some(4), None]);
    };
    check(&shard);
    drop(shard);
    check(&place.open(1));
}

#[test]
fn calls_that_break_the_contract_are_refused_and_change_nothing() {
    let place = Place::new(spec(4));
    let mut log = LogWriter::new();
    let shard = place.open(1);
    let entries = barriers(&mut log, 3);
    commit(&shard, &entries);
    let refused = |write: LogWrite| {
        let result = shard.persist(write);
        assert!(matches!(result, Err(StorageError::Refused(_))), "{result:?}");
    };
    let append = |entry: EncodedEntry| LogWrite { entries: vec![entry], ..LogWrite::default() };
    log.next = SeqNo(5);
    refused(append(log.entry(vec![Operation::Barrier])));
    refused(append(entries[2].clone()));
    refused(LogWrite { truncate_from: Some(SeqNo(3)), ..LogWrite::default() });
    refused(LogWrite { term: Some(PrimaryTerm(0)), ..LogWrite::default() });
    log.next = SeqNo(4);
    let mut damaged = log.entry(vec![Operation::Barrier]);
    damaged.crc32c ^= 1;
    refused(append(damaged));
    log.next = SeqNo(4);
    log.term = PrimaryTerm(2);
    refused(append(log.entry(vec![Operation::Barrier])));
    let beyond = EncodedEntry::encode(SeqNo(4), TERM, OperationId(0), vec![Operation::Barrier]);
    assert!(matches!(shard.apply(&[beyond]), Err(StorageError::Refused(_))));
    let state = shard.state().expect("not poisoned");
    assert_eq!((state.last, state.applied), (position(1, 3), position(1, 3)));
}

#[test]
fn another_copys_directory_is_refused() {
    let place = Place::new(spec(4));
    drop(place.open(1));
    let wrong: [fn(&mut ShardOptions); 5] = [
        |options| options.cluster_id = "other".into(),
        |options| options.copy = CopyId(2),
        |options| options.lineage = Lineage(2),
        |options| options.shard.index = 1,
        |options| options.spec.dim = 8,
    ];
    for (case, change) in wrong.into_iter().enumerate() {
        let mut options = place.options(1);
        change(&mut options);
        let error = node::shard::Shard::open(options).err().unwrap_or_else(|| panic!("case {case} was opened"));
        assert_eq!(error.kind(), ErrorKind::Conflict, "case {case}: {error}");
    }
    place.open(1);
}

#[test]
fn a_newer_lineage_is_adopted_by_word_only_and_keeps_what_is_there() {
    let place = Place::new(spec(4));
    let mut log = LogWriter::new();
    let shard = place.open(1);
    persist(&shard, &barriers(&mut log, 1)).expect("persists");
    shard.close().expect("closes");
    drop(shard);
    let of = |lineage| ShardOptions { lineage: Lineage(lineage), ..place.options(1) };
    let open = |lineage| node::shard::Shard::open(of(lineage));
    let error = open(3).err().expect("not of itself");
    assert!(matches!(error, ShardError::OlderLineage { stored: Lineage(1), asked: Lineage(3) }), "{error}");
    let other = ShardOptions { copy: CopyId(2), ..of(3) };
    assert!(matches!(node::shard::Shard::adopt_lineage(&other), Err(ShardError::Identity { .. })));
    node::shard::Shard::adopt_lineage(&of(3)).expect("adopts");
    node::shard::Shard::adopt_lineage(&of(3)).expect("safe to repeat");
    let shard = open(3).expect("opens");
    let state = shard.state().expect("not poisoned");
    assert_eq!((state.lineage, state.last), (Lineage(3), position(1, 1)));
    drop(shard);
    assert!(matches!(open(1), Err(ShardError::Identity { .. })), "an older register is another copy's");
    assert!(matches!(node::shard::Shard::adopt_lineage(&of(2)), Err(ShardError::Identity { .. })), "never back");
}

fn newest_wal(dir: &Path) -> PathBuf {
    let logs = fs::read_dir(dir.join("rocksdb")).expect("lists").map(|entry| entry.expect("entry").path());
    logs.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().expect("has a log")
}

/// Loads documents one entry at a time; every other entry is applied after it is persisted.
fn load(place: &Place, copy: u64, count: usize) -> (node::shard::Shard, Vec<EncodedEntry>) {
    let mut rng = rng(7);
    let mut log = LogWriter::new();
    let shard = place.open(copy);
    let mut entries = Vec::new();
    for number in 0..count {
        let document = format!("d{}", number % (count * 2 / 3).max(1));
        let entry = log.entry(vec![put(&document, &format!("text {number}"), &unit_vector(&mut rng, 4))]);
        persist(&shard, std::slice::from_ref(&entry)).expect("persists");
        entries.push(entry);
        if number % 2 == 1 {
            shard.apply(&entries).expect("applies");
        }
    }
    (shard, entries)
}

#[test]
fn a_torn_tail_of_the_write_ahead_log_loses_unacknowledged_work_only() {
    let place = Place::new(spec(4));
    let (shard, entries) = load(&place, 1, 40);
    shard.apply(&entries).expect("applies");
    let whole = shard.digest().expect("digest");
    let source = place.options(1).dir;
    // The image of a crash while the last write was on its way, torn at many places.
    let image = tempfile::tempdir().expect("temp dir");
    for torn_bytes in [1u64, 7, 50, 200, 401, 1000, 2500] {
        let dir = image.path().join(torn_bytes.to_string());
        copy_dir(&source, &dir);
        let wal = newest_wal(&dir);
        let length = fs::metadata(&wal).expect("metadata").len();
        fs::OpenOptions::new().write(true).open(&wal).expect("opens").set_len(length - torn_bytes).expect("cuts");
        let shard =
            node::shard::Shard::open(ShardOptions { dir, ..place.options(1) }).expect("opens after a torn write");
        shard.check().expect("invariants");
        let state = shard.state().expect("state");
        assert!(state.applied.seqno <= state.last.seqno && state.last.seqno <= SeqNo(40), "{state:?}");
        // The primary sends what is missing; applying again leads to the same state.
        let missing = &entries[state.last.seqno.0 as usize..];
        persist(&shard, missing).expect("persists");
        let redo = shard.read(state.applied.seqno.next(), usize::MAX, usize::MAX).expect("reads");
        shard.apply(&redo).expect("applies");
        assert_eq!(shard.digest().expect("digest"), whole, "torn by {torn_bytes} bytes");
    }
}

#[test]
fn damage_in_the_middle_of_the_write_ahead_log_is_refused_not_repaired() {
    let place = Place::new(spec(4));
    let (shard, _) = load(&place, 1, 40);
    let image = tempfile::tempdir().expect("temp dir");
    let dir = image.path().join("copy");
    copy_dir(&place.options(1).dir, &dir);
    drop(shard);
    let wal = newest_wal(&dir);
    let mut bytes = fs::read(&wal).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(&wal, bytes).expect("writes");
    let error = node::shard::Shard::open(ShardOptions { dir, ..place.options(1) }).err().expect("is refused");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[test]
fn a_killed_process_leaves_everything_it_wrote() {
    let place = Place::new(spec(4));
    let (shard, entries) = load(&place, 1, 41);
    let before = shard.digest().expect("digest");
    let image = tempfile::tempdir().expect("temp dir");
    copy_dir(&place.options(1).dir, &image.path().join("copy"));
    let options = ShardOptions { dir: image.path().join("copy"), ..place.options(1) };
    let shard = node::shard::Shard::open(options).expect("opens");
    let state = shard.state().expect("state");
    assert_eq!((state.applied.seqno, state.last.seqno), (SeqNo(40), SeqNo(41)));
    assert_eq!(shard.digest().expect("digest"), before);
    // Replaying from the start is harmless.
    shard.apply(&entries).expect("applies");
    assert_eq!(shard.state().expect("state").applied.seqno, SeqNo(41));
    assert_eq!(shard.find_operation(OperationId(1041)).expect("finds"), Some(SeqNo(41)));
    assert_eq!(shard.find_operation(OperationId(1042)).expect("finds"), None);
}

#[test]
fn each_crash_point_leaves_all_of_a_write_or_nothing_and_poisons_the_copy() {
    let scenario = fail::FailScenario::setup();
    let points = [
        ("shard-persist-before-write", false, false),
        ("shard-persist-after-write", true, false),
        ("shard-apply-before-write", true, false),
        ("shard-apply-after-write", true, true),
    ];
    for (point, is_logged, is_applied) in points {
        let place = Place::new(spec(4));
        let mut rng = rng(1);
        let mut log = LogWriter::new();
        let shard = place.open(1);
        commit(&shard, &[log.entry(vec![put("a", "first", &unit_vector(&mut rng, 4))])]);
        let second = [log.entry(vec![put("a", "second", &unit_vector(&mut rng, 4)), delete("b")])];

        fail::cfg(point, "return").expect("fail point");
        let failed = persist(&shard, &second).and_then(|()| shard.apply(&second));
        fail::remove(point);
        assert!(matches!(failed, Err(StorageError::Io(_))), "{point}: {failed:?}");
        // Nothing is answered any more, although the fail point is gone.
        assert_eq!(shard.state().err(), failed.clone().err(), "{point}");
        assert_eq!(shard.persist(LogWrite { term: Some(PrimaryTerm(9)), ..LogWrite::default() }), failed);
        assert_eq!(shard.read(SeqNo(1), 1, 1).err(), failed.clone().err());
        let search = shard.search(&query(&[1.0, 0.0, 0.0, 0.0], 1), &Cancel::never());
        assert_eq!(search.expect_err("poisoned").kind(), ErrorKind::Unavailable);
        assert!(shard.fetch_rows(&[0], false).is_err() && shard.digest().is_err());
        assert_eq!(shard.stats().index_state, IndexState::Poisoned);
        drop(shard);

        let shard = place.open(1);
        let state = shard.state().expect("state");
        assert_eq!(state.last.seqno, SeqNo(if is_logged { 2 } else { 1 }), "{point}");
        assert_eq!(state.applied.seqno, SeqNo(if is_applied { 2 } else { 1 }), "{point}");
        let text = |shard: &node::shard::Shard| {
            shard.fetch_documents(&[key("a")], false).expect("fetches")[0].chunk.text.clone()
        };
        assert_eq!(text(&shard), if is_applied { "second" } else { "first" }, "{point}");
        if !is_logged {
            persist(&shard, &second).expect("persists");
        }
        shard.apply(&second).expect("applies");
        shard.check().expect("invariants");
        assert_eq!(text(&shard), "second");
    }
    scenario.teardown();
}

#[test]
fn a_closed_copy_answers_nothing_and_opens_again() {
    let place = Place::new(spec(4));
    let (shard, _) = load(&place, 1, 10);
    let before = shard.digest().expect("digest");
    shard.close().expect("closes");
    assert!(shard.state().is_err() && shard.digest().is_err());
    drop(shard);
    assert_eq!(place.open(1).digest().expect("digest"), before);
}

#[test]
fn mapped_vectors_are_refilled_from_the_database() {
    let place = Place::new(spec(4));
    let (shard, entries) = load(&place, 1, 30);
    shard.apply(&entries).expect("applies");
    let mut queries = rng(3);
    let vectors: Vec<_> = (0..20).map(|_| unit_vector(&mut queries, 4)).collect();
    let answers = |shard: &node::shard::Shard| -> Vec<_> {
        vectors.iter().map(|vector| shard.search(&query(vector, 5), &Cancel::never()).expect("searches").hits).collect()
    };
    let before = answers(&shard);
    shard.close().expect("closes");
    drop(shard);
    let mapped = place.options(1).dir.join("vectors.f16");
    let damages: [fn(&Path); 3] = [
        |path| fs::remove_file(path).expect("removes"),
        |path| fs::write(path, b"rubbish").expect("writes"),
        |path| fs::OpenOptions::new().write(true).open(path).expect("opens").set_len(0).expect("cuts"),
    ];
    for damage in damages {
        damage(&mapped);
        assert_eq!(answers(&place.open(1)), before);
    }
}

#[test]
fn hits_are_named_alike_from_the_mapped_file_and_from_the_database() {
    let place = Place::new(spec(4));
    let shard = place.open(1);
    let mut log = LogWriter::new();
    let mut random = rng(5);
    // Ids that lie beside their vectors, and ids that are too long for that.
    let ids: Vec<String> =
        [1, 59, 60, 512].iter().map(|bytes| "é".repeat(bytes / 2) + &"x".repeat(bytes % 2)).collect();
    let put = |id: &String, random: &mut _| {
        let chunks = (0..2).map(|ordinal| chunk(ordinal, "text", "{}", &unit_vector(random, 4))).collect();
        Operation::PutDocument { key: key(id), title: String::new(), chunks }
    };
    // The first life of each is replaced: dead rows lie between.
    let puts: Vec<Operation> = ids.iter().chain(&ids).map(|id| put(id, &mut random)).collect();
    commit(&shard, &[log.entry(puts)]);
    let all = |shard: &node::shard::Shard| {
        let found = shard.search(&query(&[1.0, 0.0, 0.0, 0.0], 100), &Cancel::never()).expect("searches").hits;
        let mut names: Vec<_> = found.into_iter().map(|hit| (hit.row, hit.document_id, hit.ordinal)).collect();
        names.sort_unstable();
        names
    };
    let expected: Vec<_> = (8..16).map(|row| (row, ids[(row as usize - 8) / 2].clone(), row as u32 % 2)).collect();
    assert_eq!(all(&shard), expected);
    shard.close().expect("closes");
    drop(shard);
    assert_eq!(all(&place.open(1)), expected, "from the file as it was left");
    fs::remove_file(place.options(1).dir.join("vectors.f16")).expect("removes");
    assert_eq!(all(&place.open(1)), expected, "from a file made anew");
}

/// A file system of its own for a test; gone with the value.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    /// `None` without the right to mount.
    fn mount(at: &'a Path, mebibytes: u32) -> Option<Self> {
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output().ok()?;
        mounted.status.success().then_some(Self(at))
    }

    fn grow(&self, mebibytes: u32) {
        let size = format!("remount,size={mebibytes}m");
        assert!(Command::new("mount").args(["-o", &size]).arg(self.0).status().expect("runs").success());
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_is_told_as_such_and_loses_nothing_acknowledged() {
    let place = Place::new(spec(4));
    let Some(disk) = SmallDisk::mount(place.dir.path(), 32) else {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    };
    let mut rng = rng(4);
    let mut log = LogWriter::new();
    let shard = place.open(1);
    let mut acknowledged = Vec::new();
    let failure = loop {
        assert!(acknowledged.len() < 10_000, "32 MiB never filled up");
        // Text that does not compress.
        let text: String = (0..2000).map(|_| format!("{:08x}", rng.random::<u32>())).collect();
        let entry = log.entry(vec![put(&format!("d{}", acknowledged.len()), &text, &unit_vector(&mut rng, 4))]);
        if let Err(error) = persist(&shard, std::slice::from_ref(&entry)) {
            break error;
        }
        acknowledged.push(entry);
        if let Err(error) = shard.apply(&acknowledged) {
            break error;
        }
    };
    assert_eq!(failure, StorageError::Full);
    assert_eq!(shard.state().err(), Some(StorageError::Full), "the copy is poisoned");
    drop(shard);

    disk.grow(256);
    let shard = place.open(1);
    assert!(shard.state().expect("state").last.seqno.0 >= acknowledged.len() as u64);
    let kept = shard.read(SeqNo(1), acknowledged.len(), usize::MAX).expect("reads");
    assert!(kept == acknowledged, "every acknowledged entry is there");
    shard.apply(&acknowledged).expect("applies");
    assert_eq!(shard.stats().document_count, acknowledged.len() as u64);
    shard.digest().expect("nothing is damaged");
    drop(shard);
}

#[test]
fn client_writes_are_refused_before_the_disk_is_full_and_taken_again_when_there_is_room() {
    let place = Place::new(spec(4));
    let Some(_disk) = SmallDisk::mount(place.dir.path(), 64) else {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    };
    let mut log = LogWriter::new();
    let shard = place.open(1);
    let gauge = IntGauge::new("used", "percent").expect("a name");
    let watch = DiskWatch::new(place.dir.path().to_path_buf(), 95, gauge.clone());
    let write = || put("a", "text", &[1.0, 0.0, 0.0, 0.0]);
    watch.look();
    watch.admit(&[write()]).expect("there is room");

    let ballast = place.dir.path().join("ballast");
    let mut file = fs::File::create(&ballast).expect("creates");
    while !watch.is_full() {
        std::io::Write::write_all(&mut file, &[0; 1 << 18]).expect("the watermark comes before the end");
        watch.look();
    }
    assert!((95..100).contains(&gauge.get()), "{} %", gauge.get());
    for refused in [vec![write()], vec![delete("a"), write()]] {
        let error = watch.admit(&refused).expect_err("the disk is nearly full");
        assert_eq!(error.kind, ErrorKind::StorageFull);
        assert!(error.hint.contains("95 %"), "{}", error.hint);
    }
    watch.admit(&[delete("a"), delete("b")]).expect("deletes make room");
    // What other primaries send is taken, and reads go on.
    commit(&shard, &[log.entry(vec![write()])]);
    assert_eq!(shard.fetch_documents(&[key("a")], false).expect("reads").len(), 1);

    drop(file);
    fs::remove_file(&ballast).expect("removes");
    watch.look();
    watch.admit(&[write()]).expect("there is room again");
    drop(shard);
}
