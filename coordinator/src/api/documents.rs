//! `POST/GET/DELETE /api/v1/documents`: whole documents, chunked and embedded by us.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{FromRequest, Multipart, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use cluster_config::collection::Collection;
use cluster_config::error::ErrorKind;
use cluster_config::ids::DocumentKey;
use cluster_config::limits;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::auth::Caller;
use super::error::{ApiResult, ErrorBody};
use super::json::{Buffered, StrictQuery, check_declared_length, check_json_type, json, parse_buffered};
use super::points::{WrittenReply, check_metadata, check_title, written_reply};
use super::request_id::current_request_id;
use super::search::{DEFAULT_COLLECTION, read_consistency, read_session};
use crate::catalog::documents::{DocumentRef, DocumentRow, Upload};
use crate::error::{Error, Result};
use crate::ingest::parse::Format;
use crate::retrieve::documents::DocumentRead;
use crate::services::Services;

/// Bytes that a form's other fields and boundaries may add to the file.
const FORM_OVERHEAD_BYTES: usize = 256 * 1024;
/// Longest idempotency key.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;

/// A document as text.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DocumentBody {
    /// Chosen by the caller, or made here: from all that is sent, so that the same request again is the same document.
    pub id: Option<String>,
    /// Shown in citations.
    pub title: Option<String>,
    /// The text.
    pub text: String,
    /// Metadata of all its chunks.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// Collection; `default` if not given.
    pub collection: Option<String>,
}

/// The answer to an upload: work goes on behind it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AcceptedReply {
    /// The document.
    pub id: String,
    /// Always `processing`.
    pub status: &'static str,
    /// Ask `GET /api/v1/jobs/{job_id}` how it goes.
    pub job_id: String,
    /// Stands in the log, too.
    pub request_id: String,
}

/// Where a document stands.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct DocumentReply {
    /// Its id.
    pub id: String,
    /// `processing`, `ready` or `failed`.
    pub status: &'static str,
    /// Its title.
    pub title: String,
    /// Chunks that are searchable now.
    pub chunk_count: u32,
    /// Whether any version of it is searchable now.
    pub searchable: bool,
    /// Its metadata; in the document's own answer only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
    /// Its last job, where it came through this coordinator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    /// Bytes uploaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// First upload, Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_ms: Option<i64>,
    /// Last change, Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_ms: Option<i64>,
    /// Extracted text, if asked for and kept here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Send it with later reads to never see less than now; in the document's own answer only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// Which document.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DocumentQuery {
    /// Collection; `default` if not given.
    pub collection: Option<String>,
    /// With the extracted text.
    pub include_text: Option<bool>,
    /// `eventual` (default), `session` or `strong`.
    pub consistency: Option<String>,
    /// Session token of an earlier answer.
    pub session: Option<String>,
}

/// Which document is to go.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteDocumentQuery {
    /// Collection; `default` if not given.
    pub collection: Option<String>,
    /// Session token of an earlier answer; it comes back raised.
    pub session: Option<String>,
}

/// What both forms of upload become.
struct Incoming {
    id: Option<String>,
    title: String,
    metadata: Option<Map<String, Value>>,
    collection: Option<String>,
    media_type: String,
    file_name: String,
    content: Vec<u8>,
}

/// Takes a document: JSON, or multipart with the parts `file`, `id`, `title`, `metadata`, `collection`.
#[utoipa::path(post, path = "/api/v1/documents", tag = "documents", request_body = DocumentBody,
    params(("Idempotency-Key" = Option<String>, Header, description = "the same key with the same request makes one job; a key is forgotten after 24 hours")),
    responses((status = 202, body = AcceptedReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn post_document(
    State(services): State<Arc<Services>>,
    caller: Caller,
    request: Request,
) -> ApiResult<Response> {
    let idempotency_key = read_idempotency_key(request.headers())?;
    let (incoming, _held) = receive(&services, request).await?;
    let collection = services.collection(incoming.collection.as_deref().unwrap_or(DEFAULT_COLLECTION))?;
    crate::ingest::check_embedder(&collection, services.embedder.as_ref())?;
    let upload = check_upload(&caller, &collection, incoming, idempotency_key).await?;
    let enqueued = services.ingest.enqueue(upload).await?;
    let reply = AcceptedReply {
        id: enqueued.document_id,
        status: "processing",
        job_id: enqueued.job_id.to_string(),
        request_id: current_request_id(),
    };
    Ok(json(StatusCode::ACCEPTED, &reply))
}

fn read_idempotency_key(headers: &HeaderMap) -> Result<Option<String>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| !key.is_empty() && key.len() <= IDEMPOTENCY_KEY_BYTES_MAX);
    let hint = format!("use 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters");
    key.map(|key| Some(key.to_owned())).ok_or_else(|| Error::field("Idempotency-Key", "not a key", hint))
}

