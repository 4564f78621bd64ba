//! Documents on their way in. [`Ingest::run`] is the straight line of one document: parse > chunk > embed > write; `worker` drives
//! it from the durable queue, `write` brings operations to the shards.
//!
//! A document becomes visible at once and whole, because all its chunks are one operation of one shard.

pub mod chunk;
pub mod encode;
pub mod parse;
pub mod sandbox;
pub mod worker;
pub mod write;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::collection::{Collection, CollectionSpec, FieldType};
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CollectionId, DocumentKey};
use cluster_config::limits;
use cluster_config::operation::{Chunk, Operation};
use serde_json::{Map, Value};
use tokio::sync::{Mutex, MutexGuard, Notify, watch};

use self::chunk::TextChunk;
use self::parse::{Format, Parsed};
use self::sandbox::Sandbox;
use self::write::{Writer, Written};
use crate::catalog::Catalog;
use crate::catalog::documents::{DocumentRef, Enqueued, StoredUpload, Upload};
use crate::catalog::jobs::{Claim, JobState};
use crate::cluster::view::ClusterView;
use crate::embed::Embedder;
use crate::error::{Error, Result};

/// Chunks embedded in one call: a few micro-batches, so that progress moves and queries get their turn in between.
const EMBED_STEP_CHUNKS: usize = 64;
/// Time for embedding one step on a busy machine.
const EMBED_STEP_TIMEOUT: Duration = Duration::from_secs(120);
/// Time for a document's write, a failover (7 s) included several times over.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Metadata field of a chunk that says on which page or slide it begins, from 1.
pub const PAGE_FIELD: &str = "page";
/// Locks that documents share by hash: more than workers and deletions at one time.
const DOCUMENT_LOCKS: usize = 256;

/// The way in. Shared by the API and the workers.
pub struct Ingest {
    catalog: Catalog,
    view: Arc<ClusterView>,
    embedder: Arc<dyn Embedder>,
    writer: Arc<Writer>,
    sandbox: Sandbox,
    /// Wakes a worker.
    queued: Notify,
    /// Moves at every change of a job.
    changed: watch::Sender<u64>,
    document_locks: Vec<Mutex<()>>,
}

/// Why a job's run stopped.
#[derive(Debug)]
enum Stop {
    /// Cancelled, superseded, or claimed by another: nothing more to do.
    ClaimLost,
    /// It failed.
    Error(Error),
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

impl Ingest {
    /// Ties the parts together; workers are started by [`worker::run`].
    pub fn new(
        catalog: Catalog,
        view: Arc<ClusterView>,
        embedder: Arc<dyn Embedder>,
        writer: Arc<Writer>,
        sandbox: Sandbox,
    ) -> Self {
        let document_locks = (0..DOCUMENT_LOCKS).map(|_| Mutex::new(())).collect();
        let (queued, changed) = (Notify::new(), watch::Sender::new(0));
        Self { catalog, view, embedder, writer, sandbox, queued, changed, document_locks }
    }

    /// Stores an upload durably and wakes a worker.
    pub async fn enqueue(&self, upload: Upload) -> Result<Enqueued> {
        let enqueued = self.catalog.enqueue(upload).await?;
        self.queued.notify_one();
        self.announce();
        Ok(enqueued)
    }

    /// Removes a document: no job of it writes after this, and every copy of its shard has forgotten it.
    pub async fn delete(
        &self,
        collection: &Collection,
        document: &DocumentRef,
        deadline: Instant,
    ) -> Result<(bool, Written)> {
        let _lock = self.lock(document).await;
        let was_known = self.catalog.delete_document(document).await?;
        self.announce();
        let key = DocumentKey { tenant: document.tenant.clone(), document_id: document.document_id.clone() };
        let seed = uuid::Uuid::new_v4();
        let written = self.writer.write(collection, vec![Operation::DeleteDocument { key }], seed, deadline).await?;
        Ok((was_known, written))
    }

