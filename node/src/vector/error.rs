//! What can go wrong with vectors.

use std::io;

use cluster_config::error::ErrorKind;

/// A failed vector operation.
#[derive(Debug, thiserror::Error)]
pub enum VectorError {
    /// A wrong dimension, a value that is not finite, a sample too small to train on.
    #[error("{0}")]
    InvalidArgument(String),
    /// The caller went away.
    #[error("cancelled")]
    Cancelled,
    /// The deadline passed.
    #[error("deadline exceeded")]
    DeadlineExceeded,
    /// Stored bytes fail their check.
    #[error("corrupt {what}: {problem}")]
    Corrupt {
        /// Which bytes.
        what: &'static str,
        /// How they fail.
        problem: String,
    },
    /// FAISS refused or failed; its own words.
    #[error("faiss: {0}")]
    Faiss(String),
    /// The file or stream underneath failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
}

impl VectorError {
    pub(super) fn corrupt(what: &'static str, problem: impl Into<String>) -> Self {
        Self::Corrupt { what, problem: problem.into() }
    }

    /// What a caller may do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidArgument(_) => ErrorKind::InvalidArgument,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::DeadlineExceeded => ErrorKind::DeadlineExceeded,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => ErrorKind::StorageFull,
            Self::Faiss(_) | Self::Io { .. } => ErrorKind::Internal,
        }
    }
}

/// Names what was being done when an I/O error came up.
pub(super) trait IoContext<T> {
    fn during(self, what: &'static str) -> Result<T, VectorError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn during(self, what: &'static str) -> Result<T, VectorError> {
        self.map_err(|source| VectorError::Io { what, source })
    }
}
