//! Load with a memory: what was acknowledged, what is unknown, and how every call went.

pub mod ingest;
pub mod search;
