//! The shapes of the HTTP API as this program reads and writes them (design: HTTP API, port 8000). Answers are read
//! tolerantly: fields that a command does not need are not named, and what may be absent has a default.

use std::collections::BTreeMap;

use cluster_config::cluster_state::{Liveness, NodeLifecycle};
use cluster_config::collection::{FieldType, IndexSpec, Metric};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Body of `PUT /api/v1/collections/{c}`. What is left out is chosen by the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CollectionRequest {
    /// Dimension; may be left out with an embedder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dim: Option<u32>,
    /// How vectors are compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// Number of shards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<u32>,
    /// Voting copies per shard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copies: Option<u32>,
    /// Further copies that only serve reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_replicas: Option<u32>,
    /// Fewest in-sync copies with which writes are accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_in_sync: Option<u32>,
    /// Model that embeds texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedder: Option<String>,
    /// Fields that filters may name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, FieldType>,
    /// Dimension after PCA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pca_dim: Option<u32>,
    /// Index settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<IndexRequest>,
}

/// Index settings of a new collection; as [`IndexSpec`], but everything may be left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "as IndexSpec")]
pub struct IndexRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nlist: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub m: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbits: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nprobe: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oversample: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training_floor: Option<u32>,
}

/// A collection as the cluster answers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as CollectionSpec")]
pub struct CollectionInfo {
    pub name: String,
    pub dim: u32,
    pub metric: Metric,
    pub shards: u32,
    pub copies: u32,
    #[serde(default)]
    pub read_replicas: u32,
    #[serde(default)]
    pub min_in_sync: u32,
    #[serde(default)]
    pub embedder: Option<String>,
    #[serde(default)]
    pub fields: BTreeMap<String, FieldType>,
    #[serde(default)]
    pub pca_dim: Option<u32>,
    #[serde(default)]
    pub index: IndexSpec,
}

/// Answer of `GET /api/v1/collections`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CollectionList {
    /// By name.
    pub collections: Vec<CollectionInfo>,
}

/// Body of `POST /api/v1/search`, and of `POST /api/v1/query` but for the text, which is required there.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SearchRequest {
    /// Text, embedded by the coordinator; or else `vector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// `[dim]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vector: Option<Vec<f32>>,
    /// Where to look.
    pub collection: String,
    /// Results wanted.
    pub top_k: u32,
    /// Metadata filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filters: Option<Value>,
    /// Parts of a hit beyond ids and score; `None`: the server's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include: Option<Vec<&'static str>>,
    /// Lists probed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nprobe: Option<u32>,
    /// Candidates re-scored per result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oversample: Option<f32>,
    /// Compare with every row.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub exact: bool,
    /// Copy asked first: `primary`, `replica` or `node:ID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefer_copy: Option<String>,
    /// Whether to tell what was scanned.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub explain: bool,
}

/// Answer of `POST /api/v1/search`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SearchResponse {
    /// Best first.
    pub hits: Vec<Hit>,
    /// Coverage.
    #[serde(default)]
    pub shards: Coverage,
    /// Time by stage.
    #[serde(default)]
    pub timings_ms: Value,
    /// Positions of what was read.
    #[serde(default)]
    pub session: Value,
    /// Where `explain` asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explain: Option<Explain>,
}

/// What a search cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explain {
    /// Whether it came from the retrieval cache.
    #[serde(default)]
    pub cached: bool,
    /// Codes and rows looked at, over all shards.
    pub work: Work,
    /// Each shard's copy and position.
    #[serde(default)]
    pub shards: Value,
}

/// Codes and rows looked at.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Work {
    /// Codes scanned in the indexes.
    pub codes_scanned: u64,
    /// Codes the indexes hold.
    pub codes_total: u64,
    /// Rows compared exactly.
    pub rows_exact: u64,
}

/// One chunk found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hit {
    /// `{document_id}#{n}`.
    pub chunk_id: String,
    /// Its document.
    pub document_id: String,
    /// Larger is better.
    pub score: f64,
    /// Title of the document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Its text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Its metadata.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
}

