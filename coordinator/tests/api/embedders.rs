//! The fake embedder behind something that a test wants to happen before each call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use cluster_config::limits;
use coordinator::embed::fake::FakeEmbedder;
use coordinator::embed::{EmbedError, Embedder, Embedding, Purpose};
use futures::FutureExt;
use futures::future::BoxFuture;
use reqwest::StatusCode;
use serde_json::json;
use tokio::sync::Notify;

use super::support::{Coordinator, DIM, Setup};

/// What happens before each call of the fake embedder.
pub(crate) trait Before: Send + Sync {
    fn before(&self, texts: &[String], purpose: Purpose) -> BoxFuture<'_, Result<(), EmbedError>>;

    /// A text is about to be counted.
    fn counted(&self, _: &str) {}
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
        self.before.counted(text);
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

/// Notes the longest text that was counted.
#[derive(Default)]
struct Longest(AtomicUsize);

impl Before for Longest {
    fn before(&self, _: &[String], _: Purpose) -> BoxFuture<'_, Result<(), EmbedError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn counted(&self, text: &str) {
        self.0.fetch_max(text.len(), Ordering::SeqCst);
    }
}

#[tokio::test]
async fn of_a_doors_text_only_what_may_reach_the_model_is_counted() {
    let embedder = Behind::new(Longest::default());
    let c = Coordinator::start(Setup { embedder: embedder.clone(), workers: 0, ..Setup::default() }).await;
    let longest = || embedder.before.0.load(Ordering::SeqCst);
    let many = json!({"model": "fake-hash-16", "input": vec!["word"; limits::EMBED_TEXTS_MAX + 1]});
    assert_eq!(c.post("/api/embed", many).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(longest(), 0, "what is refused is not counted");
    // Two bytes a letter, so that the cut falls into one.
    let long = format!("x{}", "ä".repeat(limits::EMBED_TEXT_BYTES_MAX));
    c.post("/api/embed", json!({"model": "fake-hash-16", "input": ["word", long]})).await.ok();
    assert_eq!(longest(), limits::EMBED_TEXT_BYTES_MAX - 1);
    c.stop().await;
}

/// Panics over some texts.
struct Panics;

impl Before for Panics {
    fn before(&self, texts: &[String], _: Purpose) -> BoxFuture<'_, Result<(), EmbedError>> {
        assert!(!texts.iter().any(|text| text.contains("poison")), "a bug, as this test wants it");
        std::future::ready(Ok(())).boxed()
    }
}

#[tokio::test]
async fn a_panic_over_a_document_is_that_documents_failure() {
    let c = Coordinator::start(Setup { embedder: Behind::new(Panics), workers: 1, ..Setup::default() }).await;
    c.create_texts("t").await;
    let failed = c.upload("t", "bad", "", "poison").await;
    assert_eq!((&failed["status"], &failed["error"]["type"]), (&json!("failed"), &json!("internal")), "{failed}");
    assert_eq!(c.upload("t", "good", "", "words").await["status"], "done", "the only worker lives");
    c.stop().await;
}
