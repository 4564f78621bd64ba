//! A node behind a bad cable: packets from and to it are lost and overtake each other, while its connections stay open.

use std::time::Duration;

use crate::cluster::Cluster;

/// Share of the packets that are lost.
const LOSS: f64 = 0.05;
/// The others take up to this long, each its own time.
const DELAY_MAX: Duration = Duration::from_millis(40);

/// Spoils everything to and from the node.
pub fn inject(cluster: &Cluster, node: usize) {
    cluster.links().roughen(node, LOSS, DELAY_MAX);
}
