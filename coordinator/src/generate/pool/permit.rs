//! Places at the backends: who may ask which one now, who waits, and what each backend's health has learned.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::limits;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout_at;

use super::super::health::Health;
use super::super::metrics::PoolMetrics;
use super::super::{GenerateError, GenerateEvent, GenerateOptions};
use super::{Balance, Begin, Member, Timeouts, choose};

/// What all clones of a pool share.
pub(super) struct Shared {
    pub(super) members: Vec<Member>,
    pub(super) balance: Balance,
    pub(super) timeouts: Timeouts,
    pub(super) defaults: GenerateOptions,
    pub(super) metrics: PoolMetrics,
    pub(super) state: Mutex<State>,
    /// A place has become free, or a backend has come back.
    pub(super) freed: Notify,
}

pub(super) struct State {
    pub(super) in_flight: Vec<usize>,
    pub(super) health: Vec<Health>,
    pub(super) waiting: usize,
    /// Breaks ties in turn.
    pub(super) turn: usize,
}

/// What asking for a place comes to.
pub(super) enum Wanted {
    Permit(Permit),
    /// Nobody left to ask. `busy_for`: some only asked to be left alone for this long.
    NoneLeft {
        busy_for: Option<Duration>,
    },
}

impl Shared {
    pub(super) fn candidates(&self, model: Option<&str>) -> Vec<usize> {
        let all = 0..self.members.len();
        let with_model: Vec<usize> = all
            .clone()
            .filter(|place| model.is_some_and(|model| self.members[*place].backend.model() == model))
            .collect();
        if with_model.is_empty() { all.collect() } else { with_model }
    }

    /// A place at one of `untried`, waiting for one if all of the healthy are full.
    pub(super) async fn permit(
        self: &Arc<Self>,
        untried: &[usize],
        affinity: Option<u64>,
        deadline: Instant,
    ) -> Result<Wanted, GenerateError> {
        let patience = deadline.min(Instant::now() + self.timeouts.queue);
        let mut waiting: Option<Waiting<'_>> = None;
        loop {
            // Registered before looking, so that a place freed in between is not missed.
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(wanted) = self.take(untried, affinity) {
                return Ok(wanted);
            }
            if waiting.is_none() {
                waiting = Some(Waiting::enter(self)?);
            }
            if timeout_at(patience.into(), freed).await.is_err() {
                return Err(if patience == deadline {
                    GenerateError::DeadlineExceeded
                } else {
                    overloaded(self.timeouts.queue)
                });
            }
        }
    }

    /// A place, or the news that waiting for one is vain; `None`: wait.
    fn take(self: &Arc<Self>, untried: &[usize], affinity: Option<u64>) -> Option<Wanted> {
        let mut state = self.state.lock();
        let now = Instant::now();
        let seats: Vec<choose::Seat> = untried
            .iter()
            .map(|place| choose::Seat {
                place: *place,
                weight: self.members[*place].weight.max(1),
                in_flight: state.in_flight[*place],
                in_flight_max: self.members[*place].concurrency_max.max(1),
                is_usable: state.health[*place].admits(now),
            })
            .collect();
        state.turn = state.turn.wrapping_add(1);
        match choose::choose(self.balance, &seats, affinity, state.turn) {
            choose::Choice::AllFull => None,
            choose::Choice::NoneUsable => {
                let busy_for = untried.iter().filter_map(|place| state.health[*place].busy_for(now)).min();
                Some(Wanted::NoneLeft { busy_for })
            }
            choose::Choice::Take(place) => {
                state.in_flight[place] += 1;
                let is_trial = state.health[place].begin();
                self.metrics.in_flight.with_label_values(&[self.members[place].backend.name()]).inc();
                Some(Wanted::Permit(Permit { shared: self.clone(), place, is_trial, is_settled: false }))
            }
        }
    }

