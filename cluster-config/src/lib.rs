//! The cluster's words and pure rules: identities, the collection spec, the shard group register, routing, placement,
//! limits and both processes' configuration.
//!
//! Everything here is deterministic and free of I/O: no tokio, no prost, no files, no clock, no randomness. The node, the
//! coordinator and the command line all import it, so whatever they must agree on is written once, here.

pub mod audit;
pub mod auth_config;
pub mod cache_config;
pub mod cluster_state;
pub mod collection;
mod config_text;
pub mod coordinator_config;
pub mod cpu;
pub mod datetime;
pub mod error;
pub mod filter;
pub mod ids;
pub mod ingest_config;
pub mod limits;
pub mod llm_config;
pub mod memory;
pub mod node_config;
pub mod operation;
pub mod placement;
pub mod quorum;
pub mod routing;
pub mod search;
pub mod seqno;
pub mod shard_group;
pub mod units;
