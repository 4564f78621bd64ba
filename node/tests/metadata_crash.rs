//! The metadata storage is killed before and after each of its writes and syncs, and must be found as it was promised.
//!
//! One script of calls covers votes, appends, cuts, the committed mark, applying, purging, building and installing snapshots. A run
//! without a crash notes what the storage shows after each call; then the script is run once per crash point. What a reopened
//! storage shows must be one of those notes: the last one written where only the process died; where the power went, any one from the
//! last promise on, since promised is what a finished call says it has made durable.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cluster_config::ids::NodeId;
use futures::stream;
use node::metadata::Storage;
use node::metadata::command::{Command, FEATURE_LEVEL, RegisterNode};
use node::metadata::types::{SnapshotData, TypeConfig};
use openraft::alias::{EntryOf, LogIdOf, SnapshotOf, VoteOf};
use openraft::entry::RaftEntry;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftSnapshotBuilder, RaftStateMachine};
use openraft::vote::RaftLeaderIdExt;
use openraft::{EntryPayload, RaftLogReader, StorageHelper};
use tempfile::TempDir;

type Snapshot = SnapshotOf<TypeConfig, SnapshotData>;

/// Where a process can die: around each batch that is written, and around each sync.
const POINTS: [&str; 4] =
    ["metadata-write-before", "metadata-write-after", "metadata-sync-before", "metadata-sync-after"];

/// One call of openraft. Entries are registrations of nodes, so each shows in the state; the first is blank.
#[derive(Clone, Copy, Debug)]
enum Call {
    Vote { term: u64 },
    Append { term: u64, first: u64, last: u64 },
    TruncateAfter { term: u64, index: u64 },
    Committed { term: u64, index: u64 },
    Apply { term: u64, first: u64, last: u64 },
    BuildSnapshot,
    InstallSnapshot,
    Purge { term: u64, index: u64 },
}

impl Call {
    /// Whether a finished call promises that its effect survives the loss of power.
    fn promises(self) -> bool {
        match self {
            Call::Vote { .. } | Call::Append { .. } | Call::BuildSnapshot | Call::InstallSnapshot => true,
            Call::TruncateAfter { .. } | Call::Committed { .. } | Call::Apply { .. } | Call::Purge { .. } => false,
        }
    }
}

/// The life of a voter: leads, follows, loses its tail to another leader, compacts, falls behind and is sent a snapshot.
const SCRIPT: [Call; 21] = [
    Call::Vote { term: 1 },
    Call::Append { term: 1, first: 0, last: 3 },
    Call::Committed { term: 1, index: 2 },
    Call::Apply { term: 1, first: 0, last: 2 },
    Call::Append { term: 1, first: 4, last: 6 },
    Call::Vote { term: 2 },
    Call::TruncateAfter { term: 1, index: 3 },
    Call::Append { term: 2, first: 4, last: 5 },
    Call::Committed { term: 2, index: 5 },
    Call::Apply { term: 1, first: 3, last: 3 },
    Call::Apply { term: 2, first: 4, last: 5 },
    Call::BuildSnapshot,
    Call::Purge { term: 1, index: 3 },
    Call::Append { term: 2, first: 6, last: 8 },
    Call::TruncateAfter { term: 2, index: 6 },
    Call::Vote { term: 3 },
    Call::InstallSnapshot,
    Call::Purge { term: 3, index: 20 },
    Call::Append { term: 3, first: 21, last: 22 },
    Call::Apply { term: 3, first: 21, last: 21 },
    Call::BuildSnapshot,
];

fn open(dir: &Path) -> Storage {
    Storage::open(dir, "c", NodeId(1), true).expect("opens")
}

fn id(term: u64, index: u64) -> LogIdOf<TypeConfig> {
    let leader = <TypeConfig as openraft::RaftTypeConfig>::LeaderId::new_committed(term, NodeId(1));
    LogIdOf::<TypeConfig>::new(leader, index)
}

fn entry(term: u64, index: u64) -> EntryOf<TypeConfig> {
    if index == 0 {
        return EntryOf::<TypeConfig>::new(id(term, index), EntryPayload::Blank);
    }
    let command = Command::RegisterNode(RegisterNode {
        node: NodeId(index),
        rpc_address: "127.0.0.1:1".into(),
        http_address: String::new(),
        zone: format!("term {term}"),
        weight: 100,
        is_data: true,
        registration: "a".into(),
        copies_on_disk: Vec::new(),
        feature_level: FEATURE_LEVEL,
    });
    EntryOf::<TypeConfig>::new(id(term, index), EntryPayload::Normal(command))
}

