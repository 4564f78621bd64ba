//! Each test states a cluster, what was seen of it and when, and what the leader does.

use cluster_config::cluster_state::{NodeLifecycle, NodeRecord};
use cluster_config::collection::{Collection, CollectionSpec};
use cluster_config::ids::{CollectionId, Incarnation, Lineage, ShardId};
use proto::v1;

use super::super::observe::{Heartbeat, INDEX_STATE_POISONED};
use super::*;

#[path = "decide_tests/repair.rs"]
mod repair;

const PATIENCE: Patience =
    Patience { node_timeout_ms: 3000, first_grant_ms: 2000, replace_after_ms: 300_000, replace_corrupt_after_ms: 5000 };

/// A cluster with three data nodes, heard at time 0 by a leader that leads since then.
struct Scene {
    state: ClusterState,
    observed: Observed,
    leader_since_ms: u64,
}

/// What a part says: (grant, drop, phases).
type Told = (Option<(u64, u64)>, Vec<u64>, Vec<(u64, CopyPhase)>);

fn shard(index: u32) -> ShardId {
    ShardId { collection: CollectionId(1), index }
}

impl Scene {
    fn new() -> Self {
        let mut scene = Self { state: ClusterState::default(), observed: Observed::default(), leader_since_ms: 0 };
        let spec = CollectionSpec { copies: 2, ..CollectionSpec::new("docs", 8) };
        scene.state.collections.insert(CollectionId(1), Collection { id: CollectionId(1), spec, epoch: 1 });
        for id in 1..=3 {
            scene.node(id, 1, Liveness::Alive);
        }
        scene
    }

    fn node(&mut self, id: u64, incarnation: u64, liveness: Liveness) {
        let record = NodeRecord {
            id: NodeId(id),
            rpc_address: String::new(),
            http_address: String::new(),
            zone: format!("z{id}"),
            weight: 100,
            is_data: true,
            incarnation: Incarnation(incarnation),
            liveness,
            lifecycle: NodeLifecycle::Active,
        };
        self.state.nodes.insert(record.id, record);
    }

    fn drain(&mut self, node: u64) {
        self.state.nodes.get_mut(&NodeId(node)).expect("put").lifecycle = NodeLifecycle::Draining;
    }

    /// A shard whose copies `(copy, node)` are in sync or not, with the primary and the incarnation it was granted to.
    fn shard(&mut self, index: u32, copies: &[(u64, u64)], in_sync: &[u64], primary: Option<(u64, u64)>) {
        let in_sync: BTreeSet<CopyId> = in_sync.iter().copied().map(CopyId).collect();
        let record = |copy: u64, node: u64| {
            let phase = if in_sync.contains(&CopyId(copy)) { CopyPhase::InSync } else { CopyPhase::CatchingUp };
            (CopyId(copy), CopyRecord { node: NodeId(node), role: CopyRole::Voter, phase })
        };
        let group = ShardGroup {
            shard: shard(index),
            version: 7,
            primary_term: PrimaryTerm(u64::from(!in_sync.is_empty())),
            primary: primary
                .map(|(copy, incarnation)| PrimaryGrant { copy: CopyId(copy), incarnation: Incarnation(incarnation) }),
            copies: copies.iter().map(|(copy, node)| record(*copy, *node)).collect(),
            in_sync,
            lineage: Lineage(1),
            min_in_sync: 1,
        };
        self.state.shards.insert(group.shard, group);
    }

    /// Puts every copy of the shard back to its beginning.
    fn fresh(&mut self, index: u32, copies: &[(u64, u64)]) {
        self.shard(index, copies, &[], None);
        let group = self.state.shards.get_mut(&shard(index)).expect("just put");
        group.copies.values_mut().for_each(|record| record.phase = CopyPhase::New);
    }

    fn hear(&mut self, node: u64, incarnation: u64, copies: &[(u64, u64)], now_ms: u64) {
        self.hear_with(node, incarnation, copies, now_ms, |_| ());
    }

