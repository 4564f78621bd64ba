//! The backends as one: who gets the next request, how many each may have, who is left out, how long anything may take.
//!
//! One request's way: a permit (waiting at most `Timeouts::queue`, in a bounded queue) > the backend > its first event, which is the
//! commit point > the stream, which owns the permit. Before the first event a failing backend is replaced by the next;
//! after it the caller has text, so a failure is an error in the stream.
//!
//! Invariants: requests at a backend <= its `concurrency_max`; a permit is given back when its stream ends or is dropped, never
//! by the return of a function; a request asks each backend at most once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::coordinator_config::{LlmConfig, LlmKind};
use cluster_config::limits;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;

use super::backend::{Backend, BackendError};
use super::health::Health;
use super::metrics::PoolMetrics;
use super::ollama::Ollama;
use super::openai::OpenAi;
use super::{EventStream, GenerateError, GenerateEvent, GenerateOptions, GenerateRequest, stream};

mod choose;
mod permit;

pub use choose::Balance;
use permit::{Permit, Shared, State, Wanted};

/// How long each step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP and TLS.
    pub connect: Duration,
    /// Waiting for a backend with a free place.
    pub queue: Duration,
    /// From a permit to the first token: loading a model can take most of it.
    pub first_token: Duration,
    /// Between two tokens.
    pub token_gap: Duration,
    /// The whole answer.
    pub total: Duration,
    /// A probe of an ejected backend.
    pub probe: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            queue: Duration::from_secs(10),
            first_token: Duration::from_secs(30),
            token_gap: Duration::from_secs(15),
            total: Duration::from_millis(limits::TIMEOUT_MS_MAX),
            probe: Duration::from_secs(2),
        }
    }
}

/// One backend's place in the pool.
pub struct Member {
    /// How to ask it.
    pub backend: Arc<dyn Backend>,
    /// Share of the requests relative to the others; at least 1.
    pub weight: u32,
    /// Most requests at once; at least 1.
    pub concurrency_max: usize,
}

/// A running answer.
pub struct Generation {
    /// Name of the backend that writes it.
    pub backend: String,
    /// Model that was asked for.
    pub model: String,
    /// Its events. See [`EventStream`].
    pub events: EventStream,
}

/// Why a pool cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The variable that should hold a backend's key does not.
    #[error("backend {backend}: environment variable {variable} is not set")]
    MissingKey {
        /// The backend's name.
        backend: String,
        /// As configured.
        variable: String,
    },
    /// The HTTP client cannot be made.
    #[error("cannot make an HTTP client: {0}")]
    Client(#[from] reqwest::Error),
}

/// How often ejected backends are asked whether they are back.
const PROBE_PERIOD: Duration = Duration::from_secs(1);

/// Cheap to clone; all clones are one pool.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// The configured pool; `None` where no backend is configured. `environment` looks keys up.
    ///
    /// Errors: `MissingKey`, `Client`.
    pub fn from_config(
        config: &LlmConfig,
        environment: impl Fn(&str) -> Option<String>,
        metrics: PoolMetrics,
    ) -> Result<Option<Self>, PoolError> {
        if config.backends.is_empty() {
            return Ok(None);
        }
        let timeouts = Timeouts::default();
        let client = stream::http_client(timeouts.connect)?;
        let mut members = Vec::with_capacity(config.backends.len());
        for written in &config.backends {
            let (name, url, model) = (written.name.clone(), written.url.clone(), written.model.clone());
            let api_key = match &written.api_key_env {
                None => None,
                Some(variable) => Some(
                    environment(variable)
                        .ok_or_else(|| PoolError::MissingKey { backend: name.clone(), variable: variable.clone() })?,
                ),
            };
            let backend: Arc<dyn Backend> = match written.kind {
                LlmKind::Ollama => Arc::new(Ollama::new(name, url, model, client.clone())),
                LlmKind::Openai => Arc::new(OpenAi::new(name, url, model, api_key, client.clone())),
            };
            members.push(Member { backend, weight: written.weight, concurrency_max: written.concurrency_max });
        }
        let defaults = GenerateOptions {
            max_tokens: Some(config.max_tokens),
            temperature: Some(config.temperature),
            top_k: Some(config.top_k),
            ..GenerateOptions::default()
        };
        Ok(Some(Self::new(members, Balance::LeastConn, timeouts, defaults, metrics)))
    }

    /// A pool of `members`. `defaults` fill what a request leaves open.
    pub fn new(
        members: Vec<Member>,
        balance: Balance,
        timeouts: Timeouts,
        defaults: GenerateOptions,
        metrics: PoolMetrics,
    ) -> Self {
        let count = members.len();
        let state = State { in_flight: vec![0; count], health: vec![Health::default(); count], waiting: 0, turn: 0 };
        let state = Mutex::new(state);
        Self { shared: Arc::new(Shared { members, balance, timeouts, defaults, metrics, state, freed: Notify::new() }) }
    }

    /// Names and models of the backends, as configured.
    pub fn models(&self) -> Vec<(String, String)> {
        let names = |member: &Member| (member.backend.name().to_owned(), member.backend.model().to_owned());
        self.shared.members.iter().map(names).collect()
    }

    /// Starts an answer and returns with its first event in hand.
    ///
    /// A request that names a model goes to the backends configured with it; if there is none, to all.
    /// Errors: `Overloaded` (no place before the queue's timeout, or all backends say so), `Unavailable`, `Refused`, `DeadlineExceeded`.
    /// Cancel: dropping the future or the stream closes the backend's connection and gives the permit back.
    pub async fn generate(&self, mut request: GenerateRequest, deadline: Instant) -> Result<Generation, GenerateError> {
        request.options.fill_from(&self.shared.defaults);
        let deadline = deadline.min(Instant::now() + self.shared.timeouts.total);
        let mut untried = self.shared.candidates(request.model.as_deref());
        let mut last = Failure { unavailable: "all are left out after failures".to_owned(), refused: None, busy: None };
        loop {
            let permit = match self.shared.permit(&untried, request.affinity, deadline).await? {
                Wanted::Permit(permit) => permit,
                Wanted::NoneLeft { busy_for } => {
                    last.busy = last.busy.max(busy_for);
                    return Err(last.into_error());
                }
            };
            untried.retain(|place| *place != permit.place);
            let backend = permit.member().backend.clone();
            let model = request.model.clone().unwrap_or_else(|| backend.model().to_owned());
            match begin(permit, request.clone(), deadline).await {
                Ok(events) => return Ok(Generation { backend: backend.name().to_owned(), model, events }),
                Err(Begin::Deadline) => return Err(GenerateError::DeadlineExceeded),
                Err(Begin::Busy(pause)) => last.busy = last.busy.max(Some(pause)),
                Err(Begin::Failed(message)) => last.unavailable = format!("{}: {message}", backend.name()),
                Err(Begin::Refused { message, is_final }) => {
                    last.refused = Some(GenerateError::Refused { backend: backend.name().to_owned(), message });
                    if is_final {
                        return Err(last.into_error());
                    }
                }
            }
        }
    }

    /// Asks ejected backends each second whether they are back, until cancelled. Without it, an ejected backend is tried with
    /// the next request after its time.
    pub async fn watch(&self, cancel: CancellationToken) {
        let mut ticks = tokio::time::interval(PROBE_PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while cancel.run_until_cancelled(ticks.tick()).await.is_some() {
            if cancel.run_until_cancelled(self.shared.probe_ejected()).await.is_none() {
                return;
            }
        }
    }
}

