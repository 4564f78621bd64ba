//! The stateless front of a Susui cluster: HTTP in, scatter, gather, answer.

pub mod embed;
pub mod generate;
pub mod ingest;
mod sentences;
