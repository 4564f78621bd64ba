//! A search as the coordinator asks it of one shard copy, and what the copy answers.

use serde::{Deserialize, Serialize};

use crate::filter::Filter;
use crate::ids::{CopyId, Lineage, ShardId};
use crate::seqno::{PrimaryTerm, SeqNo};
use crate::shard_group::CopyTarget;

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// Any readable copy that heard from its primary within the staleness bound.
    #[default]
    Eventual,
    /// Not older than the caller's session token.
    Session,
    /// Linearizable within a shard: confirmed by the primary.
    Strong,
}

/// Smallest position a session read may be served at, in one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionToken {
    /// Void on another lineage.
    pub lineage: Lineage,
    /// Position that must be applied.
    pub seqno: SeqNo,
}

/// Knobs of one vector search. `None` takes the collection's value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SearchKnobs {
    /// Lists probed.
    pub nprobe: Option<u32>,
    /// Candidates re-scored per requested result.
    pub oversample: Option<f32>,
    /// Ignore the index and compare with every live row.
    pub exact: bool,
    /// Recall the caller wants; the shard raises `nprobe` and `oversample` to its measured setting for it.
    pub target_recall: Option<f32>,
}

/// One measured effort of a shard's index: what it finds, and what it looks at for that.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EffortRung {
    /// Lists probed.
    pub nprobe: u32,
    /// Candidates re-scored per result.
    pub oversample: f32,
    /// Share of the exact best 10 found, mean over the queries measured.
    pub recall: f32,
    /// Share of all codes scanned, mean over the queries measured.
    pub codes_share: f32,
}

/// One vector search over one shard.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardQuery {
    /// `[dim]`, normalised where the metric is cosine.
    pub vector: Vec<f32>,
    /// Results wanted from this shard.
    pub fetch_k: u32,
    /// Metadata filter.
    pub filter: Filter,
    /// Only documents of this tenant.
    pub tenant: String,
    /// Speed against recall.
    pub knobs: SearchKnobs,
}

/// One shard asked of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardTarget {
    /// Which copy.
    pub target: CopyTarget,
    /// Session reads: serve at or after this position of the target's lineage; 0 asks for nothing.
    pub min_seqno: SeqNo,
}

/// Everything one scatter asks of one node: every query is run on every target.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeSearch {
    /// At most `limits::SEARCHES_PER_BATCH_MAX`.
    pub queries: Vec<ShardQuery>,
    /// Copies on the node.
    pub targets: Vec<ShardTarget>,
    /// How fresh the answers must be.
    pub consistency: Consistency,
    /// Longest time since the copy heard from its primary, for eventual reads.
    pub max_staleness_ms: u64,
}

/// One result of one shard: enough to merge; texts are fetched for the merged best only.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardHit {
    /// Row within the copy; immutable, the handle for fetching.
    pub row: u64,
    /// Larger is better; comparable across shards of a collection.
    pub score: f32,
    /// Document it belongs to.
    pub document_id: String,
    /// Chunk within the document.
    pub ordinal: u32,
}

/// Where a copy stood when it answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyPosition {
    /// The shard, where known.
    pub shard: Option<ShardId>,
    /// The copy.
    pub copy: CopyId,
    /// Its lineage.
    pub lineage: Lineage,
    /// Term it follows.
    pub term: PrimaryTerm,
    /// Applied up to here.
    pub applied: SeqNo,
    /// Model generation its index uses; 0 while exact.
    pub generation: u64,
    /// Milliseconds since it last heard a checkpoint from a primary of its term; 0 on the primary.
    pub staleness_ms: u64,
}

/// What one shard copy answers to one query.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShardAnswer {
    /// Best first: score descending, then (document id, ordinal) ascending. At most `fetch_k`.
    pub hits: Vec<ShardHit>,
    /// Where the copy stood.
    pub position: CopyPosition,
    /// Codes scanned in the index, for the share-of-codes figure.
    pub codes_scanned: u64,
    /// Codes held by the index.
    pub codes_total: u64,
    /// Rows compared exactly (the tail, or everything below the training floor).
    pub rows_exact: u64,
}
