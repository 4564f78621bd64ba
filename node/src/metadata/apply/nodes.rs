//! Nodes come and go, and operators say what they are for.

use cluster_config::cluster_state::{ClusterState, Liveness, NodeLifecycle, NodeRecord, RetiredCopy};
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, Incarnation, NodeId};
use cluster_config::limits;
use cluster_config::shard_group::{CopyPhase, ShardGroup};

use super::{Outcome, Refusal, cluster_mut};
use crate::metadata::command::{RegisterNode, Response};
use crate::metadata::state::State;

/// Gives the process a new incarnation and voids every grant of its former life (W1): the leader grants anew, to this node's copy or
/// to another in-sync one. Copies that the registers expect on its disk and that are not there were lost; they leave the registers,
/// unless one is the last in sync of its shard, which then stays unavailable until its disk or an operator decides.
pub(super) fn register(state: &mut State, registering: &RegisterNode) -> Result<Outcome, Refusal> {
    let id = registering.node;
    if registering.feature_level < state.cluster.feature_level {
        return Err(Refusal::new(
            ErrorKind::InvalidArgument,
            format!(
                "node {id} understands feature level {}, the cluster is at {}",
                registering.feature_level, state.cluster.feature_level
            ),
        ));
    }
    let known = state.cluster.nodes.get(&id);
    if let Some(record) = known
        && state.registrations.get(&id) == Some(&registering.registration)
    {
        return Ok(Outcome::unchanged(Response::Registered { incarnation: record.incarnation }));
    }
    if known.is_none() && state.cluster.nodes.len() >= limits::NODES_MAX {
        return Err(Refusal::new(ErrorKind::TooLarge, format!("a cluster has at most {} nodes", limits::NODES_MAX)));
    }
    let incarnation = Incarnation(known.map_or(0, |record| record.incarnation.0) + 1);
    let lifecycle = known.map_or(NodeLifecycle::Active, |record| record.lifecycle);
    state.registrations.insert(id, registering.registration.clone());
    let cluster = cluster_mut(state);
    cluster.nodes.insert(
        id,
        NodeRecord {
            id,
            rpc_address: registering.rpc_address.clone(),
            http_address: registering.http_address.clone(),
            zone: registering.zone.clone(),
            weight: registering.weight,
            is_data: registering.is_data,
            incarnation,
            liveness: Liveness::Alive,
            lifecycle,
        },
    );
    let on_disk = &registering.copies_on_disk;
    cluster.retired.retain(|copy, retired| retired.node != id || on_disk.contains(copy));
    let ClusterState { shards, retired, .. } = cluster;
    for group in shards.values_mut() {
        let voided = group.primary_node() == Some(id);
        if voided {
            group.primary = None;
        }
        let lost = take_lost(group, id, on_disk);
        if voided || !lost.is_empty() {
            group.version += 1;
        }
        retired.extend(lost.into_iter().map(|copy| (copy, RetiredCopy { shard: group.shard, node: id })));
    }
    Ok(Outcome::changed(Response::Registered { incarnation }))
}

/// Takes the copies that were once on `node` and are not on its disk any more out of `group`. A copy in phase `New` may never have
/// been opened, so its absence says nothing.
fn take_lost(group: &mut ShardGroup, node: NodeId, on_disk: &[CopyId]) -> Vec<CopyId> {
    let lost: Vec<CopyId> = group
        .copies
        .iter()
        .filter(|(copy, record)| {
            let is_last_in_sync = group.in_sync.len() == 1 && group.in_sync.contains(copy);
            record.node == node && record.phase != CopyPhase::New && !on_disk.contains(copy) && !is_last_in_sync
        })
        .map(|(copy, _)| *copy)
        .collect();
    for copy in &lost {
        group.copies.remove(copy);
        group.in_sync.remove(copy);
    }
    lost
}

/// Ends one life of a node's process in the eyes of the cluster. Registers are changed by the `Reconfigure` that follows.
pub(super) fn mark_dead(state: &mut State, node: NodeId, incarnation: Incarnation) -> Result<Outcome, Refusal> {
    if !state.cluster.is_alive_in(node, incarnation) {
        return Ok(Outcome::unchanged(Response::Done { changed: false }));
    }
    if let Some(record) = cluster_mut(state).nodes.get_mut(&node) {
        record.liveness = Liveness::Dead;
    }
    Ok(Outcome::changed(Response::Done { changed: true }))
}

/// An operator's word on what the node is to do. It outlives every life of the process.
pub(super) fn set_lifecycle(state: &mut State, node: NodeId, lifecycle: NodeLifecycle) -> Result<Outcome, Refusal> {
    let record = state.cluster.nodes.get(&node);
    let record = record.ok_or_else(|| Refusal::new(ErrorKind::NotFound, format!("node {node} does not exist")))?;
    if record.lifecycle == lifecycle {
        return Ok(Outcome::unchanged(Response::Done { changed: false }));
    }
    if let Some(record) = cluster_mut(state).nodes.get_mut(&node) {
        record.lifecycle = lifecycle;
    }
    Ok(Outcome::changed(Response::Done { changed: true }))
}

/// Forgets retired copies. Their ids are never given out again, so nothing depends on the memory but the deletion of their files.
pub(super) fn forget_retired(state: &mut State, copies: &[CopyId]) -> Outcome {
    let changed = copies.iter().any(|copy| state.cluster.retired.contains_key(copy));
    if changed {
        cluster_mut(state).retired.retain(|copy, _| !copies.contains(copy));
    }
    Outcome { changed, response: Response::Done { changed } }
}
