//! Embeddings of recent queries, so that a repeated question costs a hash instead of a forward pass.

use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use moka::sync::Cache;
use sha2::{Digest, Sha256};

use super::metrics::EmbedMetrics;
use super::{EmbedError, Embedder, Embedding, INTERACTIVE_TEXTS_MAX};

/// SHA-256 over model name and text: nobody can make two texts share an entry.
type Key = [u8; 32];

/// An embedder behind a cache bounded by entries. Calls of more than [`INTERACTIVE_TEXTS_MAX`] texts are ingestion: they pass
/// by, lest chunks that nobody asks for again push the queries out.
pub struct CachedEmbedder {
    inner: Arc<dyn Embedder>,
    cache: Cache<Key, Embedding>,
    metrics: EmbedMetrics,
}

impl CachedEmbedder {
    /// Keeps at most `entries` vectors of `inner`.
    pub fn new(inner: Arc<dyn Embedder>, entries: u64, metrics: EmbedMetrics) -> Self {
        Self { inner, cache: Cache::new(entries), metrics }
    }

    fn key(&self, text: &str) -> Key {
        let mut hash = Sha256::new();
        hash.update(self.inner.name().as_bytes());
        hash.update([0]); // no model name contains it, so name and text cannot trade bytes
        hash.update(text.as_bytes());
        hash.finalize().into()
    }

    async fn embed_cached(&self, texts: Vec<String>, deadline: Instant) -> Result<Vec<Embedding>, EmbedError> {
        let keys: Vec<Key> = texts.iter().map(|text| self.key(text)).collect();
        let mut found: Vec<Option<Embedding>> = keys.iter().map(|key| self.cache.get(key)).collect();
        let (places, missing): (Vec<usize>, Vec<String>) =
            texts.into_iter().enumerate().filter(|(place, _)| found[*place].is_none()).unzip();
        self.metrics.cache_misses.inc_by(missing.len() as u64);
        self.metrics.cache_hits.inc_by((keys.len() - missing.len()) as u64);
        if !missing.is_empty() {
            let embedded = self.inner.embed(missing, deadline).await?;
            for (place, vector) in places.into_iter().zip(embedded) {
                self.cache.insert(keys[place], vector.clone());
                found[place] = Some(vector);
            }
        }
        Ok(found.into_iter().flatten().collect())
    }
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
        let metrics = EmbedMetrics::new();
        let fake = FakeEmbedder::new(16);
        let cached = CachedEmbedder::new(Arc::new(fake.clone()), 100, metrics.clone());
        let deadline = Instant::now() + Duration::from_secs(600);
        let texts = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();

        cached.embed(texts(&["a", "b"]), deadline).await.expect("embeds");
        let mixed = cached.embed(texts(&["c", "a", "d", "b"]), deadline).await.expect("embeds");
        assert_eq!((metrics.cache_hits.get(), metrics.cache_misses.get()), (2, 4));
        for (text, vector) in ["c", "a", "d", "b"].iter().zip(&mixed) {
            assert_eq!(vector, &fake.vector(text), "{text}");
        }

        let bulk = texts(&["a"; INTERACTIVE_TEXTS_MAX + 1]);
        assert_eq!(cached.embed(bulk, deadline).await.expect("embeds").len(), INTERACTIVE_TEXTS_MAX + 1);
        assert_eq!(metrics.cache_hits.get() + metrics.cache_misses.get(), 6, "bulk passes by");
    }

    #[tokio::test]
    async fn a_failure_is_not_cached() {
        let cached = CachedEmbedder::new(Arc::new(FakeEmbedder::new(16)), 100, EmbedMetrics::new());
        let past = Instant::now() - Duration::from_secs(1);
        assert_eq!(cached.embed(vec!["a".into()], past).await, Err(EmbedError::DeadlineExceeded));
        let deadline = Instant::now() + Duration::from_secs(600);
        assert!(cached.embed(vec!["a".into()], deadline).await.is_ok());
    }
}
