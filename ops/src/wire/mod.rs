//! The shapes of the HTTP API as this program reads and writes them (design: HTTP API, port 8000). Answers are read
//! tolerantly: fields that a command does not need are not named, and what may be absent has a default.

pub mod cluster;
pub mod collection;
pub mod search;
pub mod write;
