//! Searches and questions, hits, answers and their citations.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

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
    /// Recall wanted of the index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_recall: Option<f32>,
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
    /// Time for the whole answer; `None`: the server's longest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// Answer of `POST /api/v1/query`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct QueryResponse {
    /// The answer, with markers such as `[1]`.
    pub answer: String,
    /// What made it: `extractive`, or a backend.
    #[serde(default)]
    pub generator: String,
    /// Why it is extractive although language models are configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
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
    /// Page or slide, where the document has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<u32>,
    /// Headings above the passage, outermost first, where the document has any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headings: Vec<String>,
}

/// Byte offsets, end excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// Behind the last byte.
    pub end: u64,
}
