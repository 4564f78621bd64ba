//! Whole nodes but for the wire and the metadata group: copies on real disks, opened, replaced and given up by `Copies` as the register
//! says.

mod sim_support;

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use cluster_config::cluster_state::{ClusterState, Liveness, NodeLifecycle, NodeRecord};
use cluster_config::collection::{Collection, CollectionSpec};
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, DocumentKey, Incarnation, NodeId, OperationId, ShardId};
use cluster_config::operation::{Chunk, Operation};
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};
use cluster_config::shard_group::{CopyPhase, CopyTarget, ShardGroup};
use futures::future::{BoxFuture, join_all};
use half::f16;
use node::copies::{Copies, CopiesContext, Copy, Followed, Transfers};
use node::error::Error;
use node::pace::Pace;
use node::pool::Pool;
use node::replication::messages::Confirm;
use node::replication::storage::{CopyStorage, EncodedEntry};
use node::replication::{
    Append, AppendOutcome, AppendRefusal, AppendResult, Proposal, ProposalOutcome, RegisterClient,
    ReplicationTransport, Retention, StoragePool, Timing, TransportError,
};
use node::scrubbing::Scrubbing;
use node::shard::StorageResources;
use node::telemetry::Metrics;
use node::transfer::decide::FetchFrom;
use node::transfer::{Manifest, SnapshotId, SnapshotSource, Snapshots};
use node::vector::{Cancel, init_thread};
use parking_lot::Mutex;
use rand::Rng;
use sim_support::cluster::{PATIENCE, until};
use sim_support::register::{Register, SHARD};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const DIM: usize = 4;

/// The nodes, the wire between them, and the metadata group.
struct World {
    dir: TempDir,
    nodes: Mutex<BTreeMap<NodeId, Node>>,
    register: Mutex<Register>,
    state: watch::Sender<Arc<ClusterState>>,
    scrub_interval_ms: AtomicU64,
}

struct Node {
    copies: Arc<Copies>,
    snapshots: Arc<Snapshots>,
    metrics: Arc<Metrics>,
    /// This life of the process; it ends with the node.
    _incarnation: watch::Sender<Incarnation>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Wire(Weak<World>);

impl World {
    /// Copies 1 to `copies`, all new, copy n on node n. No node runs yet.
    fn new(copies: u64) -> Arc<Self> {
        let register = Register::new(copies, copies, 0, 1);
        let mut state = ClusterState::default();
        let spec = CollectionSpec::new("test", DIM as u32);
        state.collections.insert(SHARD.collection, Collection { id: SHARD.collection, spec, epoch: 0 });
        for number in 1..=copies {
            let node = NodeRecord {
                id: NodeId(number),
                rpc_address: String::new(),
                http_address: String::new(),
                zone: "z".into(),
                weight: 100,
                is_data: true,
                incarnation: Incarnation(1),
                liveness: Liveness::Alive,
                lifecycle: NodeLifecycle::Active,
            };
            state.nodes.insert(node.id, node);
        }
        let world = Self {
            dir: tempfile::tempdir().expect("temp dir"),
            nodes: Mutex::default(),
            register: Mutex::new(register),
            state: watch::channel(Arc::new(state)).0,
            scrub_interval_ms: AtomicU64::new(3_600_000),
        };
        world.tell();
        Arc::new(world)
    }

    fn data_dir(&self, node: u64) -> PathBuf {
        self.dir.path().join(format!("node-{node}"))
    }

