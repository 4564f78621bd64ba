//! The coordinator's HTTP API against nodes in memory: port 0, fake embedder, scripted language model, scratch catalog.

#[macro_use]
#[path = "../support/database.rs"]
mod database;

mod cache;
mod catalog_pool;
mod clients;
mod collections;
mod conditional;
mod consistency;
mod deletion;
mod documents;
mod doors_tenants;
mod edits;
mod embedders;
mod faults;
mod jobs;
mod leases;
mod llm;
mod llm_pool;
mod llm_timing;
mod ollama_door;
mod openai_door;
mod operators;
mod query;
mod redis_server;
mod refusals;
mod search;
mod shared_cache;
mod shared_limits;
mod single_flight;
mod support;
mod tenants;
mod two_coordinators;
