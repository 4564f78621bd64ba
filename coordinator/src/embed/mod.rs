//! Text to vector. One trait for what the walks need; behind it a model on a bounded pool of threads (`minilm` over
//! `batch`), a cache in front of either (`cache`), and a stand-in without a model (`fake`).
//!
//! Promises: every vector of one embedder has [`Embedder::dim`] components and unit length; the same text gives the same
//! vector up to rounding, alone or in company; work is bounded (queue, batch, cache) and given up when nobody waits for it.
//! Deliberately unknown here: collections, chunks, HTTP.

pub mod absent;
pub mod batch;
pub mod bert;
pub mod cache;
pub mod fake;
pub mod metrics;
pub mod minilm;
pub mod model;

use std::sync::Arc;
use std::time::Instant;

use cluster_config::coordinator_config::EmbedderConfig;
use cluster_config::error::ErrorKind;
use cluster_config::limits;
use futures::future::BoxFuture;

use metrics::EmbedMetrics;
use model::ModelError;

/// Components of the stand-in's vectors: those of MiniLM, so that one collection spec fits both.
const FAKE_DIM: usize = 384;

/// The part of a text that can matter: the tokenizer reads all it is given, however little is kept.
pub fn head(text: &str) -> &str {
    &text[..text.floor_char_boundary(limits::EMBED_TEXT_BYTES_MAX)]
}

/// One embedding, `[dim]`, unit length. Shared, because the cache and a micro-batch hand the same one to several callers.
pub type Embedding = Arc<[f32]>;

/// What texts are embedded for. The vectors are the same; their turn and what is kept of them differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Somebody waits for an answer: it overtakes ingestion, and is kept for whoever asks the same.
    Query,
    /// A document's chunks, however few: behind queries, and kept nowhere.
    Ingest,
}

/// A model that turns text into vectors.
pub trait Embedder: Send + Sync {
    /// Stable name of the model, part of cache keys and of a collection's spec: two embedders with one name are interchangeable.
    fn name(&self) -> &str;

    /// Components of every vector.
    fn dim(&self) -> usize;

    /// Most tokens of one text, special tokens included, that reach the model; what is beyond is not embedded.
    fn tokens_max(&self) -> usize;

    /// Tokens of `text` as the model counts them, special tokens included, before truncation. Runs on the caller's thread
    /// (microseconds per sentence); for whole documents call it off the reactor.
    fn count_tokens(&self, text: &str) -> usize;

    /// Embeds `texts`, in order, for `purpose`.
    ///
    /// Errors: `Overloaded` (queue full), `DeadlineExceeded`, `TooLarge` (more than `limits::EMBED_TEXTS_MAX` texts),
    /// `Model` (the model failed), `Closed`.
    /// Cancel: dropping the future drops the work that has not begun.
    fn embed(
        &self,
        texts: Vec<String>,
        purpose: Purpose,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Embedding>, EmbedError>>;
}

/// Why texts were not embedded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// The queue before the model is full.
    #[error("the embedding queue is full ({queued_max} texts)")]
    Overloaded {
        /// The bound that was met.
        queued_max: usize,
    },
    /// The deadline passed before the vectors were there.
    #[error("embedding missed the deadline")]
    DeadlineExceeded,
    /// More texts in one call than the queue could ever take.
    #[error("{texts} texts in one call, at most {texts_max}")]
    TooLarge {
        /// As asked.
        texts: usize,
        /// `limits::EMBED_TEXTS_MAX`.
        texts_max: usize,
    },
    /// The model or its tokenizer failed on this input.
    #[error("embedding model failed: {0}")]
    Model(String),
    /// The coordinator runs without a model.
    #[error("this coordinator has no embedding model")]
    Absent,
    /// The embedder is shutting down.
    #[error("the embedder is closed")]
    Closed,
}

impl EmbedError {
    /// The kind callers act on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Overloaded { .. } => ErrorKind::Overloaded,
            Self::DeadlineExceeded => ErrorKind::DeadlineExceeded,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::Model(_) => ErrorKind::Internal,
            Self::Absent => ErrorKind::InvalidArgument,
            Self::Closed => ErrorKind::Unavailable,
        }
    }
}

/// The configured embedder. Name `fake` gives the stand-in without a model, `none` gives none.
///
/// Blocking (reads the model's files). Errors: as [`ModelError`] says.
pub fn open(config: &EmbedderConfig, metrics: &EmbedMetrics) -> Result<Arc<dyn Embedder>, ModelError> {
    if config.name == absent::NAME {
        return Ok(Arc::new(absent::AbsentEmbedder));
    }
    let threads = config.threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    match config.name.as_str() {
        model::ALL_MINILM_L6_V2 => {
            let model = minilm::MiniLm::open(&config.model_dir, threads, config.batch_max, metrics.clone())?;
            Ok(Arc::new(model))
        }
        "fake" => Ok(Arc::new(fake::FakeEmbedder::new(FAKE_DIM))),
        name => Err(ModelError::UnknownName { name: name.to_owned() }),
    }
}

/// Scales to unit length. A zero vector (no token left) stays zero instead of becoming NaN.
pub(crate) fn normalize(vector: &mut [f32]) {
    let norm = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if norm > 0.0 {
        let scale = (1.0 / norm) as f32;
        vector.iter_mut().for_each(|x| *x *= scale);
    }
}
