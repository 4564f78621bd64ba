//! A write is acknowledged after it is on the disk of every in-sync copy: read off the system calls of a running process.
//!
//! A child process keeps three copies of a shard on RocksDB and notes each acknowledgement in a file, under `strace`. For each write
//! there must be, in every copy's write-ahead log, a `write` that carries it, then an `fdatasync` that began after it, and only
//! after that one's end the note. Simulations believe what a disk says of itself; this asks the kernel.

mod sim_support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use cluster_config::collection::CollectionSpec;
use cluster_config::ids::{CopyId, Lineage, OperationId};
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use node::replication::storage::{CopyStorage, EncodedEntry, LogWrite, StorageError, StoredState};
use node::shard::{Shard, ShardOptions, StorageResources};
use parking_lot::Mutex;
use sim_support::cluster::{Cluster, begin_write};
use sim_support::register::SHARD;

const COPIES: u64 = 3;
/// Ids of equal length, so that none is part of another in the trace.
const WRITES: std::ops::Range<u128> = 100..164;
/// Writes under way at a time: some share an fsync.
const AT_ONCE: usize = 4;

// ---- the traced process ----------------------------------------------------------------------------------------------------

/// A shard's disk that may answer a write before it has made it durable: the bug that this test must find.
struct Disk {
    shard: Arc<Shard>,
    late: Duration,
    under_way: Mutex<Option<JoinHandle<Result<(), StorageError>>>>,
}

impl Disk {
    fn open(dir: &Path, copy: u64, late: Duration, resources: &Arc<StorageResources>) -> Self {
        let options = ShardOptions {
            dir: dir.join(format!("copy-{copy}")),
            cluster_id: "test".into(),
            shard: SHARD,
            copy: CopyId(copy),
            lineage: Lineage(0),
            spec: CollectionSpec::new("test", 8),
            may_create: true,
            resources: Arc::clone(resources),
        };
        let shard = Arc::new(Shard::open(options).expect("opens"));
        Self { shard, late, under_way: Mutex::new(None) }
    }

    /// The disk as it is once the write that was answered early has been made.
    fn settled(&self) -> Result<&Shard, StorageError> {
        if let Some(write) = self.under_way.lock().take() {
            write.join().expect("the late write ends")?;
        }
        Ok(&self.shard)
    }
}

impl CopyStorage for Disk {
    fn state(&self) -> Result<StoredState, StorageError> {
        self.settled()?.state()
    }

    fn persist(&self, write: LogWrite) -> Result<(), StorageError> {
        self.settled()?;
        if self.late.is_zero() {
            return self.shard.persist(write);
        }
        let (shard, late) = (Arc::clone(&self.shard), self.late);
        *self.under_way.lock() = Some(std::thread::spawn(move || {
            std::thread::sleep(late);
            shard.persist(write)
        }));
        Ok(())
    }

    fn read(&self, from: SeqNo, entries_max: usize, bytes_max: usize) -> Result<Vec<EncodedEntry>, StorageError> {
        self.settled()?.read(from, entries_max, bytes_max)
    }

    fn term_at(&self, seqno: SeqNo) -> Result<Option<PrimaryTerm>, StorageError> {
        self.settled()?.term_at(seqno)
    }

    fn find_operation(&self, id: OperationId) -> Result<Option<SeqNo>, StorageError> {
        self.settled()?.find_operation(id)
    }

    fn apply(&self, entries: &[EncodedEntry]) -> Result<(), StorageError> {
        self.settled()?.apply(entries)
    }
}

/// What the child does: writes documents, and one line to `acknowledgements` for each answer.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of the other tests"]
async fn child() {
    let Some(dir) = std::env::var_os("SYSCALL_ORDER_DIR") else { return };
    let late_ms = std::env::var("SYSCALL_ORDER_LATE_MS").map_or(0, |text| text.parse().expect("milliseconds"));
    let dir = Path::new(&dir);
    let resources = Arc::new(StorageResources::new(32 << 20, 16 << 20));
    // The primary applies before it answers, so its own disk is in order either way: the others are late.
    let late = |copy| if copy == 1 { Duration::ZERO } else { Duration::from_millis(late_ms) };
    let disks = (1..=COPIES).map(|copy| Disk::open(dir, copy, late(copy), &resources)).collect();
    let cluster = Cluster::start(disks, 60_000).await;
    let mut notes = std::fs::File::create(dir.join("acknowledgements")).expect("creates");
    let ids: Vec<u128> = WRITES.collect();
    for ids in ids.chunks(AT_ONCE) {
        let writes: Vec<_> = ids.iter().map(|id| (*id, begin_write(&cluster, 1, *id))).collect();
        for (id, write) in writes {
            let outcome = write.await.expect("no panic").expect("written");
            assert_eq!(outcome.copies_acked, COPIES as u32);
            std::io::Write::write_all(&mut notes, format!("acknowledged {id}\n").as_bytes()).expect("notes");
        }
    }
}

// ---- the trace -------------------------------------------------------------------------------------------------------------

/// One system call on a file, by the lines of the trace on which it began and ended.
#[derive(Debug, PartialEq)]
struct Call {
    name: String,
    file: String,
    text: String,
    began: usize,
    ended: usize,
}

