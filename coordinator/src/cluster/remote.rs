//! [`NodeClient`] over gRPC: one lazily connected channel per node and lane.
//!
//! A connection that falls silent is noticed by HTTP/2 pings within two seconds; deadlines travel as `grpc-timeout`. Reads have a
//! channel of their own, so that a search never waits behind a bulk write's bytes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::cluster_state::ClusterState;
use cluster_config::collection::{Collection, CollectionSpec};
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, NodeId, ShardId};
use cluster_config::limits;
use cluster_config::memory::CopyMemory;
use cluster_config::operation::Chunk;
use cluster_config::search::{self, Consistency, CopyPosition};
use cluster_config::seqno::{LogPosition, SeqNo};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use proto::convert::search::{ShardReply as WireReply, search_request};
use proto::convert::status::RemoteError;
use proto::convert::{WireError, ids, required, to_wire};
use proto::v1;
use proto::v1::admin_service_client::AdminServiceClient;
use proto::v1::metadata_service_client::MetadataServiceClient;
use proto::v1::replication_service_client::ReplicationServiceClient;
use proto::v1::search_service_client::SearchServiceClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::client::*;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Taken off the remaining time at each hop.
pub const HOP: Duration = Duration::from_millis(2);

/// What a channel is for; each lane has its own connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lane {
    /// Watch and operators' calls.
    Control,
    /// Searches, fetches, positions.
    Read,
    /// Writes.
    Write,
}

/// The client of all nodes. Clones share channels.
#[derive(Clone)]
pub struct RemoteNodes {
    shared: Arc<Shared>,
}

struct Shared {
    cluster_id: String,
    dial_overrides: BTreeMap<NodeId, String>,
    addresses: Mutex<HashMap<NodeId, String>>,
    /// By address: a node that moved gets a new channel. Old ones go when their node's address changes.
    channels: Mutex<HashMap<(String, Lane), Channel>>,
}

impl RemoteNodes {
    /// `dial_overrides` replace the address of a node, so that a link can run through a proxy.
    pub fn new(cluster_id: String, dial_overrides: BTreeMap<NodeId, String>) -> Self {
        let shared = Shared { cluster_id, dial_overrides, addresses: Mutex::default(), channels: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    fn envelope(&self, node: u64) -> v1::Envelope {
        v1::Envelope { cluster_id: self.shared.cluster_id.clone(), to_node: node, from_incarnation: 0, from_node: 0 }
    }

    fn channel(&self, node: NodeId, lane: Lane) -> Result<Channel, NodeError> {
        let address = match self.shared.dial_overrides.get(&node) {
            Some(address) => Some(address.clone()),
            None => self.shared.addresses.lock().get(&node).cloned(),
        };
        let address =
            address.ok_or_else(|| NodeError::new(ErrorKind::Unavailable, format!("node {node} has no address")))?;
        self.channel_to(&address, lane)
    }

    fn channel_to(&self, address: &str, lane: Lane) -> Result<Channel, NodeError> {
        let mut channels = self.shared.channels.lock();
        if let Some(channel) = channels.get(&(address.to_owned(), lane)) {
            return Ok(channel.clone());
        }
        let invalid = |error| NodeError::new(ErrorKind::Unavailable, format!("address {address:?}: {error}"));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(invalid)?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(limits::GRPC_WINDOW_BYTES)
            .initial_connection_window_size(limits::GRPC_WINDOW_BYTES)
            .connect_lazy();
        channels.insert((address.to_owned(), lane), channel.clone());
        Ok(channel)
    }

    fn peer(&self, peer: &Peer, lane: Lane) -> Result<(Channel, v1::Envelope), NodeError> {
        match peer {
            Peer::Node(node) => Ok((self.channel(*node, lane)?, self.envelope(node.0))),
            // 0: whoever listens there; its answers name it.
            Peer::Seed(address) => Ok((self.channel_to(address, lane)?, self.envelope(0))),
        }
    }

    pub(super) fn admin(&self, peer: &Peer) -> Result<(AdminServiceClient<Channel>, v1::Envelope), NodeError> {
        let (channel, envelope) = self.peer(peer, Lane::Control)?;
        let client = AdminServiceClient::new(channel).max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX);
        Ok((client, envelope))
    }

    fn reads(&self, node: NodeId) -> Result<(SearchServiceClient<Channel>, v1::Envelope), NodeError> {
        let client = SearchServiceClient::new(self.channel(node, Lane::Read)?)
            .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX);
        Ok((client, self.envelope(node.0)))
    }
}

