//! The wire of a node: what it serves and how it reaches its peers.

pub mod admin_service;
mod append;
pub mod client;
pub mod deadline;
pub mod replication_service;
mod search_jobs;
pub mod search_service;
pub mod server;
pub mod transfer_service;
