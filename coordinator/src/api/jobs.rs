//! `/api/v1/jobs`: how uploads go, those that failed, and trying them again.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use cluster_config::error::ErrorKind;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::auth::Caller;
use super::error::{ApiResult, ErrorBody, error_body};
use super::json::{StrictQuery, json, page_limit};
use super::query::to_json;
use super::request_id::{current_request_id, with_request_id};
use crate::catalog::job_view::{JobRow, JobsQuery};
use crate::catalog::jobs::JobState;
use crate::error::{Error, Result};
use crate::services::Services;

/// Looks in a row that the catalog may leave unanswered before the events of a job end: half a minute at least.
const LOOKS_FAILED_MAX: u32 = 30;
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

/// Which jobs.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct JobsParams {
    /// In this state only; `failed` gives those that were given up.
    pub status: Option<String>,
    /// Of this collection only.
    pub collection: Option<String>,
    /// Rows, 1 to 1000; 100 if not given.
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    pub cursor: Option<String>,
}

/// A page of jobs.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct JobsReply {
    /// In the order they were made.
    pub jobs: Vec<JobReply>,
    /// Give it as `cursor` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Jobs in the order they were made.
#[utoipa::path(get, path = "/api/v1/jobs", tag = "documents", params(JobsParams),
    responses((status = 200, body = JobsReply), (status = "4XX", body = ErrorBody)))]
pub async fn list_jobs(
    State(services): State<Arc<Services>>,
    caller: Caller,
    StrictQuery(params): StrictQuery<JobsParams>,
) -> ApiResult<Response> {
    let limit = page_limit(params.limit)?;
    let collection = params.collection.map(|name| services.collection(&name)).transpose()?;
    let query = JobsQuery {
        tenant: &caller.tenant,
        state: params.status.as_deref().map(read_status).transpose()?,
        collection_id: collection.map(|collection| collection.id.0),
        after: params.cursor.as_deref().unwrap_or_default(),
        limit: limit + 1,
    };
    let mut jobs: Vec<JobReply> = services.catalog.jobs(&query).await?.into_iter().map(job_reply).collect();
    let has_more = jobs.len() > limit as usize;
    jobs.truncate(limit as usize);
    let next_cursor = jobs.last().filter(|_| has_more).map(|last| last.id.clone());
    Ok(json(StatusCode::OK, &JobsReply { jobs, next_cursor }))
}

fn read_status(text: &str) -> Result<JobState> {
    let all = JobState::ALL.map(JobState::as_str).join(", ");
    JobState::parse(text)
        .ok_or_else(|| Error::field("status", format!("unknown status {text:?}"), format!("use {all}")))
}

/// Tries a failed or cancelled job again. Its upload is still there, unless the document was uploaded again or deleted.
#[utoipa::path(post, path = "/api/v1/jobs/{id}/retry", tag = "documents", params(("id" = String, Path, description = "the job")),
    responses((status = 202, body = JobReply), (status = "4XX", body = ErrorBody)))]
pub async fn retry_job(
    State(services): State<Arc<Services>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult<Response> {
    let row = services.ingest.retry(&caller.tenant, read_job_id(&id)?).await?.ok_or_else(|| unknown(&id))?;
    Ok(json(StatusCode::ACCEPTED, &job_reply(row)))
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

/// The job as server-sent events `job`, one per change, until it ends. While the catalog does not answer there are none; where that
/// lasts, or the job is forgotten, the last event is an `error`, as of any call.
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
    let request_id = current_request_id();
    let events = async_stream::stream! {
        let _place = place;
        let mut number = 0_u64;
        let mut event = |name: &str, data: String| {
            let event = Event::default().id(number.to_string()).event(name).data(data);
            number += 1;
            Ok::<_, Infallible>(event)
        };
        let mut current = job_reply(first);
        let mut looks_failed = 0;
        yield event("job", to_json(&current));
        while !current.terminal && !services.draining.load(Ordering::Relaxed) {
            let _ = tokio::time::timeout(LOOK_INTERVAL, changes.changed()).await;
            let lost = match services.catalog.job(&caller.tenant, job_id).await {
                Ok(Some(row)) => {
                    looks_failed = 0;
                    let reply = job_reply(row);
                    if reply != current {
                        yield event("job", to_json(&reply));
                        current = reply;
                    }
                    continue;
                }
                Ok(None) => unknown(&id),
                Err(error) if looks_failed == LOOKS_FAILED_MAX => error.into(),
                Err(_) => {
                    looks_failed += 1;
                    continue;
                }
            };
            let body = with_request_id(request_id, async { error_body(&lost) }).await;
            yield event("error", to_json(&body));
            return;
        }
    };
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE_INTERVAL)).into_response())
}

fn read_job_id(text: &str) -> Result<Uuid> {
    Uuid::parse_str(text)
        .map_err(|_| Error::field("id", format!("{text:?} is not a job id"), "use the job_id of an upload's answer"))
}

fn unknown(id: &str) -> Error {
    let hint = "jobs are forgotten a week after their end, unless their upload waits to be tried again; the document itself stays";
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
