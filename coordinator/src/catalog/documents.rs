//! Documents as uploaded: the row, its upload until indexed, its text afterwards.

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};
use uuid::Uuid;

use super::tenants::count_stored;
use super::{Catalog, CatalogError, get_u32, get_u64, storable};

/// Most documents waiting for their job. Bounds the uploads at rest; far above what a healthy cluster ever has waiting.
pub const OPEN_JOBS_MAX: u32 = 50_000;
/// How many times the free places a tenant's own may be: a lone tenant gets three quarters, and who comes after it finds room.
const OPEN_JOBS_SHARE: i64 = 3;

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

const COUNT_OPEN_JOBS: &str = "SELECT count(*) FROM jobs WHERE state NOT IN ('done', 'failed', 'cancelled')";

const COUNT_OPEN_JOBS_OF: &str = "SELECT count(*) FROM jobs
    WHERE tenant = $1 AND state IN ('queued', 'parsing', 'chunking', 'embedding', 'indexing')";

/// Whether so many wait that it matters whose they are: below, no tenant can have more than its share.
fn needs_share(waiting: i64) -> bool {
    let most = i64::from(OPEN_JOBS_MAX);
    waiting >= most - most / (OPEN_JOBS_SHARE + 1)
}

/// Whether a tenant that has `own` of `waiting` jobs may add one: while it has fewer than [`OPEN_JOBS_SHARE`] times the free places.
fn has_room(waiting: i64, own: i64) -> bool {
    own < OPEN_JOBS_SHARE * (i64::from(OPEN_JOBS_MAX) - waiting)
}

const ROW_COLUMNS: &str = "document_id, state, title, metadata_json, media_type, file_name, content_bytes, chunk_count, \
                           job_id, created_ms, updated_ms";

