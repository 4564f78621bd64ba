//! Load with a memory: what was acknowledged, what is unknown, and how every call went.

pub mod bulk;
pub mod collections;
pub mod documents;
pub mod fresh;
pub mod ingest;
pub mod mixed;
pub mod search;
pub mod session;
pub mod texts;