    /// A receiver that moves whenever any job has changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Tells listeners that some job has changed.
    pub fn announce(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// One at a time per document: between the last check of a claim and its write, nobody deletes the document.
    async fn lock(&self, document: &DocumentRef) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        document.hash(&mut hasher);
        self.document_locks[hasher.finish() as usize % DOCUMENT_LOCKS].lock().await
    }

    /// One document, from its upload to searchable.
    ///
    /// Safe to repeat after a crash at any point: the write carries the job's id as its operation id.
    async fn run(&self, claim: &Claim) -> Result<(), Stop> {
        let collection = self.collection(claim)?;
        self.check_embedder(&collection)?;
        let parsed = self.parse(claim).await?;

        self.advance(claim, JobState::Chunking, 0.1, 0).await?;
        let title = choose_title(claim, &parsed);
        let (parsed, chunks) = self.cut(parsed, title.clone()).await?;
        let chunk_count = chunks.len() as u32;

        self.advance(claim, JobState::Embedding, 0.2, chunk_count).await?;
        let embedded = self.embed(claim, &collection, &title, &parsed, chunks).await?;

        self.advance(claim, JobState::Indexing, 0.9, chunk_count).await?;
        let key =
            DocumentKey { tenant: claim.document.tenant.clone(), document_id: claim.document.document_id.clone() };
        let operation = Operation::PutDocument { key, title: title.clone(), chunks: embedded };
        let lock = self.lock(&claim.document).await;
        if !self.catalog.holds(claim).await? {
            return Err(Stop::ClaimLost);
        }
        let deadline = Instant::now() + WRITE_TIMEOUT;
        let written = self.writer.write(&collection, vec![operation], claim.job_id, deadline).await?;
        let session = written.session.to_string();
        let finished = self.catalog.finish_job(claim, &title, &parsed.text, chunk_count, &session).await?;
        drop(lock);
        self.announce();
        finished.map_err(|_| Stop::ClaimLost)
    }

    fn collection(&self, claim: &Claim) -> Result<Collection> {
        let state = self.view.state();
        if state.version == 0 {
            return Err(Error::refused(ErrorKind::Unavailable, "the cluster state is not known yet", ""));
        }
        state.collections.get(&CollectionId(claim.document.collection_id)).cloned().ok_or_else(|| {
            Error::refused(ErrorKind::NotFound, "the collection does not exist any more", "create it and upload again")
        })
    }

    /// A collection made for another model must not get vectors of this one.
    fn check_embedder(&self, collection: &Collection) -> Result<()> {
        check_embedder(collection, self.embedder.as_ref())
    }

    async fn advance(&self, claim: &Claim, state: JobState, progress: f64, chunk_count: u32) -> Result<(), Stop> {
        let held = self.catalog.advance_job(claim, state, progress, chunk_count).await?;
        self.announce();
        held.map_err(|_| Stop::ClaimLost)
    }

    /// Plain text here, everything else in a process of its own.
    async fn parse(&self, claim: &Claim) -> Result<Parsed> {
        let StoredUpload { media_type, file_name, content, .. } = &claim.upload;
        if !Format::detect(content, media_type, file_name)?.is_plain() {
            return self.sandbox.parse(content, media_type, file_name).await;
        }
        let upload = claim.upload.clone();
        blocking(move || Ok(parse::parse(&upload.content, &upload.media_type, &upload.file_name)?)).await
    }

    async fn cut(&self, parsed: Parsed, title: String) -> Result<(Parsed, Vec<TextChunk>)> {
        let embedder = Arc::clone(&self.embedder);
        blocking(move || {
            let parsed = Parsed { title: Some(title).filter(|title| !title.is_empty()), ..parsed };
            let chunks = chunk::chunk(&parsed, embedder.tokens_max(), &|text| embedder.count_tokens(text))?;
            Ok((parsed, chunks))
        })
        .await
    }

