//! The backends as one: who gets the next request, how many each may have, who is left out, how long anything may take.
//!
//! One request's way: a permit (waiting at most `Timeouts::queue`, in a bounded, fair queue) > the backend > its first event, which is the
//! commit point > the stream, which owns the permit. Before the first event a failing backend is replaced by the next, and a late one may get
//! company, both within a budget; after it the caller has text, so a failure is an error in the stream.
//!
//! Invariants: requests at a backend <= its `concurrency_max`; a permit is given back when its stream ends or is dropped, never
//! by the return of a function; a request asks each backend at most once.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::limits;
use cluster_config::llm_config::{Balance, LlmRouting};
use futures::StreamExt;
use futures::future::{Either, select};
use parking_lot::Mutex;
use reqwest::Client;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;

use super::backend::{BackendError, Report};
use super::metrics::PoolMetrics;
use super::{EventStream, GenerateError, GenerateEvent, GenerateOptions, GenerateRequest};
use crate::cluster::hedge::Latencies;

mod budget;
mod choose;
mod lanes;
mod load;
mod members;
mod permit;
mod queue;

pub use members::{BackendStatus, Member, PoolError};
use permit::{Permit, Shared, State, Wanted, Wish};

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
    /// One probe.
    pub probe: Duration,
    /// Between two probes of a backend.
    pub probe_interval: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self::of(&LlmRouting::default())
    }
}

/// How a pool decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Who gets the next request.
    pub balance: Balance,
    /// How long each step may take.
    pub timeouts: Timeouts,
    /// Fill what a request leaves open.
    pub defaults: GenerateOptions,
    /// Serves requests that name no model while all other backends are full or down.
    pub fast_model: Option<String>,
    /// Models that stand in while all backends of a model are down.
    pub fallback_models: BTreeMap<String, Vec<String>>,
    /// Further attempts per hundred requests.
    pub retry_percent: u32,
    /// Second copies per hundred requests.
    pub hedge_percent: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self::of(&LlmRouting::default())
    }
}

impl Policy {
    /// As configured, without defaults of the options.
    fn of(routing: &LlmRouting) -> Self {
        Self {
            balance: routing.balance,
            timeouts: Timeouts::of(routing),
            defaults: GenerateOptions::default(),
            fast_model: routing.fast_model.clone(),
            fallback_models: routing.fallback_models.clone(),
            retry_percent: routing.retry_percent,
            hedge_percent: routing.hedge_percent,
        }
    }
}

/// A running answer.
pub struct Generation {
    /// Name of the backend that writes it.
    pub backend: String,
    /// Model that writes it: as asked for, or one that stood in.
    pub model: String,
    /// Its events. See [`EventStream`].
    pub events: EventStream,
}

