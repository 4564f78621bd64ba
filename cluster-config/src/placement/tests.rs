//! The ring against an independent one and against kept values; the planner's promises as properties and as figures.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::ring::{RING_SEED, RingKey, places, preferences};
use super::*;
use crate::ids::{CollectionId, CopyId, Incarnation, Lineage};
use crate::seqno::PrimaryTerm;
use crate::shard_group::{CopyRecord, ShardGroup};

fn shard(index: u32) -> ShardId {
    ShardId { collection: CollectionId(1), index }
}

fn node(id: u64, zone: &str, weight: u32) -> PlacementNode {
    PlacementNode { id: NodeId(id), zone: zone.into(), weight, intake: Intake::Open, other_copies: 0 }
}

fn problem(nodes: Vec<PlacementNode>, shard_count: u32, voters: u32) -> Problem {
    let shards = (0..shard_count).map(|index| PlacementShard { shard: shard(index), copies: Vec::new() }).collect();
    Problem { voters, read_replicas: 0, nodes, shards }
}

/// The same problem once the plan has been carried out.
fn after(problem: &Problem, plan: &Plan) -> Problem {
    let placed =
        |(shard, copies): (&ShardId, &Vec<PlacedCopy>)| PlacementShard { shard: *shard, copies: copies.clone() };
    Problem { shards: plan.assignment.iter().map(placed).collect(), ..problem.clone() }
}

fn loads(plan: &Plan) -> BTreeMap<NodeId, u64> {
    let mut loads = BTreeMap::new();
    for copy in plan.assignment.values().flatten() {
        *loads.entry(copy.node).or_default() += 1;
    }
    loads
}

/// A ring as one would write it down without a library: all places sorted by (hash, node), walked clockwise.
fn reference_preferences(nodes: &[(NodeId, u32)], shard: ShardId) -> Vec<usize> {
    let mut ring: Vec<(u64, NodeId, usize)> = Vec::new();
    for (position, (node, weight)) in nodes.iter().enumerate() {
        for place in 0..places(*weight) as u32 {
            let mut bytes = b"vn\0".to_vec();
            bytes.extend(node.0.to_be_bytes());
            bytes.extend(place.to_le_bytes());
            ring.push((xxh3_64_with_seed(&bytes, RING_SEED), *node, position));
        }
    }
    ring.sort();
    let mut bytes = b"shard\0".to_vec();
    bytes.extend(shard.collection.0.to_be_bytes());
    bytes.extend(shard.index.to_be_bytes());
    let start = ring.partition_point(|place| place.0 < xxh3_64_with_seed(&bytes, RING_SEED));
    let mut order = Vec::new();
    for step in 0..ring.len() {
        let position = ring[(start + step) % ring.len()].2;
        if !order.contains(&position) {
            order.push(position);
        }
    }
    order
}

/// Values of the first build, confirmed with the C library of xxHash: ring orders of five nodes for 64 shards. Changing them moves data in every running cluster.
#[test]
fn golden_ring() {
    let nodes: Vec<(NodeId, u32)> = (1..=5).map(|id| (NodeId(id), if id == 5 { 200 } else { 100 })).collect();
    let shards: Vec<ShardId> = (0..64).map(shard).collect();
    let line = |order: Vec<usize>| order.into_iter().map(|at| nodes[at].0.to_string()).collect::<String>();
    let lines: Vec<String> = preferences(&nodes, &shards).into_iter().map(line).collect();
    let kept: Vec<&str> = include_str!("../../tests/golden/ring_1.txt").lines().collect();
    assert_eq!(lines, kept, "\n{}", lines.join("\n"));
}

#[test]
fn ring_keys_are_the_documented_bytes() {
    assert_eq!(RingKey::of_node(NodeId(258)).0, b"vn\0\0\0\0\0\0\0\x01\x02");
    assert_eq!(RingKey::of_shard(shard(3)).0, b"shard\0\0\0\0\0\0\0\0\x01\0\0\0\x03");
}

