//! Laps: the copies of a shard are planned, asked one after the other, and planned again after a pause.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use cluster_config::ids::{NodeId, ShardId};
use cluster_config::search::Consistency;

use super::errors::token_void;
use super::{Calls, Gather, Pending};
use crate::retrieve::plan::ShardPlan;

/// Laps over all copies for an eventual read: the second learns from the registers that came with the errors of the first.
pub(super) const EVENTUAL_LAPS_MAX: u32 = 3;
/// Pause before a lap, doubled up to [`LAP_PAUSE_MAX`]; a changed cluster state ends it early.
const LAP_PAUSE: Duration = Duration::from_millis(20);
const LAP_PAUSE_MAX: Duration = Duration::from_millis(250);

impl Gather<'_> {
    /// No copy is left in this lap: plans the next one, or gives the shard up.
    pub(super) fn plan_lap(&mut self, shard: ShardId, now: Instant) {
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

    /// Plans the shards whose pause is over.
    pub(super) fn begin_due_laps(&mut self, now: Instant, calls: &mut Calls) {
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
    pub(super) fn begin_lap(&mut self, plan: ShardPlan, now: Instant, calls: &mut Calls) {
        let ShardPlan { shard, lineage, candidates, is_red } = plan;
        let token_lineage = self.rules.token(shard).map(|token| token.lineage);
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
}
