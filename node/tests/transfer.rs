//! Snapshots from one node's disk to another's, with the wire in memory: what arrives is kept, what is damaged is not, and a crash at
//! any step leaves the old copy or the new one.

mod shard_support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, Lineage, NodeId, ShardId};
use cluster_config::limits::{SNAPSHOT_LEASE, SNAPSHOT_PIECE_BYTES, TRANSFERS_OUT_MAX};
use cluster_config::seqno::PrimaryTerm;
use cluster_config::shard_group::CopyTarget;
use futures::future::BoxFuture;
use node::error::Error;
use node::replication::storage::CopyStorage;
use node::shard::operation::EncodedEntry;
use node::shard::{Shard, ShardOptions};
use node::transfer::decide::FetchFrom;
use node::transfer::{Fetch, Incoming, Manifest, SnapshotId, SnapshotSource, Snapshots, incoming};
use parking_lot::Mutex;
use prometheus::IntCounter;
use rand::Rng;
use shard_support::*;

const SOURCE: NodeId = NodeId(1);

/// A node that serves its one copy, and goes wrong as asked.
struct Twin {
    shard: Shard,
    shard_id: ShardId,
    snapshots: Mutex<Arc<Snapshots>>,
    dir: PathBuf,
    reads: AtomicUsize,
    /// After this many reads it is silent for ever.
    silent_after: AtomicUsize,
    /// The read that arrives with a flipped bit.
    damaged: AtomicUsize,
    pinned: AtomicU64,
}

impl Twin {
    fn new(shard: Shard, shard_id: ShardId, dir: PathBuf) -> Arc<Self> {
        let snapshots = Snapshots::new(dir.clone());
        snapshots.clear().expect("an empty directory");
        Arc::new(Self {
            shard,
            shard_id,
            snapshots: Mutex::new(Arc::new(snapshots)),
            dir,
            reads: AtomicUsize::new(0),
            silent_after: AtomicUsize::new(usize::MAX),
            damaged: AtomicUsize::new(usize::MAX),
            pinned: AtomicU64::new(0),
        })
    }

    fn snapshots(&self) -> Arc<Snapshots> {
        Arc::clone(&self.snapshots.lock())
    }

    /// Its process is started again.
    fn restart(&self) {
        let snapshots = Snapshots::new(self.dir.clone());
        snapshots.clear().expect("an empty directory");
        *self.snapshots.lock() = Arc::new(snapshots);
    }

    fn take_reads(&self) -> usize {
        self.reads.swap(0, Ordering::Relaxed)
    }
}

impl SnapshotSource for Twin {
    fn open(&self, from: FetchFrom, for_copy: CopyId) -> BoxFuture<'_, Result<Manifest, Error>> {
        Box::pin(async move {
            let manifest = self.snapshots().open(&self.shard, self.shard_id, from.copy.lineage, for_copy)?;
            Ok(Manifest::clone(&manifest))
        })
    }

    fn read<'a>(
        &'a self,
        _node: NodeId,
        snapshot: SnapshotId,
        file: &'a str,
        piece: u32,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            let number = self.reads.fetch_add(1, Ordering::Relaxed);
            if number >= self.silent_after.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            let data = self.snapshots().read(snapshot, file, piece)?;
            if number != self.damaged.load(Ordering::Relaxed) {
                return Ok(data);
            }
            let mut data = data.to_vec();
            data[0] ^= 1;
            Ok(data.into())
        })
    }

    fn close(&self, _node: NodeId, snapshot: SnapshotId) -> BoxFuture<'_, Result<(), Error>> {
        self.snapshots().close(snapshot);
        Box::pin(async { Ok(()) })
    }
}

/// Copy 1 with some megabytes of text at the source; copy 2, which has fallen behind, where it is wanted.
struct Scene {
    place: Place,
    log: LogWriter,
    twin: Arc<Twin>,
    entries: Vec<EncodedEntry>,
}

const BEHIND: usize = 10;

impl Scene {
    fn new() -> Self {
        let place = Place::new(spec(4));
        let mut log = LogWriter::new();
        let mut rng = rng(5);
        let source = place.open(1);
        let entries: Vec<EncodedEntry> = (0..60)
            .map(|number| {
                // Text that does not compress.
                let text: String = (0..7000).map(|_| format!("{:08x}", rng.random::<u32>())).collect();
                log.entry(vec![put(&format!("d{number}"), &text, &unit_vector(&mut rng, 4))])
            })
            .collect();
        commit(&source, &entries);
        let behind = place.open(2);
        commit(&behind, &entries[..BEHIND]);
        behind.close().expect("closes");
        let twin = Twin::new(source, place.options(1).shard, place.dir.path().join("snapshots"));
        Self { place, log, twin, entries }
    }

