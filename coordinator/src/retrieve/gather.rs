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
//! Invariant: every attempt begun on the board is ended there, by an answer, an error, a faster copy, or the drop of the gather.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use cluster_config::error::ErrorKind;
use cluster_config::ids::{NodeId, ShardId};
use cluster_config::search::{Consistency, ShardAnswer};

use super::plan::{Candidate, ShardPlan};
use super::session::Session;
use crate::cluster::client::{CopyTarget, NodeError, ShardReply};
use crate::cluster::load::Sample;
use crate::cluster::stats::{NodeStats, Refusal};

/// A node that gives no sign of life for this long counts as failed: many times a search's usual duration, a small part of a usual deadline.
pub const SILENCE: Duration = Duration::from_millis(200);
/// Laps over all copies for an eventual read: the second learns from the registers that came with the errors of the first.
const EVENTUAL_LAPS_MAX: u32 = 3;
/// Pause before a lap, doubled up to [`LAP_PAUSE_MAX`]; a changed cluster state ends it early.
const LAP_PAUSE: Duration = Duration::from_millis(20);
const LAP_PAUSE_MAX: Duration = Duration::from_millis(250);
/// A hedge that the budget refused is wanted again after so long.
const HEDGE_RECHECK: Duration = Duration::from_millis(10);

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

/// One sub-request without an end so far.
struct Attempt {
    candidate: Candidate,
    asked_at: Instant,
    is_hedge: bool,
    is_trial: bool,
    is_silent: bool,
}

