//! Documents on their way in. `Ingest::work` is the straight line of one document: parse > chunk > embed > write; `worker` drives
//! it from the durable queue, `steps` are its stages, `sandbox` parses, `write` brings operations to the shards. `edits` are
//! deletions, and points that take a document's place.
//!
//! A document becomes visible at once and whole, because all its chunks are one operation of one shard.

pub mod chunk;
mod edits;
pub mod encode;
pub mod failpoint;
pub mod parse;
pub mod sandbox;
mod stages;
mod steps;
mod unchanged;
pub mod worker;
pub mod write;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cluster_config::collection::Collection;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CollectionId, DocumentKey};
use cluster_config::operation::Operation;
use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::edits::Edits;
use self::sandbox::Sandbox;
use self::write::Writer;
use crate::catalog::Catalog;
use crate::catalog::documents::{Enqueued, Indexed, Upload};
use crate::catalog::job_view::JobRow;
use crate::catalog::jobs::{Claim, Finish, JobState};
use crate::cluster::view::ClusterView;
use crate::embed::Embedder;
use crate::error::{Error, Result};
use crate::retrieve::Retriever;

/// A claim is renewed so often within its lease.
const RENEWALS_PER_LEASE: u32 = 3;
/// Time for a document's write, a failover (7 s) included several times over.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// A process that stops waits so long for writes that are under way: a failover takes 7 s.
const STOPPING_WRITE_TIMEOUT: Duration = Duration::from_secs(8);
/// Metadata field of a chunk that says on which page or slide it begins, from 1.
pub const PAGE_FIELD: &str = "page";
/// Metadata field of a chunk that lists the headings it stands under, outermost first.
pub const HEADINGS_FIELD: &str = "headings";

/// What is configured of ingestion.
#[derive(Clone, Debug)]
pub struct IngestOptions {
    /// Documents worked on at once.
    pub workers: usize,
    /// Where documents are parsed.
    pub sandbox: Sandbox,
    /// Of tenants' jobs, where not 0: larger goes first.
    pub priorities: BTreeMap<String, i32>,
}

/// The way in. Shared by the API and the workers.
pub struct Ingest {
    catalog: Catalog,
    view: Arc<ClusterView>,
    embedder: Arc<dyn Embedder>,
    writer: Arc<Writer>,
    retriever: Arc<Retriever>,
    sandbox: Sandbox,
    /// Of tenants' jobs, where not 0.
    priorities: BTreeMap<String, i32>,
    /// Wakes a worker.
    queued: Notify,
    /// Moves at every change of a job.
    changed: watch::Sender<u64>,
    edits: Edits,
}