    fn start(self: &Arc<Self>, number: u64) {
        let data_dir = self.data_dir(number);
        let wire = Wire(Arc::downgrade(self));
        let metrics = Arc::new(Metrics::new().expect("names are unique"));
        let snapshots = Arc::new(Snapshots::new(data_dir.join("snapshots")));
        let scrubbing = Scrubbing {
            interval: Duration::from_millis(self.scrub_interval_ms.load(Ordering::Relaxed)),
            pace: Pace::new(u64::MAX),
            dir: data_dir.join("scrub"),
            metrics: Arc::clone(&metrics),
            turn: tokio::sync::Mutex::new(()),
        };
        let copies = Copies::new(CopiesContext {
            node: NodeId(number),
            dir: data_dir.join("copies"),
            cluster_id: "test".into(),
            resources: Arc::new(StorageResources::new(16 << 20, 8 << 20)),
            storage_pool: StoragePool::new(4, 2, init_thread),
            training_pool: Pool::start("training", 1, 4, init_thread).expect("starts"),
            transport: Arc::new(wire.clone()),
            timing: Timing { heartbeat_ms: 100, ack_timeout_ms: 5000, retry_ms: 50, proposal_pause_ms: 100 },
            // So small that a copy which was away for a few hundred entries needs a snapshot.
            retention: Retention { bytes_min: 64 * 1024, bytes_max: 256 * 1024, age_max_ms: 3_600_000 },
            transfers: Transfers {
                incoming_dir: data_dir.join("incoming"),
                source: Arc::new(wire.clone()),
                snapshots: Arc::clone(&snapshots),
            },
            scrubbing: Arc::new(scrubbing),
            metrics: Arc::clone(&metrics),
            check: true,
        });
        std::fs::create_dir_all(&data_dir).expect("creates");
        copies.sweep_transfers().expect("sweeps");
        let opened = {
            let world = Arc::downgrade(self);
            Arc::new(move || {
                if let Some(world) = world.upgrade() {
                    world.lead(NodeId(number));
                }
            })
        };
        let (incarnation, followed_incarnation) = watch::channel(Incarnation(1));
        let followed = Followed {
            state: self.state.subscribe(),
            incarnation: followed_incarnation,
            register: Arc::new(wire),
            opened,
        };
        let stop = CancellationToken::new();
        // Held until the node is known: its copy may be open before.
        let mut nodes = self.nodes.lock();
        let task = tokio::spawn(Arc::clone(&copies).run(followed, stop.clone()));
        nodes.insert(NodeId(number), Node { copies, snapshots, metrics, _incarnation: incarnation, stop, task });
    }

    async fn stop(&self, number: u64) {
        let node = self.nodes.lock().remove(&NodeId(number)).expect("it runs");
        node.stop.cancel();
        node.task.await.expect("ends well");
    }

    /// What the metadata leader does once it hears that a node has opened its copy.
    fn lead(&self, node: NodeId) {
        let id = CopyId(node.0);
        if self.nodes.lock().get(&node).is_none_or(|node| node.copies.find(&self.target(id)).is_err()) {
            return;
        }
        let mut register = self.register.lock();
        let mut group = register.group.clone();
        let record = group.copies.get_mut(&id).expect("is there");
        if record.phase != CopyPhase::New {
            return;
        }
        let is_first = group.in_sync.is_empty();
        record.phase = if is_first { CopyPhase::InSync } else { CopyPhase::CatchingUp };
        group.version += 1;
        if is_first {
            group.in_sync.insert(id);
        }
        register.group = group;
        if is_first {
            register.grant(id, &[]);
        }
        drop(register);
        self.tell();
    }

    fn group(&self) -> ShardGroup {
        self.register.lock().group.clone()
    }

    fn tell(&self) {
        let group = self.group();
        self.state.send_modify(|state| {
            let state = Arc::make_mut(state);
            state.version += 1;
            state.shards.insert(SHARD, group);
        });
    }

    fn target(&self, copy: CopyId) -> CopyTarget {
        CopyTarget { shard: SHARD, copy, lineage: self.group().lineage, cfg_version: 0 }
    }

    fn copies(&self, node: NodeId) -> Result<Arc<Copies>, Error> {
        let nodes = self.nodes.lock();
        let node = nodes.get(&node).ok_or_else(|| Error::new(ErrorKind::Unavailable, "connection refused"))?;
        Ok(Arc::clone(&node.copies))
    }

    fn copy(&self, number: u64) -> Option<Arc<Copy>> {
        self.copies(NodeId(number)).ok()?.find(&self.target(CopyId(number))).ok()
    }

    fn metrics(&self, number: u64) -> Arc<Metrics> {
        Arc::clone(&self.nodes.lock()[&NodeId(number)].metrics)
    }

    async fn primary(&self, number: u64) -> Arc<Copy> {
        until("the copy is primary", || self.copy(number).is_some_and(|copy| copy.handle.is_primary())).await;
        self.copy(number).expect("is open")
    }

