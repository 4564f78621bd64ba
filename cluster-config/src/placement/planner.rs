//! The plan while it is being made: its state, and the four steps that change it.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::quota::{self, Share};
use super::{Goal, Intake, Move, MoveReason, PlacedCopy, PlacementNode, PlacementShard, Plan, Problem, Warning, ring};
use crate::ids::{NodeId, ShardId};
use crate::shard_group::CopyRole;

/// A copy in the plan being made.
#[derive(Clone, Copy)]
struct Assigned {
    /// Position in [`Planner::nodes`].
    node: usize,
    role: CopyRole,
    /// Existed before and may not be moved by this plan.
    is_pinned: bool,
}

/// One shard in the plan being made.
struct ShardPlan {
    shard: ShardId,
    before: Vec<PlacedCopy>,
    /// All nodes in ring order, as positions in [`Planner::nodes`].
    preference: Vec<usize>,
    /// Position of each node in `preference`.
    rank: Vec<usize>,
    copies: Vec<Assigned>,
    /// Why a copy that existed before has left its node.
    left: BTreeMap<NodeId, MoveReason>,
}

/// The plan being made. Nodes and shards are sorted by id and addressed by position, so that the order in which they were
/// named cannot matter.
pub(super) struct Planner<'a> {
    goal: Goal,
    wanted: u64,
    nodes: Vec<&'a PlacementNode>,
    /// Zone of each node, as a number.
    zones: Vec<usize>,
    zone_count: usize,
    shards: Vec<ShardPlan>,
    /// What each node should hold of this collection, and how much it does.
    shares: Vec<Share>,
    load: Vec<u64>,
    /// Cap over the copies of all collections.
    total_caps: Vec<u64>,
    missing: u64,
}

impl<'a> Planner<'a> {
    pub(super) fn new(problem: &'a Problem, goal: Goal) -> Self {
        let by_id: BTreeMap<NodeId, &PlacementNode> = problem.nodes.iter().map(|node| (node.id, node)).collect();
        let nodes: Vec<&PlacementNode> = by_id.into_values().collect();
        let zone_names: BTreeSet<&str> = nodes.iter().map(|node| node.zone.as_str()).collect();
        let zone_numbers: BTreeMap<&str, usize> = zone_names.into_iter().zip(0..).collect();
        let mut planner = Self {
            goal,
            wanted: u64::from(problem.voters) + u64::from(problem.read_replicas),
            zones: nodes.iter().map(|node| zone_numbers[node.zone.as_str()]).collect(),
            zone_count: zone_numbers.len(),
            load: vec![0; nodes.len()],
            shards: read_shards(problem, &nodes),
            nodes,
            shares: Vec::new(),
            total_caps: Vec::new(),
            missing: 0,
        };
        planner.set_shares();
        planner
    }

    /// Shares of the nodes that stay: zones by weight, levelled at what spreading allows, then the nodes of each zone.
    fn set_shares(&mut self) {
        let stays = |node: &usize| self.nodes[*node].intake != Intake::Leaving;
        let staying: Vec<usize> = (0..self.nodes.len()).filter(stays).collect();
        let members: Vec<Vec<usize>> = (0..self.zone_count)
            .map(|zone| staying.iter().copied().filter(|node| self.zones[*node] == zone).collect())
            .collect();
        let sizes: Vec<u64> = members.iter().map(|nodes| nodes.len() as u64).collect();
        let shard_count = self.shards.len() as u64;
        let wanted = self.wanted.min(staying.len() as u64);
        let per_zone = quota::copies_per_zone(wanted, &sizes);
        let weight = |node: usize| u64::from(self.nodes[node].weight.max(1));
        let zone_entries: Vec<(u64, u64)> = members
            .iter()
            .zip(&sizes)
            .map(|(nodes, size)| (nodes.iter().map(|node| weight(*node)).sum(), shard_count * per_zone.min(*size)))
            .collect();
        let zone_shares = quota::water_fill(Share::whole(wanted * shard_count), &zone_entries);
        let mut shares = vec![Share::whole(0); self.nodes.len()];
        for (nodes, zone_share) in members.iter().zip(zone_shares) {
            let entries: Vec<(u64, u64)> = nodes.iter().map(|node| (weight(*node), shard_count)).collect();
            for (node, share) in nodes.iter().zip(quota::water_fill(zone_share, &entries)) {
                shares[*node] = share;
            }
        }
        let others: u64 = staying.iter().map(|node| self.nodes[*node].other_copies).sum();
        let everything = Share::whole(others + wanted * shard_count);
        let entries: Vec<(u64, u64)> = staying.iter().map(|node| (weight(*node), u64::MAX)).collect();
        let mut total_caps = vec![0; self.nodes.len()];
        for (node, share) in staying.iter().zip(quota::water_fill(everything, &entries)) {
            total_caps[*node] = share.cap();
        }
        self.shares = shares;
        self.total_caps = total_caps;
    }