/// Cheap to clone; all clones are one pool.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// A pool of `members`, of which no two have one name.
    pub fn new(members: Vec<Member>, policy: Policy, metrics: PoolMetrics) -> Self {
        Self::with_client(members, policy, metrics, None)
    }

    /// A pool without backends: answers are extractive until one is added.
    pub fn empty() -> Self {
        Self::new(Vec::new(), Policy::default(), PoolMetrics::new())
    }

    fn with_client(members: Vec<Member>, policy: Policy, metrics: PoolMetrics, client: Option<Client>) -> Self {
        let entries = (0..).zip(members.into_iter().map(|member| permit::Entry::new(Arc::new(member))));
        let entries: BTreeMap<u64, permit::Entry> = entries.collect();
        let state = State {
            next_id: entries.len() as u64,
            entries,
            queue: Default::default(),
            turn: 0,
            retries: budget::Budget::new(policy.retry_percent),
            hedges: budget::Budget::new(policy.hedge_percent),
            first_tokens: Latencies::default(),
            held: Default::default(),
        };
        Self { shared: Arc::new(Shared { policy, client, metrics, state: Mutex::new(state) }) }
    }

    /// Whether `served` is what a request for `asked` (`None`: any model) is meant to get, and not the fast model or another that stood in.
    pub fn is_first_choice(&self, asked: Option<&str>, served: &str) -> bool {
        match asked {
            Some(asked) => asked == served,
            None => self.shared.policy.fast_model.as_deref() != Some(served),
        }
    }

    /// Starts an answer and returns with its first event in hand.
    ///
    /// A request that names a model goes to the backends configured with it; if there is none, to all.
    /// Errors: `Overloaded` (no place before the queue's timeout, or all backends say so), `Unavailable`, `Refused`, `DeadlineExceeded`.
    /// Cancel: dropping the future or the stream closes the backend's connection and gives the permit back.
    pub async fn generate(&self, mut request: GenerateRequest, deadline: Instant) -> Result<Generation, GenerateError> {
        let shared = &self.shared;
        request.options.fill_from(&shared.policy.defaults);
        let deadline = deadline.min(Instant::now() + shared.policy.timeouts.total);
        let tenant = request.tenant.clone();
        let mut wish = Wish::new(&shared.policy, request.model.as_deref(), request.affinity, tenant);
        {
            let mut state = shared.state.lock();
            state.retries.earn();
            state.hedges.earn();
        }
        let mut last = Failure { unavailable: "all are left out after failures".to_owned(), refused: None, busy: None };
        loop {
            let permit = match shared.permit(&wish, deadline).await? {
                Wanted::Permit(permit) => permit,
                Wanted::NoneLeft { busy_for } => {
                    last.busy = last.busy.max(busy_for);
                    return Err(last.into_error());
                }
            };
            wish.tried.push(permit.id);
            let mut failures = match self.attempt(permit, &request, &mut wish, deadline).await {
                Ok(generation) => return Ok(generation),
                Err(failures) => failures,
            };
            // A backend that could not be reached has done no work: turning to the next adds no load.
            let is_free = failures.iter().all(|failure| matches!(failure, Begin::Unreached(_)));
            for failure in failures.drain(..) {
                if last.take(failure) {
                    return Err(last.into_error());
                }
            }
            if !is_free && !shared.state.lock().retries.spend() {
                return Err(last.into_error());
            }
        }
    }

    /// Asks one backend, and a second one where the first token is late and the budget allows. Returns the first answer to begin, or
    /// all failures.
    async fn attempt(
        &self,
        permit: Permit,
        request: &GenerateRequest,
        wish: &mut Wish,
        deadline: Instant,
    ) -> Result<Generation, Vec<Begin>> {
        let patience = self.shared.state.lock().first_tokens.hedge_delay(Instant::now());
        let mut first = pin!(begin(permit, request.clone(), deadline));
        let Some(patience) = patience else { return first.await.map_err(|failure| vec![failure]) };
        if let Ok(begun) = tokio::time::timeout(patience, &mut first).await {
            return begun.map_err(|failure| vec![failure]);
        }
        let Some(spare) = self.shared.spare_permit(wish) else { return first.await.map_err(|failure| vec![failure]) };
        wish.tried.push(spare.id);
        self.shared.metrics.hedges.inc();
        let second = pin!(begin(spare, request.clone(), deadline));
        // The loser is dropped, which closes its connection.
        match select(first, second).await {
            Either::Left((Ok(generation), _)) | Either::Right((Ok(generation), _)) => Ok(generation),
            Either::Left((Err(failure), other)) => other.await.map_err(|second| vec![failure, second]),
            Either::Right((Err(failure), other)) => other.await.map_err(|first| vec![first, failure]),
        }
    }

    /// Asks every backend regularly whether it is well and how loaded, until cancelled. Without it, an ejected backend is tried with
    /// the next request after its time.
    pub async fn watch(&self, cancel: CancellationToken) {
        let mut ticks = tokio::time::interval(self.shared.policy.timeouts.probe_interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while cancel.run_until_cancelled(ticks.tick()).await.is_some() {
            if cancel.run_until_cancelled(self.probe_all()).await.is_none() {
                return;
            }
        }
    }

    /// One round of probes, all at once. A failed one ejects its backend, an answered one takes it back.
    async fn probe_all(&self) {
        let members: Vec<(u64, Arc<Member>)> = {
            let state = self.shared.state.lock();
            state.entries.iter().map(|(id, entry)| (*id, Arc::clone(&entry.member))).collect()
        };
        let probes = members.into_iter().map(|(id, member)| async move {
            let asked = Instant::now();
            let probe = tokio::time::timeout(self.shared.policy.timeouts.probe, member.backend.probe());
            let outcome = match probe.await {
                Ok(Ok(report)) => Ok(report),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("no answer in time".to_owned()),
            };
            self.note_probe(id, member.backend.name(), asked, outcome);
        });
        futures::future::join_all(probes).await;
        self.shared.dispatch();
    }

    fn note_probe(&self, id: u64, name: &str, asked: Instant, outcome: Result<Report, String>) {
        let mut state = self.shared.state.lock();
        let Some(entry) = state.entries.get_mut(&id) else { return };
        let was_ejected = entry.health.is_ejected();
        match &outcome {
            Ok(report) => {
                entry.told = load::told(report, entry.in_flight);
                entry.health.answer_probe();
            }
            Err(_) => entry.health.miss_probe(asked, Instant::now()),
        }
        let is_ejected = entry.health.is_ejected();
        drop(state);
        self.shared.metrics.ejected.with_label_values(&[name]).set(i64::from(is_ejected));
        match outcome {
            Ok(_) if was_ejected => tracing::info!(backend = name, "language model backend is back"),
            Err(reason) if is_ejected && !was_ejected => {
                tracing::warn!(backend = name, reason, "language model backend does not answer its probe");
            }
            _ => {}
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
    /// Takes one more in. True: no other backend would say anything else.
    fn take(&mut self, failure: Begin) -> bool {
        match failure {
            Begin::Deadline => {
                self.refused = Some(GenerateError::DeadlineExceeded);
                self.busy = None;
                true
            }
            Begin::Busy(pause) => {
                self.busy = self.busy.max(Some(pause));
                false
            }
            Begin::Failed(message) | Begin::Unreached(message) => {
                self.unavailable = message;
                false
            }
            Begin::Refused(error) => {
                // A model that one backend lacks another may have; other refusals are the request's own fault.
                let is_final = !matches!(error, GenerateError::Refused { status: 404, .. });
                self.refused = Some(error);
                if is_final {
                    self.busy = None;
                }
                is_final
            }
        }
    }

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
    /// There was no connection.
    Unreached(String),
    Failed(String),
    Refused(GenerateError),
}

/// Sends the request and waits for the first event.
async fn begin(mut permit: Permit, mut request: GenerateRequest, deadline: Instant) -> Result<Generation, Begin> {
    let started = Instant::now();
    let patience = deadline.min(started + permit.policy().timeouts.first_token);
    let member = Arc::clone(&permit.member);
    let name = member.backend.name().to_owned();
    request.model = Some(permit.model.clone());
    let first = timeout_at(patience.into(), async {
        let mut events = member.backend.generate(request).await?;
        Ok((events.next().await, events))
    });
    let failed = |permit: &mut Permit, waited: Option<Duration>, message: String| {
        permit.fail("failed", waited);
        format!("{}: {message}", permit.name())
    };
    match first.await {
        Ok(Ok((Some(Ok(event)), events))) => {
            permit.succeed(started.elapsed());
            let model = permit.model.clone();
            let running = Running { events, permit };
            Ok(Generation { backend: name, model, events: pass_on(running, event, deadline) })
        }
        Ok(Ok((Some(Err(error)), _))) => Err(Begin::Failed(failed(&mut permit, None, error.to_string()))),
        Ok(Ok((None, _))) => Err(Begin::Failed(failed(&mut permit, None, "it sent nothing".to_owned()))),
        Ok(Err(BackendError::Busy { retry_after_s, .. })) => Err(permit.busy(retry_after_s)),
        Ok(Err(BackendError::Refused { status, message })) => {
            permit.settle("refused");
            Err(Begin::Refused(GenerateError::Refused { status, backend: name, message }))
        }
        Ok(Err(error @ BackendError::Connect(_))) => {
            Err(Begin::Unreached(failed(&mut permit, None, error.to_string())))
        }
        Ok(Err(error @ BackendError::Failed(_))) => Err(Begin::Failed(failed(&mut permit, None, error.to_string()))),
        Err(_) if patience == deadline => {
            // The caller's own deadline may be shorter than any model is fast: no verdict on the backend.
            permit.settle("deadline");
            Err(Begin::Deadline)
        }
        Err(_) => {
            let waited = Some(started.elapsed());
            Err(Begin::Failed(failed(&mut permit, waited, "no first token in time".to_owned())))
        }
    }
}

/// A running answer at its backend. The connection is closed before the place is given back (fields are dropped in their order): the
/// next request must not find one more there than allowed.
struct Running {
    events: EventStream,
    permit: Permit,
}

/// The rest of an answer after its first event, each wait bounded. The stream owns the permit.
fn pass_on(running: Running, first: GenerateEvent, deadline: Instant) -> EventStream {
    async_stream::stream! {
        let mut running = running; // as a whole: captured field by field it would be dropped in another order
        let name = running.permit.name().to_owned();
        let broken = |message: String| GenerateError::Broken { backend: name.clone(), message };
        let mut written_bytes = 0;
        let mut next = Some(Ok::<_, GenerateError>(first));
        while let Some(item) = next {
            match item {
                Ok(GenerateEvent::Delta(text)) if written_bytes + text.len() > limits::LLM_ANSWER_BYTES_MAX => {
                    next = Some(Err(broken(format!("an answer above {} bytes", limits::LLM_ANSWER_BYTES_MAX))));
                    continue;
                }
                Ok(event) => {
                    running.permit.count(&event);
                    if let GenerateEvent::Delta(text) = &event {
                        written_bytes += text.len();
                    }
                    if matches!(event, GenerateEvent::Done { .. }) {
                        running.permit.settle("ok");
                        drop(running); // the backend is free now, however long the caller keeps the stream
                        yield Ok(event);
                        return;
                    }
                    yield Ok(event);
                }
                Err(error) => {
                    running.permit.fail("broken", None);
                    drop(running);
                    yield Err(error);
                    return;
                }
            }
            let waiting_since = Instant::now();
            let patience = deadline.min(waiting_since + running.permit.policy().timeouts.token_gap);
            next = match timeout_at(patience.into(), running.events.next()).await {
                Ok(Some(item)) => {
                    running.permit.observe_gap(waiting_since.elapsed());
                    Some(item)
                }
                Ok(None) => Some(Err(broken("it closed without an end".to_owned()))),
                Err(_) if patience == deadline => {
                    running.permit.settle("deadline");
                    drop(running);
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
