//! The job queue: claim, progress, end. A table of ours beside the documents (see DESIGN.md for why not a library).
//!
//! A claim raises `attempt` and takes a lease; every later change names the attempt and is refused once another claim, a
//! cancellation or a newer upload has come in between. So a worker that slept through its lease changes nothing.

use cluster_config::error::ErrorKind;
use sqlx::Row;
use sqlx::any::AnyRow;
use uuid::Uuid;

use super::documents::{DocumentRef, Indexed, StoredUpload, as_stored, parse_job_id};
use super::{Catalog, CatalogError, get_u32, get_u64, storable};
use crate::clock::unix_ms;

/// A claim holds this long without renewal; workers renew it at a third of that.
pub const LEASE_MS: i64 = 30_000;
/// Final jobs and idempotency keys are forgotten after this.
const KEEP_FINAL_MS: i64 = 7 * 24 * 3600 * 1000;
const KEEP_KEYS_MS: i64 = 24 * 3600 * 1000;

/// Where a job stands. The last three are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobState {
    /// Waiting for a worker.
    Queued,
    /// Bytes to text.
    Parsing,
    /// Text to chunks.
    Chunking,
    /// Chunks to vectors.
    Embedding,
    /// Writing to the shards.
    Indexing,
    /// Searchable.
    Done,
    /// Given up; `error` says why.
    Failed,
    /// By request, by a newer upload, or by deletion.
    Cancelled,
}

impl JobState {
    /// Every state.
    pub const ALL: [JobState; 8] = [
        Self::Queued,
        Self::Parsing,
        Self::Chunking,
        Self::Embedding,
        Self::Indexing,
        Self::Done,
        Self::Failed,
        Self::Cancelled,
    ];

    /// As stored and as answered.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Parsing => "parsing",
            Self::Chunking => "chunking",
            Self::Embedding => "embedding",
            Self::Indexing => "indexing",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The inverse.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Whether nothing follows.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// A job as asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRow {
    /// Id.
    pub job_id: Uuid,
    /// Its document.
    pub document: DocumentRef,
    /// State.
    pub state: JobState,
    /// 0..=1.
    pub progress: f64,
    /// Why it failed or was cancelled.
    pub error: Option<(Option<ErrorKind>, String)>,
    /// Chunks, once known.
    pub chunk_count: u32,
    /// Token for reading it, once done.
    pub session: Option<String>,
    /// Claims so far.
    pub attempt: u32,
    /// Unix milliseconds.
    pub created_ms: i64,
    /// Unix milliseconds.
    pub updated_ms: i64,
}

/// The right to work on a job, until its lease ends.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The job.
    pub job_id: Uuid,
    /// Its document.
    pub document: DocumentRef,
    /// Raised by each claim.
    pub attempt: u32,
    /// Claims since the upload, or since it was retried by hand.
    pub tries: u32,
    /// What to index.
    pub upload: StoredUpload,
}

/// Which jobs.
#[derive(Clone, Debug)]
pub struct JobsQuery<'a> {
    /// Whose.
    pub tenant: &'a str,
    /// In this state only.
    pub state: Option<JobState>,
    /// Of this collection only.
    pub collection_id: Option<u64>,
    /// With ids after this; empty: from the first.
    pub after: &'a str,
    /// At most.
    pub limit: u32,
}

/// How a job ended well.
#[derive(Clone, Debug)]
pub struct Finish<'a> {
    /// As chosen.
    pub title: &'a str,
    /// The extracted text; `None`: the one that is kept stays.
    pub extracted: Option<&'a str>,
    /// Chunks.
    pub chunk_count: u32,
    /// Token for reading it.
    pub session: &'a str,
    /// What was indexed.
    pub indexed: Indexed,
}

/// The claim does not hold any more: the job was cancelled, superseded or claimed by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimLost;

const JOB_COLUMNS: &str = "job_id, collection_id, tenant, document_id, state, progress, error_kind, error_message, chunk_count, \
                           session, attempt, created_ms, updated_ms";

