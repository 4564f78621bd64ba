//! Where agreed states are shown to this process.

use std::sync::Arc;

use cluster_config::cluster_state::ClusterState;
use tokio::sync::watch;

use super::state::State;
use crate::rpc::client::Peers;

/// Shows states in the order of their versions. Addresses are learned first: whoever is told of a state can dial everyone in it.
#[derive(Clone)]
pub(crate) struct Feed {
    shown: watch::Sender<Arc<ClusterState>>,
    peers: Option<Peers>,
}

impl Feed {
    /// Shows the empty state of the cluster.
    pub(crate) fn new(cluster_id: &str, peers: Option<Peers>) -> Self {
        Self { shown: watch::channel(State::empty(cluster_id).cluster).0, peers }
    }

    /// Shows a state, if it is newer.
    pub(crate) fn show(&self, state: &Arc<ClusterState>) {
        self.shown.send_if_modified(|shown| {
            let is_newer = state.version > shown.version;
            if is_newer {
                if let Some(peers) = &self.peers {
                    peers.learn(state);
                }
                *shown = state.clone();
            }
            is_newer
        });
    }

    /// The last state shown.
    pub(crate) fn last(&self) -> Arc<ClusterState> {
        self.shown.borrow().clone()
    }

    /// The last state shown, and every later one.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.shown.subscribe()
    }
}