impl Catalog {
    /// Stores an upload and its job in one transaction. An earlier unfinished job of the same document is superseded.
    ///
    /// Errors: `KeyReused`, `QueueFull`, `Busy`, `Full`.
    pub async fn enqueue(&self, upload: Upload) -> Result<Enqueued, CatalogError> {
        let mut write = self.write().await?;
        let now = write.now_ms().await?;
        let connection = &mut *write.transaction;
        let DocumentRef { collection_id, tenant, document_id } = &upload.document;
        let job_id = Uuid::now_v7();
        if let Some((key, request_hash)) = &upload.idempotency {
            // Inserting first makes two requests with one key wait for each other, on either engine.
            let inserted = sqlx::query(
                "INSERT INTO idempotency_keys (tenant, key, request_hash, document_id, job_id, created_ms)
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (tenant, key) DO NOTHING",
            )
            .bind(tenant)
            .bind(key)
            .bind(&request_hash[..])
            .bind(document_id)
            .bind(job_id.to_string())
            .bind(now)
            .execute(&mut *connection)
            .await?
            .rows_affected();
            if inserted == 0 {
                return known_request(connection, tenant, key, request_hash).await;
            }
        }
        let waiting: i64 = sqlx::query_scalar(COUNT_OPEN_JOBS).fetch_one(&mut *connection).await?;
        if needs_share(waiting) {
            let own: i64 = sqlx::query_scalar(COUNT_OPEN_JOBS_OF).bind(tenant).fetch_one(&mut *connection).await?;
            if !has_room(waiting, own) {
                return Err(CatalogError::QueueFull { waiting: u32::try_from(waiting).unwrap_or(OPEN_JOBS_MAX) });
            }
        }
        let stored = sqlx::query(
            "INSERT INTO documents (collection_id, tenant, document_id, version, state, title, metadata_json, media_type,
                 file_name, content_hash, content_bytes, upload, job_id, created_ms, updated_ms)
             VALUES ($1, $2, $3, $4, 'processing', $5, $6, $7, $8, $9, $10, $11, $12, $4, $4)
             ON CONFLICT (collection_id, tenant, document_id) DO UPDATE SET
                 version = CASE WHEN documents.version >= excluded.version THEN documents.version + 1
                                ELSE excluded.version END,
                 state = 'processing', title = excluded.title,
                 metadata_json = excluded.metadata_json, media_type = excluded.media_type, file_name = excluded.file_name,
                 content_hash = excluded.content_hash, content_bytes = excluded.content_bytes, upload = excluded.upload,
                 job_id = excluded.job_id, updated_ms = excluded.updated_ms, replaced_bytes = documents.content_bytes
             RETURNING version, replaced_bytes",
        )
        .bind(as_stored(*collection_id))
        .bind(tenant)
        .bind(document_id)
        .bind(now)
        .bind(&*storable(&upload.title))
        .bind(&upload.metadata_json)
        .bind(&*storable(&upload.media_type))
        .bind(&*storable(&upload.file_name))
        .bind(&upload.content_hash[..])
        .bind(upload.content.len() as i64)
        .bind(&upload.content[..])
        .bind(job_id.to_string())
        .fetch_one(&mut *connection)
        .await?;
        let (version, replaced_bytes): (i64, i64) = (stored.try_get("version")?, stored.try_get("replaced_bytes")?);
        cancel_open_jobs(connection, &upload.document, "superseded by a newer upload", now).await?;
        sqlx::query(
            "INSERT INTO jobs (job_id, collection_id, tenant, document_id, document_version, state, progress, attempt,
                 run_after_ms, created_ms, updated_ms, priority)
             VALUES ($1, $2, $3, $4, $5, 'queued', 0, 0, $6, $6, $6, $7)",
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
        count_stored(connection, tenant, upload.content.len() as i64 - replaced_bytes).await?;
        let document_id = document_id.clone();
        write.commit().await?;
        Ok(Enqueued { document_id, job_id, repeated: false })
    }

    /// A document's row.
    pub async fn document(&self, document: &DocumentRef) -> Result<Option<DocumentRow>, CatalogError> {
        let mut connection = self.read().await?;
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {ROW_COLUMNS} FROM documents WHERE collection_id = $1 AND tenant = $2 AND document_id = $3"
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
            "SELECT {ROW_COLUMNS} FROM documents WHERE collection_id = $1 AND tenant = $2 AND document_id > $3
             ORDER BY document_id LIMIT $4"
        ));
        let rows = sqlx::query(sql)
            .bind(as_stored(collection_id))
            .bind(tenant)
            .bind(&*storable(after))
            .bind(i64::from(limit))
            .fetch_all(&mut *connection)
            .await?;
        rows.iter().map(document_row).collect()
    }

    /// Documents first uploaded before `before` (a time and an id, of the last one seen), newest first, at most `limit`.
    pub async fn newest_documents(
        &self,
        collection_id: u64,
        tenant: &str,
        before: Option<(i64, &str)>,
        limit: u32,
    ) -> Result<Vec<DocumentRow>, CatalogError> {
        let (created_ms, document_id) = before.unwrap_or((i64::MAX, ""));
        let mut connection = self.read().await?;
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {ROW_COLUMNS} FROM documents
             WHERE collection_id = $1 AND tenant = $2 AND (created_ms, document_id) < ($3, $4)
             ORDER BY created_ms DESC, document_id DESC LIMIT $5"
        ));
        let rows = sqlx::query(sql)
            .bind(as_stored(collection_id))
            .bind(tenant)
            .bind(created_ms)
            .bind(&*storable(document_id))
            .bind(i64::from(limit))
            .fetch_all(&mut *connection)
            .await?;
        rows.iter().map(document_row).collect()
    }

    /// Documents whose title begins with `prefix`, after `after` (a title and an id, of the last one seen), in the order of their titles'
    /// bytes, at most `limit`.
    pub async fn titled_documents(
        &self,
        collection_id: u64,
        tenant: &str,
        prefix: &str,
        after: Option<(&str, &str)>,
        limit: u32,
    ) -> Result<Vec<DocumentRow>, CatalogError> {
        // Nothing that begins with the prefix is behind this.
        let end = format!("{prefix}{}", char::MAX);
        let (title, document_id) = after.unwrap_or((prefix, ""));
        let mut connection = self.read().await?;
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {ROW_COLUMNS} FROM documents
             WHERE collection_id = $1 AND tenant = $2 AND (title, document_id) > ($3, $4) AND title < $5
             ORDER BY title, document_id LIMIT $6"
        ));
        let rows = sqlx::query(sql)
            .bind(as_stored(collection_id))
            .bind(tenant)
            .bind(&*storable(title))
            .bind(&*storable(document_id))
            .bind(&*storable(&end))
            .bind(i64::from(limit))
            .fetch_all(&mut *connection)
            .await?;
        rows.iter().map(document_row).collect()
    }

    /// The extracted text, where there is one.
    pub async fn extracted_text(&self, document: &DocumentRef) -> Result<Option<String>, CatalogError> {
        let mut connection = self.read().await?;
        let text: Option<Option<String>> = sqlx::query_scalar(
            "SELECT extracted FROM documents WHERE collection_id = $1 AND tenant = $2 AND document_id = $3",
        )
        .bind(as_stored(document.collection_id))
        .bind(&document.tenant)
        .bind(&document.document_id)
        .fetch_optional(&mut *connection)
        .await?;
        Ok(text.flatten())
    }
}

