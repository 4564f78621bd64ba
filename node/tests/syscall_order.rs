//! A write is acknowledged after it is on the disk of every in-sync copy: read off the system calls of a running process.
//!
//! A child process keeps three copies of a shard on RocksDB and notes each acknowledgement in a file, under `strace`. For each write
//! there must be, in every copy's write-ahead log, a `write` that carries it, then an `fdatasync` that began after it, and only
//! after that one's end the note. Simulations believe what a disk says of itself; this asks the kernel.

mod sim_support;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use cluster_config::collection::CollectionSpec;
use cluster_config::ids::{CopyId, Lineage};
use node::replication::break_rule;
use node::shard::{Shard, ShardOptions, StorageResources};
use sim_support::cluster::{Cluster, begin_write};
use sim_support::register::SHARD;

const COPIES: u64 = 3;
/// Ids of equal length, so that none is part of another in the trace.
const WRITES: std::ops::Range<u128> = 100..300;
/// Writes under way at a time: some share an fsync.
const AT_ONCE: usize = 4;
/// Every other write of a log takes so long: whoever does not wait for all copies is seen not to.
const SLOW_DISK: &str = "50%sleep(20)";

// ---- the traced process ----------------------------------------------------------------------------------------------------

fn open(dir: &Path, copy: u64, resources: &Arc<StorageResources>) -> Shard {
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
    Shard::open(options).expect("opens")
}

/// What the child does: writes documents, and one line to `acknowledgements` for each answer.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of the other tests"]
async fn child() {
    let Some(dir) = std::env::var_os("SYSCALL_ORDER_DIR") else { return };
    if let Ok(rule) = std::env::var("SYSCALL_ORDER_BREAK") {
        break_rule(&rule).expect("a rule");
    }
    let dir = Path::new(&dir);
    let resources = Arc::new(StorageResources::new(32 << 20, 16 << 20));
    let disks = (1..=COPIES).map(|copy| open(dir, copy, &resources)).collect();
    let scenario = fail::FailScenario::setup();
    fail::cfg("shard-persist-before-write", SLOW_DISK).expect("a fail point");
    let cluster = Cluster::start(disks, 60_000).await;
    let mut notes = std::fs::File::create(dir.join("acknowledgements")).expect("creates");
    let ids: Vec<u128> = WRITES.collect();
    for ids in ids.chunks(AT_ONCE) {
        let writes: Vec<_> = ids.iter().map(|id| (*id, begin_write(&cluster, 1, *id))).collect();
        for (id, write) in writes {
            let outcome = write.await.expect("no panic").expect("written");
            assert_eq!(outcome.copies_acked, COPIES as u32);
            notes.write_all(format!("acknowledged {id}\n").as_bytes()).expect("notes");
        }
    }
    scenario.teardown();
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

/// Runs the child under `strace`, with a rule of the protocol broken or none.
fn trace(dir: &Path, broken: Option<&str>) -> Vec<Call> {
    let attempt = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    assert!(
        attempt.as_ref().is_ok_and(|output| output.status.success()),
        "this test needs strace, and a machine that lets a process trace its children (in a container: the capability \
         SYS_PTRACE); ops/test installs strace. What it said: {attempt:?}"
    );
    let file = dir.join("trace");
    let mut child = Command::new("strace");
    child
        .args(["-f", "-y", "-s", "4096", "-e", "trace=write,pwrite64,writev,fsync,fdatasync", "-o"])
        .arg(&file)
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
        .env("SYSCALL_ORDER_DIR", dir);
    if let Some(rule) = broken {
        child.env("SYSCALL_ORDER_BREAK", rule);
    }
    let output = child.output().expect("starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    calls(&std::fs::read_to_string(file).expect("a trace"))
}

#[test]
fn a_write_is_acknowledged_after_its_fsync_on_every_copy() {
    let dir = tempfile::tempdir().expect("a directory");
    let calls = trace(dir.path(), None);
    let broken: Vec<String> = WRITES.flat_map(|id| too_early(&calls, id, dir.path())).collect();
    let syncs = calls.iter().filter(|call| call.name == "fdatasync" && call.file.ends_with(".log")).count();
    assert!(broken.is_empty(), "{} of {syncs} fdatasync:\n{}", broken.len(), broken.join("\n"));
    println!("{} writes on {COPIES} copies, {syncs} times fdatasync on their logs", WRITES.count());
}

/// Followers that answer before their disks do.
#[test]
fn an_acknowledgement_before_the_fsync_is_found_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let calls = trace(dir.path(), Some("AnswerBeforeDurable"));
    let broken: Vec<String> = WRITES.flat_map(|id| too_early(&calls, id, dir.path())).collect();
    assert!(broken.iter().any(|broken| broken.contains("before it was durable")), "{broken:?}");
    println!("{} of {} times a copy held nothing durable yet", broken.len(), WRITES.count() * COPIES as usize);
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
