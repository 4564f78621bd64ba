//! Documents as uploaded: the row, its upload until indexed, its text afterwards.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::{Catalog, CatalogError};
use crate::clock::unix_ms;

/// Most documents waiting for their job. Bounds the uploads at rest; far above what a healthy cluster ever has waiting.
const OPEN_JOBS_MAX: u32 = 50_000;

/// Whose document.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DocumentRef {
    /// Collection's id, not its name: a collection created again starts empty.
    pub collection_id: u64,
    /// Owner.
    pub tenant: String,
    /// Chosen by the caller or made by the server.
    pub document_id: String,
}

/// A document to be indexed.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Whose.
    pub document: DocumentRef,
    /// As given; empty: taken from the document itself.
    pub title: String,
    /// A JSON object.
    pub metadata_json: String,
    /// As declared, or empty.
    pub media_type: String,
    /// As declared, or empty.
    pub file_name: String,
    /// SHA-256 of `content`.
    pub content_hash: [u8; 32],
    /// The bytes.
    pub content: Vec<u8>,
    /// The caller's key and the hash of the whole request.
    pub idempotency: Option<(String, [u8; 32])>,
    /// Of its job; larger goes first.
    pub priority: i32,
}

/// What an upload became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enqueued {
    /// The document.
    pub document_id: String,
    /// Its job.
    pub job_id: Uuid,
    /// The idempotency key was known: nothing new was made.
    pub repeated: bool,
}

/// Where a document stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocumentState {
    /// Its job is not finished.
    Processing,
    /// Searchable.
    Ready,
    /// Its job failed; an earlier version may still be searchable.
    Failed,
}

impl DocumentState {
    /// As stored and as answered.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Processing => "processing",
            Self::Ready => "ready",
            Self::Failed => "failed",
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "ready" => Self::Ready,
            "failed" => Self::Failed,
            _ => Self::Processing,
        }
    }
}

/// A document's row without its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct DocumentRow {
    /// Whose.
    pub document_id: String,
    /// State.
    pub state: DocumentState,
    /// Title.
    pub title: String,
    /// A JSON object.
    pub metadata_json: String,
    /// As declared.
    pub media_type: String,
    /// As declared.
    pub file_name: String,
    /// Bytes of the upload.
    pub content_bytes: u64,
    /// Chunks, once cut.
    pub chunk_count: u32,
    /// Its last job.
    pub job_id: String,
    /// First upload, Unix milliseconds.
    pub created_ms: i64,
    /// Last change, Unix milliseconds.
    pub updated_ms: i64,
}

/// The upload of a job, to be worked on.
#[derive(Clone, Debug)]
pub struct StoredUpload {
    /// As given.
    pub title: String,
    /// A JSON object.
    pub metadata_json: String,
    /// As declared.
    pub media_type: String,
    /// As declared.
    pub file_name: String,
    /// The bytes.
    pub content: Vec<u8>,
    /// SHA-256 of `content`.
    pub content_hash: Vec<u8>,
    /// What of the document is searchable, as far as this catalog knows.
    pub indexed: Option<Indexed>,
}

/// What the searchable chunks of a document are, by hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indexed {
    /// Of the upload and of every setting that the chunks depend on.
    pub from: Vec<u8>,
    /// Of the chunks.
    pub chunks: Vec<u8>,
}

const ROW_COLUMNS: &str = "document_id, state, title, metadata_json, media_type, file_name, content_bytes, chunk_count, \
                           job_id, created_ms, updated_ms";

