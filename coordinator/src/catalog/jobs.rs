//! The job queue as workers see it: claim, progress, end. A table of ours beside the documents (see DESIGN.md for why not a library).
//!
//! A claim raises `attempt` and takes a lease; every later change names the attempt and is refused once another claim, a
//! cancellation or a newer upload has come in between. So a worker that slept through its lease changes nothing. A lease ends by the
//! database's clock, so that coordinators whose own clocks differ agree on its end.

use cluster_config::error::ErrorKind;
use sqlx::Row;
use sqlx::any::AnyRow;
use uuid::Uuid;

use super::documents::{DocumentRef, Indexed, StoredUpload, as_stored, parse_job_id};
use super::{Catalog, CatalogError, get_u32, get_u64, storable};

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

impl Catalog {
    /// The job that may run and is first by priority, then by age, claimed. A document's jobs run one at a time, because each upload ends the one before it.
    pub async fn claim_job(&self) -> Result<Option<Claim>, CatalogError> {
        let mut write = self.write().await?;
        let now = write.now_ms().await?;
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
            .bind(now + self.lease_ms())
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
        let mut write = self.write().await?;
        let now = write.now_ms().await?;
        let changed = sqlx::query(
            "UPDATE jobs SET state = $3, progress = $4, chunk_count = $5, lease_until_ms = $6, updated_ms = $7
             WHERE job_id = $1 AND attempt = $2 AND cancel_requested = 0 AND state NOT IN ('done', 'failed', 'cancelled')",
        )
        .bind(claim.job_id.to_string())
        .bind(i64::from(claim.attempt))
        .bind(state.as_str())
        .bind(progress)
        .bind(i64::from(chunk_count))
        .bind(now + self.lease_ms())
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
        let now = write.now_ms().await?;
        let changed = sqlx::query(
            "UPDATE jobs SET lease_until_ms = $3
             WHERE job_id = $1 AND attempt = $2 AND cancel_requested = 0 AND state NOT IN ('done', 'failed', 'cancelled')",
        )
        .bind(claim.job_id.to_string())
        .bind(i64::from(claim.attempt))
        .bind(now + self.lease_ms())
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
        let mut write = self.write().await?;
        let now = write.now_ms().await?;
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
        sqlx::query("DELETE FROM job_stages WHERE job_id = $1")
            .bind(claim.job_id.to_string())
            .execute(&mut *connection)
            .await?;
        write.commit().await?;
        Ok(Ok(()))
    }

    /// The job cannot succeed. The upload is kept, so that the document can be tried again after a repair.
    pub async fn fail_job(&self, claim: &Claim, kind: ErrorKind, message: &str) -> Result<(), CatalogError> {
        let mut write = self.write().await?;
        let now = write.now_ms().await?;
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
        let mut write = self.write().await?;
        let now = write.now_ms().await?;
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
        let now = write.now_ms().await?;
        sqlx::query(
            "UPDATE jobs SET state = 'queued', progress = 0, attempt = attempt - 1, lease_until_ms = NULL, updated_ms = $3
             WHERE job_id = $1 AND attempt = $2 AND state NOT IN ('done', 'failed', 'cancelled')",
        )
        .bind(claim.job_id.to_string())
        .bind(i64::from(claim.attempt))
        .bind(now)
        .execute(&mut *write.transaction)
        .await?;
        write.commit().await
    }

    fn lease_ms(&self) -> i64 {
        i64::try_from(self.lease().as_millis()).unwrap_or(i64::MAX)
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

pub(super) fn document_ref(row: &AnyRow) -> Result<DocumentRef, CatalogError> {
    Ok(DocumentRef {
        collection_id: get_u64(row, "collection_id")?,
        tenant: row.try_get("tenant")?,
        document_id: row.try_get("document_id")?,
    })
}
