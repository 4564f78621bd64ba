//! Three copies as they really run, tasks and pools included, over a transport and disks in memory.

mod sim_support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, DocumentKey, Incarnation, NodeId, OperationId, ShardId};
use cluster_config::limits::WRITE_QUEUE_MAX;
use cluster_config::operation::Operation;
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use cluster_config::shard_group::ShardGroup;
use futures::future::{BoxFuture, join_all};
use node::replication::core::Timing;
use node::replication::messages::{Append, AppendResult, Proposal, ProposalOutcome};
use node::replication::pool::StoragePool;
use node::replication::storage::StorageError;
use node::replication::transport::{RegisterClient, ReplicationTransport, TransportError};
use node::replication::{CopyHandle, CopyOptions, ReplicationError, WriteOutcome};
use parking_lot::Mutex;
use sim_support::disk::SimDisk;
use sim_support::register::{Register, SHARD};
use tokio::time::Instant;

/// Far longer than anything here takes: a test that hits it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The nodes, the links between them, and the metadata group.
struct Cluster {
    handles: Mutex<BTreeMap<CopyId, CopyHandle>>,
    disks: BTreeMap<CopyId, Arc<SimDisk>>,
    unreachable: Mutex<BTreeSet<NodeId>>,
    register: Mutex<Register>,
}

impl Cluster {
    async fn start(copies: u64, ack_timeout_ms: u64) -> Arc<Self> {
        let disk = |copy| (CopyId(copy), Arc::new(SimDisk::new(CopyId(copy), SHARD)));
        let cluster = Arc::new(Self {
            handles: Mutex::new(BTreeMap::new()),
            disks: (1..=copies).map(disk).collect(),
            unreachable: Mutex::new(BTreeSet::new()),
            register: Mutex::new(Register::new(copies, copies, copies, 1)),
        });
        for copy in 1..=copies {
            cluster.open(CopyId(copy), ack_timeout_ms).await;
        }
        cluster.register.lock().grant(CopyId(1), &[]);
        cluster.tell();
        until("copy 1 is primary", || cluster.copy(1).is_primary()).await;
        cluster
    }

    async fn open(self: &Arc<Self>, copy: CopyId, ack_timeout_ms: u64) {
        let incarnation = self.register.lock().alive[&copy];
        let options = CopyOptions {
            storage: self.disks[&copy].clone(),
            incarnation,
            timing: Timing { heartbeat_ms: 100, ack_timeout_ms, retry_ms: 50, proposal_pause_ms: 100 },
            pool: StoragePool::new(4, 2, || ()),
            transport: Arc::new(Link(Arc::clone(self))),
            register: Arc::new(Link(Arc::clone(self))),
            drain_timeout: PATIENCE,
            check: true,
        };
        let handle = CopyHandle::open(options).await.expect("the disk opens");
        self.handles.lock().insert(copy, handle);
        self.tell();
    }

    /// Every node learns the register.
    fn tell(&self) {
        let group = Arc::new(self.group());
        self.handles.lock().values().for_each(|handle| handle.reconfigure(Arc::clone(&group)));
    }

    fn group(&self) -> ShardGroup {
        self.register.lock().group.clone()
    }

    fn copy(&self, copy: u64) -> CopyHandle {
        self.handles.lock()[&CopyId(copy)].clone()
    }

    fn disk(&self, copy: u64) -> &SimDisk {
        &self.disks[&CopyId(copy)]
    }

    fn logs_are_equal(&self) -> bool {
        let first = self.disk(1).log();
        self.disks.values().all(|disk| disk.log() == first && disk.applied() == first.len())
    }
}

struct Link(Arc<Cluster>);

impl ReplicationTransport for Link {
    fn append(&self, to: NodeId, append: Append) -> BoxFuture<'_, Result<AppendResult, TransportError>> {
        Box::pin(async move {
            let handle = self.0.handles.lock().get(&CopyId(to.0)).cloned();
            let from = NodeId(append.from_copy.0);
            let is_cut = |node: NodeId| self.0.unreachable.lock().contains(&node);
            match handle {
                Some(handle) if !is_cut(to) && !is_cut(from) => Ok(handle.append(append).await),
                _ => Err(TransportError("connection refused".into())),
            }
        })
    }
}

