//! Bounded pools of OS threads for work that must not run on the reactor: FAISS, RocksDB, training.
//!
//! A pool has a fixed number of threads and a bounded queue. A full queue refuses at once (`Overloaded`): waiting is the caller's
//! decision, never a side effect. A job whose caller has gone is dropped unrun.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::Mutex;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// Why a pool gave no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The queue is full.
    #[error("the {0} pool's queue is full")]
    Overloaded(&'static str),
    /// The pool is closed, or the job panicked.
    #[error("the {0} pool is closed")]
    Closed(&'static str),
}

/// Threads with a bounded queue. Dropping the last handle lets the threads finish what is queued and end.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    sender: Mutex<Option<Sender<Job>>>,
    queued: Arc<AtomicUsize>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Pool {
    /// Starts `threads` threads named `name`, each calling `init` once before its first job. At most `queue_max` jobs wait.
    pub fn start(name: &'static str, threads: usize, queue_max: usize, init: fn()) -> std::io::Result<Self> {
        // Several consumers wait on the channel itself; behind a mutex each job would wake a second thread, only to wait for the next.
        let (sender, receiver) = bounded::<Job>(queue_max);
        let queued = Arc::new(AtomicUsize::new(0));
        let handles = (0..threads.max(1))
            .map(|number| {
                let (receiver, queued) = (receiver.clone(), Arc::clone(&queued));
                std::thread::Builder::new()
                    .name(format!("{name}-{number}"))
                    .spawn(move || serve(&receiver, &queued, init))
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(Self {
            shared: Arc::new(Shared { name, sender: Mutex::new(Some(sender)), queued, threads: Mutex::new(handles) }),
        })
    }

    /// Runs `job` on the pool. Errors: `Overloaded` at once when the queue is full; `Closed` if the pool closes or the job panics.
    ///
    /// Cancel: dropping the future before the job starts skips it; a running job is not interrupted.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, PoolError> {
        let (reply, answer) = oneshot::channel();
        self.submit(Box::new(move || {
            if !reply.is_closed() {
                // The caller may leave between the check and the send; nobody misses the result then.
                let _ = reply.send(job());
            }
        }))?;
        answer.await.map_err(|_| PoolError::Closed(self.shared.name))
    }

    fn submit(&self, job: Job) -> Result<(), PoolError> {
        let sender = self.shared.sender.lock().clone().ok_or(PoolError::Closed(self.shared.name))?;
        self.shared.queued.fetch_add(1, Ordering::Relaxed);
        sender.try_send(job).map_err(|error| {
            self.shared.queued.fetch_sub(1, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => PoolError::Overloaded(self.shared.name),
                TrySendError::Disconnected(_) => PoolError::Closed(self.shared.name),
            }
        })
    }

    /// Jobs waiting for a thread.
    pub fn queued(&self) -> usize {
        self.shared.queued.load(Ordering::Relaxed)
    }

    /// Refuses new jobs, finishes the queued ones and joins the threads. Blocks.
    pub fn close(&self) {
        drop(self.shared.sender.lock().take());
        for thread in self.shared.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!(pool = self.shared.name, "a pool thread had panicked");
            }
        }
    }
}

fn serve(receiver: &Receiver<Job>, queued: &AtomicUsize, init: fn()) {
    init();
    while let Ok(job) = receiver.recv() {
        queued.fetch_sub(1, Ordering::Relaxed);
        job();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_full_queue_refuses_and_a_closed_pool_says_so() {
        let pool = Pool::start("test", 1, 1, || ()).expect("threads start");
        let (gate, started) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let (job_gate, job_started) = (Arc::clone(&gate), Arc::clone(&started));
        let busy = tokio::spawn({
            let pool = pool.clone();
            async move {
                pool.run(move || {
                    job_started.wait();
                    job_gate.wait();
                    1
                })
                .await
            }
        });
        tokio::task::spawn_blocking(move || started.wait()).await.expect("joins");
        let waiting = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(|| 2).await }
        });
        while pool.queued() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.run(|| 3).await, Err(PoolError::Overloaded("test")));
        tokio::task::spawn_blocking(move || gate.wait()).await.expect("joins");
        assert_eq!(busy.await.expect("joins"), Ok(1));
        assert_eq!(waiting.await.expect("joins"), Ok(2));
        pool.close();
        assert_eq!(pool.run(|| 4).await, Err(PoolError::Closed("test")));
    }
}
