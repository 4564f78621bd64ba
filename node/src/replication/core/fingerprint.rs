//! What tells two states of the model apart. A field that can influence a later step must be taken in, times as ages and ids as what
//! they stand for, so that histories that lead to the same future meet.

use std::hash::{Hash, Hasher};

use cluster_config::ids::CopyId;

use super::{Core, Local, Role};
use crate::replication::storage::StorageError;

impl Core {
    pub(in crate::replication) fn fingerprint(&self, hasher: &mut impl Hasher) {
        let Self { local, role, barrier_payload: _ } = self;
        let Local {
            copy,
            shard: _,
            lineage: _,
            incarnation,
            timing: _,
            now_ms,
            group,
            log,
            sizes,
            pins,
            proposer,
            next_message_id: _,
            actions: _,
        } = local;
        (copy, incarnation, group.as_ref().map(|group| group.version)).hash(hasher);
        log.fingerprint(hasher);
        sizes.fingerprint(hasher);
        pins.fingerprint(*now_ms, hasher);
        proposer.fingerprint(*now_ms, hasher);
        std::mem::discriminant(role).hash(hasher);
        match role {
            Role::Follower(follower) => follower.fingerprint(local, hasher),
            Role::Primary(primary) => primary.fingerprint(local, hasher),
            Role::Poisoned(error) => matches!(error, StorageError::Corrupt(_)).hash(hasher),
        }
    }

    /// What an answer to a message still means: nothing, or that it counts, or that it is awaited.
    pub(in crate::replication) fn standing_of_append(&self, to: CopyId, append_id: u64) -> u8 {
        match &self.role {
            Role::Primary(primary) => primary.standing_of_append(to, append_id),
            _ => 0,
        }
    }

    /// Whether the decision on this proposal is awaited.
    pub(in crate::replication) fn awaits_proposal(&self, id: u64) -> bool {
        self.local.proposer.awaits(id)
    }

    /// Whether this round of strong reads is under way.
    pub(in crate::replication) fn awaits_round(&self, round: u64) -> bool {
        matches!(&self.role, Role::Primary(primary) if primary.awaits_round(round))
    }
}

/// How long ago something was, as far as anyone asks.
pub(in crate::replication) fn age(now_ms: u64, then_ms: u64, limit_ms: u64) -> u64 {
    now_ms.saturating_sub(then_ms).min(limit_ms)
}
