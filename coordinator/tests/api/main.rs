//! The coordinator's HTTP API against nodes in memory: port 0, fake embedder, scripted language model, scratch catalog.

mod cache;
mod collections;
mod conditional;
mod consistency;
mod documents;
mod faults;
mod jobs;
mod operators;
mod query;
mod redis_server;
mod refusals;
mod search;
mod shared_cache;
mod support;
