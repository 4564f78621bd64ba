//! Texts that language models wrote, by the whole prompt they were asked with.
//!
//! The prompt is built from what the retrieval found just now, so a text is found again only while its sources read as they did; no
//! position has to be checked. Citations are not stored: they are read off the text against the sources of the day. What a model
//! writes twice need not be equal, so who wants another text asks with another `temperature` or switches caching off.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use serde::{Deserialize, Serialize};

use super::key::CacheKey;
use super::metrics::{CacheMetrics, Kind, Tier};
use super::redis::SharedCache;
use crate::generate::GenerateRequest;
use crate::generate::backend::Identity;

/// Longest text that is kept; longer ones are rare and push many others out.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A finished text. A change of any field raises the mark in `redis/frame`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredAnswer {
    /// Name of the backend that wrote it.
    pub backend: String,
    /// Model that wrote it.
    pub model: String,
    /// The text.
    pub text: String,
    /// Whether the model ended it, instead of the limit of tokens.
    pub is_complete: bool,
}

/// Memory first, then Redis where there is one.
pub struct AnswerCache {
    memory: Cache<CacheKey, Arc<StoredAnswer>>,
    shared: Option<SharedCache>,
    /// The configuration of the backends, part of every key.
    backends: String,
    metrics: CacheMetrics,
}

impl AnswerCache {
    /// `bytes_max` bounds the texts in memory, `ttl` their age; `backends` names the configuration that writes them.
    pub fn new(
        bytes_max: u64,
        ttl: Duration,
        backends: String,
        shared: Option<SharedCache>,
        metrics: CacheMetrics,
    ) -> Self {
        let weight = |_: &CacheKey, answer: &Arc<StoredAnswer>| {
            let bytes = size_of::<StoredAnswer>() + answer.backend.len() + answer.model.len() + answer.text.len();
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        let memory = Cache::builder().max_capacity(bytes_max).weigher(weight).time_to_live(ttl).build();
        Self { memory, shared, backends, metrics }
    }

    /// The key of what is asked while the pool has these backends: some may have been added at run time.
    pub fn key(&self, members: &[Identity], request: &GenerateRequest) -> CacheKey {
        CacheKey::of_answer(&self.backends, members, request)
    }

    /// The text, if one was kept.
    pub async fn get(&self, key: &CacheKey) -> Option<Arc<StoredAnswer>> {
        let found = self.memory.get(key);
        self.count(Tier::Memory, found.is_some());
        if found.is_some() {
            return found;
        }
        let shared = self.shared.as_ref()?;
        let payload = shared.get(Kind::Answer, key).await;
        let found: Option<StoredAnswer> = payload.and_then(|payload| postcard::from_bytes(&payload).ok());
        self.count(Tier::Redis, found.is_some());
        let found = Arc::new(found?);
        self.memory.insert(*key, Arc::clone(&found));
        Some(found)
    }

    /// Keeps a text in every tier.
    pub fn put(&self, key: &CacheKey, answer: StoredAnswer) {
        if let Some(shared) = &self.shared
            && let Ok(payload) = postcard::to_allocvec(&answer)
        {
            shared.put(Kind::Answer, key, &payload);
        }
        self.memory.insert(*key, Arc::new(answer));
    }

    fn count(&self, tier: Tier, is_hit: bool) {
        self.metrics.looked_up(tier, Kind::Answer, u64::from(is_hit), u64::from(!is_hit));
    }
}
