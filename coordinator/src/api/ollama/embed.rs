//! `POST /api/embed`, and the older `POST /api/embeddings` for one text: vectors of the coordinator's own embedder.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::super::auth::Caller;
use super::super::doors::{self, OneOrMany};
use super::super::error::ApiResult;
use super::super::json::{StrictJson, json as json_response};
use crate::services::Services;

/// The known fields; others are read over.
#[derive(Debug, Deserialize)]
pub(super) struct EmbedBody {
    model: String,
    input: OneOrMany,
    dimensions: Option<usize>,
}

/// The known fields; others are read over.
#[derive(Debug, Deserialize)]
pub(super) struct EmbeddingsBody {
    model: String,
    prompt: String,
}

/// Embeds texts.
pub(super) async fn post_embed(
    State(services): State<Arc<Services>>,
    caller: Caller,
    StrictJson(body): StrictJson<EmbedBody>,
) -> ApiResult<Response> {
    let began = Instant::now();
    let (vectors, tokens) =
        doors::embed(&services, &caller, &body.model, body.input.into_vec(), body.dimensions).await?;
    let vectors: Vec<&[f32]> = vectors.iter().map(|vector| &vector[..]).collect();
    let total_duration = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let reply = json!({
        "model": body.model, "embeddings": vectors, "total_duration": total_duration, "load_duration": 0,
        "prompt_eval_count": tokens,
    });
    Ok(json_response(StatusCode::OK, &reply))
}

/// Embeds one text.
pub(super) async fn post_embeddings(
    State(services): State<Arc<Services>>,
    caller: Caller,
    StrictJson(body): StrictJson<EmbeddingsBody>,
) -> ApiResult<Response> {
    let (vectors, _) = doors::embed(&services, &caller, &body.model, vec![body.prompt], None).await?;
    let vector = vectors.first().map(|vector| &vector[..]).unwrap_or_default();
    Ok(json_response(StatusCode::OK, &json!({"embedding": vector})))
}
