//! Which copies of this node are replaced by a snapshot, and from where: pure decisions.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cluster_config::cluster_state::{ClusterState, Liveness};
use cluster_config::ids::{CopyId, NodeId};
use cluster_config::limits::{TRANSFER_PAUSE_MAX, TRANSFER_PAUSE_MIN};
use cluster_config::shard_group::{CopyPhase, CopyTarget, ShardGroup};

/// Where a copy is fetched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchFrom {
    /// Node of the source.
    pub node: NodeId,
    /// The source.
    pub copy: CopyTarget,
}

/// Where to fetch `copy` from now, if it has to be fetched. Only a copy that is not in sync may be: one that is holds acknowledged
/// entries that a snapshot may lack. Sources are in sync and live, others before the primary, and take turns with each attempt.
pub fn decide_fetch(
    state: &ClusterState,
    group: &ShardGroup,
    copy: CopyId,
    needs_snapshot: bool,
    attempt: u32,
) -> Option<FetchFrom> {
    let record = group.copies.get(&copy)?;
    let may_be_replaced = !group.in_sync.contains(&copy) && record.phase != CopyPhase::Retiring;
    if !needs_snapshot || !may_be_replaced {
        return None;
    }
    let is_alive = |node: &NodeId| state.nodes.get(node).is_some_and(|node| node.liveness == Liveness::Alive);
    let is_primary = |source: CopyId| group.primary_copy() == Some(source);
    let mut sources: Vec<(CopyId, NodeId)> =
        group.in_sync.iter().filter_map(|source| Some((*source, group.node_of(*source).filter(is_alive)?))).collect();
    sources.sort_by_key(|(source, _)| is_primary(*source));
    let (source, node) = *sources.get(attempt as usize % sources.len().max(1))?;
    Some(FetchFrom { node, copy: group.target(source) })
}

/// Attempts for the copies of this node: how many, and when the next may begin.
#[derive(Debug, Default)]
pub struct Attempts {
    made: BTreeMap<CopyId, (u32, Instant)>,
}

impl Attempts {
    /// Number of the next attempt, from 0, if it may begin now.
    pub fn next(&self, copy: CopyId, now: Instant) -> Option<u32> {
        match self.made.get(&copy) {
            None => Some(0),
            Some((count, at)) => (now.saturating_duration_since(*at) >= pause_after(*count)).then_some(*count),
        }
    }

    /// One more has ended. A successful one counts until the copy has caught up: a snapshot that is too old for the primary's log must not
    /// be fetched again and again from the same source.
    pub fn made(&mut self, copy: CopyId, now: Instant) {
        let (count, at) = self.made.entry(copy).or_insert((0, now));
        *count = count.saturating_add(1);
        *at = now;
    }

    /// The copy has caught up.
    pub fn forget(&mut self, copy: CopyId) {
        self.made.remove(&copy);
    }
}

fn pause_after(failures: u32) -> Duration {
    let doubled = TRANSFER_PAUSE_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(TRANSFER_PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use cluster_config::cluster_state::{NodeLifecycle, NodeRecord};
    use cluster_config::ids::{CollectionId, Incarnation, Lineage, ShardId};
    use cluster_config::seqno::PrimaryTerm;
    use cluster_config::shard_group::{CopyRecord, CopyRole, PrimaryGrant};

    use super::*;

    /// Copy n on node n; 1 is primary, 1 to `in_sync` are in sync, the last one catches up.
    fn cluster(copies: u64, in_sync: u64) -> (ClusterState, ShardGroup) {
        let mut state = ClusterState::default();
        let mut group = ShardGroup {
            shard: ShardId { collection: CollectionId(1), index: 0 },
            version: 5,
            primary_term: PrimaryTerm(2),
            primary: Some(PrimaryGrant { copy: CopyId(1), incarnation: Incarnation(1) }),
            in_sync: (1..=in_sync).map(CopyId).collect::<BTreeSet<_>>(),
            copies: BTreeMap::new(),
            lineage: Lineage(0),
            min_in_sync: 1,
        };
        for number in 1..=copies {
            let node = NodeRecord {
                id: NodeId(number),
                rpc_address: String::new(),
                http_address: String::new(),
                zone: "z".into(),
                weight: 100,
                is_data: true,
                incarnation: Incarnation(1),
                liveness: Liveness::Alive,
                lifecycle: NodeLifecycle::Active,
            };
            state.nodes.insert(node.id, node);
            let phase = if number <= in_sync { CopyPhase::InSync } else { CopyPhase::CatchingUp };
            group.copies.insert(CopyId(number), CopyRecord { node: NodeId(number), role: CopyRole::Voter, phase });
        }
        (state, group)
    }

    fn source(state: &ClusterState, group: &ShardGroup, copy: u64, attempt: u32) -> Option<u64> {
        decide_fetch(state, group, CopyId(copy), true, attempt).map(|from| from.copy.copy.0)
    }

    #[test]
    fn sources_are_in_sync_others_than_the_primary_first_and_take_turns() {
        let (mut state, group) = cluster(4, 3);
        let turns: Vec<_> = (0..4).map(|attempt| source(&state, &group, 4, attempt)).collect();
        assert_eq!(turns, [Some(2), Some(3), Some(1), Some(2)]);
        state.nodes.get_mut(&NodeId(2)).expect("is there").liveness = Liveness::Dead;
        assert_eq!(source(&state, &group, 4, 0), Some(3));
        state.nodes.get_mut(&NodeId(3)).expect("is there").liveness = Liveness::Dead;
        assert_eq!(source(&state, &group, 4, 7), Some(1), "the primary, if nobody else is left");
        state.nodes.get_mut(&NodeId(1)).expect("is there").liveness = Liveness::Dead;
        assert_eq!(source(&state, &group, 4, 0), None);
    }

    #[test]
    fn copies_that_are_in_sync_retiring_unknown_or_served_by_the_log_are_left_alone() {
        let (state, mut group) = cluster(4, 3);
        assert_eq!(decide_fetch(&state, &group, CopyId(4), false, 0), None);
        for in_sync in 1..=3 {
            assert_eq!(source(&state, &group, in_sync, 0), None);
        }
        assert_eq!(source(&state, &group, 9, 0), None);
        group.copies.get_mut(&CopyId(4)).expect("is there").phase = CopyPhase::New;
        assert_eq!(source(&state, &group, 4, 0), Some(2));
        group.copies.get_mut(&CopyId(4)).expect("is there").phase = CopyPhase::Retiring;
        assert_eq!(source(&state, &group, 4, 0), None);
    }

    #[test]
    fn pauses_double_up_to_five_minutes() {
        let mut attempts = Attempts::default();
        let start = Instant::now();
        let copy = CopyId(1);
        assert_eq!(attempts.next(copy, start), Some(0));
        let mut pauses = Vec::new();
        for count in 1..=12 {
            attempts.made(copy, start);
            let pause = (0..1000).find(|second| attempts.next(copy, start + Duration::from_secs(*second)).is_some());
            assert_eq!(attempts.next(copy, start + Duration::from_secs(1000)), Some(count));
            pauses.push(pause.expect("ends"));
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        attempts.forget(copy);
        assert_eq!(attempts.next(copy, start), Some(0));
    }
}
