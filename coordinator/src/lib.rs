//! The stateless front of a Susui cluster: HTTP in, scatter, gather, answer.

pub mod aliases;
pub mod answer;
pub mod api;
pub mod cache;
pub mod catalog;
pub mod clock;
pub mod cluster;
pub mod embed;
pub mod error;
pub mod generate;
pub mod ingest;
pub mod retrieve;
mod sentences;
pub mod services;
pub mod startup;
pub mod telemetry;
pub mod tenants;

/// A search makes some hundreds of small allocations on several threads; with glibc's allocator they were a tenth of its time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
