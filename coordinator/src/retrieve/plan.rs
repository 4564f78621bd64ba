//! Chooses, for each shard, the copies to ask and their order. Pure: state, what was learned of the nodes, and a random number in;
//! plan out.
//!
//! Belief about liveness and health only orders the copies of a shard; no copy that may answer is left out by it. The first is the one
//! of the best rank, with refinements among those that are not much worse: a copy in the coordinator's own zone goes first, then one
//! on a node that is asked anyway and has not got its share of the shards, since a call costs more than a shard more in it; of two
//! equally good ones chance decides, so that coordinators do not all run to the same node.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use cluster_config::cluster_state::{ClusterState, Liveness};
use cluster_config::ids::{CollectionId, Lineage, NodeId, ShardId};
use cluster_config::search::Consistency;
use cluster_config::shard_group::ShardGroup;

use crate::cluster::client::CopyTarget;
use crate::cluster::health::Standing;
use crate::cluster::stats::Board;

/// A rank up to so many times the best counts as equally good.
const NEAR: f64 = 1.5;

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

/// What the choice depends on besides the state and the board.
#[derive(Clone, Copy, Debug)]
pub struct PlanOptions<'a> {
    /// Strong reads go to the primary only.
    pub consistency: Consistency,
    /// The caller's wish.
    pub prefer_copy: Option<PreferCopy>,
    /// Where this coordinator stands.
    pub zone: Option<&'a str>,
    /// Decides between equally good copies.
    pub random: u64,
    /// For health.
    pub now: Instant,
}

/// A copy that may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it lives.
    pub node: NodeId,
    /// How it is addressed.
    pub target: CopyTarget,
    /// It orders the shard's writes, so it has applied whatever was acknowledged.
    pub is_primary: bool,
    /// Its node is believed alive and well: worth a hedge, not only a last resort.
    pub is_sound: bool,
}

/// The copies of one shard, best first. No candidates: the shard cannot be read now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardPlan {
    /// The shard.
    pub shard: ShardId,
    /// The lineage its copies must have.
    pub lineage: Lineage,
    /// In the order of trying.
    pub candidates: Vec<Candidate>,
    /// It has no primary, and every copy that may answer is on a node believed dead: waiting will not help soon.
    pub is_red: bool,
}

/// What orders two copies of a shard, best first.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Place {
    /// Dead or ill.
    tier: Tier,
    is_unwanted: bool,
    rank: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    /// The node's trial: one shard of a plan takes the risk.
    Trial,
    Sound,
    Resting,
    Ejected,
    Dead,
}

impl Place {
    fn order(&self, other: &Self) -> Ordering {
        (self.tier, self.is_unwanted).cmp(&(other.tier, other.is_unwanted)).then(self.rank.total_cmp(&other.rank))
    }

    fn is_near(&self, best: &Self) -> bool {
        (self.tier, self.is_unwanted) == (best.tier, best.is_unwanted) && self.rank <= best.rank * NEAR
    }
}

/// The sub-requests that earlier shards of the same read give each node.
#[derive(Clone, Debug, Default)]
pub struct Planned {
    on: BTreeMap<NodeId, u32>,
    /// Of the read's shards, spread evenly over all nodes that hold any: so many on one node make no read longer.
    share: u32,
}

impl Planned {
    fn none_of<'a>(groups: impl Iterator<Item = &'a ShardGroup>) -> Self {
        let (mut shards, mut nodes) = (0, BTreeSet::new());
        for group in groups {
            shards += 1;
            nodes.extend(group.readable().map(|(_, record)| record.node));
        }
        Self { on: BTreeMap::new(), share: u32::div_ceil(shards, nodes.len().max(1) as u32) }
    }

    fn on(&self, node: NodeId) -> u32 {
        self.on.get(&node).copied().unwrap_or(0)
    }

    /// The node is asked, and may well be asked for one shard more.
    fn has_room(&self, node: NodeId) -> bool {
        (1..self.share).contains(&self.on(node))
    }

    /// What counts against the node: within its share nothing.
    fn burden(&self, node: NodeId) -> u32 {
        if self.on(node) < self.share { 0 } else { self.on(node) }
    }
}

/// Plans a read of all shards of a collection, in shard order.
pub fn plan_read(
    state: &ClusterState,
    collection: CollectionId,
    options: &PlanOptions<'_>,
    board: &Board,
) -> Vec<ShardPlan> {
    let mut planned = Planned::none_of(state.shards_of(collection));
    let plans = state.shards_of(collection).map(|group| {
        let plan = plan_shard(state, group, options, board, &planned);
        if let Some(first) = plan.candidates.first() {
            *planned.on.entry(first.node).or_default() += 1;
        }
        plan
    });
    plans.collect()
}

