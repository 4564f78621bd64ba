//! A cluster in memory behind [`NodeClient`]: the same promises as real nodes, exact search over what was written, and faults
//! on demand. Tests of every walk run on it; it is in the library because tests of other crates may, too.
//!
//! Kept: writes are ordered per shard, deduplicated by operation id, visible on all in-sync copies when acknowledged. Left out:
//! the log, terms changing by themselves, disks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use cluster_config::cluster_state::{ClusterState, Liveness, NodeLifecycle, NodeRecord};
use cluster_config::collection::{Collection, CollectionSpec, Metric};
use cluster_config::error::ErrorKind;
use cluster_config::filter::{Condition, DOCUMENT_ID_FIELD, FieldValue, Filter, Predicate};
use cluster_config::ids::{CollectionId, CopyId, DocumentKey, Incarnation, Lineage, NodeId, OperationId, ShardId};
use cluster_config::operation::{Chunk, Operation};
use cluster_config::search::{CopyPosition, ShardAnswer, ShardHit, ShardQuery, ShardTarget};
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};
use cluster_config::shard_group::{CopyPhase, CopyRecord, CopyRole, PrimaryGrant, ShardGroup};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use half::f16;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::client::*;
use crate::retrieve::merge::ranking;

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
}

#[derive(Clone, Debug)]
struct Row {
    key: DocumentKey,
    title: String,
    chunk: Chunk,
    seqno: SeqNo,
    is_live: bool,
}

/// One shard's contents, shared by all its in-sync copies.
#[derive(Debug, Default)]
struct ShardData {
    rows: Vec<Row>,
    applied: SeqNo,
    operations: HashMap<OperationId, SeqNo>,
}

pub(super) struct Inner {
    pub(super) state: ClusterState,
    shards: BTreeMap<ShardId, ShardData>,
    faults: BTreeMap<NodeId, Fault>,
}

/// The cluster.
pub struct Twin {
    inner: Mutex<Inner>,
    version: watch::Sender<u64>,
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
            inner: Mutex::new(Inner { state, shards: BTreeMap::new(), faults: BTreeMap::new() }),
            version: watch::Sender::new(1),
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

    /// Changes the agreed state and announces it.
    pub fn change(&self, change: impl FnOnce(&mut ClusterState)) {
        self.change_silently(change);
        self.announce();
    }

    /// Tells watchers that the state changed.
    pub(super) fn announce(&self) {
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
        let rows = inner.shards.values().flat_map(|shard| shard.rows.iter());
        rows.filter(|row| row.is_live).map(|row| row.key.document_id.clone()).collect()
    }

    /// Log entries applied over all shards.
    pub fn applied_total(&self) -> u64 {
        self.inner.lock().shards.values().map(|shard| shard.applied.0).sum()
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
            Some(Fault::LosesAcks) | None => Ok(()),
        }
    }
}

impl Inner {
    /// Checks the target as a real node would.
    fn check(&self, node: NodeId, target: &CopyTarget) -> Result<&ShardGroup, NodeError> {
        let gone =
            || NodeError::new(ErrorKind::Unavailable, format!("node {node} does not serve copy {}", target.copy));
        let group = self.state.shards.get(&target.shard).ok_or_else(gone)?;
        if group.node_of(target.copy) != Some(node) || group.lineage != target.lineage {
            return Err(gone());
        }
        Ok(group)
    }

    fn position(&self, target: &CopyTarget) -> CopyPosition {
        let group = &self.state.shards[&target.shard];
        CopyPosition {
            shard: Some(target.shard),
            copy: target.copy,
            lineage: group.lineage,
            term: group.primary_term,
            applied: self.shards.get(&target.shard).map_or(SeqNo::ZERO, |shard| shard.applied),
            generation: 0,
            staleness_ms: 0,
        }
    }

    fn search(&self, node: NodeId, target: &CopyTarget, queries: &[ShardQuery]) -> Result<Vec<ShardAnswer>, NodeError> {
        self.check(node, target)?;
        let spec = &self.state.collections[&target.shard.collection].spec;
        let rows = self.shards.get(&target.shard).map_or(&[][..], |shard| &shard.rows);
        let answers = queries.iter().map(|query| {
            let allowed = rows
                .iter()
                .enumerate()
                .filter(|(_, row)| row.is_live && row.key.tenant == query.tenant && passes(&query.filter, row));
            let mut hits: Vec<ShardHit> = allowed
                .map(|(position, row)| ShardHit {
                    row: position as u64,
                    score: score(spec.metric, &query.vector, &row.chunk.vector),
                    document_id: row.key.document_id.clone(),
                    ordinal: row.chunk.ordinal,
                })
                .collect();
            hits.sort_by(ranking);
            hits.truncate(query.fetch_k as usize);
            ShardAnswer {
                hits,
                position: self.position(target),
                rows_exact: rows.len() as u64,
                ..ShardAnswer::default()
            }
        });
        Ok(answers.collect())
    }