    /// A heartbeat that lists `(copy, last seqno)`.
    fn hear_with(
        &mut self,
        node: u64,
        incarnation: u64,
        copies: &[(u64, u64)],
        now_ms: u64,
        edit: impl FnOnce(&mut Heartbeat),
    ) {
        let report = |(copy, seqno): &(u64, u64)| v1::CopyReport {
            copy_id: *copy,
            last: Some(v1::LogPosition { term: 1, seqno: *seqno }),
            applied: *seqno,
            global_checkpoint: *seqno,
            ..v1::CopyReport::default()
        };
        let mut heartbeat = Heartbeat {
            node: NodeId(node),
            incarnation: Incarnation(incarnation),
            copies: copies.iter().map(report).collect(),
            ..Heartbeat::default()
        };
        edit(&mut heartbeat);
        self.observed.hear(heartbeat, now_ms);
    }

    fn decide(&mut self, now_ms: u64) -> Vec<Command> {
        self.observed.meet(&self.state, now_ms);
        decide(&View {
            state: &self.state,
            observed: &self.observed,
            now_ms,
            leader_since_ms: self.leader_since_ms,
            patience: &PATIENCE,
        })
    }

    /// The one part decided for shard 0; deaths left out.
    fn part(&mut self, now_ms: u64) -> Option<Told> {
        let parts = self.decide(now_ms).into_iter().find_map(|command| match command {
            Command::Reconfigure(parts) => Some(parts),
            _ => None,
        })?;
        assert_eq!(parts.len(), 1);
        let part = parts.into_iter().next()?;
        assert_eq!(part.expect_version, 7);
        Some((
            part.grant.map(|grant| (grant.copy.0, grant.incarnation.0)),
            part.drop.iter().map(|copy| copy.0).collect(),
            part.phases.iter().map(|(copy, phase)| (copy.0, *phase)).collect(),
        ))
    }
}

fn dead(node: u64) -> Command {
    Command::MarkDead { node: NodeId(node), incarnation: Incarnation(1) }
}

#[test]
fn health_asks_for_nothing() {
    let mut scene = Scene::new();
    scene.shard(0, &[(1, 1), (2, 2)], &[1, 2], Some((1, 1)));
    for node in 1..=3 {
        scene.hear(node, 1, &[(node, 5)], 1000);
    }
    assert_eq!(scene.decide(3999), []);
}

#[test]
fn silence_for_the_node_timeout_is_death() {
    let mut scene = Scene::new();
    scene.hear(1, 1, &[], 1000);
    scene.hear(2, 1, &[], 500);
    scene.hear(3, 1, &[], 1000);
    assert_eq!(scene.decide(3499), []);
    assert_eq!(scene.decide(3500), [dead(2)]);
}

#[test]
fn a_new_leader_waits_one_node_timeout_but_for_refused_connections() {
    let mut scene = Scene::new();
    for node in 1..=3 {
        scene.hear(node, 1, &[], 0);
    }
    scene.leader_since_ms = 10_000;
    assert_eq!(scene.decide(12_999), []);
    scene.observed.confirm_refused(NodeId(2), Incarnation(1), 11_000);
    assert_eq!(scene.decide(12_999), [dead(2)]);
    assert_eq!(scene.decide(13_000), [dead(1), dead(2), dead(3)]);
}

#[test]
fn a_node_that_says_that_it_stops_needs_no_waiting() {
    let mut scene = Scene::new();
    scene.shard(0, &[(1, 1), (2, 2)], &[1, 2], Some((1, 1)));
    scene.hear(1, 1, &[(1, 9)], 1000);
    scene.hear_with(2, 1, &[], 1000, |heartbeat| heartbeat.is_stopping = true);
    scene.hear(3, 1, &[], 1000);
    let commands = scene.decide(1000);
    let [first, Command::Reconfigure(parts)] = commands.as_slice() else { panic!("{commands:?}") };
    assert_eq!((first, parts[0].drop.as_slice()), (&dead(2), [CopyId(2)].as_slice()), "no write waits for it any more");
}