/// The request with the time that remains, less what the way there and back may take: the node's refusal arrives in time.
pub(super) fn timed<T>(message: T, deadline: Instant) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline.saturating_duration_since(Instant::now()).saturating_sub(HOP));
    request
}

fn node_error(error: RemoteError) -> NodeError {
    let RemoteError { kind, message, hint, register, .. } = error;
    NodeError { kind, message, hint, register, disconnected: false }
}

/// A status to our words. Without details of ours it came from the transport: the connection failed.
pub(super) fn status_error(status: Status) -> NodeError {
    let from_transport = status.details().is_empty();
    let error = RemoteError::from(status);
    let disconnected = from_transport && error.kind == ErrorKind::Unavailable;
    NodeError { disconnected, ..node_error(error) }
}

pub(super) fn wire_error(error: WireError) -> NodeError {
    NodeError::new(ErrorKind::Internal, format!("reply: {error}"))
}

/// An error known before anything was sent, as a future.
pub(super) fn refuse<T: Send + 'static>(error: NodeError) -> BoxFuture<'static, Result<T, NodeError>> {
    futures::future::ready(Err(error)).boxed()
}

fn read_chunk(wire: v1::FetchedChunk) -> Result<FetchedChunk, WireError> {
    let chunk: Chunk = required("chunk", wire.chunk)?;
    Ok(FetchedChunk {
        shard: ids::shard_id("shard", wire.shard)?,
        row: wire.row,
        key: required("key", wire.key)?,
        title: wire.title,
        ordinal: chunk.ordinal,
        text: chunk.text,
        metadata_json: chunk.metadata_json,
        span: chunk.span,
        vector: chunk.vector,
    })
}

fn read_fetched(reply: v1::FetchReply) -> Result<Fetched, WireError> {
    let failure = |failure: v1::ShardFailure| {
        let shard = ids::shard_id("failures.shard", failure.shard)?;
        Ok((shard, node_error(RemoteError::from(failure.error.unwrap_or_default()))))
    };
    Ok(Fetched {
        chunks: reply.chunks.into_iter().map(read_chunk).collect::<Result<_, WireError>>()?,
        failures: reply.failures.into_iter().map(failure).collect::<Result<_, WireError>>()?,
        positions: to_wire(reply.positions),
    })
}

fn read_digest(copy: v1::CopyDigest) -> CopyDigest {
    let outcome = match (copy.error, copy.digest) {
        (Some(error), _) => Err(node_error(error.into())),
        (None, None) => Err(NodeError::new(ErrorKind::Internal, "neither digest nor error")),
        (None, Some(digest)) => Ok(Digest {
            position: digest.position.map(CopyPosition::from).unwrap_or_default(),
            documents: digest.documents,
            index_membership: digest.index_membership,
            log: digest.log,
            log_from: SeqNo(digest.log_from),
            document_count: digest.document_count,
            chunk_count: digest.chunk_count,
        }),
    };
    CopyDigest { copy: CopyId(copy.copy_id), node: NodeId(copy.node), outcome }
}

fn read_report(report: v1::CopyReport) -> CopyReport {
    CopyReport {
        copy: CopyId(report.copy_id),
        last: report.last.map(LogPosition::from).unwrap_or_default(),
        applied: SeqNo(report.applied),
        global_checkpoint: SeqNo(report.global_checkpoint),
        generation: report.generation,
        rows_indexed: report.rows_indexed,
        rows_tail: report.rows_tail,
        rows_live: report.rows_live,
        index_state: report.index_state,
        disk_bytes: report.disk_bytes,
        memory_bytes: report.memory_bytes,
        memory: report.memory.map(CopyMemory::from).unwrap_or_default(),
        recall_at_10: report.recall_at_10,
        reason: report.reason,
    }
}

fn read_status(reply: v1::StatusReply) -> Result<ClusterStatus, WireError> {
    let raft = reply.raft.unwrap_or_default();
    let memory = reply.contacts.iter().filter_map(|contact| Some((NodeId(contact.node), contact.memory?.into())));
    Ok(ClusterStatus {
        state: required("state", reply.state)?,
        raft: RaftStatus {
            leader: raft.leader,
            raft_term: raft.raft_term,
            last_log_index: raft.last_log_index,
            last_applied_index: raft.last_applied_index,
            voters: raft.voters,
        },
        memory: memory.collect(),
        reports: reply.reports.into_iter().map(read_report).collect(),
        contacts: reply.contacts.into_iter().map(|contact| (NodeId(contact.node), contact.heard_ms_ago)).collect(),
    })
}

