//! `POST /api/v1/query`: an answer with citations, whole or as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use cluster_config::limits::{self, MODEL_BYTES_MAX};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Caller;
use super::conditional::{PRIVATE, tagged};
use super::doors::ClientKey;
use super::error::{ApiResult, ErrorBody, error_body};
use super::filter::FilterBody;
use super::json::{StrictJson, deadline, json};
use super::request_id::{current_request_id, with_request_id};
use super::search::{
    ExplainBody, HitBody, SearchBody, SpanBody, TimingsBody, etag, explain_body, hit_body, in_range, read_search,
    timings_body,
};
use crate::answer::{self, Answer, AnswerEvent, TextOptions};
use crate::error::{Error, Result};
use crate::generate::{Citation, GenerateOptions, Source, Usage};
use crate::retrieve::{ShardCounts, millis};
use crate::services::Services;

/// Comment lines keep idle connections open while a model thinks.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// A question.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QueryBody {
    /// The question.
    pub query: String,
    /// Collection; `default` if not given.
    pub collection: Option<String>,
    /// Chunks the answer may rest on, 1 to 1000; 5 if not given.
    pub top_k: Option<u32>,
    /// Metadata filter.
    pub filters: Option<FilterBody>,
    /// Server-sent events instead of one body.
    pub stream: Option<bool>,
    /// Model to ask for, where backends are configured.
    pub model: Option<String>,
    /// Most tokens of the answer.
    pub max_tokens: Option<u32>,
    /// Sampling temperature, 0 to 2.
    pub temperature: Option<f32>,
    /// `eventual` (default), `session` or `strong`.
    pub consistency: Option<String>,
    /// How old an eventual read may be, at most as old as the coordinator is configured to allow, which is the default.
    pub max_staleness_ms: Option<u64>,
    /// Session token of an earlier answer.
    pub session: Option<String>,
    /// Least share of shards that must answer, 0 to 1; 1 if not given.
    pub min_coverage: Option<f64>,
    /// Milliseconds until the request fails, the answer's text included.
    pub timeout_ms: Option<u64>,
    /// Adds what the retrieval cost.
    pub explain: Option<bool>,
}

/// A place in a source that the answer rests on.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CitationBody {
    /// The number in brackets in the answer.
    pub marker: u32,
    /// `{document_id}#{n}`.
    pub chunk_id: String,
    /// The document.
    pub document_id: String,
    /// Its title.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Byte offsets in the document's extracted text.
    pub span: SpanBody,
    /// Retrieval score of the chunk.
    pub score: f32,
    /// Page or slide that the chunk begins on, from 1, where the document has any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<u32>,
    /// Headings that the chunk stands under, outermost first, where the document has any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headings: Vec<String>,
}

/// Tokens spent by the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct UsageBody {
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
}

/// An answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct QueryReply {
    /// The text.
    pub answer: String,
    /// `extractive`, or the name of the backend that wrote it.
    pub generator: String,
    /// The model, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Why the text is extractive although language models are configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
    /// `stop`, `length` or `content_filter`.
    pub finish_reason: &'static str,
    /// What the text rests on.
    pub citations: Vec<CitationBody>,
    /// The ranked chunks.
    pub hits: Vec<HitBody>,
    /// How many shards it rests on.
    pub shards: ShardCounts,
    /// Tokens, where the model says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageBody>,
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

/// The first event of a stream.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct MetaEvent {
    request_id: String,
    collection: String,
    generator: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    degraded: Option<String>,
    shards: ShardCounts,
    session: String,
    timings_ms: TimingsBody,
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<ExplainBody>,
}

/// The last event of a stream that ended well.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct DoneEvent {
    finish_reason: &'static str,
    total_ms: f64,
}

