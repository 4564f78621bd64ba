//! The retrieval cache: results of equal searches, served only while the shards still stand where they stood.
//!
//! An entry names the position of every shard it was computed at. Before it is served, each shard's position is confirmed by the
//! primary, or was within the staleness bound that the read allows ([`positions`], [`lookup`]). So an entry never needs to be
//! invalidated, and a write, an index step or a recovery anywhere makes it unusable by itself.
//!
//! The tiers behind [`CacheTier`] only store: memory, and Redis where coordinators share one ([`redis`]). Embeddings and answers are
//! functions of their keys alone and need no check of positions ([`answers`], `embed::cache`).

pub mod answers;
pub mod key;
pub mod lookup;
pub mod memory;
pub mod metrics;
pub mod positions;
pub mod redis;
pub mod shared_results;
pub mod single_flight;
pub mod turn;

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster_config::ids::ShardId;
use cluster_config::search::CopyPosition;
use futures::future::BoxFuture;

use self::key::CacheKey;
use self::memory::MemoryTier;
use self::metrics::{CacheMetrics, Tier};
use self::positions::PositionBoard;
use self::redis::SharedCache;
use self::shared_results::SharedResults;
use self::single_flight::SingleFlight;
use crate::retrieve::{Hit, Retrieved, ShardCounts, Work};

/// A stored result.
#[derive(Clone, Debug)]
pub struct CachedResult {
    hits: Arc<Vec<Hit>>,
    shards: ShardCounts,
    work: Work,
    positions: Arc<BTreeMap<ShardId, CopyPosition>>,
}

impl CachedResult {
    /// To be stored.
    pub fn of(retrieved: &Retrieved) -> Self {
        Self {
            hits: Arc::clone(&retrieved.hits),
            shards: retrieved.shards,
            work: retrieved.work,
            positions: Arc::clone(&retrieved.positions),
        }
    }

    /// To be served.
    fn into_retrieved(self) -> Retrieved {
        Retrieved { hits: self.hits, shards: self.shards, work: self.work, cached: true, positions: self.positions }
    }

    /// Estimate of the bytes it occupies.
    fn weight_bytes(&self) -> usize {
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let hits: usize = self
            .hits
            .iter()
            .map(|hit| {
                let metadata = hit.metadata.as_ref().map_or(0, |value| value.to_string().len() * 2);
                let vector = hit.vector.as_ref().map_or(0, |vector| vector.len() * size_of::<f32>());
                let names = hit.chunk_id.len() + hit.document_id.len();
                size_of::<Hit>() + names + optional(&hit.title) + optional(&hit.text) + metadata + vector
            })
            .sum();
        size_of::<Self>() + hits + self.positions.len() * (size_of::<ShardId>() + size_of::<CopyPosition>())
    }
}

/// A place where results are kept. It may forget at any time and never decides about validity.
pub trait CacheTier: Send + Sync {
    /// Which one it is.
    fn tier(&self) -> Tier;
    /// What is stored under the key.
    fn get<'a>(&'a self, key: &'a CacheKey) -> BoxFuture<'a, Option<Arc<CachedResult>>>;
    /// Stores, replacing.
    fn put<'a>(&'a self, key: &'a CacheKey, result: Arc<CachedResult>) -> BoxFuture<'a, ()>;
    /// Drops one entry, found to be outdated.
    fn remove<'a>(&'a self, key: &'a CacheKey) -> BoxFuture<'a, ()>;
}

/// Tiers, known positions and flights together.
pub struct RetrievalCache {
    /// Nearest first.
    tiers: Vec<Box<dyn CacheTier>>,
    /// Where leases are taken.
    shared: Option<SharedCache>,
    metrics: CacheMetrics,
    /// Where shards are known to stand; fed by searches and writes too.
    pub positions: PositionBoard,
    /// Equal searches under way in this process.
    flights: SingleFlight,
}

impl RetrievalCache {
    /// Memory first, then Redis where there is one.
    pub fn new(memory: MemoryTier, shared: Option<SharedCache>, metrics: CacheMetrics) -> Self {
        let mut tiers: Vec<Box<dyn CacheTier>> = vec![Box::new(memory)];
        if let Some(shared) = &shared {
            tiers.push(Box::new(SharedResults(shared.clone())));
        }
        Self { tiers, shared, metrics, positions: PositionBoard::default(), flights: SingleFlight::default() }
    }

    /// Stores in every tier.
    pub async fn fill(&self, key: &CacheKey, result: CachedResult) {
        let result = Arc::new(result);
        for tier in &self.tiers {
            tier.put(key, Arc::clone(&result)).await;
        }
    }
}
