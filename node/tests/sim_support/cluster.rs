//! Copies as they really run, tasks and pools included, over a transport in memory and any kind of disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cluster_config::ids::{CopyId, DocumentKey, Incarnation, NodeId, OperationId, ShardId};
use cluster_config::operation::Operation;
use cluster_config::seqno::PrimaryTerm;
use cluster_config::shard_group::ShardGroup;
use futures::future::BoxFuture;
use node::replication::storage::CopyStorage;
use node::replication::{
    Append, AppendResult, Confirm, CopyHandle, CopyOptions, Proposal, ProposalOutcome, RegisterClient,
    ReplicationError, ReplicationTransport, Retention, StoragePool, Timing, TransportError, WriteOutcome,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::register::Register;

/// Far longer than anything here takes: a test that hits it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The nodes, the links between them, and the metadata group.
pub(crate) struct Cluster<S> {
    handles: Mutex<BTreeMap<CopyId, CopyHandle>>,
    disks: Mutex<BTreeMap<CopyId, Arc<S>>>,
    ack_timeout_ms: u64,
    retention: Retention,
    pub(crate) unreachable: Mutex<BTreeSet<NodeId>>,
    pub(crate) register: Mutex<Register>,
}

impl<S: CopyStorage> Cluster<S> {
    /// Copy `n` lives on node `n`, with the n-th of the disks. All are in sync, and copy 1 is primary.
    pub(crate) async fn start(disks: Vec<S>, ack_timeout_ms: u64) -> Arc<Self> {
        let voters = disks.len() as u64;
        Self::start_with(disks, voters, ack_timeout_ms, Retention::default()).await
    }

    /// The copies after the first `voters` only read.
    pub(crate) async fn start_with(disks: Vec<S>, voters: u64, ack_timeout_ms: u64, retention: Retention) -> Arc<Self> {
        let copies = disks.len() as u64;
        let cluster = Arc::new(Self {
            handles: Mutex::new(BTreeMap::new()),
            disks: Mutex::new(BTreeMap::new()),
            ack_timeout_ms,
            retention,
            unreachable: Mutex::new(BTreeSet::new()),
            register: Mutex::new(Register::new(voters, copies, voters, 1)),
        });
        for (copy, disk) in (1..).zip(disks) {
            cluster.open(copy, Arc::new(disk)).await;
        }
        cluster.grant(1, &[]);
        until("copy 1 is primary", || cluster.copy(1).is_primary()).await;
        cluster
    }

    pub(crate) async fn open(self: &Arc<Self>, copy: u64, disk: Arc<S>) {
        let copy = CopyId(copy);
        self.disks.lock().insert(copy, Arc::clone(&disk));
        let incarnation = self.register.lock().alive[&copy];
        let ack_timeout_ms = self.ack_timeout_ms;
        let options = CopyOptions {
            storage: disk,
            incarnation,
            timing: Timing { heartbeat_ms: 100, ack_timeout_ms, retry_ms: 50, proposal_pause_ms: 100 },
            retention: self.retention,
            pool: StoragePool::new(4, 2, || ()),
            transport: Arc::new(Link(Arc::clone(self), NodeId(copy.0))),
            register: Arc::new(Link(Arc::clone(self), NodeId(copy.0))),
            drain_timeout: PATIENCE,
            check: true,
        };
        let handle = CopyHandle::open(options).await.expect("the disk opens");
        self.handles.lock().insert(copy, handle);
        self.tell();
    }

    /// The copy goes, with its process: the handle is closed and the disk let go of.
    pub(crate) async fn close(&self, copy: u64) {
        let handle = self.handles.lock().remove(&CopyId(copy));
        handle.expect("it is open").close().await;
        self.disks.lock().remove(&CopyId(copy));
        let mut register = self.register.lock();
        let next = Incarnation(register.alive[&CopyId(copy)].0 + 1);
        register.alive.insert(CopyId(copy), next);
    }

    pub(crate) fn grant(&self, copy: u64, drop: &[CopyId]) {
        self.register.lock().grant(CopyId(copy), drop);
        self.tell();
    }

    /// Metadata takes a copy out of the in-sync set.
    pub(crate) fn expire(&self, copy: u64) {
        self.register.lock().expire(CopyId(copy));
        self.tell();
    }

    /// Every node learns the register.
    fn tell(&self) {
        let group = Arc::new(self.group());
        self.handles.lock().values().for_each(|handle| handle.reconfigure(Arc::clone(&group)));
    }

    pub(crate) fn group(&self) -> ShardGroup {
        self.register.lock().group.clone()
    }

    pub(crate) fn copy(&self, copy: u64) -> CopyHandle {
        self.handles.lock()[&CopyId(copy)].clone()
    }

    pub(crate) fn disk(&self, copy: u64) -> Arc<S> {
        Arc::clone(&self.disks.lock()[&CopyId(copy)])
    }

    pub(crate) fn disks(&self) -> Vec<Arc<S>> {
        self.disks.lock().values().cloned().collect()
    }
}

/// The network as one node sees it.
struct Link<S>(Arc<Cluster<S>>, NodeId);

impl<S: CopyStorage> ReplicationTransport for Link<S> {
    fn append(&self, to: NodeId, append: Append) -> BoxFuture<'_, Result<AppendResult, TransportError>> {
        Box::pin(async move {
            let handle = self.reach(to)?;
            Ok(handle.append(append).await)
        })
    }

    fn confirm(&self, to: NodeId, confirm: Confirm) -> BoxFuture<'_, Result<PrimaryTerm, TransportError>> {
        Box::pin(async move { Ok(self.reach(to)?.confirm(confirm.term).await) })
    }
}

impl<S: CopyStorage> Link<S> {
    fn reach(&self, to: NodeId) -> Result<CopyHandle, TransportError> {
        let handle = self.0.handles.lock().get(&CopyId(to.0)).cloned();
        let cut = self.0.unreachable.lock();
        match handle {
            Some(handle) if !cut.contains(&to) && !cut.contains(&self.1) => Ok(handle),
            _ => Err(TransportError("connection refused".into())),
        }
    }
}

impl<S: CopyStorage> RegisterClient for Link<S> {
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

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn write(handle: CopyHandle, id: u128) -> Result<WriteOutcome, ReplicationError> {
    let key = DocumentKey::new(format!("document {id}")).expect("valid");
    handle.write(OperationId(id), vec![Operation::DeleteDocument { key }], Instant::now() + PATIENCE).await
}

pub(crate) fn begin_write<S: CopyStorage>(
    cluster: &Cluster<S>,
    copy: u64,
    id: u128,
) -> tokio::task::JoinHandle<Result<WriteOutcome, ReplicationError>> {
    tokio::spawn(write(cluster.copy(copy), id))
}
