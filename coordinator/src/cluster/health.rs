//! A small memory of failures: a node that just refused or broke a connection is asked last, not never.
//!
//! It only orders choices. The cluster state's liveness is the other half; neither alone decides that a shard cannot be read.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use cluster_config::ids::NodeId;
use parking_lot::Mutex;

/// How long a failure counts. Longer than a reconnect, shorter than the node timeout, after which the state knows.
const FAILURE_REMEMBERED: Duration = Duration::from_secs(2);

/// Which nodes failed lately. Bounded by the number of nodes.
#[derive(Debug, Default)]
pub struct FailureMemory {
    failed_at: Mutex<HashMap<NodeId, Instant>>,
}

impl FailureMemory {
    /// Notes a broken or refused connection, or a node that kept silent.
    pub fn note_failure(&self, node: NodeId) {
        self.failed_at.lock().insert(node, Instant::now());
    }

    /// Notes a good answer.
    pub fn note_success(&self, node: NodeId) {
        self.failed_at.lock().remove(&node);
    }

    /// Nodes to be tried last.
    pub fn suspects(&self) -> Vec<NodeId> {
        let mut failed_at = self.failed_at.lock();
        failed_at.retain(|_, at| at.elapsed() < FAILURE_REMEMBERED);
        failed_at.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_answer_clears_the_name() {
        let memory = FailureMemory::default();
        memory.note_failure(NodeId(1));
        memory.note_failure(NodeId(2));
        memory.note_success(NodeId(1));
        assert_eq!(memory.suspects(), vec![NodeId(2)]);
    }
}
