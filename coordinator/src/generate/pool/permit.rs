//! Places at the backends: who may ask which one now, who waits, and what has been learned of each backend.
//!
//! Invariant: whoever waits could not be served at the last change of the state, because every change ends in [`Shared::dispatch`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::limits;
use parking_lot::Mutex;
use rand::Rng;
use reqwest::Client;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use super::super::health::Health;
use super::super::metrics::PoolMetrics;
use super::super::{Affinity, GenerateError, GenerateEvent};
use super::budget::Budget;
use super::choose::{Chance, Choice, Seat, choose};
use super::lanes::{Lane, Opens, belongs, lanes};
use super::load::{Mean, PeakEwma, Told};
use super::queue::{FairQueue, Ticket};
use super::{Begin, Member, Policy};
use crate::cluster::hedge::Latencies;

/// Shortest and longest `Retry-After`.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// What all clones of a pool share.
pub(super) struct Shared {
    pub(super) policy: Policy,
    pub(super) client: Option<Client>,
    pub(super) metrics: PoolMetrics,
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    pub(super) entries: BTreeMap<u64, Entry>,
    pub(super) next_id: u64,
    pub(super) queue: FairQueue<Waiter>,
    /// Breaks ties in turn.
    pub(super) turn: u64,
    pub(super) retries: Budget,
    pub(super) hedges: Budget,
    /// Times to the first token, over all backends.
    pub(super) first_tokens: Latencies,
    /// How long a place is held.
    pub(super) held: Mean,
}

/// A member and what has been learned of it.
pub(super) struct Entry {
    pub(super) member: Arc<Member>,
    pub(super) in_flight: usize,
    pub(super) health: Health,
    pub(super) cost: PeakEwma,
    pub(super) told: Told,
}

impl Entry {
    pub(super) fn new(member: Arc<Member>) -> Self {
        Self { member, in_flight: 0, health: Health::default(), cost: PeakEwma::default(), told: Told::default() }
    }
}

/// What a request wants of the pool.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) lanes: Vec<Lane>,
    pub(super) affinity: Affinity,
    pub(super) tenant: String,
    /// Backends that this request has asked already.
    pub(super) tried: Vec<u64>,
}

impl Wish {
    pub(super) fn new(policy: &Policy, model: Option<&str>, affinity: Affinity, tenant: String) -> Self {
        Self { lanes: lanes(policy, model), affinity, tenant, tried: Vec::new() }
    }
}

/// A request in the queue.
pub(super) struct Waiter {
    wish: Wish,
    answer: oneshot::Sender<Result<Wanted, GenerateError>>,
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
    /// A place at one of the backends that the wish allows, waiting for one if all of the healthy are full.
    ///
    /// Errors: `Overloaded` (the queue is full and this tenant has the most in it, now or later; or its timeout over), `DeadlineExceeded`.
    /// Cancel: dropping the future frees the place in the queue, or the place at the backend that it was just given.
    pub(super) async fn permit(self: &Arc<Self>, wish: &Wish, deadline: Instant) -> Result<Wanted, GenerateError> {
        let patience = deadline.min(Instant::now() + self.policy.timeouts.queue);
        let (answer, answered) = oneshot::channel();
        let ticket = {
            let mut state = self.state.lock();
            if state.queue.len() == 0
                && let Some(wanted) = self.take(&mut state, wish)
            {
                return Ok(wanted);
            }
            if state.queue.len() >= limits::LLM_QUEUE_MAX {
                let overloaded = GenerateError::Overloaded { retry_after: retry_after(&state) };
                let Some(gone) = state.queue.make_room(&wish.tenant) else { return Err(overloaded) };
                drop(gone.answer.send(Err(overloaded)));
            }
            let waiter = Waiter { wish: wish.clone(), answer };
            let ticket = state.queue.push(&wish.tenant, waiter);
            self.metrics.waiting.set(state.queue.len() as i64);
            ticket
        };
        let waiting = Waiting { shared: self, ticket };
        self.dispatch();
        let outcome = timeout_at(patience.into(), answered).await;
        drop(waiting);
        match outcome {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(GenerateError::Unavailable { reason: "the pool is closed".to_owned() }),
            Err(_) if patience == deadline => Err(GenerateError::DeadlineExceeded),
            Err(_) => Err(GenerateError::Overloaded { retry_after: retry_after(&self.state.lock()) }),
        }
    }

