//! A node that is being drained passes its primary roles on, so that its stop interrupts no write.
//!
//! The decision is pure; the loop carries it out a few shards at a time. Nothing here is remembered across restarts: what is left to do
//! stands in the cluster state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::cluster_state::{ClusterState, Liveness, NodeLifecycle};
use cluster_config::ids::{CopyId, NodeId, ShardId};
use cluster_config::limits::HAND_OFFS_MAX;
use futures::{StreamExt, future, stream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::copies::Copies;
use crate::replication::ReplicationError;

/// The copies of a shard must come to rest within this; a write waits for at most a second of it.
const PATIENCE: Duration = Duration::from_secs(3);
/// Before a shard whose hand-off failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// One role to pass on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandOff {
    /// The shard.
    pub shard: ShardId,
    /// Its primary, on this node.
    pub from: CopyId,
    /// The next one.
    pub to: CopyId,
}

/// Roles that `own` should pass on now, at most `count`, leaving out the shards in `busy`: each to an in-sync copy on a node that is alive
/// and stays, on the one with the fewest primaries. A shard without such a copy keeps its primary.
pub fn decide_hand_offs(state: &ClusterState, own: NodeId, busy: &BTreeSet<ShardId>, count: usize) -> Vec<HandOff> {
    let mut primaries: BTreeMap<NodeId, usize> = BTreeMap::new();
    for node in state.shards.values().filter_map(|group| group.primary_node()) {
        *primaries.entry(node).or_default() += 1;
    }
    let stays = |node: &NodeId| {
        let record = state.nodes.get(node);
        record.is_some_and(|node| node.liveness == Liveness::Alive && node.lifecycle == NodeLifecycle::Active)
    };
    let mut decided = Vec::new();
    for group in state.shards.values() {
        let Some(from) = group.primary_copy().filter(|copy| group.node_of(*copy) == Some(own)) else { continue };
        if decided.len() == count || busy.contains(&group.shard) {
            continue;
        }
        let in_sync = group.in_sync.iter().filter_map(|copy| group.node_of(*copy).map(|node| (*copy, node)));
        let heirs = in_sync.filter(|(_, node)| *node != own && stays(node));
        let load = |node: &NodeId| primaries.get(node).copied().unwrap_or(0);
        if let Some((to, node)) = heirs.min_by_key(|(copy, node)| (load(node), *node, *copy)) {
            *primaries.entry(node).or_default() += 1;
            decided.push(HandOff { shard: group.shard, from, to });
        }
    }
    decided
}