    fn fetch(&self, node: NodeId, wanted: &FetchTarget, with_vectors: bool) -> Result<Vec<FetchedChunk>, NodeError> {
        self.check(node, &wanted.target)?;
        let rows = self.shards.get(&wanted.target.shard).map_or(&[][..], |shard| &shard.rows);
        let found = rows.iter().enumerate().filter(|(position, row)| {
            row.is_live && (wanted.rows.contains(&(*position as u64)) || wanted.keys.contains(&row.key))
        });
        let chunks = found.map(|(position, row)| FetchedChunk {
            shard: wanted.target.shard,
            row: position as u64,
            key: row.key.clone(),
            title: row.title.clone(),
            ordinal: row.chunk.ordinal,
            text: row.chunk.text.clone(),
            metadata_json: row.chunk.metadata_json.clone(),
            span: row.chunk.span.clone(),
            vector: if with_vectors { row.chunk.vector.clone() } else { Vec::new() },
        });
        Ok(chunks.collect())
    }

    fn write(&mut self, node: NodeId, write: &NodeWrite) -> Result<WriteAck, NodeError> {
        let group = self.check(node, &write.target)?;
        if group.primary_copy() != Some(write.target.copy) {
            let text = format!("copy {} is not the primary", write.target.copy);
            return Err(NodeError::new(ErrorKind::NotPrimary, text).with_register(group.clone()));
        }
        let copies_acked = group.in_sync.len() as u32;
        let shard = self.shards.entry(write.target.shard).or_default();
        let known = shard.operations.get(&write.operation_id).copied();
        let seqno = known.unwrap_or_else(|| {
            shard.applied = shard.applied.next();
            shard.operations.insert(write.operation_id, shard.applied);
            for operation in write.operations.iter() {
                apply(shard, operation);
            }
            shard.applied
        });
        let position = self.position(&write.target);
        Ok(WriteAck { position, seqno, copies_acked, deduplicated: known.is_some() })
    }
}

fn apply(shard: &mut ShardData, operation: &Operation) {
    let remove = |rows: &mut Vec<Row>, key: &DocumentKey| {
        rows.iter_mut().filter(|row| row.key == *key).for_each(|row| row.is_live = false);
    };
    match operation {
        Operation::PutDocument { key, title, chunks } => {
            remove(&mut shard.rows, key);
            shard.rows.extend(chunks.iter().map(|chunk| Row {
                key: key.clone(),
                title: title.clone(),
                chunk: chunk.clone(),
                seqno: shard.applied,
                is_live: true,
            }));
        }
        Operation::DeleteDocument { key } => remove(&mut shard.rows, key),
        Operation::Barrier | Operation::InstallGeneration { .. } | Operation::IndexUpTo { .. } => {}
    }
}

fn score(metric: Metric, query: &[f32], stored: &[u8]) -> f32 {
    let row = stored.chunks_exact(2).map(|bytes| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32());
    match metric {
        Metric::Cosine | Metric::Dot => query.iter().zip(row).map(|(a, b)| a * b).sum(),
        Metric::L2 => 1.0 / (1.0 + query.iter().zip(row).map(|(a, b)| (a - b) * (a - b)).sum::<f32>()),
    }
}

fn passes(filter: &Filter, row: &Row) -> bool {
    let metadata: serde_json::Value = serde_json::from_str(&row.chunk.metadata_json).unwrap_or_default();
    let holds = |condition: &Condition| {
        let value = if condition.field == DOCUMENT_ID_FIELD {
            Some(FieldValue::Keyword(row.key.document_id.clone()))
        } else {
            metadata.get(&condition.field).and_then(|value| serde_json::from_value(value.clone()).ok())
        };
        match (&condition.predicate, value) {
            (Predicate::Exists(wanted), value) => value.is_some() == *wanted,
            (_, None) => false,
            (Predicate::Eq(wanted), Some(value)) => value == *wanted,
            (Predicate::In(wanted), Some(value)) => wanted.contains(&value),
            (Predicate::Range { lower, upper }, Some(value)) => {
                let above =
                    lower.as_ref().is_none_or(|(bound, inclusive)| value > *bound || (*inclusive && value == *bound));
                let below =
                    upper.as_ref().is_none_or(|(bound, inclusive)| value < *bound || (*inclusive && value == *bound));
                above && below
            }
        }
    };
    filter.must.iter().all(holds)
        && !filter.must_not.iter().any(holds)
        && (filter.should.is_empty() || filter.should.iter().any(holds))
}

