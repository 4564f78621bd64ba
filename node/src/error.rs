//! The node's error as its services return it: the kind, text, hint and register that travel in a status.

use cluster_config::error::ErrorKind;
pub use proto::convert::status::RemoteError as Error;

use crate::pool::PoolError;
use crate::replication::ReplicationError;
use crate::rpc::client::PeerError;
use crate::shard::ShardError;

impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        let kind = match error {
            PoolError::Overloaded(_) => ErrorKind::Overloaded,
            PoolError::Closed(_) => ErrorKind::Unavailable,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<PeerError> for Error {
    fn from(error: PeerError) -> Self {
        Self::new(ErrorKind::Unavailable, error.to_string())
    }
}

impl From<ShardError> for Error {
    fn from(error: ShardError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

impl From<ReplicationError> for Error {
    fn from(error: ReplicationError) -> Self {
        let mapped = Self::new(error.kind(), error.to_string());
        match error {
            ReplicationError::NotPrimary { register: Some(register) } => mapped.with_register(*register),
            _ => mapped,
        }
    }
}
