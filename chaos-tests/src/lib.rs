//! Starts the real binaries, hurts them, and checks from outside that every promise held.
//!
//! Nothing here links the node or the coordinator: a cluster is processes, files and HTTP, as a user has it.

pub mod checker;
pub mod client;
pub mod cluster;
pub mod data;
pub mod dev;
pub mod model;
pub mod ports;
pub mod process;
pub mod susui;
pub mod vectors;
pub mod wait;
pub mod workload;