impl Catalog {
    /// Stores an upload and its job in one transaction. An earlier unfinished job of the same document is superseded.
    ///
    /// Errors: `KeyReused`, `QueueFull`, `Busy`, `Full`.
    pub async fn enqueue(&self, upload: Upload) -> Result<Enqueued, CatalogError> {
        let now = unix_ms();
        let mut write = self.write().await?;
        let connection = &mut *write.transaction;
        let DocumentRef { collection_id, tenant, document_id } = &upload.document;
        if let Some((key, request_hash)) = &upload.idempotency {
            let known = sqlx::query(
                "SELECT request_hash, document_id, job_id FROM idempotency_keys WHERE tenant = ? AND key = ?",
            )
            .bind(tenant)
            .bind(key)
            .fetch_optional(&mut *connection)
            .await?;
            if let Some(row) = known {
                if row.try_get::<Vec<u8>, _>(0)? != request_hash {
                    return Err(CatalogError::KeyReused);
                }
                let job_id = parse_job_id(&row.try_get::<String, _>(2)?)?;
                return Ok(Enqueued { document_id: row.try_get(1)?, job_id, repeated: true });
            }
        }
        let waiting: u32 =
            sqlx::query_scalar("SELECT count(*) FROM jobs WHERE state NOT IN ('done', 'failed', 'cancelled')")
                .fetch_one(&mut *connection)
                .await?;
        if waiting >= OPEN_JOBS_MAX {
            return Err(CatalogError::QueueFull { waiting });
        }
        let job_id = Uuid::now_v7();
        let version: i64 = sqlx::query_scalar(
            "INSERT INTO documents (collection_id, tenant, document_id, version, state, title, metadata_json, media_type,
                 file_name, content_hash, content_bytes, upload, job_id, created_ms, updated_ms)
             VALUES (?1, ?2, ?3, ?4, 'processing', ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?4, ?4)
             ON CONFLICT (collection_id, tenant, document_id) DO UPDATE SET
                 version = max(version + 1, excluded.version), state = 'processing', title = excluded.title,
                 metadata_json = excluded.metadata_json, media_type = excluded.media_type, file_name = excluded.file_name,
                 content_hash = excluded.content_hash, content_bytes = excluded.content_bytes, upload = excluded.upload,
                 job_id = excluded.job_id, updated_ms = excluded.updated_ms
             RETURNING version",
        )
        .bind(as_stored(*collection_id))
        .bind(tenant)
        .bind(document_id)
        .bind(now)
        .bind(&upload.title)
        .bind(&upload.metadata_json)
        .bind(&upload.media_type)
        .bind(&upload.file_name)
        .bind(&upload.content_hash[..])
        .bind(upload.content.len() as i64)
        .bind(&upload.content)
        .bind(job_id.to_string())
        .fetch_one(&mut *connection)
        .await?;
        cancel_open_jobs(connection, &upload.document, "superseded by a newer upload", now).await?;
        sqlx::query(
            "INSERT INTO jobs (job_id, collection_id, tenant, document_id, document_version, state, progress, attempt,
                 run_after_ms, created_ms, updated_ms, priority)
             VALUES (?1, ?2, ?3, ?4, ?5, 'queued', 0, 0, ?6, ?6, ?6, ?7)",
        )
        .bind(job_id.to_string())
        .bind(as_stored(*collection_id))
        .bind(tenant)
        .bind(document_id)
        .bind(version)
        .bind(now)
        .bind(upload.priority)
        .execute(&mut *connection)
        .await?;
        if let Some((key, request_hash)) = &upload.idempotency {
            sqlx::query(
                "INSERT INTO idempotency_keys (tenant, key, request_hash, document_id, job_id, created_ms)
                 VALUES (?, ?, ?, ?, ?, ?)",
            )
            .bind(tenant)
            .bind(key)
            .bind(&request_hash[..])
            .bind(document_id)
            .bind(job_id.to_string())
            .bind(now)
            .execute(&mut *connection)
            .await?;
        }
        let document_id = document_id.clone();
        write.commit().await?;
        Ok(Enqueued { document_id, job_id, repeated: false })
    }

    /// A document's row.
    pub async fn document(&self, document: &DocumentRef) -> Result<Option<DocumentRow>, CatalogError> {
        let mut connection = self.read().await?;
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {ROW_COLUMNS} FROM documents WHERE collection_id = ? AND tenant = ? AND document_id = ?"
        ));
        let row = sqlx::query(sql)
            .bind(as_stored(document.collection_id))
            .bind(&document.tenant)
            .bind(&document.document_id)
            .fetch_optional(&mut *connection)
            .await?;
        row.as_ref().map(document_row).transpose()
    }

    /// Documents with ids after `after`, in id order, at most `limit`.
    pub async fn documents(
        &self,
        collection_id: u64,
        tenant: &str,
        after: &str,
        limit: u32,
    ) -> Result<Vec<DocumentRow>, CatalogError> {
        let mut connection = self.read().await?;
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {ROW_COLUMNS} FROM documents WHERE collection_id = ? AND tenant = ? AND document_id > ?
             ORDER BY document_id LIMIT ?"
        ));
        let rows = sqlx::query(sql)
            .bind(as_stored(collection_id))
            .bind(tenant)
            .bind(after)
            .bind(limit)
            .fetch_all(&mut *connection)
            .await?;
        rows.iter().map(document_row).collect()
    }

    /// The extracted text, where there is one.
    pub async fn extracted_text(&self, document: &DocumentRef) -> Result<Option<String>, CatalogError> {
        let mut connection = self.read().await?;
        let text: Option<Option<String>> = sqlx::query_scalar(
            "SELECT extracted FROM documents WHERE collection_id = ? AND tenant = ? AND document_id = ?",
        )
        .bind(as_stored(document.collection_id))
        .bind(&document.tenant)
        .bind(&document.document_id)
        .fetch_optional(&mut *connection)
        .await?;
        Ok(text.flatten())
    }

    /// Removes a document and cancels its jobs. Whether it was there.
    pub async fn delete_document(&self, document: &DocumentRef) -> Result<bool, CatalogError> {
        let mut write = self.write().await?;
        let connection = &mut *write.transaction;
        cancel_open_jobs(connection, document, "the document was deleted", unix_ms()).await?;
        let deleted = sqlx::query("DELETE FROM documents WHERE collection_id = ? AND tenant = ? AND document_id = ?")
            .bind(as_stored(document.collection_id))
            .bind(&document.tenant)
            .bind(&document.document_id)
            .execute(&mut *connection)
            .await?
            .rows_affected();
        write.commit().await?;
        Ok(deleted > 0)
    }

    /// Removes all that belongs to a deleted collection.
    pub async fn delete_collection(&self, collection_id: u64) -> Result<(), CatalogError> {
        let mut write = self.write().await?;
        let connection = &mut *write.transaction;
        sqlx::query(
            "UPDATE jobs SET state = 'cancelled', error_message = 'the collection was deleted', lease_until_ms = NULL,
                 updated_ms = ?2
             WHERE collection_id = ?1 AND state NOT IN ('done', 'failed', 'cancelled')",
        )
        .bind(as_stored(collection_id))
        .bind(unix_ms())
        .execute(&mut *connection)
        .await?;
        sqlx::query("DELETE FROM documents WHERE collection_id = ?")
            .bind(as_stored(collection_id))
            .execute(&mut *connection)
            .await?;
        write.commit().await
    }
}

