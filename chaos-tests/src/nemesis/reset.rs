//! Connections that break while both ends are well, as when a router between them forgets what it knew.

use crate::cluster::Cluster;

/// Resets every connection from and to the node. There is nothing to heal: the ends connect again.
pub fn inject(cluster: &Cluster, node: usize) {
    cluster.links().reset(node);
}