    fn incoming_dir(&self) -> PathBuf {
        self.place.dir.path().join("incoming")
    }

    fn fetch(&self) -> Fetch {
        let options = self.place.options(1);
        let twin = Arc::clone(&self.twin);
        let target = CopyTarget { shard: options.shard, copy: CopyId(1), lineage: Lineage(1), cfg_version: 1 };
        Fetch {
            source: Arc::clone(&self.twin) as _,
            from: FetchFrom { node: SOURCE, copy: target },
            pin: Arc::new(move |from| {
                twin.pinned.store(from.0, Ordering::Relaxed);
                Box::pin(async {})
            }),
            copy: CopyId(2),
            dir: self.incoming_dir().join("copy-2"),
            progress: Arc::default(),
            bytes_received: IntCounter::new("bytes", "bytes").expect("a name"),
        }
    }

    fn options(&self) -> ShardOptions {
        ShardOptions { may_create: false, ..self.place.options(2) }
    }

    fn install(&self, incoming: Incoming) -> Result<(), String> {
        incoming.adopt(self.options(), PrimaryTerm(0)).map_err(|error| error.to_string())?;
        incoming.install(&self.options().dir).map_err(|error| error.to_string())
    }

    /// Copy 2 opens, as it was or as it should become; says which.
    fn is_replaced(&self) -> bool {
        let shard = Shard::open(self.options()).expect("opens");
        shard.check().expect("invariants");
        let applied = shard.state().expect("state").applied.seqno.0 as usize;
        let digest = shard.digest().expect("nothing is damaged");
        assert_eq!(digest.document_count as usize, applied);
        assert!(applied == BEHIND || applied == self.entries.len(), "{applied}");
        applied == self.entries.len()
    }
}

fn pieces(incoming: &Incoming) -> usize {
    incoming.manifest().files.iter().map(|file| file.pieces.len()).sum()
}

#[tokio::test]
async fn a_copy_that_fell_behind_is_replaced_and_goes_on() {
    let mut scene = Scene::new();
    let fetch = scene.fetch();
    let incoming = fetch.run().await.expect("fetched");
    assert_eq!(scene.twin.snapshots().len(), 0, "closed at the source");
    assert_eq!(scene.twin.pinned.load(Ordering::Relaxed), 61, "the log after the base is needed");
    assert_eq!(fetch.progress.percent(), 100);
    assert_eq!(fetch.bytes_received.get(), incoming.manifest().bytes());
    assert!(incoming.manifest().files.iter().any(|file| file.size > 2 * SNAPSHOT_PIECE_BYTES as u64), "several pieces");
    scene.install(incoming).expect("installed");
    assert!(!scene.fetch().dir.exists(), "what was replaced is gone");
    assert!(scene.is_replaced());

    let more = vec![scene.log.entry(vec![delete("d3"), put("new", "text", &[1.0, 0.0, 0.0, 0.0])])];
    let copy = Shard::open(scene.options()).expect("opens");
    commit(&copy, &more);
    commit(&scene.twin.shard, &more);
    let digests = [&copy, &scene.twin.shard].map(|shard| shard.digest().expect("digest"));
    assert_eq!(
        (digests[0].documents, digests[0].index_membership),
        (digests[1].documents, digests[1].index_membership)
    );
}

#[tokio::test]
async fn what_arrived_is_kept_when_either_side_is_restarted() {
    let scene = Scene::new();
    // The target dies in the middle: the attempt is dropped where it stands.
    scene.twin.silent_after.store(6, Ordering::Relaxed);
    let fetch = scene.fetch();
    let cut = tokio::select! {
        _ = fetch.run() => unreachable!("the source is silent"),
        () = async { while scene.twin.reads.load(Ordering::Relaxed) < 7 { tokio::task::yield_now().await } } => true,
    };
    assert!(cut);
    assert_eq!(scene.twin.snapshots().len(), 1, "the lease goes on");
    incoming::sweep(&scene.incoming_dir()).expect("sweeps");
    scene.twin.silent_after.store(usize::MAX, Ordering::Relaxed);
    scene.twin.take_reads();
    let incoming = scene.fetch().run().await.expect("fetched");
    let all = pieces(&incoming);
    assert_eq!(
        scene.twin.take_reads(),
        all - 6 + 1,
        "six were here; one read asks whether the snapshot is still there"
    );
    assert_eq!(incoming.missing().expect("reads"), []);

    // The source is restarted: its snapshots are void, but the table files are the same.
    scene.twin.restart();
    let fetch = scene.fetch();
    let incoming = fetch.run().await.expect("fetched");
    assert!(scene.twin.take_reads() <= all, "less is read than the first time");
    assert!(
        fetch.bytes_received.get() * 10 < incoming.manifest().bytes(),
        "{} bytes of {}",
        fetch.bytes_received.get(),
        incoming.manifest().bytes()
    );
    scene.install(incoming).expect("installed");
    assert!(scene.is_replaced());
}