/// Ends every unfinished job of a document.
async fn cancel_open_jobs(
    connection: &mut sqlx::SqliteConnection,
    document: &DocumentRef,
    reason: &str,
    now: i64,
) -> Result<(), CatalogError> {
    sqlx::query(
        "UPDATE jobs SET state = 'cancelled', error_message = ?4, lease_until_ms = NULL, updated_ms = ?5
         WHERE collection_id = ?1 AND tenant = ?2 AND document_id = ?3 AND state NOT IN ('done', 'failed', 'cancelled')",
    )
    .bind(as_stored(document.collection_id))
    .bind(&document.tenant)
    .bind(&document.document_id)
    .bind(reason)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

/// SQLite has signed integers only; ids are small.
pub(super) fn as_stored(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}

pub(super) fn parse_job_id(text: &str) -> Result<Uuid, CatalogError> {
    Uuid::parse_str(text).map_err(|error| CatalogError::Failed(format!("job id {text:?}: {error}")))
}

fn document_row(row: &SqliteRow) -> Result<DocumentRow, CatalogError> {
    Ok(DocumentRow {
        document_id: row.try_get("document_id")?,
        state: DocumentState::parse(&row.try_get::<String, _>("state")?),
        title: row.try_get("title")?,
        metadata_json: row.try_get("metadata_json")?,
        media_type: row.try_get("media_type")?,
        file_name: row.try_get("file_name")?,
        content_bytes: row.try_get::<i64, _>("content_bytes")? as u64,
        chunk_count: row.try_get("chunk_count")?,
        job_id: row.try_get("job_id")?,
        created_ms: row.try_get("created_ms")?,
        updated_ms: row.try_get("updated_ms")?,
    })
}
