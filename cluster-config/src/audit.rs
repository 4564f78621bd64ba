//! What operators forced upon the cluster, as it stands in the agreed state.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{CopyId, Lineage, ShardId};
use crate::seqno::LogPosition;

/// One forced recovery with data loss. Nothing is computed from it: it is there to be read afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// When, by the clock of the metadata leader that took the request: milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Who, as they called themselves.
    pub by: String,
    /// The shard.
    pub shard: ShardId,
    /// The copy that everything was recovered from.
    pub copy: CopyId,
    /// The lineage that began with it.
    pub lineage: Lineage,
    /// The in-sync set before: each of these copies held every acknowledged write.
    pub former_in_sync: BTreeSet<CopyId>,
    /// Where the copies' logs ended, as far as the leader had seen them in its present lead.
    pub last_seen: BTreeMap<CopyId, LogPosition>,
    /// A member of the in-sync set lived, and the operator knew.
    pub overrode_live: bool,
}
