//! Each test is a short story: commands, and the state after them. The invariants are checked after every command.

use cluster_config::cluster_state::{Liveness, NodeLifecycle};
use cluster_config::collection::CollectionSpec;
use cluster_config::ids::{CollectionId, CopyId, Incarnation, NodeId, ShardId};
use cluster_config::seqno::PrimaryTerm;
use cluster_config::shard_group::{CopyPhase, CopyRole, PrimaryGrant, ShardGroup};
use proptest::prelude::*;

use super::*;
use crate::metadata::command::{
    FEATURE_LEVEL, ForcePromote, PlannedCopy, Proposal, ProposedChange, Reconfiguration, RegisterNode,
};

mod operators;

const SHARD: ShardId = ShardId { collection: CollectionId(1), index: 0 };

struct Story {
    state: State,
}

impl Story {
    fn new() -> Self {
        Self { state: State::empty("c") }
    }

    /// Three data nodes and one shard with voters 1, 2, 3 on nodes 1, 2, 3 and a read replica 4 on node 4.
    fn with_shard() -> Self {
        let mut story = Self::new();
        for node in 1..=4 {
            story.register(node, "first", &[]);
        }
        let copies = [(1, CopyRole::Voter), (2, CopyRole::Voter), (3, CopyRole::Voter), (4, CopyRole::ReadReplica)];
        let assignment = vec![copies.map(|(node, role)| PlannedCopy { node: NodeId(node), role }).to_vec()];
        let created = story.apply(Command::CreateCollection { spec: Box::new(spec()), assignment });
        assert!(matches!(created, Response::Collection(_)), "{created:?}");
        story
    }

    /// The same, with copy 1 primary of term 1 and copies 1 and 2 in sync.
    fn with_primary() -> Self {
        let mut story = Self::with_shard();
        let phases = [1, 2, 3, 4].map(|copy| (CopyId(copy), CopyPhase::CatchingUp)).to_vec();
        story.reconfigured(Reconfiguration { phases, ..story.part(Some((1, 1)), &[]) });
        story.accepted(1, 1, ProposedChange::Add { copy: CopyId(2), incarnation: Incarnation(1) });
        story
    }

    fn apply(&mut self, command: Command) -> Response {
        let before = self.state.clone();
        let response = apply(&mut self.state, &command);
        self.state.cluster.check().unwrap_or_else(|broken| panic!("after {command}: {broken}"));
        let version = before.cluster.version + u64::from(before != self.state);
        assert_eq!(self.state.cluster.version, version, "the version follows the changes: {command}");
        response
    }

    fn register(&mut self, node: u64, registration: &str, on_disk: &[u64]) -> Incarnation {
        let response = self.apply(Command::RegisterNode(RegisterNode {
            node: NodeId(node),
            rpc_address: format!("127.0.0.1:{node}"),
            http_address: String::new(),
            zone: "z".into(),
            weight: 100,
            is_data: true,
            registration: registration.into(),
            copies_on_disk: on_disk.iter().copied().map(CopyId).collect(),
            feature_level: FEATURE_LEVEL,
        }));
        match response {
            Response::Registered { incarnation } => incarnation,
            other => panic!("not registered: {other:?}"),
        }
    }

    fn group(&self) -> &ShardGroup {
        &self.state.cluster.shards[&SHARD]
    }

    fn part(&self, grant: Option<(u64, u64)>, drop: &[u64]) -> Reconfiguration {
        Reconfiguration {
            shard: SHARD,
            expect_version: self.group().version,
            drop: drop.iter().copied().map(CopyId).collect(),
            grant: grant
                .map(|(copy, incarnation)| PrimaryGrant { copy: CopyId(copy), incarnation: Incarnation(incarnation) }),
            phases: Vec::new(),
        }
    }

    fn reconfigure(&mut self, part: Reconfiguration) -> Option<String> {
        match self.apply(Command::Reconfigure(vec![part])) {
            Response::Reconfigured { mut refused } => refused.pop().map(|(_, reason)| reason),
            other => panic!("{other:?}"),
        }
    }

