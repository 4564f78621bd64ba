//! Edits: what a request changes in the catalog and in the shards together. Documents are deleted, and points take a document's place.
//!
//! An edit is seen through even if whoever asked for it has gone: it runs in a task of its own, within its deadline. Left half way it
//! would stay so, for who has gone does not ask again.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::collection::Collection;
use cluster_config::error::ErrorKind;
use cluster_config::filter::Filter;
use cluster_config::ids::DocumentKey;
use cluster_config::limits;
use cluster_config::operation::Operation;
use cluster_config::search::{Consistency, SearchKnobs, ShardQuery};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::Ingest;
use super::write::{WriteFailure, Written};
use crate::catalog::deletion::{DELETED, REPLACED};
use crate::catalog::document_lock::DocumentLock;
use crate::catalog::documents::DocumentRef;
use crate::error::{Error, Result};
use crate::retrieve::{Include, RetrievalOptions};

/// The edits under way.
pub(super) struct Edits {
    tasks: TaskTracker,
    places: Arc<Semaphore>,
}

impl Default for Edits {
    fn default() -> Self {
        Self { tasks: TaskTracker::new(), places: Arc::new(Semaphore::new(limits::EDITS_AT_ONCE_MAX)) }
    }
}

impl Edits {
    /// Waits for those under way, at most so long. How many are left.
    pub(super) async fn finish(&self, longest: Duration) -> usize {
        self.tasks.close();
        let _ = tokio::time::timeout(longest, self.tasks.wait()).await;
        self.tasks.len()
    }
}

