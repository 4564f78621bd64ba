//! What the metadata leader does about deaths, registrations and new copies: a pure function of the agreed state, what was
//! seen, and the time.
//!
//! Nothing here is remembered between two calls, so nothing can get stuck; whatever a command achieved stands in the agreed state,
//! and whatever it lost to a race is decided again. Deciding wrong costs availability, never data: `apply` checks what safety needs.

use std::collections::{BTreeMap, BTreeSet};

use cluster_config::cluster_state::{ClusterState, Liveness};
use cluster_config::ids::{CopyId, NodeId};
use cluster_config::limits;
use cluster_config::quorum::{PrimaryCandidate, choose_primary};
use cluster_config::seqno::PrimaryTerm;
use cluster_config::shard_group::{CopyPhase, CopyRecord, CopyRole, PrimaryGrant, ShardGroup};

use super::observe::{CopySeen, NodeSeen, Observed};
use super::repair::decide_repairs;
use crate::metadata::command::{Command, Reconfiguration};

/// How long things may take, milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Silence after which a node is taken for dead.
    pub node_timeout_ms: u64,
    /// How long the preferred first primary of a new shard may take to open its copy before another one is taken.
    pub first_grant_ms: u64,
    /// How long a node may be dead before its copies are built elsewhere: longer than a restart.
    pub replace_after_ms: u64,
    /// How long ago a corrupt copy must first have been heard of before it is replaced: a disk that corrupts whatever is put on it
    /// must not be fed at the speed of heartbeats.
    pub replace_corrupt_after_ms: u64,
}

/// Entries behind its primary at which a read replica starts to serve, and ten times which it stops to.
const REPLICA_LAG_MAX: u64 = 1000;

/// Node timeouts for which a node may be heard without hearing. Two, because an answer is lost more easily than a heartbeat: this process
/// need only be slow.
const DEAF_TIMEOUTS: u64 = 2;

/// What a decision is made from.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// As agreed.
    pub state: &'a ClusterState,
    /// As seen by this voter.
    pub observed: &'a Observed,
    /// Now.
    pub now_ms: u64,
    /// Since when this voter leads, and has not been suspended itself.
    pub leader_since_ms: u64,
    /// Timeouts.
    pub patience: &'a Patience,
}

/// The commands that bring the cluster closer to health, in order; none when there is nothing to do.
pub fn decide(view: &View<'_>) -> Vec<Command> {
    let dying = decide_deaths(view);
    let mut commands: Vec<Command> = dying
        .iter()
        .filter_map(|node| view.state.nodes.get(node))
        .map(|record| Command::MarkDead { node: record.id, incarnation: record.incarnation })
        .collect();
    let parts = decide_reconfigurations(view, &dying);
    if parts.is_empty() {
        // Copies come and go in quiet times only: a register that is about to change would refuse them.
        commands.extend(decide_repairs(view));
    } else {
        commands.push(Command::Reconfigure(parts));
    }
    commands
}

/// Nodes whose life is over: silent for the node timeout, or deaf to this leader for [`DEAF_TIMEOUTS`] of it, counted from when the two
/// could have heard each other; or, which needs no waiting, found refusing connections, or stopping by their own word.
fn decide_deaths(view: &View<'_>) -> BTreeSet<NodeId> {
    let has_passed =
        |since_ms: u64, timeout_ms: u64| view.now_ms.saturating_sub(since_ms.max(view.leader_since_ms)) >= timeout_ms;
    let timeout_ms = view.patience.node_timeout_ms;
    let is_over = |seen: Option<&NodeSeen>| match seen {
        None => has_passed(0, timeout_ms),
        Some(seen) => {
            seen.is_refused
                || seen.is_stopping
                || has_passed(seen.heard_ms, timeout_ms)
                || has_passed(seen.answered_ms, DEAF_TIMEOUTS * timeout_ms)
        }
    };
    view.state
        .nodes
        .values()
        .filter(|record| record.liveness == Liveness::Alive)
        .filter(|record| is_over(view.observed.node(record.id, record.incarnation)))
        .map(|record| record.id)
        .collect()
}

