//! The cluster's agreed state: one Raft group over the metadata voters, and every node's way to it.
//!
//! A command walks `calls` (or `control`) > `group` > openraft > `log_store` here and, through `network` and `raft_service`, on the other
//! voters > `state_machine` > `apply` > the watch that everyone follows. openraft stays inside this module.

pub mod apply;
mod calls;
pub mod codec;
pub mod command;
mod feed;
pub mod forward;
pub mod group;
pub mod log_store;
mod network;
mod operator_calls;
mod place;
pub mod raft_service;
pub mod service;
mod snapshot;
pub mod state;
pub mod state_machine;
mod store;
pub mod types;

use std::io;
use std::path::Path;
use std::sync::Arc;

use cluster_config::cluster_state::ClusterState;
use cluster_config::ids::NodeId;
use tokio::sync::watch;

pub use forward::Route;
pub use group::{Metadata, MetadataError};

/// What one voter keeps on disk, opened.
pub struct Storage {
    /// The Raft log.
    pub log: log_store::LogStore,
    /// The agreed state.
    pub machine: state_machine::StateMachine,
    /// The agreed state as applied so far.
    pub state: watch::Receiver<Arc<ClusterState>>,
}

impl Storage {
    /// Opens or creates the database in `dir`. `checked` verifies the invariants after each command. Errors: a directory of another
    /// cluster or node, damage, I/O.
    pub fn open(dir: &Path, cluster_id: &str, node: NodeId, checked: bool) -> io::Result<Self> {
        Self::open_with(dir, cluster_id, node, checked, feed::Feed::new(cluster_id, None))
    }

    fn open_with(dir: &Path, cluster_id: &str, node: NodeId, checked: bool, feed: feed::Feed) -> io::Result<Self> {
        let store = store::Store::open(dir, cluster_id, node)?;
        let state = feed.subscribe();
        let machine = state_machine::StateMachine::open(store.clone(), cluster_id, feed, checked)?;
        Ok(Self { log: log_store::LogStore::open(store)?, machine, state })
    }
}