impl Catalog {
    /// The job that may run and is first by priority, then by age, claimed. A document's jobs run one at a time, because each upload ends the one before it.
    pub async fn claim_job(&self) -> Result<Option<Claim>, CatalogError> {
        let now = unix_ms();
        let mut write = self.write().await?;
        let connection = &mut *write.transaction;
        let sql = format!(
            "UPDATE jobs SET state = 'parsing', progress = 0, attempt = attempt + 1, lease_until_ms = $2, updated_ms = $1
             WHERE job_id = (
                 SELECT job_id FROM jobs
                 WHERE state NOT IN ('done', 'failed', 'cancelled') AND run_after_ms <= $1
                   AND (lease_until_ms IS NULL OR lease_until_ms < $1)
                 ORDER BY priority DESC, run_after_ms, created_ms LIMIT 1 {})
             RETURNING job_id, collection_id, tenant, document_id, attempt, attempts_before",
            self.engine().for_update_skip_locked()
        );
        let claimed = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(now)
            .bind(now + LEASE_MS)
            .fetch_optional(&mut *connection)
            .await?;
        let Some(row) = claimed else { return Ok(None) };
        let job_id = parse_job_id(&row.try_get::<String, _>("job_id")?)?;
        let document = document_ref(&row)?;
        let attempt = get_u32(&row, "attempt")?;
        let tries = attempt.saturating_sub(get_u32(&row, "attempts_before")?);
        let upload = sqlx::query(
            "SELECT d.title, d.metadata_json, d.media_type, d.file_name, d.upload, d.content_hash, d.indexed_from,
                 d.indexed_chunks FROM documents d
             WHERE d.job_id = $1 AND d.upload IS NOT NULL AND d.collection_id = $2 AND d.tenant = $3 AND d.document_id = $4",
        )
        .bind(job_id.to_string())
        .bind(as_stored(document.collection_id))
        .bind(&document.tenant)
        .bind(&document.document_id)
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = upload else {
            // Cannot happen by our own transactions; ended rather than claimed for ever.
            sqlx::query("UPDATE jobs SET state = 'failed', error_kind = 'internal', error_message = 'its upload is gone' WHERE job_id = $1")
                .bind(job_id.to_string())
                .execute(&mut *connection)
                .await?;
            write.commit().await?;
            return Ok(None);
        };
        let upload = StoredUpload {
            title: row.try_get("title")?,
            metadata_json: row.try_get("metadata_json")?,
            media_type: row.try_get("media_type")?,
            file_name: row.try_get("file_name")?,
            content: row.try_get("upload")?,
            content_hash: row.try_get("content_hash")?,
            indexed: match (row.try_get("indexed_from")?, row.try_get("indexed_chunks")?) {
                (Some(from), Some(chunks)) => Some(Indexed { from, chunks }),
                _ => None,
            },
        };
        write.commit().await?;
        Ok(Some(Claim { job_id, document, attempt, tries, upload }))
    }

    /// Notes how far the job is and renews the lease.
    pub async fn advance_job(
        &self,
        claim: &Claim,
        state: JobState,
        progress: f64,
        chunk_count: u32,
    ) -> Result<Result<(), ClaimLost>, CatalogError> {
        let now = unix_ms();
        let mut write = self.write().await?;
        let changed = sqlx::query(
            "UPDATE jobs SET state = $3, progress = $4, chunk_count = $5, lease_until_ms = $6, updated_ms = $7
             WHERE job_id = $1 AND attempt = $2 AND cancel_requested = 0 AND state NOT IN ('done', 'failed', 'cancelled')",
        )
        .bind(claim.job_id.to_string())
        .bind(i64::from(claim.attempt))
        .bind(state.as_str())
        .bind(progress)
        .bind(i64::from(chunk_count))
        .bind(now + LEASE_MS)
        .bind(now)
        .execute(&mut *write.transaction)
        .await?
        .rows_affected();
        write.commit().await?;
        Ok(if changed == 1 { Ok(()) } else { Err(ClaimLost) })
    }

    /// Renews the lease, whatever the job is doing.
    pub async fn renew_job(&self, claim: &Claim) -> Result<Result<(), ClaimLost>, CatalogError> {
        let mut write = self.write().await?;
        let changed = sqlx::query(
            "UPDATE jobs SET lease_until_ms = $3
             WHERE job_id = $1 AND attempt = $2 AND cancel_requested = 0 AND state NOT IN ('done', 'failed', 'cancelled')",
        )
        .bind(claim.job_id.to_string())
        .bind(i64::from(claim.attempt))
        .bind(unix_ms() + LEASE_MS)
        .execute(&mut *write.transaction)
        .await?
        .rows_affected();
        write.commit().await?;
        Ok(if changed == 1 { Ok(()) } else { Err(ClaimLost) })
    }

