//! Chooses, for each shard, the copies to ask and their order. Pure: state and options in, plan out.
//!
//! Knows nothing of connections beyond a list of suspects; a suspect or dead node is put last, never left out, because belief
//! about liveness must not decide whether a shard can be read.

use std::collections::BTreeMap;

use cluster_config::cluster_state::{ClusterState, Liveness};
use cluster_config::ids::{CollectionId, NodeId, ShardId};
use cluster_config::search::Consistency;

use crate::cluster::client::CopyTarget;

/// Which copy a caller wants asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PreferCopy {
    /// The one that orders writes.
    Primary,
    /// Any other, where there is one.
    Replica,
    /// The one on this node, where there is one.
    Node(NodeId),
}

/// What the choice depends on besides the state.
#[derive(Clone, Debug, Default)]
pub struct PlanOptions {
    /// Session and strong reads go to the primary only.
    pub consistency: Consistency,
    /// The caller's wish.
    pub prefer_copy: Option<PreferCopy>,
    /// Nodes that just failed: tried last.
    pub suspects: Vec<NodeId>,
    /// Spreads equal choices: successive queries give successive numbers.
    pub rotation: u64,
}

/// A copy that may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it lives.
    pub node: NodeId,
    /// How it is addressed.
    pub target: CopyTarget,
}

/// The copies of one shard, best first. Empty: the shard cannot be read now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardPlan {
    /// The shard.
    pub shard: ShardId,
    /// In the order of trying.
    pub candidates: Vec<Candidate>,
}

/// Plans a read of all shards of a collection, in shard order.
pub fn plan_read(state: &ClusterState, collection: CollectionId, options: &PlanOptions) -> Vec<ShardPlan> {
    let mut plans: Vec<ShardPlan> = Vec::new();
    for group in state.shards_of(collection) {
        let primary = group.primary_copy();
        let mut ranked: Vec<((bool, bool, bool, u64), Candidate)> = group
            .readable()
            .enumerate()
            .filter(|(_, (copy, _))| options.consistency == Consistency::Eventual || Some(*copy) == primary)
            .map(|(position, (copy, record))| {
                let is_alive = state.nodes.get(&record.node).is_some_and(|node| node.liveness == Liveness::Alive);
                let is_wanted = match options.prefer_copy {
                    None => true,
                    Some(PreferCopy::Primary) => Some(copy) == primary,
                    Some(PreferCopy::Replica) => Some(copy) != primary,
                    Some(PreferCopy::Node(node)) => record.node == node,
                };
                // Rotates by shard too, so that one query spreads over the nodes instead of hitting one with all shards.
                let turn =
                    (position as u64 + options.rotation + u64::from(group.shard.index)) % group.copies.len() as u64;
                let candidate = Candidate { node: record.node, target: group.target(copy) };
                ((!is_alive, options.suspects.contains(&record.node), !is_wanted, turn), candidate)
            })
            .collect();
        ranked.sort_by_key(|(rank, candidate)| (*rank, candidate.target.copy));
        let candidates = ranked.into_iter().map(|(_, candidate)| candidate).collect();
        plans.push(ShardPlan { shard: group.shard, candidates });
    }
    plans
}

/// Groups targets by node: one call per node.
pub fn by_node(candidates: impl IntoIterator<Item = Candidate>) -> BTreeMap<NodeId, Vec<CopyTarget>> {
    let mut targets: BTreeMap<NodeId, Vec<CopyTarget>> = BTreeMap::new();
    for candidate in candidates {
        targets.entry(candidate.node).or_default().push(candidate.target);
    }
    targets
}

#[cfg(test)]
mod tests {
    use cluster_config::ids::CopyId;
    use cluster_config::shard_group::CopyPhase;
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::twin::test_state;

    fn nodes(plan: &ShardPlan) -> Vec<u64> {
        plan.candidates.iter().map(|candidate| candidate.node.0).collect()
    }

    #[test]
    fn the_wish_goes_first_but_no_copy_is_left_out() {
        let (state, collection) = test_state(3, 4, 2);
        for (prefer, expect_primary_first) in [(PreferCopy::Primary, true), (PreferCopy::Replica, false)] {
            let options = PlanOptions { prefer_copy: Some(prefer), ..PlanOptions::default() };
            for plan in plan_read(&state, collection, &options) {
                let primary = state.shards[&plan.shard].primary_copy();
                assert_eq!(plan.candidates.len(), 2);
                assert_eq!(Some(plan.candidates[0].target.copy) == primary, expect_primary_first);
            }
        }
    }

    #[test]
    fn session_reads_ask_the_primary_only() {
        let (state, collection) = test_state(3, 4, 2);
        let options = PlanOptions { consistency: Consistency::Session, ..PlanOptions::default() };
        for plan in plan_read(&state, collection, &options) {
            let primary = state.shards[&plan.shard].primary_copy().expect("has a primary");
            assert_eq!(plan.candidates.iter().map(|c| c.target.copy).collect::<Vec<CopyId>>(), vec![primary]);
        }
    }

    #[test]
    fn a_copy_that_is_catching_up_is_not_asked() {
        let (mut state, collection) = test_state(3, 1, 2);
        let group = state.shards.values_mut().next().expect("one shard");
        let replica = *group.in_sync.iter().find(|copy| Some(**copy) != group.primary_copy()).expect("a replica");
        group.in_sync.remove(&replica);
        group.copies.get_mut(&replica).expect("exists").phase = CopyPhase::CatchingUp;
        assert_eq!(plan_read(&state, collection, &PlanOptions::default())[0].candidates.len(), 1);
    }

    proptest! {
        #[test]
        fn dead_nodes_come_last_and_suspects_before_them(
            dead in proptest::collection::btree_set(1u64..=5, 0..5),
            suspects in proptest::collection::btree_set(1u64..=5, 0..5),
            rotation in any::<u64>(),
        ) {
            let (mut state, collection) = test_state(5, 8, 3);
            for (id, node) in &mut state.nodes {
                node.liveness = if dead.contains(&id.0) { Liveness::Dead } else { Liveness::Alive };
            }
            // Wrapping is the caller's business; the planner takes any number that does not overflow by small additions.
            let rotation = rotation / 2;
            let options = PlanOptions {
                suspects: suspects.iter().map(|id| NodeId(*id)).collect(), rotation, ..PlanOptions::default()
            };
            for plan in plan_read(&state, collection, &options) {
                let rank = |node: &u64| (dead.contains(node), suspects.contains(node));
                let ranks: Vec<_> = nodes(&plan).iter().map(rank).collect();
                prop_assert_eq!(plan.candidates.len(), 3);
                prop_assert!(ranks.is_sorted(), "{:?}", ranks);
            }
        }
    }
}
