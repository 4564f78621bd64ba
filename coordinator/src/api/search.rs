//! `POST /api/v1/search` and `POST /api/v1/search:batch`: ranked chunks, no language model.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use cluster_config::ids::NodeId;
use cluster_config::limits;
use cluster_config::search::{Consistency, SearchKnobs};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use xxhash_rust::xxh3::Xxh3;

use super::auth::Caller;
use super::conditional::{PRIVATE, tagged};
use super::error::{ApiResult, ErrorBody};
use super::filter::FilterBody;
use super::json::{StrictJson, deadline, json};
use super::request_id::current_request_id;
use crate::answer::{self, Question, Ranked};
use crate::error::{Error, Result};
use crate::retrieve::plan::PreferCopy;
use crate::retrieve::session::Session;
use crate::retrieve::{Hit, Include, RetrievalOptions, ShardCounts, Work, millis};
use crate::services::Services;

/// Collection used where the caller names none.
pub const DEFAULT_COLLECTION: &str = "default";
/// Results where the caller names no number.
pub const TOP_K_DEFAULT: u32 = 5;

/// A search by text or by vector.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchBody {
    /// Text to search for; needs a collection with an embedder.
    pub query: Option<String>,
    /// Or a vector, as many components as the collection has dimensions.
    pub vector: Option<Vec<f32>>,
    /// Collection; `default` if not given.
    pub collection: Option<String>,
    /// Results wanted, 1 to 1000; 5 if not given.
    pub top_k: Option<u32>,
    /// Metadata filter.
    pub filters: Option<FilterBody>,
    /// Lists probed per shard.
    pub nprobe: Option<u32>,
    /// Candidates re-scored exactly per result.
    pub oversample: Option<f32>,
    /// Compare with every vector, without the index.
    pub exact: Option<bool>,
    /// Recall wanted, above 0 and at most 1; the shards choose `nprobe` and `oversample`.
    pub target_recall: Option<f32>,
    /// What hits carry: `text`, `metadata`, `vector`; the first two if not given.
    pub include: Option<Vec<IncludeField>>,
    /// Copy asked first: `primary`, `replica` or `node:ID`.
    pub prefer_copy: Option<String>,
    /// `eventual` (default), `session` or `strong`.
    pub consistency: Option<String>,
    /// How old an eventual read may be, at most as old as the coordinator is configured to allow, which is the default. Less than 1000:
    /// the read is a strong one.
    pub max_staleness_ms: Option<u64>,
    /// Session token of an earlier answer.
    pub session: Option<String>,
    /// Least share of shards that must answer, 0 to 1; 1 if not given.
    pub min_coverage: Option<f64>,
    /// Milliseconds until the request fails.
    pub timeout_ms: Option<u64>,
    /// Adds what the search cost.
    pub explain: Option<bool>,
}

/// A part of a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum IncludeField {
    /// Text, title and span.
    Text,
    /// Metadata.
    Metadata,
    /// The stored vector.
    Vector,
}

/// Several searches at once.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchBatchBody {
    /// 1 to 256 searches.
    pub searches: Vec<SearchBody>,
}

/// Byte offsets, end excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SpanBody {
    /// First byte.
    pub start: u64,
    /// Behind the last byte.
    pub end: u64,
}

/// A ranked chunk.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct HitBody {
    /// `{document_id}#{n}`.
    pub chunk_id: String,
    /// Its document.
    pub document_id: String,
    /// Larger is better.
    pub score: f32,
    /// The document's title.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The chunk's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Where the chunk stands in the document's extracted text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span: Option<SpanBody>,
    /// The chunk's metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<serde_json::Value>,
    /// The stored vector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vector: Option<Vec<f32>>,
}

/// Where the time went, milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct TimingsBody {
    /// Text to vector.
    pub embed: f64,
    /// Looking in the cache.
    pub cache: f64,
    /// All shards.
    pub scatter: f64,
    /// Longest wait in a node's queue.
    pub queued: f64,
    /// Longest computation on a node.
    pub service: f64,
    /// Texts.
    pub fetch: f64,
    /// From the request's arrival to here.
    pub total: f64,
}