/// Passes roles on while the cluster state says that this node is being drained, until `stop`.
pub async fn run(
    copies: Arc<Copies>,
    mut state: watch::Receiver<Arc<ClusterState>>,
    own: NodeId,
    stop: CancellationToken,
) {
    let mut under_way: JoinSet<(HandOff, Result<(), ReplicationError>)> = JoinSet::new();
    // Shards that are being handed off, or that failed lately: until when they are left alone.
    let mut busy: BTreeMap<ShardId, Option<Instant>> = BTreeMap::new();
    loop {
        let now = state.borrow_and_update().clone();
        busy.retain(|_, until| until.is_none_or(|until| until > Instant::now()));
        let is_draining = now.nodes.get(&own).is_some_and(|node| node.lifecycle == NodeLifecycle::Draining);
        if is_draining {
            let room = HAND_OFFS_MAX.saturating_sub(under_way.len());
            for decided in decide_hand_offs(&now, own, &busy.keys().copied().collect(), room) {
                busy.insert(decided.shard, None);
                under_way.spawn(hand_off(Arc::clone(&copies), decided));
            }
        }
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            Some(done) = under_way.join_next() => match done {
                Ok((HandOff { shard, from, to }, Ok(()))) => {
                    tracing::info!(%shard, %from, %to, "primary role handed off");
                    // The state that says so may not have come yet.
                    busy.insert(shard, Some(Instant::now() + RETRY));
                }
                Ok((HandOff { shard, from, to }, Err(error))) => {
                    tracing::info!(%shard, %from, %to, %error, "primary role not handed off");
                    busy.insert(shard, Some(Instant::now() + RETRY));
                }
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            },
            () = tokio::time::sleep(RETRY), if is_draining => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Passes on every role that this node has now, for a process that is about to stop. Each is tried once, and none is waited for longer than
/// `patience` altogether: where everybody stops at once, nobody takes anything.
pub async fn leave(copies: &Arc<Copies>, state: &ClusterState, own: NodeId, patience: Duration) {
    let decided = decide_hand_offs(state, own, &BTreeSet::new(), usize::MAX);
    let roles = decided.len();
    let trying = stream::iter(decided).map(|one| hand_off(Arc::clone(copies), one)).buffer_unordered(HAND_OFFS_MAX);
    let passed = trying.filter(|(_, result)| future::ready(result.is_ok())).count();
    match tokio::time::timeout(patience, passed).await {
        Ok(passed) => tracing::info!(roles, passed, "primary roles passed on before stopping"),
        Err(_) => tracing::info!(roles, "not all primary roles were passed on in time"),
    }
}

async fn hand_off(copies: Arc<Copies>, decided: HandOff) -> (HandOff, Result<(), ReplicationError>) {
    let copy = copies.all().into_iter().find(|copy| copy.id == decided.from);
    let result = match copy {
        Some(copy) => copy.handle.hand_off(decided.to, (Instant::now() + PATIENCE).into()).await,
        None => Err(ReplicationError::Unavailable),
    };
    (decided, result)
}

#[cfg(test)]
mod tests {
    use cluster_config::cluster_state::NodeRecord;
    use cluster_config::ids::{CollectionId, Incarnation, Lineage};
    use cluster_config::seqno::PrimaryTerm;
    use cluster_config::shard_group::{CopyPhase, CopyRecord, CopyRole, PrimaryGrant, ShardGroup};

    use super::*;

    fn shard(index: u32) -> ShardId {
        ShardId { collection: CollectionId(1), index }
    }

    /// Shard `index` has copies `10 * index + node` on nodes 1 to 3, all in sync, and its primary on `primary`.
    fn group(index: u32, primary: u64) -> ShardGroup {
        let copy = |node: u64| CopyId(u64::from(index) * 10 + node);
        let record = |node: u64| CopyRecord { node: NodeId(node), role: CopyRole::Voter, phase: CopyPhase::InSync };
        ShardGroup {
            shard: shard(index),
            version: 1,
            primary_term: PrimaryTerm(1),
            primary: Some(PrimaryGrant { copy: copy(primary), incarnation: Incarnation(1) }),
            in_sync: (1..=3).map(copy).collect(),
            copies: (1..=3).map(|node| (copy(node), record(node))).collect(),
            lineage: Lineage(0),
            min_in_sync: 1,
        }
    }

    fn state(primaries: &[u64]) -> ClusterState {
        let node = |id: u64| NodeRecord {
            id: NodeId(id),
            rpc_address: String::new(),
            http_address: String::new(),
            zone: String::new(),
            weight: 100,
            is_data: true,
            incarnation: Incarnation(1),
            liveness: Liveness::Alive,
            lifecycle: if id == 1 { NodeLifecycle::Draining } else { NodeLifecycle::Active },
        };
        let groups = (0..).zip(primaries).map(|(index, primary)| (shard(index), group(index, *primary)));
        ClusterState {
            nodes: (1..=3).map(|id| (NodeId(id), node(id))).collect(),
            shards: groups.collect(),
            ..ClusterState::default()
        }
    }

    fn heirs(state: &ClusterState, busy: &[u32], count: usize) -> Vec<(u32, u64)> {
        let busy = busy.iter().map(|index| shard(*index)).collect();
        let decided = decide_hand_offs(state, NodeId(1), &busy, count);
        decided.iter().map(|one| (one.shard.index, one.to.0 % 10)).collect()
    }

    #[test]
    fn roles_go_to_the_nodes_with_the_fewest_a_few_at_a_time() {
        let full = state(&[1, 1, 1, 2, 2]);
        assert_eq!(heirs(&full, &[], 9), [(0, 3), (1, 3), (2, 2)]);
        assert_eq!(heirs(&full, &[], 1), [(0, 3)]);
        assert_eq!(heirs(&full, &[0], 2), [(1, 3), (2, 3)]);
        assert_eq!(heirs(&full, &[], 0), []);
    }

    #[test]
    fn only_an_in_sync_copy_on_a_node_that_lives_and_stays_takes_a_role() {
        let mut state = state(&[1]);
        state.nodes.get_mut(&NodeId(3)).expect("known").lifecycle = NodeLifecycle::Draining;
        assert_eq!(heirs(&state, &[], 9), [(0, 2)]);
        state.nodes.get_mut(&NodeId(2)).expect("known").liveness = Liveness::Dead;
        assert_eq!(heirs(&state, &[], 9), []);
        state.nodes.get_mut(&NodeId(2)).expect("known").liveness = Liveness::Alive;
        state.shards.get_mut(&shard(0)).expect("known").in_sync.remove(&CopyId(2));
        assert_eq!(heirs(&state, &[], 9), []);
    }
}