    /// A place for a second copy of a request: only one that is free, and not while others wait.
    pub(super) fn spare_permit(self: &Arc<Self>, wish: &Wish) -> Option<Permit> {
        let mut state = self.state.lock();
        if state.queue.len() > 0 {
            return None;
        }
        let mut budget = state.hedges;
        if !budget.spend() {
            return None;
        }
        match self.take(&mut state, wish)? {
            Wanted::Permit(permit) => {
                state.hedges = budget;
                Some(permit)
            }
            Wanted::NoneLeft { .. } => None,
        }
    }

    /// Serves whoever waits and can be served now, in the order of their turns.
    pub(super) fn dispatch(self: &Arc<Self>) {
        let mut served = Vec::new();
        {
            let mut state = self.state.lock();
            let mut queue = std::mem::take(&mut state.queue);
            let ready =
                queue.in_order().filter_map(|(ticket, waiter)| Some((ticket, self.take(&mut state, &waiter.wish)?)));
            for (ticket, wanted) in ready.collect::<Vec<_>>() {
                served.extend(queue.serve(ticket).map(|waiter| (waiter.answer, wanted)));
            }
            self.metrics.waiting.set(queue.len() as i64);
            state.queue = queue;
        }
        // Outside of the lock: a permit that nobody waits for any more is given back here.
        for (answer, wanted) in served {
            drop(answer.send(Ok(wanted)));
        }
    }

    /// A place, or the news that waiting for one is vain; `None`: wait.
    fn take(self: &Arc<Self>, state: &mut State, wish: &Wish) -> Option<Wanted> {
        let now = Instant::now();
        let (mut is_any_full, mut allowed) = (false, Vec::new());
        for lane in &wish.lanes {
            if lane.opens == Opens::WhenDown && is_any_full {
                continue;
            }
            let seats = self.seats(state, lane, &wish.tried, now);
            state.turn = state.turn.wrapping_add(1);
            let mut random = rand::rng();
            let chance = Chance { turn: state.turn, draws: (random.random(), random.random()) };
            match choose(self.policy.balance, &seats, wish.affinity, chance) {
                Choice::AllFull => is_any_full = true,
                Choice::NoneUsable => allowed.extend(seats.iter().map(|seat| seat.id)),
                Choice::Take(id) => return self.seat(state, id, lane).map(Wanted::Permit),
            }
        }
        if is_any_full {
            return None;
        }
        let busy_for = allowed.iter().filter_map(|id| state.entries.get(id)?.health.busy_for(now)).min();
        Some(Wanted::NoneLeft { busy_for })
    }

    fn seats(&self, state: &State, lane: &Lane, tried: &[u64], now: Instant) -> Vec<Seat> {
        let is_known = lane
            .model
            .as_deref()
            .is_none_or(|model| state.entries.values().any(|entry| entry.member.backend.model() == model));
        let in_lane = state.entries.iter().filter(|(id, entry)| {
            !tried.contains(id) && belongs(&self.policy, lane, entry.member.backend.model(), is_known)
        });
        let seat = |(id, entry): (&u64, &Entry)| Seat {
            id: *id,
            weight: entry.member.weight.max(1),
            priority: entry.member.priority,
            in_flight: entry.in_flight,
            in_flight_max: entry.member.concurrency_max.max(1),
            is_usable: entry.health.admits(now),
            foreign: entry.told.foreign,
            cost: entry.cost.seconds(now),
            penalty: entry.told.penalty,
        };
        in_lane.map(seat).collect()
    }

