use std::time::Duration;

use cluster_config::ids::CopyId;
use cluster_config::shard_group::{CopyPhase, CopyRecord, CopyRole};
use proptest::prelude::*;

use super::*;
use crate::cluster::health::{EJECTION, FAILURES_TO_EJECT};
use crate::cluster::load::Sample;
use crate::cluster::twin::test_state;

fn options(now: Instant) -> PlanOptions<'static> {
    PlanOptions { consistency: Consistency::Eventual, prefer_copy: None, zone: None, random: 0, now }
}

fn nodes(plan: &ShardPlan) -> Vec<u64> {
    plan.candidates.iter().map(|candidate| candidate.node.0).collect()
}

/// A board that has heard of each node once, with these response times.
fn board(now: Instant, response_ms: &[(u64, u64)]) -> Board {
    let mut board = Board::new(now);
    for (node, ms) in response_ms {
        board.begin(NodeId(*node), now, false);
        let sample = Sample { response: Duration::from_millis(*ms), queued_us: 0, service_us: 100 };
        board.answered(NodeId(*node), now, sample);
    }
    board
}

#[test]
fn the_wish_goes_first_but_no_copy_is_left_out() {
    let (state, collection) = test_state(3, 4, 2);
    let now = Instant::now();
    for (prefer, expect_primary_first) in [(PreferCopy::Primary, true), (PreferCopy::Replica, false)] {
        let options = PlanOptions { prefer_copy: Some(prefer), random: u64::MAX, ..options(now) };
        for plan in plan_read(&state, collection, &options, &Board::new(now)) {
            let primary = state.shards[&plan.shard].primary_copy();
            assert_eq!(plan.candidates.len(), 2);
            assert_eq!(Some(plan.candidates[0].target.copy) == primary, expect_primary_first);
        }
    }
}

#[test]
fn strong_reads_ask_the_primary_only_and_session_reads_ask_it_second() {
    let (mut state, collection) = test_state(3, 6, 3);
    for group in state.shards.values_mut() {
        let last = group.in_sync.last().copied().expect("three copies");
        group.primary.as_mut().expect("has one").copy = last;
    }
    let now = Instant::now();
    let primary = |plan: &ShardPlan| state.shards[&plan.shard].primary_copy().expect("has one");
    let copies = |plan: &ShardPlan| plan.candidates.iter().map(|c| c.target.copy).collect::<Vec<CopyId>>();
    let strong = PlanOptions { consistency: Consistency::Strong, ..options(now) };
    for plan in plan_read(&state, collection, &strong, &Board::new(now)) {
        assert_eq!(copies(&plan), vec![primary(&plan)]);
    }
    let session = PlanOptions { consistency: Consistency::Session, ..options(now) };
    let mut primary_first = 0;
    for plan in plan_read(&state, collection, &session, &Board::new(now)) {
        assert_eq!(plan.candidates.len(), 3);
        let place = copies(&plan).iter().position(|copy| *copy == primary(&plan)).expect("is asked");
        assert!(place <= 1, "{place}");
        primary_first += usize::from(place == 0);
    }
    assert!(primary_first < 6, "any copy may be first");
}

#[test]
fn a_read_replica_is_asked_once_it_is_in_sync() {
    let (mut state, collection) = test_state(3, 1, 2);
    let now = Instant::now();
    let group = state.shards.values_mut().next().expect("one shard");
    let replica = CopyId(77);
    let record = CopyRecord { node: NodeId(3), role: CopyRole::ReadReplica, phase: CopyPhase::CatchingUp };
    group.copies.insert(replica, record);
    assert_eq!(plan_read(&state, collection, &options(now), &Board::new(now))[0].candidates.len(), 2);
    let group = state.shards.values_mut().next().expect("one shard");
    group.copies.get_mut(&replica).expect("there").phase = CopyPhase::InSync;
    for consistency in [Consistency::Eventual, Consistency::Session] {
        let options = PlanOptions { consistency, ..options(now) };
        let plan = &plan_read(&state, collection, &options, &Board::new(now))[0];
        assert!(plan.candidates.iter().any(|candidate| candidate.target.copy == replica));
    }
}

