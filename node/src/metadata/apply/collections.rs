//! Collections are created and dropped.

use std::collections::{BTreeMap, BTreeSet};

use cluster_config::cluster_state::{ClusterState, RetiredCopy};
use cluster_config::collection::{Collection, CollectionSpec};
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CollectionId, CopyId, Lineage, ShardId};
use cluster_config::limits;
use cluster_config::seqno::PrimaryTerm;
use cluster_config::shard_group::{CopyPhase, CopyRecord, CopyRole, ShardGroup};

use super::{Outcome, Refusal, cluster_mut};
use crate::metadata::command::{PlannedCopy, Response};
use crate::metadata::state::State;

/// Creates the collection with its copies in phase `New` and without a primary. A copy counts for nothing before its node has
/// reported it open: a disk that was lost before that would otherwise pass for an empty in-sync copy.
pub(super) fn create(
    state: &mut State,
    spec: &CollectionSpec,
    assignment: &[Vec<PlannedCopy>],
) -> Result<Outcome, Refusal> {
    spec.validate().map_err(|error| Refusal::new(ErrorKind::InvalidArgument, error.to_string()))?;
    if let Some(existing) = state.cluster.collection_named(&spec.name) {
        if existing.spec == *spec {
            return Ok(Outcome::unchanged(Response::Collection(Box::new(existing.clone()))));
        }
        return Err(Refusal::new(
            ErrorKind::AlreadyExists,
            format!("collection {} exists with another spec", spec.name),
        ));
    }
    if state.cluster.collections.len() >= limits::COLLECTIONS_MAX {
        return Err(Refusal::new(
            ErrorKind::TooLarge,
            format!("a cluster has at most {} collections", limits::COLLECTIONS_MAX),
        ));
    }
    check_assignment(&state.cluster, spec, assignment)?;

    let cluster = cluster_mut(state);
    let id = CollectionId(cluster.next_collection);
    cluster.next_collection += 1;
    for (index, planned) in (0u32..).zip(assignment) {
        let shard = ShardId { collection: id, index };
        let mut copies = BTreeMap::new();
        for copy in planned {
            copies.insert(
                CopyId(cluster.next_copy),
                CopyRecord { node: copy.node, role: copy.role, phase: CopyPhase::New },
            );
            cluster.next_copy += 1;
        }
        let group = ShardGroup {
            shard,
            version: 1,
            primary_term: PrimaryTerm(0),
            primary: None,
            in_sync: BTreeSet::new(),
            copies,
            lineage: Lineage(1),
            min_in_sync: spec.min_in_sync,
        };
        cluster.shards.insert(shard, group);
    }
    let collection = Collection { id, spec: spec.clone(), epoch: 1 };
    cluster.collections.insert(id, collection.clone());
    Ok(Outcome::changed(Response::Collection(Box::new(collection))))
}

/// The assignment was planned on a state that may have moved on: nodes may be gone since.
fn check_assignment(
    cluster: &ClusterState,
    spec: &CollectionSpec,
    assignment: &[Vec<PlannedCopy>],
) -> Result<(), Refusal> {
    let conflict = |message: String| Err(Refusal::new(ErrorKind::Conflict, message));
    if assignment.len() != spec.shard_count as usize {
        return conflict(format!("{} shards assigned, {} asked for", assignment.len(), spec.shard_count));
    }
    for (index, planned) in assignment.iter().enumerate() {
        let voters = planned.iter().filter(|copy| copy.role == CopyRole::Voter).count();
        let replicas = planned.len() - voters;
        if voters == 0 || voters > spec.copies as usize || replicas > spec.read_replicas as usize {
            return conflict(format!("shard {index}: {voters} voters and {replicas} read replicas assigned"));
        }
        let mut seen = BTreeSet::new();
        for copy in planned {
            if !cluster.nodes.get(&copy.node).is_some_and(|node| node.is_data) {
                return conflict(format!("shard {index}: node {} is no data node", copy.node));
            }
            if !seen.insert(copy.node) {
                return conflict(format!("shard {index}: two copies on node {}", copy.node));
            }
        }
    }
    Ok(())
}

/// Drops the collection and retires its copies. Repeating it changes nothing.
pub(super) fn delete(state: &mut State, name: &str) -> Result<Outcome, Refusal> {
    let Some(id) = state.cluster.collection_named(name).map(|collection| collection.id) else {
        return Ok(Outcome::unchanged(Response::Done { changed: false }));
    };
    let cluster = cluster_mut(state);
    let shards: Vec<ShardId> = cluster.shards_of(id).map(|group| group.shard).collect();
    for shard in shards {
        if let Some(group) = cluster.shards.remove(&shard) {
            cluster
                .retired
                .extend(group.copies.iter().map(|(copy, record)| (*copy, RetiredCopy { shard, node: record.node })));
        }
    }
    cluster.collections.remove(&id);
    Ok(Outcome::changed(Response::Done { changed: true }))
}
