//! One language model server, as the pool sees it.

use futures::future::BoxFuture;
use serde::Serialize;

use super::{EventStream, GenerateRequest};

/// A server that streams text for a prompt. Implementations speak one wire protocol each and keep no state of the pool's:
/// permits, health and timeouts between tokens are the pool's business.
pub trait Backend: Send + Sync {
    /// Its configured name, used in metrics and errors.
    fn name(&self) -> &str;

    /// Where it is asked.
    fn url(&self) -> &str;

    /// The model it runs where the request names none.
    fn model(&self) -> &str;

    /// Sends the request and returns once the response's head is there. Events follow as the server writes them.
    ///
    /// Errors: see [`BackendError`]. In the stream, an error is the last item.
    /// Cancel: dropping the future or the stream closes the connection.
    fn generate(&self, request: GenerateRequest) -> BoxFuture<'_, Result<EventStream, BackendError>>;

    /// A cheap question that only a working server answers, asked every few seconds; with what it says of its load.
    fn probe(&self) -> BoxFuture<'_, Result<Report, BackendError>>;
}

/// Who writes: one backend as every coordinator that is configured alike sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Identity {
    /// Its configured name.
    pub name: String,
    /// Where it is asked.
    pub url: String,
    /// The model it runs where the request names none.
    pub model: String,
}

impl Identity {
    /// That of `backend`.
    pub fn of(backend: &dyn Backend) -> Self {
        Self { name: backend.name().to_owned(), url: backend.url().to_owned(), model: backend.model().to_owned() }
    }
}

/// What a server says of itself. `None` where its protocol does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Requests running or waiting there, whoever sent them (vLLM).
    pub requests: Option<u32>,
    /// Share of its KV cache in use, 0 to 1 (vLLM).
    pub kv_used: Option<f32>,
    /// Share of the model that lies in GPU memory, 0 (not loaded, or on the CPU) to 1 (Ollama).
    pub on_gpu: Option<f32>,
}

/// Why a backend gave no stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// No connection: nothing was asked, another backend may do.
    #[error("connection failed: {0}")]
    Connect(String),
    /// It answers that it is busy (429, 503).
    #[error("busy (status {status})")]
    Busy {
        /// HTTP status.
        status: u16,
        /// Its `Retry-After`, seconds.
        retry_after_s: Option<u64>,
    },
    /// It failed (5xx, or bytes outside the protocol).
    #[error("failed: {0}")]
    Failed(String),
    /// It refuses the request itself (other 4xx).
    #[error("refused (status {status}): {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words, shortened.
        message: String,
    },
}
