//! Everything the voters agree on.

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster_config::cluster_state::ClusterState;
use cluster_config::ids::NodeId;

use super::command::FEATURE_LEVEL;

/// The picture that is shown to everyone, and beside it what only `apply` needs.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Shared with watchers; `apply` writes to its own copy of it.
    pub cluster: Arc<ClusterState>,
    /// The registration that gave each node its current incarnation.
    pub registrations: BTreeMap<NodeId, String>,
}

impl State {
    /// The state before the first command.
    pub fn empty(cluster_id: &str) -> Self {
        let cluster = ClusterState {
            cluster_id: cluster_id.to_owned(),
            feature_level: FEATURE_LEVEL,
            next_collection: 1,
            next_copy: 1,
            ..ClusterState::default()
        };
        Self { cluster: Arc::new(cluster), registrations: BTreeMap::new() }
    }
}
