//! `POST /v1/chat/completions` and, the older one, `POST /v1/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use super::super::auth::Caller;
use super::super::doors::{ClientKey, Conversation, converse};
use super::super::error::ApiResult;
use super::super::json::{StrictJson, json as json_response};
use super::super::query::source_bodies;
use super::super::unbuffered;
use super::reply::{Envelope, Spelling};
use super::request::AnswerBody;
use crate::services::Services;

/// Answers a conversation.
pub(super) async fn post_chat(
    State(services): State<Arc<Services>>,
    caller: Caller,
    client: ClientKey,
    StrictJson(body): StrictJson<AnswerBody>,
) -> ApiResult<Response> {
    let stream = body.stream();
    respond(&services, &caller, body.into_chat(client)?, Spelling::Chat, stream).await
}

/// Continues a prompt.
pub(super) async fn post_completions(
    State(services): State<Arc<Services>>,
    caller: Caller,
    client: ClientKey,
    StrictJson(body): StrictJson<AnswerBody>,
) -> ApiResult<Response> {
    let stream = body.stream();
    respond(&services, &caller, body.into_text(client)?, Spelling::Text, stream).await
}

async fn respond(
    services: &Services,
    caller: &Caller,
    conversation: Conversation,
    spelling: Spelling,
    stream: Option<bool>,
) -> ApiResult<Response> {
    let reply = converse(services, caller, conversation, stream.is_some()).await?;
    let envelope = Envelope::new(spelling, reply.model.clone());
    if let Some(with_usage) = stream {
        return Ok(unbuffered(envelope.stream(reply, with_usage)));
    }
    let (sources, session) = (json!(source_bodies(&reply.sources)), reply.session.clone());
    Ok(json_response(StatusCode::OK, &envelope.whole(reply.collect().await?, sources, session)))
}
