//! `GET /v1/models`: collections as `rag/<collection>`, the pool's models, and the embedder.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use cluster_config::error::ErrorKind;
use serde_json::{Value, json};

use super::super::doors;
use super::super::error::ApiResult;
use super::super::json::json as json_response;
use crate::embed::absent;
use crate::error::Error;
use crate::services::Services;

/// All models.
pub(super) async fn list_models(State(services): State<Arc<Services>>) -> Response {
    let data: Vec<Value> = names(&services).iter().map(|name| model_value(name)).collect();
    json_response(StatusCode::OK, &json!({"object": "list", "data": data}))
}

/// One of them.
pub(super) async fn get_model(State(services): State<Arc<Services>>, Path(id): Path<String>) -> ApiResult<Response> {
    if names(&services).contains(&id) {
        return Ok(json_response(StatusCode::OK, &model_value(&id)));
    }
    let hint = "GET /v1/models lists what there is";
    Err(Error::refused(ErrorKind::NotFound, format!("no model {id:?}"), hint).into())
}

fn names(services: &Services) -> Vec<String> {
    let mut names = doors::models(services);
    let embedder = services.embedder.name();
    if embedder != absent::NAME {
        names.push(embedder.to_owned());
    }
    names
}

/// Nobody noted when a model was made.
fn model_value(id: &str) -> Value {
    json!({"id": id, "object": "model", "created": 0, "owned_by": "susui"})
}
