//! `PUT /api/v1/collections/{collection}/points` and `POST .../points:delete`: vectors brought by the caller.
//!
//! A point is a document of one chunk; its id is the document's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use cluster_config::collection::{Collection, CollectionSpec};
use cluster_config::filter::{FieldValue, field_accepts};
use cluster_config::limits;
use cluster_config::operation::{Chunk, Operation};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::auth::Caller;
use super::error::{ApiResult, ErrorBody};
use super::filter::FilterBody;
use super::json::{StrictJson, deadline, json};
use super::request_id::current_request_id;
use super::search::read_session;
use crate::error::{Error, Result};
use crate::ingest::encode::encode_stored;
use crate::ingest::write::Written;
use crate::retrieve::session::Session;
use crate::services::Services;

/// Points to be put.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PointsBody {
    /// 1 to 10,000 points with different ids.
    pub points: Vec<PointBody>,
    /// Session token of an earlier answer; it comes back raised by this write.
    pub session: Option<String>,
    /// Milliseconds until the request fails.
    pub timeout_ms: Option<u64>,
}

/// One point.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PointBody {
    /// Its id. An earlier point or document of the same id is replaced; an upload of it that waits to be indexed is cancelled.
    pub id: String,
    /// As many finite numbers as the collection has dimensions.
    pub vector: Vec<f32>,
    /// Text that hits bring back.
    pub text: Option<String>,
    /// Shown as title in citations.
    pub title: Option<String>,
    /// Metadata; declared fields can be filtered by.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
}

/// Points to be deleted: by ids or by filter.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeletePointsBody {
    /// At most 10,000 ids.
    pub ids: Option<Vec<String>>,
    /// Or all that pass this filter.
    pub filters: Option<FilterBody>,
    /// Session token of an earlier answer; it comes back raised by this write.
    pub session: Option<String>,
    /// Milliseconds until the request fails.
    pub timeout_ms: Option<u64>,
}

/// A write's acknowledgement.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct WrittenReply {
    /// Operations acknowledged.
    pub acked: u64,
    /// Fewest copies on which one of them is durable.
    pub copies_acked_min: u32,
    /// Send it with reads to see this write.
    pub session: String,
    /// Deletion by filter: there may be more; send it again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// Stands in the log, too.
    pub request_id: String,
}