/// Why a job's run stopped.
#[derive(Debug)]
enum Stop {
    /// Cancelled, superseded, or claimed by another: nothing more to do.
    ClaimLost,
    /// The process stops: the job goes back to the queue as it was.
    Stopping,
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
        retriever: Arc<Retriever>,
        options: IngestOptions,
    ) -> Self {
        let IngestOptions { sandbox, priorities, .. } = options;
        let (queued, changed) = (Notify::new(), watch::Sender::new(0));
        let edits = Edits::default();
        Self { catalog, view, embedder, writer, retriever, sandbox, priorities, queued, changed, edits }
    }

    /// Stores an upload durably and wakes a worker.
    pub async fn enqueue(&self, mut upload: Upload) -> Result<Enqueued> {
        upload.priority = self.priorities.get(&upload.document.tenant).copied().unwrap_or(0);
        let enqueued = self.catalog.enqueue(upload).await?;
        self.queued.notify_one();
        self.announce();
        Ok(enqueued)
    }

    /// Puts a job of the tenant that ended badly back into the queue and wakes a worker. `None`: no such job.
    pub async fn retry(&self, tenant: &str, job_id: Uuid) -> Result<Option<JobRow>> {
        let row = self.catalog.retry_job(tenant, job_id).await?;
        self.queued.notify_one();
        self.announce();
        Ok(row)
    }

    /// Waits for edits whose callers have gone, within a bound. To be called once nobody begins any more.
    pub async fn close(&self) {
        let left = self.edits.finish(STOPPING_WRITE_TIMEOUT).await;
        if left > 0 {
            tracing::warn!(left, "edits of documents did not end in time and are left; none of them was acknowledged");
        }
    }

    /// A receiver that moves whenever any job has changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Tells listeners that some job has changed.
    pub fn announce(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// One document, from its upload to searchable. The claim is renewed meanwhile, and the work dropped as soon as it does not
    /// hold any more or the process stops. A write that was begun is waited for; by a process that stops, within a bound.
    async fn run(&self, claim: &Claim, cancel: &CancellationToken) -> Result<(), Stop> {
        let is_writing = AtomicBool::new(false);
        let until_stopped = async {
            cancel.cancelled().await;
            if is_writing.load(Ordering::Relaxed) {
                tokio::time::sleep(STOPPING_WRITE_TIMEOUT).await;
                tracing::warn!(job_id = %claim.job_id, "the write did not end in time and is left; the job will be run again");
            }
        };
        tokio::select! {
            outcome = self.work(claim, &is_writing) => outcome,
            () = self.until_lost(claim, &is_writing) => Err(Stop::ClaimLost),
            () = until_stopped => Err(Stop::Stopping),
        }
    }

    /// The straight line: parse > cut > embed > write.
    ///
    /// Safe to repeat after a crash at any point: stages are taken up where they were, and the write carries the job's id as its
    /// operation id.
    async fn work(&self, claim: &Claim, is_writing: &AtomicBool) -> Result<(), Stop> {
        failpoint::reach(failpoint::CLAIMED);
        let collection = self.collection(claim)?;
        check_embedder(&collection, self.embedder.as_ref())?;
        let from = unchanged::settings_hash(claim, &collection, self.embedder.as_ref());
        if let Some(unchanged) = unchanged::find(&self.retriever, claim, &collection, &from).await {
            let finished = self.catalog.finish_job(claim, &unchanged.finish()).await?;
            return finished.map_err(|_| Stop::ClaimLost);
        }
        let parsed = self.parse(claim).await?;
        failpoint::reach(failpoint::PARSED);

        self.advance(claim, JobState::Chunking, 0.1, 0).await?;
        let title = steps::choose_title(claim, &parsed);
        let (parsed, chunks) = self.cut(parsed, title.clone()).await?;
        let chunk_count = chunks.len() as u32;
        failpoint::reach(failpoint::CHUNKED);

        self.advance(claim, JobState::Embedding, 0.2, chunk_count).await?;
        let embedded = self.embed(claim, &collection, &parsed, chunks).await?;
        failpoint::reach(failpoint::EMBEDDED);

        self.advance(claim, JobState::Indexing, 0.9, chunk_count).await?;
        let indexed = Indexed { from, chunks: unchanged::chunks_hash(&title, &embedded) };
        let key =
            DocumentKey { tenant: claim.document.tenant.clone(), document_id: claim.document.document_id.clone() };
        let operation = Operation::PutDocument { key, title: title.clone(), chunks: embedded };
        let lock = self.catalog.lock_document(&claim.document).await?;
        // A write that was begun is waited for: dropped, it could arrive behind a deletion that came later.
        is_writing.store(true, Ordering::Relaxed);
        if !self.catalog.holds(claim).await? {
            return Err(Stop::ClaimLost);
        }
        let deadline = Instant::now() + WRITE_TIMEOUT;
        let written = self.writer.write(&collection, vec![operation], claim.job_id, deadline).await?;
        failpoint::reach(failpoint::WRITTEN);
        let session = written.session.to_string();
        let finish = Finish { title: &title, extracted: Some(&parsed.text), chunk_count, session: &session, indexed };
        let finished = self.catalog.finish_job(claim, &finish).await?;
        drop(lock);
        failpoint::reach(failpoint::FINISHED);
        finished.map_err(|_| Stop::ClaimLost)
    }

    /// Renews the claim until it is lost: to a cancellation, a newer upload, a deletion, or another worker. Never returns once the
    /// write has begun.
    async fn until_lost(&self, claim: &Claim, is_writing: &AtomicBool) {
        let mut changes = self.changes();
        let pause = self.catalog.lease() / RENEWALS_PER_LEASE;
        let mut renewal = tokio::time::interval_at(tokio::time::Instant::now() + pause, pause);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_held = tokio::select! {
                _ = renewal.tick() => self.catalog.renew_job(claim).await.map(|held| held.is_ok()),
                _ = changes.changed() => self.catalog.holds(claim).await,
            };
            match is_held {
                Ok(false) if !is_writing.load(Ordering::Relaxed) => return,
                Ok(_) => {}
                Err(error) => tracing::warn!(job_id = %claim.job_id, %error, "claim was not renewed"),
            }
        }
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

    async fn advance(&self, claim: &Claim, state: JobState, progress: f64, chunk_count: u32) -> Result<(), Stop> {
        let held = self.catalog.advance_job(claim, state, progress, chunk_count).await?;
        self.announce();
        held.map_err(|_| Stop::ClaimLost)
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

/// Runs CPU work off the reactor. A panic in it is this document's failure, not the process'.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::internal(format!("blocking work: {error}"))),
    }
}