/// The snapshot another voter sends, of a log that went on to entry 20 in term 3.
async fn sent_snapshot() -> Snapshot {
    let dir = TempDir::new().expect("a directory");
    let mut storage = open(dir.path());
    let entries = (1..=20).map(|index| Ok((entry(3, index), None)));
    storage.machine.apply(stream::iter(entries)).await.expect("applies");
    let mut builder = storage.machine.try_create_snapshot_builder(true).await.expect("forced");
    builder.build_snapshot().await.expect("builds")
}

async fn call(storage: &mut Storage, call: Call, snapshot: &Snapshot) -> std::io::Result<()> {
    match call {
        Call::Vote { term } => storage.log.save_vote(&VoteOf::<TypeConfig>::new(term, NodeId(1))).await,
        Call::Append { term, first, last } => {
            let entries = (first..=last).map(|index| entry(term, index));
            storage.log.blocking_append(entries).await.map_err(std::io::Error::other)
        }
        Call::TruncateAfter { term, index } => storage.log.truncate_after(Some(id(term, index))).await,
        Call::Committed { term, index } => storage.log.save_committed(Some(id(term, index))).await,
        Call::Apply { term, first, last } => {
            let entries: Vec<_> = (first..=last).map(|index| Ok((entry(term, index), None))).collect();
            storage.machine.apply(stream::iter(entries)).await
        }
        Call::BuildSnapshot => {
            let mut builder = storage.machine.try_create_snapshot_builder(true).await.expect("forced");
            builder.build_snapshot().await.map(drop)
        }
        Call::InstallSnapshot => storage.machine.install_snapshot(&snapshot.meta, snapshot.snapshot.clone()).await,
        Call::Purge { term, index } => storage.log.purge(id(term, index)).await,
    }
}

/// Everything openraft can learn of the storage, as text.
async fn shown(storage: &mut Storage) -> String {
    let mut reader = storage.log.get_log_reader().await;
    let entries = reader.try_get_log_entries(..).await.expect("reads");
    let log: Vec<_> = entries.iter().map(|entry| entry.log_id().to_string()).collect();
    let vote = reader.read_vote().await.expect("reads");
    let bounds = storage.log.get_log_state().await.expect("reads");
    let committed = storage.log.read_committed().await.expect("reads");
    let applied = storage.machine.applied_state().await.expect("reads");
    let snapshot = storage.machine.get_current_snapshot().await.expect("reads").map(|snapshot| snapshot.meta);
    let state = storage.state.borrow().clone();
    let nodes: Vec<_> = state.nodes.values().map(|node| format!("{} in {}", node.id, node.zone)).collect();
    format!(
        "vote {vote:?}\nlog {log:?} {bounds:?}\ncommitted {committed:?}\napplied {applied:?}\nsnapshot {snapshot:?}\n\
         version {} nodes {nodes:?}",
        state.version
    )
}

/// Bytes of the write-ahead logs: name and length.
fn write_ahead(dir: &Path) -> Vec<(std::ffi::OsString, u64)> {
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .expect("lists")
        .map(|file| file.expect("lists"))
        .filter(|file| file.path().extension().is_some_and(|extension| extension == "log"))
        .map(|file| (file.file_name(), file.metadata().expect("there").len()))
        .collect();
    found.sort();
    found
}

/// What a disk holds after a crash: the directory, the write-ahead log cut to `lengths`.
fn left_behind(dir: &Path, lengths: &[(std::ffi::OsString, u64)]) -> TempDir {
    let copy = TempDir::new().expect("a directory");
    for file in std::fs::read_dir(dir).expect("lists") {
        let file = file.expect("lists");
        let to = copy.path().join(file.file_name());
        std::fs::copy(file.path(), &to).expect("copies");
        if let Some((_, length)) = lengths.iter().find(|(name, _)| *name == file.file_name()) {
            let cut = std::fs::OpenOptions::new().write(true).open(&to).expect("opens");
            cut.set_len(*length).expect("cuts");
        }
    }
    copy
}

/// What is shown after each call, and how often each point is passed until then.
async fn notes(snapshot: &Snapshot) -> (Vec<String>, [usize; POINTS.len()]) {
    let passed: [Arc<AtomicUsize>; POINTS.len()] = Default::default();
    let dir = TempDir::new().expect("a directory");
    let mut storage = open(dir.path());
    for (point, count) in POINTS.into_iter().zip(&passed) {
        let count = Arc::clone(count);
        let callback = move || {
            count.fetch_add(1, Ordering::SeqCst);
        };
        fail::cfg_callback(point, callback).expect("a fail point");
    }
    let now = || passed.each_ref().map(|count| count.load(Ordering::SeqCst));
    let mut notes = vec![shown(&mut storage).await];
    for step in SCRIPT {
        let before = now();
        call(&mut storage, step, snapshot).await.unwrap_or_else(|error| panic!("{step:?}: {error}"));
        let after = now();
        assert_eq!(after[1] - before[1], 1, "{step:?} is one batch, so that no crash can split it");
        assert_eq!(after[3] > before[3], step.promises(), "{step:?} syncs if, and only if, it promises anything");
        notes.push(shown(&mut storage).await);
    }
    let passed = now();
    POINTS.into_iter().for_each(fail::remove);
    (notes, passed)
}

