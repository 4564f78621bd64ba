//! The calls a coordinator makes to nodes, in the words of `cluster-config`. Wire types end behind this trait.
//!
//! Every call carries a deadline; dropping the returned future or stream cancels the call on the node.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use cluster_config::cluster_state::ClusterState;
use cluster_config::collection::{Collection, CollectionSpec};
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, DocumentKey, NodeId, OperationId, ShardId};
use cluster_config::memory::{CopyMemory, NodeMemory};
use cluster_config::operation::Operation;
use cluster_config::search::{Consistency, CopyPosition, ShardAnswer, ShardQuery, ShardTarget};
use cluster_config::seqno::{LogPosition, SeqNo};
pub use cluster_config::shard_group::CopyTarget;
use cluster_config::shard_group::ShardGroup;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use super::operator::OperatorClient;

/// A call to a node that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct NodeError {
    /// What the caller may do about it.
    pub kind: ErrorKind,
    /// Text fit for a log; node addresses may stand in it.
    pub message: String,
    /// What the node advises, or empty.
    pub hint: String,
    /// The shard's current register, where the node sent it along (`NotPrimary`, `StaleTerm`).
    pub register: Option<Box<ShardGroup>>,
    /// The call never reached a working process: the connection was refused or broke.
    pub disconnected: bool,
}

impl NodeError {
    /// An error answered by a node.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: String::new(), register: None, disconnected: false }
    }

    /// A connection that could not be made or that broke.
    pub fn disconnected(message: impl Into<String>) -> Self {
        Self { disconnected: true, ..Self::new(ErrorKind::Unavailable, message) }
    }

    /// With the register that the node knows.
    pub fn with_register(mut self, register: ShardGroup) -> Self {
        self.register = Some(Box::new(register));
        self
    }
}

/// One node's part of a scatter: every query is run on every target.
#[derive(Clone, Debug)]
pub struct NodeSearch {
    /// Shared by all nodes of one scatter.
    pub queries: Arc<Vec<ShardQuery>>,
    /// Copies on this node, with the lowest position each may answer at.
    pub targets: Vec<ShardTarget>,
    /// How fresh the answers must be.
    pub consistency: Consistency,
    /// Bound for `Eventual`.
    pub max_staleness_ms: u64,
}

/// What one target answered.
#[derive(Clone, Debug)]
pub struct ShardReply {
    /// The shard.
    pub shard: ShardId,
    /// One answer per query, in order, or why there is none.
    pub outcome: Result<Vec<ShardAnswer>, NodeError>,
    /// Microseconds in the node's search queue.
    pub queued_us: u64,
    /// Microseconds of computing.
    pub service_us: u64,
}

/// Rows, or whole documents, wanted from one copy.
#[derive(Clone, Debug)]
pub struct FetchTarget {
    /// The copy.
    pub target: CopyTarget,
    /// Rows by number.
    pub rows: Vec<u64>,
    /// Documents by key, all their chunks.
    pub keys: Vec<DocumentKey>,
    /// The copy must have applied as much; 0 asks for nothing.
    pub min_seqno: SeqNo,
}

/// A stored chunk.
#[derive(Clone, Debug, PartialEq)]
pub struct FetchedChunk {
    /// Its shard.
    pub shard: ShardId,
    /// Its row.
    pub row: u64,
    /// Its document.
    pub key: DocumentKey,
    /// The document's title.
    pub title: String,
    /// Position in the document.
    pub ordinal: u32,
    /// The text.
    pub text: String,
    /// A JSON object.
    pub metadata_json: String,
    /// Byte offsets in the document's extracted text.
    pub span: Range<u64>,
    /// Little-endian half floats; empty unless asked for.
    pub vector: Vec<u8>,
}

/// What one node fetched.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    /// Chunks found. A row or key that does not exist is just not here.
    pub chunks: Vec<FetchedChunk>,
    /// Copies that could not answer.
    pub failures: Vec<(ShardId, NodeError)>,
    /// Where the copies that answered stood.
    pub positions: Vec<CopyPosition>,
}

/// One write to one primary.
#[derive(Clone, Debug)]
pub struct NodeWrite {
    /// The primary copy.
    pub target: CopyTarget,
    /// The same over all retries of this write.
    pub operation_id: OperationId,
    /// Applied together, in order.
    pub operations: Arc<Vec<Operation>>,
}

/// A write's acknowledgement: durable on `copies_acked` copies, visible on the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteAck {
    /// Where the primary stood.
    pub position: CopyPosition,
    /// Position of the write.
    pub seqno: SeqNo,
    /// Copies on which it is durable.
    pub copies_acked: u32,
    /// It had been applied before, by an earlier try.
    pub deduplicated: bool,
}

/// A document in a shard's listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedDocument {
    /// Its key.
    pub key: DocumentKey,
    /// Its title.
    pub title: String,
    /// Its chunks.
    pub chunk_count: u32,
    /// Position of its last write.
    pub seqno: SeqNo,
}

/// A page of one shard's documents wanted from one copy.
#[derive(Clone, Debug)]
pub struct PageRequest {
    /// The copy, and the lowest position it may answer at.
    pub target: ShardTarget,
    /// As for [`NodeClient::fetch`].
    pub consistency: Consistency,
    /// Whose documents.
    pub tenant: String,
    /// Ids after this one; empty: from the start.
    pub after: String,
    /// Most documents.
    pub limit: u32,
}