    fn seat(self: &Arc<Self>, state: &mut State, id: u64, lane: &Lane) -> Option<Permit> {
        let entry = state.entries.get_mut(&id)?;
        entry.in_flight += 1;
        let (member, is_trial) = (Arc::clone(&entry.member), entry.health.begin());
        self.metrics.in_flight.with_label_values(&[member.backend.name()]).inc();
        let model = lane.model.clone().unwrap_or_else(|| member.backend.model().to_owned());
        let began = Instant::now();
        Some(Permit { shared: Arc::clone(self), id, member, model, began, is_trial, is_settled: false })
    }
}

/// About when one of those who wait now would be through, if all of them had to be before: honest to the second.
fn retry_after(state: &State) -> Duration {
    let now = Instant::now();
    let usable = state.entries.values().filter(|entry| entry.health.admits(now));
    let places: usize = usable.map(|entry| entry.member.concurrency_max.max(1)).sum();
    let rounds = (state.queue.len() + 1) as f64 / places.max(1) as f64;
    let seconds = rounds.max(1.0) * state.held.seconds().unwrap_or(1.0);
    Duration::from_secs(seconds.ceil() as u64).clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
}

/// A place in the queue, left on drop.
struct Waiting<'a> {
    shared: &'a Shared,
    ticket: Ticket,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        let left = state.queue.remove(self.ticket);
        self.shared.metrics.waiting.set(state.queue.len() as i64);
        drop(state);
        drop(left);
    }
}

/// The right to one request at a backend, given back on drop. Dropped without a verdict it counts as cancelled.
pub(super) struct Permit {
    shared: Arc<Shared>,
    pub(super) id: u64,
    pub(super) member: Arc<Member>,
    /// The model to ask for.
    pub(super) model: String,
    began: Instant,
    /// The backend is ejected, and this request finds out whether it is back.
    is_trial: bool,
    is_settled: bool,
}

impl Permit {
    pub(super) fn name(&self) -> &str {
        self.member.backend.name()
    }

    pub(super) fn policy(&self) -> &Policy {
        &self.shared.policy
    }

    fn learn<T>(&self, learn: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.shared.state.lock().entries.get_mut(&self.id).map(learn)
    }

    pub(super) fn settle(&mut self, outcome: &str) {
        if !std::mem::replace(&mut self.is_settled, true) {
            self.shared.metrics.requests.with_label_values(&[self.name(), outcome]).inc();
        }
    }

    /// The first token came after `waited`.
    pub(super) fn succeed(&self, waited: Duration) {
        let now = Instant::now();
        self.learn(|entry| {
            entry.health.succeed(now);
            entry.cost.observe(now, waited);
        });
        self.shared.state.lock().first_tokens.note(now, waited);
        self.shared.metrics.ejected.with_label_values(&[self.name()]).set(0);
        self.shared.metrics.first_token_seconds.with_label_values(&[self.name()]).observe(waited.as_secs_f64());
    }

    /// No answer, or a broken one. `waited`: how long for nothing, where that says how slow the backend is.
    pub(super) fn fail(&mut self, outcome: &str, waited: Option<Duration>) {
        self.settle(outcome);
        let (now, is_trial) = (Instant::now(), self.is_trial);
        let is_ejected = self.learn(|entry| {
            if let Some(waited) = waited {
                entry.cost.observe(now, waited);
            }
            entry.health.fail(now, is_trial)
        });
        if is_ejected == Some(true) {
            tracing::warn!(backend = self.name(), "language model backend is left out for a while");
            self.shared.metrics.ejected.with_label_values(&[self.name()]).set(1);
        }
    }

    pub(super) fn busy(&mut self, retry_after_s: Option<u64>) -> Begin {
        self.settle("busy");
        let retry_after = retry_after_s.map(Duration::from_secs);
        let pause = self.learn(|entry| entry.health.busy(Instant::now(), retry_after));
        Begin::Busy(pause.unwrap_or(RETRY_AFTER_MIN))
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
        {
            let mut state = self.shared.state.lock();
            state.held.observe(self.began.elapsed());
            if let Some(entry) = state.entries.get_mut(&self.id) {
                entry.in_flight -= 1;
                if self.is_trial {
                    entry.health.abandon_trial();
                }
                self.shared.metrics.in_flight.with_label_values(&[self.name()]).dec();
            }
        }
        self.shared.dispatch();
    }
}