/// Looks at one shard's copies with the deaths just decided taken in.
pub(super) struct Eyes<'a> {
    pub(super) view: &'a View<'a>,
    pub(super) dying: &'a BTreeSet<NodeId>,
}

impl Eyes<'_> {
    fn is_alive(&self, node: NodeId) -> bool {
        !self.dying.contains(&node)
            && self.view.state.nodes.get(&node).is_some_and(|record| record.liveness == Liveness::Alive)
    }

    /// The node in its present life, if that is not over.
    fn node(&self, node: NodeId) -> Option<&NodeSeen> {
        let record = self.view.state.nodes.get(&node).filter(|_| self.is_alive(node))?;
        self.view.observed.node(node, record.incarnation)
    }

    /// The copy as reported by the present life of its node: it is open there.
    fn copy(&self, copy: CopyId, record: &CopyRecord) -> Option<&CopySeen> {
        self.node(record.node)?.copies.get(&copy).filter(|seen| !seen.is_corrupt)
    }

    /// The copy, if the present life of its node found it damaged or gone.
    pub(super) fn corrupt(&self, copy: CopyId, record: &CopyRecord) -> Option<&CopySeen> {
        self.node(record.node)?.copies.get(&copy).filter(|seen| seen.is_corrupt)
    }

    /// The report of a copy that could be primary now.
    fn fit(&self, copy: CopyId, record: &CopyRecord) -> Option<&CopySeen> {
        let is_stalled = self.node(record.node)?.is_disk_stalled;
        self.copy(copy, record).filter(|seen| record.role == CopyRole::Voter && !seen.is_poisoned && !is_stalled)
    }

    /// Whether the primary holds its grant in the present life of its process and can write.
    pub(super) fn primary_holds(&self, group: &ShardGroup) -> bool {
        let Some((grant, record)) = group.primary.and_then(|grant| Some((grant, group.copies.get(&grant.copy)?)))
        else {
            return false;
        };
        let is_sick = self.node(record.node).is_some_and(|seen| {
            let broken = |copy: &CopySeen| copy.is_poisoned || copy.is_corrupt;
            seen.is_disk_stalled || seen.copies.get(&grant.copy).is_some_and(broken)
        });
        self.is_alive(record.node) && self.view.state.is_alive_in(record.node, grant.incarnation) && !is_sick
    }
}

/// One part per shard that has to change, at most [`limits::RECONFIGURE_SHARDS_MAX`].
fn decide_reconfigurations(view: &View<'_>, dying: &BTreeSet<NodeId>) -> Vec<Reconfiguration> {
    let eyes = Eyes { view, dying };
    let mut load: BTreeMap<NodeId, u64> = BTreeMap::new();
    for group in view.state.shards.values().filter(|group| eyes.primary_holds(group)) {
        if let Some(node) = group.primary_node() {
            *load.entry(node).or_default() += 1;
        }
    }
    let mut parts = Vec::new();
    for group in view.state.shards.values() {
        let part = decide_shard(&eyes, group, &load);
        if let Some(node) = part.grant.and_then(|grant| group.node_of(grant.copy)) {
            *load.entry(node).or_default() += 1;
        }
        if part.grant.is_some() || !part.drop.is_empty() || !part.phases.is_empty() {
            parts.push(part);
        }
        if parts.len() == limits::RECONFIGURE_SHARDS_MAX {
            break;
        }
    }
    parts
}