    fn reconfigured(&mut self, part: Reconfiguration) {
        assert_eq!(self.reconfigure(part), None);
    }

    fn propose(&mut self, by: u64, term: u64, change: ProposedChange) -> Option<String> {
        let proposal = Proposal {
            shard: SHARD,
            expect_version: self.group().version,
            by_copy: CopyId(by),
            term: PrimaryTerm(term),
            change,
        };
        match self.apply(Command::Propose(proposal)) {
            Response::Register { accepted, reason, register } => {
                assert_eq!(register.as_deref(), Some(self.group()), "the answer carries the register as it is now");
                (!accepted).then_some(reason)
            }
            other => panic!("{other:?}"),
        }
    }

    fn accepted(&mut self, by: u64, term: u64, change: ProposedChange) {
        assert_eq!(self.propose(by, term, change), None);
    }

    fn in_sync(&self) -> Vec<u64> {
        self.group().in_sync.iter().map(|copy| copy.0).collect()
    }

    fn primary(&self) -> Option<(u64, u64)> {
        self.group().primary.map(|grant| (grant.copy.0, grant.incarnation.0))
    }
}

fn spec() -> CollectionSpec {
    CollectionSpec { shard_count: 1, copies: 3, read_replicas: 1, min_in_sync: 2, ..CollectionSpec::new("docs", 8) }
}

#[test]
fn each_life_gets_its_own_incarnation_and_a_retry_the_same() {
    let mut story = Story::new();
    assert_eq!(story.register(1, "a", &[]), Incarnation(1));
    assert_eq!(story.register(1, "a", &[]), Incarnation(1));
    assert_eq!(story.register(1, "b", &[]), Incarnation(2));
    assert_eq!(story.register(2, "a", &[]), Incarnation(1));
}

#[test]
fn death_ends_one_life_only() {
    let mut story = Story::new();
    story.register(1, "a", &[]);
    story.register(1, "b", &[]);
    let dead = |incarnation| Command::MarkDead { node: NodeId(1), incarnation: Incarnation(incarnation) };
    assert_eq!(story.apply(dead(1)), Response::Done { changed: false });
    assert_eq!(story.apply(dead(2)), Response::Done { changed: true });
    assert_eq!(story.apply(dead(2)), Response::Done { changed: false });
    assert_eq!(story.state.cluster.nodes[&NodeId(1)].liveness, Liveness::Dead);
    story.register(1, "c", &[]);
    assert_eq!(story.state.cluster.nodes[&NodeId(1)].liveness, Liveness::Alive);
}

#[test]
fn new_copies_count_for_nothing() {
    let story = Story::with_shard();
    let group = story.group();
    assert_eq!((group.primary_term, group.primary, group.in_sync.len()), (PrimaryTerm(0), None, 0));
    assert!(group.copies.values().all(|record| record.phase == CopyPhase::New));
}

#[test]
fn creating_again_is_safe_only_with_the_same_spec() {
    let mut story = Story::with_shard();
    let again = |spec: CollectionSpec| Command::CreateCollection { spec: Box::new(spec), assignment: Vec::new() };
    assert!(matches!(story.apply(again(spec())), Response::Collection(_)));
    let other = CollectionSpec { dim: 9, pca_dim: None, ..spec() };
    assert!(matches!(story.apply(again(other)), Response::Refused { kind: ErrorKind::AlreadyExists, .. }));
}

