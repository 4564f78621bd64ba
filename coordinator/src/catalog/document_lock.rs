//! One at a time per document, over all coordinators: between the last check of a claim and the end of its write nobody deletes the
//! document, nor writes it anew.
//!
//! Within this process a mutex; between processes an advisory lock of Postgres. It is held by an open transaction, so for as long as
//! that connection lives: a coordinator that hangs keeps it, and one that dies lets go of it. Waiting is bounded: here by the pool
//! timeout, there by the session's `lock_timeout`. Who takes several takes them in one order, so that no two wait for each other.

use std::collections::BTreeSet;
use std::slice;
use std::sync::Arc;

use cluster_config::limits;
use sqlx::{Any, Transaction};
use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};
use xxhash_rust::xxh3::Xxh3;

use super::documents::DocumentRef;
use super::engine::Engine;
use super::waits::Held;
use super::{Catalog, CatalogError, row_parameters};

/// Locks that documents share by hash: more than workers and deletions at one time.
const LOCKS: usize = 256;

/// The locks of this process.
pub(super) struct DocumentLocks {
    here: Vec<Mutex<()>>,
    /// Half of the pool: whoever holds a lock needs another connection to go on.
    connections: Semaphore,
}

/// The documents are their holder's until this is dropped.
pub struct DocumentLock<'a> {
    // Dropped in this order. The transaction ends when its connection goes back to the pool, so the next one here may still wait for a moment.
    _elsewhere: Option<(Transaction<'static, Any>, Held, SemaphorePermit<'a>)>,
    _here: Vec<MutexGuard<'a, ()>>,
}

impl DocumentLocks {
    pub(super) fn new(connections_max: u32) -> Arc<Self> {
        let connections = Semaphore::new((connections_max / 2).max(1) as usize);
        Arc::new(Self { here: (0..LOCKS).map(|_| Mutex::new(())).collect(), connections })
    }
}

impl Catalog {
    /// Waits for the document's turn.
    ///
    /// # Errors
    /// `Busy` or `Contended` if it did not come in time.
    pub async fn lock_document(&self, document: &DocumentRef) -> Result<DocumentLock<'_>, CatalogError> {
        self.lock_documents(slice::from_ref(document)).await
    }

    /// Waits for the turn at all of the documents, at most [`DOCUMENTS_LOCKED_MAX`](limits::DOCUMENTS_LOCKED_MAX): the server has room
    /// for some thousand locks of all its sessions.
    ///
    /// # Errors
    /// `Busy` or `Contended` if it did not come in time.
    pub async fn lock_documents(&self, documents: &[DocumentRef]) -> Result<DocumentLock<'_>, CatalogError> {
        debug_assert!(documents.len() <= limits::DOCUMENTS_LOCKED_MAX, "{}", documents.len());
        let hashes: BTreeSet<u64> = documents.iter().map(hash).collect();
        let places: BTreeSet<usize> = hashes.iter().map(|hash| *hash as usize % LOCKS).collect();
        let take = async {
            let mut guards = Vec::with_capacity(places.len());
            for place in places {
                guards.push(self.locks.here[place].lock().await);
            }
            guards
        };
        let here = self.in_time("turn at the document", take).await?;
        let elsewhere = match self.engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(self.lock_elsewhere(&hashes).await?),
        };
        Ok(DocumentLock { _elsewhere: elsewhere, _here: here })
    }

    async fn lock_elsewhere(
        &self,
        hashes: &BTreeSet<u64>,
    ) -> Result<(Transaction<'static, Any>, Held, SemaphorePermit<'_>), CatalogError> {
        let permit = self.in_time("connection for a lock", self.locks.connections.acquire()).await?;
        let permit = permit.map_err(|error| CatalogError::Failed(error.to_string()))?;
        let begun = self.pool.begin_with(self.engine.begin()).await;
        let mut transaction = begun.map_err(|error| self.refusal(error))?;
        let held = self.waits.hold();
        // The rows of VALUES are visited in their order, which is that of the hashes.
        let sql = format!(
            "SELECT 1 FROM (VALUES {}) AS wanted (hash), pg_advisory_xact_lock(CAST(wanted.hash AS BIGINT))",
            row_parameters(hashes.len(), 1)
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(hashes.len() == 1);
        let query = hashes.iter().fold(query, |query, hash| query.bind(hash.cast_signed()));
        query.execute(&mut *transaction).await?;
        Ok((transaction, held, permit))
    }
}

/// The same in every coordinator of every build: it is their agreement.
fn hash(document: &DocumentRef) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&document.collection_id.to_be_bytes());
    hash.update(&(document.tenant.len() as u64).to_be_bytes());
    hash.update(document.tenant.as_bytes());
    hash.update(document.document_id.as_bytes());
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinators_agree_on_the_lock_of_a_document() {
        let document = |collection_id, tenant: &str, document_id: &str| DocumentRef {
            collection_id,
            tenant: tenant.into(),
            document_id: document_id.into(),
        };
        assert_eq!(
            hash(&document(1, "default", "d")),
            0xafa7_6bc1_d314_313d,
            "as computed by another implementation of XXH3"
        );
        assert_ne!(hash(&document(1, "ab", "c")), hash(&document(1, "a", "bc")));
        assert_ne!(hash(&document(1, "a", "b")), hash(&document(2, "a", "b")));
    }
}
