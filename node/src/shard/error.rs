//! What a shard's calls fail with.

use cluster_config::error::{ConfigError, ErrorKind};
use cluster_config::ids::Lineage;

use crate::replication::storage::StorageError;
use crate::vector::VectorError;

/// Why a call on a shard failed.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The request does not fit the collection; names the field.
    #[error(transparent)]
    Invalid(#[from] ConfigError),
    /// The directory holds a copy of something else.
    #[error("{dir} holds another copy: {difference}")]
    Identity {
        /// The directory.
        dir: String,
        /// What differs.
        difference: String,
    },
    /// The copy is what was asked for but for its lineage: a recovery with data loss began a newer one.
    #[error("the copy is of lineage {stored}, asked for {asked}")]
    OlderLineage {
        /// As stored.
        stored: Lineage,
        /// As asked for.
        asked: Lineage,
    },
    /// The copy served before, and its files are gone.
    #[error("{dir} is empty, but the copy that belongs there has served: its files are lost")]
    Lost {
        /// The directory.
        dir: String,
    },
    /// The disk failed, or failed earlier and the copy must be reopened.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The vector engine failed, or the search was cancelled.
    #[error(transparent)]
    Vector(#[from] VectorError),
    /// There is nothing to do the asked work on.
    #[error("not now: {0}")]
    Conflict(String),
}

impl ShardError {
    /// As a caller may act on it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ShardError::Invalid(_) => ErrorKind::InvalidArgument,
            ShardError::Lost { .. } => ErrorKind::NotFound,
            ShardError::Identity { .. } | ShardError::OlderLineage { .. } | ShardError::Conflict(_) => {
                ErrorKind::Conflict
            }
            ShardError::Storage(StorageError::Full) => ErrorKind::StorageFull,
            ShardError::Storage(StorageError::Corrupt(_)) => ErrorKind::Corrupt,
            ShardError::Storage(StorageError::Io(_)) => ErrorKind::Unavailable,
            ShardError::Storage(StorageError::Refused(_)) => ErrorKind::Internal,
            ShardError::Vector(error) => error.kind(),
        }
    }
}
