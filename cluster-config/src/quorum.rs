//! Arithmetic of copies: when writes are accepted, which copy may leave, who may become primary, how a shard is doing.
//!
//! Only registers and liveness go in. Nothing here makes a shard safe by itself: safety is the register's compare-and-set and
//! the primary's ack set; these functions are what the metadata group checks before it changes a register.

use serde::{Deserialize, Serialize};

use crate::ids::{CopyId, NodeId};
use crate::seqno::LogPosition;
use crate::shard_group::{CopyPhase, CopyRole, ShardGroup};

/// Whether a primary may accept new writes under this register: there is one, and enough copies are in sync (W10). Whether it
/// can be reached is another matter.
pub fn accepts_writes(group: &ShardGroup) -> bool {
    group.primary.is_some() && group.in_sync.len() as u64 >= u64::from(group.min_in_sync)
}

/// Why a copy may not leave the in-sync set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemovalRefusal {
    /// It is not in the set.
    #[error("copy {0} is not in sync")]
    NotInSync(CopyId),
    /// It is the only copy known to hold every acknowledged write (W9).
    #[error("copy {0} is the last in-sync copy; removing it would lose acknowledged writes")]
    LastInSync(CopyId),
    /// It orders the writes; the role has to pass on first.
    #[error("copy {0} is the primary; hand the role over first")]
    IsPrimary(CopyId),
}

/// Whether `copy` may be removed from the in-sync set. The last one never may, whatever its state: the shard waits for it.
pub fn check_removal(group: &ShardGroup, copy: CopyId) -> Result<(), RemovalRefusal> {
    if !group.in_sync.contains(&copy) {
        return Err(RemovalRefusal::NotInSync(copy));
    }
    if group.in_sync.len() == 1 {
        return Err(RemovalRefusal::LastInSync(copy));
    }
    if group.primary_copy() == Some(copy) {
        return Err(RemovalRefusal::IsPrimary(copy));
    }
    Ok(())
}

/// What is known of a copy when a primary is to be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrimaryCandidate {
    /// Which copy.
    pub copy: CopyId,
    /// Its node lives in its current incarnation, and its disk takes writes.
    pub is_live: bool,
    /// Its node is to give its primaries away: it is taken only where no other candidate is left.
    pub is_draining: bool,
    /// Where its log ends, as last reported. A hint: every in-sync copy holds all acknowledged writes.
    pub last: LogPosition,
    /// Primaries on its node.
    pub node_primaries: u64,
}

/// The copy to grant the primary role to: in the in-sync set and live; among those one whose node is not draining, then the longest
/// log (it saves resending), then the node with the fewest primaries, then the lowest id. `None`: the shard has to wait for an in-sync copy to return.
pub fn choose_primary(group: &ShardGroup, candidates: impl IntoIterator<Item = PrimaryCandidate>) -> Option<CopyId> {
    candidates
        .into_iter()
        .filter(|candidate| candidate.is_live && group.in_sync.contains(&candidate.copy))
        .min_by_key(|candidate| {
            (candidate.is_draining, std::cmp::Reverse(candidate.last), candidate.node_primaries, candidate.copy)
        })
        .map(|candidate| candidate.copy)
}

/// How a shard is doing, as shown to operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Every copy that was asked for is there, in sync and on a live node.
    Green,
    /// Reads and writes are served with less redundancy than was asked for.
    Yellow,
    /// Writes are refused, or nobody can answer.
    Red,
}