/// Buffers the upload within the budget and takes it apart. The budget's share is held by the second part.
async fn receive(services: &Arc<Services>, request: Request) -> Result<(Incoming, Option<Buffered>)> {
    let (parts, body) = request.into_parts();
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let bytes_max = limits::DOCUMENT_BYTES_MAX + FORM_OVERHEAD_BYTES;
    check_declared_length(&parts.headers, bytes_max)?;
    if content_type.to_ascii_lowercase().starts_with("multipart/form-data") {
        let buffered = services.body_budget.read(&parts.headers, body, bytes_max).await?;
        let rebuilt = Request::from_parts(parts, axum::body::Body::from(buffered.bytes.clone()));
        return Ok((read_form(rebuilt).await?, Some(buffered)));
    }
    check_json_type(&parts.headers)?;
    let buffered = services.body_budget.read(&parts.headers, body, bytes_max).await?;
    let body: DocumentBody = parse_buffered(buffered).await?;
    let incoming = Incoming {
        id: body.id,
        title: body.title.unwrap_or_default(),
        metadata: body.metadata,
        collection: body.collection,
        media_type: "text/plain".to_owned(),
        file_name: String::new(),
        content: body.text.into_bytes(),
    };
    Ok((incoming, None))
}

async fn read_form(request: Request) -> Result<Incoming> {
    let malformed = |text: String| Error::field("body", format!("malformed form: {text}"), "send multipart/form-data");
    let mut form = Multipart::from_request(request, &()).await.map_err(|error| malformed(error.body_text()))?;
    let mut incoming = Incoming {
        id: None,
        title: String::new(),
        metadata: None,
        collection: None,
        media_type: String::new(),
        file_name: String::new(),
        content: Vec::new(),
    };
    let mut has_file = false;
    while let Some(part) = form.next_field().await.map_err(|error| malformed(error.body_text()))? {
        let name = part.name().unwrap_or("").to_owned();
        if name == "file" {
            if has_file {
                let hint = "send each document by itself: a form takes one";
                return Err(Error::field("file", "more than one", hint));
            }
            incoming.file_name = part.file_name().unwrap_or("").chars().take(255).collect();
            incoming.media_type = part.content_type().unwrap_or("").chars().take(255).collect();
            incoming.content = part.bytes().await.map_err(|error| malformed(error.body_text()))?.to_vec();
            has_file = true;
            continue;
        }
        let text = part.text().await.map_err(|error| malformed(error.body_text()))?;
        match name.as_str() {
            "id" => incoming.id = Some(text),
            "title" => incoming.title = text,
            "collection" => incoming.collection = Some(text),
            "metadata" => {
                let parsed = serde_json::from_str(&text);
                incoming.metadata = Some(parsed.map_err(|error| {
                    Error::field("metadata", format!("malformed JSON: {error}"), "send a JSON object")
                })?);
            }
            other => {
                let hint = "the form takes file, id, title, metadata and collection";
                return Err(Error::field(other, "unknown form field", hint));
            }
        }
    }
    if !has_file {
        return Err(Error::field("file", "missing", "send the document as the form field file"));
    }
    Ok(incoming)
}

/// Checks what can be checked without parsing the document; hashes off the reactor.
async fn check_upload(
    caller: &Caller,
    collection: &Collection,
    incoming: Incoming,
    idempotency_key: Option<String>,
) -> Result<Upload> {
    if incoming.content.len() > limits::DOCUMENT_BYTES_MAX {
        let text = format!("the document has {} bytes, at most {}", incoming.content.len(), limits::DOCUMENT_BYTES_MAX);
        return Err(Error::refused(ErrorKind::TooLarge, text, "split the document"));
    }
    let field = if incoming.file_name.is_empty() { "text" } else { "file" };
    if incoming.content.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::field(field, "the document has no text", "send a document with text"));
    }
    Format::detect(&incoming.content, &incoming.media_type, &incoming.file_name)?;
    let given = incoming.id.map(|id| caller.document_key("id", id)).transpose()?.map(|key| key.document_id);
    check_title("title", &incoming.title)?;
    let metadata_json = check_metadata("metadata", &collection.spec, incoming.metadata)?;
    let (collection_id, tenant) = (collection.id.0, caller.tenant.to_string());
    crate::ingest::blocking(move || {
        let content_hash: [u8; 32] = Sha256::digest(&incoming.content).into();
        // Over all that makes the request; an id made here is not part of it.
        let whole = serde_json::json!([
            collection_id,
            given.as_deref().unwrap_or_default(),
            incoming.title,
            metadata_json,
            incoming.media_type,
            incoming.file_name,
            content_hash,
        ]);
        let request_hash: [u8; 32] = Sha256::digest(whole.to_string()).into();
        let document_id = match (given, &idempotency_key) {
            (Some(id), _) => id,
            // The key says what is the same.
            (None, Some(_)) => Uuid::now_v7().to_string(),
            (None, None) => derived_id(&tenant, &request_hash),
        };
        Ok(Upload {
            document: DocumentRef { collection_id, tenant, document_id },
            title: incoming.title,
            metadata_json,
            media_type: incoming.media_type,
            file_name: incoming.file_name,
            content_hash,
            content: incoming.content,
            idempotency: idempotency_key.map(|key| (key, request_hash)),
            priority: 0,
        })
    })
    .await
}