#[test]
fn a_heartbeat_under_way_does_not_take_a_goodbye_back() {
    let mut scene = Scene::new();
    scene.hear_with(2, 1, &[], 1000, |heartbeat| heartbeat.is_stopping = true);
    scene.hear(2, 1, &[], 1001);
    assert_eq!(scene.decide(1001), [dead(2)]);
    scene.node(2, 2, Liveness::Alive);
    scene.hear(2, 2, &[], 1100);
    assert_eq!(scene.decide(1100), [], "another life");
}

#[test]
fn a_node_that_is_heard_but_hears_nothing_is_dead_after_two_timeouts() {
    let mut scene = Scene::new();
    let mut told = Vec::new();
    for now_ms in (0..=6000).step_by(500) {
        scene.hear(1, 1, &[], now_ms);
        scene.hear_with(2, 1, &[], now_ms, |heartbeat| heartbeat.unanswered_ms = now_ms);
        scene.hear(3, 1, &[], now_ms);
        told.extend(scene.decide(now_ms).into_iter().map(|command| (now_ms, command)));
    }
    assert_eq!(told, [(6000, dead(2))]);
    let is_deaf =
        |node, incarnation, now_ms| scene.observed.is_deaf(NodeId(node), Incarnation(incarnation), now_ms, 1000);
    assert!(is_deaf(2, 1, 6000) && !is_deaf(3, 1, 6000) && !is_deaf(2, 2, 6000) && !is_deaf(9, 1, 6000));
    scene.leader_since_ms = 500;
    assert_eq!(scene.decide(6000), [], "it may have heard the leader before");
}

#[test]
fn a_heartbeat_after_the_probe_outweighs_it() {
    let mut scene = Scene::new();
    for node in 1..=3 {
        scene.hear(node, 1, &[], 1000);
    }
    scene.observed.confirm_refused(NodeId(2), Incarnation(1), 900);
    scene.observed.confirm_refused(NodeId(3), Incarnation(2), 2000);
    assert_eq!(scene.decide(1500), [], "one was heard since, the other probe was about another life");
}

#[test]
fn a_registration_counts_as_heard() {
    let mut scene = Scene::new();
    (1..=3).for_each(|node| scene.hear(node, 1, &[], 0));
    scene.decide(0);
    (1..=2).for_each(|node| scene.hear(node, 1, &[], 60_000));
    scene.node(3, 2, Liveness::Alive);
    assert_eq!(scene.decide(60_000), []);
}

#[test]
fn the_death_of_a_primary_moves_all_its_shards_in_one_command() {
    let mut scene = Scene::new();
    scene.shard(0, &[(1, 1), (2, 2)], &[1, 2], Some((1, 1)));
    scene.shard(1, &[(3, 1), (4, 3)], &[3, 4], Some((3, 1)));
    scene.shard(2, &[(5, 2), (6, 3)], &[5, 6], Some((5, 1)));
    scene.shard(3, &[(7, 2), (8, 1)], &[7, 8], Some((7, 1)));
    scene.hear(1, 1, &[(1, 5), (3, 5), (8, 5)], 0);
    scene.hear(2, 1, &[(2, 5), (5, 5), (7, 5)], 3000);
    scene.hear(3, 1, &[(4, 5), (6, 5)], 3000);
    let commands = scene.decide(3000);
    let [first, Command::Reconfigure(parts)] = commands.as_slice() else { panic!("{commands:?}") };
    assert_eq!(*first, dead(1));
    let told: Vec<_> =
        parts.iter().map(|part| (part.shard.index, part.grant.map(|grant| grant.copy.0), part.drop.clone())).collect();
    assert_eq!(told, [(0, Some(2), vec![CopyId(1)]), (1, Some(4), vec![CopyId(3)]), (3, None, vec![CopyId(8)]),]);
}

