//! Which copies come and go so that every shard gets back to what its collection asked for. Pure, as [`super::decide`] is.

use std::collections::{BTreeMap, BTreeSet};

use cluster_config::cluster_state::{ClusterState, Liveness, NodeLifecycle};
use cluster_config::collection::CollectionSpec;
use cluster_config::ids::{CopyId, NodeId};
use cluster_config::limits;
use cluster_config::shard_group::{CopyPhase, CopyRecord, CopyRole, ShardGroup};

use super::decide::{Eyes, View};
use crate::metadata::command::{Command, PlannedCopy};

/// Corrupt copies are replaced where they are; copies that were lost with their disk, or whose node stays dead, are built anew
/// elsewhere, and then forgotten. At most one step per shard and round, and only [`limits::REPLACEMENTS_MAX`] new copies at a time.
pub(super) fn decide_repairs(view: &View<'_>) -> Vec<Command> {
    let dying = BTreeSet::new();
    let eyes = Eyes { view, dying: &dying };
    let mut load = CopyLoad::of(view.state);
    // Shards that hang on one copy first. Without a primary nobody could tell a new copy anything.
    let mut groups: Vec<&ShardGroup> = view.state.shards.values().filter(|group| eyes.primary_holds(group)).collect();
    groups.sort_by_key(|group| (group.in_sync.len(), group.shard));
    let mut commands: Vec<Command> = decide_forgetting(view).into_iter().collect();
    for group in groups {
        let Some(collection) = view.state.collections.get(&group.shard.collection) else { continue };
        commands.extend(decide_corrupt(&eyes, group, &mut load).or_else(|| {
            let roles = [CopyRole::Voter, CopyRole::ReadReplica];
            roles.into_iter().find_map(|role| decide_missing(view, group, &collection.spec, role, &mut load))
        }));
    }
    commands
}

/// Where the copies are, with those just decided.
struct CopyLoad {
    on: BTreeMap<NodeId, usize>,
    being_built: usize,
}

impl CopyLoad {
    fn of(state: &ClusterState) -> Self {
        let mut load = Self { on: BTreeMap::new(), being_built: 0 };
        for record in state.shards.values().flat_map(|group| group.copies.values()) {
            *load.on.entry(record.node).or_default() += 1;
            load.being_built += usize::from(record.phase == CopyPhase::New);
        }
        load
    }

    fn may_build(&self) -> bool {
        self.being_built < limits::REPLACEMENTS_MAX
    }

    fn build(&mut self, on: NodeId) {
        *self.on.entry(on).or_default() += 1;
        self.being_built += 1;
    }
}

/// Retired copies whose node says that their files are gone.
fn decide_forgetting(view: &View<'_>) -> Option<Command> {
    let is_gone = |copy: &CopyId, node: NodeId| {
        let record = view.state.nodes.get(&node);
        let seen = record.and_then(|record| view.observed.node(node, record.incarnation));
        seen.is_some_and(|seen| seen.deleted.contains(copy))
    };
    let retired = view.state.retired.iter();
    let gone: Vec<CopyId> =
        retired.filter(|(copy, retired)| is_gone(copy, retired.node)).map(|(copy, _)| *copy).collect();
    (!gone.is_empty()).then_some(Command::ForgetRetired(gone))
}

/// A corrupt copy that left the in-sync set, or never was in it, makes place for a new one on the same node, which has the space.
fn decide_corrupt(eyes: &Eyes<'_>, group: &ShardGroup, load: &mut CopyLoad) -> Option<Command> {
    let View { state, now_ms, patience, .. } = eyes.view;
    let is_due = |copy: CopyId, record: &CopyRecord| {
        let seen = eyes.corrupt(copy, record);
        seen.is_some_and(|seen| now_ms.saturating_sub(seen.first_ms) >= patience.replace_corrupt_after_ms)
    };
    let useless = |(copy, record): &(&CopyId, &CopyRecord)| {
        !group.in_sync.contains(copy) && is_due(**copy, record) && group.primary_copy() != Some(**copy)
    };
    let (copy, record) = group.copies.iter().find(useless)?;
    let (shard, expect_version, copy) = (group.shard, group.version, *copy);
    let stays = state.nodes.get(&record.node).is_some_and(|node| node.lifecycle == NodeLifecycle::Active);
    if !stays {
        return Some(Command::RetireCopy { shard, expect_version, copy });
    }
    load.may_build().then(|| {
        load.build(record.node);
        Command::ReplaceCopy { shard, expect_version, copy }
    })
}

/// A copy of this role is added where one is missing, and one on a dead node is forgotten once it is not missed any more.
fn decide_missing(
    view: &View<'_>,
    group: &ShardGroup,
    spec: &CollectionSpec,
    role: CopyRole,
    load: &mut CopyLoad,
) -> Option<Command> {
    let (shard, expect_version) = (group.shard, group.version);
    let wanted = match role {
        CopyRole::Voter => spec.copies,
        CopyRole::ReadReplica => spec.read_replicas,
    } as usize;
    let of_role = || group.copies.iter().filter(|(_, record)| record.role == role);
    let kept = of_role().filter(|(_, record)| !is_gone(view, record.node)).count();
    if kept < wanted {
        let node = place(view, group, &load.on).filter(|_| load.may_build())?;
        load.build(node);
        return Some(Command::AddCopy { shard, expect_version, copy: PlannedCopy { node, role } });
    }
    let is_whole = group.in_sync.len() >= spec.copies as usize || role == CopyRole::ReadReplica;
    let (copy, _) =
        of_role().find(|(copy, record)| is_gone(view, record.node) && !group.in_sync.contains(copy) && is_whole)?;
    Some(Command::RetireCopy { shard, expect_version, copy: *copy })
}

/// Whether a node has been dead for longer than a restart takes.
fn is_gone(view: &View<'_>, node: NodeId) -> bool {
    let Some(record) = view.state.nodes.get(&node) else { return true };
    let dead_since = view.observed.node(node, record.incarnation).and_then(|seen| seen.dead_since_ms);
    record.liveness == Liveness::Dead
        && dead_since.is_some_and(|since| view.now_ms.saturating_sub(since) >= view.patience.replace_after_ms)
}

/// Where one more copy of the shard goes: a zone without one if there is any, then the node with the fewest copies for its weight.
fn place(view: &View<'_>, group: &ShardGroup, copies_on: &BTreeMap<NodeId, usize>) -> Option<NodeId> {
    let taken: BTreeSet<NodeId> = group.copies.values().map(|record| record.node).collect();
    let zones: BTreeSet<&str> =
        taken.iter().filter_map(|node| view.state.nodes.get(node)).map(|node| node.zone.as_str()).collect();
    let full = view.observed.full_nodes();
    view.state
        .placeable()
        .filter(|node| !taken.contains(&node.id) && !full.contains(&node.id))
        .min_by_key(|node| {
            let copies = copies_on.get(&node.id).copied().unwrap_or(0) as u64;
            (zones.contains(node.zone.as_str()), copies * 10_000 / u64::from(node.weight.max(1)), node.id)
        })
        .map(|node| node.id)
}