    async fn in_sync(&self, expected: &[u64]) {
        let expected = expected.iter().copied().map(CopyId).collect();
        until("the in-sync set is as expected", || self.group().in_sync == expected).await;
    }

    /// Writes documents of some kilobytes through the primary.
    async fn write(&self, primary: u64, numbers: std::ops::Range<u64>) {
        let primary = self.primary(primary).await;
        let writes = numbers.map(|number| {
            let handle = &primary.handle;
            let put = put(number);
            async move {
                let id = OperationId(u128::from(number) + 1);
                handle.write(id, vec![put], Instant::now() + PATIENCE).await.expect("acknowledged");
            }
        });
        join_all(writes).await;
    }

    /// Every copy that is named holds the same documents, `count` of them.
    async fn assert_equal(&self, copies: &[u64], count: u64) {
        let last = self.copy(copies[0]).expect("is open").handle.report().applied;
        let mut digests = Vec::new();
        for number in copies {
            let copy = self.copy(*number).expect("is open");
            copy.handle.wait_applied(last, Instant::now() + PATIENCE).await.expect("applied");
            let digest = tokio::task::spawn_blocking(move || copy.shard.digest().expect("nothing is damaged"));
            digests.push(digest.await.expect("joins"));
        }
        for digest in &digests {
            assert_eq!(digest.document_count, count);
            assert_eq!(digest.documents, digests[0].documents);
            assert_eq!(digest.index_membership, digests[0].index_membership);
        }
    }
}

impl Wire {
    fn world(&self) -> Result<Arc<World>, Error> {
        self.0.upgrade().ok_or_else(|| Error::new(ErrorKind::Unavailable, "the world has ended"))
    }

    fn find(&self, node: NodeId, copy: CopyId) -> Result<Arc<Copy>, Error> {
        let world = self.world()?;
        world.copies(node)?.find(&world.target(copy))
    }

    fn snapshots(&self, node: NodeId) -> Result<Arc<Snapshots>, Error> {
        let world = self.world()?;
        let nodes = world.nodes.lock();
        let node = nodes.get(&node).ok_or_else(|| Error::new(ErrorKind::Unavailable, "connection refused"))?;
        Ok(Arc::clone(&node.snapshots))
    }
}

fn unreachable(error: Error) -> TransportError {
    TransportError(error.to_string())
}

impl ReplicationTransport for Wire {
    fn append(&self, to: NodeId, append: Append) -> BoxFuture<'_, Result<AppendResult, TransportError>> {
        Box::pin(async move {
            let copy = self.find(to, append.to_copy).map_err(unreachable)?;
            Ok(copy.handle.append(append).await)
        })
    }

    fn confirm(&self, to: NodeId, confirm: Confirm) -> BoxFuture<'_, Result<PrimaryTerm, TransportError>> {
        Box::pin(async move {
            let copy = self.find(to, CopyId(to.0)).map_err(unreachable)?;
            Ok(copy.handle.confirm(confirm.term).await)
        })
    }
}

impl RegisterClient for Wire {
    fn propose(&self, proposal: Proposal) -> BoxFuture<'_, Result<ProposalOutcome, TransportError>> {
        Box::pin(async move {
            let world = self.world().map_err(unreachable)?;
            let outcome = world.register.lock().propose(&proposal);
            world.tell();
            Ok(outcome)
        })
    }

    fn read_register(&self, _: ShardId) -> BoxFuture<'_, Result<ShardGroup, TransportError>> {
        Box::pin(async move { Ok(self.world().map_err(unreachable)?.group()) })
    }
}

impl SnapshotSource for Wire {
    fn open(&self, from: FetchFrom, for_copy: CopyId) -> BoxFuture<'_, Result<Manifest, Error>> {
        Box::pin(async move {
            let (copy, snapshots) = (self.find(from.node, from.copy.copy)?, self.snapshots(from.node)?);
            let opened =
                tokio::task::spawn_blocking(move || snapshots.open(&copy.shard, SHARD, copy.lineage, for_copy));
            Ok(Manifest::clone(&*opened.await.expect("joins")?))
        })
    }

    fn read<'a>(
        &'a self,
        node: NodeId,
        snapshot: SnapshotId,
        file: &'a str,
        piece: u32,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move { self.snapshots(node)?.read(snapshot, file, piece) })
    }

    fn close(&self, node: NodeId, snapshot: SnapshotId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.snapshots(node)?.close(snapshot);
            Ok(())
        })
    }
}