#[test]
fn a_slow_node_comes_second_until_it_is_forgotten_to_be_slow() {
    let (state, collection) = test_state(2, 4, 2);
    let start = Instant::now();
    let mut board = board(start, &[(1, 1), (2, 100)]);
    let first = |board: &Board, now| {
        let plans = plan_read(&state, collection, &options(now), board);
        plans.iter().map(|plan| plan.candidates[0].node.0).collect::<Vec<_>>()
    };
    // Four shards on one node: the third and fourth would queue, and still less than a hundred milliseconds.
    assert_eq!(first(&board, start), vec![1; 4]);
    let mut now = start;
    let mut tried_after = None;
    for _ in 0..300 {
        now += Duration::from_millis(100);
        let plans = plan_read(&state, collection, &options(now), &board);
        if plans.iter().any(|plan| plan.candidates[0].node == NodeId(2)) {
            tried_after = Some(now - start);
            break;
        }
        drift_unchosen(&plans, &mut board, now);
    }
    let tried_after = tried_after.expect("is tried again");
    assert!(tried_after > Duration::from_secs(2), "{tried_after:?}");
}

#[test]
fn one_read_spreads_over_equal_nodes() {
    let (state, collection) = test_state(3, 30, 3);
    let now = Instant::now();
    let board = board(now, &[(1, 1), (2, 1), (3, 1)]);
    let mut shares: BTreeMap<u64, u32> = BTreeMap::new();
    for plan in plan_read(&state, collection, &options(now), &board) {
        *shares.entry(plan.candidates[0].node.0).or_default() += 1;
    }
    assert!(shares.values().all(|share| (8..=12).contains(share)), "{shares:?}");
}

#[test]
fn one_read_asks_few_nodes_and_none_for_more_than_its_share() {
    let (state, collection) = test_state(3, 4, 2);
    let now = Instant::now();
    let asked = |board: &Board, random| {
        let mut shares: BTreeMap<u64, u32> = BTreeMap::new();
        for plan in plan_read(&state, collection, &PlanOptions { random, ..options(now) }, board) {
            *shares.entry(plan.candidates[0].node.0).or_default() += 1;
        }
        shares
    };
    let equal = board(now, &[(1, 1), (2, 1), (3, 1)]);
    let mut busiest: BTreeMap<u64, u32> = BTreeMap::new();
    let mut calls = 0;
    for random in 0..16 {
        let shares = asked(&equal, random);
        assert!(shares.values().all(|share| *share <= 2), "{shares:?}");
        calls += shares.len();
        shares.into_iter().for_each(|(node, share)| *busiest.entry(node).or_default() += share);
    }
    assert!(calls < 16 * 3, "two nodes can answer, {calls} calls for 16 reads");
    assert_eq!(busiest.len(), 3, "chance gives every node its part: {busiest:?}");
    let slow = board(now, &[(1, 1), (2, 100), (3, 1)]);
    let first_of = |random| asked(&slow, random).get(&2).copied().unwrap_or(0);
    assert!((0..16).all(|random| first_of(random) == 0), "a slow node is not asked to save a call");
}

#[test]
fn of_two_equal_copies_chance_chooses() {
    let (state, collection) = test_state(2, 1, 2);
    let now = Instant::now();
    let board = board(now, &[(1, 10), (2, 14)]);
    let first = |random| {
        let options = PlanOptions { random, ..options(now) };
        nodes(&plan_read(&state, collection, &options, &board)[0])
    };
    assert_eq!((first(0), first(1)), (vec![1, 2], vec![2, 1]));
}