/// How many shards took part.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Coverage {
    /// Shards of the collection.
    pub total: u32,
    /// That answered.
    pub ok: u32,
    /// That failed.
    pub failed: u32,
    /// That did not answer in time.
    pub timed_out: u32,
}

impl Coverage {
    /// Whether every shard answered.
    pub fn is_complete(&self) -> bool {
        self.ok == self.total
    }
}

/// Body of `POST /api/v1/query`.
#[derive(Clone, Debug, Serialize)]
pub struct QueryRequest {
    /// The question.
    pub query: String,
    /// Where to look.
    pub collection: String,
    /// Passages to answer from.
    pub top_k: u32,
    /// Metadata filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filters: Option<Value>,
    /// Answer as server-sent events.
    pub stream: bool,
    /// LLM model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Longest answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
}

/// Answer of `POST /api/v1/query`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct QueryResponse {
    /// The answer, with markers such as `[1]`.
    pub answer: String,
    /// What made it: `extractive`, or a backend.
    #[serde(default)]
    pub generator: String,
    /// What the markers point to.
    #[serde(default)]
    pub citations: Vec<Citation>,
    /// Coverage.
    #[serde(default)]
    pub shards: Coverage,
    /// Time by stage.
    #[serde(default)]
    pub timings_ms: Value,
    /// For finding it in the logs.
    #[serde(default)]
    pub request_id: String,
}

/// A place in a source that an answer rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Citation {
    /// The number in brackets in the answer.
    pub marker: u32,
    /// The passage.
    pub chunk_id: String,
    /// Its document.
    pub document_id: String,
    /// Title of the document.
    #[serde(default)]
    pub title: Option<String>,
    /// Byte offsets in the document's extracted text.
    pub span: Span,
    /// Larger is better.
    pub score: f64,
}

/// Byte offsets, end excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// Behind the last byte.
    pub end: u64,
}

/// JSON body of `POST /api/v1/documents`.
#[derive(Clone, Debug, Serialize)]
pub struct DocumentRequest {
    /// Chosen here, so that ingesting again replaces.
    pub id: String,
    /// Title, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The text.
    pub text: String,
    /// Metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
    /// Where it goes.
    pub collection: String,
}

/// Answer of `POST /api/v1/documents`.
#[derive(Clone, Debug, Deserialize)]
pub struct DocumentAccepted {
    /// The document.
    pub id: String,
    /// What to follow.
    pub job_id: String,
}

/// Answer of `GET /api/v1/jobs/{id}`.
#[derive(Clone, Debug, Deserialize)]
pub struct Job {
    /// queued, parsing, chunking, embedding, indexing, done, failed or cancelled.
    pub status: String,
    /// Whether nothing follows.
    pub terminal: bool,
    /// Why it failed, was cancelled, or is tried again.
    #[serde(default)]
    pub error: Option<JobError>,
}

/// Why a job is not done.
#[derive(Clone, Debug, Deserialize)]
pub struct JobError {
    /// In words.
    pub message: String,
}

/// Body of `PUT /api/v1/collections/{c}/points`.
#[derive(Clone, Debug, Serialize)]
pub struct PointsRequest {
    /// At most `limits::POINTS_PER_BATCH_MAX`.
    pub points: Vec<Point>,
}

/// One vector with its id.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Chosen by the caller; hits carry it as `document_id`.
    pub id: String,
    /// `[dim]`.
    pub vector: Vec<f32>,
}

/// Answer of `PUT /api/v1/collections/{c}/points`.
#[derive(Clone, Debug, Deserialize)]
pub struct PointsAccepted {
    /// Points that are durable.
    pub acked: u64,
    /// Fewest copies that hold one of them.
    #[serde(default)]
    pub copies_acked_min: u32,
}

/// Answer of `GET /api/v1/cluster`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterReport {
    /// Name of the cluster.
    pub cluster_id: String,
    /// Version of the agreed state.
    pub state_version: u64,
    /// The metadata group.
    pub metadata: MetadataReport,
    /// By id.
    pub nodes: Vec<NodeReport>,
    /// By collection, then index.
    pub shards: Vec<ShardReport>,
}