/// Classifies a shard. `voters` and `read_replicas` are the numbers its collection asks for.
pub fn health(group: &ShardGroup, voters: u32, read_replicas: u32, is_live: impl Fn(NodeId) -> bool) -> Health {
    let on_live_node = |copy: CopyId| group.node_of(copy).is_some_and(&is_live);
    let primary_lives = group.primary_copy().is_some_and(on_live_node);
    let live_in_sync = group.in_sync.iter().filter(|copy| on_live_node(**copy)).count();
    if !primary_lives || !accepts_writes(group) {
        return Health::Red;
    }
    let serves = |(copy, record): &(&CopyId, &crate::shard_group::CopyRecord)| {
        record.role == CopyRole::ReadReplica && record.phase == CopyPhase::InSync && on_live_node(**copy)
    };
    let live_replicas = group.copies.iter().filter(serves).count();
    let (voters, read_replicas) = (voters as usize, read_replicas as usize);
    // A voter too many was a read replica, and serves as one.
    if live_in_sync < voters || live_in_sync + live_replicas < voters + read_replicas {
        return Health::Yellow;
    }
    Health::Green
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::ids::{CollectionId, Incarnation, Lineage, ShardId};
    use crate::seqno::{PrimaryTerm, SeqNo};
    use crate::shard_group::{CopyRecord, PrimaryGrant};

    /// Copies 1.. on nodes 1.., the first `in_sync` of them in sync, the first of them primary.
    fn group(copies: u64, in_sync: u64, min_in_sync: u32) -> ShardGroup {
        let record = |id| {
            let phase = if id <= in_sync { CopyPhase::InSync } else { CopyPhase::CatchingUp };
            (CopyId(id), CopyRecord { node: NodeId(id), role: CopyRole::Voter, phase })
        };
        ShardGroup {
            shard: ShardId { collection: CollectionId(1), index: 0 },
            version: 1,
            primary_term: PrimaryTerm(1),
            primary: (in_sync > 0).then_some(PrimaryGrant { copy: CopyId(1), incarnation: Incarnation(1) }),
            in_sync: (1..=in_sync).map(CopyId).collect(),
            copies: (1..=copies).map(record).collect(),
            lineage: Lineage(1),
            min_in_sync,
        }
    }

    #[test]
    fn writes_need_a_primary_and_enough_copies() {
        for (in_sync, min_in_sync, accepted) in [(0, 1, false), (1, 1, true), (1, 2, false), (2, 2, true), (3, 2, true)]
        {
            assert_eq!(accepts_writes(&group(3, in_sync, min_in_sync)), accepted, "{in_sync} of {min_in_sync}");
        }
        let headless = ShardGroup { primary: None, ..group(3, 3, 1) };
        assert!(!accepts_writes(&headless));
    }

    #[test]
    fn the_last_in_sync_copy_never_leaves() {
        assert_eq!(check_removal(&group(3, 2, 1), CopyId(2)), Ok(()));
        assert_eq!(check_removal(&group(3, 2, 1), CopyId(1)), Err(RemovalRefusal::IsPrimary(CopyId(1))));
        assert_eq!(check_removal(&group(3, 2, 1), CopyId(3)), Err(RemovalRefusal::NotInSync(CopyId(3))));
        assert_eq!(check_removal(&group(3, 1, 1), CopyId(1)), Err(RemovalRefusal::LastInSync(CopyId(1))));
    }

    #[test]
    fn the_primary_is_in_sync_and_live_then_staying_then_longest_then_least_loaded_then_lowest() {
        let candidate = |copy, is_live, term, seqno, node_primaries| PrimaryCandidate {
            copy: CopyId(copy),
            is_live,
            is_draining: false,
            last: LogPosition { term: PrimaryTerm(term), seqno: SeqNo(seqno) },
            node_primaries,
        };
        let group = group(5, 4, 1);
        let leaving = |candidate| PrimaryCandidate { is_draining: true, ..candidate };
        let cases: [(&[PrimaryCandidate], Option<u64>); 9] = [
            (&[], None),
            (&[candidate(1, false, 1, 9, 0)], None),
            (&[candidate(5, true, 9, 9, 0)], None),
            (&[candidate(1, false, 9, 9, 0), candidate(2, true, 1, 1, 9)], Some(2)),
            (&[candidate(2, true, 1, 90, 0), candidate(3, true, 2, 5, 9)], Some(3)),
            (&[candidate(2, true, 2, 5, 3), candidate(3, true, 2, 5, 2), candidate(4, true, 2, 4, 0)], Some(3)),
            (&[candidate(4, true, 2, 5, 2), candidate(3, true, 2, 5, 2)], Some(3)),
            (&[leaving(candidate(2, true, 2, 9, 0)), candidate(3, true, 1, 1, 9)], Some(3)),
            (&[leaving(candidate(2, true, 2, 9, 0)), candidate(5, true, 2, 9, 0)], Some(2)),
        ];
        for (candidates, expected) in cases {
            let chosen = choose_primary(&group, candidates.iter().copied());
            assert_eq!(chosen, expected.map(CopyId), "{candidates:?}");
            let backwards = choose_primary(&group, candidates.iter().rev().copied());
            assert_eq!(backwards, chosen, "the order of the candidates does not matter");
        }
    }

    #[test]
    fn health_says_what_is_served() {
        let dead = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        let cases = [
            (group(2, 2, 1), dead(&[]), Health::Green),
            (group(2, 2, 1), dead(&[2]), Health::Yellow),
            (group(2, 1, 1), dead(&[]), Health::Yellow),
            (group(2, 2, 1), dead(&[1]), Health::Red),
            (group(2, 1, 2), dead(&[]), Health::Red),
            (group(2, 0, 1), dead(&[]), Health::Red),
        ];
        for (group, dead, expected) in cases {
            let health = health(&group, 2, 0, |node| !dead.contains(&node));
            assert_eq!(health, expected, "{:?} in sync, {dead:?} dead", group.in_sync);
        }
        let mut with_replica = group(2, 2, 1);
        assert_eq!(health(&with_replica, 2, 1, |_| true), Health::Yellow, "the read replica is missing");
        let replica = CopyRecord { node: NodeId(9), role: CopyRole::ReadReplica, phase: CopyPhase::InSync };
        with_replica.copies.extend(BTreeMap::from([(CopyId(9), replica)]));
        assert_eq!(health(&with_replica, 2, 1, |_| true), Health::Green);
        assert_eq!(health(&group(3, 3, 1), 2, 1, |_| true), Health::Green, "the read replica was made a voter");
    }
}
