//! Starts the real binaries, hurts them, and checks from outside that every promise held.
//!
//! Nothing here links the node or the coordinator: a cluster is processes, files and HTTP, as a user has it.

pub mod chaos;
pub mod checker;
pub mod claims;
pub mod client;
pub mod cluster;
pub mod data;
pub mod dev;
pub mod drill;
pub mod front;
pub mod history;
pub mod hostile;
pub mod links;
pub mod llm;
pub mod loaded;
pub mod metrics;
pub mod model;
pub mod nemesis;
pub mod nginx;
pub mod observer;
pub mod packets;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod redis;
pub mod susui;
pub mod tmpfs;
pub mod vectors;
pub mod verdict;
pub mod wait;
pub mod workload;