    /// Step 2. Copies on nodes that are gone leave; so do those on leaving nodes, where the goal is to empty them.
    pub(super) fn keep_what_may_stay(&mut self) {
        let position: BTreeMap<NodeId, usize> = self.nodes.iter().enumerate().map(|(at, node)| (node.id, at)).collect();
        for shard in &mut self.shards {
            for copy in &shard.before {
                let Some(node) = position.get(&copy.node).copied() else {
                    shard.left.insert(copy.node, MoveReason::NodeGone);
                    continue;
                };
                if self.goal == Goal::Rebalance && self.nodes[node].intake == Intake::Leaving {
                    shard.left.insert(copy.node, MoveReason::NodeLeaves);
                    continue;
                }
                shard.copies.push(Assigned { node, role: copy.role, is_pinned: self.goal == Goal::Repair });
                self.load[node] += 1;
            }
        }
    }

    /// Step 3. Gives each shard `wanted` copies of that role, as far as there are nodes.
    pub(super) fn place_missing(&mut self, role: CopyRole, wanted: u32) {
        for at in 0..self.shards.len() {
            let held = self.shards[at].copies.iter().filter(|copy| copy.role == role).count() as u64;
            for _ in held..u64::from(wanted) {
                if let Some(node) = self.choose_node(at, role) {
                    self.shards[at].copies.push(Assigned { node, role, is_pinned: false });
                    self.load[node] += 1;
                } else if !self.stay_after_all(at, role) {
                    self.missing += 1;
                }
            }
        }
    }

    /// The node for one more copy of a shard: in the zone with the fewest, first in ring order among those below their cap for
    /// this collection (best also for all collections together); where all are at their cap, the one furthest below its share.
    fn choose_node(&self, at: usize, role: CopyRole) -> Option<usize> {
        let shard = &self.shards[at];
        let use_of = |node: usize| {
            let in_zone = |copy: &&Assigned| self.zones[copy.node] == self.zones[node];
            let voters = shard.copies.iter().filter(in_zone).filter(|copy| copy.role == CopyRole::Voter).count();
            let all = shard.copies.iter().filter(in_zone).count();
            (if role == CopyRole::Voter { voters } else { 0 }, all)
        };
        let is_free = |node: usize| self.nodes[node].intake == Intake::Open && !shard.holds(node);
        let free: Vec<usize> = shard.preference.iter().copied().filter(|node| is_free(*node)).collect();
        let least = free.iter().map(|node| use_of(*node)).min()?;
        let candidates: Vec<usize> = free.into_iter().filter(|node| use_of(*node) == least).collect();
        let below_cap = |node: usize| self.load[node] < self.shares[node].cap();
        let below_total = |node: usize| self.load[node] + self.nodes[node].other_copies < self.total_caps[node];
        let first = |accepts: &dyn Fn(usize) -> bool| candidates.iter().copied().find(|node| accepts(*node));
        first(&|node| below_cap(node) && below_total(node))
            .or_else(|| first(&below_cap))
            .or_else(|| candidates.iter().copied().min_by(|one, other| self.compare_surplus(*one, *other)))
    }

    /// A copy that was to leave a leaving node stays there if nobody can take it.
    fn stay_after_all(&mut self, at: usize, role: CopyRole) -> bool {
        let shard = &mut self.shards[at];
        let leaves =
            |copy: &&PlacedCopy| copy.role == role && shard.left.get(&copy.node) == Some(&MoveReason::NodeLeaves);
        let Some(copy) = shard.before.iter().find(leaves).copied() else { return false };
        let Some(node) = self.nodes.iter().position(|node| node.id == copy.node) else { return false };
        shard.left.remove(&copy.node);
        shard.copies.push(Assigned { node, role, is_pinned: true });
        self.load[node] += 1;
        true
    }

    /// Step 4a. While a zone holds two copies of a shard more than a zone with a free node, one of them moves there.
    pub(super) fn spread_over_zones(&mut self) {
        for at in 0..self.shards.len() {
            while let Some((copy, to)) = self.find_spread(at) {
                self.move_copy(at, copy, to, MoveReason::ZoneSpread);
            }
        }
    }

