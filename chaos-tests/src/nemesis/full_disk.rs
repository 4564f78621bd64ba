//! A node whose disk has not one byte left: what it cannot write it must not acknowledge.

use anyhow::Context;

use crate::cluster::Cluster;

/// Fills the small disk.
pub fn inject(cluster: &Cluster) -> anyhow::Result<()> {
    let (_, disk) = cluster.small_disk().context("no node has a small disk")?;
    disk.fill().map(drop)
}

/// Gives the space back and starts the node again, as the manual tells the operator to. A node that ended by itself was entitled to.
pub fn heal(cluster: &mut Cluster, node: usize) -> anyhow::Result<()> {
    cluster.small_disk().context("no node has a small disk")?.1.free()?;
    cluster.kill_node(node)?;
    cluster.start_node(node)
}