#[test]
fn assignments_that_do_not_fit_are_refused() {
    let voter = |node| PlannedCopy { node: NodeId(node), role: CopyRole::Voter };
    let replica = |node| PlannedCopy { node: NodeId(node), role: CopyRole::ReadReplica };
    for (why, assignment) in [
        ("no shard", vec![]),
        ("too many shards", vec![vec![voter(1)], vec![voter(1)]]),
        ("no voter", vec![vec![replica(1)]]),
        ("unknown node", vec![vec![voter(9)]]),
        ("twice on a node", vec![vec![voter(1), voter(1)]]),
        ("too many voters", vec![vec![voter(1), voter(2), voter(3), voter(4)]]),
        ("too many replicas", vec![vec![voter(1), replica(2), replica(3)]]),
    ] {
        let mut story = Story::new();
        for node in 1..=4 {
            story.register(node, "a", &[]);
        }
        let response = story.apply(Command::CreateCollection { spec: Box::new(spec()), assignment });
        assert!(matches!(response, Response::Refused { kind: ErrorKind::Conflict, .. }), "{why}: {response:?}");
    }
}

#[test]
fn deleted_copies_are_retired_and_forgotten_once_gone() {
    let mut story = Story::with_primary();
    let delete = Command::DeleteCollection { name: "docs".into() };
    assert_eq!(story.apply(delete.clone()), Response::Done { changed: true });
    assert_eq!(story.apply(delete), Response::Done { changed: false });
    assert!(story.state.cluster.shards.is_empty());
    assert_eq!(story.state.cluster.retired.len(), 4);
    story.register(1, "later", &[1]);
    story.register(2, "later", &[]);
    let retired: Vec<u64> = story.state.cluster.retired.keys().map(|copy| copy.0).collect();
    assert_eq!(retired, [1, 3, 4], "copy 2 is not on its disk any more");
}

#[test]
fn a_first_grant_goes_to_any_voter_a_later_one_to_one_in_sync() {
    let mut story = Story::with_shard();
    assert!(story.reconfigure(story.part(Some((4, 1)), &[])).expect("refused").contains("read replica"));
    assert!(story.reconfigure(story.part(Some((2, 7)), &[])).expect("refused").contains("incarnation 7"));
    story.reconfigured(story.part(Some((2, 1)), &[]));
    assert_eq!((story.primary(), story.in_sync()), (Some((2, 1)), vec![2]));
    assert_eq!(story.group().primary_term, PrimaryTerm(1));
    assert!(story.reconfigure(story.part(Some((1, 1)), &[])).expect("refused").contains("not in sync"));
}

#[test]
fn proposals_are_taken_from_the_present_primary_only() {
    let mut story = Story::with_primary();
    let add = ProposedChange::Add { copy: CopyId(3), incarnation: Incarnation(1) };
    assert!(story.propose(2, 1, add).expect("refused").contains("not the primary"));
    assert!(story.propose(1, 2, add).expect("refused").contains("not the primary"));
    let stale = Proposal { shard: SHARD, expect_version: 1, by_copy: CopyId(1), term: PrimaryTerm(1), change: add };
    let Response::Register { accepted, reason, .. } = story.apply(Command::Propose(stale)) else { panic!("register") };
    assert!(!accepted && reason.contains("version"), "{reason}");
    story.accepted(1, 1, add);
    assert_eq!(story.in_sync(), [1, 2, 3]);
}

#[test]
fn only_a_live_catching_up_voter_enters_the_in_sync_set() {
    let mut story = Story::with_primary();
    let add = |copy, incarnation| ProposedChange::Add { copy: CopyId(copy), incarnation: Incarnation(incarnation) };
    assert!(story.propose(1, 1, add(4, 1)).expect("refused").contains("read replica"));
    assert!(story.propose(1, 1, add(9, 1)).expect("refused").contains("does not exist"));
    assert!(story.propose(1, 1, add(2, 1)).expect("refused").contains("InSync"));
    story.register(3, "restarted", &[3]);
    assert!(story.propose(1, 1, add(3, 1)).expect("refused").contains("not alive in incarnation 1"));
    story.accepted(1, 1, add(3, 2));

    let mut fresh = Story::with_shard();
    fresh.reconfigured(fresh.part(Some((1, 1)), &[]));
    assert!(fresh.propose(1, 1, add(2, 1)).expect("refused").contains("New"), "its disk may never have held it");
}

