//! The wire of a node: what it serves and how it reaches its peers.

pub mod admin_service;
pub mod client;
