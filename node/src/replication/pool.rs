//! Where the blocking storage calls of all copies of a process run.
//!
//! Two lanes of permits over tokio's blocking threads: applying may take long (it extends the index), and must never keep another
//! copy's fsync waiting. Unlike a queue that refuses, a permit is waited for: each copy has at most a handful of jobs at a time,
//! so the number of copies bounds the wait.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::storage::StorageError;

/// Shared by all copies of the process; cheap to clone.
#[derive(Clone, Debug)]
pub struct StoragePool {
    log: Arc<Semaphore>,
    apply: Arc<Semaphore>,
    before_apply: fn(),
}

/// Which permits a job needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Persist, read, look up.
    Log,
    /// Apply.
    Apply,
}

impl StoragePool {
    /// At most `log_jobs` log jobs and `apply_jobs` applying ones run at a time; at least one each. `before_apply` runs on the job's
    /// thread before each applying job (FAISS wants its thread count set per thread).
    pub fn new(log_jobs: usize, apply_jobs: usize, before_apply: fn()) -> Self {
        Self {
            log: Arc::new(Semaphore::new(log_jobs.max(1))),
            apply: Arc::new(Semaphore::new(apply_jobs.max(1))),
            before_apply,
        }
    }

    /// Runs a blocking job. Errors: the job's own, or `Io` if it panicked or the runtime is shutting down.
    ///
    /// Cancel: a job that has begun runs to its end.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        job: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let permits = if lane == Lane::Apply { &self.apply } else { &self.log };
        let permit = Arc::clone(permits)
            .acquire_owned()
            .await
            .map_err(|_| StorageError::Io("the storage pool is closed".into()))?;
        let before_apply = self.before_apply;
        let job = move || {
            if lane == Lane::Apply {
                before_apply();
            }
            let result = job();
            drop(permit);
            result
        };
        tokio::task::spawn_blocking(job)
            .await
            .unwrap_or_else(|error| Err(StorageError::Io(format!("a storage job ended: {error}"))))
    }
}