    fn find_spread(&self, at: usize) -> Option<(usize, usize)> {
        let shard = &self.shards[at];
        let counts = shard.zone_counts(&self.zones, self.zone_count);
        let free = shard.preference.iter().copied().filter(|node| self.can_take(at, *node));
        // min_by_key takes the first of equals, which is the first in ring order.
        let to = free.min_by_key(|node| counts[self.zones[*node]])?;
        let movable = |position: &usize| {
            let copy = shard.copies[*position];
            !copy.is_pinned && counts[self.zones[copy.node]] >= counts[self.zones[to]] + 2
        };
        let from = (0..shard.copies.len()).filter(movable).max_by(|one, other| {
            let (one, other) = (shard.copies[*one].node, shard.copies[*other].node);
            let by_zone = counts[self.zones[one]].cmp(&counts[self.zones[other]]);
            by_zone.then(self.compare_surplus(one, other)).then(one.cmp(&other))
        })?;
        Some((from, to))
    }

    /// Step 4b. Moves copies from nodes above their share to nodes below it: first only where the ring prefers the receiver, so
    /// that later plans agree, then wherever the zones allow. Ends, because each move brings the loads closer to the shares.
    pub(super) fn even_out(&mut self) {
        for only_as_ring_prefers in [true, false] {
            loop {
                let mut receivers: Vec<usize> =
                    (0..self.nodes.len()).filter(|node| self.load[*node] < self.shares[*node].floor()).collect();
                receivers.sort_by(|one, other| self.compare_surplus(*one, *other).then(one.cmp(other)));
                let find = |to: &usize| self.find_move_to(*to, only_as_ring_prefers).map(|(at, copy)| (at, copy, *to));
                let Some((at, copy, to)) = receivers.iter().find_map(find) else { break };
                self.move_copy(at, copy, to, MoveReason::Balance);
            }
        }
    }

    /// The best copy to move to node `to`: from the node furthest above its share, then where the ring gains most.
    fn find_move_to(&self, to: usize, only_as_ring_prefers: bool) -> Option<(usize, usize)> {
        let is_needy = self.shares[to].lacks_more_than_one(self.load[to]);
        let gives =
            |(share, load): (&Share, &u64)| *load > share.ceil() || (is_needy && share.is_half_exceeded_by(*load));
        let givers: Vec<bool> = self.shares.iter().zip(&self.load).map(gives).collect();
        if !givers.contains(&true) {
            return None;
        }
        let from_and_gain = |(at, copy): (usize, usize)| {
            let shard = &self.shards[at];
            let from = shard.copies[copy].node;
            (from, shard.rank[from] as i64 - shard.rank[to] as i64)
        };
        let mut best: Option<(usize, usize)> = None;
        for at in (0..self.shards.len()).filter(|at| self.can_take(*at, to)) {
            let shard = &self.shards[at];
            let in_zone = |zone: usize| shard.copies.iter().filter(|copy| self.zones[copy.node] == zone).count();
            for (copy, assigned) in shard.copies.iter().enumerate() {
                let (from, gain) = from_and_gain((at, copy));
                if assigned.is_pinned || !givers[from] || (only_as_ring_prefers && gain <= 0) {
                    continue;
                }
                let (zone_from, zone_to) = (self.zones[from], self.zones[to]);
                if zone_from != zone_to && in_zone(zone_to) >= in_zone(zone_from) {
                    continue;
                }
                let is_better = best.is_none_or(|best| {
                    let (best_from, best_gain) = from_and_gain(best);
                    self.compare_surplus(from, best_from).then(gain.cmp(&best_gain)) == Ordering::Greater
                });
                if is_better {
                    best = Some((at, copy));
                }
            }
        }
        best
    }

    fn can_take(&self, at: usize, node: usize) -> bool {
        self.nodes[node].intake == Intake::Open && !self.shards[at].holds(node)
    }

    fn compare_surplus(&self, one: usize, other: usize) -> Ordering {
        quota::compare_surplus((self.shares[one], self.load[one]), (self.shares[other], self.load[other]))
    }

    fn move_copy(&mut self, at: usize, copy: usize, to: usize, reason: MoveReason) {
        let shard = &mut self.shards[at];
        let from = shard.copies[copy].node;
        shard.copies[copy].node = to;
        self.load[from] -= 1;
        self.load[to] += 1;
        let from = self.nodes[from].id;
        if shard.before.iter().any(|copy| copy.node == from) {
            shard.left.insert(from, reason);
        }
        // Moved back to where it was.
        shard.left.remove(&self.nodes[to].id);
    }