#[test]
fn the_longest_log_wins_then_the_least_loaded_node() {
    let table = [
        ("longest log", [5, 9], 1, Some((3, 1))),
        ("least loaded", [9, 9], 1, Some((3, 1))),
        ("lowest id", [9, 9], 0, Some((2, 1))),
    ];
    for (why, lasts, load_on_2, expected) in table {
        let mut scene = Scene::new();
        scene.shard(0, &[(1, 1), (2, 2), (3, 3)], &[1, 2, 3], None);
        if load_on_2 > 0 {
            scene.shard(1, &[(4, 2)], &[4], Some((4, 1)));
        }
        scene.hear(1, 1, &[], 0);
        scene.hear(2, 1, &[(2, lasts[0]), (4, 1)], 0);
        scene.hear(3, 1, &[(3, lasts[1])], 0);
        let (grant, drop, _) = scene.part(100).unwrap_or_else(|| panic!("{why}"));
        assert_eq!((grant, drop), (expected, vec![]), "{why}: copy 1 is not open, and its node lives");
    }
}

#[test]
fn a_draining_node_is_granted_the_role_only_if_nobody_else_is_left() {
    let mut scene = Scene::new();
    scene.shard(0, &[(1, 1), (2, 2), (3, 3)], &[1, 2, 3], None);
    scene.drain(2);
    scene.hear(1, 1, &[], 0);
    scene.hear(2, 1, &[(2, 99)], 0);
    scene.hear(3, 1, &[(3, 5)], 0);
    assert_eq!(scene.part(10), Some((Some((3, 1)), vec![], vec![])), "every in-sync copy holds what was acknowledged");
    scene.drain(3);
    scene.drain(1);
    assert_eq!(scene.part(20), Some((Some((2, 1)), vec![], vec![])), "a shard without a primary helps nobody");
}

#[test]
fn the_first_primary_is_not_on_a_draining_node() {
    let mut scene = Scene::new();
    scene.fresh(0, &[(1, 1), (2, 2)]);
    scene.drain(1);
    scene.hear(1, 1, &[(1, 0)], 0);
    scene.hear(2, 1, &[(2, 0)], 0);
    let phases = vec![(1, CopyPhase::CatchingUp), (2, CopyPhase::CatchingUp)];
    assert_eq!(scene.part(10), Some((Some((2, 1)), vec![], phases)));
}

#[test]
fn without_a_candidate_the_register_stays_as_it_is() {
    let mut scene = Scene::new();
    scene.shard(0, &[(1, 1), (2, 2)], &[1], Some((1, 1)));
    scene.hear(1, 1, &[(1, 5)], 0);
    scene.hear(2, 1, &[(2, 9)], 3000);
    scene.hear(3, 1, &[], 3000);
    assert_eq!(scene.decide(3000), [dead(1)], "copy 2 is not in sync, however long its log");
}

#[test]
fn a_restarted_sole_copy_is_granted_anew_once_its_new_life_reports_it_open() {
    let mut scene = Scene::new();
    scene.node(1, 2, Liveness::Alive);
    scene.shard(0, &[(1, 1)], &[1], None);
    (2..=3).for_each(|node| scene.hear(node, 1, &[], 0));
    scene.hear(1, 1, &[(1, 9)], 0);
    assert_eq!(scene.part(10), None, "that was the former life");
    scene.hear(1, 2, &[], 20);
    assert_eq!(scene.part(30), None, "it is not open, so its disk may be gone");
    scene.hear(1, 2, &[(1, 9)], 40);
    assert_eq!(scene.part(50), Some((Some((1, 2)), vec![], vec![])));
}

