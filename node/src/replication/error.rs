//! Why a copy did not do what it was asked.

use cluster_config::error::ErrorKind;
use cluster_config::limits;
use cluster_config::shard_group::ShardGroup;

use super::messages::{HandOffRefusal, ReadRefusal, WriteRefusal};
use super::storage::StorageError;

/// Errors of [`super::CopyHandle`].
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReplicationError {
    /// This copy does not order the shard's writes. Nothing was written.
    #[error("this copy is not the primary of its shard")]
    NotPrimary {
        /// The register as this copy knows it, so that the caller need not wait for its watch.
        register: Option<Box<ShardGroup>>,
    },
    /// Fewer copies in sync than the collection demands. Nothing was written.
    #[error("{in_sync} copies are in sync, writes need {min_in_sync}")]
    NotEnoughCopies {
        /// In-sync copies now.
        in_sync: usize,
        /// Fewest with which writes are taken.
        min_in_sync: u32,
    },
    /// Too many calls wait at this copy. Nothing was written.
    #[error("too many calls wait at this shard")]
    Overloaded,
    /// The role was not passed on. The copy goes on as primary unless the text says otherwise.
    #[error("the primary role was not handed off: {0}")]
    NotHandedOff(&'static str),
    /// As [`Self::NotHandedOff`], in the words of the metadata group.
    #[error("the metadata group refused the hand-off: {0}")]
    HandOffRefused(String),
    /// The copy lost its role, closed, or its disk failed while the write was under way. Its outcome is unknown; a retry with the
    /// same operation id is safe.
    #[error("the call was interrupted, its outcome is unknown")]
    Interrupted,
    /// The deadline passed. The outcome of a write is unknown; a retry with the same operation id is safe.
    #[error("the deadline passed")]
    DeadlineExceeded,
    /// A write without operations.
    #[error("a write needs at least one operation")]
    Empty,
    /// The encoded operations are larger than a log entry may be.
    #[error("the write has {bytes} bytes, at most {} are taken", limits::ENTRY_BYTES_MAX)]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The copy is closed, or its mailbox is full of other work.
    #[error("the copy is not serving")]
    Unavailable,
    /// The disk failed while the copy was opened.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl ReplicationError {
    /// What a caller may act on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotPrimary { .. } => ErrorKind::NotPrimary,
            Self::NotEnoughCopies { .. } => ErrorKind::NotEnoughCopies,
            Self::Overloaded => ErrorKind::Overloaded,
            Self::Interrupted | Self::Unavailable => ErrorKind::Unavailable,
            Self::NotHandedOff(_) | Self::HandOffRefused(_) => ErrorKind::Conflict,
            Self::DeadlineExceeded => ErrorKind::DeadlineExceeded,
            Self::Empty => ErrorKind::InvalidArgument,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::Storage(StorageError::Full) => ErrorKind::StorageFull,
            Self::Storage(StorageError::Corrupt(_)) => ErrorKind::Corrupt,
            Self::Storage(StorageError::Io(_) | StorageError::Refused(_)) => ErrorKind::Internal,
        }
    }

    pub(super) fn from_refusal(refusal: WriteRefusal, register: Option<&ShardGroup>) -> Self {
        match refusal {
            WriteRefusal::NotPrimary => Self::NotPrimary { register: register.cloned().map(Box::new) },
            WriteRefusal::NotEnoughCopies { in_sync, min_in_sync } => Self::NotEnoughCopies { in_sync, min_in_sync },
            WriteRefusal::Overloaded => Self::Overloaded,
            WriteRefusal::Interrupted => Self::Interrupted,
        }
    }
    pub(super) fn from_read_refusal(refusal: ReadRefusal, register: Option<&ShardGroup>) -> Self {
        match refusal {
            ReadRefusal::NotPrimary => Self::NotPrimary { register: register.cloned().map(Box::new) },
            ReadRefusal::Overloaded => Self::Overloaded,
        }
    }

    pub(super) fn from_hand_off_refusal(refusal: HandOffRefusal, register: Option<&ShardGroup>) -> Self {
        match refusal {
            HandOffRefusal::NotPrimary => Self::NotPrimary { register: register.cloned().map(Box::new) },
            HandOffRefusal::UnderWay => Self::NotHandedOff("it is being handed off already"),
            HandOffRefusal::NotInSync => Self::NotHandedOff("the other copy is not in sync"),
            HandOffRefusal::TimedOut => Self::NotHandedOff("the copies did not come to rest in time"),
            HandOffRefusal::Refused(reason) => Self::HandOffRefused(reason),
            HandOffRefusal::Undecided => Self::NotHandedOff("the metadata group did not answer and may still decide"),
            HandOffRefusal::Interrupted => Self::Interrupted,
        }
    }
}