/// `pid name(fd</file>, ...) = result`, or the same in two lines, `... <unfinished ...>` and `pid <... name resumed>...) = result`.
fn calls(trace: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut unfinished: BTreeMap<&str, Call> = BTreeMap::new();
    for (line, text) in trace.lines().enumerate() {
        let Some((thread, rest)) = text.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let succeeded = || rest.rsplit_once(" = ").is_some_and(|(_, result)| !result.starts_with('-'));
        if rest.starts_with("<... ") {
            if let Some(call) = unfinished.remove(thread).filter(|_| succeeded()) {
                calls.push(Call { ended: line, ..call });
            }
            continue;
        }
        let Some((name, arguments)) = rest.split_once('(') else { continue };
        let Some((file, arguments)) = arguments.split_once('<').and_then(|(_, file)| file.split_once('>')) else {
            continue;
        };
        let (name, file, text) = (name.to_owned(), file.to_owned(), arguments.to_owned());
        let call = Call { name, file, text, began: line, ended: line };
        if rest.ends_with("<unfinished ...>") {
            unfinished.insert(thread, call);
        } else if succeeded() {
            calls.push(call);
        }
    }
    calls
}

/// What is wrong with one write: copies on which it was not known to be durable when it was acknowledged.
fn too_early(calls: &[Call], id: u128, dir: &Path) -> Vec<String> {
    let noted =
        |call: &&Call| call.file.ends_with("/acknowledgements") && call.text.contains(&format!("acknowledged {id}"));
    let Some(note) = calls.iter().find(noted) else { return vec![format!("write {id} was never acknowledged")] };
    let is_durable = |copy: u64| {
        let log_of = dir.join(format!("copy-{copy}"));
        let in_log = |call: &&Call| call.file.starts_with(&*log_of.to_string_lossy()) && call.file.ends_with(".log");
        let carries = |call: &&Call| call.name.contains("write") && call.text.contains(&format!("document {id}"));
        calls.iter().filter(in_log).filter(carries).any(|write| {
            calls.iter().filter(in_log).any(|sync| {
                let covers = sync.file == write.file && sync.began > write.ended;
                sync.name.ends_with("sync") && covers && sync.ended < note.began
            })
        })
    };
    (1..=COPIES)
        .filter(|copy| !is_durable(*copy))
        .map(|copy| format!("write {id} was acknowledged before it was durable on copy {copy}"))
        .collect()
}

/// Runs the child under `strace`. `None` where that is not possible, which is said.
fn trace(dir: &Path, late_ms: u64) -> Option<Vec<Call>> {
    let attempt = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    if !attempt.as_ref().is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: strace is missing, or this machine forbids to trace processes: {attempt:?}");
        return None;
    }
    let file = dir.join("trace");
    let child = Command::new("strace")
        .args(["-f", "-y", "-s", "4096", "-e", "trace=write,pwrite64,writev,fsync,fdatasync", "-o"])
        .arg(&file)
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
        .env("SYSCALL_ORDER_DIR", dir)
        .env("SYSCALL_ORDER_LATE_MS", late_ms.to_string())
        .output()
        .expect("starts");
    assert!(
        child.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&child.stdout),
        String::from_utf8_lossy(&child.stderr)
    );
    Some(calls(&std::fs::read_to_string(file).expect("a trace")))
}

#[test]
fn a_write_is_acknowledged_after_its_fsync_on_every_copy() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(calls) = trace(dir.path(), 0) else { return };
    let broken: Vec<String> = WRITES.flat_map(|id| too_early(&calls, id, dir.path())).collect();
    let syncs = calls.iter().filter(|call| call.name == "fdatasync" && call.file.ends_with(".log")).count();
    assert!(broken.is_empty(), "{} of {syncs} fdatasync:\n{}", broken.len(), broken.join("\n"));
    println!("{} writes on {COPIES} copies, {syncs} times fdatasync on their logs", WRITES.count());
}

#[test]
fn a_disk_that_answers_before_its_fsync_is_found_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(calls) = trace(dir.path(), 100) else { return };
    let broken: Vec<String> = WRITES.flat_map(|id| too_early(&calls, id, dir.path())).collect();
    assert!(!broken.is_empty() && broken.iter().all(|broken| !broken.contains("copy 1")), "{broken:?}");
    println!("{} of {} acknowledgements were too early", broken.len(), WRITES.count());
}

#[test]
fn calls_that_others_interrupt_are_put_together() {
    let trace = "\
10  write(5</d/copy-1/000004.log>, \"\\1document 100\\0\", 20) = 20
11  fdatasync(5</d/copy-1/000004.log> <unfinished ...>
10  write(9</d/acknowledgements>, \"acknowledged 100\\n\", 17) = 17
11  <... fdatasync resumed>)          = 0
12  fdatasync(6</d/copy-2/000004.log>) = -1 EIO (Input/output error)
13  +++ exited with 0 +++
";
    let calls = calls(trace);
    let seen: Vec<_> = calls.iter().map(|call| (call.name.as_str(), call.began, call.ended)).collect();
    assert_eq!(seen, [("write", 0, 0), ("write", 2, 2), ("fdatasync", 1, 3)]);
    let broken = too_early(&calls, 100, Path::new("/d"));
    assert_eq!(broken.len(), COPIES as usize, "the sync ended after the note: {broken:?}");
}
