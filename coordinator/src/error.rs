//! The crate's error: what each walk may end in. [`Error::kind`] is what callers act on; `api::error` gives it its HTTP form.

use std::time::Duration;

use cluster_config::error::{ConfigError, ErrorKind};

use crate::catalog::CatalogError;
use crate::cluster::client::NodeError;
use crate::embed::EmbedError;
use crate::generate::GenerateError;
use crate::ingest::chunk::ChunkError;
use crate::ingest::parse::ParseError;
use crate::ingest::write::WriteFailure;
use crate::retrieve::ShardCounts;
use crate::tenants::LimitMet;

/// Shorthand for the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a walk ended early.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A field of the request breaks its rule.
    #[error("{}: {}", .0.key, .0.problem)]
    Field(#[from] ConfigError),
    /// Refused for a reason with no better type.
    #[error("{message}")]
    Refused {
        /// What the caller may do.
        kind: ErrorKind,
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
    /// A node call failed.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Too few shards answered.
    #[error("{} of {} shards did not answer: {cause}", counts.total - counts.ok, counts.total)]
    Coverage {
        /// Of the missing shards: the kind of the last failure.
        kind: ErrorKind,
        /// The honest count.
        counts: ShardCounts,
        /// One shard's failure in words.
        cause: String,
    },
    /// A write that did not reach all its shards.
    #[error(transparent)]
    Write(#[from] WriteFailure),
    /// Text was not embedded.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// No answer was generated.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The upload is not a document.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The document cannot be cut.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// The tenant's own limit is met.
    #[error(transparent)]
    Limit(#[from] LimitMet),
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl Error {
    /// A refusal.
    pub fn refused(kind: ErrorKind, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused { kind, message: message.into(), hint: hint.into() }
    }

    /// A field that breaks its rule.
    pub fn field(key: impl Into<String>, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Field(ConfigError::new(key, problem, hint))
    }

    /// A bug, or a failure with no better name; the text goes to the log only.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::refused(ErrorKind::Internal, message, "")
    }

    /// What a caller may do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Field(_) => ErrorKind::InvalidArgument,
            Self::Refused { kind, .. } | Self::Coverage { kind, .. } => *kind,
            Self::Node(error) => error.kind,
            Self::Write(failure) => failure.kind,
            Self::Embed(error) => error.kind(),
            Self::Generate(error) => error.kind(),
            Self::Parse(error) => error.kind(),
            Self::Chunk(error) => error.kind(),
            Self::Limit(_) => ErrorKind::RateLimited,
            Self::Catalog(error) => error.kind(),
        }
    }

    /// What the caller may do, in words; empty where the message says it all.
    pub fn hint(&self) -> String {
        let own = match self {
            Self::Field(error) => error.hint.clone(),
            Self::Refused { hint, .. } => hint.clone(),
            Self::Node(error) => error.hint.clone(),
            Self::Coverage { .. } => {
                "retry, or lower min_coverage to accept an answer from the shards that are there".to_owned()
            }
            Self::Write(failure) => failure.hint().to_owned(),
            Self::Catalog(error) => error.hint().to_owned(),
            Self::Limit(_) => "retry after the time in Retry-After, or ask the operator for a higher limit".to_owned(),
            Self::Embed(_) | Self::Generate(_) | Self::Parse(_) | Self::Chunk(_) => String::new(),
        };
        if own.is_empty() { default_hint(self.kind()).to_owned() } else { own }
    }

    /// When to come back, for errors that say so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Generate(GenerateError::Overloaded { retry_after }) => Some(*retry_after),
            Self::Limit(limit) => Some(limit.retry_after),
            _ if matches!(self.kind(), ErrorKind::RateLimited | ErrorKind::Overloaded) => Some(Duration::from_secs(1)),
            _ if self.kind().is_retryable() => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// The field at fault, where it is one.
    pub fn field_name(&self) -> Option<&str> {
        match self {
            Self::Field(error) => Some(&error.key),
            _ => None,
        }
    }

    /// The shards' count, where the error is about them.
    pub fn counts(&self) -> Option<ShardCounts> {
        match self {
            Self::Coverage { counts, .. } => Some(*counts),
            _ => None,
        }
    }
}

fn default_hint(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidArgument => "correct the request; /openapi.json describes every field",
        ErrorKind::NotFound => "check the name; GET /api/v1/collections lists what exists",
        ErrorKind::AlreadyExists | ErrorKind::Conflict => "read the current state and decide again",
        ErrorKind::Unauthenticated | ErrorKind::PermissionDenied => "check the credentials",
        ErrorKind::TooLarge => "send less at once",
        ErrorKind::UnsupportedMedia => "send text, Markdown, HTML, CSV, JSON lines, PDF, DOCX, XLSX, PPTX or EPUB",
        ErrorKind::TokenVoid => "drop the session token and read again",
        ErrorKind::StorageFull => "free disk space, then retry",
        ErrorKind::DeadlineExceeded => "raise timeout_ms, or retry",
        ErrorKind::Internal | ErrorKind::Corrupt => "report it with the request id; the log has the details",
        ErrorKind::Cancelled => "send it again",
        ErrorKind::RateLimited
        | ErrorKind::NotPrimary
        | ErrorKind::StaleTerm
        | ErrorKind::NotEnoughCopies
        | ErrorKind::Overloaded
        | ErrorKind::Unavailable => "retry after the time in Retry-After",
    }
}