/// Answers a question from the collection.
#[utoipa::path(post, path = "/api/v1/query", tag = "search", request_body = QueryBody,
    responses((status = 200, body = QueryReply, description = "with stream: events meta, sources, delta, citation, usage, done, error"),
        (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn post_query(
    State(services): State<Arc<Services>>,
    caller: Caller,
    client: ClientKey,
    StrictJson(body): StrictJson<QueryBody>,
) -> ApiResult<Response> {
    let began = Instant::now();
    let (stream, explain) = (body.stream.unwrap_or(false), body.explain.unwrap_or(false));
    let text = read_text_options(&body, client, stream)?;
    let search = SearchBody {
        query: Some(body.query),
        collection: body.collection,
        top_k: body.top_k,
        filters: body.filters,
        consistency: body.consistency,
        max_staleness_ms: body.max_staleness_ms,
        session: body.session,
        min_coverage: body.min_coverage,
        timeout_ms: body.timeout_ms,
        ..SearchBody::default()
    };
    let question = read_search(&services, &caller, search, "")?;
    let place = stream.then(|| services.tenants.open_stream(&caller)).transpose()?;
    let collection = question.collection.spec.name.clone();
    let mut answer = answer::run(&services, question, text).await?;
    if let Some(place) = place {
        answer.events = place.hold(answer.events);
        return Ok(super::unbuffered(stream_answer(answer, collection, began, explain)));
    }
    let etag = etag(&answer.ranked);
    Ok(tagged(json(StatusCode::OK, &collect_answer(answer, began, explain).await?), Some(etag), PRIVATE))
}

fn read_text_options(body: &QueryBody, client: ClientKey, is_streamed: bool) -> Result<TextOptions> {
    if let Some(max_tokens) = body.max_tokens {
        in_range("max_tokens", f64::from(max_tokens), 1.0, f64::from(limits::LLM_TOKENS_MAX))?;
    }
    if let Some(temperature) = body.temperature {
        in_range("temperature", f64::from(temperature), 0.0, 2.0)?;
    }
    if let Some(model) = &body.model
        && (model.is_empty() || model.len() > MODEL_BYTES_MAX)
    {
        let hint = format!("use 1 to {MODEL_BYTES_MAX} bytes, or leave it out");
        return Err(Error::field("model", format!("{} bytes", model.len()), hint));
    }
    let options =
        GenerateOptions { max_tokens: body.max_tokens, temperature: body.temperature, ..GenerateOptions::default() };
    // Text takes longer than a search: without a limit of the caller's it may take the longest time there is.
    let deadline = deadline(body.timeout_ms, Duration::from_millis(limits::TIMEOUT_MS_MAX))?;
    let history = Vec::new();
    Ok(TextOptions { model: body.model.clone(), options, history, client: client.0, deadline, is_streamed })
}

async fn collect_answer(mut answer: Answer, began: Instant, explain: bool) -> Result<QueryReply> {
    let mut text = String::new();
    let mut citations = Vec::new();
    let mut usage = None;
    let mut finish_reason = "stop";
    while let Some(event) = answer.events.next().await {
        match event {
            AnswerEvent::Delta(piece) => text.push_str(&piece),
            AnswerEvent::Citation(citation) => citations.push(citation_body(citation)),
            AnswerEvent::Usage(spent) => usage = Some(usage_body(spent)),
            AnswerEvent::Done(reason) => finish_reason = reason.as_str(),
            AnswerEvent::Failed(error) => return Err(error),
        }
    }
    let ranked = &answer.ranked;
    Ok(QueryReply {
        answer: text,
        generator: answer.generator,
        model: answer.model,
        degraded: answer.degraded,
        finish_reason,
        citations,
        hits: ranked.retrieved.hits.iter().map(hit_body).collect(),
        shards: ranked.retrieved.shards,
        usage,
        timings_ms: timings_body(ranked, began),
        session: ranked.session.to_string(),
        request_id: current_request_id(),
        explain: explain.then(|| explain_body(ranked)),
    })
}

/// Events as they come; ids count up from 0. The client's going away drops the stream and with it the backend's connection.
fn stream_answer(answer: Answer, collection: String, began: Instant, explain: bool) -> Response {
    let request_id = current_request_id();
    let ranked = &answer.ranked;
    let meta = MetaEvent {
        request_id: request_id.clone(),
        collection,
        generator: answer.generator.clone(),
        model: answer.model.clone(),
        degraded: answer.degraded.clone(),
        shards: ranked.retrieved.shards,
        session: ranked.session.to_string(),
        timings_ms: timings_body(ranked, began),
        explain: explain.then(|| explain_body(ranked)),
    };
    let sources = source_bodies(&answer.sources);
    let mut events = answer.events;
    let events = async_stream::stream! {
        let mut number = 0_u64;
        let mut event = |name: &str, data: String| {
            let event = Event::default().id(number.to_string()).event(name).data(data);
            number += 1;
            Ok::<_, Infallible>(event)
        };
        yield event("meta", to_json(&meta));
        yield event("sources", to_json(&sources));
        while let Some(next) = events.next().await {
            match next {
                AnswerEvent::Delta(text) => yield event("delta", to_json(&serde_json::json!({ "text": text }))),
                AnswerEvent::Citation(citation) => yield event("citation", to_json(&citation_body(citation))),
                AnswerEvent::Usage(usage) => yield event("usage", to_json(&usage_body(usage))),
                AnswerEvent::Done(reason) => {
                    let done = DoneEvent { finish_reason: reason.as_str(), total_ms: millis(began.elapsed()) };
                    yield event("done", to_json(&done));
                    return;
                }
                AnswerEvent::Failed(error) => {
                    let body = with_request_id(request_id.clone(), async { error_body(&error) }).await;
                    yield event("error", to_json(&body));
                    return;
                }
            }
        }
    };
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE_INTERVAL)).into_response()
}

pub(super) fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

pub(super) fn citation_body(citation: Citation) -> CitationBody {
    CitationBody {
        marker: citation.marker,
        chunk_id: citation.chunk_id,
        document_id: citation.document_id,
        title: citation.title,
        span: SpanBody { start: citation.span.start, end: citation.span.end },
        score: citation.score,
        page: citation.page,
        headings: citation.headings,
    }
}

/// The sources an answer may cite, numbered as it cites them.
pub(super) fn source_bodies(sources: &[Source]) -> Vec<CitationBody> {
    (1..).zip(sources).map(|(marker, source)| source_body(marker, source)).collect()
}

fn source_body(marker: u32, source: &Source) -> CitationBody {
    CitationBody {
        marker,
        chunk_id: source.chunk_id.clone(),
        document_id: source.document_id.clone(),
        title: source.title.clone(),
        span: SpanBody { start: source.span.start, end: source.span.end },
        score: source.score,
        page: source.page,
        headings: source.headings.clone(),
    }
}

fn usage_body(usage: Usage) -> UsageBody {
    UsageBody { prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens }
}