#[tokio::test]
async fn a_piece_that_arrives_damaged_is_not_kept() {
    let scene = Scene::new();
    scene.twin.damaged.store(4, Ordering::Relaxed);
    let error = scene.fetch().run().await.expect_err("a flipped bit");
    assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
    assert!(!scene.is_replaced());
    scene.twin.take_reads();
    scene.twin.damaged.store(usize::MAX, Ordering::Relaxed);
    let incoming = scene.fetch().run().await.expect("fetched");
    assert!(scene.twin.take_reads() > 0);
    scene.install(incoming).expect("installed");
    assert!(scene.is_replaced());
}

#[tokio::test]
async fn a_crash_at_any_step_leaves_the_old_copy_or_the_new_one() {
    let scenario = fail::FailScenario::setup();
    let steps = [
        ("adopt-before-flush", false),
        ("adopt-after-sync", false),
        ("install-before-exchange", false),
        ("install-after-exchange", true),
    ];
    for (step, is_new) in steps {
        let scene = Scene::new();
        let incoming = scene.fetch().run().await.expect("fetched");
        fail::cfg(step, "return").expect("fail point");
        assert!(scene.install(incoming).is_err(), "{step}");
        fail::remove(step);
        assert_eq!(scene.is_replaced(), is_new, "{step}");
        incoming::sweep(&scene.incoming_dir()).expect("sweeps");
        assert_eq!(scene.is_replaced(), is_new, "{step}: sweeping is not replacing");
        if is_new {
            assert!(!scene.fetch().dir.exists(), "what was replaced is gone");
        } else {
            let incoming = scene.fetch().run().await.expect("fetched again");
            scene.install(incoming).expect("installed");
            assert!(scene.is_replaced(), "{step}");
        }
    }
    scenario.teardown();
}

#[test]
fn snapshots_are_bounded_and_end_with_their_lease() {
    let scene = Scene::new();
    let snapshots = scene.twin.snapshots();
    let open = |copy| snapshots.open(&scene.twin.shard, scene.twin.shard_id, Lineage(1), CopyId(copy));
    let now = Instant::now();
    let last = TRANSFERS_OUT_MAX as u64;
    let held: Vec<_> = (1..=last).map(|copy| open(copy).expect("opens")).collect();
    assert_eq!(open(last + 1).expect_err("enough are open").kind, ErrorKind::Overloaded);
    // A copy that asks again has forgotten what it was given, so that takes no place.
    let forgotten = held[0].snapshot;
    let first = open(1).expect("opens in the place of the one before").snapshot;
    assert_eq!(snapshots.read(forgotten, "CURRENT", 0).expect_err("it is closed").kind, ErrorKind::NotFound);
    snapshots.read(first, "CURRENT", 0).expect("reads");
    assert_eq!(snapshots.due(Some(now + SNAPSHOT_LEASE)), []);
    let late = Instant::now() + SNAPSHOT_LEASE + Duration::from_secs(1);
    assert_eq!(snapshots.due(Some(late)).len(), TRANSFERS_OUT_MAX);
    assert_eq!(snapshots.read(first, "CURRENT", 1).expect_err("no such piece").kind, ErrorKind::InvalidArgument);
    assert_eq!(snapshots.read(first, "../../x", 0).expect_err("no such file").kind, ErrorKind::InvalidArgument);
    snapshots.close(first);
    assert_eq!(snapshots.read(first, "CURRENT", 0).expect_err("it is closed").kind, ErrorKind::NotFound);
    open(last + 1).expect("there is room again");
    snapshots.due(None).into_iter().for_each(|snapshot| snapshots.close(snapshot));
    assert!(snapshots.is_empty());
    let left = std::fs::read_dir(&scene.twin.dir).expect("lists").count();
    assert_eq!(left, 0, "nothing stays on the disk");
}
