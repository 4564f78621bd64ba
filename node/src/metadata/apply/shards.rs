//! Registers change: by their primary's proposal, by the leader's reconfiguration, by a copy more or less.
//!
//! Every change is a compare-and-set on the register's version. What safety needs is checked here, not by whoever asks: the
//! last in-sync copy never leaves, only an in-sync copy of a live process is granted the role, and each grant raises the term.

use cluster_config::cluster_state::{ClusterState, RetiredCopy};
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, ShardId};
use cluster_config::limits;
use cluster_config::seqno::PrimaryTerm;
use cluster_config::shard_group::{CopyPhase, CopyRecord, CopyRole, PrimaryGrant, ShardGroup};

use super::{Outcome, Refusal, cluster_mut};
use crate::metadata::command::{PlannedCopy, Proposal, ProposedChange, Reconfiguration, Response};
use crate::metadata::state::State;

/// A primary's proposal. The answer carries the register as it is afterwards, so that the asker learns it either way.
pub(super) fn propose(state: &mut State, proposal: &Proposal) -> Outcome {
    let Some(group) = state.cluster.shards.get(&proposal.shard) else {
        let reason = format!("shard {} does not exist", proposal.shard);
        return Outcome::unchanged(Response::Register { accepted: false, reason, register: None });
    };
    match proposed(&state.cluster, group, proposal) {
        Ok(next) => {
            let register = Some(Box::new(next.clone()));
            cluster_mut(state).shards.insert(next.shard, next);
            Outcome::changed(Response::Register { accepted: true, reason: String::new(), register })
        }
        Err(reason) => {
            let register = Some(Box::new(group.clone()));
            Outcome::unchanged(Response::Register { accepted: false, reason, register })
        }
    }
}

/// The register after an acceptable proposal, or why it is none.
fn proposed(cluster: &ClusterState, group: &ShardGroup, proposal: &Proposal) -> Result<ShardGroup, String> {
    check_version(group, proposal.expect_version)?;
    if group.primary_copy() != Some(proposal.by_copy) || group.primary_term != proposal.term {
        return Err(format!(
            "copy {} is not the primary of term {}, the register is at term {}",
            proposal.by_copy, proposal.term, group.primary_term
        ));
    }
    let mut next = group.clone();
    match proposal.change {
        ProposedChange::Add { copy, incarnation } => {
            let record = next.copies.get_mut(&copy).ok_or_else(|| format!("copy {copy} does not exist"))?;
            if record.role != CopyRole::Voter {
                return Err(format!("copy {copy} is a read replica"));
            }
            // A new copy must first be known to be on disk: missing there it would be built again under the same id.
            if record.phase != CopyPhase::CatchingUp {
                return Err(format!("copy {copy} is {:?}", record.phase));
            }
            if !cluster.is_alive_in(record.node, incarnation) {
                return Err(format!("node {} is not alive in incarnation {incarnation}", record.node));
            }
            record.phase = CopyPhase::InSync;
            next.in_sync.insert(copy);
        }
        ProposedChange::Remove(copy) => {
            if copy == proposal.by_copy {
                return Err("a primary cannot remove itself".into());
            }
            // Accepted for a copy that is not in the set, too: the version that grows rules out an `Add` of unknown outcome.
            if next.in_sync.contains(&copy) {
                drop_in_sync(&mut next, copy)?;
            }
        }
        ProposedChange::HandOff(copy) => {
            let node = next.node_of(copy).and_then(|node| cluster.nodes.get(&node));
            let incarnation = node.map(|node| node.incarnation).unwrap_or_default();
            if copy == proposal.by_copy {
                return Err("the copy is the primary already".into());
            }
            grant(cluster, &mut next, PrimaryGrant { copy, incarnation })?;
        }
        ProposedChange::FailSelf => {
            next.primary = None;
            if next.in_sync.len() > 1 {
                drop_in_sync(&mut next, proposal.by_copy)?;
            }
        }
    }
    next.version += 1;
    next.check()?;
    Ok(next)
}

/// The leader's changes. Each part is taken or left on its own: one raced register must not hold up the failover of all others.
pub(super) fn reconfigure(state: &mut State, parts: &[Reconfiguration]) -> Outcome {
    let mut refused = Vec::new();
    let mut changed = false;
    for part in parts {
        let next = match state.cluster.shards.get(&part.shard) {
            Some(group) => reconfigured(&state.cluster, group, part),
            None => Err("the shard does not exist".into()),
        };
        match next {
            Ok(next) => {
                cluster_mut(state).shards.insert(next.shard, next);
                changed = true;
            }
            Err(reason) => refused.push((part.shard, reason)),
        }
    }
    Outcome { changed, response: Response::Reconfigured { refused } }
}

