//! An embedder without a model: words hashed into a vector. Deterministic and instant, so tests and an offline first start
//! need no file; texts that share words come out close, which is all it knows of meaning.

use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use unicode_segmentation::UnicodeSegmentation;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{EmbedError, Embedder, Embedding, Purpose, normalize};

/// Components each word touches. More than one, so that two words rarely coincide wholly.
const COMPONENTS_PER_WORD: u64 = 4;
/// `[CLS]` and `[SEP]`, so that token budgets behave as with the real model.
const SPECIAL_TOKENS: usize = 2;

/// Bag of hashed words. See the module text.
#[derive(Clone, Debug)]
pub struct FakeEmbedder {
    name: String,
    dim: usize,
    tokens_max: usize,
}

impl FakeEmbedder {
    /// `dim` components (at least 1); counts words as tokens and reads the first 254 of them.
    pub fn new(dim: usize) -> Self {
        Self { name: format!("fake-hash-{dim}"), dim: dim.max(1), tokens_max: 256 }
    }

    /// The vector of one text.
    pub fn vector(&self, text: &str) -> Embedding {
        let mut vector = vec![0.0; self.dim];
        for word in text.unicode_words().take(self.tokens_max - SPECIAL_TOKENS) {
            let word = word.to_lowercase();
            for seed in 0..COMPONENTS_PER_WORD {
                let hash = xxh3_64_with_seed(word.as_bytes(), seed);
                let sign = if hash >> 63 == 0 { 1.0 } else { -1.0 };
                vector[(hash % self.dim as u64) as usize] += sign;
            }
        }
        if vector.iter().all(|x| *x == 0.0) {
            vector[0] = 1.0; // no words: still a unit vector, as the trait promises
        }
        normalize(&mut vector);
        Arc::from(vector)
    }
}

impl Embedder for FakeEmbedder {
    fn name(&self) -> &str {
        &self.name
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    fn count_tokens(&self, text: &str) -> usize {
        text.unicode_words().count() + SPECIAL_TOKENS
    }

    fn embed(
        &self,
        texts: Vec<String>,
        _purpose: Purpose,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Embedding>, EmbedError>> {
        Box::pin(async move {
            if Instant::now() >= deadline {
                return Err(EmbedError::DeadlineExceeded);
            }
            Ok(texts.iter().map(|text| self.vector(text)).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(x, y)| x * y).sum()
    }

    #[test]
    fn shared_words_are_close_and_every_vector_is_a_unit() {
        let fake = FakeEmbedder::new(256);
        let (a, b, c) = (
            fake.vector("the wing in supersonic flow"),
            fake.vector("Supersonic flow, wing"),
            fake.vector("butter and jam"),
        );
        assert!(dot(&a, &b) > 0.6 && dot(&a, &b) > dot(&a, &c) + 0.4, "{} {}", dot(&a, &b), dot(&a, &c));
        for vector in [a, b, c, fake.vector(""), fake.vector("?!")] {
            assert!((dot(&vector, &vector) - 1.0).abs() < 1e-5);
        }
        assert_eq!(fake.vector("same"), fake.vector("same"));
    }
}
