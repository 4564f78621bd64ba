//! The front door of OpenAI's clients: `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`, `/v1/models`, with its own bodies, events
//! and errors.
//!
//! Beyond the protocol: answers of `rag/<collection>` carry `sources` (in the first chunk of a stream), `citations` (in the last) and
//! `session`; requests may carry `rag` with retrieval's knobs. Clients that do not know these read over them.

mod answers;
mod embeddings;
mod models;
mod reply;
mod request;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::error::ErrorDetail;
use crate::services::Services;

/// The door's paths. Errors leave them in the native shape; [`reshape`] belongs around whatever else may refuse a request.
pub(super) fn routes() -> Router<Arc<Services>> {
    Router::new()
        .route("/v1/chat/completions", post(answers::post_chat))
        .route("/v1/completions", post(answers::post_completions))
        .route("/v1/embeddings", post(embeddings::post_embeddings))
        .route("/v1/models", get(models::list_models))
        .route("/v1/models/{*id}", get(models::get_model))
}

/// Gives an error of ours the shape that OpenAI's clients read.
pub(super) async fn reshape(mut response: Response) -> Response {
    let Some(detail) = response.extensions_mut().remove::<ErrorDetail>() else { return response };
    let body = error_value(response.status(), &detail);
    response.headers_mut().remove(header::CONTENT_LENGTH);
    *response.body_mut() = Body::from(body.to_string());
    response
}

/// `{"error":{message,type,param,code}}`.
pub(super) fn error_value(status: StatusCode, detail: &ErrorDetail) -> Value {
    let (kind, code) = match (status.as_u16(), detail.kind) {
        (401, _) => ("invalid_request_error", Some("invalid_api_key")),
        (404, _) => ("invalid_request_error", Some("model_not_found")),
        (429, _) => ("rate_limit_error", Some("rate_limit_exceeded")),
        (400..=499, kind) => ("invalid_request_error", (kind != "invalid_argument").then_some(kind)),
        (_, kind) => ("server_error", Some(kind)),
    };
    let message =
        if detail.hint.is_empty() { detail.message.clone() } else { format!("{} ({})", detail.message, detail.hint) };
    json!({"error": {"message": message, "type": kind, "param": detail.field, "code": code}})
}