    pub(super) async fn probe_ejected(&self) {
        let ejected: Vec<usize> = {
            let state = self.state.lock();
            (0..self.members.len()).filter(|place| state.health[*place].is_ejected()).collect()
        };
        for place in ejected {
            let backend = &self.members[place].backend;
            if let Ok(Ok(())) = tokio::time::timeout(self.timeouts.probe, backend.probe()).await {
                self.state.lock().health[place].succeed();
                self.metrics.ejected.with_label_values(&[backend.name()]).set(0);
                tracing::info!(backend = backend.name(), "language model backend is back");
                self.freed.notify_waiters();
            }
        }
    }
}

/// Honest to the second: about when one of those now running is through.
fn overloaded(retry_after: Duration) -> GenerateError {
    GenerateError::Overloaded { retry_after: retry_after.max(Duration::from_secs(1)) }
}

/// A place in the bounded queue before the backends.
struct Waiting<'a>(&'a Shared);

impl<'a> Waiting<'a> {
    fn enter(shared: &'a Shared) -> Result<Self, GenerateError> {
        let mut state = shared.state.lock();
        if state.waiting >= limits::LLM_QUEUE_MAX {
            return Err(overloaded(shared.timeouts.queue));
        }
        state.waiting += 1;
        shared.metrics.waiting.set(state.waiting as i64);
        Ok(Self(shared))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.waiting -= 1;
        self.0.metrics.waiting.set(state.waiting as i64);
    }
}

/// The right to one request at a backend, given back on drop. Dropped without a verdict it counts as cancelled.
pub(super) struct Permit {
    pub(super) shared: Arc<Shared>,
    pub(super) place: usize,
    /// The backend is ejected, and this request finds out whether it is back.
    is_trial: bool,
    is_settled: bool,
}

impl Permit {
    pub(super) fn member(&self) -> &Member {
        &self.shared.members[self.place]
    }

    fn name(&self) -> &str {
        self.member().backend.name()
    }

    pub(super) fn settle(&mut self, outcome: &str) {
        if !std::mem::replace(&mut self.is_settled, true) {
            self.shared.metrics.requests.with_label_values(&[self.name(), outcome]).inc();
        }
    }

    pub(super) fn succeed(&self) {
        self.shared.state.lock().health[self.place].succeed();
        self.shared.metrics.ejected.with_label_values(&[self.name()]).set(0);
    }

    pub(super) fn fail(&mut self, outcome: &str, message: String) -> Begin {
        self.settle(outcome);
        let is_ejected = self.shared.state.lock().health[self.place].fail(Instant::now(), self.is_trial);
        if is_ejected {
            tracing::warn!(backend = self.name(), reason = message, "language model backend is left out for a while");
            self.shared.metrics.ejected.with_label_values(&[self.name()]).set(1);
        }
        Begin::Failed(message)
    }

    pub(super) fn busy(&mut self, retry_after_s: Option<u64>) -> Duration {
        self.settle("busy");
        let retry_after = retry_after_s.map(Duration::from_secs);
        self.shared.state.lock().health[self.place].busy(Instant::now(), retry_after)
    }

    pub(super) fn observe_first(&self, waited: Duration) {
        self.shared.metrics.first_token_seconds.with_label_values(&[self.name()]).observe(waited.as_secs_f64());
    }

    pub(super) fn observe_gap(&self, waited: Duration) {
        self.shared.metrics.token_gap_seconds.with_label_values(&[self.name()]).observe(waited.as_secs_f64());
    }

    pub(super) fn count(&self, event: &GenerateEvent) {
        if let GenerateEvent::Usage(usage) = event {
            let tokens = &self.shared.metrics.tokens;
            tokens.with_label_values(&[self.name(), "prompt"]).inc_by(usage.prompt_tokens);
            tokens.with_label_values(&[self.name(), "completion"]).inc_by(usage.completion_tokens);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.settle("cancelled");
        self.shared.metrics.in_flight.with_label_values(&[self.name()]).dec();
        let mut state = self.shared.state.lock();
        state.in_flight[self.place] -= 1;
        if self.is_trial {
            state.health[self.place].abandon_trial();
        }
        drop(state);
        // All, not one: who waits may have tried this very backend already.
        self.shared.freed.notify_waiters();
    }
}
