//! `kill -9`, and a restart on the same data. What was written but not synced survives this: the kernel has it. Losing that, too, is
//! the business of the simulation with its disk.

use crate::cluster::Cluster;

/// Kills one node.
pub fn inject(cluster: &mut Cluster, node: usize) -> anyhow::Result<()> {
    cluster.kill_node(node)
}

/// Starts it again.
pub fn heal(cluster: &mut Cluster, node: usize) -> anyhow::Result<()> {
    cluster.start_node(node)
}

/// Kills everything.
pub fn inject_all(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.kill_all()
}

/// Starts everything, and waits until the coordinator is ready.
pub async fn heal_all(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.start_missing().await
}