    /// The result: moves are the difference between before and after, however many detours the steps took.
    pub(super) fn finish(self) -> Plan {
        let mut plan = Plan { warnings: self.warnings(), ..Plan::default() };
        let mut urgencies: Vec<(MoveReason, usize, Move)> = Vec::new();
        for shard in &self.shards {
            let mut after = shard.copies.clone();
            after.sort_by_key(|copy| shard.rank[copy.node]);
            let is_new = |copy: &&Assigned| shard.before.iter().all(|old| old.node != self.nodes[copy.node].id);
            let mut vacated: Vec<&PlacedCopy> =
                shard.before.iter().filter(|copy| shard.left.contains_key(&copy.node)).collect();
            let is_lost = |copy: &&PlacedCopy| shard.left.get(&copy.node) == Some(&MoveReason::NodeGone);
            let survivors = shard.before.len() - shard.before.iter().filter(is_lost).count();
            for copy in after.iter().filter(is_new) {
                let replaced = vacated.iter().position(|old| old.role == copy.role).map(|at| vacated.remove(at).node);
                let reason = replaced.map_or(MoveReason::Missing, |from| shard.left[&from]);
                let to = self.nodes[copy.node].id;
                urgencies.push((
                    reason,
                    survivors,
                    Move { shard: shard.shard, role: copy.role, from: replaced, to, reason },
                ));
            }
            let placed = |copy: &Assigned| PlacedCopy { node: self.nodes[copy.node].id, role: copy.role };
            plan.assignment.insert(shard.shard, after.iter().map(placed).collect());
        }
        // Stable: within equals, shards in order.
        urgencies.sort_by_key(|(reason, survivors, _)| (*reason, *survivors));
        plan.moves = urgencies.into_iter().map(|(_, _, planned)| planned).collect();
        plan
    }

    fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        if self.missing > 0 {
            let open_nodes = self.nodes.iter().filter(|node| node.intake == Intake::Open).count() as u64;
            warnings.push(Warning::TooFewNodes { wanted: self.wanted, open_nodes, missing: self.missing });
        }
        let stays = |node: &usize| self.nodes[*node].intake != Intake::Leaving;
        let zones: BTreeSet<usize> = (0..self.nodes.len()).filter(stays).map(|node| self.zones[node]).collect();
        // A cluster of one zone has not been told about failure domains; there is nothing to warn about.
        if (zones.len() as u64) < self.wanted && zones.len() > 1 {
            warnings.push(Warning::TooFewZones { wanted: self.wanted, zones: zones.len() as u64 });
        }
        if self.goal == Goal::Rebalance {
            for (node, load) in self.nodes.iter().zip(&self.load) {
                if node.intake == Intake::Leaving && *load > 0 {
                    warnings.push(Warning::CannotEmpty { node: node.id, copies: *load });
                }
            }
        }
        warnings
    }
}

impl ShardPlan {
    fn holds(&self, node: usize) -> bool {
        self.copies.iter().any(|copy| copy.node == node)
    }

    fn zone_counts(&self, zones: &[usize], zone_count: usize) -> Vec<usize> {
        let mut counts = vec![0; zone_count];
        self.copies.iter().for_each(|copy| counts[zones[copy.node]] += 1);
        counts
    }
}

fn read_shards(problem: &Problem, nodes: &[&PlacementNode]) -> Vec<ShardPlan> {
    let by_id: BTreeMap<ShardId, &PlacementShard> = problem.shards.iter().map(|shard| (shard.shard, shard)).collect();
    let ids: Vec<ShardId> = by_id.keys().copied().collect();
    let weighted: Vec<(NodeId, u32)> = nodes.iter().map(|node| (node.id, node.weight)).collect();
    let read = |(shard, preference): (&PlacementShard, Vec<usize>)| {
        let mut rank = vec![0; preference.len()];
        preference.iter().enumerate().for_each(|(position, node)| rank[*node] = position);
        let before: BTreeMap<NodeId, PlacedCopy> = shard.copies.iter().map(|copy| (copy.node, *copy)).collect();
        ShardPlan {
            shard: shard.shard,
            before: before.into_values().collect(),
            preference,
            rank,
            copies: Vec::new(),
            left: BTreeMap::new(),
        }
    };
    by_id.into_values().zip(ring::preferences(&weighted, &ids)).map(read).collect()
}