fn decide_shard(eyes: &Eyes<'_>, group: &ShardGroup, load: &BTreeMap<NodeId, u64>) -> Reconfiguration {
    let mut part = Reconfiguration {
        shard: group.shard,
        expect_version: group.version,
        drop: Vec::new(),
        grant: None,
        phases: decide_phases(eyes, group),
    };
    let mut primary = group.primary_copy().filter(|_| eyes.primary_holds(group));
    if primary.is_none() {
        let chosen = if group.primary_term == PrimaryTerm(0) && group.in_sync.is_empty() {
            first_primary(eyes, group)
        } else {
            next_primary(eyes, group, load)
        };
        part.grant = chosen.and_then(|copy| {
            let node = eyes.view.state.nodes.get(&group.node_of(copy)?)?;
            Some(PrimaryGrant { copy, incarnation: node.incarnation })
        });
        primary = chosen;
    }
    // Without a primary the set stays as it is: each of its members holds every acknowledged write, and any of them may be
    // the one that comes back.
    if let Some(primary) = primary {
        let is_lost = |copy: &CopyId| {
            let record = group.copies.get(copy);
            let is_gone =
                record.is_none_or(|record| !eyes.is_alive(record.node) || eyes.corrupt(*copy, record).is_some());
            let was_sick = Some(*copy) == group.primary_copy() && part.grant.is_some();
            *copy != primary && (is_gone || was_sick)
        };
        part.drop = group.in_sync.iter().copied().filter(is_lost).collect();
    }
    part
}

/// The first primary of a shard that never had one: the first placed copy on a node that is not draining, because placement spread
/// those over the nodes; another one if that takes too long.
fn first_primary(eyes: &Eyes<'_>, group: &ShardGroup) -> Option<CopyId> {
    let state = eyes.view.state;
    let voters = || group.copies.iter().filter(|(_, record)| record.role == CopyRole::Voter);
    let alive = || voters().filter(|(_, record)| eyes.is_alive(record.node));
    let stays = |(_, record): &(&CopyId, &CopyRecord)| !state.is_draining(record.node);
    let preferred = alive().find(stays).or_else(|| alive().next()).map(|(copy, _)| *copy);
    let waited = |seen: &CopySeen| eyes.view.now_ms.saturating_sub(seen.first_ms) >= eyes.view.patience.first_grant_ms;
    voters()
        .filter(|(copy, record)| eyes.fit(**copy, record).is_some_and(|seen| Some(**copy) == preferred || waited(seen)))
        .map(|(copy, _)| *copy)
        .next()
}

/// The in-sync copy that takes over. Only a copy that its node's present life reports as open counts, so a copy
/// on a wiped disk is never mistaken for an empty one.
fn next_primary(eyes: &Eyes<'_>, group: &ShardGroup, load: &BTreeMap<NodeId, u64>) -> Option<CopyId> {
    let candidates = group.in_sync.iter().filter_map(|copy| {
        let record = group.copies.get(copy)?;
        let seen = eyes.fit(*copy, record)?;
        let node_primaries = load.get(&record.node).copied().unwrap_or(0);
        let is_draining = eyes.view.state.is_draining(record.node);
        Some(PrimaryCandidate { copy: *copy, is_live: true, is_draining, last: seen.last, node_primaries })
    });
    choose_primary(group, candidates)
}

/// Copies that move on in their life: a new one that is open begins to catch up; a read replica serves while it keeps up.
fn decide_phases(eyes: &Eyes<'_>, group: &ShardGroup) -> Vec<(CopyId, CopyPhase)> {
    let committed = group
        .primary_copy()
        .and_then(|copy| eyes.copy(copy, group.copies.get(&copy)?))
        .map(|primary| primary.global_checkpoint);
    group
        .copies
        .iter()
        .filter_map(|(copy, record)| {
            let seen = eyes.copy(*copy, record);
            let lag = committed.zip(seen).map(|(committed, seen)| committed.0.saturating_sub(seen.applied.0));
            let to = match (record.phase, record.role) {
                (CopyPhase::New, _) if seen.is_some() => CopyPhase::CatchingUp,
                (CopyPhase::CatchingUp, CopyRole::ReadReplica) if lag.is_some_and(|lag| lag <= REPLICA_LAG_MAX) => {
                    CopyPhase::InSync
                }
                (CopyPhase::InSync, CopyRole::ReadReplica)
                    if !eyes.is_alive(record.node) || lag.is_some_and(|lag| lag > 10 * REPLICA_LAG_MAX) =>
                {
                    CopyPhase::CatchingUp
                }
                _ => return None,
            };
            Some((*copy, to))
        })
        .collect()
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
