//! The operator's and first user's command line: everything it does goes through the public HTTP API, but for `dev`, which
//! starts and stops the processes themselves.
//!
//! `cli` names the verbs; each family has its own module. `client` is the one HTTP client, `error` the one table of exit codes,
//! `output` the one place that decides how things are printed.

pub mod access;
pub mod alias;
pub mod ask;
pub mod backend;
pub mod bench;
pub mod check_config;
pub mod cli;
pub mod client;
pub mod collection;
pub mod dev;
pub mod doctor;
pub mod drill;
pub mod error;
pub mod eval;
pub mod ingest;
pub mod jobs;
pub mod jsonl;
pub mod node;
pub mod npy;
pub mod output;
pub mod search;
pub mod settled;
pub mod shard;
pub mod sse;
pub mod status;
pub mod wire;
