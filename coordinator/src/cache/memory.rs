//! The first tier: this process' memory, bounded in bytes and time.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use moka::future::Cache;

use super::key::CacheKey;
use super::metrics::Tier;
use super::{CacheTier, CachedResult};

/// Least-frequently-used results within a byte budget.
pub struct MemoryTier {
    entries: Cache<CacheKey, Arc<CachedResult>>,
}

impl MemoryTier {
    /// `bytes_max` bounds the estimated size of all entries; `ttl` their age.
    pub fn new(bytes_max: u64, ttl: Duration) -> Self {
        let entries = Cache::builder()
            .max_capacity(bytes_max)
            .weigher(|_: &CacheKey, result: &Arc<CachedResult>| {
                u32::try_from(result.weight_bytes()).unwrap_or(u32::MAX)
            })
            .time_to_live(ttl)
            .build();
        Self { entries }
    }
}

impl CacheTier for MemoryTier {
    fn tier(&self) -> Tier {
        Tier::Memory
    }

    fn get<'a>(&'a self, key: &'a CacheKey) -> BoxFuture<'a, Option<Arc<CachedResult>>> {
        self.entries.get(key).boxed()
    }

    fn put<'a>(&'a self, key: &'a CacheKey, result: Arc<CachedResult>) -> BoxFuture<'a, ()> {
        self.entries.insert(*key, result).boxed()
    }

    fn remove<'a>(&'a self, key: &'a CacheKey) -> BoxFuture<'a, ()> {
        self.entries.invalidate(key).boxed()
    }
}