#[test]
fn a_grant_to_a_former_life_is_no_grant() {
    let mut scene = Scene::new();
    scene.node(1, 2, Liveness::Alive);
    scene.shard(0, &[(1, 1), (2, 2)], &[1, 2], Some((1, 1)));
    scene.hear(2, 1, &[(2, 9)], 0);
    let (grant, drop, _) = scene.part(10).expect("a failover");
    assert_eq!((grant, drop), (Some((2, 1)), vec![1]), "the former primary has to catch up with the new one");
}

#[test]
fn a_sick_primary_hands_over_if_it_can() {
    type Edit = fn(&mut Heartbeat);
    let sick: [Edit; 2] = [
        |heartbeat| heartbeat.is_disk_stalled = true,
        |heartbeat| heartbeat.copies[0].index_state = INDEX_STATE_POISONED.into(),
    ];
    for edit in sick {
        let mut scene = Scene::new();
        scene.shard(0, &[(1, 1), (2, 2)], &[1, 2], Some((1, 1)));
        scene.hear_with(1, 1, &[(1, 9)], 0, edit);
        assert_eq!(scene.part(10), None, "nobody else is known to be open");
        scene.hear(2, 1, &[(2, 5)], 10);
        assert_eq!(scene.part(20), Some((Some((2, 1)), vec![1], vec![])));
    }
}

#[test]
fn a_new_shard_is_granted_to_its_first_copy_or_after_a_while_to_another() {
    let mut scene = Scene::new();
    scene.fresh(0, &[(1, 1), (2, 2)]);
    (1..=3).for_each(|node| scene.hear(node, 1, &[], 0));
    assert_eq!(scene.part(0), None);
    scene.hear(2, 1, &[(2, 0)], 100);
    assert_eq!(scene.part(2099), Some((None, vec![], vec![(2, CopyPhase::CatchingUp)])));
    assert_eq!(scene.part(2100), Some((Some((2, 1)), vec![], vec![(2, CopyPhase::CatchingUp)])));
    scene.hear(1, 1, &[(1, 0)], 150);
    let phases = vec![(1, CopyPhase::CatchingUp), (2, CopyPhase::CatchingUp)];
    assert_eq!(scene.part(200), Some((Some((1, 1)), vec![], phases)));
}

#[test]
fn a_dead_first_copy_is_not_waited_for() {
    let mut scene = Scene::new();
    scene.node(1, 1, Liveness::Dead);
    scene.fresh(0, &[(1, 1), (2, 2)]);
    scene.hear(2, 1, &[(2, 0)], 0);
    assert_eq!(scene.part(10), Some((Some((2, 1)), vec![], vec![(2, CopyPhase::CatchingUp)])));
}

#[test]
fn a_read_replica_serves_while_it_keeps_up() {
    let table = [
        (CopyPhase::CatchingUp, 9000, Some(CopyPhase::InSync)),
        (CopyPhase::CatchingUp, 8999, None),
        (CopyPhase::InSync, 1, None),
        (CopyPhase::InSync, 0, None),
    ];
    for (phase, applied, expected) in table {
        let mut scene = Scene::new();
        scene.shard(0, &[(1, 1), (2, 2)], &[1], Some((1, 1)));
        let group = scene.state.shards.get_mut(&shard(0)).expect("put");
        *group.copies.get_mut(&CopyId(2)).expect("put") =
            CopyRecord { node: NodeId(2), role: CopyRole::ReadReplica, phase };
        scene.state.collections.get_mut(&CollectionId(1)).expect("put").spec.copies = 1;
        scene.state.collections.get_mut(&CollectionId(1)).expect("put").spec.read_replicas = 1;
        scene.hear(1, 1, &[(1, 10_000)], 0);
        scene.hear(2, 1, &[(2, applied)], 0);
        let phases = scene.part(10).map(|(_, _, phases)| phases);
        assert_eq!(phases, expected.map(|to| vec![(2, to)]), "{phase:?} at {applied}");
    }
}
