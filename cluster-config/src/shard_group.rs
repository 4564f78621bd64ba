//! The register of one shard, held in Raft: who orders its writes, who is in sync, which copies exist.
//!
//! Invariants (see [`ShardGroup::check`]): the primary is in the in-sync set; every in-sync copy exists, votes and is in phase
//! `InSync`; once written to, the in-sync set is never empty. `version` grows at every change, `primary_term` at every grant.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{CopyId, Incarnation, Lineage, NodeId, ShardId};
use crate::seqno::PrimaryTerm;

/// Whether a copy can become in-sync and primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyRole {
    /// May enter the in-sync set and be promoted.
    Voter,
    /// Receives the same stream, serves reads, is never promoted.
    ReadReplica,
}

/// Life of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyPhase {
    /// Allotted, nothing received yet.
    New,
    /// Receiving history; not in the in-sync set.
    CatchingUp,
    /// Holds every acknowledged operation.
    InSync,
    /// Taken out of routing; its files go after a grace period.
    Retiring,
}

/// One copy as the register knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRecord {
    /// Where it lives.
    pub node: NodeId,
    /// Voter or read replica.
    pub role: CopyRole,
    /// Where it is in its life.
    pub phase: CopyPhase,
}

/// The configuration register of one shard. Changed only through the metadata group, by compare-and-set on `version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardGroup {
    /// The shard.
    pub shard: ShardId,
    /// Raised by every change.
    pub version: u64,
    /// Raised by every grant of the primary role.
    pub primary_term: PrimaryTerm,
    /// The copy that orders writes, and the incarnation of its process that the term was granted to (W1): the same process
    /// started again must not act under it.
    pub primary: Option<PrimaryGrant>,
    /// Copies that hold every acknowledged operation.
    pub in_sync: BTreeSet<CopyId>,
    /// All copies.
    pub copies: BTreeMap<CopyId, CopyRecord>,
    /// Raised only by forced recovery with data loss.
    pub lineage: Lineage,
    /// Fewest in-sync copies with which writes are accepted.
    pub min_in_sync: u32,
}

/// The primary role, granted to one copy in one life of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrimaryGrant {
    /// The copy.
    pub copy: CopyId,
    /// Incarnation of the node's process.
    pub incarnation: Incarnation,
}

/// The copy a request is meant for; a receiver refuses another copy id or lineage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CopyTarget {
    /// Its shard.
    pub shard: ShardId,
    /// The copy.
    pub copy: CopyId,
    /// Its lineage.
    pub lineage: Lineage,
    /// Version of the register the sender acts on.
    pub cfg_version: u64,
}

impl ShardGroup {
    /// Addresses one copy of this shard, as this register knows it.
    pub fn target(&self, copy: CopyId) -> CopyTarget {
        CopyTarget { shard: self.shard, copy, lineage: self.lineage, cfg_version: self.version }
    }

    /// The primary's copy, where there is one.
    pub fn primary_copy(&self) -> Option<CopyId> {
        self.primary.map(|grant| grant.copy)
    }

    /// The node of the primary, where there is one.
    pub fn primary_node(&self) -> Option<NodeId> {
        self.primary_copy().and_then(|copy| self.node_of(copy))
    }

    /// The node a copy lives on.
    pub fn node_of(&self, copy: CopyId) -> Option<NodeId> {
        self.copies.get(&copy).map(|record| record.node)
    }

    /// The copy of this shard on `node` that is not retiring.
    pub fn copy_on(&self, node: NodeId) -> Option<CopyId> {
        self.copies
            .iter()
            .find(|(_, record)| record.node == node && record.phase != CopyPhase::Retiring)
            .map(|(copy, _)| *copy)
    }

    /// Copies that may answer reads: in sync, or read replicas that are not retiring.
    pub fn readable(&self) -> impl Iterator<Item = (CopyId, &CopyRecord)> {
        self.copies.iter().filter_map(|(copy, record)| {
            let serves = match record.role {
                CopyRole::Voter => self.in_sync.contains(copy),
                CopyRole::ReadReplica => record.phase == CopyPhase::InSync,
            };
            serves.then_some((*copy, record))
        })
    }

    /// Checks the invariants; the text names the broken one.
    pub fn check(&self) -> Result<(), String> {
        for copy in &self.in_sync {
            match self.copies.get(copy) {
                None => return Err(format!("shard {}: in-sync copy {copy} does not exist", self.shard)),
                Some(record) if record.role != CopyRole::Voter || record.phase != CopyPhase::InSync => {
                    return Err(format!(
                        "shard {}: in-sync copy {copy} is {:?} {:?}",
                        self.shard, record.role, record.phase
                    ));
                }
                Some(_) => {}
            }
        }
        if let Some(primary) = self.primary_copy()
            && !self.in_sync.contains(&primary)
        {
            return Err(format!("shard {}: primary {primary} is not in the in-sync set", self.shard));
        }
        if self.primary_term > PrimaryTerm(0) && self.in_sync.is_empty() {
            return Err(format!("shard {}: in-sync set is empty in term {}", self.shard, self.primary_term));
        }
        Ok(())
    }
}