/// Counts a search stream while it lives, so that tests see cancellation arrive.
struct StreamGuard(Arc<AtomicU64>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A call that runs `work` on the twin unless the node misbehaves.
pub(super) fn call<T: Send + 'static>(
    twin: &Arc<Twin>,
    name: &'static str,
    node: NodeId,
    work: impl FnOnce(&mut Inner) -> Result<T, NodeError> + Send + 'static,
) -> BoxFuture<'static, Result<T, NodeError>> {
    twin.count(name);
    let (twin, fault) = (Arc::clone(twin), twin.fault(node));
    async move {
        Twin::act_out(fault, node).await?;
        let result = work(&mut twin.inner.lock());
        if fault == Some(Fault::LosesAcks) && name == "write" {
            return Err(NodeError::disconnected(format!("node {node}: connection reset")));
        }
        result
    }
    .boxed()
}

/// The twin as a client. A newtype, because calls outlive the borrow of the client.
#[derive(Clone)]
pub struct TwinClient(pub Arc<Twin>);

impl TwinClient {
    pub(super) fn node_of(&self, peer: &Peer) -> NodeId {
        match peer {
            Peer::Node(node) => *node,
            Peer::Seed(_) => NodeId(1),
        }
    }
}

impl NodeClient for TwinClient {
    fn learn(&self, _state: &ClusterState) {}

