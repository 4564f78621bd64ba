//! A cluster in memory behind `NodeClient`: the same promises as real nodes, exact search over what was written, and faults
//! on demand. Tests of every walk run on it; it is in the library because tests of other crates may, too.
//!
//! Kept: writes are ordered per shard, deduplicated by operation id, visible on the primary when acknowledged, and on the other copies
//! unless they are held back; session reads wait for their position, strong ones are the primary's. Left out: the log, terms
//! changing by themselves, disks.

mod client;
mod operator;
mod shard;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cluster_config::cluster_state::{ClusterState, Liveness, NodeLifecycle, NodeRecord};
use cluster_config::collection::{Collection, CollectionSpec};
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CollectionId, CopyId, DEFAULT_TENANT, DocumentKey, Incarnation, Lineage, NodeId, ShardId};
use cluster_config::routing;
use cluster_config::seqno::PrimaryTerm;
use cluster_config::shard_group::{CopyPhase, CopyRecord, CopyRole, PrimaryGrant, ShardGroup};
use parking_lot::Mutex;
use tokio::sync::watch;

pub use self::client::TwinClient;
use self::shard::ShardData;
use super::client::NodeError;

/// How a node misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its port refuses connections.
    Refuses,
    /// It takes calls and never answers.
    Silent,
    /// Every call answers `Overloaded`.
    Overloaded,
    /// Writes are applied, and then the connection breaks before the acknowledgement.
    LosesAcks,
    /// Every call is answered after so long.
    Slow(Duration),
    /// It takes no writes: its primaries are about to hand their role over.
    HandsOff,
    /// Its disk is full: it takes no writes, and says what to do.
    Full,
    /// It searches, and then breaks before it gives texts.
    LosesTexts,
    /// It finds no node with memory left for a new collection.
    NoRoom,
}

struct Inner {
    state: ClusterState,
    shards: BTreeMap<ShardId, ShardData>,
    faults: BTreeMap<NodeId, Fault>,
    /// Nodes whose copies apply nothing, since when.
    held_back: BTreeMap<NodeId, Instant>,
}

/// The cluster.
pub struct Twin {
    inner: Mutex<Inner>,
    version: watch::Sender<u64>,
    /// Moves when some copy has applied more.
    applied: watch::Sender<u64>,
    calls: Mutex<BTreeMap<&'static str, u64>>,
    live_streams: Arc<AtomicU64>,
}

/// A state of `nodes` nodes with one collection of `shards` shards in `copies` copies, primaries spread over the nodes.
pub fn test_state(nodes: u64, shards: u32, copies: u64) -> (ClusterState, CollectionId) {
    let mut state = ClusterState { cluster_id: "twin".into(), version: 1, ..ClusterState::default() };
    for id in 1..=nodes {
        let record = NodeRecord {
            id: NodeId(id),
            rpc_address: format!("127.0.0.1:{}", 9000 + id),
            http_address: String::new(),
            zone: "default".into(),
            weight: 100,
            is_data: true,
            incarnation: Incarnation(1),
            liveness: Liveness::Alive,
            lifecycle: NodeLifecycle::Active,
        };
        state.nodes.insert(NodeId(id), record);
    }
    let mut spec = CollectionSpec::new("default", 8);
    spec.shard_count = shards;
    spec.copies = copies as u32;
    let id = add_collection(&mut state, spec);
    (state, id)
}

fn add_collection(state: &mut ClusterState, spec: CollectionSpec) -> CollectionId {
    state.next_collection += 1;
    let id = CollectionId(state.next_collection);
    let nodes: Vec<NodeId> = state.nodes.keys().copied().collect();
    for index in 0..spec.shard_count {
        let shard = ShardId { collection: id, index };
        let mut copies = BTreeMap::new();
        for copy in 0..u64::from(spec.copies) {
            let node = nodes[(u64::from(index) + copy) as usize % nodes.len()];
            state.next_copy += 1;
            let record = CopyRecord { node, role: CopyRole::Voter, phase: CopyPhase::InSync };
            copies.insert(CopyId(state.next_copy), record);
        }
        let in_sync: BTreeSet<CopyId> = copies.keys().copied().collect();
        let primary = in_sync.first().map(|copy| PrimaryGrant { copy: *copy, incarnation: Incarnation(1) });
        let group = ShardGroup {
            shard,
            version: 1,
            primary_term: PrimaryTerm(1),
            primary,
            in_sync,
            copies,
            lineage: Lineage(1),
            min_in_sync: 1,
        };
        state.shards.insert(shard, group);
    }
    state.next_copy += 1;
    state.collections.insert(id, Collection { id, spec, epoch: 1 });
    id
}

impl Twin {
    /// A cluster of `nodes` nodes without collections.
    pub fn new(nodes: u64) -> Arc<Self> {
        let (mut state, default) = test_state(nodes, 1, 1);
        state.collections.remove(&default);
        state.shards.clear();
        Arc::new(Self {
            inner: Mutex::new(Inner {
                state,
                shards: BTreeMap::new(),
                faults: BTreeMap::new(),
                held_back: BTreeMap::new(),
            }),
            version: watch::Sender::new(1),
            applied: watch::Sender::new(0),
            calls: Mutex::new(BTreeMap::new()),
            live_streams: Arc::new(AtomicU64::new(0)),
        })
    }

