//! What operators ask, and how copies that are of no use any more are replaced and forgotten.

use cluster_config::ids::Lineage;
use cluster_config::limits;

use super::*;

fn lifecycle(node: u64, lifecycle: NodeLifecycle) -> Command {
    Command::SetLifecycle { node: NodeId(node), lifecycle }
}

fn refusal(response: Response) -> (ErrorKind, String) {
    match response {
        Response::Refused { kind, message } => (kind, message),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_node_drains_over_restarts_until_it_is_told_otherwise() {
    let mut story = Story::with_primary();
    assert_eq!(story.apply(lifecycle(1, NodeLifecycle::Draining)), Response::Done { changed: true });
    assert_eq!(story.apply(lifecycle(1, NodeLifecycle::Draining)), Response::Done { changed: false });
    story.register(1, "restarted", &[1]);
    assert!(story.state.cluster.is_draining(NodeId(1)));
    assert_eq!(story.apply(lifecycle(1, NodeLifecycle::Active)), Response::Done { changed: true });
    assert!(!story.state.cluster.is_draining(NodeId(1)));
    assert_eq!(refusal(story.apply(lifecycle(9, NodeLifecycle::Draining))).0, ErrorKind::NotFound);
}

#[test]
fn a_draining_node_may_still_be_granted_the_role() {
    let mut story = Story::with_primary();
    story.apply(lifecycle(2, NodeLifecycle::Draining));
    story.reconfigured(story.part(Some((2, 1)), &[]));
    assert_eq!(story.primary(), Some((2, 1)), "whether there is a better choice is not for apply to say");
}

#[test]
fn a_useless_copy_is_replaced_on_its_node_under_a_new_id() {
    let mut story = Story::with_primary();
    let replace = |story: &Story, copy| Command::ReplaceCopy {
        shard: SHARD,
        expect_version: story.group().version,
        copy: CopyId(copy),
    };
    let command = replace(&story, 1);
    assert!(refusal(story.apply(command)).1.contains("primary"));
    let command = replace(&story, 3);
    assert_eq!(story.apply(command), Response::Done { changed: true });
    let group = story.group();
    assert!(!group.copies.contains_key(&CopyId(3)));
    let replacement = group.copies[&CopyId(5)];
    assert_eq!((replacement.node, replacement.role, replacement.phase), (NodeId(3), CopyRole::Voter, CopyPhase::New));
    assert_eq!(story.state.cluster.retired[&CopyId(3)].node, NodeId(3));

    story.accepted(1, 1, ProposedChange::FailSelf);
    let command = replace(&story, 2);
    assert!(refusal(story.apply(command)).1.contains("last in sync"));
    let stale = Command::ReplaceCopy { shard: SHARD, expect_version: 1, copy: CopyId(1) };
    assert_eq!(refusal(story.apply(stale)).0, ErrorKind::Conflict);
}

#[test]
fn a_retired_copy_stays_known_while_its_node_has_it_and_is_forgotten_when_the_files_are_gone() {
    let mut story = Story::with_primary();
    let retire = Command::RetireCopy { shard: SHARD, expect_version: story.group().version, copy: CopyId(3) };
    story.apply(retire);
    let retired = |story: &Story| story.state.cluster.retired.keys().map(|copy| copy.0).collect::<Vec<_>>();
    story.register(3, "restarted before it deleted", &[3]);
    assert_eq!(retired(&story), [3]);
    story.register(2, "another node", &[2]);
    assert_eq!(retired(&story), [3], "what is not on another node says nothing");
    assert_eq!(story.apply(Command::ForgetRetired(vec![CopyId(7)])), Response::Done { changed: false });
    assert_eq!(story.apply(Command::ForgetRetired(vec![CopyId(3), CopyId(7)])), Response::Done { changed: true });
    assert_eq!(retired(&story), [0u64; 0]);
}

#[test]
fn a_read_replica_becomes_a_voter_that_has_to_catch_up() {
    let mut story = Story::with_primary();
    story.reconfigured(Reconfiguration { phases: vec![(CopyId(4), CopyPhase::InSync)], ..story.part(None, &[]) });
    let promote = |story: &Story, copy| Command::PromoteReplica {
        shard: SHARD,
        expect_version: story.group().version,
        copy: CopyId(copy),
    };
    let command = promote(&story, 4);
    assert_eq!(story.apply(command), Response::Done { changed: true });
    let record = story.group().copies[&CopyId(4)];
    assert_eq!((record.role, record.phase), (CopyRole::Voter, CopyPhase::CatchingUp));
    assert!(story.reconfigure(story.part(Some((4, 1)), &[])).expect("refused").contains("not in sync"));
    story.accepted(1, 1, ProposedChange::Add { copy: CopyId(4), incarnation: Incarnation(1) });
    let command = promote(&story, 4);
    assert_eq!(story.apply(command), Response::Done { changed: false });
    let command = promote(&story, 9);
    assert_eq!(refusal(story.apply(command)).0, ErrorKind::NotFound);
}

/// Copies 1 and 2 were in sync, their nodes are dead; copy 3 was catching up.
fn red() -> Story {
    let mut story = Story::with_primary();
    for node in [1, 2] {
        story.apply(Command::MarkDead { node: NodeId(node), incarnation: Incarnation(1) });
    }
    story
}

#[test]
fn a_forced_promotion_begins_a_new_lineage_and_leaves_a_record() {
    let mut story = red();
    let command = Command::ForcePromote(forced(story.group().version, 3, 1));
    let before = story.group().clone();
    let Response::Register { accepted: true, register, .. } = story.apply(command) else { panic!("accepted") };
    assert_eq!(register.as_deref(), Some(story.group()));
    let group = story.group();
    assert_eq!(group.lineage, Lineage(before.lineage.0 + 1));
    assert_eq!(group.primary_term, before.primary_term.next());
    assert_eq!((story.primary(), story.in_sync()), (Some((3, 1)), vec![3]));
    assert_eq!(group.copies.keys().collect::<Vec<_>>(), [&CopyId(3)]);
    let retired: Vec<(u64, u64)> =
        story.state.cluster.retired.iter().map(|(copy, retired)| (copy.0, retired.node.0)).collect();
    assert_eq!(retired, [(1, 1), (2, 2), (4, 4)]);
    let audit = &story.state.cluster.audit[&1];
    assert_eq!((audit.by.as_str(), audit.copy, audit.lineage), ("ada", CopyId(3), group.lineage));
    assert_eq!(audit.former_in_sync, before.in_sync);

    // The former in-sync copies come back: they are nothing to the shard any more, and their files are still there to be deleted.
    story.register(1, "back", &[1]);
    assert!(!story.group().copies.contains_key(&CopyId(1)));
    assert!(story.state.cluster.retired.contains_key(&CopyId(1)));
}

#[test]
fn a_forced_promotion_needs_a_copy_that_lives_and_held_something() {
    let mut story = red();
    let version = story.group().version;
    for (why, command, expected) in [
        ("stale", forced(version - 1, 3, 1), ErrorKind::Conflict),
        ("unknown copy", forced(version, 9, 1), ErrorKind::NotFound),
        ("dead node", forced(version, 1, 1), ErrorKind::Conflict),
        ("another life", forced(version, 3, 2), ErrorKind::Conflict),
    ] {
        assert_eq!(refusal(story.apply(Command::ForcePromote(command))).0, expected, "{why}");
    }
    story.register(5, "a", &[]);
    let copy = PlannedCopy { node: NodeId(5), role: CopyRole::Voter };
    story.apply(Command::AddCopy { shard: SHARD, expect_version: version, copy });
    let command = forced(version + 1, 5, 1);
    assert!(refusal(story.apply(Command::ForcePromote(command))).1.contains("new"));
}

#[test]
fn a_read_replica_can_save_what_it_holds() {
    let mut story = red();
    let command = Command::ForcePromote(forced(story.group().version, 4, 1));
    assert!(matches!(story.apply(command), Response::Register { accepted: true, .. }));
    assert_eq!(story.group().copies[&CopyId(4)].role, CopyRole::Voter);
}

#[test]
fn the_audit_keeps_the_last_records_and_goes_on_counting() {
    let mut story = red();
    let rounds = limits::AUDIT_RECORDS_MAX as u64 + 3;
    for _ in 0..rounds {
        let command = forced(story.group().version, 3, 1);
        story.apply(Command::ForcePromote(command));
    }
    let audit = &story.state.cluster.audit;
    assert_eq!(audit.len(), limits::AUDIT_RECORDS_MAX);
    assert_eq!(
        (audit.first_key_value().map(|(n, _)| *n), audit.last_key_value().map(|(n, _)| *n)),
        (Some(4), Some(rounds))
    );
}