/// What to do about an error.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reaction {
    /// Another copy may answer.
    Elsewhere,
    /// Another copy, once, if the budget allows.
    ElsewhereOnce,
    /// Every copy would say the same, or it is too late.
    Final,
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

    /// When [`Self::on_time`] has something to do next.
    pub fn next_wake(&self) -> Instant {
        let board = self.rules.stats.lock();
        let silent_at = |attempt: &Attempt| silent_at(attempt, board.heard_at(attempt.candidate.node));
        let wakes = self.pending.values().flat_map(|shard| {
            let silences = shard.waiting.iter().filter(|attempt| !attempt.is_silent).map(silent_at);
            silences.chain(shard.hedge_at).chain(shard.next_lap_at)
        });
        wakes.min().map_or(self.rules.deadline, |wake| wake.min(self.rules.deadline))
    }

    /// A node replied for one shard.
    pub fn on_reply(&mut self, node: NodeId, reply: ShardReply, now: Instant) -> Calls {
        let ShardReply { shard, outcome, queued_us, service_us } = reply;
        let mut calls = Calls::new();
        match outcome.and_then(|answers| self.check(shard, answers)) {
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

    /// Time passed.
    pub fn on_time(&mut self, now: Instant) -> Calls {
        let mut calls = Calls::new();
        if now >= self.rules.deadline {
            self.time_out(now);
            return calls;
        }
        let shards: Vec<ShardId> = self.pending.keys().copied().collect();
        for shard in &shards {
            self.notice_silence(*shard, now, &mut calls);
            self.hedge(*shard, now, &mut calls);
        }
        self.begin_due_laps(now, &mut calls);
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
        let refusal = self.refusal(&error, now.saturating_duration_since(attempt.asked_at));
        self.rules.stats.lock().refused(node, now, refusal, !error.disconnected, attempt.is_trial);
        let asked = attempt.candidate.target;
        if matches!(error.kind, ErrorKind::NotPrimary | ErrorKind::StaleTerm | ErrorKind::TokenVoid) {
            self.wants_refresh = true;
        }
        let reaction = self.reaction(shard, &asked, &error);
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

    /// What an error says about its node.
    fn refusal(&self, error: &NodeError, waited: Duration) -> Refusal {
        match error.kind {
            _ if error.disconnected => Refusal::Failure,
            ErrorKind::Overloaded | ErrorKind::RateLimited => Refusal::Overloaded,
            ErrorKind::Internal | ErrorKind::Corrupt => Refusal::Failure,
            ErrorKind::Unavailable => match self.rules.consistency {
                Consistency::Eventual => Refusal::Failure,
                Consistency::Session => Refusal::Lagging(waited),
                // Perhaps its peers did not confirm.
                Consistency::Strong => Refusal::Neutral,
            },
            _ => Refusal::Neutral,
        }
    }

    fn reaction(&self, shard: ShardId, asked: &CopyTarget, error: &NodeError) -> Reaction {
        match error.kind {
            ErrorKind::Overloaded | ErrorKind::RateLimited => Reaction::ElsewhereOnce,
            ErrorKind::DeadlineExceeded => Reaction::Final,
            // About the caller's token only if there is one of the lineage that was asked for; else our state is old.
            ErrorKind::TokenVoid => match self.token(shard) {
                Some(token) if token.lineage == asked.lineage => Reaction::Final,
                _ => Reaction::Elsewhere,
            },
            kind if kind.is_deterministic() => Reaction::Final,
            _ => Reaction::Elsewhere,
        }
    }

    /// The token that the read must honour.
    fn token(&self, shard: ShardId) -> Option<cluster_config::search::SessionToken> {
        match self.rules.consistency {
            Consistency::Eventual => None,
            Consistency::Session | Consistency::Strong => self.rules.session.token(shard),
        }
    }

    /// An answer must fit the question and, for a session, stand at or after its token.
    fn check(&self, shard: ShardId, answers: Vec<ShardAnswer>) -> Result<Vec<ShardAnswer>, NodeError> {
        if answers.len() != self.rules.queries {
            let text = format!("{} answers to {} queries", answers.len(), self.rules.queries);
            return Err(NodeError::new(ErrorKind::Internal, text));
        }
        let (Some(token), Some(answer)) = (self.token(shard), answers.first()) else { return Ok(answers) };
        if answer.position.lineage > token.lineage {
            return Err(token_void(shard));
        }
        if (answer.position.lineage, answer.position.applied) < (token.lineage, token.seqno) {
            let text = format!("shard {shard} has not yet applied what the session has seen");
            return Err(NodeError::new(ErrorKind::Unavailable, text));
        }
        Ok(answers)
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
        pending.waiting.push(Attempt { candidate, asked_at: now, is_hedge, is_trial, is_silent: false });
        calls.entry(candidate.node).or_default().push(candidate.target);
    }

    /// No copy is left in this lap: plans the next one, or gives the shard up.
    fn plan_lap(&mut self, shard: ShardId, now: Instant) {
        let Some(pending) = self.pending.get_mut(&shard) else { return };
        let is_stalled = pending.waiting.iter().all(|attempt| attempt.is_silent);
        let laps_left = self.rules.consistency != Consistency::Eventual || pending.lap < EVENTUAL_LAPS_MAX;
        let pause = LAP_PAUSE.saturating_mul(1 << pending.lap.saturating_sub(1).min(8)).min(LAP_PAUSE_MAX);
        if !pending.is_red && laps_left && now + pause < self.rules.deadline {
            if is_stalled && pending.next_lap_at.is_none() {
                pending.next_lap_at = Some(now + pause);
            }
        } else if pending.waiting.is_empty() || (pending.is_red && is_stalled) {
            self.fail(shard, false, now);
        }
    }

    fn begin_due_laps(&mut self, now: Instant, calls: &mut Calls) {
        let is_due = |pending: &Pending| pending.next_lap_at.is_some_and(|at| at <= now);
        let due: BTreeSet<ShardId> =
            self.pending.iter().filter(|(_, pending)| is_due(pending)).map(|(shard, _)| *shard).collect();
        if due.is_empty() {
            return;
        }
        let mut plans: BTreeMap<ShardId, ShardPlan> =
            (self.plan)(now).into_iter().map(|plan| (plan.shard, plan)).collect();
        for shard in due {
            self.gathered.laps += 1;
            match plans.remove(&shard) {
                Some(plan) => self.begin_lap(plan, now, calls),
                // The collection is gone.
                None => self.fail(shard, false, now),
            }
        }
    }

    /// Takes over a plan and asks the first copy that is not being asked already.
    fn begin_lap(&mut self, plan: ShardPlan, now: Instant, calls: &mut Calls) {
        let ShardPlan { shard, lineage, candidates, is_red } = plan;
        let token_lineage = self.token(shard).map(|token| token.lineage);
        let Some(pending) = self.pending.get_mut(&shard) else { return };
        pending.lap += 1;
        pending.next_lap_at = None;
        pending.is_red = is_red;
        if token_lineage.is_some_and(|token| token < lineage) {
            pending.last_error = Some(token_void(shard));
            return self.fail(shard, false, now);
        }
        let is_waiting = |node: NodeId| pending.waiting.iter().any(|attempt| attempt.candidate.node == node);
        pending.queue = candidates.into_iter().filter(|candidate| !is_waiting(candidate.node)).collect();
        if token_lineage.is_some_and(|token| token > lineage) {
            // Only a newer state says where copies of that lineage are.
            pending.queue.clear();
            self.wants_refresh = true;
        }
        self.ask_next(shard, now, false, calls);
    }

    /// Copies whose node gave no sign of life: the next one is asked.
    fn notice_silence(&mut self, shard: ShardId, now: Instant, calls: &mut Calls) {
        let Some(pending) = self.pending.get_mut(&shard) else { return };
        let mut board = self.rules.stats.lock();
        let mut is_news = false;
        for attempt in pending.waiting.iter_mut().filter(|attempt| !attempt.is_silent) {
            let node = attempt.candidate.node;
            if now < silent_at(attempt, board.heard_at(node)) {
                continue;
            }
            (attempt.is_silent, is_news) = (true, true);
            // A session read may rightly be held back by its copy, a strong one by the copies that confirm.
            if self.rules.consistency == Consistency::Eventual {
                board.note_failure(node, now, std::mem::take(&mut attempt.is_trial));
            }
        }
        drop(board);
        if is_news && pending.waiting.last().is_some_and(|newest| newest.is_silent) {
            self.ask_next(shard, now, false, calls);
        }
    }

    /// A shard that is slower than it usually is: the next copy is asked too, if the budget allows.
    fn hedge(&mut self, shard: ShardId, now: Instant, calls: &mut Calls) {
        let Some(pending) = self.pending.get_mut(&shard) else { return };
        if pending.hedge_at.is_none_or(|at| now < at) {
            return;
        }
        if pending.queue.is_empty() {
            pending.hedge_at = None;
        } else if self.rules.stats.lock().spend_hedge(now) {
            self.ask_next(shard, now, true, calls);
        } else {
            pending.hedge_at = Some(now + HEDGE_RECHECK);
        }
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

    /// The deadline passed: whoever is still waited for has timed out.
    fn time_out(&mut self, now: Instant) {
        let shards: Vec<ShardId> = self.pending.keys().copied().collect();
        for shard in shards {
            let Some(pending) = self.pending.get_mut(&shard) else { continue };
            let text = match pending.last_error.take() {
                Some(error) => format!("no answer before the deadline; a copy said: {error}"),
                None => "no answer before the deadline".to_owned(),
            };
            pending.last_error = Some(NodeError::new(ErrorKind::DeadlineExceeded, text));
            self.fail(shard, true, now);
        }
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

/// When an attempt counts as silent, if its node gives no further sign of life.
fn silent_at(attempt: &Attempt, heard_at: Option<Instant>) -> Instant {
    heard_at.map_or(attempt.asked_at, |heard_at| heard_at.max(attempt.asked_at)) + SILENCE
}

/// The definite end of a read with a token of an older lineage.
pub(super) fn token_void(shard: ShardId) -> NodeError {
    let text = format!("shard {shard} was recovered with data loss after this session token was issued");
    let mut error = NodeError::new(ErrorKind::TokenVoid, text);
    error.hint = "drop the session token and read again; writes it stood for may be lost".to_owned();
    error
}

#[cfg(test)]
mod tests;
