//! Texts that language models wrote, by the whole prompt they were asked with.
//!
//! The prompt is built from what the retrieval found just now, so a text is found again only while its sources read as they did; no
//! position has to be checked. Citations are not stored: they are read off the text against the sources of the day. What a model
//! writes twice need not be equal, so who wants another text asks with another `temperature` or switches caching off.

use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::sync::Cache;
use serde::{Deserialize, Serialize};

use super::key::CacheKey;
use super::metrics::{CacheMetrics, Kind, Tier};
use super::redis::{SharedCache, Term};
use super::single_flight::{SingleFlight, half_way};
use super::turn::{self, Looked, Turn, Waiting};
use crate::generate::GenerateRequest;
use crate::generate::backend::Identity;

/// Longest text that is kept; longer ones are rare and push many others out.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A lease is renewed while its text is being written, however long that takes; so long after its owner died another one goes on.
const LEASE: Duration = Duration::from_secs(5);
/// Pauses between looks at what another coordinator is writing: the first, doubled up to the longest.
const LEASE_PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

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
    /// Equal texts under way in this process.
    flights: SingleFlight,
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
        Self { memory, shared, backends, metrics, flights: SingleFlight::default() }
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
        let found = self.fetch(shared, key).await;
        self.count(Tier::Redis, found.is_some());
        found
    }

    /// As [`get`](Self::get), and where there is none the turn to have it written: after waiting for an equal request of this process
    /// or of another coordinator, which may succeed, fail or leave, for half of the remaining time.
    ///
    /// Cancel: dropping it gives every turn back.
    pub async fn get_or_begin(&self, key: &CacheKey, deadline: Instant) -> Looked<Arc<StoredAnswer>> {
        if let Some(found) = self.get(key).await {
            return Looked::Found(found);
        }
        let until = half_way(Instant::now(), deadline);
        let flight = self.flights.begin(key, until).await;
        // It may have been written since the first look, whoever's turn it is now.
        if let Some(found) = self.memory.get(key) {
            return Looked::Found(found);
        }
        let Some(flight) = flight else { return Looked::Missing(Turn::default()) };
        let waiting = Waiting { term: Term::Renewed(LEASE), pauses: LEASE_PAUSES, until };
        let shared = self.shared.as_ref();
        let look = || async { self.fetch(shared?, key).await };
        turn::begin(flight, shared, (Kind::Answer, key), waiting, &self.metrics, look).await
    }

    /// What the shared tier has; then memory has it, too.
    async fn fetch(&self, shared: &SharedCache, key: &CacheKey) -> Option<Arc<StoredAnswer>> {
        let payload = shared.get(Kind::Answer, key).await?;
        let found: Arc<StoredAnswer> = Arc::new(postcard::from_bytes(&payload).ok()?);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> AnswerCache {
        AnswerCache::new(1 << 20, Duration::from_secs(60), String::new(), None, CacheMetrics::new())
    }

    async fn turn(cache: &AnswerCache, key: &CacheKey) -> Option<Turn> {
        match cache.get_or_begin(key, Instant::now() + Duration::from_secs(600)).await {
            Looked::Found(_) => None,
            Looked::Missing(turn) => Some(turn),
        }
    }

    #[tokio::test]
    async fn whoever_waits_gets_what_was_written_and_goes_on_where_nothing_was() {
        let cache = Arc::new(cache());
        let answer = StoredAnswer { text: "kept".into(), ..StoredAnswer::default() };
        for (name, written) in [("written", Some(answer)), ("failed", None)] {
            let key = CacheKey::of_embedding("m", name);
            let leader = turn(&cache, &key).await.expect("the first leads");
            let follower = tokio::spawn({
                let cache = Arc::clone(&cache);
                async move { turn(&cache, &key).await.is_none() }
            });
            tokio::task::yield_now().await;
            let is_written = written.is_some();
            if let Some(answer) = written {
                cache.put(&key, answer);
            }
            drop(leader);
            assert_eq!(follower.await.expect("joins"), is_written, "{name}");
        }
    }
}
