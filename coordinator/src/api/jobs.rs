//! `GET/DELETE /api/v1/jobs/{id}` and `GET .../events`: how an upload goes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use cluster_config::error::ErrorKind;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::auth::Caller;
use super::error::{ApiResult, ErrorBody};
use super::json::json;
use crate::catalog::jobs::JobRow;
use crate::error::{Error, Result};
use crate::services::Services;

/// A job is looked at again at least this often, in case a change was not announced (another process, a clock).
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Comment lines keep idle connections open.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct JobReply {
    /// Its id.
    pub id: String,
    /// queued, parsing, chunking, embedding, indexing, done, failed or cancelled.
    pub status: &'static str,
    /// Whether nothing follows.
    pub terminal: bool,
    /// 0 to 1.
    pub progress: f64,
    /// Its document.
    pub document_id: String,
    /// Chunks, once known.
    pub chunk_count: u32,
    /// Tries so far.
    pub attempt: u32,
    /// Why it failed, was cancelled, or is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
    /// Once done: send it with reads to see the document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Unix milliseconds.
    pub created_ms: i64,
    /// Unix milliseconds.
    pub updated_ms: i64,
}

/// Why a job is not done.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct JobError {
    /// As in error bodies; absent for cancellations.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// In words.
    pub message: String,
}

/// Where a job stands.
#[utoipa::path(get, path = "/api/v1/jobs/{id}", tag = "documents", params(("id" = String, Path, description = "the job")),
    responses((status = 200, body = JobReply), (status = "4XX", body = ErrorBody)))]
pub async fn get_job(
    State(services): State<Arc<Services>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Response> {
    let job_id = read_job_id(&id)?;
    let row = services.catalog.job(&caller.tenant, job_id).await?.ok_or_else(|| unknown(&id))?;
    Ok(json(StatusCode::OK, &job_reply(row)))
}

/// Cancels a job. A job that has ended stays as it is.
#[utoipa::path(delete, path = "/api/v1/jobs/{id}", tag = "documents", params(("id" = String, Path, description = "the job")),
    responses((status = 200, body = JobReply), (status = "4XX", body = ErrorBody)))]
pub async fn delete_job(
    State(services): State<Arc<Services>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Response> {
    let row = services.catalog.cancel_job(&caller.tenant, read_job_id(&id)?).await?.ok_or_else(|| unknown(&id))?;
    services.ingest.announce();
    Ok(json(StatusCode::OK, &job_reply(row)))
}

/// The job as server-sent events `job`, one per change, until it ends.
#[utoipa::path(get, path = "/api/v1/jobs/{id}/events", tag = "documents", params(("id" = String, Path, description = "the job")),
    responses((status = 200, body = JobReply, content_type = "text/event-stream"), (status = "4XX", body = ErrorBody)))]
pub async fn get_job_events(
    State(services): State<Arc<Services>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Response> {
    let job_id = read_job_id(&id)?;
    let mut changes = services.ingest.changes();
    let place = services.tenants.open_stream(&caller)?;
    let first = services.catalog.job(&caller.tenant, job_id).await?.ok_or_else(|| unknown(&id))?;
    let events = async_stream::stream! {
        let _place = place;
        let mut shown: Option<JobReply> = None;
        let mut number = 0_u64;
        let mut row = Some(first);
        loop {
            let Some(current) = row else { return };
            let reply = job_reply(current);
            if shown.as_ref() != Some(&reply) {
                let data = serde_json::to_string(&reply).unwrap_or_default();
                yield Ok::<_, Infallible>(Event::default().id(number.to_string()).event("job").data(data));
                number += 1;
            }
            if reply.terminal || services.draining.load(std::sync::atomic::Ordering::Relaxed) {
                return;
            }
            shown = Some(reply);
            let _ = tokio::time::timeout(LOOK_INTERVAL, changes.changed()).await;
            row = services.catalog.job(&caller.tenant, job_id).await.ok().flatten();
        }
    };
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE_INTERVAL)).into_response())
}

fn read_job_id(text: &str) -> Result<Uuid> {
    Uuid::parse_str(text)
        .map_err(|_| Error::field("id", format!("{text:?} is not a job id"), "use the job_id of an upload's answer"))
}

fn unknown(id: &str) -> Error {
    let hint = "ended jobs are forgotten after a week; the document itself stays";
    Error::refused(ErrorKind::NotFound, format!("job {id} does not exist"), hint)
}

fn job_reply(row: JobRow) -> JobReply {
    JobReply {
        id: row.job_id.to_string(),
        status: row.state.as_str(),
        terminal: row.state.is_final(),
        progress: row.progress,
        document_id: row.document.document_id,
        chunk_count: row.chunk_count,
        attempt: row.attempt,
        error: row.error.map(|(kind, message)| JobError { kind: kind.map(ErrorKind::as_str), message }),
        session: row.session,
        created_ms: row.created_ms,
        updated_ms: row.updated_ms,
    }
}