#[test]
fn the_own_zone_is_preferred_unless_it_is_much_worse() {
    let (mut state, collection) = test_state(3, 1, 3);
    let now = Instant::now();
    for (id, zone) in [(1, "a"), (2, "b"), (3, "b")] {
        state.nodes.get_mut(&NodeId(id)).expect("there").zone = zone.into();
    }
    let first = |response_ms: &[(u64, u64)], zone, random| {
        let options = PlanOptions { zone: Some(zone), random, ..options(now) };
        nodes(&plan_read(&state, collection, &options, &board(now, response_ms))[0])[0]
    };
    for random in [0, 1] {
        assert_eq!(first(&[(1, 14), (2, 10), (3, 10)], "a", random), 1);
        assert_eq!(first(&[(1, 10), (2, 14), (3, 30)], "b", random), 2);
        assert_ne!(first(&[(1, 20), (2, 10), (3, 10)], "a", random), 1);
    }
}

#[test]
fn an_ejected_node_is_last_and_its_trial_is_one_shard() {
    let (state, collection) = test_state(3, 6, 3);
    let start = Instant::now();
    let mut board = board(start, &[(1, 1), (2, 1), (3, 1)]);
    (0..FAILURES_TO_EJECT).for_each(|_| board.note_failure(NodeId(2), start, false));
    for plan in plan_read(&state, collection, &options(start), &board) {
        assert_eq!(nodes(&plan)[2], 2);
        assert!(!plan.candidates[2].is_sound);
    }
    let due = start + EJECTION;
    let plans = plan_read(&state, collection, &options(due), &board);
    let places: Vec<_> = plans.iter().map(|plan| nodes(plan).iter().position(|node| *node == 2)).collect();
    assert_eq!(places, vec![Some(0), Some(2), Some(2), Some(2), Some(2), Some(2)]);
}

#[test]
fn a_shard_is_red_without_a_primary_and_a_living_copy() {
    let (mut state, collection) = test_state(3, 1, 2);
    let now = Instant::now();
    let is_red = |state: &ClusterState| plan_read(state, collection, &options(now), &Board::new(now))[0].is_red;
    state.shards.values_mut().for_each(|group| group.primary = None);
    assert!(!is_red(&state), "between two grants");
    state.nodes.values_mut().for_each(|node| node.liveness = Liveness::Dead);
    assert!(is_red(&state));
}

proptest! {
    #[test]
    fn no_copy_is_left_out_and_dead_nodes_come_last_with_ejected_ones_before_them(
        dead in proptest::collection::btree_set(1u64..=5, 0..5),
        ejected in proptest::collection::btree_set(1u64..=5, 0..5),
        response_ms in proptest::collection::vec((1u64..=5, 1u64..500), 0..20),
        random in any::<u64>(),
        is_session in any::<bool>(),
    ) {
        let (mut state, collection) = test_state(5, 8, 3);
        let now = Instant::now();
        for (id, node) in &mut state.nodes {
            node.liveness = if dead.contains(&id.0) { Liveness::Dead } else { Liveness::Alive };
        }
        let mut board = board(now, &response_ms);
        for node in &ejected {
            (0..FAILURES_TO_EJECT).for_each(|_| board.note_failure(NodeId(*node), now, false));
        }
        let consistency = if is_session { Consistency::Session } else { Consistency::Eventual };
        let options = PlanOptions { random, consistency, ..options(now) };
        for plan in plan_read(&state, collection, &options, &board) {
            let tier = |node: &u64| if dead.contains(node) { 2 } else { i32::from(ejected.contains(node)) };
            let tiers: Vec<_> = nodes(&plan).iter().map(tier).collect();
            prop_assert_eq!(plan.candidates.len(), 3);
            prop_assert!(tiers.is_sorted(), "{:?}", tiers);
            for candidate in &plan.candidates {
                prop_assert_eq!(candidate.is_sound, tier(&candidate.node.0) == 0);
            }
        }
    }
}