impl NodeClient for RemoteNodes {
    fn learn(&self, state: &ClusterState) {
        let addresses: HashMap<NodeId, String> =
            state.nodes.values().map(|node| (node.id, node.rpc_address.clone())).collect();
        let mut known = self.shared.addresses.lock();
        let moved: Vec<&String> = known
            .iter()
            .filter(|(node, address)| addresses.get(node) != Some(address))
            .map(|(_, address)| address)
            .collect();
        if !moved.is_empty() {
            self.shared.channels.lock().retain(|(address, _), _| !moved.contains(&address));
        }
        *known = addresses;
    }

    fn search(
        &self,
        node: NodeId,
        search: NodeSearch,
        deadline: Instant,
    ) -> BoxStream<'static, Result<ShardReply, NodeError>> {
        let (mut client, envelope) = match self.reads(node) {
            Ok(parts) => parts,
            Err(error) => return stream::once(futures::future::ready(Err(error))).boxed(),
        };
        let search = search::NodeSearch {
            queries: Arc::unwrap_or_clone(search.queries),
            targets: search.targets,
            consistency: search.consistency,
            max_staleness_ms: search.max_staleness_ms,
        };
        let request = timed(search_request(envelope, search), deadline);
        let replies =
            async move { Ok::<_, NodeError>(client.search(request).await.map_err(status_error)?.into_inner()) };
        replies
            .map(|opened| match opened {
                Ok(replies) => replies.map(read_reply).boxed(),
                Err(error) => stream::once(futures::future::ready(Err(error))).boxed(),
            })
            .flatten_stream()
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
        let (mut client, envelope) = match self.reads(node) {
            Ok(parts) => parts,
            Err(error) => return refuse(error),
        };
        let targets = targets.into_iter().map(|wanted| v1::FetchTarget {
            target: Some(wanted.target.into()),
            rows: wanted.rows,
            keys: to_wire(wanted.keys),
            min_seqno: wanted.min_seqno.0,
        });
        let request = v1::FetchRequest {
            envelope: Some(envelope),
            targets: targets.collect(),
            with_vectors,
            consistency: v1::Consistency::from(consistency).into(),
        };
        let request = timed(request, deadline);
        async move {
            let reply = client.fetch(request).await.map_err(status_error)?;
            read_fetched(reply.into_inner()).map_err(wire_error)
        }
        .boxed()
    }

    fn write(
        &self,
        node: NodeId,
        write: NodeWrite,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<WriteAck, NodeError>> {
        let channel = match self.channel(node, Lane::Write) {
            Ok(channel) => channel,
            Err(error) => return refuse(error),
        };
        let mut client =
            ReplicationServiceClient::new(channel).max_encoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX);
        let request = v1::WriteRequest {
            envelope: Some(self.envelope(node.0)),
            target: Some(write.target.into()),
            operation_id: ids::operation_id_bytes(write.operation_id),
            operations: to_wire(Arc::unwrap_or_clone(write.operations)),
        };
        let request = timed(request, deadline);
        async move {
            let reply = client.write(request).await.map_err(status_error)?.into_inner();
            Ok(WriteAck {
                position: reply.position.map(CopyPosition::from).unwrap_or_default(),
                seqno: SeqNo(reply.seqno),
                copies_acked: reply.copies_acked,
                deduplicated: reply.deduplicated,
            })
        }
        .boxed()
    }

    fn positions(
        &self,
        node: NodeId,
        targets: Vec<CopyTarget>,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Vec<CopyPosition>, NodeError>> {
        let (mut client, envelope) = match self.reads(node) {
            Ok(parts) => parts,
            Err(error) => return refuse(error),
        };
        let request = v1::PositionsRequest { envelope: Some(envelope), targets: to_wire(targets) };
        let request = timed(request, deadline);
        async move {
            let reply = client.positions(request).await.map_err(status_error)?;
            Ok(to_wire(reply.into_inner().positions))
        }
        .boxed()
    }

    fn list_documents(
        &self,
        node: NodeId,
        page: PageRequest,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<DocumentPage, NodeError>> {
        let (mut client, envelope) = match self.reads(node) {
            Ok(parts) => parts,
            Err(error) => return refuse(error),
        };
        let request = v1::ListDocumentsRequest {
            envelope: Some(envelope),
            target: Some(page.target.target.into()),
            tenant: page.tenant,
            after_document_id: page.after,
            limit: page.limit,
            consistency: v1::Consistency::from(page.consistency).into(),
            min_seqno: page.target.min_seqno.0,
        };
        let request = timed(request, deadline);
        async move {
            let reply = client.list_documents(request).await.map_err(status_error)?.into_inner();
            let listed = reply.documents.into_iter().map(|listed| {
                Ok(ListedDocument {
                    key: required("documents.key", listed.key)?,
                    title: listed.title,
                    chunk_count: listed.chunk_count,
                    seqno: SeqNo(listed.seqno),
                })
            });
            let documents = listed.collect::<Result<_, WireError>>().map_err(wire_error)?;
            let position = reply.position.map(CopyPosition::from).unwrap_or_default();
            Ok(DocumentPage { position, documents, more: reply.more })
        }
        .boxed()
    }

    fn create_collection(
        &self,
        peer: Peer,
        spec: CollectionSpec,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<(Collection, u64), NodeError>> {
        let (mut client, envelope) = match self.admin(&peer) {
            Ok(parts) => parts,
            Err(error) => return refuse(error),
        };
        let request = v1::CreateCollectionRequest { envelope: Some(envelope), spec: Some(spec.into()) };
        let request = timed(request, deadline);
        async move {
            let reply = client.create_collection(request).await.map_err(status_error)?.into_inner();
            Ok((required("collection", reply.collection).map_err(wire_error)?, reply.state_version))
        }
        .boxed()
    }

    fn delete_collection(
        &self,
        peer: Peer,
        name: String,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<(bool, u64), NodeError>> {
        let (mut client, envelope) = match self.admin(&peer) {
            Ok(parts) => parts,
            Err(error) => return refuse(error),
        };
        let request = timed(v1::DeleteCollectionRequest { envelope: Some(envelope), name }, deadline);
        async move {
            let reply = client.delete_collection(request).await.map_err(status_error)?.into_inner();
            Ok((reply.existed, reply.state_version))
        }
        .boxed()
    }

    fn status(&self, peer: Peer, deadline: Instant) -> BoxFuture<'static, Result<ClusterStatus, NodeError>> {
        let (mut client, envelope) = match self.admin(&peer) {
            Ok(parts) => parts,
            Err(error) => return refuse(error),
        };
        let request = timed(v1::StatusRequest { envelope: Some(envelope) }, deadline);
        async move {
            let reply = client.status(request).await.map_err(status_error)?;
            read_status(reply.into_inner()).map_err(wire_error)
        }
        .boxed()
    }

    fn digest(
        &self,
        peer: Peer,
        shard: ShardId,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Vec<CopyDigest>, NodeError>> {
        let (mut client, envelope) = match self.admin(&peer) {
            Ok(parts) => parts,
            Err(error) => return refuse(error),
        };
        let request = timed(v1::DigestShardRequest { envelope: Some(envelope), shard: Some(shard.into()) }, deadline);
        async move {
            let reply = client.digest_shard(request).await.map_err(status_error)?;
            Ok(reply.into_inner().copies.into_iter().map(read_digest).collect())
        }
        .boxed()
    }

    fn watch(&self, peer: Peer, known_version: u64) -> BoxStream<'static, Result<WatchUpdate, NodeError>> {
        let (channel, envelope) = match self.peer(&peer, Lane::Control) {
            Ok(parts) => parts,
            Err(error) => return stream::once(futures::future::ready(Err(error))).boxed(),
        };
        let mut client = MetadataServiceClient::new(channel).max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX);
        let request = v1::WatchRequest { envelope: Some(envelope), known_version };
        let updates =
            async move { Ok::<_, NodeError>(client.watch(request).await.map_err(status_error)?.into_inner()) };
        updates
            .map(|opened| match opened {
                Ok(updates) => updates.map(read_update).boxed(),
                Err(error) => stream::once(futures::future::ready(Err(error))).boxed(),
            })
            .flatten_stream()
            .boxed()
    }
}

fn read_reply(reply: Result<v1::ShardResult, Status>) -> Result<ShardReply, NodeError> {
    let WireReply { shard, outcome, queued_us, service_us } =
        WireReply::try_from(reply.map_err(status_error)?).map_err(wire_error)?;
    Ok(ShardReply { shard, outcome: outcome.map_err(node_error), queued_us, service_us })
}

fn read_update(update: Result<v1::WatchReply, Status>) -> Result<WatchUpdate, NodeError> {
    let reply = update.map_err(status_error)?;
    let state = required("state", reply.state).map_err(wire_error)?;
    Ok(WatchUpdate { state, leader: Some(reply.leader).filter(|leader| *leader > 0).map(NodeId) })
}
