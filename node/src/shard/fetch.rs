//! Texts by row or by document, and the directory of documents.

use cluster_config::error::ConfigError;
use cluster_config::ids::DocumentKey;
use cluster_config::limits;
use cluster_config::operation::Chunk;

use super::keys::{self, Family};
use super::records::{DocumentRecord, RowBody, RowHead, corrupt, decode};
use super::store::Frozen;
use super::{Shard, ShardError};
use crate::replication::storage::StorageError;

/// A chunk as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredChunk {
    /// Row within the copy.
    pub row: u64,
    /// Its document.
    pub key: DocumentKey,
    /// The document's title.
    pub title: String,
    /// The chunk; its vector is empty unless asked for.
    pub chunk: Chunk,
}

/// One document of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedDocument {
    /// The document.
    pub key: DocumentKey,
    /// Its title.
    pub title: String,
    /// Chunks it has.
    pub chunk_count: u32,
    /// Entry that put it.
    pub seqno: u64,
}

impl Shard {
    /// Chunks by row, in the rows' order. Rows of deleted documents, of long replaced ones and unknown rows are left out.
    pub fn fetch_rows(&self, rows: &[u64], with_vectors: bool) -> Result<Vec<StoredChunk>, ShardError> {
        if rows.len() > limits::CHUNKS_PER_DOCUMENT_MAX {
            return Err(too_many("rows", rows.len(), limits::CHUNKS_PER_DOCUMENT_MAX));
        }
        let fetch = || {
            let frozen = self.store.freeze()?;
            let mut chunks = Vec::with_capacity(rows.len());
            for row in rows {
                chunks.extend(read_chunk(&frozen, *row, with_vectors)?);
            }
            Ok(chunks)
        };
        self.guard(fetch())
    }

    /// All chunks of the named documents, in the order of the keys and of the chunks. Documents that are not there are left out.
    pub fn fetch_documents(&self, keys: &[DocumentKey], with_vectors: bool) -> Result<Vec<StoredChunk>, ShardError> {
        if keys.len() > limits::PAGE_ROWS_MAX as usize {
            return Err(too_many("keys", keys.len(), limits::PAGE_ROWS_MAX as usize));
        }
        let fetch = || {
            let frozen = self.store.freeze()?;
            let mut chunks = Vec::new();
            for key in keys {
                let document_key = keys::document(&key.tenant, &key.document_id);
                let Some(value) = frozen.get(Family::Documents, &document_key)? else { continue };
                let record: DocumentRecord = decode("document", &value)?;
                for row in record.rows() {
                    let chunk = read_chunk(&frozen, row, with_vectors)?;
                    chunks.push(chunk.ok_or_else(|| corrupt("document", &format!("its row {row} is missing")))?);
                }
            }
            Ok(chunks)
        };
        self.guard(fetch())
    }

    /// Documents of a tenant in id order after `after`, at most `limit`, and whether there are more.
    pub fn list_documents(
        &self,
        tenant: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<ListedDocument>, bool), ShardError> {
        let limit = limit.clamp(1, limits::PAGE_ROWS_MAX as usize);
        let (all_start, end) = keys::documents_of(tenant);
        let start = after.map_or(all_start, |id| {
            // Ids have no control characters: the id with a 0 behind it is the next possible key.
            let mut next = keys::document(tenant, id);
            next.push(0);
            next
        });
        let mut documents = Vec::new();
        let mut has_more = false;
        let listed = self.store.scan(Family::Documents, &start, Some(end), |key, value| {
            if documents.len() == limit {
                has_more = true;
                return Ok(false);
            }
            let key = parse_document_key(key)?;
            let DocumentRecord { title, chunk_count, seqno, .. } = decode("document", value)?;
            documents.push(ListedDocument { key, title, chunk_count, seqno });
            Ok(true)
        });
        self.guard(listed.map_err(ShardError::from))?;
        Ok((documents, has_more))
    }
}

pub(crate) fn parse_document_key(key: &[u8]) -> Result<DocumentKey, StorageError> {
    let (tenant, document_id) = keys::parse_document(key).ok_or_else(|| corrupt("document key", "not text"))?;
    Ok(DocumentKey { tenant: tenant.to_owned(), document_id: document_id.to_owned() })
}

/// `None`: the row was never given out, or its text is gone.
pub(crate) fn read_chunk(
    frozen: &Frozen<'_>,
    row: u64,
    with_vector: bool,
) -> Result<Option<StoredChunk>, StorageError> {
    let Some(body) = frozen.get(Family::Docs, &keys::row_body(row))? else { return Ok(None) };
    let body: RowBody = decode("row body", &body)?;
    let head = frozen.get(Family::Docs, &keys::row_head(row))?;
    let head: RowHead = decode("row head", &head.ok_or_else(|| corrupt("row head", &format!("row {row} has none")))?)?;
    let vector = if with_vector {
        let vector = frozen.get(Family::Vectors, &keys::row(row))?;
        vector.ok_or_else(|| corrupt("vector", &format!("row {row} has none")))?.to_vec()
    } else {
        Vec::new()
    };
    Ok(Some(StoredChunk {
        row,
        key: DocumentKey { tenant: head.tenant, document_id: head.document_id },
        title: body.title,
        chunk: Chunk {
            ordinal: head.ordinal,
            text: body.text,
            metadata_json: body.metadata_json,
            span: body.span_start..body.span_end,
            vector,
        },
    }))
}

fn too_many(what: &str, count: usize, count_max: usize) -> ShardError {
    ConfigError::new(what, format!("{count} at once"), format!("ask for at most {count_max}")).into()
}
