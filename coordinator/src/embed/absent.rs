//! No embedder: for clusters whose callers bring their own vectors.

use std::time::Instant;

use futures::future::BoxFuture;

use super::{EmbedError, Embedder, Embedding, Purpose};

/// The name under which a configuration asks for it.
pub const NAME: &str = "none";

/// Refuses every text. Collections cannot name it, so calls end at the check of the collection.
#[derive(Clone, Copy, Debug)]
pub struct AbsentEmbedder;

impl Embedder for AbsentEmbedder {
    fn name(&self) -> &str {
        NAME
    }

    fn dim(&self) -> usize {
        0
    }

    fn tokens_max(&self) -> usize {
        0
    }

    fn count_tokens(&self, _text: &str) -> usize {
        0
    }

    fn embed(
        &self,
        _texts: Vec<String>,
        _purpose: Purpose,
        _deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Embedding>, EmbedError>> {
        Box::pin(async { Err(EmbedError::Absent) })
    }
}
