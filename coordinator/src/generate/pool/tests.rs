//! The pool over scripted backends.

mod choice;
mod course;
mod members;
mod places;

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::BoxFuture;
use tokio::sync::mpsc;

use super::super::backend::{Backend, Identity};
use super::super::{FinishReason, Usage};
use super::*;

/// What a scripted backend does with a request.
enum Act {
    Refuse(BackendError),
    /// Never answers.
    Hang,
    /// Streams what the test sends into the channel, and ends when the test drops its end.
    Stream(mpsc::Receiver<Result<GenerateEvent, GenerateError>>),
}

struct Scripted {
    name: String,
    model: String,
    acts: Mutex<Vec<Act>>,
    asked: AtomicUsize,
    probe: Mutex<Result<Report, BackendError>>,
}

impl Backend for Scripted {
    fn name(&self) -> &str {
        &self.name
    }

    fn url(&self) -> &str {
        "http://scripted"
    }

    fn model(&self) -> &str {
        &self.model
    }

    fn generate(&self, _request: GenerateRequest) -> BoxFuture<'_, Result<EventStream, BackendError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let act = self.acts.lock().pop().expect("the script foresees this request");
        Box::pin(async move {
            match act {
                Act::Refuse(error) => Err(error),
                Act::Hang => std::future::pending().await,
                Act::Stream(events) => Ok(tokio_stream::wrappers::ReceiverStream::new(events).boxed()),
            }
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<Report, BackendError>> {
        let answer = self.probe.lock().clone();
        Box::pin(async move { answer })
    }
}

/// A backend that plays `acts` in order.
fn backend(name: &str, acts: Vec<Act>) -> Arc<Scripted> {
    Arc::new(Scripted {
        name: name.into(),
        model: format!("model-of-{name}"),
        acts: Mutex::new(acts.into_iter().rev().collect()),
        asked: AtomicUsize::new(0),
        probe: Mutex::new(Err(failed())),
    })
}

fn members(backends: &[&Arc<Scripted>], concurrency_max: usize) -> Vec<Member> {
    backends.iter().map(|backend| Member::new((*backend).clone() as Arc<dyn Backend>, concurrency_max)).collect()
}

fn pool(backends: &[&Arc<Scripted>], concurrency_max: usize, timeouts: Timeouts) -> Pool {
    let policy = Policy { timeouts, ..Policy::default() };
    Pool::new(members(backends, concurrency_max), policy, PoolMetrics::new())
}

impl Pool {
    fn in_flight(&self) -> Vec<usize> {
        self.status().iter().map(|backend| backend.in_flight).collect()
    }

    fn states(&self) -> Vec<&'static str> {
        self.status().iter().map(|backend| backend.state).collect()
    }
}

/// Asks in the background as `tenant`.
fn asked_by(pool: &Pool, tenant: &str) -> tokio::task::JoinHandle<Result<Generation, GenerateError>> {
    let (pool, tenant) = (pool.clone(), tenant.to_owned());
    tokio::spawn(async move { pool.generate(GenerateRequest { tenant, ..GenerateRequest::default() }, far()).await })
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

fn failed() -> BackendError {
    BackendError::Failed("status 500".into())
}

fn busy(retry_after_s: u64) -> Act {
    Act::Refuse(BackendError::Busy { status: 503, retry_after_s: Some(retry_after_s) })
}

fn delta(text: &str) -> Result<GenerateEvent, GenerateError> {
    Ok(GenerateEvent::Delta(text.into()))
}

fn done() -> Result<GenerateEvent, GenerateError> {
    Ok(GenerateEvent::Done { finish_reason: FinishReason::Stop })
}

/// A whole answer, already written.
fn answer(text: &str) -> Act {
    let (sender, receiver) = mpsc::channel(4);
    for event in [delta(text), Ok(GenerateEvent::Usage(Usage { prompt_tokens: 3, completion_tokens: 1 })), done()] {
        sender.try_send(event).expect("room");
    }
    Act::Stream(receiver)
}

fn live() -> (mpsc::Sender<Result<GenerateEvent, GenerateError>>, Act) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, Act::Stream(receiver))
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

async fn text_of(generation: Generation) -> String {
    let events: Vec<_> = generation.events.collect().await;
    assert!(matches!(events.last(), Some(Ok(GenerateEvent::Done { .. }))), "{events:?}");
    events
        .into_iter()
        .filter_map(|event| if let Ok(GenerateEvent::Delta(text)) = event { Some(text) } else { None })
        .collect()
}

async fn ask(pool: &Pool) -> Result<Generation, GenerateError> {
    pool.generate(GenerateRequest::default(), far()).await
}
