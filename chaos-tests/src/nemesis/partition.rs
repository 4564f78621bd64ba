//! Networks that are cut: see [`Topology`] for who then hears whom.

use super::Kind;
use crate::cluster::Cluster;
use crate::links::Topology;

/// The cut a kind of fault means.
///
/// # Panics
/// On kinds that cut nothing.
pub fn topology(kind: Kind, node: usize) -> Topology {
    match kind {
        Kind::Isolate => Topology::Isolate(node),
        Kind::Mute => Topology::Mute(node),
        Kind::Deaf => Topology::Deaf(node),
        Kind::Bridge => Topology::Bridge(node),
        Kind::CoordinatorCut => Topology::CoordinatorFrom(node),
        Kind::PeersCut => Topology::PeersFrom(node),
        Kind::Crash
        | Kind::Pause
        | Kind::SlowLink
        | Kind::LossyLink
        | Kind::Reset
        | Kind::Drain
        | Kind::FullDisk
        | Kind::CrashAll => unreachable!("{kind} cuts no network"),
    }
}

/// Cuts.
pub fn inject(cluster: &Cluster, topology: &Topology) {
    cluster.links().cut(topology);
}

/// Lets everything through again; what was held arrives late.
pub fn heal(cluster: &Cluster) {
    cluster.links().heal();
}