    /// Whether the claim still holds, without renewing it.
    pub async fn holds(&self, claim: &Claim) -> Result<bool, CatalogError> {
        let mut connection = self.read().await?;
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT 1 FROM jobs
             WHERE job_id = $1 AND attempt = $2 AND cancel_requested = 0 AND state NOT IN ('done', 'failed', 'cancelled')",
        )
        .bind(claim.job_id.to_string())
        .bind(i64::from(claim.attempt))
        .fetch_optional(&mut *connection)
        .await?;
        Ok(found.is_some())
    }

    /// The document is searchable: the job is done, the extracted text takes the upload's place.
    pub async fn finish_job(&self, claim: &Claim, finish: &Finish<'_>) -> Result<Result<(), ClaimLost>, CatalogError> {
        let now = unix_ms();
        let mut write = self.write().await?;
        let connection = &mut *write.transaction;
        sqlx::query(
            "UPDATE documents SET state = 'ready', title = $2, extracted = coalesce($3, extracted), chunk_count = $4, upload = NULL,
                 updated_ms = $5, indexed_from = $6, indexed_chunks = $7
             WHERE job_id = $1",
        )
        .bind(claim.job_id.to_string())
        .bind(&*storable(finish.title))
        .bind(finish.extracted.map(|text| storable(text).into_owned()))
        .bind(i64::from(finish.chunk_count))
        .bind(now)
        .bind(&finish.indexed.from)
        .bind(&finish.indexed.chunks)
        .execute(&mut *connection)
        .await?;
        sqlx::query("DELETE FROM job_stages WHERE job_id = $1")
            .bind(claim.job_id.to_string())
            .execute(&mut *connection)
            .await?;
        let changed = sqlx::query(
            "UPDATE jobs SET state = 'done', progress = 1, chunk_count = $3, session = $4, lease_until_ms = NULL, updated_ms = $5,
                 error_kind = NULL, error_message = NULL
             WHERE job_id = $1 AND attempt = $2 AND state NOT IN ('done', 'failed', 'cancelled')",
        )
        .bind(claim.job_id.to_string())
        .bind(i64::from(claim.attempt))
        .bind(i64::from(finish.chunk_count))
        .bind(finish.session)
        .bind(now)
        .execute(&mut *connection)
        .await?
        .rows_affected();
        if changed != 1 {
            return Ok(Err(ClaimLost));
        }
        write.commit().await?;
        Ok(Ok(()))
    }

    /// The job cannot succeed. The upload is kept, so that the document can be tried again after a repair.
    pub async fn fail_job(&self, claim: &Claim, kind: ErrorKind, message: &str) -> Result<(), CatalogError> {
        let now = unix_ms();
        let mut write = self.write().await?;
        let connection = &mut *write.transaction;
        sqlx::query("UPDATE documents SET state = 'failed', updated_ms = $2 WHERE job_id = $1")
            .bind(claim.job_id.to_string())
            .bind(now)
            .execute(&mut *connection)
            .await?;
        let changed = sqlx::query(
            "UPDATE jobs SET state = 'failed', error_kind = $3, error_message = $4, lease_until_ms = NULL, updated_ms = $5
             WHERE job_id = $1 AND attempt = $2 AND state NOT IN ('done', 'failed', 'cancelled')",
        )
        .bind(claim.job_id.to_string())
        .bind(i64::from(claim.attempt))
        .bind(kind.as_str())
        .bind(&*storable(message))
        .bind(now)
        .execute(&mut *connection)
        .await?
        .rows_affected();
        if changed == 1 {
            write.commit().await?;
        }
        Ok(())
    }

    /// Back to the queue, to be tried again after `pause_ms`; what went wrong is noted.
    pub async fn requeue_job(
        &self,
        claim: &Claim,
        pause_ms: i64,
        kind: ErrorKind,
        message: &str,
    ) -> Result<(), CatalogError> {
        let now = unix_ms();
        let mut write = self.write().await?;
        sqlx::query(
            "UPDATE jobs SET state = 'queued', progress = 0, run_after_ms = $3, error_kind = $4, error_message = $5,
                 lease_until_ms = NULL, updated_ms = $6
             WHERE job_id = $1 AND attempt = $2 AND state NOT IN ('done', 'failed', 'cancelled')",
        )
        .bind(claim.job_id.to_string())
        .bind(i64::from(claim.attempt))
        .bind(now + pause_ms)
        .bind(kind.as_str())
        .bind(&*storable(message))
        .bind(now)
        .execute(&mut *write.transaction)
        .await?;
        write.commit().await
    }

    /// Gives a claim back unused, as at shutdown: it does not count as an attempt.
    pub async fn release_job(&self, claim: &Claim) -> Result<(), CatalogError> {
        let mut write = self.write().await?;
        sqlx::query(
            "UPDATE jobs SET state = 'queued', progress = 0, attempt = attempt - 1, lease_until_ms = NULL, updated_ms = $3
             WHERE job_id = $1 AND attempt = $2 AND state NOT IN ('done', 'failed', 'cancelled')",
        )
        .bind(claim.job_id.to_string())
        .bind(i64::from(claim.attempt))
        .bind(unix_ms())
        .execute(&mut *write.transaction)
        .await?;
        write.commit().await
    }

    /// Ends an unfinished job of the tenant by request. `None`: it has no such job; otherwise its row afterwards.
    pub async fn cancel_job(&self, tenant: &str, job_id: Uuid) -> Result<Option<JobRow>, CatalogError> {
        let now = unix_ms();
        let mut write = self.write().await?;
        let connection = &mut *write.transaction;
        sqlx::query("UPDATE documents SET state = 'failed', updated_ms = $2 WHERE job_id = $1 AND tenant = $3")
            .bind(job_id.to_string())
            .bind(now)
            .bind(tenant)
            .execute(&mut *connection)
            .await?;
        let changed = sqlx::query(
            "UPDATE jobs SET state = 'cancelled', cancel_requested = 1, error_message = 'cancelled by request',
                 lease_until_ms = NULL, updated_ms = $2
             WHERE job_id = $1 AND tenant = $3 AND state NOT IN ('done', 'failed', 'cancelled')",
        )
        .bind(job_id.to_string())
        .bind(now)
        .bind(tenant)
        .execute(&mut *connection)
        .await?
        .rows_affected();
        if changed == 1 {
            write.commit().await?;
        } else {
            // Final, or another tenant's: the document stays as it is.
            drop(write);
        }
        self.job(tenant, job_id).await
    }

    /// Puts a failed or cancelled job of the tenant back into the queue. `None`: no such job; otherwise its row afterwards.
    ///
    /// Errors: `NotRetryable`, where it has not ended badly or its document has been uploaded again or deleted since.
    pub async fn retry_job(&self, tenant: &str, job_id: Uuid) -> Result<Option<JobRow>, CatalogError> {
        let now = unix_ms();
        let mut write = self.write().await?;
        let connection = &mut *write.transaction;
        let held = sqlx::query(
            "UPDATE documents SET state = 'processing', updated_ms = $2 WHERE job_id = $1 AND tenant = $3 AND upload IS NOT NULL",
        )
        .bind(job_id.to_string())
        .bind(now)
        .bind(tenant)
        .execute(&mut *connection)
        .await?
        .rows_affected();
        let changed = sqlx::query(
            "UPDATE jobs SET state = 'queued', progress = 0, attempts_before = attempt, cancel_requested = 0, run_after_ms = $2,
                 error_kind = NULL, error_message = NULL, updated_ms = $2
             WHERE job_id = $1 AND tenant = $3 AND state IN ('failed', 'cancelled')",
        )
        .bind(job_id.to_string())
        .bind(now)
        .bind(tenant)
        .execute(&mut *connection)
        .await?
        .rows_affected();
        if held == 1 && changed == 1 {
            write.commit().await?;
            return self.job(tenant, job_id).await;
        }
        drop(write);
        match self.job(tenant, job_id).await? {
            Some(_) => Err(CatalogError::NotRetryable),
            None => Ok(None),
        }
    }

    /// Jobs in the order they were made, after `after`, of all states or of one, of all collections or of one.
    pub async fn jobs(&self, query: &JobsQuery<'_>) -> Result<Vec<JobRow>, CatalogError> {
        let mut connection = self.read().await?;
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {JOB_COLUMNS} FROM jobs
             WHERE tenant = $1 AND ($2 = '' OR state = $2) AND ($3 < 0 OR collection_id = $3) AND job_id > $4
             ORDER BY job_id LIMIT $5"
        ));
        let rows = sqlx::query(sql)
            .bind(query.tenant)
            .bind(query.state.map_or("", JobState::as_str))
            .bind(query.collection_id.map_or(-1, as_stored))
            .bind(query.after)
            .bind(i64::from(query.limit))
            .fetch_all(&mut *connection)
            .await?;
        rows.iter().map(job_row).collect()
    }

    /// A job of the tenant.
    pub async fn job(&self, tenant: &str, job_id: Uuid) -> Result<Option<JobRow>, CatalogError> {
        let mut connection = self.read().await?;
        let sql = sqlx::AssertSqlSafe(format!("SELECT {JOB_COLUMNS} FROM jobs WHERE job_id = $1 AND tenant = $2"));
        let row = sqlx::query(sql).bind(job_id.to_string()).bind(tenant).fetch_optional(&mut *connection).await?;
        row.as_ref().map(job_row).transpose()
    }

    /// Jobs by state, for the gauge.
    pub async fn job_counts(&self) -> Result<Vec<(JobState, i64)>, CatalogError> {
        let mut connection = self.read().await?;
        let rows = sqlx::query("SELECT state, count(*) FROM jobs GROUP BY state").fetch_all(&mut *connection).await?;
        let mut counts = Vec::new();
        for row in rows {
            if let Some(state) = JobState::parse(&row.try_get::<String, _>(0)?) {
                counts.push((state, row.try_get(1)?));
            }
        }
        Ok(counts)
    }

    /// Forgets final jobs and keys that are old enough. Documents keep their last job's id.
    pub(super) async fn prune(&self) -> Result<(), CatalogError> {
        let now = unix_ms();
        let mut write = self.write().await?;
        let connection = &mut *write.transaction;
        sqlx::query("DELETE FROM jobs WHERE state IN ('done', 'failed', 'cancelled') AND updated_ms < $1")
            .bind(now - KEEP_FINAL_MS)
            .execute(&mut *connection)
            .await?;
        sqlx::query("DELETE FROM idempotency_keys WHERE created_ms < $1")
            .bind(now - KEEP_KEYS_MS)
            .execute(&mut *connection)
            .await?;
        write.commit().await
    }

    /// At open: claims of an earlier process belong to nobody, because this one holds the lock.
    pub(super) async fn release_leases(&self) -> Result<u64, CatalogError> {
        let mut write = self.write().await?;
        let released = sqlx::query(
            "UPDATE jobs SET state = 'queued', progress = 0, lease_until_ms = NULL
             WHERE state NOT IN ('queued', 'done', 'failed', 'cancelled')",
        )
        .execute(&mut *write.transaction)
        .await?
        .rows_affected();
        write.commit().await?;
        Ok(released)
    }
}

fn document_ref(row: &AnyRow) -> Result<DocumentRef, CatalogError> {
    Ok(DocumentRef {
        collection_id: get_u64(row, "collection_id")?,
        tenant: row.try_get("tenant")?,
        document_id: row.try_get("document_id")?,
    })
}

fn job_row(row: &AnyRow) -> Result<JobRow, CatalogError> {
    let state: String = row.try_get("state")?;
    let kind: Option<String> = row.try_get("error_kind")?;
    let message: Option<String> = row.try_get("error_message")?;
    Ok(JobRow {
        job_id: parse_job_id(&row.try_get::<String, _>("job_id")?)?,
        document: document_ref(row)?,
        state: JobState::parse(&state).ok_or_else(|| CatalogError::Failed(format!("job state {state:?}")))?,
        progress: row.try_get("progress")?,
        error: message.map(|message| (kind.as_deref().and_then(ErrorKind::parse), message)),
        chunk_count: get_u32(row, "chunk_count")?,
        session: row.try_get("session")?,
        attempt: get_u32(row, "attempt")?,
        created_ms: row.try_get("created_ms")?,
        updated_ms: row.try_get("updated_ms")?,
    })
}
