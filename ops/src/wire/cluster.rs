//! The cluster as its operators see it: nodes, shards, copies, digests.

use cluster_config::cluster_state::{Liveness, NodeLifecycle};
use cluster_config::memory::{CopyMemory, NodeMemory};
use serde::{Deserialize, Serialize};

/// Answer of `GET /api/v1/cluster`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterReport {
    /// Name of the cluster.
    pub cluster_id: String,
    /// Version of the agreed state.
    pub state_version: u64,
    /// The metadata group.
    pub metadata: MetadataReport,
    /// By id.
    pub nodes: Vec<NodeReport>,
    /// By collection, then index.
    pub shards: Vec<ShardReport>,
    /// Forced recoveries with data loss, oldest first.
    #[serde(default)]
    pub audit: Vec<AuditReport>,
}

/// A forced recovery with data loss.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AuditReport {
    /// Counted from 1.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Who, as they called themselves.
    pub by: String,
    /// `collection_id/index`.
    pub shard: String,
    /// The copy that everything was recovered from.
    pub copy: u64,
    /// The lineage that began with it.
    pub lineage: u64,
    /// Copies that held every acknowledged write before.
    pub former_in_sync: Vec<u64>,
    /// A member of the in-sync set lived, and the operator knew.
    pub overrode_live: bool,
}

/// The metadata group, as one member sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MetadataReport {
    /// Node that leads, where known.
    pub leader: Option<u64>,
    /// Its Raft term.
    pub raft_term: u64,
    /// Last entry applied.
    pub last_applied_index: u64,
    /// Who votes.
    pub voters: Vec<u64>,
}

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    /// Id.
    pub id: u64,
    /// gRPC address.
    pub rpc_address: String,
    /// Health and metrics address.
    pub http_address: String,
    /// Failure domain.
    pub zone: String,
    /// Whether it holds shards.
    pub is_data: bool,
    /// Raised at each start of its process.
    pub incarnation: u64,
    /// As believed by the metadata leader.
    pub liveness: Liveness,
    /// Whether it is to hold primaries and new copies.
    pub lifecycle: NodeLifecycle,
    /// Time since the leader heard of it.
    #[serde(default)]
    pub heard_ms_ago: Option<u64>,
    /// Copies on it.
    #[serde(default)]
    pub copies: u32,
    /// Bytes of its copies on disk.
    #[serde(default)]
    pub disk_bytes: u64,
    /// Bytes of its copies in memory.
    #[serde(default)]
    pub memory_bytes: u64,
    /// What the memory of its process goes to.
    #[serde(default)]
    pub memory: Option<NodeMemory>,
}

impl NodeReport {
    /// In one word: `alive`, `draining` or `dead`.
    pub fn state(&self) -> &'static str {
        match (self.liveness, self.lifecycle) {
            (Liveness::Dead, _) => "dead",
            (Liveness::Alive, NodeLifecycle::Draining) => "draining",
            (Liveness::Alive, NodeLifecycle::Active) => "alive",
        }
    }
}

/// One shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardReport {
    /// `collection_id/index`.
    #[serde(default)]
    pub shard: String,
    /// Name of its collection.
    pub collection: String,
    /// Position in the collection.
    pub index: u32,
    /// Raised by every change of the register.
    #[serde(default)]
    pub version: u64,
    /// Raised by each grant of the primary role.
    pub primary_term: u64,
    /// Copy that orders writes, where there is one.
    pub primary: Option<u64>,
    /// Copies that hold every acknowledged operation.
    pub in_sync: Vec<u64>,
    /// Fewest in-sync copies with which writes are accepted.
    pub min_in_sync: u32,
    /// Changes only by recovery with data loss.
    #[serde(default)]
    pub lineage: u64,
    /// `green` (all copies in sync), `yellow` (some are not), `red` (no primary).
    pub health: String,
    /// All copies.
    pub copies: Vec<CopyStatus>,
}

/// One copy of a shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CopyStatus {
    /// Id.
    pub copy: u64,
    /// Where it lives.
    pub node: u64,
    /// `primary`, `in_sync`, `read_replica`, `new`, `catching_up` or `retiring`.
    pub role: String,
    /// Its last report; absent until it has sent one.
    #[serde(default)]
    pub report: Option<CopyReport>,
}

/// What a copy reported of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CopyReport {
    /// End of its log.
    pub last_seqno: u64,
    /// Applied up to here.
    pub applied: u64,
    /// Commit point it knows.
    pub global_checkpoint: u64,
    /// Model generation of its index; 0 while exact.
    pub generation: u64,
    /// exact, training, building, indexed, renewing; `fetching N %` (of a snapshot); poisoned, or corrupt.
    pub index_state: String,
    /// Why it is poisoned or corrupt.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Live rows.
    pub rows_live: u64,
    /// Rows in the index.
    pub rows_indexed: u64,
    /// Rows in the exact tail.
    pub rows_tail: u64,
    /// On disk.
    pub disk_bytes: u64,
    /// In memory.
    pub memory_bytes: u64,
    /// The same by part.
    #[serde(default)]
    pub memory: CopyMemory,
    /// Recall of sampled live queries at the default effort; absent while they are too few.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recall_at_10: Option<f32>,
}

/// Answer of `POST /api/v1/shards/{collection}/{index}:digest`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardDigest {
    /// Whether all in-sync copies answered and hold the same.
    pub agree: bool,
    /// Each taken on its own node.
    pub copies: Vec<CopyDigest>,
}

/// Digest of one copy, hexadecimal: equal contents give equal digests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CopyDigest {
    /// The copy.
    pub copy: u64,
    /// Where it lives.
    pub node: u64,
    /// Whether it is in the in-sync set.
    pub in_sync: bool,
    /// Applied up to here when it was taken.
    pub applied: u64,
    /// Over documents, chunks, metadata and vectors.
    pub documents: String,
    /// Over live rows and rows in the index.
    pub index_membership: String,
    /// Over the log's entries after `log_from`.
    pub log: String,
    /// Where the digested part of the log begins; copies may have purged to different positions.
    pub log_from: u64,
    /// Documents.
    pub document_count: u64,
    /// Chunks.
    pub chunk_count: u64,
    /// Why there is no digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
