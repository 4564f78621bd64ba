//! A bounded pool of OS threads before a model. Batches form by themselves: while a thread is busy the queue fills, and the
//! next free thread takes what is there, up to `batch_max` texts or `BATCH_TOKENS` tokens. A lone query starts at once; no
//! timer holds it back for company.
//!
//! Queries overtake ingestion ([`Purpose`]), except that every fourth batch serves ingestion first, so that it slows under
//! queries but never stops, and a query waits for at most one batch per thread before it.
//!
//! Invariants: texts queued <= `limits::EMBED_QUEUE_MAX`, of them for ingestion at most `INGEST_QUEUE_MAX`; a text whose caller has
//! gone, or whose deadline has passed, is never embedded.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use cluster_config::limits;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::metrics::EmbedMetrics;
use super::{EmbedError, Embedding, Purpose};

/// A model as the pool sees it. Blocking, called from pool threads only.
pub trait Model: Send + Sync + 'static {
    /// Called once by each pool thread before its first batch; the value lives as long as the thread.
    fn enter_thread(&self) -> Result<Box<dyn std::any::Any>, String>;
    /// Token ids of `text`, truncated to what [`Model::forward`] takes.
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, String>;
    /// One unit vector per text, in order.
    fn forward(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, String>;
}

/// Enough for full speed of the matrix products; more only makes the next query wait longer.
const BATCH_TOKENS: usize = 1024;
/// One batch in this many takes ingestion first.
const INGEST_TURN: u64 = 4;
/// Ingestion leaves the rest of the queue to queries.
const INGEST_QUEUE_MAX: usize = limits::EMBED_QUEUE_MAX / 4 * 3;

const _: () = assert!(limits::EMBED_TEXTS_MAX <= INGEST_QUEUE_MAX);

/// The pool. Dropping it ends the threads after their current batch.
pub struct BatchPool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    metrics: EmbedMetrics,
    batch_max: usize,
}

#[derive(Default)]
struct Queue {
    queries: VecDeque<Job>,
    ingest: VecDeque<Job>,
    batches: u64,
    closed: bool,
}

/// One text of a call.
struct Job {
    text: String,
    place: usize,
    call: Arc<Call>,
}

struct Call {
    deadline: Instant,
    state: Mutex<CallState>,
}

struct CallState {
    results: Vec<Option<Embedding>>,
    missing: usize,
    /// Taken when the call is answered.
    reply: Option<oneshot::Sender<Result<Vec<Embedding>, EmbedError>>>,
}

impl BatchPool {
    /// Starts `threads` threads over `model`. Errors: a thread cannot be started.
    pub fn start(
        model: Arc<dyn Model>,
        threads: usize,
        batch_max: usize,
        metrics: EmbedMetrics,
    ) -> std::io::Result<Self> {
        let shared =
            Arc::new(Shared { queue: Mutex::default(), work: Condvar::new(), metrics, batch_max: batch_max.max(1) });
        let pool = Self { shared: shared.clone(), threads: Mutex::default() };
        for number in 0..threads.max(1) {
            let (shared, model) = (shared.clone(), model.clone());
            let thread =
                std::thread::Builder::new().name(format!("embed-{number}")).spawn(move || shared.run(&*model))?;
            pool.threads.lock().push(thread);
        }
        Ok(pool)
    }

    /// See [`super::Embedder::embed`].
    pub async fn embed(
        &self,
        texts: Vec<String>,
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<Vec<Embedding>, EmbedError> {
        if texts.len() > limits::EMBED_TEXTS_MAX {
            return Err(EmbedError::TooLarge { texts: texts.len(), texts_max: limits::EMBED_TEXTS_MAX });
        }
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let reply = self.shared.enqueue(texts, purpose, deadline)?;
        match tokio::time::timeout_at(deadline.into(), reply).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(EmbedError::Closed),
            Err(_) => Err(EmbedError::DeadlineExceeded),
        }
    }

    /// Refuses new work, answers what waits with `Closed`, and waits for the threads' current batches. Blocking.
    pub fn close(&self) {
        self.shared.close();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("an embedding thread had panicked");
            }
        }
    }
}

impl Drop for BatchPool {
    fn drop(&mut self) {
        self.shared.close();
    }
}

type Reply = oneshot::Receiver<Result<Vec<Embedding>, EmbedError>>;

