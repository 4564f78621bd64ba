//! Jobs as their tenants and operators see them: listed, cancelled, tried again, forgotten.

use cluster_config::error::ErrorKind;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};
use uuid::Uuid;

use super::documents::{DocumentRef, as_stored, parse_job_id};
use super::jobs::{JobState, document_ref};
use super::{Catalog, CatalogError, get_u32, storable};

/// Final jobs and idempotency keys are forgotten after this; a job that can be tried again is kept for as long as its document is.
const KEEP_FINAL_MS: i64 = 7 * 24 * 3600 * 1000;
const KEEP_KEYS_MS: i64 = 24 * 3600 * 1000;

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

const JOB_COLUMNS: &str = "job_id, collection_id, tenant, document_id, state, progress, error_kind, error_message, chunk_count, \
                           session, attempt, created_ms, updated_ms";

/// A change of one job of a tenant, and of its document.
struct Change<'a> {
    tenant: &'a str,
    job_id: Uuid,
    now_ms: i64,
}

impl Change<'_> {
    /// Runs `sql`, whose parameters are the job ($1), the time ($2) and the tenant ($3); gives the number of rows it changed.
    async fn apply(&self, connection: &mut AnyConnection, sql: &'static str) -> Result<u64, sqlx::Error> {
        let query = sqlx::query(sql).bind(self.job_id.to_string()).bind(self.now_ms).bind(self.tenant);
        Ok(query.execute(connection).await?.rows_affected())
    }
}

impl Catalog {
    /// Ends an unfinished job of the tenant by request. `None`: it has no such job; otherwise its row afterwards.
    pub async fn cancel_job(&self, tenant: &str, job_id: Uuid) -> Result<Option<JobRow>, CatalogError> {
        let mut write = self.write().await?;
        let change = Change { tenant, job_id, now_ms: write.now_ms().await? };
        let connection = &mut *write.transaction;
        change
            .apply(
                connection,
                "UPDATE documents SET state = 'failed', updated_ms = $2 WHERE job_id = $1 AND tenant = $3",
            )
            .await?;
        let cancelled = change
            .apply(
                connection,
                "UPDATE jobs SET state = 'cancelled', cancel_requested = 1, error_message = 'cancelled by request',
                 lease_until_ms = NULL, updated_ms = $2
             WHERE job_id = $1 AND tenant = $3 AND state NOT IN ('done', 'failed', 'cancelled')",
            )
            .await?;
        if cancelled == 1 {
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
        let mut write = self.write().await?;
        let change = Change { tenant, job_id, now_ms: write.now_ms().await? };
        let connection = &mut *write.transaction;
        let held = change.apply(
            connection,
            "UPDATE documents SET state = 'processing', updated_ms = $2 WHERE job_id = $1 AND tenant = $3 AND upload IS NOT NULL",
        )
        .await?;
        let queued = change.apply(
            connection,
            "UPDATE jobs SET state = 'queued', progress = 0, attempts_before = attempt, cancel_requested = 0, run_after_ms = $2,
                 error_kind = NULL, error_message = NULL, updated_ms = $2
             WHERE job_id = $1 AND tenant = $3 AND state IN ('failed', 'cancelled')",
        )
        .await?;
        if held == 1 && queued == 1 {
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
            .bind(&*storable(query.after))
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

    /// Forgets final jobs and keys that are old enough. Documents keep their last job's id. A job that ended badly and whose upload is held
    /// stays, or nobody could try it again: one a document at most.
    pub(super) async fn prune(&self) -> Result<(), CatalogError> {
        let mut write = self.write().await?;
        let now = write.now_ms().await?;
        let connection = &mut *write.transaction;
        sqlx::query(
            "DELETE FROM jobs WHERE state IN ('done', 'failed', 'cancelled') AND updated_ms < $1
             AND (SELECT 1 FROM documents d WHERE d.job_id = jobs.job_id AND d.upload IS NOT NULL LIMIT 1) IS NULL",
        )
        .bind(now - KEEP_FINAL_MS)
        .execute(&mut *connection)
        .await?;
        sqlx::query("DELETE FROM idempotency_keys WHERE created_ms < $1")
            .bind(now - KEEP_KEYS_MS)
            .execute(&mut *connection)
            .await?;
        write.commit().await
    }
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