fn reconfigured(cluster: &ClusterState, group: &ShardGroup, part: &Reconfiguration) -> Result<ShardGroup, String> {
    check_version(group, part.expect_version)?;
    let mut next = group.clone();
    for (copy, phase) in &part.phases {
        move_on(&mut next, *copy, *phase)?;
    }
    // Grant before drop: the new primary is what lets the old one leave.
    if let Some(granted) = part.grant {
        grant(cluster, &mut next, granted)?;
    }
    for copy in &part.drop {
        if part.grant.is_some_and(|granted| granted.copy == *copy) {
            return Err(format!("copy {copy} is granted the role and dropped at once"));
        }
        if next.primary_copy() == Some(*copy) {
            next.primary = None;
        }
        drop_in_sync(&mut next, *copy)?;
    }
    next.version += 1;
    next.check()?;
    Ok(next)
}

/// Grants the role under the next term. In term 0 nothing was ever acknowledged, so any voter whose node reported it open may be the
/// first; later only a copy that is in sync.
fn grant(cluster: &ClusterState, group: &mut ShardGroup, granted: PrimaryGrant) -> Result<(), String> {
    let PrimaryGrant { copy, incarnation } = granted;
    let record = group.copies.get_mut(&copy).ok_or_else(|| format!("copy {copy} does not exist"))?;
    if !cluster.is_alive_in(record.node, incarnation) {
        return Err(format!("node {} is not alive in incarnation {incarnation}", record.node));
    }
    if record.role != CopyRole::Voter {
        return Err(format!("copy {copy} is a read replica"));
    }
    if group.primary_term == PrimaryTerm(0) && group.in_sync.is_empty() {
        record.phase = CopyPhase::InSync;
        group.in_sync.insert(copy);
    }
    if !group.in_sync.contains(&copy) {
        return Err(format!("copy {copy} is not in sync"));
    }
    group.primary = Some(granted);
    group.primary_term = group.primary_term.next();
    Ok(())
}

/// Takes a copy out of the in-sync set; it may catch up again. Never the last one.
fn drop_in_sync(group: &mut ShardGroup, copy: CopyId) -> Result<(), String> {
    if !group.in_sync.contains(&copy) {
        return Err(format!("copy {copy} is not in sync"));
    }
    if group.in_sync.len() == 1 {
        return Err(format!("copy {copy} is the last in sync"));
    }
    group.in_sync.remove(&copy);
    if let Some(record) = group.copies.get_mut(&copy) {
        record.phase = CopyPhase::CatchingUp;
    }
    Ok(())
}

/// Phases the leader may set by itself. A voter becomes `InSync` only through its primary.
fn move_on(group: &mut ShardGroup, copy: CopyId, to: CopyPhase) -> Result<(), String> {
    let record = group.copies.get_mut(&copy).ok_or_else(|| format!("copy {copy} does not exist"))?;
    let allowed = matches!(
        (record.role, record.phase, to),
        (_, CopyPhase::New, CopyPhase::CatchingUp)
            | (CopyRole::ReadReplica, CopyPhase::CatchingUp, CopyPhase::InSync)
            | (CopyRole::ReadReplica, CopyPhase::InSync, CopyPhase::CatchingUp)
    );
    if !allowed {
        return Err(format!("copy {copy} cannot go from {:?} to {to:?}", record.phase));
    }
    record.phase = to;
    Ok(())
}

fn check_version(group: &ShardGroup, expected: u64) -> Result<(), String> {
    if group.version != expected {
        return Err(format!("the register is at version {}, expected {expected}", group.version));
    }
    Ok(())
}

pub(super) fn find(cluster: &ClusterState, shard: ShardId, expect_version: u64) -> Result<ShardGroup, Refusal> {
    let group = cluster
        .shards
        .get(&shard)
        .ok_or_else(|| Refusal::new(ErrorKind::NotFound, format!("shard {shard} does not exist")))?;
    check_version(group, expect_version).map_err(|reason| Refusal::new(ErrorKind::Conflict, reason))?;
    Ok(group.clone())
}