/// What a search cost and who answered.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ExplainBody {
    /// From the retrieval cache.
    pub cached: bool,
    /// Codes and rows looked at.
    pub work: Work,
    /// Each shard's copy and position.
    pub shards: Vec<ShardExplainBody>,
}

/// One shard's part in an answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ShardExplainBody {
    /// `collection_id/index`.
    pub shard: String,
    /// The copy that answered.
    pub copy: u64,
    /// Applied up to here.
    pub applied: u64,
    /// Model generation; 0 while exact.
    pub generation: u64,
}

/// Result of a search.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SearchReply {
    /// Best first.
    pub hits: Vec<HitBody>,
    /// How many shards it rests on.
    pub shards: ShardCounts,
    /// Where the time went.
    pub timings_ms: TimingsBody,
    /// Send it with later reads to never see less than now.
    pub session: String,
    /// Stands in the log, too.
    pub request_id: String,
    /// If asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explain: Option<ExplainBody>,
}

/// Results in the order of the searches.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SearchBatchReply {
    /// One per search.
    pub results: Vec<SearchReply>,
}

/// Searches by text or vector.
#[utoipa::path(post, path = "/api/v1/search", tag = "search", request_body = SearchBody,
    responses((status = 200, body = SearchReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn post_search(
    State(services): State<Arc<Services>>,
    caller: Caller,
    StrictJson(body): StrictJson<SearchBody>,
) -> ApiResult<Response> {
    let began = Instant::now();
    let explain = body.explain.unwrap_or(false);
    let question = read_search(&services, &caller, body, "")?;
    let ranked = answer::rank(&services, vec![question]).await?;
    let ranked = ranked.into_iter().next().ok_or_else(|| Error::internal("one search has one result"))?;
    let etag = etag(&ranked);
    Ok(tagged(json(StatusCode::OK, &reply(ranked, began, explain)), Some(etag), PRIVATE))
}

/// Several searches at once.
#[utoipa::path(post, path = "/api/v1/search:batch", tag = "search", request_body = SearchBatchBody,
    responses((status = 200, body = SearchBatchReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn post_search_batch(
    State(services): State<Arc<Services>>,
    caller: Caller,
    StrictJson(body): StrictJson<SearchBatchBody>,
) -> ApiResult<Response> {
    let began = Instant::now();
    let count = body.searches.len();
    if !(1..=limits::SEARCHES_PER_BATCH_MAX).contains(&count) {
        let hint = format!("send 1 to {}", limits::SEARCHES_PER_BATCH_MAX);
        return Err(Error::field("searches", format!("{count} searches"), hint).into());
    }
    let explains: Vec<bool> = body.searches.iter().map(|search| search.explain.unwrap_or(false)).collect();
    let numbered = body.searches.into_iter().enumerate();
    let questions: Vec<Question> = numbered
        .map(|(number, search)| read_search(&services, &caller, search, &format!("searches[{number}].")))
        .collect::<Result<_>>()?;
    let results_max: u64 = questions.iter().map(|question| u64::from(question.top_k)).sum();
    if results_max > limits::RESULTS_PER_BATCH_MAX {
        let hint = format!("let the searches' top_k add up to at most {}", limits::RESULTS_PER_BATCH_MAX);
        return Err(Error::field("searches", format!("{results_max} results together"), hint).into());
    }
    let ranked = answer::rank(&services, questions).await?;
    let results = ranked.into_iter().zip(explains).map(|(ranked, explain)| reply(ranked, began, explain)).collect();
    Ok(tagged(json(StatusCode::OK, &SearchBatchReply { results }), None, PRIVATE))
}

/// Validates a body into a question. `prefix` is put before the names of faulty fields.
pub(super) fn read_search(services: &Services, caller: &Caller, body: SearchBody, prefix: &str) -> Result<Question> {
    read_unprefixed(services, caller, body).map_err(|error| match error {
        Error::Field(mut field) => {
            field.key = format!("{prefix}{}", field.key);
            Error::Field(field)
        }
        other => other,
    })
}

fn read_unprefixed(services: &Services, caller: &Caller, body: SearchBody) -> Result<Question> {
    let collection = services.collection(body.collection.as_deref().unwrap_or(DEFAULT_COLLECTION))?;
    let spec = &collection.spec;
    let (text, vector) = match (body.query, body.vector) {
        (Some(text), None) => {
            crate::ingest::check_embedder(&collection, services.embedder.as_ref())?;
            (Some(check_query_text(text)?), None)
        }
        (None, Some(vector)) => {
            let dim = spec.dim as usize;
            let prepared = crate::ingest::encode::prepare_query(spec.metric, dim, vector)
                .map_err(|error| Error::field("vector", error.to_string(), format!("send {dim} finite numbers")))?;
            (None, Some(prepared))
        }
        (None, None) => return Err(Error::field("query", "missing", "give query (a text) or vector")),
        (Some(_), Some(_)) => return Err(Error::field("vector", "given together with query", "give one of the two")),
    };
    let top_k = body.top_k.unwrap_or(TOP_K_DEFAULT);
    in_range("top_k", f64::from(top_k), 1.0, f64::from(limits::TOP_K_MAX))?;
    if let Some(nprobe) = body.nprobe {
        in_range("nprobe", f64::from(nprobe), 1.0, 65_536.0)?;
    }
    if let Some(oversample) = body.oversample {
        in_range("oversample", f64::from(oversample), 1.0, f64::from(limits::OVERSAMPLE_MAX))?;
    }
    if let Some(target_recall) = body.target_recall {
        in_range("target_recall", f64::from(target_recall), 0.01, 1.0)?;
    }
    let min_coverage = body.min_coverage.unwrap_or(1.0);
    in_range("min_coverage", min_coverage, 0.0, 1.0)?;
    let filter = body.filters.unwrap_or_default().into_filter()?;
    filter.validate(spec)?;
    let max_staleness = read_max_staleness(body.max_staleness_ms, services.max_staleness)?;
    let consistency = match read_consistency(body.consistency.as_deref())? {
        // No copy knows that it is so fresh; the primary finds out.
        Consistency::Eventual if body.max_staleness_ms.is_some() && max_staleness < limits::STALENESS_KNOWN => {
            Consistency::Strong
        }
        asked => asked,
    };
    let include = body.include.unwrap_or_else(|| vec![IncludeField::Text, IncludeField::Metadata]);
    let has = |field| include.contains(&field);
    Ok(Question {
        text,
        vector,
        top_k,
        filter,
        caller: caller.clone(),
        knobs: SearchKnobs {
            nprobe: body.nprobe,
            oversample: body.oversample,
            exact: body.exact.unwrap_or(false),
            target_recall: body.target_recall,
        },
        options: RetrievalOptions {
            consistency,
            max_staleness,
            session: read_session(body.session.as_deref())?,
            prefer_copy: body.prefer_copy.as_deref().map(read_prefer_copy).transpose()?,
            min_coverage,
            include: Include {
                text: has(IncludeField::Text),
                metadata: has(IncludeField::Metadata),
                vector: has(IncludeField::Vector),
            },
            deadline: deadline(body.timeout_ms, services.default_timeout)?,
        },
        collection,
    })
}

fn check_query_text(text: String) -> Result<String> {
    if text.trim().is_empty() {
        return Err(Error::field("query", "empty", "give a text"));
    }
    if text.len() > limits::QUERY_BYTES_MAX {
        let problem = format!("{} bytes", text.len());
        return Err(Error::field("query", problem, format!("use at most {} bytes", limits::QUERY_BYTES_MAX)));
    }
    Ok(text)
}

/// Errors name the field. NaN is in no range.
pub(super) fn in_range(key: &str, value: f64, min: f64, max: f64) -> Result<()> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::field(key, format!("{value} is out of range"), format!("use {min} to {max}")))
}

/// The level of a read.
pub(super) fn read_consistency(text: Option<&str>) -> Result<Consistency> {
    match text {
        None | Some("eventual") => Ok(Consistency::Eventual),
        Some("session") => Ok(Consistency::Session),
        Some("strong") => Ok(Consistency::Strong),
        Some(other) => {
            Err(Error::field("consistency", format!("unknown level {other:?}"), "use eventual, session or strong"))
        }
    }
}

/// The bound of eventual reads: the caller may ask for fresher answers than the configuration does, not for older ones.
fn read_max_staleness(asked_ms: Option<u64>, bound: Duration) -> Result<Duration> {
    let Some(asked_ms) = asked_ms else { return Ok(bound) };
    in_range("max_staleness_ms", asked_ms as f64, 0.0, bound.as_millis() as f64)?;
    Ok(Duration::from_millis(asked_ms))
}

/// The caller's token; none is an empty one.
pub(super) fn read_session(text: Option<&str>) -> Result<Session> {
    let Some(text) = text else { return Ok(Session::default()) };
    Session::parse(text)
        .map_err(|error| Error::field("session", error.to_string(), "send the token of an earlier answer as it was"))
}

fn read_prefer_copy(text: &str) -> Result<PreferCopy> {
    match (text, text.strip_prefix("node:").map(str::parse)) {
        ("primary", _) => Ok(PreferCopy::Primary),
        ("replica", _) => Ok(PreferCopy::Replica),
        (_, Some(Ok(node))) => Ok(PreferCopy::Node(NodeId(node))),
        _ => Err(Error::field("prefer_copy", format!("unknown copy {text:?}"), "use primary, replica or node:ID")),
    }
}

/// The reply's hits.
pub(super) fn hit_body(hit: &Hit) -> HitBody {
    HitBody {
        chunk_id: hit.chunk_id.clone(),
        document_id: hit.document_id.clone(),
        score: hit.score,
        title: hit.title.clone(),
        text: hit.text.clone(),
        span: hit.span.as_ref().map(|span| SpanBody { start: span.start, end: span.end }),
        metadata: hit.metadata.clone(),
        vector: hit.vector.clone(),
    }
}

pub(super) fn timings_body(ranked: &Ranked, began: Instant) -> TimingsBody {
    TimingsBody {
        embed: ranked.embed_ms,
        cache: ranked.timings.cache_ms,
        scatter: ranked.timings.scatter_ms,
        queued: ranked.timings.queued_ms,
        service: ranked.timings.service_ms,
        fetch: ranked.timings.fetch_ms,
        total: millis(began.elapsed()),
    }
}

pub(super) fn explain_body(ranked: &Ranked) -> ExplainBody {
    let shards = ranked.retrieved.positions.iter().map(|(shard, position)| ShardExplainBody {
        shard: shard.to_string(),
        copy: position.copy.0,
        applied: position.applied.0,
        generation: position.generation,
    });
    ExplainBody { cached: ranked.retrieved.cached, work: ranked.retrieved.work, shards: shards.collect() }
}

/// The whole reply.
pub(super) fn reply(ranked: Ranked, began: Instant, explain: bool) -> SearchReply {
    SearchReply {
        hits: ranked.retrieved.hits.iter().map(hit_body).collect(),
        shards: ranked.retrieved.shards,
        timings_ms: timings_body(&ranked, began),
        session: ranked.session.to_string(),
        request_id: current_request_id(),
        explain: explain.then(|| explain_body(&ranked)),
    }
}

/// Names what was found and where the shards stood: equal tags, equal hits.
pub(super) fn etag(ranked: &Ranked) -> String {
    let mut hash = Xxh3::new();
    for (shard, position) in ranked.retrieved.positions.iter() {
        hash.update(format!("{shard}:{}:{}", position.lineage, position.applied).as_bytes());
    }
    for hit in ranked.retrieved.hits.iter() {
        hash.update(hit.chunk_id.as_bytes());
        hash.update(&hit.score.to_bits().to_be_bytes());
    }
    format!("W/\"{:032x}\"", hash.digest128())
}