impl RegisterClient for Link {
    fn propose(&self, proposal: Proposal) -> BoxFuture<'_, Result<ProposalOutcome, TransportError>> {
        Box::pin(async move {
            let outcome = self.0.register.lock().propose(&proposal);
            self.0.tell();
            Ok(outcome)
        })
    }

    fn read_register(&self, _: ShardId) -> BoxFuture<'_, Result<ShardGroup, TransportError>> {
        Box::pin(async move { Ok(self.0.group()) })
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn write(handle: CopyHandle, id: u128) -> Result<WriteOutcome, ReplicationError> {
    let key = DocumentKey::new(format!("document {id}")).expect("valid");
    handle.write(OperationId(id), vec![Operation::DeleteDocument { key }], Instant::now() + PATIENCE).await
}

fn begin_write(
    cluster: &Cluster,
    copy: u64,
    id: u128,
) -> tokio::task::JoinHandle<Result<WriteOutcome, ReplicationError>> {
    tokio::spawn(write(cluster.copy(copy), id))
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writes_reach_every_copy_in_one_order() {
    let cluster = Cluster::start(3, 30_000).await;
    let outcomes = join_all((1..=200).map(|id| write(cluster.copy(1), id))).await;
    let seqnos: BTreeSet<SeqNo> = outcomes
        .into_iter()
        .map(|outcome| {
            let outcome = outcome.expect("acknowledged");
            assert_eq!(outcome.copies_acked, 3);
            assert!(outcome.position.applied >= outcome.seqno, "visible on the primary");
            outcome.seqno
        })
        .collect();
    assert_eq!(seqnos.len(), 200, "each write has its own position");
    let last = *seqnos.last().expect("not empty");
    for copy in 1..=3 {
        cluster.copy(copy).wait_applied(last, Instant::now() + PATIENCE).await.expect("applied everywhere");
        assert_eq!(cluster.copy(copy).report().global_checkpoint, last);
        assert_eq!(cluster.copy(copy).confirm(PrimaryTerm(1)).await, PrimaryTerm(1));
    }
    assert!(cluster.logs_are_equal());
    let refused = write(cluster.copy(2), 1).await.expect_err("a follower takes no writes");
    assert!(
        matches!(&refused, ReplicationError::NotPrimary { register: Some(group) } if group.version == cluster.group().version)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_arrive_during_an_fsync_share_the_next_one() {
    let cluster = Cluster::start(3, 30_000).await;
    until("the barrier is applied", || cluster.copy(1).report().applied == SeqNo(1)).await;
    let before = cluster.disk(1).persists.passed();
    cluster.disk(1).persists.shut();
    let writes: Vec<_> = (1..=100).map(|id| begin_write(&cluster, 1, id)).collect();
    until("all are in the log and on the others", || {
        cluster.copy(1).report().last.seqno == SeqNo(101) && cluster.copy(3).report().local_checkpoint == SeqNo(101)
    })
    .await;
    assert_eq!(cluster.copy(1).report().global_checkpoint, SeqNo(1), "nothing is committed without the own disk");
    cluster.disk(1).persists.open();
    for write in writes {
        write.await.expect("joins").expect("acknowledged");
    }
    let fsyncs = cluster.disk(1).persists.passed() - before;
    assert_eq!(fsyncs, 2, "the one under way and one for all the rest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_apply_holds_up_neither_the_log_nor_other_copies() {
    let cluster = Cluster::start(3, 30_000).await;
    cluster.disk(2).applies.shut();
    let last = write(cluster.copy(1), 1).await.expect("the follower's apply is not waited for").seqno;
    cluster.disk(1).applies.shut();
    let waiting = begin_write(&cluster, 1, 2);
    until("the log goes on everywhere", || {
        (1..=3).all(|copy| cluster.copy(copy).report().global_checkpoint == last.next())
    })
    .await;
    assert!(!waiting.is_finished(), "not acknowledged before it is visible on the primary");
    cluster.disk(1).applies.open();
    cluster.disk(2).applies.open();
    waiting.await.expect("joins").expect("acknowledged");
    until("the follower catches up", || cluster.logs_are_equal()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_copy_is_removed_and_comes_back_by_itself() {
    let cluster = Cluster::start(3, 400).await;
    cluster.unreachable.lock().insert(NodeId(3));
    let outcome = write(cluster.copy(1), 1).await.expect("goes on without copy 3");
    assert_eq!(outcome.copies_acked, 2);
    assert!(!cluster.group().in_sync.contains(&CopyId(3)), "metadata agreed to the removal before the acknowledgement");
    for id in 2..=50 {
        write(cluster.copy(1), id).await.expect("acknowledged");
    }
    cluster.unreachable.lock().clear();
    until("copy 3 is in sync again", || cluster.group().in_sync.len() == 3).await;
    let outcome = write(cluster.copy(1), 51).await.expect("acknowledged");
    assert_eq!(outcome.copies_acked, 3);
    until("all are equal", || cluster.logs_are_equal()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_at_the_next_primary_finds_the_first_attempt() {
    let cluster = Cluster::start(3, 30_000).await;
    let first = write(cluster.copy(1), 7).await.expect("acknowledged");
    // Copy 1 does not answer its client any more: its write reaches the others, and the role goes to copy 2.
    cluster.disk(1).persists.shut();
    let interrupted = begin_write(&cluster, 1, 8);
    until("it is on copy 2", || cluster.copy(2).report().local_checkpoint == SeqNo(3)).await;
    cluster.register.lock().grant(CopyId(2), &[CopyId(1)]);
    cluster.tell();
    let error = interrupted.await.expect("joins").expect_err("the role is lost");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    until("copy 2 is primary", || cluster.copy(2).is_primary()).await;
    let retried = write(cluster.copy(2), 8).await.expect("acknowledged");
    assert_eq!((retried.seqno, retried.deduplicated), (SeqNo(3), true));
    let again = write(cluster.copy(2), 7).await.expect("acknowledged");
    assert_eq!((again.seqno, again.deduplicated), (first.seqno, true));
    cluster.disk(1).persists.open();
    until("copy 1 follows and is in sync again", || cluster.group().in_sync.len() == 3 && cluster.logs_are_equal())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_whose_disk_fails_gives_the_role_back() {
    let cluster = Cluster::start(3, 30_000).await;
    write(cluster.copy(1), 1).await.expect("acknowledged");
    cluster.disk(1).fail_with(Some(StorageError::Io("simulated".into())));
    let error = write(cluster.copy(1), 2).await.expect_err("not durable here");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "the outcome is unknown");
    until("metadata relieved it", || cluster.group().primary.is_none()).await;
    assert!(!cluster.group().in_sync.contains(&CopyId(1)));
    assert!(cluster.copy(1).report().poisoned.is_some());
    cluster.register.lock().grant(CopyId(3), &[]);
    cluster.tell();
    until("copy 3 is primary", || cluster.copy(3).is_primary()).await;
    write(cluster.copy(3), 2).await.expect("acknowledged");

    // Reopened by a new process, it catches up from the log.
    cluster.copy(1).close().await;
    cluster.disk(1).fail_with(None);
    cluster.register.lock().alive.insert(CopyId(1), Incarnation(2));
    cluster.open(CopyId(1), 30_000).await;
    until("it is in sync again", || cluster.group().in_sync.len() == 3 && cluster.logs_are_equal()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_bounded_in_number_and_in_time() {
    let cluster = Cluster::start(2, 30_000).await;
    cluster.disk(2).persists.shut();
    let soon = Instant::now() + Duration::from_millis(50);
    let late = cluster.copy(1).write(OperationId(0), vec![Operation::Barrier], soon).await;
    assert_eq!(late.expect_err("copy 2 does not answer").kind(), ErrorKind::DeadlineExceeded);
    let writes: Vec<_> = (1..WRITE_QUEUE_MAX as u128).map(|id| begin_write(&cluster, 1, id)).collect();
    until("the queue is full", || cluster.copy(1).report().last.seqno.0 == WRITE_QUEUE_MAX as u64 + 1).await;
    let refused = write(cluster.copy(1), u128::MAX).await.expect_err("full");
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    cluster.disk(2).persists.open();
    for write in writes {
        write.await.expect("joins").expect("acknowledged");
    }
    write(cluster.copy(1), u128::MAX).await.expect("there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_lets_the_writes_under_way_finish() {
    let cluster = Cluster::start(2, 30_000).await;
    cluster.disk(2).persists.shut();
    let under_way = begin_write(&cluster, 1, 1);
    until("it is in the log", || cluster.copy(1).report().last.seqno == SeqNo(2)).await;
    let copy = cluster.copy(1);
    let closing = tokio::spawn(copy.clone().close());
    let refused = loop {
        // Until the task has seen that it is to close, a write still waits like the first one.
        let attempt = copy.write(OperationId(0), vec![Operation::Barrier], Instant::now() + Duration::from_millis(20));
        match attempt.await.expect_err("copy 2 does not answer") {
            ReplicationError::DeadlineExceeded => {}
            other => break other,
        }
    };
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    cluster.disk(2).persists.open();
    under_way.await.expect("joins").expect("acknowledged");
    closing.await.expect("joins");
    let held = cluster.disk(1).log();
    assert_eq!(held, cluster.disk(2).log()[..held.len()], "what was acknowledged stands on both disks");
}
