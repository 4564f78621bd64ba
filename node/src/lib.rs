//! A Susui node: metadata voter, data node, or both.

pub mod agent;
pub mod control;
pub mod copies;
pub mod error;
pub mod handoff;
pub mod health;
pub mod http;
pub mod maintenance;
pub mod metadata;
pub mod pool;
pub mod replication;
pub mod rpc;
pub mod shard;
pub mod startup;
pub mod telemetry;
pub mod vector;
