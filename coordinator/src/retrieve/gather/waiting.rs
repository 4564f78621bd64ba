//! What time brings to a scatter: nodes that keep silent, shards that are slower than usual, the end.

use std::time::{Duration, Instant};

use cluster_config::error::ErrorKind;
use cluster_config::ids::ShardId;
use cluster_config::search::Consistency;

use super::{Calls, Gather};
use crate::cluster::client::NodeError;
use crate::retrieve::plan::Candidate;

/// A node that gives no sign of life for this long counts as failed: many times a search's usual duration, a small part of a usual deadline.
pub const SILENCE: Duration = Duration::from_millis(200);
/// A timer that is later than this says that this process did not run.
const LATE: Duration = Duration::from_millis(20);
/// How long the answers that wait in this process' sockets may take then.
const EXCUSE: Duration = Duration::from_millis(50);
/// A hedge that the budget refused is wanted again after so long.
const HEDGE_RECHECK: Duration = Duration::from_millis(10);

/// One sub-request without an end so far.
pub(super) struct Attempt {
    pub(super) candidate: Candidate,
    pub(super) asked_at: Instant,
    pub(super) is_hedge: bool,
    pub(super) is_trial: bool,
    pub(super) is_silent: bool,
    /// Added to the silence that its node may keep, because this process was late itself.
    excused: Duration,
}

impl Attempt {
    pub(super) fn new(candidate: Candidate, asked_at: Instant, is_hedge: bool, is_trial: bool) -> Self {
        Self { candidate, asked_at, is_hedge, is_trial, is_silent: false, excused: Duration::ZERO }
    }

    /// When it counts as silent, if its node gives no further sign of life.
    fn silent_at(&self, heard_at: Option<Instant>) -> Instant {
        heard_at.map_or(self.asked_at, |heard_at| heard_at.max(self.asked_at)) + SILENCE + self.excused
    }

    /// Whether it counts as silent now. A process that looks late may have slept, with the answers in its sockets: once, they are given
    /// the time to come out.
    fn is_silent_at(&mut self, now: Instant, heard_at: Option<Instant>) -> bool {
        let late = now.checked_duration_since(self.silent_at(heard_at));
        match late {
            Some(late) if late > LATE && self.excused.is_zero() => {
                self.excused = late + EXCUSE;
                false
            }
            late => late.is_some(),
        }
    }
}

impl Gather<'_> {
    /// When [`Self::on_time`] has something to do next.
    pub fn next_wake(&self) -> Instant {
        let board = self.rules.stats.lock();
        let silent_at = |attempt: &Attempt| attempt.silent_at(board.heard_at(attempt.candidate.node));
        let wakes = self.pending.values().flat_map(|shard| {
            let silences = shard.waiting.iter().filter(|attempt| !attempt.is_silent).map(silent_at);
            silences.chain(shard.hedge_at).chain(shard.next_lap_at)
        });
        wakes.min().map_or(self.rules.deadline, |wake| wake.min(self.rules.deadline))
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

    /// Copies whose node gave no sign of life: the next one is asked.
    fn notice_silence(&mut self, shard: ShardId, now: Instant, calls: &mut Calls) {
        let Some(pending) = self.pending.get_mut(&shard) else { return };
        let mut board = self.rules.stats.lock();
        let mut is_news = false;
        for attempt in pending.waiting.iter_mut().filter(|attempt| !attempt.is_silent) {
            let node = attempt.candidate.node;
            if !attempt.is_silent_at(now, board.heard_at(node)) {
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
