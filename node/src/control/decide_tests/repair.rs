//! Which copies come and go.

use cluster_config::cluster_state::RetiredCopy;
use cluster_config::memory::NodeMemory;

use super::*;
use crate::control::observe::INDEX_STATE_CORRUPT;
use crate::metadata::command::PlannedCopy;

#[test]
fn a_copy_lost_with_its_disk_is_built_anew() {
    let mut scene = Scene::new();
    scene.shard(0, &[(1, 1)], &[1], Some((1, 1)));
    scene.shard(1, &[(2, 3), (3, 1)], &[2, 3], Some((2, 1)));
    scene.hear(1, 1, &[(1, 9), (3, 9)], 0);
    scene.hear(2, 1, &[], 0);
    scene.hear(3, 1, &[(2, 9)], 0);
    let copy = PlannedCopy { node: NodeId(2), role: CopyRole::Voter };
    assert_eq!(scene.decide(10), [Command::AddCopy { shard: shard(0), expect_version: 7, copy }]);
}

#[test]
fn a_node_whose_memory_is_full_is_given_no_copy() {
    let mut scene = Scene::new();
    scene.shard(0, &[(1, 1)], &[1], Some((1, 1)));
    let full = |heartbeat: &mut Heartbeat| {
        heartbeat.memory = NodeMemory { resident_anonymous: 10, budget: 10, ..NodeMemory::default() };
    };
    scene.hear(1, 1, &[(1, 9)], 0);
    scene.hear_with(2, 1, &[], 0, full);
    scene.hear(3, 1, &[], 0);
    let copy = PlannedCopy { node: NodeId(3), role: CopyRole::Voter };
    assert_eq!(scene.decide(10), [Command::AddCopy { shard: shard(0), expect_version: 7, copy }]);
    scene.hear_with(3, 1, &[], 20, full);
    assert_eq!(scene.decide(20), [], "rather one copy too few than a node that dies");
}

#[test]
fn copies_of_a_node_that_stays_dead_move_and_are_then_forgotten() {
    let mut scene = Scene::new();
    scene.node(2, 1, Liveness::Dead);
    scene.shard(0, &[(1, 1), (2, 2)], &[1], Some((1, 1)));
    let all = |scene: &mut Scene, now_ms| {
        scene.hear(1, 1, &[(1, 9)], now_ms);
        scene.hear(3, 1, &[(3, 9)], now_ms);
    };
    all(&mut scene, 1000);
    assert_eq!(scene.decide(1000), []);
    all(&mut scene, 300_999);
    assert_eq!(scene.decide(300_999), [], "it may be a restart");
    all(&mut scene, 301_000);
    let copy = PlannedCopy { node: NodeId(3), role: CopyRole::Voter };
    assert_eq!(scene.decide(301_000), [Command::AddCopy { shard: shard(0), expect_version: 7, copy }]);

    scene.shard(0, &[(1, 1), (2, 2), (3, 3)], &[1], Some((1, 1)));
    assert_eq!(scene.decide(301_000), [], "the new one is not in sync yet");
    scene.shard(0, &[(1, 1), (2, 2), (3, 3)], &[1, 3], Some((1, 1)));
    let retire = Command::RetireCopy { shard: shard(0), expect_version: 7, copy: CopyId(2) };
    assert_eq!(scene.decide(301_000), [retire]);
}

fn corrupt(heartbeat: &mut Heartbeat) {
    heartbeat.copies.iter_mut().for_each(|report| report.index_state = INDEX_STATE_CORRUPT.into());
}

#[test]
fn a_corrupt_copy_leaves_the_set_and_is_then_replaced_where_it_is() {
    let mut scene = Scene::new();
    scene.shard(0, &[(1, 1), (2, 2)], &[1, 2], Some((1, 1)));
    let all = |scene: &mut Scene, now_ms| {
        scene.hear(1, 1, &[(1, 9)], now_ms);
        scene.hear_with(2, 1, &[(2, 9)], now_ms, corrupt);
        scene.hear(3, 1, &[], now_ms);
    };
    all(&mut scene, 1000);
    assert_eq!(scene.part(1000), Some((None, vec![2], vec![])));

    scene.shard(0, &[(1, 1), (2, 2)], &[1], Some((1, 1)));
    all(&mut scene, 5999);
    assert_eq!(scene.decide(5999), [], "a disk that corrupts whatever is put on it is not fed faster");
    all(&mut scene, 6000);
    let replace = Command::ReplaceCopy { shard: shard(0), expect_version: 7, copy: CopyId(2) };
    assert_eq!(scene.decide(6000), [replace]);
    scene.drain(2);
    let retire = Command::RetireCopy { shard: shard(0), expect_version: 7, copy: CopyId(2) };
    assert_eq!(scene.decide(6000), [retire], "a draining node takes no new copies");
}

#[test]
fn a_corrupt_primary_is_taken_over_from_and_the_last_in_sync_copy_stays() {
    let mut scene = Scene::new();
    scene.shard(0, &[(1, 1), (2, 2)], &[1, 2], None);
    scene.hear_with(1, 1, &[(1, 9)], 0, corrupt);
    (2..=3).for_each(|node| scene.hear(node, 1, &[], 0));
    assert_eq!(scene.decide(10), [], "nobody can take over, and copy 2 may come back");
    scene.hear(2, 1, &[(2, 5)], 20);
    assert_eq!(scene.part(20), Some((Some((2, 1)), vec![1], vec![])));

    scene.shard(0, &[(1, 1), (2, 2)], &[1], None);
    for now_ms in [30, 60_000] {
        scene.hear_with(1, 1, &[(1, 9)], now_ms, corrupt);
        scene.hear(2, 1, &[(2, 5)], now_ms);
        scene.hear(3, 1, &[], now_ms);
        assert_eq!(scene.decide(now_ms), [], "the last copy in sync is never given up");
    }
}

#[test]
fn a_corrupt_new_copy_counts_as_not_opened() {
    let mut scene = Scene::new();
    scene.fresh(0, &[(1, 1), (2, 2)]);
    scene.hear_with(1, 1, &[(1, 0)], 0, corrupt);
    scene.hear(2, 1, &[(2, 0)], 0);
    scene.hear(3, 1, &[], 0);
    assert_eq!(scene.part(2000), Some((Some((2, 1)), vec![], vec![(2, CopyPhase::CatchingUp)])));
}

#[test]
fn retired_copies_are_forgotten_when_the_present_life_of_their_node_says_that_they_are_gone() {
    let mut scene = Scene::new();
    for (copy, node) in [(7, 1), (8, 1), (9, 2)] {
        scene.state.retired.insert(CopyId(copy), RetiredCopy { shard: shard(0), node: NodeId(node) });
    }
    let deleted = |heartbeat: &mut Heartbeat| heartbeat.deleted = [CopyId(7), CopyId(9)].into();
    scene.hear_with(1, 1, &[], 0, deleted);
    (2..=3).for_each(|node| scene.hear(node, 1, &[], 0));
    assert_eq!(scene.decide(10), [Command::ForgetRetired(vec![CopyId(7)])], "copy 9 is on another node");
    scene.node(1, 2, Liveness::Alive);
    assert_eq!(scene.decide(20), [], "that was a former life");
}
