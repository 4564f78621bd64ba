//! The twin behind [`NodeClient`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use cluster_config::cluster_state::ClusterState;
use cluster_config::collection::{Collection, CollectionSpec};
use cluster_config::error::ErrorKind;
use cluster_config::ids::{NodeId, ShardId};
use cluster_config::limits;
use cluster_config::search::{Consistency, CopyPosition, ShardTarget};
use cluster_config::seqno::{LogPosition, SeqNo};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt, StreamExt};

use super::{Fault, Inner, Twin, add_collection};
use crate::cluster::client::*;

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
        if fault == Some(Fault::HandsOff) && name == "write" {
            return Err(NodeError::new(ErrorKind::Unavailable, format!("node {node} hands its primary role over")));
        }
        if fault == Some(Fault::NoRoom) && name == "create_collection" {
            return Err(NodeError::new(ErrorKind::StorageFull, "the memory of node 1, 2, 3 is full"));
        }
        if fault == Some(Fault::Full) && name == "write" {
            let error = NodeError::new(ErrorKind::StorageFull, format!("the disk of node {node} is full"));
            return Err(NodeError { hint: "delete documents".to_owned(), ..error });
        }
        let result = work(&mut twin.inner.lock());
        if fault == Some(Fault::LosesAcks) && name == "write" {
            return Err(NodeError::disconnected(format!("node {node}: connection reset")));
        }
        result
    }
    .boxed()
}

impl Twin {
    /// Waits as a node does until the copy may answer.
    async fn admit(
        &self,
        node: NodeId,
        wanted: ShardTarget,
        consistency: Consistency,
        max_staleness_ms: u64,
        deadline: Instant,
    ) -> Result<(), NodeError> {
        let ShardTarget { target, min_seqno } = wanted;
        let remaining = deadline.saturating_duration_since(Instant::now());
        let until = tokio::time::Instant::now() + (remaining / 2).min(limits::SESSION_WAIT_MAX);
        let mut applied = self.applied.subscribe();
        loop {
            applied.borrow_and_update();
            if self.inner.lock().admit(node, &target, consistency, min_seqno, max_staleness_ms)? {
                return Ok(());
            }
            if tokio::time::timeout_at(until, applied.changed()).await.is_err() {
                let text = format!("copy {} has not applied {min_seqno} yet", target.copy);
                return Err(NodeError::new(ErrorKind::Unavailable, text));
            }
        }
    }
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
        deadline: Instant,
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
            let mut waiting: FuturesUnordered<_> = search.targets.iter().map(|wanted| {
                let admitted = twin.admit(node, *wanted, search.consistency, search.max_staleness_ms, deadline);
                admitted.map(move |admitted| (wanted.target, admitted))
            }).collect();
            while let Some((target, admitted)) = waiting.next().await {
                let outcome = admitted.map(|()| twin.inner.lock().search(&target, &search.queries));
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
        consistency: Consistency,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Fetched, NodeError>> {
        self.0.count("fetch");
        let (twin, fault) = (Arc::clone(&self.0), self.0.fault(node));
        async move {
            Twin::act_out(fault, node).await?;
            if fault == Some(Fault::LosesTexts) {
                return Err(NodeError::disconnected(format!("node {node}: connection reset")));
            }
            let mut fetched = Fetched::default();
            for wanted in &targets {
                let target = ShardTarget { target: wanted.target, min_seqno: wanted.min_seqno };
                match twin.admit(node, target, consistency, u64::MAX, deadline).await {
                    Ok(()) => {
                        let inner = twin.inner.lock();
                        fetched.chunks.extend(inner.fetch(wanted, with_vectors));
                        fetched.positions.push(inner.position(&wanted.target));
                    }
                    Err(error) => fetched.failures.push((wanted.target.shard, error)),
                }
            }
            Ok(fetched)
        }
        .boxed()
    }

    fn write(
        &self,
        node: NodeId,
        write: NodeWrite,
        _deadline: Instant,
    ) -> BoxFuture<'static, Result<WriteAck, NodeError>> {
        let twin = Arc::clone(&self.0);
        call(&self.0, "write", node, move |inner| {
            let written = inner.write(node, &write);
            twin.applied.send_modify(|count| *count += 1);
            written
        })
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
        page: PageRequest,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<DocumentPage, NodeError>> {
        self.0.count("list");
        let (twin, fault) = (Arc::clone(&self.0), self.0.fault(node));
        async move {
            Twin::act_out(fault, node).await?;
            twin.admit(node, page.target, page.consistency, u64::MAX, deadline).await?;
            Ok(twin.inner.lock().list(&page))
        }
        .boxed()
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
            let (wanted, nodes) = (spec.copies + spec.read_replicas, inner.state.placeable().count());
            if (wanted as usize) > nodes {
                let text = format!("{wanted} copies per shard are wanted and {nodes} nodes take copies");
                return Err(NodeError::new(ErrorKind::Conflict, text));
            }
            let id = add_collection(&mut inner.state, spec);
            inner.state.version += 1;
            twin.announce();
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
            twin.announce();
            Ok((true, inner.state.version))
        })
    }

    fn status(&self, peer: Peer, _deadline: Instant) -> BoxFuture<'static, Result<ClusterStatus, NodeError>> {
        call(&self.0, "status", self.node_of(&peer), move |inner| {
            let mut reports = Vec::new();
            for group in inner.state.shards.values() {
                for copy in group.copies.keys() {
                    let shard = inner.shards.get(&group.shard);
                    let applied = shard.map_or(SeqNo::ZERO, |shard| shard.last);
                    let rows_live = shard.map_or(0, |shard| shard.live_rows());
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
            Ok(ClusterStatus { state: inner.state.clone(), raft, reports, contacts, memory: Vec::new() })
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
            let rows = inner.shards.get(&shard).map_or(0, |data| data.live_rows());
            let digests = group.copies.iter().map(|(copy, record)| {
                let position = inner.position(&group.target(*copy));
                let digest = Digest { position, documents: rows, chunk_count: rows, ..Digest::default() };
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
