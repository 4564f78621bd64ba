//! Sources to an answer: the prompt (`prompt`), the pool of LLM backends that streams text back (`pool`, over `backend`),
//! and the answer made of the sources' own sentences while no backend is configured (`extractive`).
//!
//! Promises: an answer's stream is passed on as it comes, never held back; dropping it closes the backend's connection;
//! every wait has a bound. Deliberately unknown here: HTTP requests, shards, caches.

pub mod backend;
pub mod citation;
pub mod extractive;
mod frames;
mod health;
pub mod meter;
pub mod metrics;
pub mod ollama;
pub mod openai;
pub mod pool;
pub mod prompt;
mod stream;
mod vllm;

use std::ops::Range;
use std::time::Duration;

use cluster_config::error::ErrorKind;
use futures::stream::BoxStream;

/// A chunk offered to the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// `{document_id}#{n}`.
    pub chunk_id: String,
    /// The document it is part of.
    pub document_id: String,
    /// The document's title.
    pub title: Option<String>,
    /// The chunk's text.
    pub text: String,
    /// Byte range of the chunk in the document's text.
    pub span: Range<u64>,
    /// Retrieval score, larger is better.
    pub score: f32,
    /// Page or slide that the chunk begins on, from 1, where the document has any.
    pub page: Option<u32>,
    /// Headings that the chunk stands under, outermost first.
    pub headings: Vec<String>,
}

/// A place in a source that the answer rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Citation {
    /// The number in brackets in the answer.
    pub marker: u32,
    /// As in [`Source`].
    pub chunk_id: String,
    /// As in [`Source`].
    pub document_id: String,
    /// As in [`Source`].
    pub title: Option<String>,
    /// Byte range in the document's text: the cited sentence of an extractive answer, else the whole chunk.
    pub span: Range<u64>,
    /// As in [`Source`].
    pub score: f32,
    /// As in [`Source`].
    pub page: Option<u32>,
    /// Headings that the chunk stands under, outermost first.
    pub headings: Vec<String>,
}

/// Who speaks in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions and context.
    System,
    /// The person asking.
    User,
    /// An earlier answer.
    Assistant,
}

impl Role {
    /// The word both protocols use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of the conversation sent to a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// Sampling and length. `None` leaves the choice to the backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens of the answer (`num_predict`, `max_tokens`).
    pub max_tokens: Option<u32>,
    /// Sampling temperature.
    pub temperature: Option<f32>,
    /// Sample among this many likeliest tokens. Not a parameter of the OpenAI protocol: sent to Ollama only.
    pub top_k: Option<u32>,
    /// Nucleus sampling.
    pub top_p: Option<f32>,
    /// Seed of the sampler.
    pub seed: Option<i64>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Layers on the GPU (`num_gpu`). Ollama only.
    pub gpu_layers: Option<i32>,
    /// What the answer must be, where it is not free text.
    pub format: Option<AnswerFormat>,
}

/// A form that a backend keeps its answer to.
#[derive(Clone, Debug, PartialEq)]
pub enum AnswerFormat {
    /// Any JSON.
    Json,
    /// JSON of this schema.
    Schema(serde_json::Value),
}

impl GenerateOptions {
    /// Takes from `defaults` what is left open here.
    pub fn fill_from(&mut self, defaults: &Self) {
        self.max_tokens = self.max_tokens.or(defaults.max_tokens);
        self.temperature = self.temperature.or(defaults.temperature);
        self.top_k = self.top_k.or(defaults.top_k);
        self.top_p = self.top_p.or(defaults.top_p);
        self.seed = self.seed.or(defaults.seed);
        self.gpu_layers = self.gpu_layers.or(defaults.gpu_layers);
        self.format = self.format.take().or_else(|| defaults.format.clone());
        if self.stop.is_empty() {
            self.stop.clone_from(&defaults.stop);
        }
    }
}

/// What a backend is asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateRequest {
    /// The conversation, oldest first.
    pub messages: Vec<Message>,
    /// Overrides the backend's configured model.
    pub model: Option<String>,
    /// Sampling and length.
    pub options: GenerateOptions,
    /// What should keep going to the same backend.
    pub affinity: Affinity,
    /// Who asks: tenants wait in turn.
    pub tenant: String,
}

/// Hashes of what ties a request to earlier ones; the pool's policy says which of them counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// The client's session or address; for `ip_hash`.
    pub client: Option<u64>,
    /// The retrieved set, or the conversation's beginning: what a backend may still have in its prompt cache; for `prefix_hash`.
    pub prefix: Option<u64>,
}

/// Tokens spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended the answer.
    Stop,
    /// `max_tokens` or the context ran out.
    Length,
    /// The backend withheld the rest.
    ContentFilter,
    /// A word we do not know.
    Other,
}

impl FinishReason {
    /// The OpenAI word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop | Self::Other => "stop",
            Self::Length => "length",
            Self::ContentFilter => "content_filter",
        }
    }

    /// From either protocol's word.
    pub fn parse(word: &str) -> Self {
        match word {
            "stop" => Self::Stop,
            "length" => Self::Length,
            "content_filter" => Self::ContentFilter,
            _ => Self::Other,
        }
    }
}

/// What a generation stream yields: deltas, at most one usage, then exactly one `Done`, or an error as its last item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GenerateEvent {
    /// The next piece of the answer; never empty.
    Delta(String),
    /// Tokens spent, where the backend says so.
    Usage(Usage),
    /// The end.
    Done {
        /// Why.
        finish_reason: FinishReason,
    },
}

/// Events of one generation. Cancel: dropping it closes the backend's connection, which is how both protocols are told to stop.
pub type EventStream = BoxStream<'static, Result<GenerateEvent, GenerateError>>;

/// Why there is no answer, or no more of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    /// Every backend is at its concurrency limit, or refuses for load.
    #[error("every language model backend is busy; retry in {} s", retry_after.as_secs())]
    Overloaded {
        /// When to come back.
        retry_after: Duration,
    },
    /// No backend could be reached or all are ejected.
    #[error("no language model backend is available: {reason}")]
    Unavailable {
        /// The last backend's failure.
        reason: String,
    },
    /// The request's own deadline passed.
    #[error("generation missed the deadline")]
    DeadlineExceeded,
    /// The backend refuses this request (unknown model, bad parameter); another try gives the same.
    #[error("backend {backend} refused the request: {message}")]
    Refused {
        /// HTTP status it gave.
        status: u16,
        /// Its configured name.
        backend: String,
        /// Its words.
        message: String,
    },
    /// The backend failed after the answer had begun, so that no other can take over.
    #[error("backend {backend} failed mid-answer: {message}")]
    Broken {
        /// Its configured name.
        backend: String,
        /// What happened.
        message: String,
    },
}

impl GenerateError {
    /// The kind callers act on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Overloaded { .. } => ErrorKind::Overloaded,
            Self::Unavailable { .. } | Self::Broken { .. } => ErrorKind::Unavailable,
            Self::DeadlineExceeded => ErrorKind::DeadlineExceeded,
            Self::Refused { status: 404, .. } => ErrorKind::NotFound,
            Self::Refused { status: 413, .. } => ErrorKind::TooLarge,
            Self::Refused { .. } => ErrorKind::InvalidArgument,
        }
    }
}
