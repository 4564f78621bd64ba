//! Which node holds which copy of a collection's shards: a pure planner.
//!
//! The ring proposes, quotas correct, the metadata group stores the explicit result. The plan is computed by the metadata
//! leader *outside* `apply`, so another build may plan differently without any copy of the state diverging. Given the same
//! problem it gives the same plan, in whatever order nodes and shards are named.
//!
//! 1. Each node's share: the copies of the collection shared out over zones by weight, at most as many per zone as spreading
//!    needs (one per shard while there are enough zones), then over the nodes of the zone. [`quota`]
//! 2. Every copy that may stay stays.
//! 3. Missing copies go to the zone with the fewest copies of their shard, there to the first node in ring order that is below
//!    its cap. [`ring`]
//! 4. Copies move from nodes above their share to nodes below it, as few as that takes.
//!
//! What it does not know: bytes, disks, primaries, transfers. Who executes a plan decides about order and pace.

mod planner;
mod quota;
mod ring;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cluster_state::{ClusterState, Liveness, NodeLifecycle};
use crate::collection::Collection;
use crate::ids::{NodeId, ShardId};
use crate::shard_group::{CopyPhase, CopyRole};
use planner::Planner;

/// What a node does with copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intake {
    /// Keeps its copies and takes more.
    Open,
    /// Keeps its copies, takes none now: silent for a while, or short of disk.
    Closed,
    /// Is to be emptied.
    Leaving,
}

/// A node that holds or may hold copies. A node that is not named at all is gone, and its copies with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementNode {
    /// Which node.
    pub id: NodeId,
    /// Failure domain.
    pub zone: String,
    /// Share of the data relative to others; 100 is one share, 0 counts as 1.
    pub weight: u32,
    /// What it does with copies.
    pub intake: Intake,
    /// Copies of other collections on it, so that small collections do not all choose the same nodes.
    pub other_copies: u64,
}

/// A copy where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedCopy {
    /// On which node; a node holds at most one copy of a shard.
    pub node: NodeId,
    /// Voter or read replica.
    pub role: CopyRole,
}

/// A shard and the copies it has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementShard {
    /// Which shard.
    pub shard: ShardId,
    /// Its copies.
    pub copies: Vec<PlacedCopy>,
}

/// Everything the planner looks at: one collection, all nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Voting copies wanted of each shard.
    pub voters: u32,
    /// Read replicas wanted of each shard.
    pub read_replicas: u32,
    /// Nodes, in any order.
    pub nodes: Vec<PlacementNode>,
    /// Shards, in any order.
    pub shards: Vec<PlacementShard>,
}

/// How far a plan may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Places what is missing and leaves every existing copy where it is. For new collections and lost nodes.
    Repair,
    /// Also empties leaving nodes, spreads over zones and evens out.
    Rebalance,
}

/// Why a copy is to be placed or moved. In order of urgency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MoveReason {
    /// The shard has too few copies.
    Missing,
    /// The node that held it is gone.
    NodeGone,
    /// The node that holds it is to be emptied.
    NodeLeaves,
    /// Two copies share a zone while another zone has room.
    ZoneSpread,
    /// The node holds more than its share and another one less.
    Balance,
}

/// One copy to be built, and the one it stands in for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// Which shard.
    pub shard: ShardId,
    /// Role of the copy.
    pub role: CopyRole,
    /// The node that gives it up once the new copy is in sync; `None` where none does.
    pub from: Option<NodeId>,
    /// The node that takes it.
    pub to: NodeId,
    /// Why.
    pub reason: MoveReason,
}

