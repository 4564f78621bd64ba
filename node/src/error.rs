//! The node's error as its services return it: a kind, a text for people, and what to do.

use cluster_config::error::ErrorKind;
use cluster_config::shard_group::ShardGroup;

use crate::pool::PoolError;

/// An error that leaves the node. Texts name what the caller asked for, never internals.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: String,
    register: Option<Box<ShardGroup>>,
}

impl Error {
    /// An error of that kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: String::new(), register: None }
    }

    /// Adds what to do.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Adds the current register, so that the caller need not wait for its watch.
    pub fn with_register(mut self, register: ShardGroup) -> Self {
        self.register = Some(Box::new(register));
        self
    }

    /// What a caller may act on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What to do; may be empty.
    pub fn hint(&self) -> &str {
        &self.hint
    }

    /// The register that came with `NotPrimary` or `StaleTerm`.
    pub fn register(&self) -> Option<&ShardGroup> {
        self.register.as_deref()
    }
}

impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        let kind = match error {
            PoolError::Overloaded(_) => ErrorKind::Overloaded,
            PoolError::Closed(_) => ErrorKind::Unavailable,
        };
        Self::new(kind, error.to_string())
    }
}
