//! The front door of Ollama's clients: `/api/generate`, `/api/chat`, `/api/embed`, `/api/tags`, `/api/show`, `/api/version`, with its own bodies,
//! NDJSON streams and errors (`{"error":"text"}`).
//!
//! Beyond the protocol: the last record of a `rag/<collection>` answer carries `sources`, `citations` and `session`; requests may carry `rag`
//! with retrieval's knobs.

mod answers;
mod embed;
mod models;
mod request;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::header;
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Value, json};

pub(super) use answers::NDJSON;

use super::error::ErrorDetail;
use crate::services::Services;

/// The protocol that is spoken, as the version of the server it was read from.
const PROTOCOL_VERSION: &str = "0.9.0";

/// The door's paths. Errors leave them in the native shape; [`reshape`] belongs around whatever else may refuse a request.
pub(super) fn routes() -> Router<Arc<Services>> {
    Router::new()
        .route("/api/generate", post(answers::post_generate))
        .route("/api/chat", post(answers::post_chat))
        .route("/api/embed", post(embed::post_embed))
        .route("/api/embeddings", post(embed::post_embeddings))
        .route("/api/tags", get(models::get_tags))
        .route("/api/show", post(models::post_show))
}

/// What clients ask before they have a key to show.
pub(super) fn open_routes() -> Router<Arc<Services>> {
    Router::new().route("/api/version", get(get_version)).route("/", get(get_root))
}

/// What clients ask to see whether anybody is there.
async fn get_root() -> &'static str {
    "Ollama is running"
}

async fn get_version() -> axum::Json<Value> {
    axum::Json(json!({"version": PROTOCOL_VERSION}))
}

/// Gives an error of ours the shape that Ollama's clients read.
pub(super) async fn reshape(mut response: Response) -> Response {
    let Some(detail) = response.extensions_mut().remove::<ErrorDetail>() else { return response };
    response.headers_mut().remove(header::CONTENT_LENGTH);
    *response.body_mut() = Body::from(error_value(&detail).to_string());
    response
}

fn error_value(detail: &ErrorDetail) -> Value {
    let text =
        if detail.hint.is_empty() { detail.message.clone() } else { format!("{} ({})", detail.message, detail.hint) };
    json!({ "error": text })
}
