//! `/api/v1/backends`: the language models that this coordinator asks, seen and changed while it runs.
//!
//! A change is this process's own and ends with it; what shall stay belongs into the configuration of every coordinator.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use cluster_config::error::ErrorKind;
use cluster_config::llm_config::{LlmKind, WrittenLlmBackend};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::{ApiResult, ErrorBody};
use super::json::{StrictJson, json};
use crate::error::Error;
use crate::generate::pool::{BackendStatus, PoolError};
use crate::services::Services;

/// A backend to add; as `[[llm.backends]]` in the configuration.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendBody {
    /// Unique name, used in metrics.
    pub name: String,
    /// `ollama`, `openai` or `vllm`.
    #[schema(value_type = String)]
    pub kind: LlmKind,
    /// Base URL; `openai` and `vllm` with the `/v1`.
    pub url: String,
    /// Model asked for where a request names none.
    pub model: String,
    /// Environment variable of the coordinator that holds the key.
    pub api_key_env: Option<String>,
    /// Share of the requests; 1 if not given.
    pub weight: Option<u32>,
    /// Lower ones are asked first; 0 if not given.
    pub priority: Option<u32>,
    /// Most requests at once; 4 if not given.
    pub concurrency_max: Option<usize>,
    /// Tokens of prompt and answer that its model takes; 4096 if not given.
    pub context_tokens: Option<usize>,
}

/// All backends.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct BackendsReply {
    /// In the order in which they were added.
    pub backends: Vec<BackendStatus>,
    /// Requests that wait for a free place at one of them.
    pub waiting: usize,
}

impl BackendsReply {
    fn of(services: &Services) -> Self {
        Self { backends: services.llm.status(), waiting: services.llm.waiting() }
    }
}

/// Lists the backends and what is known of each.
#[utoipa::path(get, path = "/api/v1/backends", tag = "cluster", responses((status = 200, body = BackendsReply)))]
pub async fn list_backends(State(services): State<Arc<Services>>) -> Response {
    json(StatusCode::OK, &BackendsReply::of(&services))
}

/// Adds a backend to this coordinator, until it ends.
#[utoipa::path(post, path = "/api/v1/backends", tag = "cluster", request_body = BackendBody,
    responses((status = 201, body = BackendsReply), (status = "4XX", body = ErrorBody)))]
pub async fn post_backend(
    State(services): State<Arc<Services>>,
    StrictJson(body): StrictJson<BackendBody>,
) -> ApiResult<Response> {
    let written = WrittenLlmBackend {
        name: body.name,
        kind: body.kind,
        url: body.url,
        model: body.model,
        api_key_env: body.api_key_env,
        weight: body.weight,
        priority: body.priority,
        concurrency_max: body.concurrency_max,
        context_tokens: body.context_tokens,
    };
    let config = written.validate("")?;
    services.llm.add_configured(&config, |name| std::env::var(name).ok()).map_err(|error| match error {
        PoolError::MissingKey { variable, .. } => {
            let hint = "start the coordinator with it, or name another one";
            Error::field("api_key_env", format!("{variable} is not set at the coordinator"), hint)
        }
        PoolError::NameTaken(_) => Error::refused(ErrorKind::AlreadyExists, error.to_string(), "remove it first"),
        PoolError::TooMany => Error::refused(ErrorKind::Conflict, error.to_string(), "remove one first"),
        PoolError::Client(_) => Error::internal(error.to_string()),
    })?;
    tracing::info!(backend = config.name, url = config.url, model = config.model, "language model backend added");
    Ok(json(StatusCode::CREATED, &BackendsReply::of(&services)))
}

/// Takes a backend out of this coordinator, until it ends; answers that the backend is writing go on to their end. Safe to repeat.
#[utoipa::path(delete, path = "/api/v1/backends/{name}", tag = "cluster",
    params(("name" = String, Path, description = "the backend")),
    responses((status = 200, body = BackendsReply), (status = "4XX", body = ErrorBody)))]
pub async fn delete_backend(State(services): State<Arc<Services>>, Path(name): Path<String>) -> ApiResult<Response> {
    if !services.llm.remove(&name) {
        let hint = "GET /api/v1/backends lists what there is";
        return Err(Error::refused(ErrorKind::NotFound, format!("no backend {name:?}"), hint).into());
    }
    tracing::info!(backend = name, "language model backend removed");
    Ok(json(StatusCode::OK, &BackendsReply::of(&services)))
}