#[test]
fn the_last_in_sync_copy_never_leaves() {
    let mut story = Story::with_primary();
    story.accepted(1, 1, ProposedChange::Remove(CopyId(2)));
    assert_eq!(story.group().copies[&CopyId(2)].phase, CopyPhase::CatchingUp);
    assert!(story.propose(1, 1, ProposedChange::Remove(CopyId(1))).is_some());
    assert!(story.reconfigure(story.part(None, &[1])).expect("refused").contains("last in sync"));
    story.accepted(1, 1, ProposedChange::FailSelf);
    assert_eq!((story.primary(), story.in_sync()), (None, vec![1]));
}

#[test]
fn removing_an_absent_copy_raises_the_version_and_so_rules_out_an_older_add() {
    let mut story = Story::with_primary();
    let version = story.group().version;
    story.accepted(1, 1, ProposedChange::Remove(CopyId(3)));
    assert_eq!((story.group().version, story.in_sync()), (version + 1, vec![1, 2]));
}

#[test]
fn a_failed_primary_leaves_the_set_to_the_others() {
    let mut story = Story::with_primary();
    story.accepted(1, 1, ProposedChange::FailSelf);
    assert_eq!((story.primary(), story.in_sync()), (None, vec![2]));
    story.reconfigured(story.part(Some((2, 1)), &[]));
    assert_eq!(story.group().primary_term, PrimaryTerm(2));
}

#[test]
fn a_hand_off_is_a_grant_to_an_in_sync_copy() {
    let mut story = Story::with_primary();
    assert!(story.propose(1, 1, ProposedChange::HandOff(CopyId(3))).expect("refused").contains("not in sync"));
    story.accepted(1, 1, ProposedChange::HandOff(CopyId(2)));
    assert_eq!((story.primary(), story.in_sync()), (Some((2, 1)), vec![1, 2]));
    assert_eq!(story.group().primary_term, PrimaryTerm(2));
}

#[test]
fn failover_grants_and_drops_in_one_step() {
    let mut story = Story::with_primary();
    story.apply(Command::MarkDead { node: NodeId(1), incarnation: Incarnation(1) });
    assert!(story.reconfigure(story.part(Some((1, 1)), &[])).expect("refused").contains("not alive"));
    story.reconfigured(story.part(Some((2, 1)), &[1]));
    assert_eq!((story.primary(), story.in_sync()), (Some((2, 1)), vec![2]));
}

#[test]
fn one_raced_register_does_not_hold_up_the_others() {
    let mut story = Story::with_primary();
    let stale = Reconfiguration { expect_version: 0, ..story.part(Some((2, 1)), &[]) };
    let unknown = Reconfiguration { shard: ShardId { collection: CollectionId(9), index: 0 }, ..story.part(None, &[]) };
    let good = story.part(Some((2, 1)), &[1]);
    let Response::Reconfigured { refused } = story.apply(Command::Reconfigure(vec![stale, unknown, good])) else {
        panic!("reconfigured")
    };
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert_eq!(story.primary(), Some((2, 1)));
}

#[test]
fn a_restart_voids_the_grant_and_keeps_the_copy() {
    let mut story = Story::with_primary();
    let version = story.group().version;
    story.register(1, "restarted", &[1]);
    assert_eq!((story.primary(), story.in_sync()), (None, vec![1, 2]));
    assert_eq!(story.group().version, version + 1, "what the former life proposed is void");
    story.reconfigured(story.part(Some((1, 2)), &[]));
    assert_eq!((story.primary(), story.group().primary_term), (Some((1, 2)), PrimaryTerm(2)));
}

#[test]
fn a_wiped_disk_loses_its_copies() {
    let mut story = Story::with_primary();
    story.register(2, "wiped", &[]);
    assert!(!story.group().copies.contains_key(&CopyId(2)));
    assert!(story.state.cluster.retired.contains_key(&CopyId(2)));
    assert_eq!((story.primary(), story.in_sync()), (Some((1, 1)), vec![1]));

    let version = story.group().version;
    let add = Command::AddCopy {
        shard: SHARD,
        expect_version: version,
        copy: PlannedCopy { node: NodeId(2), role: CopyRole::Voter },
    };
    assert_eq!(story.apply(add), Response::Done { changed: true });
    assert_eq!(story.group().copies[&CopyId(5)].phase, CopyPhase::New, "the id is new: the old one is never reused");
}