    async fn embed(
        &self,
        claim: &Claim,
        collection: &Collection,
        title: &str,
        parsed: &Parsed,
        chunks: Vec<TextChunk>,
    ) -> Result<Vec<Chunk>, Stop> {
        let spec = &collection.spec;
        let (metric, dim) = (spec.metric, spec.dim as usize);
        let total = chunks.len();
        let mut embedded = Vec::with_capacity(total);
        for step in chunks.chunks(EMBED_STEP_CHUNKS) {
            let texts = step.iter().map(|chunk| chunk::embedding_text(Some(title), chunk)).collect();
            let vectors = self.embedder.embed(texts, Instant::now() + EMBED_STEP_TIMEOUT).await?;
            for (text_chunk, vector) in step.iter().zip(vectors) {
                let vector = encode::encode_stored(metric, dim, &vector)
                    .map_err(|error| Error::internal(format!("embedder {}: {error}", self.embedder.name())))?;
                embedded.push(Chunk {
                    ordinal: embedded.len() as u32,
                    text: text_chunk.text.clone(),
                    metadata_json: chunk_metadata(
                        spec,
                        &claim.upload.metadata_json,
                        parsed.page_at(text_chunk.span.start),
                    ),
                    span: text_chunk.span.start as u64..text_chunk.span.end as u64,
                    vector,
                });
            }
            let progress = 0.2 + 0.7 * embedded.len() as f64 / total as f64;
            self.advance(claim, JobState::Embedding, progress, total as u32).await?;
        }
        Ok(embedded)
    }
}

/// Errors: `InvalidArgument` where texts cannot be embedded for this collection by this coordinator.
pub fn check_embedder(collection: &Collection, embedder: &dyn Embedder) -> Result<()> {
    let spec = &collection.spec;
    match &spec.embedder {
        None => Err(Error::refused(
            ErrorKind::InvalidArgument,
            format!("collection {:?} has no embedder, so texts cannot be used with it", spec.name),
            "send vectors, or create a collection with an embedder",
        )),
        Some(name) if name != embedder.name() || spec.dim as usize != embedder.dim() => Err(Error::refused(
            ErrorKind::InvalidArgument,
            format!("collection {:?} was made for embedder {name:?} with {} dimensions", spec.name, spec.dim),
            format!("this coordinator runs {:?} with {} dimensions", embedder.name(), embedder.dim()),
        )),
        Some(_) => Ok(()),
    }
}

/// The caller's title, else the document's own, else the file's name.
fn choose_title(claim: &Claim, parsed: &Parsed) -> String {
    let given = Some(claim.upload.title.clone()).filter(|title| !title.is_empty());
    let mut title = given.or_else(|| parsed.title.clone()).unwrap_or_else(|| claim.upload.file_name.clone());
    title.truncate(title.floor_char_boundary(limits::TITLE_BYTES_MAX));
    title
}

/// The document's metadata, and `page` where the format has pages, unless the caller has a field of that name, or the collection one
/// that takes no numbers.
fn chunk_metadata(spec: &CollectionSpec, metadata_json: &str, page: Option<u32>) -> String {
    let takes_page = spec.fields.get(PAGE_FIELD).is_none_or(|kind| *kind == FieldType::Integer);
    let fields = serde_json::from_str::<Map<String, Value>>(metadata_json).ok();
    let Some((page, mut fields)) = page.filter(|_| takes_page).zip(fields) else { return metadata_json.to_owned() };
    fields.entry(PAGE_FIELD).or_insert_with(|| page.into());
    let with_page = Value::Object(fields).to_string();
    if with_page.len() > limits::METADATA_BYTES_MAX { metadata_json.to_owned() } else { with_page }
}

/// Runs CPU work off the reactor. A panic in it is this document's failure, not the process'.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::internal(format!("blocking work: {error}"))),
    }
}