/// What an idempotency key was used for.
async fn known_request(
    connection: &mut AnyConnection,
    tenant: &str,
    key: &str,
    request_hash: &[u8; 32],
) -> Result<Enqueued, CatalogError> {
    let row =
        sqlx::query("SELECT request_hash, document_id, job_id FROM idempotency_keys WHERE tenant = $1 AND key = $2")
            .bind(tenant)
            .bind(key)
            .fetch_one(connection)
            .await?;
    if row.try_get::<Vec<u8>, _>("request_hash")? != request_hash {
        return Err(CatalogError::KeyReused);
    }
    let job_id = parse_job_id(&row.try_get::<String, _>("job_id")?)?;
    Ok(Enqueued { document_id: row.try_get("document_id")?, job_id, repeated: true })
}

/// Ends every unfinished job of a document.
async fn cancel_open_jobs(
    connection: &mut AnyConnection,
    document: &DocumentRef,
    reason: &str,
    now: i64,
) -> Result<(), CatalogError> {
    sqlx::query(
        "UPDATE jobs SET state = 'cancelled', error_message = $4, lease_until_ms = NULL, updated_ms = $5
         WHERE collection_id = $1 AND tenant = $2 AND document_id = $3 AND state NOT IN ('done', 'failed', 'cancelled')",
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

/// Both engines have signed integers only; ids are small.
pub(super) fn as_stored(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}

pub(super) fn parse_job_id(text: &str) -> Result<Uuid, CatalogError> {
    Uuid::parse_str(text).map_err(|error| CatalogError::Failed(format!("job id {text:?}: {error}")))
}

fn document_row(row: &AnyRow) -> Result<DocumentRow, CatalogError> {
    Ok(DocumentRow {
        document_id: row.try_get("document_id")?,
        state: DocumentState::parse(&row.try_get::<String, _>("state")?),
        title: row.try_get("title")?,
        metadata_json: row.try_get("metadata_json")?,
        media_type: row.try_get("media_type")?,
        file_name: row.try_get("file_name")?,
        content_bytes: get_u64(row, "content_bytes")?,
        chunk_count: get_u32(row, "chunk_count")?,
        job_id: row.try_get("job_id")?,
        created_ms: row.try_get("created_ms")?,
        updated_ms: row.try_get("updated_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_the_last_places_of_the_queue_for_itself() {
        let most = i64::from(OPEN_JOBS_MAX);
        for (waiting, own, expected) in [
            (0, 0, true),
            (most / 4 * 3 - 1, most / 4 * 3 - 1, true),
            (most / 4 * 3, most / 4 * 3, false),
            (most / 4 * 3, 0, true),
            (most - 1, 2, true),
            (most - 1, 3, false),
            (most, 0, false),
        ] {
            assert_eq!(has_room(waiting, own), expected, "{own} of {waiting}");
        }
        let unshared = (0..=most).take_while(|waiting| !needs_share(*waiting));
        assert!(unshared.last().is_some_and(|waiting| has_room(waiting, waiting)), "even if all are its own");
    }
}
