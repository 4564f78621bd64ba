//! The fake embedder behind something that a test wants to happen before each call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use coordinator::embed::fake::FakeEmbedder;
use coordinator::embed::{EmbedError, Embedder, Embedding, Purpose};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Notify;

use super::support::DIM;

/// What happens before each call of the fake embedder.
pub(crate) trait Before: Send + Sync {
    fn before(&self, texts: &[String], purpose: Purpose) -> BoxFuture<'_, Result<(), EmbedError>>;
}

/// The fake embedder behind it.
pub(crate) struct Behind<B> {
    inner: FakeEmbedder,
    pub(crate) before: B,
}

impl<B: Before> Behind<B> {
    pub(crate) fn new(before: B) -> Arc<Self> {
        Arc::new(Self { inner: FakeEmbedder::new(DIM), before })
    }
}

impl<B: Before> Embedder for Behind<B> {
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
        async move {
            self.before.before(&texts, purpose).await?;
            self.inner.embed(texts, purpose, deadline).await
        }
        .boxed()
    }
}

/// Stops at the first text until it is let go, and says that it was reached.
#[derive(Default)]
pub(crate) struct Gate {
    pub(crate) is_open: AtomicBool,
    pub(crate) reached: Notify,
}

impl Before for Gate {
    fn before(&self, _: &[String], _: Purpose) -> BoxFuture<'_, Result<(), EmbedError>> {
        async move {
            if !self.is_open.load(Ordering::SeqCst) {
                self.reached.notify_one();
                std::future::pending::<()>().await;
            }
            Ok(())
        }
        .boxed()
    }
}

/// Counts the questions among the texts.
#[derive(Default)]
pub(crate) struct Questions(pub(crate) AtomicUsize);

impl Before for Questions {
    fn before(&self, texts: &[String], purpose: Purpose) -> BoxFuture<'_, Result<(), EmbedError>> {
        if purpose == Purpose::Query {
            self.0.fetch_add(texts.len(), Ordering::SeqCst);
        }
        std::future::ready(Ok(())).boxed()
    }
}