/// One more copy, in phase `New`.
pub(super) fn add_copy(
    state: &mut State,
    shard: ShardId,
    expect_version: u64,
    planned: PlannedCopy,
) -> Result<Outcome, Refusal> {
    let mut group = find(&state.cluster, shard, expect_version)?;
    let conflict = |message: String| Err(Refusal::new(ErrorKind::Conflict, message));
    if !state.cluster.nodes.get(&planned.node).is_some_and(|node| node.is_data) {
        return conflict(format!("node {} is no data node", planned.node));
    }
    if group.copies.values().any(|record| record.node == planned.node) {
        return conflict(format!("node {} has a copy of shard {shard} already", planned.node));
    }
    if group.copies.len() >= (limits::COPIES_MAX + limits::READ_REPLICAS_MAX) as usize {
        return conflict(format!("shard {shard} has as many copies as it may have"));
    }
    let cluster = cluster_mut(state);
    let copy = CopyId(cluster.next_copy);
    cluster.next_copy += 1;
    group.copies.insert(copy, CopyRecord { node: planned.node, role: planned.role, phase: CopyPhase::New });
    group.version += 1;
    cluster.shards.insert(shard, group);
    Ok(Outcome::changed(Response::Done { changed: true }))
}

/// Takes a copy out of the register and out of use for good.
pub(super) fn retire_copy(
    state: &mut State,
    shard: ShardId,
    expect_version: u64,
    copy: CopyId,
) -> Result<Outcome, Refusal> {
    let mut group = find(&state.cluster, shard, expect_version)?;
    let record = take_out(&mut group, copy)?;
    group.version += 1;
    let cluster = cluster_mut(state);
    cluster.retired.insert(copy, RetiredCopy { shard, node: record.node });
    cluster.shards.insert(shard, group);
    Ok(Outcome::changed(Response::Done { changed: true }))
}

/// Retires a copy and puts a new one on its node, in one step: the node has the space, and the shard is never without the place.
pub(super) fn replace_copy(
    state: &mut State,
    shard: ShardId,
    expect_version: u64,
    copy: CopyId,
) -> Result<Outcome, Refusal> {
    let mut group = find(&state.cluster, shard, expect_version)?;
    let record = take_out(&mut group, copy)?;
    let cluster = cluster_mut(state);
    group.copies.insert(CopyId(cluster.next_copy), CopyRecord { phase: CopyPhase::New, ..record });
    group.version += 1;
    cluster.next_copy += 1;
    cluster.retired.insert(copy, RetiredCopy { shard, node: record.node });
    cluster.shards.insert(shard, group);
    Ok(Outcome::changed(Response::Done { changed: true }))
}

/// Removes a copy that is neither primary nor the last in sync from the register.
fn take_out(group: &mut ShardGroup, copy: CopyId) -> Result<CopyRecord, Refusal> {
    let conflict = |message: String| Err(Refusal::new(ErrorKind::Conflict, message));
    let Some(record) = group.copies.get(&copy).copied() else {
        return conflict(format!("copy {copy} does not exist"));
    };
    if group.primary_copy() == Some(copy) {
        return conflict(format!("copy {copy} is the primary"));
    }
    if group.in_sync.contains(&copy) && group.in_sync.len() == 1 {
        return conflict(format!("copy {copy} is the last in sync"));
    }
    group.in_sync.remove(&copy);
    group.copies.remove(&copy);
    Ok(record)
}

/// Makes a read replica a voter. It goes back to catching up: only its primary knows when it holds everything (W8).
pub(super) fn promote_replica(
    state: &mut State,
    shard: ShardId,
    expect_version: u64,
    copy: CopyId,
) -> Result<Outcome, Refusal> {
    let mut group = find(&state.cluster, shard, expect_version)?;
    let voters = group.copies.values().filter(|record| record.role == CopyRole::Voter).count();
    let Some(record) = group.copies.get_mut(&copy) else {
        return Err(Refusal::new(ErrorKind::NotFound, format!("shard {shard} has no copy {copy}")));
    };
    if record.role == CopyRole::Voter {
        return Ok(Outcome::unchanged(Response::Done { changed: false }));
    }
    if voters >= limits::COPIES_MAX as usize {
        let message = format!("shard {shard} has {voters} voters, as many as it may have");
        return Err(Refusal::new(ErrorKind::Conflict, message));
    }
    record.role = CopyRole::Voter;
    if record.phase == CopyPhase::InSync {
        record.phase = CopyPhase::CatchingUp;
    }
    group.version += 1;
    cluster_mut(state).shards.insert(shard, group);
    Ok(Outcome::changed(Response::Done { changed: true }))
}
