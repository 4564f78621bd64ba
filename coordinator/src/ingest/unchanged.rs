//! An upload of what is indexed already need not be indexed again. The catalog's word is not enough for that: points may have
//! overwritten the document, filters may have deleted it. So the shard is asked, and its chunks must be those that were acknowledged.

use std::time::{Duration, Instant};

use cluster_config::collection::Collection;
use cluster_config::ids::DocumentKey;
use cluster_config::operation::Chunk;
use cluster_config::search::Consistency;
use sha2::{Digest, Sha256};

use super::{chunk, parse};
use crate::catalog::documents::Indexed;
use crate::catalog::jobs::{Claim, Finish};
use crate::embed::Embedder;
use crate::retrieve::Retriever;
use crate::retrieve::documents::DocumentRead;
use crate::retrieve::session::Session;

/// Time for reading the document; without an answer it is indexed again.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// A document that is searchable just as it would be after indexing.
pub(super) struct Unchanged {
    title: String,
    chunk_count: u32,
    session: String,
    indexed: Indexed,
}

impl Unchanged {
    /// How its job ends.
    pub(super) fn finish(&self) -> Finish<'_> {
        Finish {
            title: &self.title,
            extracted: None,
            chunk_count: self.chunk_count,
            session: &self.session,
            indexed: self.indexed.clone(),
        }
    }
}

/// Over the upload and everything else that its chunks depend on.
pub(super) fn settings_hash(claim: &Claim, collection: &Collection, embedder: &dyn Embedder) -> Vec<u8> {
    let upload = &claim.upload;
    let whole = serde_json::json!([
        upload.content_hash,
        upload.title,
        upload.metadata_json,
        upload.media_type,
        upload.file_name,
        parse::VERSION,
        chunk::VERSION,
        embedder.name(),
        embedder.tokens_max(),
        collection.spec.fields,
    ]);
    Sha256::digest(whole.to_string()).to_vec()
}

/// Over a document's chunks as the shards keep them, but for the vectors, which follow from the texts.
pub(super) fn chunks_hash(title: &str, chunks: &[Chunk]) -> Vec<u8> {
    let chunks = chunks.iter().map(|c| (c.text.as_str(), c.metadata_json.as_str(), c.span.start, c.span.end));
    hash(title, chunks)
}

fn hash<'a>(title: &str, chunks: impl Iterator<Item = (&'a str, &'a str, u64, u64)>) -> Vec<u8> {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    add(title.as_bytes());
    for (text, metadata, start, end) in chunks {
        add(text.as_bytes());
        add(metadata.as_bytes());
        add(&start.to_be_bytes());
        add(&end.to_be_bytes());
    }
    hash.finalize().to_vec()
}

/// The document as it is searchable now, if indexing the claim's upload would change nothing.
pub(super) async fn find(
    retriever: &Retriever,
    claim: &Claim,
    collection: &Collection,
    from: &[u8],
) -> Option<Unchanged> {
    let indexed = claim.upload.indexed.as_ref().filter(|indexed| indexed.from == from)?;
    let key = DocumentKey { tenant: claim.document.tenant.clone(), document_id: claim.document.document_id.clone() };
    let read = DocumentRead {
        consistency: Consistency::Strong,
        session: Session::default(),
        deadline: Instant::now() + READ_TIMEOUT,
    };
    let (chunks, session) = match retriever.fetch_document(collection, &key, &read).await {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(job_id = %claim.job_id, %error, "whether the document is unchanged is not known");
            return None;
        }
    };
    let title = chunks.first()?.title.clone();
    let stored = chunks.iter().map(|c| (c.text.as_str(), c.metadata_json.as_str(), c.span.start, c.span.end));
    let is_same = hash(&title, stored) == indexed.chunks;
    is_same.then(|| Unchanged {
        title,
        chunk_count: chunks.len() as u32,
        session: session.to_string(),
        indexed: indexed.clone(),
    })
}