/// The metadata group, as one member sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MetadataReport {
    /// Node that leads, where known.
    pub leader: Option<u64>,
    /// Its Raft term.
    pub raft_term: u64,
    /// Last entry applied.
    pub last_applied_index: u64,
    /// Who votes.
    pub voters: Vec<u64>,
}

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    /// Id.
    pub id: u64,
    /// gRPC address.
    pub rpc_address: String,
    /// Health and metrics address.
    pub http_address: String,
    /// Failure domain.
    pub zone: String,
    /// Whether it holds shards.
    pub is_data: bool,
    /// Raised at each start of its process.
    pub incarnation: u64,
    /// As believed by the metadata leader.
    pub liveness: Liveness,
    /// Whether it takes new copies.
    pub lifecycle: NodeLifecycle,
    /// Time since the leader heard of it.
    #[serde(default)]
    pub heard_ms_ago: Option<u64>,
    /// Copies on it.
    #[serde(default)]
    pub copies: u32,
    /// Bytes of its copies on disk.
    #[serde(default)]
    pub disk_bytes: u64,
    /// Bytes of its copies in memory.
    #[serde(default)]
    pub memory_bytes: u64,
}

/// One shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardReport {
    /// Name of its collection.
    pub collection: String,
    /// Position in the collection.
    pub index: u32,
    /// Raised by each grant of the primary role.
    pub primary_term: u64,
    /// Copy that orders writes, where there is one.
    pub primary: Option<u64>,
    /// Copies that hold every acknowledged operation.
    pub in_sync: Vec<u64>,
    /// Fewest in-sync copies with which writes are accepted.
    pub min_in_sync: u32,
    /// `green` (all copies in sync), `yellow` (some are not), `red` (no primary).
    pub health: String,
    /// All copies.
    pub copies: Vec<CopyStatus>,
}

/// One copy of a shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CopyStatus {
    /// Id.
    pub copy: u64,
    /// Where it lives.
    pub node: u64,
    /// `primary`, `in_sync`, `read_replica`, `new`, `catching_up` or `retiring`.
    pub role: String,
    /// Its last report; absent until it has sent one.
    #[serde(default)]
    pub report: Option<CopyReport>,
}

/// What a copy reported of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CopyReport {
    /// End of its log.
    pub last_seqno: u64,
    /// Applied up to here.
    pub applied: u64,
    /// Commit point it knows.
    pub global_checkpoint: u64,
    /// Model generation of its index; 0 while exact.
    pub generation: u64,
    /// exact, training, building, indexed, or poisoned.
    pub index_state: String,
    /// Live rows.
    pub rows_live: u64,
    /// Rows in the index.
    pub rows_indexed: u64,
    /// Rows in the exact tail.
    pub rows_tail: u64,
    /// On disk.
    pub disk_bytes: u64,
    /// In memory.
    pub memory_bytes: u64,
}

/// Answer of `POST /api/v1/shards/{collection}/{index}:digest`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardDigest {
    /// Whether all in-sync copies answered and hold the same.
    pub agree: bool,
    /// Each taken on its own node.
    pub copies: Vec<CopyDigest>,
}

/// Digest of one copy, hexadecimal: equal contents give equal digests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CopyDigest {
    /// The copy.
    pub copy: u64,
    /// Where it lives.
    pub node: u64,
    /// Whether it is in the in-sync set.
    pub in_sync: bool,
    /// Applied up to here when it was taken.
    pub applied: u64,
    /// Over documents, chunks, metadata and vectors.
    pub documents: String,
    /// Over live rows and rows in the index.
    pub index_membership: String,
    /// Over the log's entries after `log_from`.
    pub log: String,
    /// Where the digested part of the log begins; copies may have purged to different positions.
    pub log_from: u64,
    /// Documents.
    pub document_count: u64,
    /// Chunks.
    pub chunk_count: u64,
    /// Why there is no digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_left_out_of_a_collection_is_not_sent() {
        let request = CollectionRequest { dim: Some(3), ..CollectionRequest::default() };
        assert_eq!(serde_json::to_value(request).expect("plain"), json!({"dim": 3}));
    }
}
