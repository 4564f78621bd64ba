//! The decisions of a scatter: which copy of which shard is asked when, and what each answer means. No async, no clock, no
//! calls: events and the time go in, calls to be made come out.
//!
//! The walk of one shard: its copies are asked in the plan's order. The next one is asked
//! * at once, when a copy fails with an error that another copy may not give;
//! * after [`SILENCE`] in which its node gave no sign of life: the node counts as failed, and the request is no hedge;
//! * after the p95 of the shard's own answers, if the hedge budget has one left. An overloaded copy's retry is paid from the
//!   same budget.
//!
//! The first good answer wins. When no copy is left, the shard is planned again after a pause (a *lap*), from the state as it is by then:
//! a few times for eventual reads, until the deadline for session and strong ones. A red shard is not waited for.
//!
//! Here is the walk; `waiting` is what time brings, `laps` the planning, `errors` what an answer or an error means.
//!
//! Invariant: every attempt begun on the board is ended there, by an answer, an error, a faster copy, or the drop of the gather.

mod errors;
mod laps;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use cluster_config::error::ErrorKind;
use cluster_config::ids::{NodeId, ShardId};
use cluster_config::search::{Consistency, ShardAnswer};

use self::errors::Reaction;
pub(super) use self::errors::token_void;
use self::laps::EVENTUAL_LAPS_MAX;
use self::waiting::Attempt;
pub use self::waiting::SILENCE;
use super::plan::{Candidate, ShardPlan};
use super::session::Session;
use crate::cluster::client::{CopyTarget, NodeError, ShardReply};
use crate::cluster::load::Sample;
use crate::cluster::stats::NodeStats;

/// Calls to be made: one stream per node.
pub type Calls = BTreeMap<NodeId, Vec<CopyTarget>>;

/// What holds for all shards of one scatter.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// Learns from every answer, and knows when to hedge.
    pub stats: &'a NodeStats,
    /// How fresh answers must be.
    pub consistency: Consistency,
    /// Lowest positions, for session and strong reads.
    pub session: &'a Session,
    /// Queries that each shard answers. Several at once are never hedged: how long they take says nothing about other searches.
    pub queries: usize,
    /// Everything ends here.
    pub deadline: Instant,
}

/// A shard without an answer.
#[derive(Clone, Debug)]
pub struct ShardFailure {
    /// The last error of its copies.
    pub error: NodeError,
    /// No copy gave an answer or an error in time.
    pub timed_out: bool,
}

/// An answered shard.
#[derive(Clone, Debug)]
pub struct ShardSuccess {
    /// One per query.
    pub answers: Vec<ShardAnswer>,
    /// Who answered.
    pub node: NodeId,
    /// The copy that answered.
    pub target: CopyTarget,
    /// Microseconds in the node's queue.
    pub queued_us: u64,
    /// Microseconds computing.
    pub service_us: u64,
}

/// All shards, answered or not.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// Answered shards.
    pub answered: BTreeMap<ShardId, ShardSuccess>,
    /// The others.
    pub failed: BTreeMap<ShardId, ShardFailure>,
    /// Sub-requests beyond the first of each shard.
    pub retries: u64,
    /// Laps beyond the first of each shard.
    pub laps: u64,
}

/// One shard while it is being asked.
#[derive(Default)]
struct Pending {
    /// Copies of this lap that have not been asked, best first.
    queue: VecDeque<Candidate>,
    /// Copies that may still answer, in the order of asking.
    waiting: Vec<Attempt>,
    asked: u64,
    lap: u32,
    next_lap_at: Option<Instant>,
    hedge_at: Option<Instant>,
    is_red: bool,
    was_overloaded: bool,
    last_error: Option<NodeError>,
}

/// A scatter under way.
pub struct Gather<'a> {
    rules: Rules<'a>,
    plan: &'a (dyn Fn(Instant) -> Vec<ShardPlan> + Send + Sync),
    pending: BTreeMap<ShardId, Pending>,
    gathered: Gathered,
    wants_refresh: bool,
}

