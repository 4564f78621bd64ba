//! A node whose links are late and narrow, in both directions: alive, but behind.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::links::End;
use crate::proxy::Flow;

const SLOW: Flow = Flow::Slow { delay: Duration::from_millis(80), bytes_per_second: 256 * 1024 };

/// Slows everything to and from the node.
pub fn inject(cluster: &Cluster, node: usize) {
    let links = cluster.links();
    for other in std::iter::once(End::Coordinator).chain((1..=cluster.node_count()).map(End::Node)) {
        if other != End::Node(node) {
            links.set(End::Node(node), other, SLOW);
            links.set(other, End::Node(node), SLOW);
        }
    }
}