/// The id of a document that was sent without one: the same for the same request of the same tenant, so that sending it twice makes one
/// document. A UUID of version 8, which is for ids of one's own making.
fn derived_id(tenant: &str, request_hash: &[u8; 32]) -> String {
    let hash = Sha256::new().chain_update(tenant).chain_update(request_hash).finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

/// Where a document stands.
#[utoipa::path(get, path = "/api/v1/documents/{id}", tag = "documents",
    params(("id" = String, Path, description = "the document"), DocumentQuery),
    responses((status = 200, body = DocumentReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn get_document(
    State(services): State<Arc<Services>>,
    caller: Caller,
    Path(id): Path<String>,
    StrictQuery(query): StrictQuery<DocumentQuery>,
) -> ApiResult<Response> {
    let collection = services.collection(query.collection.as_deref().unwrap_or(DEFAULT_COLLECTION))?;
    let key = caller.document_key("id", id)?;
    let document = document_ref(&collection, &key);
    let read = document_read(&services, query.consistency.as_deref(), query.session.as_deref())?;
    let row = services.catalog.document(&document).await?;
    let (chunks, session) = services.retriever.fetch_document(&collection, &key, &read).await?;
    if row.is_none() && chunks.is_empty() {
        let text = format!("document {:?} does not exist in collection {:?}", key.document_id, collection.spec.name);
        return Err(Error::refused(ErrorKind::NotFound, text, "GET /api/v1/documents lists what exists").into());
    }
    let mut reply = match row {
        Some(row) => from_row(row, Some(chunks.len() as u32)),
        None => DocumentReply { searchable: true, ..listed_reply(&key.document_id, "", chunks.len() as u32) },
    };
    if let Some(first) = chunks.first() {
        if reply.title.is_empty() {
            reply.title = first.title.clone();
        }
        // The catalog's is the document's own; a chunk's has its page, too.
        if reply.metadata.is_none() {
            reply.metadata = serde_json::from_str(&first.metadata_json).ok();
        }
    }
    if query.include_text.unwrap_or(false) {
        reply.text = services.catalog.extracted_text(&document).await?;
        if reply.text.is_none() && chunks.len() == 1 {
            reply.text = chunks.first().map(|chunk| chunk.text.clone());
        }
    }
    reply.session = Some(session.to_string());
    Ok(json(StatusCode::OK, &reply))
}

/// Deletes a document everywhere. Safe to repeat.
#[utoipa::path(delete, path = "/api/v1/documents/{id}", tag = "documents",
    params(("id" = String, Path, description = "the document"), DeleteDocumentQuery),
    responses((status = 200, body = WrittenReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn delete_document(
    State(services): State<Arc<Services>>,
    caller: Caller,
    Path(id): Path<String>,
    StrictQuery(query): StrictQuery<DeleteDocumentQuery>,
) -> ApiResult<Response> {
    let collection = services.collection(query.collection.as_deref().unwrap_or(DEFAULT_COLLECTION))?;
    let key = caller.document_key("id", id)?;
    let mut session = read_session(query.session.as_deref())?;
    let deadline = Instant::now() + services.default_timeout;
    let written = services.ingest.delete(&collection, &key.tenant, vec![key.document_id], deadline).await?;
    session.merge(&written.session);
    Ok(json(StatusCode::OK, &written_reply(&written, session, false)))
}

pub(super) fn document_read(
    services: &Services,
    consistency: Option<&str>,
    session: Option<&str>,
) -> Result<DocumentRead> {
    Ok(DocumentRead {
        consistency: read_consistency(consistency)?,
        session: read_session(session)?,
        deadline: Instant::now() + services.default_timeout,
    })
}

fn document_ref(collection: &Collection, key: &DocumentKey) -> DocumentRef {
    DocumentRef { collection_id: collection.id.0, tenant: key.tenant.clone(), document_id: key.document_id.clone() }
}

pub(super) fn listed_reply(id: &str, title: &str, chunk_count: u32) -> DocumentReply {
    DocumentReply {
        id: id.to_owned(),
        status: "ready",
        title: title.to_owned(),
        chunk_count,
        searchable: chunk_count > 0,
        metadata: None,
        job_id: None,
        bytes: None,
        created_ms: None,
        updated_ms: None,
        text: None,
        session: None,
    }
}

pub(super) fn from_row(row: DocumentRow, searchable_chunks: Option<u32>) -> DocumentReply {
    let chunk_count = searchable_chunks.unwrap_or(row.chunk_count);
    DocumentReply {
        id: row.document_id,
        status: row.state.as_str(),
        title: row.title,
        chunk_count,
        searchable: chunk_count > 0,
        metadata: serde_json::from_str(&row.metadata_json).ok(),
        job_id: Some(row.job_id),
        bytes: Some(row.content_bytes),
        created_ms: Some(row.created_ms),
        updated_ms: Some(row.updated_ms),
        text: None,
        session: None,
    }
}