    fn search(
        &self,
        node: NodeId,
        search: NodeSearch,
        _deadline: Instant,
    ) -> BoxStream<'static, Result<ShardReply, NodeError>> {
        self.0.count("search");
        let (twin, fault) = (Arc::clone(&self.0), self.0.fault(node));
        twin.live_streams.fetch_add(1, Ordering::SeqCst);
        let guard = StreamGuard(Arc::clone(&twin.live_streams));
        async_stream::stream! {
            let _guard = guard;
            if let Err(error) = Twin::act_out(fault, node).await {
                yield Err(error);
                return;
            }
            for ShardTarget { target, .. } in &search.targets {
                let outcome = twin.inner.lock().search(node, target, &search.queries);
                yield Ok(ShardReply { shard: target.shard, outcome, queued_us: 0, service_us: 1 });
            }
        }
        .boxed()
    }

    fn fetch(
        &self,
        node: NodeId,
        targets: Vec<FetchTarget>,
        with_vectors: bool,
        _deadline: Instant,
    ) -> BoxFuture<'static, Result<Fetched, NodeError>> {
        call(&self.0, "fetch", node, move |inner| {
            let mut fetched = Fetched::default();
            for target in &targets {
                match inner.fetch(node, target, with_vectors) {
                    Ok(chunks) => fetched.chunks.extend(chunks),
                    Err(error) => fetched.failures.push((target.target.shard, error)),
                }
            }
            Ok(fetched)
        })
    }

    fn write(
        &self,
        node: NodeId,
        write: NodeWrite,
        _deadline: Instant,
    ) -> BoxFuture<'static, Result<WriteAck, NodeError>> {
        call(&self.0, "write", node, move |inner| inner.write(node, &write))
    }

    fn positions(
        &self,
        node: NodeId,
        targets: Vec<CopyTarget>,
        _deadline: Instant,
    ) -> BoxFuture<'static, Result<Vec<CopyPosition>, NodeError>> {
        call(&self.0, "positions", node, move |inner| {
            let served = targets.iter().filter(|target| inner.check(node, target).is_ok());
            Ok(served.map(|target| inner.position(target)).collect())
        })
    }

    fn list_documents(
        &self,
        node: NodeId,
        target: CopyTarget,
        tenant: String,
        after: String,
        limit: u32,
        _deadline: Instant,
    ) -> BoxFuture<'static, Result<DocumentPage, NodeError>> {
        call(&self.0, "list", node, move |inner| {
            inner.check(node, &target)?;
            let rows = inner.shards.get(&target.shard).map_or(&[][..], |shard| &shard.rows);
            let mut documents: BTreeMap<String, ListedDocument> = BTreeMap::new();
            let wanted = |row: &&Row| row.is_live && row.key.tenant == tenant && row.key.document_id > after;
            for row in rows.iter().filter(wanted) {
                let listed = documents.entry(row.key.document_id.clone()).or_insert_with(|| ListedDocument {
                    key: row.key.clone(),
                    title: row.title.clone(),
                    chunk_count: 0,
                    seqno: row.seqno,
                });
                listed.chunk_count += 1;
            }
            let more = documents.len() > limit as usize;
            Ok(DocumentPage { documents: documents.into_values().take(limit as usize).collect(), more })
        })
    }

    fn create_collection(
        &self,
        peer: Peer,
        spec: CollectionSpec,
        _deadline: Instant,
    ) -> BoxFuture<'static, Result<(Collection, u64), NodeError>> {
        let twin = Arc::clone(&self.0);
        call(&self.0, "create_collection", self.node_of(&peer), move |inner| {
            if let Some(existing) = inner.state.collection_named(&spec.name) {
                if existing.spec == spec {
                    return Ok((existing.clone(), inner.state.version));
                }
                let text = format!("collection {:?} exists with another spec", spec.name);
                return Err(NodeError::new(ErrorKind::AlreadyExists, text));
            }
            let id = add_collection(&mut inner.state, spec);
            inner.state.version += 1;
            twin.version.send_modify(|version| *version += 1);
            Ok((inner.state.collections[&id].clone(), inner.state.version))
        })
    }

    fn delete_collection(
        &self,
        peer: Peer,
        name: String,
        _deadline: Instant,
    ) -> BoxFuture<'static, Result<(bool, u64), NodeError>> {
        let twin = Arc::clone(&self.0);
        call(&self.0, "delete_collection", self.node_of(&peer), move |inner| {
            let Some(id) = inner.state.collection_named(&name).map(|collection| collection.id) else {
                return Ok((false, inner.state.version));
            };
            inner.state.collections.remove(&id);
            inner.state.shards.retain(|shard, _| shard.collection != id);
            inner.shards.retain(|shard, _| shard.collection != id);
            inner.state.version += 1;
            twin.version.send_modify(|version| *version += 1);
            Ok((true, inner.state.version))
        })
    }

    fn status(&self, peer: Peer, _deadline: Instant) -> BoxFuture<'static, Result<ClusterStatus, NodeError>> {
        call(&self.0, "status", self.node_of(&peer), move |inner| {
            let mut reports = Vec::new();
            for group in inner.state.shards.values() {
                for copy in group.copies.keys() {
                    let shard = inner.shards.get(&group.shard);
                    let applied = shard.map_or(SeqNo::ZERO, |shard| shard.applied);
                    let rows_live = shard.map_or(0, |shard| shard.rows.iter().filter(|row| row.is_live).count() as u64);
                    reports.push(CopyReport {
                        copy: *copy,
                        last: LogPosition { term: group.primary_term, seqno: applied },
                        applied,
                        global_checkpoint: applied,
                        rows_tail: rows_live,
                        rows_live,
                        index_state: "exact".into(),
                        ..CopyReport::default()
                    });
                }
            }
            let raft = RaftStatus { leader: 1, raft_term: 1, voters: vec![1], ..RaftStatus::default() };
            let contacts = inner.state.nodes.keys().map(|node| (*node, 10)).collect();
            Ok(ClusterStatus { state: inner.state.clone(), raft, reports, contacts })
        })
    }

    fn digest(
        &self,
        peer: Peer,
        shard: ShardId,
        _deadline: Instant,
    ) -> BoxFuture<'static, Result<Vec<CopyDigest>, NodeError>> {
        call(&self.0, "digest", self.node_of(&peer), move |inner| {
            let missing = || NodeError::new(ErrorKind::NotFound, format!("no shard {shard}"));
            let group = inner.state.shards.get(&shard).ok_or_else(missing)?;
            let rows = inner.shards.get(&shard).map_or(0, |data| data.rows.iter().filter(|row| row.is_live).count());
            let digests = group.copies.iter().map(|(copy, record)| {
                let position = inner.position(&group.target(*copy));
                let digest = Digest { position, documents: rows as u64, chunk_count: rows as u64, ..Digest::default() };
                CopyDigest { copy: *copy, node: record.node, outcome: Ok(digest) }
            });
            Ok(digests.collect())
        })
    }

    fn watch(&self, peer: Peer, _known_version: u64) -> BoxStream<'static, Result<WatchUpdate, NodeError>> {
        self.0.count("watch");
        let (twin, node) = (Arc::clone(&self.0), self.node_of(&peer));
        let fault = twin.fault(node);
        async_stream::stream! {
            if let Err(error) = Twin::act_out(fault, node).await {
                yield Err(error);
                return;
            }
            let mut version = twin.version.subscribe();
            loop {
                version.borrow_and_update();
                let state = twin.inner.lock().state.clone();
                yield Ok(WatchUpdate { state, leader: Some(NodeId(1)) });
                if version.changed().await.is_err() {
                    return;
                }
            }
        }
        .boxed()
    }
}
