//! What others may know of a copy: its role, its positions, its invariants.

use std::sync::Arc;

use cluster_config::ids::CopyId;
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};
use cluster_config::shard_group::ShardGroup;

use super::{Core, Role};
use crate::replication::storage::StorageError;

impl Core {
    /// The copy.
    pub fn copy(&self) -> CopyId {
        self.local.copy
    }

    /// Whether it orders writes now.
    pub fn is_primary(&self) -> bool {
        matches!(self.role, Role::Primary(_))
    }

    /// Whether it is primary in exactly this term: what a message under way must still hold to be sent.
    pub fn is_primary_in(&self, term: PrimaryTerm) -> bool {
        matches!(&self.role, Role::Primary(primary) if primary.term() == term)
    }

    /// Why it is of no use any more.
    pub fn poisoned(&self) -> Option<&StorageError> {
        match &self.role {
            Role::Poisoned(error) => Some(error),
            _ => None,
        }
    }

    /// The register as last learned.
    pub fn group(&self) -> Option<&Arc<ShardGroup>> {
        self.local.group.as_ref()
    }

    /// The term it follows, as far as it survives a crash: the answer to a strong read's `Confirm`.
    pub fn confirmed_term(&self) -> PrimaryTerm {
        self.local.log.durable_term()
    }

    /// End of its log.
    pub fn last(&self) -> LogPosition {
        self.local.log.last_position()
    }

    /// Durable up to here.
    pub fn local_checkpoint(&self) -> SeqNo {
        self.local.log.durable()
    }

    /// Committed and durable up to here.
    pub fn global_checkpoint(&self) -> SeqNo {
        self.local.log.global_checkpoint()
    }

    /// Applied up to here.
    pub fn applied(&self) -> SeqNo {
        self.local.log.applied()
    }

    /// As of when the copy surely knew what is committed, in the milliseconds of `Event::Tick`. A follower: when it last heard a
    /// checkpoint, `None` if never. A primary: until when nobody could have taken its place, `None` if there is nobody who could.
    pub fn current_as_of_ms(&self) -> Option<u64> {
        match &self.role {
            Role::Follower(follower) => follower.heard_ms(),
            Role::Primary(primary) => primary.followed_ms(),
            Role::Poisoned(_) => None,
        }
    }

    /// Writes that are not answered yet.
    pub fn writes_waiting(&self) -> usize {
        match &self.role {
            Role::Primary(primary) => primary.writes_waiting(),
            _ => 0,
        }
    }

    /// On the primary: copies that lack entries which are purged here.
    pub fn needing_snapshot(&self) -> Vec<CopyId> {
        match &self.role {
            Role::Primary(primary) => primary.needing_snapshot(),
            _ => Vec::new(),
        }
    }

    /// Whether the primary can no longer send what this copy lacks.
    pub fn needs_snapshot(&self) -> bool {
        match &self.role {
            Role::Follower(follower) => follower.needs_snapshot(),
            Role::Primary(_) | Role::Poisoned(_) => false,
        }
    }

    /// The log is kept from here on for snapshots on their way: to or from this copy, and on a primary to any.
    pub fn pinned(&self) -> Option<SeqNo> {
        match &self.role {
            Role::Primary(primary) => primary.pinned(&self.local),
            Role::Follower(_) | Role::Poisoned(_) => self.local.pins.lowest(),
        }
    }

    /// Entries up to here are gone from its log.
    pub fn purged(&self) -> SeqNo {
        self.local.log.purged().seqno
    }

    /// Entries up to here are wanted in memory by nobody: applied, and on every other copy if this one is primary.
    pub fn needed_by_nobody(&self) -> SeqNo {
        let applied = self.local.log.applied();
        match &self.role {
            Role::Primary(primary) => primary.held_by_all().map_or(applied, |held| held.min(applied)),
            _ => applied,
        }
    }

    /// Checks the invariants; the text names the broken one.
    pub fn check(&self) -> Result<(), String> {
        self.local.log.check()?;
        match &self.role {
            Role::Primary(primary) => primary.check(&self.local),
            Role::Follower(_) | Role::Poisoned(_) => Ok(()),
        }
    }
}
