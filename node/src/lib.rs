//! A Susui node: metadata voter, data node, or both.

pub mod agent;
pub mod control;
pub mod copies;
pub mod disk;
pub mod error;
pub mod handoff;
pub mod health;
pub mod http;
pub mod maintenance;
pub mod measure;
pub mod memory;
pub mod metadata;
pub mod pace;
pub mod pool;
pub mod replication;
pub mod rpc;
pub mod scrubbing;
pub mod shard;
pub mod startup;
pub mod telemetry;
pub mod transfer;
pub mod vector;

/// glibc's arenas keep what training, loading and compactions free, several times what a copy holds; this one gives it back, and is
/// faster. RocksDB and FAISS allocate through it, too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