#[test]
fn the_last_in_sync_copy_stays_in_the_register_even_if_its_disk_was_wiped() {
    let mut story = Story::with_primary();
    story.accepted(1, 1, ProposedChange::Remove(CopyId(2)));
    story.register(1, "wiped", &[]);
    assert_eq!((story.primary(), story.in_sync()), (None, vec![1]));
    assert_eq!(story.group().copies[&CopyId(1)].phase, CopyPhase::InSync);
}

#[test]
fn a_new_copy_missing_on_disk_was_never_opened() {
    let mut story = Story::with_shard();
    story.register(2, "restarted", &[]);
    assert!(story.group().copies.contains_key(&CopyId(2)));
}

#[test]
fn copies_are_added_once_per_node_and_retired_unless_needed() {
    let mut story = Story::with_primary();
    let add = |story: &Story, node| Command::AddCopy {
        shard: SHARD,
        expect_version: story.group().version,
        copy: PlannedCopy { node: NodeId(node), role: CopyRole::Voter },
    };
    let retire = |story: &Story, copy| Command::RetireCopy {
        shard: SHARD,
        expect_version: story.group().version,
        copy: CopyId(copy),
    };
    story.register(5, "a", &[]);
    for (command, expected) in
        [(add(&story, 2), "already"), (add(&story, 9), "no data node"), (retire(&story, 1), "primary")]
    {
        let Response::Refused { message, .. } = story.apply(command) else { panic!("refused") };
        assert!(message.contains(expected), "{message}");
    }
    let command = add(&story, 5);
    assert_eq!(story.apply(command), Response::Done { changed: true });
    let command = retire(&story, 3);
    assert_eq!(story.apply(command), Response::Done { changed: true });
    assert!(story.state.cluster.retired.contains_key(&CopyId(3)));
}

fn forced(expect_version: u64, copy: u64, incarnation: u64) -> ForcePromote {
    ForcePromote {
        shard: SHARD,
        expect_version,
        grant: PrimaryGrant { copy: CopyId(copy), incarnation: Incarnation(incarnation) },
        at_unix_ms: 1_800_000_000_000,
        by: "ada".into(),
        last_seen: Default::default(),
        overrode_live: false,
    }
}

