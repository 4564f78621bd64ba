//! Writes to Redis behind the requests' back: a queue bounded in number and bytes. Beyond the bounds writes are dropped; a cache may
//! forget.

use std::sync::Arc;
use std::time::Duration;

use cluster_config::limits;
use futures::StreamExt;
use redis::Cmd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::Link;
use crate::cache::metrics::CacheMetrics;

/// Writes sent at one time.
const WRITES_AT_ONCE: usize = 16;
/// One write; nobody waits for it.
const WRITE_TIMEOUT: Duration = Duration::from_millis(500);
/// The byte bound is counted in pieces of this size.
const BYTES_UNIT: usize = 1024;
/// Something to be written.
pub(super) enum Job {
    /// Store a value.
    Put {
        /// Its name.
        name: String,
        /// Sealed.
        value: Vec<u8>,
        /// Its life.
        ttl: Duration,
    },
    /// Drop a value.
    Remove {
        /// Its name.
        name: String,
    },
    /// Run a script on one value.
    Eval {
        /// What is done; `KEYS[1]` is the name.
        script: &'static str,
        /// Its name.
        name: String,
        /// `ARGV`.
        arguments: Vec<String>,
    },
}

/// The way in. Clones share the bounds.
#[derive(Clone)]
pub(super) struct Queue {
    jobs: mpsc::Sender<(Job, OwnedSemaphorePermit)>,
    bytes: Arc<Semaphore>,
    metrics: CacheMetrics,
}

/// The way out.
pub(super) struct Writes {
    jobs: mpsc::Receiver<(Job, OwnedSemaphorePermit)>,
}

/// An empty queue.
pub(super) fn queue(metrics: CacheMetrics) -> (Queue, Writes) {
    let (sender, jobs) = mpsc::channel(limits::REDIS_WRITES_MAX);
    let bytes = Arc::new(Semaphore::new(limits::REDIS_WRITE_BYTES_MAX / BYTES_UNIT));
    (Queue { jobs: sender, bytes, metrics }, Writes { jobs })
}

impl Queue {
    /// Never waits; drops the job where the queue is full.
    pub(super) fn push(&self, job: Job) {
        let units = job.bytes().div_ceil(BYTES_UNIT) as u32;
        let pushed = Arc::clone(&self.bytes)
            .try_acquire_many_owned(units)
            .is_ok_and(|share| self.jobs.try_send((job, share)).is_ok());
        if !pushed {
            self.metrics.redis_wrote("dropped");
        }
    }
}

impl Writes {
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.jobs.len()
    }

    /// Runs until every queue is gone.
    pub(super) async fn run(self, link: &Link) {
        let jobs = ReceiverStream::new(self.jobs);
        let write = |(job, _share): (Job, OwnedSemaphorePermit)| async move {
            let outcome = if job.write(link).await { "written" } else { "failed" };
            link.metrics.redis_wrote(outcome);
        };
        jobs.for_each_concurrent(WRITES_AT_ONCE, write).await;
    }
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Self::Put { name, value, .. } => name.len() + value.len(),
            Self::Remove { name } => name.len(),
            Self::Eval { name, arguments, .. } => name.len() + arguments.iter().map(String::len).sum::<usize>(),
        }
    }

    /// Whether Redis confirmed it.
    async fn write(&self, link: &Link) -> bool {
        let connection = link.connection.load_full().filter(|_| !link.is_open());
        let Some(connection) = connection else { return false };
        let command = self.command();
        let answer = tokio::time::timeout(WRITE_TIMEOUT, connection.run::<redis::Value>(&command)).await;
        matches!(answer, Ok(Ok(_)))
    }

    fn command(&self) -> Cmd {
        match self {
            Self::Put { name, value, ttl } => {
                redis::cmd("SET").arg(name).arg(value.as_slice()).arg("PX").arg(ttl.as_millis() as u64).to_owned()
            }
            Self::Remove { name } => redis::cmd("UNLINK").arg(name).to_owned(),
            Self::Eval { script, name, arguments } => eval(script, name, arguments),
        }
    }
}

/// The command that runs a script on one value.
pub(super) fn eval(script: &str, name: &str, arguments: &[String]) -> Cmd {
    redis::cmd("EVAL").arg(script).arg(1).arg(name).arg(arguments).to_owned()
}