fn nodes_strategy() -> impl Strategy<Value = Vec<PlacementNode>> {
    let attributes = (0usize..4, prop::sample::select(vec![50u32, 100, 100, 100, 200]), 0u64..20);
    prop::collection::btree_map(1u64..1000, attributes, 1..10).prop_map(|nodes| {
        let build = |(id, (zone, weight, other_copies))| PlacementNode {
            other_copies,
            ..node(id, ["a", "b", "c", "d"][zone], weight)
        };
        nodes.into_iter().map(build).collect()
    })
}

fn problem_strategy() -> impl Strategy<Value = Problem> {
    (nodes_strategy(), 1u32..40, 1u32..4, 0u32..2)
        .prop_map(|(nodes, shards, voters, read_replicas)| Problem { read_replicas, ..problem(nodes, shards, voters) })
}

/// Every promise about a plan that does not depend on how it came about.
fn check(problem: &Problem, plan: &Plan) -> Result<(), TestCaseError> {
    let nodes: BTreeMap<NodeId, &PlacementNode> = problem.nodes.iter().map(|node| (node.id, node)).collect();
    let open = problem.nodes.iter().filter(|node| node.intake == Intake::Open).count();
    let zones: BTreeSet<&str> = problem.nodes.iter().map(|node| node.zone.as_str()).collect();
    let wanted = (problem.voters + problem.read_replicas) as usize;
    for copies in plan.assignment.values() {
        let on: BTreeSet<NodeId> = copies.iter().map(|copy| copy.node).collect();
        prop_assert_eq!(on.len(), copies.len(), "a node holds one copy of a shard");
        if problem.nodes.iter().all(|node| node.intake == Intake::Open) {
            prop_assert_eq!(copies.len(), wanted.min(open), "as many copies as wanted");
            let used: BTreeSet<&str> = on.iter().map(|node| nodes[node].zone.as_str()).collect();
            prop_assert_eq!(used.len(), zones.len().min(copies.len()), "as many zones as there can be");
        }
        let voters = copies.iter().filter(|copy| copy.role == CopyRole::Voter).count();
        prop_assert!(voters == (problem.voters as usize).min(copies.len()), "voters before read replicas");
    }
    for planned in &plan.moves {
        prop_assert_eq!(nodes[&planned.to].intake, Intake::Open);
        prop_assert!(plan.assignment[&planned.shard].iter().any(|copy| copy.node == planned.to));
        prop_assert!(
            planned.from.is_none_or(|from| plan.assignment[&planned.shard].iter().all(|copy| copy.node != from))
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn the_ring_is_the_reference_ring(weights in prop::collection::btree_map(any::<u64>(), 1u32..300, 1..8), index: u32, collection: u64) {
        let nodes: Vec<(NodeId, u32)> = weights.into_iter().map(|(id, weight)| (NodeId(id), weight)).collect();
        let shard = ShardId { collection: CollectionId(collection), index };
        prop_assert_eq!(&preferences(&nodes, &[shard])[0], &reference_preferences(&nodes, shard));
    }

    #[test]
    fn a_new_collection_is_placed_within_zones_and_caps(problem in problem_strategy()) {
        let planned = plan(&problem, Goal::Repair);
        check(&problem, &planned)?;
        prop_assert!(planned.moves.iter().all(|planned| planned.reason == MoveReason::Missing && planned.from.is_none()));
        prop_assert_eq!(planned.moves.len(), planned.assignment.values().map(Vec::len).sum::<usize>());
    }

    #[test]
    fn equal_nodes_in_equal_zones_get_equal_loads(zones in 1u64..4, per_zone in 1u64..5, shards in 1u32..64, voters in 1u32..4) {
        let names = ["a", "b", "c"];
        let nodes = (0..zones * per_zone).map(|id| node(id + 1, names[(id % zones) as usize], 100)).collect();
        let planned = plan(&problem(nodes, shards, voters), Goal::Repair);
        let copies = u64::from(shards) * u64::from(voters).min(zones * per_zone);
        let mean = copies as f64 / (zones * per_zone) as f64;
        for load in loads(&planned).values() {
            prop_assert!((*load as f64) <= (mean * 1.1).ceil(), "{} of {}", load, mean);
        }
    }

    #[test]
    fn a_plan_of_a_plan_moves_nothing(problem in problem_strategy(), goal in prop::sample::select(vec![Goal::Repair, Goal::Rebalance])) {
        let first = plan(&problem, goal);
        let second = plan(&after(&problem, &first), goal);
        prop_assert_eq!(&second.moves, &Vec::new());
        prop_assert_eq!(second.assignment, first.assignment);
    }

    #[test]
    fn the_order_of_naming_does_not_matter(problem in problem_strategy(), gone in any::<prop::sample::Index>(), rotation in 0usize..10) {
        let mut lost = after(&problem, &plan(&problem, Goal::Repair));
        lost.nodes.remove(gone.index(lost.nodes.len()));
        let mut turned = lost.clone();
        let (nodes, shards) = (turned.nodes.len().max(1), turned.shards.len());
        turned.nodes.rotate_left(rotation % nodes);
        turned.shards.reverse();
        turned.shards.rotate_left(rotation % shards);
        turned.shards.iter_mut().for_each(|shard| shard.copies.reverse());
        for goal in [Goal::Repair, Goal::Rebalance] {
            prop_assert_eq!(plan(&lost, goal), plan(&turned, goal));
        }
    }

    #[test]
    fn repair_builds_what_a_lost_node_held_and_nothing_else(problem in problem_strategy(), gone in any::<prop::sample::Index>()) {
        let first = plan(&problem, Goal::Repair);
        let mut lost = after(&problem, &first);
        let gone = lost.nodes.remove(gone.index(lost.nodes.len())).id;
        let second = plan(&lost, Goal::Repair);
        for (shard, copies) in &first.assignment {
            let kept = copies.iter().filter(|copy| copy.node != gone);
            prop_assert!(kept.clone().all(|copy| second.assignment[shard].contains(copy)), "what can stay stays");
        }
        prop_assert!(second.moves.iter().all(|planned| planned.from == Some(gone) && planned.reason == MoveReason::NodeGone));
        let held = loads(&first).get(&gone).copied().unwrap_or(0) as usize;
        let missing = second.warnings.iter().any(|warning| matches!(warning, Warning::TooFewNodes { .. }));
        prop_assert!(second.moves.len() == held || missing);
    }

    #[test]
    fn a_node_more_takes_no_more_than_its_share(problem in problem_strategy(), zone in 0usize..4) {
        let first = plan(&problem, Goal::Rebalance);
        let mut grown = after(&problem, &first);
        grown.nodes.push(node(1001, ["a", "b", "c", "d"][zone], 100));
        let second = plan(&grown, Goal::Rebalance);
        check(&grown, &second)?;
        let weights: u32 = grown.nodes.iter().map(|node| node.weight).sum();
        let copies: usize = second.assignment.values().map(Vec::len).sum();
        let spread = second.moves.iter().filter(|planned| planned.reason == MoveReason::ZoneSpread).count();
        let missing = second.moves.iter().filter(|planned| planned.reason == MoveReason::Missing).count();
        let others = second.moves.len() - spread - missing;
        // The new node can be the only one of its zone; then it is allowed one copy of every shard.
        let share = (copies * 100 / weights as usize).max(grown.shards.len());
        prop_assert!(others <= share + grown.nodes.len(), "{} moves, share {}", others, share);
        prop_assert!(second.moves.iter().all(|planned| planned.reason != MoveReason::NodeGone));
    }

    #[test]
    fn a_leaving_node_is_emptied_where_others_have_room(problem in problem_strategy(), leaving in any::<prop::sample::Index>()) {
        let mut draining = after(&problem, &plan(&problem, Goal::Repair));
        let at = leaving.index(draining.nodes.len());
        draining.nodes[at].intake = Intake::Leaving;
        let leaving = draining.nodes[at].id;
        prop_assert_eq!(plan(&draining, Goal::Repair).moves, Vec::new(), "repair leaves it alone");
        let planned = plan(&draining, Goal::Rebalance);
        check(&draining, &planned)?;
        let stayed = loads(&planned).get(&leaving).copied().unwrap_or(0);
        let warned = Warning::CannotEmpty { node: leaving, copies: stayed };
        prop_assert_eq!(stayed > 0, planned.warnings.contains(&warned));
        if draining.nodes.len() > (draining.voters + draining.read_replicas) as usize {
            prop_assert_eq!(stayed, 0);
        }
        let again = plan(&after(&draining, &planned), Goal::Rebalance);
        prop_assert_eq!(again.moves, Vec::new());
    }
}

/// Moved copies, and the largest load relative to the mean, at each step of a cluster's life. Figures of the simulation the
/// design rests on: one node more moves at most a seventh, draining one of nine at most 13 %.
#[test]
fn growing_and_draining_moves_few_copies() {
    for (shards, voters) in [(64, 2), (256, 3), (1024, 2)] {
        let zones = ["a", "b", "c"];
        let mut nodes: Vec<PlacementNode> = (1..=6).map(|id| node(id, zones[(id % 3) as usize], 100)).collect();
        let mut current = problem(nodes.clone(), shards, voters);
        let copies = (shards * voters) as usize;
        let mut step = |name: &str, nodes: Vec<PlacementNode>, percent_max: usize| {
            current.nodes = nodes;
            let planned = plan(&current, Goal::Rebalance);
            let most = loads(&planned).into_values().max().unwrap_or(0) as usize;
            let mean = copies / current.nodes.iter().filter(|node| node.intake == Intake::Open).count();
            println!("{shards} x {voters} {name}: moved {} of {copies}, most {most}, mean {mean}", planned.moves.len());
            assert!(
                planned.moves.len() * 100 <= copies * percent_max,
                "{name}: {} of {copies} moved",
                planned.moves.len()
            );
            assert_eq!(planned.warnings, [], "{name}");
            current = after(&current, &planned);
            (most, mean)
        };
        let (most, mean) = step("six nodes", nodes.clone(), 100);
        assert!(most <= mean + 1);
        nodes.push(node(7, "a", 100));
        step("one more", nodes.clone(), 15);
        nodes.extend([node(8, "b", 100), node(9, "c", 100)]);
        let (most, mean) = step("two more", nodes.clone(), 26);
        assert!(most <= mean + 2);
        nodes[4].intake = Intake::Leaving;
        step("drain one of nine", nodes.clone(), 14);
    }
}

#[test]
fn repair_comes_first_for_the_shard_with_the_fewest_copies() {
    let mut problem = problem((1..=4).map(|id| node(id, "z", 100)).collect(), 3, 3);
    let placed = |nodes: &[u64]| -> Vec<PlacedCopy> {
        nodes.iter().map(|id| PlacedCopy { node: NodeId(*id), role: CopyRole::Voter }).collect()
    };
    problem.shards[0].copies = placed(&[1, 2, 9]);
    problem.shards[1].copies = placed(&[1, 2, 3]);
    problem.shards[2].copies = placed(&[4, 8, 9]);
    let order: Vec<u32> = plan(&problem, Goal::Repair).moves.iter().map(|planned| planned.shard.index).collect();
    assert_eq!(order, [2, 2, 0]);
}

#[test]
fn what_cannot_be_done_is_said() {
    let few_nodes = plan(&problem(vec![node(1, "a", 100), node(2, "a", 100)], 4, 3), Goal::Repair);
    assert_eq!(few_nodes.warnings, [Warning::TooFewNodes { wanted: 3, open_nodes: 2, missing: 4 }]);
    let few_zones =
        plan(&problem((1..=4).map(|id| node(id, ["a", "b"][id as usize % 2], 100)).collect(), 4, 3), Goal::Repair);
    assert_eq!(few_zones.warnings, [Warning::TooFewZones { wanted: 3, zones: 2 }]);
    let nobody = plan(&problem(Vec::new(), 2, 1), Goal::Rebalance);
    assert_eq!(nobody.warnings, [Warning::TooFewNodes { wanted: 1, open_nodes: 0, missing: 2 }]);
    assert!(nobody.moves.is_empty() && nobody.assignment.values().all(Vec::is_empty));
    for warning in few_nodes.warnings.iter().chain(&few_zones.warnings) {
        assert!(warning.to_string().contains("3 copies"), "{warning}");
    }
}

#[test]
fn small_collections_avoid_nodes_that_are_full_of_others() {
    let busy = |id| PlacementNode { other_copies: if id <= 3 { 100 } else { 0 }, ..node(id, "z", 100) };
    let planned = plan(&problem((1..=6).map(busy).collect(), 1, 2), Goal::Repair);
    assert!(loads(&planned).keys().all(|node| node.0 > 3), "{:?}", planned.assignment);
}

#[test]
fn a_silent_node_keeps_its_copies_until_it_is_given_up() {
    let spec = crate::collection::CollectionSpec { shard_count: 2, ..crate::collection::CollectionSpec::new("c", 8) };
    let collection = Collection { id: CollectionId(1), spec, epoch: 0 };
    let record = |id: u64, liveness| crate::cluster_state::NodeRecord {
        id: NodeId(id),
        rpc_address: format!("h{id}:1"),
        http_address: format!("h{id}:2"),
        zone: "z".into(),
        weight: 100,
        is_data: id != 4,
        incarnation: Incarnation(1),
        liveness,
        lifecycle: NodeLifecycle::Active,
    };
    let copy = |node, phase| CopyRecord { node: NodeId(node), role: CopyRole::Voter, phase };
    let group = ShardGroup {
        shard: shard(0),
        version: 1,
        primary_term: PrimaryTerm(0),
        primary: None,
        in_sync: BTreeSet::new(),
        copies: BTreeMap::from([
            (CopyId(1), copy(1, CopyPhase::InSync)),
            (CopyId(2), copy(2, CopyPhase::InSync)),
            (CopyId(3), copy(3, CopyPhase::Retiring)),
        ]),
        lineage: Lineage(1),
        min_in_sync: 1,
    };
    let nodes = [(1, Liveness::Alive), (2, Liveness::Dead), (3, Liveness::Alive), (4, Liveness::Alive)];
    let state = ClusterState {
        nodes: nodes.map(|(id, liveness)| (NodeId(id), record(id, liveness))).into(),
        collections: BTreeMap::from([(collection.id, collection.clone())]),
        shards: BTreeMap::from([(shard(0), group)]),
        ..ClusterState::default()
    };
    let waiting = plan(&Problem::of_collection(&state, &collection, &BTreeSet::new()), Goal::Repair);
    assert!(waiting.moves.iter().all(|planned| planned.shard == shard(1)), "shard 0 waits: {:?}", waiting.moves);
    assert_eq!(waiting.moves.len(), 2, "the metadata-only node and the dead one take nothing");
    let given_up = plan(&Problem::of_collection(&state, &collection, &BTreeSet::from([NodeId(2)])), Goal::Repair);
    let repaired: Vec<&Move> = given_up.moves.iter().filter(|planned| planned.shard == shard(0)).collect();
    assert_eq!(repaired.len(), 1);
    assert_eq!(
        (repaired[0].from, repaired[0].to),
        (Some(NodeId(2)), NodeId(3)),
        "a retiring copy does not occupy its node"
    );
}
