//! Where the copies of a new collection go: the planner's answer, made explicit for `apply`.

use std::collections::{BTreeMap, BTreeSet};

use cluster_config::cluster_state::{ClusterState, NodeLifecycle, NodeRecord};
use cluster_config::collection::{Collection, CollectionSpec};
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CollectionId, NodeId};
use cluster_config::placement::{Goal, PlacedCopy, Problem, Warning, plan};
use cluster_config::shard_group::CopyRole;
use proto::convert::status::RemoteError;

use super::command::PlannedCopy;

/// A place for every copy, by shard, the one that should become the first primary in front. `full`: nodes that take no copies, because
/// their memory is full. Errors: `StorageFull` where the others are too few for that reason; where there are fewer live data nodes than
/// copies anyway, `Unavailable` while the others are away, `Conflict` where the cluster has no more.
/// Cost: see [`plan`]; not for a reactor thread.
pub(crate) fn plan_collection(
    state: &ClusterState,
    spec: &CollectionSpec,
    full: &BTreeSet<NodeId>,
) -> Result<Vec<Vec<PlannedCopy>>, RemoteError> {
    let collection = Collection { id: CollectionId(state.next_collection), spec: spec.clone(), epoch: 1 };
    let planned = plan(&Problem::of_collection(state, &collection, full), Goal::Repair);
    let too_few = planned.warnings.iter().find_map(|warning| match warning {
        Warning::TooFewNodes { wanted, .. } => Some((warning, *wanted)),
        _ => None,
    });
    if let Some((warning, wanted)) = too_few {
        let full: Vec<String> =
            state.placeable().filter(|node| full.contains(&node.id)).map(|node| node.id.to_string()).collect();
        if !full.is_empty() {
            let message = format!("{warning}; the memory of node {} is full", full.join(", "));
            return Err(RemoteError::new(ErrorKind::StorageFull, message)
                .with_hint("add nodes, delete collections, or raise storage.memory_budget"));
        }
        let belongs = |node: &&NodeRecord| node.is_data && node.lifecycle == NodeLifecycle::Active;
        let members = state.nodes.values().filter(belongs).count() as u64;
        let kind = if members < wanted { ErrorKind::Conflict } else { ErrorKind::Unavailable };
        return Err(
            RemoteError::new(kind, warning.to_string()).with_hint("start more data nodes, or ask for fewer copies")
        );
    }
    Ok(spread_firsts(planned.assignment.into_values()))
}

/// Orders each shard's copies so that the first ones, which become primaries, are spread over the nodes.
fn spread_firsts(shards: impl Iterator<Item = Vec<PlacedCopy>>) -> Vec<Vec<PlannedCopy>> {
    let mut firsts: BTreeMap<NodeId, usize> = BTreeMap::new();
    shards
        .map(|mut copies| {
            let of = |copy: &PlacedCopy| firsts.get(&copy.node).copied().unwrap_or(0);
            copies.sort_by_key(|copy| (copy.role != CopyRole::Voter, of(copy)));
            if let Some(first) = copies.first() {
                *firsts.entry(first.node).or_default() += 1;
            }
            copies.into_iter().map(|PlacedCopy { node, role }| PlannedCopy { node, role }).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use cluster_config::cluster_state::Liveness;
    use cluster_config::ids::Incarnation;

    use super::*;

    #[test]
    fn full_nodes_get_no_copies_and_too_few_others_are_an_error_of_storage() {
        let node = |id| NodeRecord {
            id: NodeId(id),
            rpc_address: String::new(),
            http_address: String::new(),
            zone: "z".into(),
            weight: 100,
            is_data: true,
            incarnation: Incarnation(1),
            liveness: Liveness::Alive,
            lifecycle: NodeLifecycle::Active,
        };
        let nodes = (1..=3).map(|id| (NodeId(id), node(id))).collect();
        let mut state = ClusterState { nodes, ..ClusterState::default() };
        let spec = CollectionSpec::new("c", 8);
        let planned = |full: &[u64]| plan_collection(&state, &spec, &full.iter().copied().map(NodeId).collect());
        let nodes: BTreeSet<NodeId> =
            planned(&[2]).expect("two are enough").concat().iter().map(|copy| copy.node).collect();
        assert_eq!(nodes, [NodeId(1), NodeId(3)].into());
        let error = planned(&[2, 3]).expect_err("two copies, one node");
        assert_eq!(error.kind, ErrorKind::StorageFull);
        assert!(error.message.contains("memory of node 2, 3 is full"), "{}", error.message);

        let refused = |state: &ClusterState, copies| {
            let spec = CollectionSpec { copies, ..spec.clone() };
            plan_collection(state, &spec, &BTreeSet::new()).expect_err("too few").kind
        };
        assert_eq!(refused(&state, 4), ErrorKind::Conflict, "there is no fourth node to wait for");
        state.nodes.entry(NodeId(2)).and_modify(|node| node.liveness = Liveness::Dead);
        assert_eq!(refused(&state, 3), ErrorKind::Unavailable, "it may come back");
        state.nodes.entry(NodeId(2)).and_modify(|node| node.lifecycle = NodeLifecycle::Draining);
        assert_eq!(refused(&state, 3), ErrorKind::Conflict, "it takes nothing any more");
    }

    #[test]
    fn firsts_are_voters_and_spread() {
        let copy = |node, role| PlacedCopy { node: NodeId(node), role };
        let (voter, replica) = (CopyRole::Voter, CopyRole::ReadReplica);
        let shards = (0..6).map(|_| vec![copy(3, replica), copy(1, voter), copy(2, voter)]);
        let firsts: Vec<u64> = spread_firsts(shards).iter().map(|planned| planned[0].node.0).collect();
        assert_eq!(firsts, [1, 2, 1, 2, 1, 2]);
    }
}