#[test]
fn each_crash_leaves_what_was_promised_and_nothing_that_never_was() {
    let scenario = fail::FailScenario::setup();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let crashes = runtime.block_on(async {
        let snapshot = sent_snapshot().await;
        let (notes, passed) = notes(&snapshot).await;
        let mut crashes = 0;
        for (point, times) in POINTS.into_iter().zip(passed) {
            for nth in 0..times {
                crash_at(point, nth, &notes, &snapshot).await;
                crashes += 1;
            }
        }
        crashes
    });
    println!("{crashes} crash points, each with the process dead, the power gone, and a torn last record");
    assert!(crashes > 2 * SCRIPT.len(), "only {crashes} crash points");
    scenario.teardown();
}

/// Runs the script until the point is passed for the `nth` time, and looks at what is left.
async fn crash_at(point: &str, nth: usize, notes: &[String], snapshot: &Snapshot) {
    let dir = TempDir::new().expect("a directory");
    let mut storage = open(dir.path());
    fail::cfg(point, &format!("{nth}*off->return")).expect("a fail point");
    let (mut promised, mut promised_bytes) = (0, write_ahead(dir.path()));
    let mut died_in = None;
    for (done, step) in SCRIPT.into_iter().enumerate() {
        if call(&mut storage, step, snapshot).await.is_err() {
            died_in = Some(done);
            break;
        }
        if step.promises() {
            (promised, promised_bytes) = (done + 1, write_ahead(dir.path()));
        }
    }
    let done = died_in.unwrap_or_else(|| panic!("{point} was not passed {nth} times"));
    let written = if point == "metadata-write-before" { done } else { done + 1 };
    let all_bytes = write_ahead(dir.path());
    let torn_bytes: Vec<_> = all_bytes
        .iter()
        .zip(&promised_bytes)
        .map(|((name, all), (_, kept))| (name.clone(), kept + (all - kept) * 2 / 3))
        .collect();
    let places = [
        ("the process died", left_behind(dir.path(), &all_bytes), written..=written),
        ("the power went", left_behind(dir.path(), &promised_bytes), promised..=written),
        ("the last record is torn", left_behind(dir.path(), &torn_bytes), promised..=written),
    ];
    fail::remove(point);
    drop(storage);
    for (what, left, allowed) in places {
        let context = format!("{what} at {point} {nth}, in call {done} ({:?})", SCRIPT[done]);
        let mut storage = open(left.path());
        let found = shown(&mut storage).await;
        let expected = &notes[allowed.clone()];
        assert!(expected.contains(&found), "{context}: found\n{found}\nexpected one of\n{}", expected.join("\nor\n"));
        goes_on(storage, &context).await;
    }
}

/// openraft finds a sound whole, and the log goes on where it ended.
async fn goes_on(mut storage: Storage, context: &str) {
    let mut helper = StorageHelper::new(&mut storage.log, &mut storage.machine).with_id(NodeId(1));
    helper.get_initial_state().await.unwrap_or_else(|error| panic!("{context}: {error}"));
    let last = storage.log.get_log_state().await.expect("reads").last_log_id.map_or(0, |last| last.index);
    storage.log.blocking_append([entry(9, last + 1)]).await.unwrap_or_else(|error| panic!("{context}: {error}"));
}

#[test]
fn after_a_failed_sync_nothing_is_durable_until_reopened() {
    let scenario = fail::FailScenario::setup();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let dir = TempDir::new().expect("a directory");
        let mut storage = open(dir.path());
        fail::cfg("metadata-sync-before", "1*return").expect("a fail point");
        assert!(storage.log.blocking_append([entry(1, 1)]).await.is_err());
        // The disk works again, but what the failed sync left behind nobody knows.
        assert!(storage.log.blocking_append([entry(1, 2)]).await.is_err());
        assert!(storage.log.save_vote(&VoteOf::<TypeConfig>::new(1, NodeId(1))).await.is_err());
        drop(storage);
        let mut storage = open(dir.path());
        storage.log.save_vote(&VoteOf::<TypeConfig>::new(2, NodeId(1))).await.expect("saves");
    });
    scenario.teardown();
}
