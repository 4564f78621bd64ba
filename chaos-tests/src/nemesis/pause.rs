//! A process that hangs and wakes up later, believing what it believed before: SIGSTOP and SIGCONT.

use crate::cluster::Cluster;

/// Freezes the node.
pub fn inject(cluster: &mut Cluster, node: usize) -> anyhow::Result<()> {
    cluster.node(node)?.stop()
}

/// Lets it go on.
pub fn heal(cluster: &mut Cluster, node: usize) -> anyhow::Result<()> {
    cluster.node(node)?.resume()
}
