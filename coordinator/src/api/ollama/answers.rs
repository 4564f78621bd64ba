//! `POST /api/generate` and `POST /api/chat`: one record per piece of text, the last one with `done: true` and the counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::{Value, json};

use super::super::auth::Caller;
use super::super::doors::{ClientKey, Conversation, Reply, check_listed, converse};
use super::super::error::{ApiResult, error_body};
use super::super::json::{StrictJson, json as json_response};
use super::super::query::{citation_body, source_bodies};
use super::super::request_id::{current_request_id, with_request_id};
use super::super::unbuffered;
use super::error_value;
use super::request::AnswerBody;
use crate::answer::AnswerEvent;
use crate::clock;
use crate::generate::{Citation, FinishReason, Source, Usage};
use crate::services::Services;

/// Media type of streams.
pub(in crate::api) const NDJSON: &str = "application/x-ndjson";

/// Which of the two endpoints speaks.
#[derive(Clone, Copy)]
enum Spelling {
    Generate,
    Chat,
}

/// Continues a prompt.
pub(super) async fn post_generate(
    State(services): State<Arc<Services>>,
    caller: Caller,
    client: ClientKey,
    StrictJson(body): StrictJson<AnswerBody>,
) -> ApiResult<Response> {
    if body.is_load() {
        return load(&services, Spelling::Generate, body.model());
    }
    let is_stream = body.is_stream();
    respond(&services, &caller, body.into_prompt(client)?, Spelling::Generate, is_stream).await
}

/// Answers a conversation.
pub(super) async fn post_chat(
    State(services): State<Arc<Services>>,
    caller: Caller,
    client: ClientKey,
    StrictJson(body): StrictJson<AnswerBody>,
) -> ApiResult<Response> {
    if body.is_load() {
        return load(&services, Spelling::Chat, body.model());
    }
    let is_stream = body.is_stream();
    respond(&services, &caller, body.into_chat(client)?, Spelling::Chat, is_stream).await
}

async fn respond(
    services: &Services,
    caller: &Caller,
    conversation: Conversation,
    spelling: Spelling,
    is_stream: bool,
) -> ApiResult<Response> {
    let began = Instant::now();
    let reply = converse(services, caller, conversation, is_stream).await?;
    let records = Records {
        spelling,
        model: reply.model.clone(),
        began,
        first_token: began.elapsed(),
        session: reply.session.clone(),
        sources: reply.sources.clone(),
    };
    if is_stream {
        return Ok(unbuffered(stream(records, reply)));
    }
    let whole = reply.collect().await?;
    Ok(json_response(StatusCode::OK, &records.last(&whole.text, whole.finish_reason, whole.usage, whole.citations)))
}

/// The answer to a request without anything asked. Nothing is loaded by it, but a model that is not there is refused.
fn load(services: &Services, spelling: Spelling, model: &str) -> ApiResult<Response> {
    check_listed(services, model)?;
    let mut record = record(spelling, model, "");
    record["done"] = true.into();
    record["done_reason"] = "load".into();
    Ok(json_response(StatusCode::OK, &record))
}

fn record(spelling: Spelling, model: &str, text: &str) -> Value {
    let created_at = humantime::format_rfc3339_nanos(clock::now()).to_string();
    match spelling {
        Spelling::Generate => json!({"model": model, "created_at": created_at, "response": text, "done": false}),
        Spelling::Chat => {
            let message = json!({"role": "assistant", "content": text});
            json!({"model": model, "created_at": created_at, "message": message, "done": false})
        }
    }
}

/// Writes an answer's records.
struct Records {
    spelling: Spelling,
    model: String,
    began: Instant,
    first_token: Duration,
    session: Option<String>,
    sources: Vec<Source>,
}

impl Records {
    fn piece(&self, text: &str) -> Value {
        record(self.spelling, &self.model, text)
    }

    /// The last record. Durations are nanoseconds, seen from here: the backend's own loading is part of the first token's time.
    fn last(&self, text: &str, reason: FinishReason, usage: Usage, citations: Vec<Citation>) -> Value {
        let total = self.began.elapsed();
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let mut record = self.piece(text);
        record["done"] = true.into();
        record["done_reason"] = reason.as_str().into();
        record["total_duration"] = nanos(total).into();
        record["load_duration"] = 0.into();
        record["prompt_eval_count"] = usage.prompt_tokens.into();
        record["prompt_eval_duration"] = nanos(self.first_token).into();
        record["eval_count"] = usage.completion_tokens.into();
        record["eval_duration"] = nanos(total.saturating_sub(self.first_token)).into();
        if let Some(session) = &self.session {
            record["session"] = session.as_str().into();
            record["sources"] = json!(source_bodies(&self.sources));
            record["citations"] = json!(citations.into_iter().map(citation_body).collect::<Vec<_>>());
        }
        record
    }
}

/// The answer as it comes. Dropping the response drops the events, and with them the backend's connection.
fn stream(records: Records, reply: Reply) -> Response {
    let request_id = current_request_id();
    let mut events = reply.events;
    let lines = async_stream::stream! {
        let line = |record: Value| Ok::<_, std::convert::Infallible>(Bytes::from(format!("{record}\n")));
        let (mut citations, mut usage) = (Vec::new(), Usage::default());
        while let Some(next) = events.next().await {
            match next {
                AnswerEvent::Delta(text) => yield line(records.piece(&text)),
                AnswerEvent::Citation(citation) => citations.push(citation),
                AnswerEvent::Usage(spent) => usage = spent,
                AnswerEvent::Done(reason) => {
                    yield line(records.last("", reason, usage, citations));
                    return;
                }
                AnswerEvent::Failed(error) => {
                    let body = with_request_id(request_id.clone(), async { error_body(&error) }).await;
                    yield line(error_value(&body.error));
                    return;
                }
            }
        }
    };
    ([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(lines)).into_response()
}
