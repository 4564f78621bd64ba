//! Keeping the copies of a shard equal: primary-backup with a term, an in-order log and an in-sync set held in Raft.
//!
//! `core` holds the protocol as a pure state machine, `copy` the task that runs it, `handle` what the rest of the node sees. Which
//! file keeps which rule stands in this crate's DESIGN.md. Replication knows nothing of what entries mean, of RocksDB, of gRPC
//! and of Raft: it meets them as [`storage::CopyStorage`], [`transport::ReplicationTransport`] and [`transport::RegisterClient`].

pub mod copy;
pub mod core;
pub mod error;
mod follower;
mod hand_off;
mod handle;
mod log_view;
pub mod messages;
#[cfg(test)]
mod model;
mod mutant;
pub mod open;
pub mod pool;
mod primary;
mod proposer;
mod recent;
mod retention;
pub mod storage;
#[cfg(test)]
mod stories;
mod strong_reads;
mod tracker;
pub mod transport;

pub use self::copy::{CopyOptions, DRAIN_TIMEOUT};
pub use self::core::Timing;
pub use self::error::ReplicationError;
pub use self::handle::{CopyHandle, ReplicationReport, WriteOutcome};
pub use self::messages::{
    Append, AppendOutcome, AppendRefusal, AppendResult, Change, Confirm, Proposal, ProposalOutcome,
};
pub use self::mutant::break_rule;
pub use self::pool::StoragePool;
pub use self::retention::Retention;
pub use self::transport::{RegisterClient, ReplicationTransport, TransportError};