/// Commands as a raced, confused or malicious leader might send them.
fn any_command() -> impl Strategy<Value = Command> {
    let (node, copy, incarnation, version, term) = (1u64..5, 1u64..7, 1u64..4, 0u64..12, 0u64..5);
    let role = prop_oneof![Just(CopyRole::Voter), Just(CopyRole::ReadReplica)];
    let phase = prop_oneof![
        Just(CopyPhase::New),
        Just(CopyPhase::CatchingUp),
        Just(CopyPhase::InSync),
        Just(CopyPhase::Retiring)
    ];
    let change = prop_oneof![
        (copy.clone(), incarnation.clone()).prop_map(|(copy, incarnation)| ProposedChange::Add {
            copy: CopyId(copy),
            incarnation: Incarnation(incarnation)
        }),
        copy.clone().prop_map(|copy| ProposedChange::Remove(CopyId(copy))),
        copy.clone().prop_map(|copy| ProposedChange::HandOff(CopyId(copy))),
        Just(ProposedChange::FailSelf),
    ];
    let grant =
        proptest::option::of((copy.clone(), incarnation.clone()).prop_map(|(copy, incarnation)| PrimaryGrant {
            copy: CopyId(copy),
            incarnation: Incarnation(incarnation),
        }));
    prop_oneof![
        2 => (node.clone(), "[a-c]", prop::collection::vec(copy.clone().prop_map(CopyId), 0..4)).prop_map(
            |(node, registration, copies_on_disk)| Command::RegisterNode(RegisterNode {
                node: NodeId(node),
                rpc_address: String::new(),
                http_address: String::new(),
                zone: String::new(),
                weight: 1,
                is_data: true,
                registration,
                copies_on_disk,
                feature_level: FEATURE_LEVEL,
            })
        ),
        1 => (node.clone(), incarnation)
            .prop_map(|(node, incarnation)| Command::MarkDead { node: NodeId(node), incarnation: Incarnation(incarnation) }),
        4 => (version.clone(), copy.clone(), term, change).prop_map(|(expect_version, by, term, change)| {
            Command::Propose(Proposal { shard: SHARD, expect_version, by_copy: CopyId(by), term: PrimaryTerm(term), change })
        }),
        4 => (
            version.clone(),
            prop::collection::vec(copy.clone().prop_map(CopyId), 0..2),
            grant,
            prop::collection::vec((copy.clone().prop_map(CopyId), phase), 0..2)
        )
            .prop_map(|(expect_version, drop, grant, phases)| {
                Command::Reconfigure(vec![Reconfiguration { shard: SHARD, expect_version, drop, grant, phases }])
            }),
        1 => (version.clone(), node, role).prop_map(|(expect_version, node, role)| Command::AddCopy {
            shard: SHARD,
            expect_version,
            copy: PlannedCopy { node: NodeId(node), role },
        }),
        1 => (version.clone(), copy.clone())
            .prop_map(|(expect_version, copy)| Command::RetireCopy { shard: SHARD, expect_version, copy: CopyId(copy) }),
        1 => (version.clone(), copy.clone())
            .prop_map(|(expect_version, copy)| Command::ReplaceCopy { shard: SHARD, expect_version, copy: CopyId(copy) }),
        1 => prop::collection::vec(copy.clone().prop_map(CopyId), 0..3).prop_map(Command::ForgetRetired),
        1 => (1u64..5, prop_oneof![Just(NodeLifecycle::Active), Just(NodeLifecycle::Draining)])
            .prop_map(|(node, lifecycle)| Command::SetLifecycle { node: NodeId(node), lifecycle }),
        1 => (version.clone(), copy.clone())
            .prop_map(|(expect_version, copy)| Command::PromoteReplica { shard: SHARD, expect_version, copy: CopyId(copy) }),
        1 => (version, copy, 1u64..4).prop_map(|(expect_version, copy, incarnation)| Command::ForcePromote(forced(
            expect_version, copy, incarnation
        ))),
    ]
}

proptest! {
    /// Whatever is logged: the invariants hold, versions and terms never go back, two primaries never share a term, and an
    /// in-sync set that had a member keeps one that was in it before, unless an operator forced it under a new lineage.
    #[test]
    fn any_log_keeps_the_invariants(commands in prop::collection::vec(any_command(), 1..60)) {
        let mut story = Story::with_shard();
        let mut granted = std::collections::BTreeMap::new();
        for command in commands {
            let before = story.group().clone();
            let was_forced = matches!(command, Command::ForcePromote(_));
            story.apply(command);
            let after = story.group();
            prop_assert!(after.version >= before.version && after.primary_term >= before.primary_term);
            prop_assert_eq!(after.version == before.version, *after == before);
            if let Some(grant) = after.primary {
                let holder = *granted.entry(after.primary_term).or_insert(grant);
                prop_assert_eq!(holder, grant, "one primary, in one life, per term");
            }
            if after.lineage != before.lineage {
                prop_assert!(was_forced && after.lineage.0 == before.lineage.0 + 1);
                prop_assert!(after.primary_term > before.primary_term && after.copies.len() == 1);
                let retired = &story.state.cluster.retired;
                let is_known = |copy: &CopyId| after.copies.contains_key(copy) || retired.contains_key(copy);
                prop_assert!(before.copies.keys().all(is_known));
            } else if !before.in_sync.is_empty() {
                prop_assert!(after.in_sync.intersection(&before.in_sync).next().is_some());
            }
        }
    }
}
