//! The shapes of the HTTP API as this program reads and writes them (design: HTTP API, port 8000). Answers are read
//! tolerantly: fields that a command does not need are not named, and what may be absent has a default.

use std::collections::BTreeMap;

use cluster_config::cluster_state::{Liveness, NodeLifecycle};
use cluster_config::collection::{FieldType, IndexSpec, Metric};
use cluster_config::shard_group::{CopyPhase, CopyRole};
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
    /// Which readable copy of each shard answers, counted from 0 in order of copy id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefer_copy: Option<u32>,
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
    pub explain: Option<Value>,
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

/// One source of an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Citation {
    /// The marker in the answer: a number, or text such as `[1]`.
    pub marker: Value,
    /// The passage.
    pub chunk_id: String,
    /// Its document.
    pub document_id: String,
    /// Title of the document.
    #[serde(default)]
    pub title: Option<String>,
    /// Byte offsets in the document's extracted text, end excluded: `[start, end]` or `{start, end}`.
    #[serde(default)]
    pub span: Value,
    /// Larger is better.
    #[serde(default)]
    pub score: f64,
}

impl Citation {
    /// The number of the marker, as it stands in the answer.
    pub fn number(&self) -> String {
        match &self.marker {
            Value::String(text) => text.trim_matches(['[', ']']).to_owned(),
            other => other.to_string(),
        }
    }

    /// Byte offsets in the source, where given.
    pub fn span(&self) -> Option<(u64, u64)> {
        let (start, end) = match &self.span {
            Value::Array(ends) => (ends.first()?, ends.get(1)?),
            Value::Object(ends) => (ends.get("start")?, ends.get("end")?),
            _ => return None,
        };
        Some((start.as_u64()?, end.as_u64()?))
    }
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
    /// Where it stands.
    pub status: JobStatus,
    /// Why it failed: text, or an error body.
    #[serde(default)]
    pub error: Option<Value>,
}

/// Stages of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words speak for themselves")]
pub enum JobStatus {
    Queued,
    Parsing,
    Chunking,
    Embedding,
    Indexing,
    Done,
    Failed,
    Cancelled,
}

impl Job {
    /// Why it failed, in one line.
    pub fn reason(&self) -> String {
        match &self.error {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Object(error)) => error
                .get("message")
                .and_then(Value::as_str)
                .map_or_else(|| Value::Object(error.clone()).to_string(), str::to_owned),
            Some(other) => other.to_string(),
            None => "no reason given".into(),
        }
    }
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
    /// Version of the state.
    #[serde(default)]
    pub version: u64,
    /// The metadata group.
    #[serde(default)]
    pub raft: RaftReport,
    /// By id.
    pub nodes: Vec<NodeReport>,
    /// By collection, then index.
    pub shards: Vec<ShardReport>,
}

/// The metadata group, as its leader sees it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RaftReport {
    /// Node that leads; 0 where unknown.
    pub leader: u64,
    /// Its term.
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
    #[serde(default)]
    pub rpc_address: String,
    /// Health and metrics address.
    #[serde(default)]
    pub http_address: String,
    /// Failure domain.
    #[serde(default)]
    pub zone: String,
    /// Whether it holds shards.
    #[serde(default)]
    pub is_data: bool,
    /// Raised at each start of its process.
    #[serde(default)]
    pub incarnation: u64,
    /// As believed by the metadata leader.
    pub liveness: Liveness,
    /// Whether it takes new copies.
    pub lifecycle: NodeLifecycle,
    /// Time since the leader heard of it.
    #[serde(default)]
    pub heard_ms_ago: Option<u64>,
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
    /// Copy that orders writes.
    #[serde(default)]
    pub primary: Option<u64>,
    /// Copies that hold every acknowledged operation.
    pub in_sync: Vec<u64>,
    /// Fewest in-sync copies with which writes are accepted.
    #[serde(default)]
    pub min_in_sync: u32,
    /// All copies.
    pub copies: Vec<CopyReport>,
}

/// One copy of a shard. Positions are absent while its node has not reported.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CopyReport {
    /// Id.
    pub copy_id: u64,
    /// Where it lives.
    pub node: u64,
    /// Voter or read replica.
    pub role: CopyRole,
    /// Where it is in its life.
    pub phase: CopyPhase,
    /// End of its log.
    #[serde(default)]
    pub last_seqno: Option<u64>,
    /// Applied up to here.
    #[serde(default)]
    pub applied: Option<u64>,
    /// Commit point it knows.
    #[serde(default)]
    pub global_checkpoint: Option<u64>,
    /// Model generation of its index; 0 while exact.
    #[serde(default)]
    pub generation: Option<u64>,
    /// exact, training, building, indexed, or poisoned.
    #[serde(default)]
    pub index_state: Option<String>,
    /// Rows in the index.
    #[serde(default)]
    pub rows_indexed: Option<u64>,
    /// Rows in the exact tail.
    #[serde(default)]
    pub rows_tail: Option<u64>,
    /// Live rows.
    #[serde(default)]
    pub rows_live: Option<u64>,
    /// On disk.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// In memory.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
}

/// Answer of `POST /api/v1/shards/{collection}/{index}:digest`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardDigest {
    /// Each taken on its own node.
    pub copies: Vec<CopyDigest>,
}

/// Digest of one copy: equal contents give equal numbers (or texts).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CopyDigest {
    /// The copy.
    pub copy_id: u64,
    /// Where it lives.
    pub node: u64,
    /// Applied up to here when it was taken.
    #[serde(default)]
    pub applied: u64,
    /// Over documents, chunks, metadata and vectors.
    #[serde(default)]
    pub documents: Value,
    /// Over live rows and rows in the index.
    #[serde(default)]
    pub index_membership: Value,
    /// Over the log's entries after `log_from`.
    #[serde(default)]
    pub log: Value,
    /// Where the digested part of the log begins; copies may have purged to different positions.
    #[serde(default)]
    pub log_from: u64,
    /// Documents.
    #[serde(default)]
    pub document_count: u64,
    /// Chunks.
    #[serde(default)]
    pub chunk_count: u64,
    /// Why there is no digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Value>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn spans_and_markers_are_read_in_both_spellings() {
        let citation = |marker: Value, span: Value| Citation {
            marker,
            span,
            chunk_id: "d#0".into(),
            document_id: "d".into(),
            title: None,
            score: 0.5,
        };
        assert_eq!(citation(json!(1), json!([3, 9])).span(), Some((3, 9)));
        assert_eq!(citation(json!("[2]"), json!({"start": 3, "end": 9})).span(), Some((3, 9)));
        assert_eq!(citation(json!("[2]"), Value::Null).number(), "2");
        assert_eq!(citation(json!(7), json!([3])).span(), None);
    }

    #[test]
    fn what_is_left_out_of_a_collection_is_not_sent() {
        let request = CollectionRequest { dim: Some(3), ..CollectionRequest::default() };
        assert_eq!(serde_json::to_value(request).expect("plain"), json!({"dim": 3}));
    }
}
