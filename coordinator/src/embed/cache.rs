//! Embeddings of recent queries, so that a repeated question costs a hash instead of a forward pass: in this process' memory, and
//! in Redis where coordinators share one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use moka::sync::Cache;

use super::{EmbedError, Embedder, Embedding, Purpose};
use crate::cache::key::CacheKey;
use crate::cache::metrics::{CacheMetrics, Kind, Tier};
use crate::cache::redis::SharedCache;
use crate::cache::single_flight::{Flight, SingleFlight, half_way};

/// What the vectors in memory may come to.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most vectors.
    pub entries: u64,
    /// Most bytes of all of them, estimated.
    pub bytes: u64,
    /// Longest life of one.
    pub ttl: Duration,
}

/// An embedder behind a cache bounded in entries, bytes and time. What is ingested passes by, lest chunks that nobody asks for again
/// push the queries out, and vectors of deleted documents stay. Of equal lone texts at the same time one is embedded.
pub struct CachedEmbedder {
    inner: Arc<dyn Embedder>,
    memory: Cache<CacheKey, Embedding>,
    shared: Option<SharedCache>,
    metrics: CacheMetrics,
    flights: SingleFlight,
}

impl CachedEmbedder {
    /// Keeps vectors of `inner` in memory within `bounds`, and in the shared tier where there is one.
    pub fn new(inner: Arc<dyn Embedder>, bounds: Bounds, shared: Option<SharedCache>, metrics: CacheMetrics) -> Self {
        let entries = bounds.entries.min(bounds.bytes / entry_bytes(inner.dim()));
        let memory = Cache::builder().max_capacity(entries).time_to_live(bounds.ttl).build();
        Self { inner, memory, shared, metrics, flights: SingleFlight::default() }
    }

    async fn embed_cached(&self, texts: Vec<String>, deadline: Instant) -> Result<Vec<Embedding>, EmbedError> {
        let keys: Vec<CacheKey> = texts.iter().map(|text| CacheKey::of_embedding(self.inner.name(), text)).collect();
        let mut found: Vec<Option<Embedding>> = keys.iter().map(|key| self.memory.get(key)).collect();
        self.count(Tier::Memory, &found);
        let _turn = self.take_turn(&keys, &mut found, deadline).await;
        if let Some(shared) = &self.shared {
            self.look_in(shared, &keys, &mut found).await;
        }
        let (places, missing): (Vec<usize>, Vec<String>) =
            texts.into_iter().enumerate().filter(|(place, _)| found[*place].is_none()).unzip();
        if !missing.is_empty() {
            let embedded = self.inner.embed(missing, Purpose::Query, deadline).await?;
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

    /// Waits while another call embeds the same lone text, and then looks again; else the turn to embed it, held until dropped. Calls of
    /// several texts, which are rare, would have to wait for each other and do not. Who waited in vain embeds by itself.
    async fn take_turn(&self, keys: &[CacheKey], found: &mut [Option<Embedding>], deadline: Instant) -> Option<Flight> {
        let ([key], [place @ None]) = (keys, found) else { return None };
        let turn = self.flights.begin(key, half_way(Instant::now(), deadline)).await;
        *place = self.memory.get(key);
        turn
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

/// About what one vector takes in memory: its components, its key, the counts beside it.
const fn entry_bytes(dim: usize) -> u64 {
    (size_of::<CacheKey>() + size_of::<Embedding>() + 2 * size_of::<usize>() + dim * size_of::<f32>()) as u64
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

    fn embed(
        &self,
        texts: Vec<String>,
        purpose: Purpose,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Embedding>, EmbedError>> {
        match purpose {
            Purpose::Query => Box::pin(self.embed_cached(texts, deadline)),
            Purpose::Ingest => self.inner.embed(texts, purpose, deadline),
        }
    }
}

#[cfg(test)]
mod tests;
