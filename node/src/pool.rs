//! Bounded pools of OS threads for work that must not run on the reactor: FAISS, RocksDB, training.
//!
//! A pool has a fixed number of threads and a bounded queue. A full queue refuses at once (`Overloaded`): waiting is the caller's
//! decision, never a side effect. A job whose caller has gone is dropped unrun.

use std::iter::Enumerate;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::vec;

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

    /// Runs the jobs side by side on the threads that are free, one after another where none is, and wakes the caller once, when all
    /// are done. Results in the order of the jobs. Errors: those of [`Pool::run`], for all of them together.
    ///
    /// The thread that takes a first job up asks for the next thread. A caller that submitted every job itself would be put off the CPU by
    /// the first thread that it wakes, and submit the second once the first is done.
    ///
    /// Cancel: dropping the future skips the jobs that have not started; running ones are not interrupted.
    pub async fn run_all<T, J>(&self, jobs: Vec<J>) -> Result<Vec<T>, PoolError>
    where
        T: Send + 'static,
        J: FnOnce() -> T + Send + 'static,
    {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let (reply, answer) = oneshot::channel();
        let together = Together {
            results: jobs.iter().map(|_| None).collect(),
            missing: jobs.len(),
            waiting: jobs.into_iter().enumerate(),
            reply: Some(reply),
        };
        self.submit_share(&Arc::new(Mutex::new(together)))?;
        answer.await.map_err(|_| PoolError::Closed(self.shared.name))
    }

    /// One more thread for jobs that run together: it does what the others leave.
    fn submit_share<T, J>(&self, together: &Arc<Mutex<Together<T, J>>>) -> Result<(), PoolError>
    where
        T: Send + 'static,
        J: FnOnce() -> T + Send + 'static,
    {
        let (pool, together) = (self.clone(), Arc::clone(together));
        self.submit(Box::new(move || {
            let mut next = together.lock().take();
            if next.is_some() && together.lock().waiting.len() > 0 {
                // A pool that is full or closes gives no other thread: this one does all that is left.
                let _ = pool.submit_share(&together);
            }
            while let Some((at, job)) = next {
                let result = job();
                let mut together = together.lock();
                together.finish(at, result);
                next = together.take();
            }
        }))
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

/// Jobs of one caller, and what came of them.
struct Together<T, J> {
    /// With their places among the results.
    waiting: Enumerate<vec::IntoIter<J>>,
    results: Vec<Option<T>>,
    /// Results that are not there yet.
    missing: usize,
    /// Until the results are handed over.
    reply: Option<oneshot::Sender<Vec<T>>>,
}

impl<T, J> Together<T, J> {
    /// A job and its place; none once all are taken or the caller has gone.
    fn take(&mut self) -> Option<(usize, J)> {
        let is_wanted = self.reply.as_ref().is_some_and(|reply| !reply.is_closed());
        if is_wanted { self.waiting.next() } else { None }
    }

    fn finish(&mut self, at: usize, result: T) {
        self.results[at] = Some(result);
        self.missing -= 1;
        if self.missing == 0
            && let Some(reply) = self.reply.take()
        {
            // Nobody misses them if the caller left meanwhile.
            let _ = reply.send(self.results.drain(..).flatten().collect());
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

    #[tokio::test(flavor = "multi_thread")]
    async fn jobs_run_together_on_as_many_threads_as_there_are() {
        // Each of two waits for the other.
        let pool = Pool::start("test", 2, 4, || ()).expect("threads start");
        let meeting = Arc::new(Barrier::new(2));
        let job = |number: u32| {
            let meeting = Arc::clone(&meeting);
            move || {
                meeting.wait();
                number
            }
        };
        assert_eq!(pool.run_all(vec![job(1), job(2)]).await, Ok(vec![1, 2]));
        assert_eq!(pool.run_all(vec![job(1), job(2), job(3), job(4)]).await, Ok(vec![1, 2, 3, 4]));
        let none: Vec<fn() -> u32> = Vec::new();
        assert_eq!(pool.run_all(none).await, Ok(vec![]));

        // One thread does them all, and a queue without room for its request does not stop it.
        let pool = Pool::start("test", 1, 1, || ()).expect("threads start");
        assert_eq!(pool.run_all((0..100).map(|number| move || number).collect()).await, Ok((0..100).collect()));
        pool.close();
        assert_eq!(pool.run_all(vec![|| 1]).await, Err(PoolError::Closed("test")));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn jobs_whose_caller_has_gone_are_not_started() {
        let pool = Pool::start("test", 1, 4, || ()).expect("threads start");
        let (gate, started) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let ran = Arc::new(AtomicUsize::new(0));
        let job = |_| {
            let (gate, started, ran) = (Arc::clone(&gate), Arc::clone(&started), Arc::clone(&ran));
            move || {
                if ran.fetch_add(1, Ordering::Relaxed) == 0 {
                    started.wait();
                    gate.wait();
                }
            }
        };
        let caller = tokio::spawn({
            let (pool, jobs) = (pool.clone(), (0..3).map(job).collect());
            async move { pool.run_all(jobs).await }
        });
        tokio::task::spawn_blocking(move || started.wait()).await.expect("joins");
        caller.abort();
        assert!(caller.await.expect_err("aborted").is_cancelled());
        tokio::task::spawn_blocking(move || gate.wait()).await.expect("joins");
        assert_eq!(pool.run(|| 7).await, Ok(7), "the thread goes on");
        assert_eq!(ran.load(Ordering::Relaxed), 1);
    }
}