/// What the tried backends said, most telling last: the error of a request that none of them served.
struct Failure {
    unavailable: String,
    refused: Option<GenerateError>,
    busy: Option<Duration>,
}

impl Failure {
    fn into_error(self) -> GenerateError {
        match (self.busy, self.refused) {
            (Some(retry_after), _) => GenerateError::Overloaded { retry_after },
            (None, Some(refused)) => refused,
            (None, None) => GenerateError::Unavailable { reason: self.unavailable },
        }
    }
}

/// Why a backend gave no first event.
enum Begin {
    Deadline,
    Busy(Duration),
    Failed(String),
    Refused { message: String, is_final: bool },
}

/// Sends the request and waits for the first event.
async fn begin(mut permit: Permit, request: GenerateRequest, deadline: Instant) -> Result<EventStream, Begin> {
    let started = Instant::now();
    let patience = deadline.min(started + permit.shared.timeouts.first_token);
    let backend = permit.member().backend.clone();
    let first = timeout_at(patience.into(), async {
        let mut events = backend.generate(request).await?;
        Ok((events.next().await, events))
    });
    match first.await {
        Ok(Ok((Some(Ok(event)), events))) => {
            permit.succeed();
            permit.observe_first(started.elapsed());
            Ok(pass_on(permit, event, events, deadline))
        }
        Ok(Ok((Some(Err(error)), _))) => Err(permit.fail("failed", error.to_string())),
        Ok(Ok((None, _))) => Err(permit.fail("failed", "it sent nothing".to_owned())),
        Ok(Err(BackendError::Busy { retry_after_s, .. })) => Err(Begin::Busy(permit.busy(retry_after_s))),
        Ok(Err(BackendError::Refused { status, message })) => {
            permit.settle("refused");
            // A model that one backend lacks another may have; other refusals are the request's own fault.
            Err(Begin::Refused { message, is_final: status != 404 })
        }
        Ok(Err(error @ (BackendError::Connect(_) | BackendError::Failed(_)))) => {
            Err(permit.fail("failed", error.to_string()))
        }
        Err(_) if patience == deadline => {
            // The caller's own deadline may be shorter than any model is fast: no verdict on the backend.
            permit.settle("deadline");
            Err(Begin::Deadline)
        }
        Err(_) => Err(permit.fail("failed", "no first token in time".to_owned())),
    }
}

/// The rest of an answer after its first event, each wait bounded. The stream owns the permit.
fn pass_on(mut permit: Permit, first: GenerateEvent, mut events: EventStream, deadline: Instant) -> EventStream {
    async_stream::stream! {
        let name = permit.member().backend.name().to_owned();
        let broken = |message: String| GenerateError::Broken { backend: name.clone(), message };
        let mut next = Some(Ok::<_, GenerateError>(first));
        while let Some(item) = next {
            match item {
                Ok(event) => {
                    permit.count(&event);
                    if matches!(event, GenerateEvent::Done { .. }) {
                        permit.settle("ok");
                        drop((permit, events)); // the backend is free now, however long the caller keeps the stream
                        yield Ok(event);
                        return;
                    }
                    yield Ok(event);
                }
                Err(error) => {
                    permit.fail("broken", error.to_string());
                    drop((permit, events));
                    yield Err(error);
                    return;
                }
            }
            let waiting_since = Instant::now();
            let patience = deadline.min(waiting_since + permit.shared.timeouts.token_gap);
            next = match timeout_at(patience.into(), events.next()).await {
                Ok(Some(item)) => {
                    permit.observe_gap(waiting_since.elapsed());
                    Some(item)
                }
                Ok(None) => Some(Err(broken("it closed without an end".to_owned()))),
                Err(_) if patience == deadline => {
                    permit.settle("deadline");
                    drop((permit, events));
                    yield Err(GenerateError::DeadlineExceeded);
                    return;
                }
                Err(_) => Some(Err(broken("it fell silent".to_owned()))),
            };
        }
    }
    .boxed()
}

#[cfg(test)]
mod tests;
