//! A Susui node: metadata voter, data node, or both.

pub mod agent;
pub mod control;
pub mod error;
pub mod metadata;
pub mod pool;
pub mod replication;
pub mod rpc;
pub mod shard;
pub mod vector;