impl Shared {
    fn enqueue(&self, texts: Vec<String>, purpose: Purpose, deadline: Instant) -> Result<Reply, EmbedError> {
        let (sender, receiver) = oneshot::channel();
        let count = texts.len();
        let state = CallState { results: vec![None; count], missing: count, reply: Some(sender) };
        let call = Arc::new(Call { deadline, state: Mutex::new(state) });
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err(EmbedError::Closed);
        }
        let is_ingest_full = purpose == Purpose::Ingest && queue.ingest.len() + count > INGEST_QUEUE_MAX;
        if is_ingest_full || queue.len() + count > limits::EMBED_QUEUE_MAX {
            self.metrics.overloaded.inc_by(count as u64);
            return Err(EmbedError::Overloaded { queued_max: limits::EMBED_QUEUE_MAX });
        }
        let lane = match purpose {
            Purpose::Query => &mut queue.queries,
            Purpose::Ingest => &mut queue.ingest,
        };
        lane.extend(texts.into_iter().enumerate().map(|(place, text)| Job { text, place, call: call.clone() }));
        self.metrics.queued.set(queue.len() as i64);
        drop(queue);
        self.work.notify_one();
        Ok(receiver)
    }

    fn run(&self, model: &dyn Model) {
        // Held until the thread ends: it may own thread-local state of the model's library.
        let _entered = match model.enter_thread() {
            Ok(entered) => entered,
            Err(error) => {
                tracing::error!(error, "embedding thread cannot start");
                return self.close();
            }
        };
        while let Some(jobs) = self.next_batch(model) {
            let started = Instant::now();
            let (jobs, texts): (Vec<Job>, Vec<Vec<u32>>) = jobs.into_iter().unzip();
            let tokens: usize = texts.iter().map(Vec::len).sum();
            let result = contained(|| model.forward(&texts));
            self.metrics.forward_seconds.observe(started.elapsed().as_secs_f64());
            self.metrics.batch_texts.observe(texts.len() as f64);
            self.metrics.texts.inc_by(texts.len() as u64);
            self.metrics.tokens.inc_by(tokens as u64);
            match result {
                Ok(vectors) => {
                    for (job, vector) in jobs.into_iter().zip(vectors) {
                        job.call.fill(job.place, Arc::from(vector));
                    }
                }
                Err(message) => {
                    jobs.iter().for_each(|job| job.call.answer(Err(EmbedError::Model(message.clone()))));
                }
            }
        }
    }

    /// Waits for work and takes a batch of it, tokenized. `None` once closed.
    fn next_batch(&self, model: &dyn Model) -> Option<Vec<(Job, Vec<u32>)>> {
        loop {
            let mut batch = Vec::new();
            let mut tokens = 0;
            let ingest_first = {
                let mut queue = self.queue.lock();
                while queue.is_empty() && !queue.closed {
                    self.work.wait(&mut queue);
                }
                if queue.closed {
                    return None;
                }
                queue.batches += 1;
                queue.batches.is_multiple_of(INGEST_TURN)
            };
            while batch.len() < self.batch_max && tokens < BATCH_TOKENS {
                let Some(job) = self.pop(ingest_first) else { break };
                if !job.call.is_wanted() {
                    self.metrics.abandoned.inc();
                    continue;
                }
                match contained(|| model.tokenize(&job.text)) {
                    Ok(ids) => {
                        tokens += ids.len();
                        batch.push((job, ids));
                    }
                    Err(message) => job.call.answer(Err(EmbedError::Model(message))),
                }
            }
            if !batch.is_empty() {
                // What is left is for another thread, which may have slept through its own notification's work.
                self.work.notify_one();
                return Some(batch);
            }
        }
    }

    fn pop(&self, ingest_first: bool) -> Option<Job> {
        let mut queue = self.queue.lock();
        let Queue { queries, ingest, .. } = &mut *queue;
        let (first, second) = if ingest_first { (ingest, queries) } else { (queries, ingest) };
        let job = first.pop_front().or_else(|| second.pop_front());
        self.metrics.queued.set(queue.len() as i64);
        job
    }

    fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        let Queue { queries, ingest, .. } = &mut *queue;
        for job in queries.drain(..).chain(ingest.drain(..)) {
            job.call.answer(Err(EmbedError::Closed));
        }
        self.metrics.queued.set(0);
        drop(queue);
        self.work.notify_all();
    }
}

/// A panic of the model is the failure of the texts in hand, not the end of the thread: the others wait for it.
fn contained<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("it panicked".to_owned()))
}

impl Queue {
    fn len(&self) -> usize {
        self.queries.len() + self.ingest.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Call {
    fn is_wanted(&self) -> bool {
        Instant::now() < self.deadline && self.state.lock().reply.as_ref().is_some_and(|reply| !reply.is_closed())
    }

    fn fill(&self, place: usize, vector: Embedding) {
        let mut state = self.state.lock();
        state.results[place] = Some(vector);
        state.missing -= 1;
        if state.missing == 0 {
            let vectors = state.results.drain(..).flatten().collect();
            drop(state);
            self.answer(Ok(vectors));
        }
    }

    /// Answers the call unless it has been answered; a caller that has gone is not an error.
    fn answer(&self, result: Result<Vec<Embedding>, EmbedError>) {
        if let Some(reply) = self.state.lock().reply.take() {
            let _ = reply.send(result);
        }
    }
}

#[cfg(test)]
mod tests;