fn put(number: u64) -> Operation {
    // Text that does not compress.
    let mut random = rand::rng();
    let text: String = (0..500).map(|_| format!("{:08x}", random.random::<u32>())).collect();
    let values = [number as f32 + 1.0, 1.0, -1.0, 0.5];
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    let chunk = Chunk {
        ordinal: 0,
        span: 0..text.len() as u64,
        text,
        metadata_json: "{}".into(),
        vector: values.iter().flat_map(|value| f16::from_f32(value / length).to_le_bytes()).collect(),
    };
    let key = DocumentKey::new(format!("d{number}")).expect("valid");
    Operation::PutDocument { key, title: String::new(), chunks: vec![chunk] }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_comes_late_is_fetched_and_admitted_while_writes_go_on() {
    // Not beside a test of this process that sets fail points.
    let scenario = fail::FailScenario::setup();
    let world = World::new(3);
    world.start(1);
    world.primary(1).await;
    world.start(2);
    world.in_sync(&[1, 2]).await;
    world.write(1, 0..400).await;
    until("the log does not reach back to its beginning", || {
        world.copy(1).is_some_and(|copy| copy.shard.state().expect("serves").purged.seqno.0 > 0)
    })
    .await;

    world.start(3);
    let (writing, writer) = (CancellationToken::new(), Arc::clone(&world));
    let go_on = writing.clone();
    let written = tokio::spawn(async move {
        let mut next = 400;
        while !go_on.is_cancelled() {
            writer.write(1, next..next + 5).await;
            next += 5;
        }
        next
    });
    world.in_sync(&[1, 2, 3]).await;
    writing.cancel();
    let count = written.await.expect("every write was acknowledged");
    world.assert_equal(&[1, 2, 3], count).await;
    let attempts = world.metrics(3).transfers.with_label_values(&["ok"]).get();
    assert!(attempts >= 1, "the log alone could not have helped");
    let served = |number| world.nodes.lock()[&NodeId(number)].snapshots.is_empty();
    assert!(served(1) && served(2), "no snapshot is left open");
    assert!(world.copies(NodeId(3)).expect("runs").failure().is_none());

    // A copy that was in sync, was away, and comes back too late for the log.
    let lets_go = |number| world.copy(number).is_some_and(|copy| copy.handle.report().pinned.is_none());
    until("nothing keeps the log any more", || (1..=3).all(lets_go)).await;
    world.stop(2).await;
    world.in_sync(&[1, 3]).await;
    world.write(1, count..count + 400).await;
    world.start(2);
    world.in_sync(&[1, 2, 3]).await;
    assert_eq!(world.metrics(2).transfers.with_label_values(&["ok"]).get(), 1);
    world.assert_equal(&[1, 2, 3], count + 400).await;
    for node in 1..=3 {
        world.stop(node).await;
        let left = std::fs::read_dir(world.data_dir(node).join("incoming")).map_or(0, |entries| entries.count());
        assert_eq!(left, 0, "nothing is left of the snapshots");
    }
    scenario.teardown();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_scrub_left_behind_that_died_is_no_hindrance() {
    let world = World::new(1);
    let left = world.data_dir(1).join("scrub/scrub-1/rocksdb");
    std::fs::create_dir_all(&left).expect("creates");
    std::fs::write(left.join("000001.sst"), b"cut short").expect("writes");
    world.scrub_interval_ms.store(50, Ordering::Relaxed);
    world.start(1);
    let metrics = Arc::clone(&world.nodes.lock()[&NodeId(1)].metrics);
    until("a copy was looked through", || metrics.scrubs.with_label_values(&["ok"]).get() > 0).await;
    world.stop(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_contradicts_what_was_agreed_is_given_up_as_corrupt() {
    let world = World::new(2);
    world.start(1);
    world.primary(1).await;
    world.start(2);
    world.in_sync(&[1, 2]).await;
    world.write(1, 0..5).await;
    let copy = world.copy(2).expect("is open");
    until("it knows what is committed", || copy.handle.report().global_checkpoint >= SeqNo(3)).await;

    // Somebody claims a newer term in which a committed entry is another.
    let (group, first) = (world.group(), copy.shard.read(SeqNo(1), 1, 0).expect("reads").remove(0));
    let term = PrimaryTerm(group.primary_term.0 + 1);
    let append = Append {
        shard: SHARD,
        to_copy: copy.id,
        from_copy: CopyId(1),
        lineage: copy.lineage,
        term,
        cfg_version: group.version,
        prev: LogPosition { term: first.term, seqno: first.seqno },
        entries: vec![EncodedEntry::seal(SeqNo(2), term, OperationId(0), Bytes::new())],
        global_checkpoint: SeqNo(2),
        log_start: SeqNo(1),
        age_ms: 0,
    };
    let refused = copy.handle.append(append).await;
    assert_eq!(refused.outcome, AppendOutcome::Refused(AppendRefusal::Corrupt));
    drop(copy);
    let copies = world.copies(NodeId(2)).expect("runs");
    until("the copy is closed", || world.copy(2).is_none()).await;
    let failures = copies.failures();
    let (id, failure) = &failures[0];
    assert_eq!((*id, failure.kind), (CopyId(2), ErrorKind::Corrupt), "{failure:?}");
    for node in 1..=2 {
        world.stop(node).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_copy_is_given_up_and_told_of_and_one_whose_disk_failed_is_opened_again() {
    let scenario = fail::FailScenario::setup();
    let world = World::new(2);
    world.start(1);
    world.primary(1).await;
    world.start(2);
    world.in_sync(&[1, 2]).await;
    world.write(1, 0..50).await;

    // Some disk fails once: whichever copy it was is opened again and comes back.
    fail::cfg("shard-apply-before-write", "1*return->off").expect("fail point");
    let primary = world.primary(1).await;
    let _ = primary.handle.write(OperationId(1 << 64), vec![put(50)], Instant::now() + Duration::from_secs(1)).await;
    drop(primary);
    fail::remove("shard-apply-before-write");
    until("a copy was given up", || {
        (1..=2).any(|node| world.copies(NodeId(node)).is_ok_and(|copies| !copies.failures().is_empty()))
    })
    .await;
    until("both are open", || (1..=2).all(|number| world.copy(number).is_some())).await;
    until("neither has failed", || {
        (1..=2).all(|node| world.copies(NodeId(node)).is_ok_and(|copies| copies.failures().is_empty()))
    })
    .await;
    scenario.teardown();

    // A byte rots.
    let copy = world.copy(2).expect("is open");
    let tables = || {
        let files = std::fs::read_dir(world.data_dir(2).join("copies/copy-2/rocksdb")).expect("lists");
        files.map(|file| file.expect("entry").path()).filter(|path| path.extension().is_some_and(|name| name == "sst"))
    };
    let scratch = world.data_dir(2).join("scratch");
    copy.shard.checkpoint(&scratch).expect("flushes the memtables");
    let largest = tables().max_by_key(|path| path.metadata().expect("metadata").len()).expect("there are tables");
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&largest).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 50).expect("reads");
    file.write_all_at(&[byte[0] ^ 1], 50).expect("writes");
    let again = world.data_dir(2).join("scratch-2");
    let scrubbed = tokio::task::spawn_blocking(move || {
        copy.shard.scrub(&again, &Pace::new(u64::MAX), &Cancel::never()).expect_err("finds it").kind()
    });
    assert_eq!(scrubbed.await.expect("joins"), ErrorKind::Corrupt);
    let copies = world.copies(NodeId(2)).expect("runs");
    until("the copy is closed", || world.copy(2).is_none()).await;
    let failures = copies.failures();
    let (id, failure) = &failures[0];
    assert_eq!((*id, failure.shard, failure.kind), (CopyId(2), SHARD, ErrorKind::Corrupt), "{failure:?}");
    let name = largest.file_name().expect("a name").to_str().expect("text");
    assert!(failure.reason.contains(name), "{failure:?} names {name}");
    // Looks at the registers come and go; the copy stays closed.
    for _ in 0..20 {
        world.tell();
        tokio::task::yield_now().await;
        assert!(world.copy(2).is_none());
    }
    for node in 1..=2 {
        world.stop(node).await;
    }
}