/// One page of a shard's documents, in document id order.
#[derive(Clone, Debug, Default)]
pub struct DocumentPage {
    /// Where the copy stood.
    pub position: CopyPosition,
    /// At most as many as asked.
    pub documents: Vec<ListedDocument>,
    /// Whether there are more behind the last.
    pub more: bool,
}

/// A copy's digest: equal on copies that hold the same at the same position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// Where the copy stood.
    pub position: CopyPosition,
    /// Over all documents, chunks, texts, metadata and vectors.
    pub documents: u64,
    /// Over live rows and rows in the index.
    pub index_membership: u64,
    /// Over the log entries after `log_from`.
    pub log: u64,
    /// Where `log` begins.
    pub log_from: SeqNo,
    /// Live documents.
    pub document_count: u64,
    /// Live chunks.
    pub chunk_count: u64,
}

/// One copy's digest, or why it has none.
#[derive(Clone, Debug)]
pub struct CopyDigest {
    /// The copy.
    pub copy: CopyId,
    /// Its node.
    pub node: NodeId,
    /// The digest.
    pub outcome: Result<Digest, NodeError>,
}

/// A copy's soft report, as the metadata leader last heard it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CopyReport {
    /// The copy.
    pub copy: CopyId,
    /// End of its log.
    pub last: LogPosition,
    /// Applied up to here.
    pub applied: SeqNo,
    /// Commit point it knows.
    pub global_checkpoint: SeqNo,
    /// Model generation in use; 0 while exact.
    pub generation: u64,
    /// Rows in the index.
    pub rows_indexed: u64,
    /// Rows searched exactly.
    pub rows_tail: u64,
    /// Live rows.
    pub rows_live: u64,
    /// exact, training, building, indexed, poisoned, or corrupt.
    pub index_state: String,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// The same by part.
    pub memory: CopyMemory,
    /// Recall of sampled live queries at the default effort; absent while they are too few.
    pub recall_at_10: Option<f32>,
    /// Why it is poisoned or corrupt.
    pub reason: String,
}

/// The metadata group as one of its members sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RaftStatus {
    /// Leader's node, 0 while unknown.
    pub leader: u64,
    /// Raft term.
    pub raft_term: u64,
    /// Last log index.
    pub last_log_index: u64,
    /// Last applied index.
    pub last_applied_index: u64,
    /// Voters.
    pub voters: Vec<u64>,
}

/// State and soft reports together.
#[derive(Clone, Debug, Default)]
pub struct ClusterStatus {
    /// The agreed state.
    pub state: ClusterState,
    /// The metadata group.
    pub raft: RaftStatus,
    /// Soft reports, unordered.
    pub reports: Vec<CopyReport>,
    /// Milliseconds since each node was heard.
    pub contacts: Vec<(NodeId, u64)>,
    /// What each node's memory goes to.
    pub memory: Vec<(NodeId, NodeMemory)>,
}

/// One message of the watch.
#[derive(Clone, Debug)]
pub struct WatchUpdate {
    /// The whole state.
    pub state: ClusterState,
    /// The metadata leader, where known.
    pub leader: Option<NodeId>,
}

/// How to reach a node: by id once the state is known, by address before.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// A node of the cluster state.
    Node(NodeId),
    /// A configured `host:port` whose node is not known yet.
    Seed(String),
}

/// Calls to nodes. See the module for deadlines and cancellation.
pub trait NodeClient: OperatorClient {
    /// Learns addresses. Called by the view with each new state, before anyone can act on it.
    fn learn(&self, state: &ClusterState);

    /// Runs a search on one node. One reply per target, each as soon as it is done; a stream error ends it for the rest.
    fn search(
        &self,
        node: NodeId,
        search: NodeSearch,
        deadline: Instant,
    ) -> BoxStream<'static, Result<ShardReply, NodeError>>;

    /// Texts, metadata and, if wanted, vectors. Strong: confirmed by the primaries; otherwise as each target's position asks.
    fn fetch(
        &self,
        node: NodeId,
        targets: Vec<FetchTarget>,
        with_vectors: bool,
        consistency: Consistency,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Fetched, NodeError>>;

    /// One write; answered when durable on every in-sync copy.
    fn write(
        &self,
        node: NodeId,
        write: NodeWrite,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<WriteAck, NodeError>>;

    /// Where copies stand. Copies the node does not serve are missing from the answer.
    fn positions(
        &self,
        node: NodeId,
        targets: Vec<CopyTarget>,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Vec<CopyPosition>, NodeError>>;

    /// A page of one shard's documents.
    fn list_documents(
        &self,
        node: NodeId,
        page: PageRequest,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<DocumentPage, NodeError>>;

    /// Creates a collection; gives it and the state version that has it. Any node will do.
    fn create_collection(
        &self,
        peer: Peer,
        spec: CollectionSpec,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<(Collection, u64), NodeError>>;

    /// Deletes a collection; gives whether it existed and the state version without it.
    fn delete_collection(
        &self,
        peer: Peer,
        name: String,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<(bool, u64), NodeError>>;

    /// State and soft reports.
    fn status(&self, peer: Peer, deadline: Instant) -> BoxFuture<'static, Result<ClusterStatus, NodeError>>;

    /// Digests of a shard's copies.
    fn digest(
        &self,
        peer: Peer,
        shard: ShardId,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Vec<CopyDigest>, NodeError>>;

    /// Follows the cluster state: the whole of it now, then after each change. Ends only by an error.
    fn watch(&self, peer: Peer, known_version: u64) -> BoxStream<'static, Result<WatchUpdate, NodeError>>;
}
