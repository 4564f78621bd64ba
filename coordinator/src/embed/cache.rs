//! Embeddings of recent queries, so that a repeated question costs a hash instead of a forward pass: in this process' memory, and
//! in Redis where coordinators share one.

use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use moka::sync::Cache;

use super::{EmbedError, Embedder, Embedding, INTERACTIVE_TEXTS_MAX};
use crate::cache::key::CacheKey;
use crate::cache::metrics::{CacheMetrics, Kind, Tier};
use crate::cache::redis::SharedCache;

/// An embedder behind a cache bounded by entries. Calls of more than [`INTERACTIVE_TEXTS_MAX`] texts are ingestion: they pass
/// by, lest chunks that nobody asks for again push the queries out.
pub struct CachedEmbedder {
    inner: Arc<dyn Embedder>,
    memory: Cache<CacheKey, Embedding>,
    shared: Option<SharedCache>,
    metrics: CacheMetrics,
}

impl CachedEmbedder {
    /// Keeps at most `entries` vectors of `inner` in memory.
    pub fn new(inner: Arc<dyn Embedder>, entries: u64, shared: Option<SharedCache>, metrics: CacheMetrics) -> Self {
        Self { inner, memory: Cache::new(entries), shared, metrics }
    }

    async fn embed_cached(&self, texts: Vec<String>, deadline: Instant) -> Result<Vec<Embedding>, EmbedError> {
        let keys: Vec<CacheKey> = texts.iter().map(|text| CacheKey::of_embedding(self.inner.name(), text)).collect();
        let mut found: Vec<Option<Embedding>> = keys.iter().map(|key| self.memory.get(key)).collect();
        self.count(Tier::Memory, &found);
        if let Some(shared) = &self.shared {
            self.look_in(shared, &keys, &mut found).await;
        }
        let (places, missing): (Vec<usize>, Vec<String>) =
            texts.into_iter().enumerate().filter(|(place, _)| found[*place].is_none()).unzip();
        if !missing.is_empty() {
            let embedded = self.inner.embed(missing, deadline).await?;
            for (place, vector) in places.into_iter().zip(embedded) {
                self.memory.insert(keys[place], vector.clone());
                if let Some(shared) = &self.shared {
                    shared.put(Kind::Embedding, &keys[place], &to_bytes(&vector));
                }
                found[place] = Some(vector);
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// Fills in what the shared tier has, all at once.
    async fn look_in(&self, shared: &SharedCache, keys: &[CacheKey], found: &mut [Option<Embedding>]) {
        let places: Vec<usize> = (0..keys.len()).filter(|place| found[*place].is_none()).collect();
        if places.is_empty() {
            return;
        }
        let mut reads = Vec::with_capacity(places.len());
        for place in &places {
            reads.push(shared.get(Kind::Embedding, &keys[*place]).boxed());
        }
        let payloads = join_all(reads).await;
        let vectors: Vec<Option<Embedding>> =
            payloads.into_iter().map(|payload| from_bytes(&payload?, self.inner.dim())).collect();
        self.count(Tier::Redis, &vectors);
        for (place, vector) in places.into_iter().zip(vectors) {
            if let Some(vector) = &vector {
                self.memory.insert(keys[place], vector.clone());
            }
            found[place] = vector;
        }
    }

    fn count(&self, tier: Tier, found: &[Option<Embedding>]) {
        let hits = found.iter().flatten().count();
        self.metrics.looked_up(tier, Kind::Embedding, hits as u64, (found.len() - hits) as u64);
    }
}

/// Little-endian components.
fn to_bytes(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|component| component.to_le_bytes()).collect()
}

/// A vector of `dim` finite components; anything else is not ours.
fn from_bytes(bytes: &[u8], dim: usize) -> Option<Embedding> {
    let (components, rest) = bytes.as_chunks::<4>();
    let vector: Embedding = components.iter().map(|component| f32::from_le_bytes(*component)).collect();
    (rest.is_empty() && vector.len() == dim && vector.iter().all(|component| component.is_finite())).then_some(vector)
}

impl Embedder for CachedEmbedder {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn dim(&self) -> usize {
        self.inner.dim()
    }

    fn tokens_max(&self) -> usize {
        self.inner.tokens_max()
    }

    fn count_tokens(&self, text: &str) -> usize {
        self.inner.count_tokens(text)
    }

    fn embed(&self, texts: Vec<String>, deadline: Instant) -> BoxFuture<'_, Result<Vec<Embedding>, EmbedError>> {
        if texts.len() > INTERACTIVE_TEXTS_MAX {
            return self.inner.embed(texts, deadline);
        }
        Box::pin(self.embed_cached(texts, deadline))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::fake::FakeEmbedder;
    use super::*;

    #[tokio::test]
    async fn a_repeated_text_is_a_hit_with_the_same_vector_in_its_place() {
        let metrics = CacheMetrics::new();
        let counted = || metrics.counted(Tier::Memory, Kind::Embedding);
        let fake = FakeEmbedder::new(16);
        let cached = CachedEmbedder::new(Arc::new(fake.clone()), 100, None, metrics.clone());
        let deadline = Instant::now() + Duration::from_secs(600);
        let texts = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();

        cached.embed(texts(&["a", "b"]), deadline).await.expect("embeds");
        let mixed = cached.embed(texts(&["c", "a", "d", "b"]), deadline).await.expect("embeds");
        assert_eq!(counted(), (2, 4));
        for (text, vector) in ["c", "a", "d", "b"].iter().zip(&mixed) {
            assert_eq!(vector, &fake.vector(text), "{text}");
        }

        let bulk = texts(&["a"; INTERACTIVE_TEXTS_MAX + 1]);
        assert_eq!(cached.embed(bulk, deadline).await.expect("embeds").len(), INTERACTIVE_TEXTS_MAX + 1);
        assert_eq!(counted(), (2, 4), "bulk passes by");
    }

    #[tokio::test]
    async fn a_failure_is_not_cached() {
        let cached = CachedEmbedder::new(Arc::new(FakeEmbedder::new(16)), 100, None, CacheMetrics::new());
        let past = Instant::now() - Duration::from_secs(1);
        assert_eq!(cached.embed(vec!["a".into()], past).await, Err(EmbedError::DeadlineExceeded));
        let deadline = Instant::now() + Duration::from_secs(600);
        assert!(cached.embed(vec!["a".into()], deadline).await.is_ok());
    }

    #[test]
    fn only_a_whole_vector_of_the_right_size_is_read() {
        let vector: Embedding = Arc::from([1.0, -0.5]);
        let bytes = to_bytes(&vector);
        assert_eq!(from_bytes(&bytes, 2), Some(vector));
        assert_eq!((from_bytes(&bytes, 3), from_bytes(&bytes[..7], 2), from_bytes(&[], 2)), (None, None, None));
        assert_eq!(from_bytes(&to_bytes(&[1.0, f32::NAN]), 2), None);
    }
}