impl<'a> Gather<'a> {
    /// Begins: plans all shards and asks the first copy of each.
    pub fn start(
        rules: Rules<'a>,
        plan: &'a (dyn Fn(Instant) -> Vec<ShardPlan> + Send + Sync),
        now: Instant,
    ) -> (Self, Calls) {
        let plans = plan(now);
        let pending = plans.iter().map(|plan| (plan.shard, Pending::default())).collect();
        let mut gather = Self { rules, plan, pending, gathered: Gathered::default(), wants_refresh: false };
        let mut calls = Calls::new();
        for plan in plans {
            gather.begin_lap(plan, now, &mut calls);
        }
        (gather, calls)
    }

    /// Whether every shard is answered or has failed.
    pub fn is_done(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether a shard is still waited for.
    pub fn is_pending(&self, shard: ShardId) -> bool {
        self.pending.contains_key(&shard)
    }

    /// What came of it. Shards that are still waited for are not in it.
    pub fn finish(mut self) -> Gathered {
        std::mem::take(&mut self.gathered)
    }

    /// Whether something was seen that a newer cluster state would explain; once.
    pub fn take_wants_refresh(&mut self) -> bool {
        std::mem::take(&mut self.wants_refresh)
    }

    /// A node replied for one shard.
    pub fn on_reply(&mut self, node: NodeId, reply: ShardReply, now: Instant) -> Calls {
        let ShardReply { shard, outcome, queued_us, service_us } = reply;
        let mut calls = Calls::new();
        match outcome.and_then(|answers| self.rules.check(shard, answers)) {
            Ok(answers) => self.succeed(shard, node, answers, queued_us, service_us, now),
            Err(error) => self.on_error(shard, node, error, now, &mut calls),
        }
        calls
    }

    /// A node's stream ended; shards that got no reply will not get one.
    pub fn on_end(
        &mut self,
        node: NodeId,
        unanswered: &BTreeSet<ShardId>,
        error: Option<NodeError>,
        now: Instant,
    ) -> Calls {
        let error = error.unwrap_or_else(|| {
            NodeError::new(ErrorKind::Internal, "the node ended the stream without an answer for this shard")
        });
        let mut calls = Calls::new();
        for shard in unanswered {
            self.on_error(*shard, node, error.clone(), now, &mut calls);
        }
        calls
    }

    /// The cluster state changed: whoever waits for that is planned again at once.
    pub fn on_view(&mut self, now: Instant) -> Calls {
        let follows = self.rules.consistency != Consistency::Eventual;
        for shard in self.pending.values_mut() {
            if shard.next_lap_at.is_some() || (follows && shard.queue.is_empty()) {
                shard.next_lap_at = Some(now);
            }
        }
        let mut calls = Calls::new();
        self.begin_due_laps(now, &mut calls);
        calls
    }

    fn succeed(
        &mut self,
        shard: ShardId,
        node: NodeId,
        answers: Vec<ShardAnswer>,
        queued_us: u64,
        service_us: u64,
        now: Instant,
    ) {
        let Some(attempt) = self.take_attempt(shard, node) else { return };
        let Some(pending) = self.pending.remove(&shard) else { return };
        let mut board = self.rules.stats.lock();
        let response = now.saturating_duration_since(attempt.asked_at);
        board.answered(node, now, Sample { response, queued_us, service_us });
        if attempt.is_hedge {
            board.note_hedge_won();
        }
        // Of the whole wait, or hedged shards would look fast and be hedged ever earlier.
        let oldest = pending.waiting.iter().map(|other| other.asked_at).fold(attempt.asked_at, Instant::min);
        if self.rules.queries == 1 {
            board.note_latency(shard, now, now.saturating_duration_since(oldest));
        }
        for beaten in pending.waiting {
            let waited = now.saturating_duration_since(beaten.asked_at);
            board.beaten(beaten.candidate.node, now, waited, beaten.is_trial);
        }
        let target = attempt.candidate.target;
        self.gathered.answered.insert(shard, ShardSuccess { answers, node, target, queued_us, service_us });
    }

    fn on_error(&mut self, shard: ShardId, node: NodeId, error: NodeError, now: Instant, calls: &mut Calls) {
        let Some(attempt) = self.take_attempt(shard, node) else { return };
        let refusal = self.rules.refusal(&error, now.saturating_duration_since(attempt.asked_at));
        self.rules.stats.lock().refused(node, now, refusal, !error.disconnected, attempt.is_trial);
        let asked = attempt.candidate.target;
        if matches!(error.kind, ErrorKind::NotPrimary | ErrorKind::StaleTerm | ErrorKind::TokenVoid) {
            self.wants_refresh = true;
        }
        let reaction = self.rules.reaction(shard, &asked, &error);
        let Some(pending) = self.pending.get_mut(&shard) else { return };
        // A few times only: a register that is not taken over would be brought again and again.
        let brought_news = pending.lap <= EVENTUAL_LAPS_MAX
            && error.register.as_ref().is_some_and(|register| register.version > asked.cfg_version);
        let timed_out = error.kind == ErrorKind::DeadlineExceeded;
        pending.last_error = Some(error);
        match reaction {
            Reaction::Final => return self.fail(shard, timed_out, now),
            Reaction::ElsewhereOnce => {
                let may_retry = !pending.was_overloaded && !pending.queue.is_empty();
                pending.was_overloaded = true;
                if !(may_retry && self.rules.stats.lock().spend_hedge(now)) {
                    pending.queue.clear();
                }
            }
            Reaction::Elsewhere => {}
        }
        if brought_news {
            pending.next_lap_at = Some(now);
            return self.begin_due_laps(now, calls);
        }
        self.ask_next(shard, now, false, calls);
    }

    /// Asks the shard's next copy. Without one it waits for those asked, for the next lap, or fails.
    fn ask_next(&mut self, shard: ShardId, now: Instant, is_hedge: bool, calls: &mut Calls) {
        let Some(pending) = self.pending.get_mut(&shard) else { return };
        let Some(candidate) = pending.queue.pop_front() else { return self.plan_lap(shard, now) };
        let mut board = self.rules.stats.lock();
        let is_trial = board.begin(candidate.node, now, is_hedge);
        let may_hedge = self.rules.queries == 1
            && !is_hedge
            && pending.queue.front().is_some_and(|next| {
                next.is_sound && (self.rules.consistency == Consistency::Eventual || next.is_primary)
            });
        pending.hedge_at = if may_hedge { board.hedge_delay(shard, now).map(|delay| now + delay) } else { None };
        self.gathered.retries += u64::from(pending.asked > 0);
        pending.asked += 1;
        pending.waiting.push(Attempt::new(candidate, now, is_hedge, is_trial));
        calls.entry(candidate.node).or_default().push(candidate.target);
    }

    fn take_attempt(&mut self, shard: ShardId, node: NodeId) -> Option<Attempt> {
        let waiting = &mut self.pending.get_mut(&shard)?.waiting;
        let place = waiting.iter().position(|attempt| attempt.candidate.node == node)?;
        Some(waiting.remove(place))
    }

    fn fail(&mut self, shard: ShardId, timed_out: bool, now: Instant) {
        let Some(pending) = self.pending.remove(&shard) else { return };
        let mut board = self.rules.stats.lock();
        for attempt in pending.waiting {
            board.beaten(attempt.candidate.node, now, now - attempt.asked_at, attempt.is_trial);
        }
        let error = pending.last_error.unwrap_or_else(|| {
            NodeError::new(ErrorKind::Unavailable, format!("shard {shard} has no copy that may answer"))
        });
        self.gathered.failed.insert(shard, ShardFailure { error, timed_out });
    }
}

impl Drop for Gather<'_> {
    /// The caller left: nobody waits for what was asked.
    fn drop(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let mut board = self.rules.stats.lock();
        for attempt in self.pending.values().flat_map(|pending| &pending.waiting) {
            board.abandoned(attempt.candidate.node, attempt.is_trial);
        }
    }
}

#[cfg(test)]
mod tests;