impl Ingest {
    /// Does an edit whoever waits for it. Cancel: it goes on. Errors: its own, and `Overloaded` where too many are under way.
    pub async fn see_through<T: Send + 'static>(
        &self,
        edit: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let place = Arc::clone(&self.edits.places).try_acquire_owned().map_err(|_| {
            let text = format!("{} edits and administrative calls are under way", limits::EDITS_AT_ONCE_MAX);
            Error::refused(ErrorKind::Overloaded, text, "retry with a pause")
        })?;
        let task = self.edits.tasks.spawn(async move {
            let _place = place;
            edit.await
        });
        task.await.map_err(|error| Error::internal(format!("an edit of documents: {error}")))?
    }

    /// Removes documents of a tenant: no job of theirs writes after this, the catalog has nothing of them any more, and every copy of
    /// their shards has forgotten them. Cancel: it goes on.
    pub async fn delete(
        self: &Arc<Self>,
        collection: &Collection,
        tenant: &str,
        ids: Vec<String>,
        deadline: Instant,
    ) -> Result<Written> {
        let (ingest, collection, tenant) = (Arc::clone(self), collection.clone(), tenant.to_owned());
        self.see_through(async move { ingest.delete_now(&collection, &tenant, &ids, deadline).await }).await
    }

    /// The same for whatever passes the filter: finds it by exact strong searches, round by round, and deletes what each round has found, so
    /// that whatever was acknowledged before the call is found. Cancel: it goes on.
    ///
    /// At most `DELETES_PER_BATCH_MAX` documents; whether there may be more is the second part of the result.
    pub async fn delete_matching(
        self: &Arc<Self>,
        collection: &Collection,
        tenant: &str,
        filter: Filter,
        deadline: Instant,
    ) -> Result<(Written, bool)> {
        let (ingest, collection, tenant) = (Arc::clone(self), collection.clone(), tenant.to_owned());
        self.see_through(async move { ingest.delete_matching_now(&collection, &tenant, filter, deadline).await }).await
    }

    /// Writes points of a tenant, each in the place of whatever had its id: an unfinished upload of it writes nothing after this, and
    /// the catalog has nothing of the document any more. Cancel: it goes on.
    pub async fn put_points(
        self: &Arc<Self>,
        collection: &Collection,
        tenant: &str,
        points: Vec<Operation>,
        deadline: Instant,
    ) -> Result<Written> {
        let (ingest, collection, tenant) = (Arc::clone(self), collection.clone(), tenant.to_owned());
        self.see_through(async move { ingest.put_now(&collection, &tenant, points, deadline).await }).await
    }

    /// The catalog goes first: jobs that it has ended write nothing more, and where the process dies between the two, the documents are
    /// still found by whoever deletes by filter again.
    async fn delete_now(
        &self,
        collection: &Collection,
        tenant: &str,
        ids: &[String],
        deadline: Instant,
    ) -> Result<Written> {
        // Where nothing can be uploaded there are points only, which the catalog does not know.
        if collection.spec.embedder.is_none() {
            return Ok(self.delete_from_shards(collection, tenant, ids, deadline).await?);
        }
        let mut total = Written::default();
        for some in ids.chunks(limits::DOCUMENTS_LOCKED_MAX) {
            let step = self.delete_step(collection, tenant, some, deadline).await;
            total.add(step.map_err(|error| after(error, total.acked, ids.len() as u64))?);
        }
        Ok(total)
    }

    async fn delete_step(
        &self,
        collection: &Collection,
        tenant: &str,
        ids: &[String],
        deadline: Instant,
    ) -> Result<Written> {
        let _locks = self.lock(collection, tenant, ids).await?;
        self.catalog.delete_documents(collection.id.0, tenant, ids, DELETED).await?;
        self.announce();
        Ok(self.delete_from_shards(collection, tenant, ids, deadline).await?)
    }

    async fn delete_matching_now(
        &self,
        collection: &Collection,
        tenant: &str,
        filter: Filter,
        deadline: Instant,
    ) -> Result<(Written, bool)> {
        // Any direction will do: every passing row is found, however far.
        let mut vector = vec![0.0; collection.spec.dim as usize];
        if let Some(first) = vector.first_mut() {
            *first = 1.0;
        }
        let query = ShardQuery {
            vector,
            fetch_k: limits::TOP_K_MAX,
            filter,
            tenant: tenant.to_owned(),
            knobs: SearchKnobs { exact: true, ..SearchKnobs::default() },
        };
        let mut total = Written::default();
        loop {
            let options = RetrievalOptions {
                consistency: Consistency::Strong,
                // Of eventual reads only.
                max_staleness: Duration::ZERO,
                session: total.session.clone(),
                prefer_copy: None,
                min_coverage: 1.0,
                include: Include { text: false, metadata: false, vector: false },
                deadline,
            };
            let found = self.retriever.run(collection, vec![query.clone()], &options).await;
            let found = found.map_err(|error| after(error, total.acked, total.acked))?;
            let hits = found.results.iter().flat_map(|result| result.hits.iter());
            let ids: BTreeSet<String> = hits.map(|hit| hit.document_id.clone()).collect();
            if ids.is_empty() {
                return Ok((total, false));
            }
            let ids: Vec<String> = ids.into_iter().collect();
            let written = self.delete_now(collection, tenant, &ids, deadline).await;
            let written = written.map_err(|error| after(error, total.acked, total.acked + ids.len() as u64))?;
            total.session = found.session;
            total.add(written);
            if total.acked as usize >= limits::DELETES_PER_BATCH_MAX {
                return Ok((total, true));
            }
        }
    }

    async fn delete_from_shards(
        &self,
        collection: &Collection,
        tenant: &str,
        ids: &[String],
        deadline: Instant,
    ) -> Result<Written, WriteFailure> {
        let key = |id: &String| DocumentKey { tenant: tenant.to_owned(), document_id: id.clone() };
        let operations = ids.iter().map(|id| Operation::DeleteDocument { key: key(id) }).collect();
        self.writer.write(collection, operations, Uuid::new_v4(), deadline).await
    }

    /// Few points have the id of an upload, and to lock all of them would cost more than the write. So all are written; those whose ids
    /// the catalog knows by then are written once more under their locks, behind whatever a job wrote meanwhile, and the catalog
    /// forgets them. An upload that comes in later is the later one.
    ///
    /// The shards go first here: a write that fails takes nobody's upload away.
    async fn put_now(
        &self,
        collection: &Collection,
        tenant: &str,
        points: Vec<Operation>,
        deadline: Instant,
    ) -> Result<Written> {
        if collection.spec.embedder.is_none() {
            return Ok(self.writer.write(collection, points, Uuid::new_v4(), deadline).await?);
        }
        let mut total = self.writer.write(collection, points.clone(), Uuid::new_v4(), deadline).await?;
        let ids: Vec<String> = points.iter().filter_map(document_id).map(str::to_owned).collect();
        let known = self.catalog.known_documents(collection.id.0, tenant, &ids).await?;
        for some in known.chunks(limits::DOCUMENTS_LOCKED_MAX) {
            let _locks = self.lock(collection, tenant, some).await?;
            let some_ids: HashSet<&str> = some.iter().map(String::as_str).collect();
            let is_known = |point: &&Operation| document_id(point).is_some_and(|id| some_ids.contains(id));
            let again = points.iter().filter(is_known).cloned().collect();
            let written = self.writer.write(collection, again, Uuid::new_v4(), deadline).await?;
            self.catalog.delete_documents(collection.id.0, tenant, some, REPLACED).await?;
            self.announce();
            total.copies_acked_min = total.copies_acked_min.min(written.copies_acked_min);
            total.session.merge(&written.session);
        }
        Ok(total)
    }

    async fn lock(&self, collection: &Collection, tenant: &str, ids: &[String]) -> Result<DocumentLock<'_>> {
        let document = |id: &String| DocumentRef {
            collection_id: collection.id.0,
            tenant: tenant.to_owned(),
            document_id: id.clone(),
        };
        let documents: Vec<DocumentRef> = ids.iter().map(document).collect();
        Ok(self.catalog.lock_documents(&documents).await?)
    }
}

/// The error of a later part of `total` operations, of which earlier parts brought `acked`: they stay, and the caller hears of them.
fn after(error: Error, acked: u64, total: u64) -> Error {
    match error {
        Error::Write(failure) => WriteFailure { acked: acked + failure.acked, total, ..failure }.into(),
        error if acked == 0 => error,
        error => {
            let text = format!("{error}; {acked} operations were acknowledged before");
            Error::refused(error.kind(), text, error.hint())
        }
    }
}

fn document_id(point: &Operation) -> Option<&str> {
    match point {
        Operation::PutDocument { key, .. } => Some(&key.document_id),
        _ => None,
    }
}