    /// Makes a node misbehave, or behave again.
    pub fn set_fault(&self, node: u64, fault: Option<Fault>) {
        let mut inner = self.inner.lock();
        match fault {
            Some(fault) => inner.faults.insert(NodeId(node), fault),
            None => inner.faults.remove(&NodeId(node)),
        };
    }

    /// The shard of a document, the node of its primary, and the nodes of its other copies. Panics without the collection.
    pub fn place_of(&self, collection: &str, document_id: &str) -> (ShardId, NodeId, Vec<NodeId>) {
        let inner = self.inner.lock();
        let collection = inner.state.collection_named(collection).expect("the test created it");
        let key = DocumentKey { tenant: DEFAULT_TENANT.to_owned(), document_id: document_id.to_owned() };
        let shard = routing::shard_of(collection, &key).expect("a known hash scheme");
        let group = &inner.state.shards[&shard];
        let primary = group.primary_node().expect("has a primary");
        let others = group.copies.values().map(|record| record.node).filter(|node| *node != primary);
        (shard, primary, others.collect())
    }

    /// Lets the copies of a node lag from now on, but for primaries: they take part in writes and apply nothing.
    pub fn hold_back(&self, node: u64) {
        let mut inner = self.inner.lock();
        let Inner { state, shards, held_back, .. } = &mut *inner;
        held_back.insert(NodeId(node), Instant::now());
        for (shard, data) in shards {
            data.hold_back(state.shards.get(shard).and_then(|group| group.copy_on(NodeId(node))));
        }
    }

    /// Lets them catch up.
    pub fn let_go(&self, node: u64) {
        self.inner.lock().held_back.remove(&NodeId(node));
        self.applied.send_modify(|count| *count += 1);
    }

    /// Raises a shard's lineage, as a recovery with data loss does.
    pub fn force_promote(&self, shard: ShardId) {
        self.change(|state| {
            if let Some(group) = state.shards.get_mut(&shard) {
                group.lineage = Lineage(group.lineage.0 + 1);
                group.version += 1;
            }
        });
    }

    /// Changes the agreed state and announces it.
    pub fn change(&self, change: impl FnOnce(&mut ClusterState)) {
        self.change_silently(change);
        self.announce();
    }

    /// Tells watchers that the state changed.
    fn announce(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// Changes the agreed state without telling watchers: they learn from errors.
    pub fn change_silently(&self, change: impl FnOnce(&mut ClusterState)) {
        let mut inner = self.inner.lock();
        change(&mut inner.state);
        inner.state.version += 1;
    }

    /// Moves the primary role of every shard on `node` to another in-sync copy.
    pub fn fail_over(&self, node: u64, announce: bool) {
        let change = |state: &mut ClusterState| {
            for group in state.shards.values_mut() {
                if group.primary_node() != Some(NodeId(node)) {
                    continue;
                }
                let Some(next) = group.in_sync.iter().copied().find(|copy| group.node_of(*copy) != Some(NodeId(node)))
                else {
                    continue;
                };
                group.primary = Some(PrimaryGrant { copy: next, incarnation: Incarnation(1) });
                group.primary_term = group.primary_term.next();
                group.version += 1;
            }
        };
        if announce { self.change(change) } else { self.change_silently(change) }
    }

    /// Calls received, by name.
    pub fn calls(&self, name: &'static str) -> u64 {
        self.calls.lock().get(name).copied().unwrap_or(0)
    }

    /// Search streams not yet dropped by their caller.
    pub fn live_streams(&self) -> u64 {
        self.live_streams.load(Ordering::SeqCst)
    }

    /// Live documents over all shards.
    pub fn document_ids(&self) -> BTreeSet<String> {
        let inner = self.inner.lock();
        inner.shards.values().flat_map(ShardData::document_ids).collect()
    }

    /// Log entries applied over all shards.
    pub fn applied_total(&self) -> u64 {
        self.inner.lock().shards.values().map(|shard| shard.last.0).sum()
    }

    fn count(&self, name: &'static str) {
        *self.calls.lock().entry(name).or_default() += 1;
    }

    fn fault(&self, node: NodeId) -> Option<Fault> {
        self.inner.lock().faults.get(&node).copied()
    }

    /// The node's fault, acted out: an error, or silence, or nothing.
    async fn act_out(fault: Option<Fault>, node: NodeId) -> Result<(), NodeError> {
        match fault {
            Some(Fault::Refuses) => Err(NodeError::disconnected(format!("node {node}: connection refused"))),
            Some(Fault::Silent) => std::future::pending().await,
            Some(Fault::Overloaded) => {
                Err(NodeError::new(ErrorKind::Overloaded, format!("node {node}: queue is full")))
            }
            Some(Fault::Slow(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(())
            }
            Some(Fault::LosesAcks | Fault::HandsOff | Fault::Full | Fault::LosesTexts | Fault::NoRoom) | None => Ok(()),
        }
    }
}