/// What a plan could not do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "warning", rename_all = "snake_case")]
pub enum Warning {
    /// Copies that find no node, summed over the shards.
    TooFewNodes {
        /// Copies wanted of each shard.
        wanted: u64,
        /// Nodes that take copies.
        open_nodes: u64,
        /// Copies that stay missing.
        missing: u64,
    },
    /// Copies of a shard have to share a zone.
    TooFewZones {
        /// Copies wanted of each shard.
        wanted: u64,
        /// Zones there are.
        zones: u64,
    },
    /// A node cannot be emptied, because nobody can take its copies.
    CannotEmpty {
        /// Which node.
        node: NodeId,
        /// Copies that stay on it.
        copies: u64,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFewNodes { wanted, open_nodes, missing } => write!(
                f,
                "{missing} copies stay missing: {wanted} copies per shard are wanted and {open_nodes} nodes take copies; add nodes"
            ),
            Self::TooFewZones { wanted, zones } => write!(
                f,
                "copies share zones: {wanted} copies per shard over {zones} zones; losing a zone can lose several copies of a shard"
            ),
            Self::CannotEmpty { node, copies } => {
                write!(f, "node {node} cannot be emptied: {copies} copies find no other node; add nodes")
            }
        }
    }
}

/// The explicit result: where every copy is to be, and what has to happen for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Copies of each shard, in ring order of their nodes.
    pub assignment: BTreeMap<ShardId, Vec<PlacedCopy>>,
    /// Most urgent first; within a reason, shards with the fewest copies left first.
    pub moves: Vec<Move>,
    /// What could not be done.
    pub warnings: Vec<Warning>,
}

impl Problem {
    /// The problem of one collection, with the shards it has or is about to have. Dead nodes keep their copies unless named in
    /// `gone`: whoever calls decides how long a restart may take.
    pub fn of_collection(state: &ClusterState, collection: &Collection, gone: &BTreeSet<NodeId>) -> Self {
        let node_of =
            |record: &crate::shard_group::CopyRecord| (record.phase != CopyPhase::Retiring).then_some(record.node);
        let mut other_copies: BTreeMap<NodeId, u64> = BTreeMap::new();
        for group in state.shards.values().filter(|group| group.shard.collection != collection.id) {
            for node in group.copies.values().filter_map(node_of) {
                *other_copies.entry(node).or_default() += 1;
            }
        }
        let nodes =
            state.nodes.values().filter(|node| node.is_data && !gone.contains(&node.id)).map(|node| PlacementNode {
                id: node.id,
                zone: node.zone.clone(),
                weight: node.weight,
                intake: match (node.lifecycle, node.liveness) {
                    (NodeLifecycle::Draining, _) => Intake::Leaving,
                    (NodeLifecycle::Active, Liveness::Alive) => Intake::Open,
                    (NodeLifecycle::Active, Liveness::Dead) => Intake::Closed,
                },
                other_copies: other_copies.get(&node.id).copied().unwrap_or(0),
            });
        let shards = (0..collection.spec.shard_count).map(|index| ShardId { collection: collection.id, index });
        let copies_of = |shard: ShardId| {
            let records = state.shards.get(&shard).into_iter().flat_map(|group| group.copies.values());
            records.filter_map(|record| node_of(record).map(|node| PlacedCopy { node, role: record.role })).collect()
        };
        Self {
            voters: collection.spec.copies,
            read_replicas: collection.spec.read_replicas,
            nodes: nodes.collect(),
            shards: shards.map(|shard| PlacementShard { shard, copies: copies_of(shard) }).collect(),
        }
    }
}

/// Plans where the copies of a collection are to be. Pure.
/// Cost: mostly the ring walk, for 1024 shards of 4 copies 30 ms with 30 nodes, 0.5 s with 200, 8 s with 1000 (one core of a busy
/// machine): not for a reactor thread.
pub fn plan(problem: &Problem, goal: Goal) -> Plan {
    let mut planner = Planner::new(problem, goal);
    planner.keep_what_may_stay();
    planner.place_missing(CopyRole::Voter, problem.voters);
    planner.place_missing(CopyRole::ReadReplica, problem.read_replicas);
    planner.spread_over_zones();
    planner.even_out();
    planner.finish()
}