/// Puts points, each in the place of the point or document that had its id. Safe to repeat.
#[utoipa::path(put, path = "/api/v1/collections/{collection}/points", tag = "points", request_body = PointsBody,
    params(("collection" = String, Path, description = "its name")),
    responses((status = 200, body = WrittenReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn put_points(
    State(services): State<Arc<Services>>,
    caller: Caller,
    Path(name): Path<String>,
    StrictJson(body): StrictJson<PointsBody>,
) -> ApiResult<Response> {
    let collection = services.collection(&name)?;
    let deadline = deadline(body.timeout_ms, services.default_timeout)?;
    let mut session = read_session(body.session.as_deref())?;
    let spec = collection.spec.clone();
    // Normalising and halving thousands of vectors is CPU work: off the reactor.
    let tenant = Arc::clone(&caller.tenant);
    let points = crate::ingest::blocking(move || read_points(&spec, &caller, body.points)).await?;
    let written = services.ingest.put_points(&collection, &tenant, points, deadline).await?;
    services.metrics.points_written.inc_by(written.acked);
    session.merge(&written.session);
    Ok(json(StatusCode::OK, &written_reply(&written, session, false)))
}

/// Deletes points and documents, with all that the catalog has of them; uploads of them that wait to be indexed are cancelled. Safe
/// to repeat; deleting what is not there is fine.
#[utoipa::path(post, path = "/api/v1/collections/{collection}/points:delete", tag = "points", request_body = DeletePointsBody,
    params(("collection" = String, Path, description = "its name")),
    responses((status = 200, body = WrittenReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn delete_points(
    State(services): State<Arc<Services>>,
    caller: Caller,
    Path(name): Path<String>,
    StrictJson(body): StrictJson<DeletePointsBody>,
) -> ApiResult<Response> {
    let collection = services.collection(&name)?;
    let deadline = deadline(body.timeout_ms, services.default_timeout)?;
    let mut session = read_session(body.session.as_deref())?;
    let (written, more) = match (body.ids, body.filters) {
        (Some(ids), None) => (delete_ids(&services, &caller, &collection, ids, deadline).await?, false),
        (None, Some(filters)) => {
            let filter = filters.into_filter()?;
            filter.validate(&collection.spec)?;
            if filter.is_empty() {
                let hint = "name at least one condition; to delete everything, delete the collection";
                return Err(Error::field("filters", "an empty filter", hint).into());
            }
            services.ingest.delete_matching(&collection, &caller.tenant, filter, deadline).await?
        }
        _ => return Err(Error::field("ids", "missing, or given together with filters", "give ids or filters").into()),
    };
    session.merge(&written.session);
    Ok(json(StatusCode::OK, &written_reply(&written, session, more)))
}

/// The acknowledgement, with the caller's session as raised by the write.
pub(super) fn written_reply(written: &Written, session: Session, more: bool) -> WrittenReply {
    WrittenReply {
        acked: written.acked,
        copies_acked_min: written.copies_acked_min,
        session: session.to_string(),
        more,
        request_id: current_request_id(),
    }
}

/// Validates points and encodes their vectors. Errors name the point and its field.
fn read_points(spec: &CollectionSpec, caller: &Caller, points: Vec<PointBody>) -> Result<Vec<Operation>> {
    let count = points.len();
    if !(1..=limits::POINTS_PER_BATCH_MAX).contains(&count) {
        let hint = format!("send 1 to {} at once", limits::POINTS_PER_BATCH_MAX);
        return Err(Error::field("points", format!("{count} points"), hint));
    }
    let mut seen: HashMap<String, usize> = HashMap::with_capacity(count);
    let mut operations = Vec::with_capacity(count);
    for (position, point) in points.into_iter().enumerate() {
        let path = |field: &str| format!("points[{position}].{field}");
        if let Some(earlier) = seen.insert(point.id.clone(), position) {
            let problem = format!("{:?} stands at points[{earlier}], too", point.id);
            return Err(Error::field(path("id"), problem, "send each id once per request"));
        }
        let key = caller.document_key(&path("id"), point.id)?;
        let vector = encode_stored(spec.metric, spec.dim as usize, &point.vector).map_err(|error| {
            Error::field(path("vector"), error.to_string(), format!("send {} finite numbers", spec.dim))
        })?;
        let text = point.text.unwrap_or_default();
        if text.len() > limits::CHUNK_TEXT_BYTES_MAX {
            let hint = format!("use at most {}", limits::CHUNK_TEXT_BYTES_MAX);
            return Err(Error::field(path("text"), format!("{} bytes", text.len()), hint));
        }
        let title = point.title.unwrap_or_default();
        check_title(&path("title"), &title)?;
        let metadata_json = check_metadata(&path("metadata"), spec, point.metadata)?;
        let span = 0..text.len() as u64;
        let chunk = Chunk { ordinal: 0, text, metadata_json, span, vector };
        operations.push(Operation::PutDocument { key, title, chunks: vec![chunk] });
    }
    Ok(operations)
}

/// Titles stand in every hit: a line, not a text.
pub(super) fn check_title(path: &str, title: &str) -> Result<()> {
    if title.len() > limits::TITLE_BYTES_MAX {
        let hint = format!("use at most {}", limits::TITLE_BYTES_MAX);
        return Err(Error::field(path, format!("{} bytes", title.len()), hint));
    }
    Ok(())
}

/// Metadata as JSON text. Declared fields must have their type (or be lists of it); others are kept as they are.
pub(super) fn check_metadata(
    path: &str,
    spec: &CollectionSpec,
    metadata: Option<Map<String, Value>>,
) -> Result<String> {
    let metadata = metadata.unwrap_or_default();
    for (name, field_type) in &spec.fields {
        let Some(value) = metadata.get(name) else { continue };
        let fits = |value: &Value| {
            serde_json::from_value::<FieldValue>(value.clone()).is_ok_and(|value| field_accepts(*field_type, &value))
        };
        let is_fitting = match value {
            Value::Null => true,
            Value::Array(values) => values.iter().all(fits),
            value => fits(value),
        };
        if !is_fitting {
            let hint =
                format!("the field is declared {field_type:?}; send such a value or a list of them").to_lowercase();
            return Err(Error::field(format!("{path}.{name}"), "the value has another type", hint));
        }
    }
    let text = Value::Object(metadata).to_string();
    if text.len() > limits::METADATA_BYTES_MAX {
        let hint = format!("use at most {}", limits::METADATA_BYTES_MAX);
        return Err(Error::field(path, format!("{} bytes as JSON", text.len()), hint));
    }
    Ok(text)
}

async fn delete_ids(
    services: &Services,
    caller: &Caller,
    collection: &Collection,
    ids: Vec<String>,
    deadline: Instant,
) -> Result<Written> {
    if ids.len() > limits::DELETES_PER_BATCH_MAX {
        let hint = format!("send at most {} at once", limits::DELETES_PER_BATCH_MAX);
        return Err(Error::field("ids", format!("{} ids", ids.len()), hint));
    }
    let checked = ids.into_iter().enumerate().map(|(position, id)| {
        let key = caller.document_key(&format!("ids[{position}]"), id)?;
        Ok(key.document_id)
    });
    let ids = checked.collect::<Result<Vec<_>>>()?;
    services.ingest.delete(collection, &caller.tenant, ids, deadline).await
}
