//! `GET /api/tags` and `POST /api/show`. Nothing is known of a model but its name, and nothing is invented: sizes are 0, digests empty.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::doors;
use super::super::error::ApiResult;
use super::super::json::{StrictJson, json as json_response};
use crate::services::Services;

/// `name` is the older spelling.
#[derive(Debug, Deserialize)]
pub(super) struct ShowBody {
    #[serde(alias = "name")]
    model: String,
}

/// All models that can be asked.
pub(super) async fn get_tags(State(services): State<Arc<Services>>) -> Response {
    let models: Vec<Value> = doors::models(&services)
        .into_iter()
        .map(|name| {
            json!({
                "name": name, "model": name, "modified_at": epoch(), "size": 0, "digest": "", "details": details(),
            })
        })
        .collect();
    json_response(StatusCode::OK, &json!({ "models": models }))
}

/// One of them.
pub(super) async fn post_show(
    State(services): State<Arc<Services>>,
    StrictJson(body): StrictJson<ShowBody>,
) -> ApiResult<Response> {
    doors::check_listed(&services, &body.model)?;
    let reply = json!({
        "license": "", "modelfile": "", "parameters": "", "template": "", "modified_at": epoch(), "details": details(),
        "model_info": {}, "capabilities": ["completion"],
    });
    Ok(json_response(StatusCode::OK, &reply))
}

fn epoch() -> String {
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH).to_string()
}

fn details() -> Value {
    json!({
        "parent_model": "", "format": "", "family": "", "families": null, "parameter_size": "", "quantization_level": "",
    })
}