/// Plans a read of one shard.
pub fn plan_shard(
    state: &ClusterState,
    group: &ShardGroup,
    options: &PlanOptions<'_>,
    board: &Board,
    planned: &Planned,
) -> ShardPlan {
    let primary = group.primary_copy();
    let mut copies: Vec<(Place, Candidate)> = Vec::with_capacity(group.copies.len());
    for (copy, record) in group.readable() {
        if options.consistency == Consistency::Strong && Some(copy) != primary {
            continue;
        }
        let is_alive = state.nodes.get(&record.node).is_some_and(|node| node.liveness == Liveness::Alive);
        let tier = match board.standing(record.node, options.now) {
            _ if !is_alive => Tier::Dead,
            Standing::Good => Tier::Sound,
            Standing::Due if planned.on(record.node) == 0 => Tier::Trial,
            Standing::Resting => Tier::Resting,
            Standing::Due | Standing::Ejected => Tier::Ejected,
        };
        let is_unwanted = match options.prefer_copy {
            None => false,
            Some(PreferCopy::Primary) => Some(copy) != primary,
            Some(PreferCopy::Replica) => Some(copy) == primary,
            Some(PreferCopy::Node(node)) => record.node != node,
        };
        let place = Place { tier, is_unwanted, rank: board.rank(record.node, planned.burden(record.node)) };
        let candidate = Candidate {
            node: record.node,
            target: group.target(copy),
            is_primary: Some(copy) == primary,
            is_sound: tier == Tier::Sound,
        };
        copies.push((place, candidate));
    }
    copies.sort_by(|(left, left_copy), (right, right_copy)| {
        left.order(right).then(left_copy.target.copy.cmp(&right_copy.target.copy))
    });
    let is_here = |candidate: &Candidate| {
        options.zone.is_some() && state.nodes.get(&candidate.node).map(|node| node.zone.as_str()) == options.zone
    };
    let coin = options.random.rotate_right(group.shard.index) & 1 == 1;
    choose_first(&mut copies, |candidate| (!is_here(candidate), !planned.has_room(candidate.node)), coin);
    let is_red = primary.is_none() && copies.iter().all(|(place, _)| place.tier == Tier::Dead);
    let mut candidates: Vec<Candidate> = copies.into_iter().map(|(_, candidate)| candidate).collect();
    if options.consistency == Consistency::Session {
        put_primary_second(&mut candidates);
    }
    ShardPlan { shard: group.shard, lineage: group.lineage, candidates, is_red }
}

/// Among the copies that are as good as the best: those with the least key first, and chance between the two best of them.
fn choose_first<K: Ord>(copies: &mut [(Place, Candidate)], key: impl Fn(&Candidate) -> K, coin: bool) {
    let Some((best, _)) = copies.first().copied() else { return };
    let near = copies.iter().take_while(|(place, _)| place.is_near(&best)).count();
    let near = &mut copies[..near];
    near.sort_by_key(|(_, candidate)| key(candidate));
    if near.len() >= 2 && key(&near[0].1) == key(&near[1].1) && coin {
        near.swap(0, 1);
    }
}

/// The primary has applied whatever it acknowledged: where the first copy lags behind a token, it is the one to ask.
fn put_primary_second(candidates: &mut [Candidate]) {
    let place = candidates.iter().position(|candidate| candidate.is_primary && candidate.is_sound);
    if let Some(place) = place
        && place > 1
    {
        candidates[1..=place].rotate_right(1);
    }
}

/// Lets what is known of nodes that the plan asks nothing move toward a node that was preferred to them.
pub fn drift_unchosen(plans: &[ShardPlan], board: &mut Board, now: Instant) {
    let mut winner_of: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    for plan in plans {
        let Some((winner, losers)) = plan.candidates.split_first() else { continue };
        for loser in losers.iter().filter(|loser| loser.is_sound) {
            winner_of.entry(loser.node).or_insert(winner.node);
        }
    }
    for winner in plans.iter().filter_map(|plan| plan.candidates.first()) {
        winner_of.remove(&winner.node);
    }
    for (loser, winner) in winner_of {
        board.drift(loser, winner, now);
    }
}

/// Groups targets by node: one call per node.
pub fn by_node(targets: impl IntoIterator<Item = (NodeId, CopyTarget)>) -> BTreeMap<NodeId, Vec<CopyTarget>> {
    let mut grouped: BTreeMap<NodeId, Vec<CopyTarget>> = BTreeMap::new();
    for (node, target) in targets {
        grouped.entry(node).or_default().push(target);
    }
    grouped
}

#[cfg(test)]
mod tests;
