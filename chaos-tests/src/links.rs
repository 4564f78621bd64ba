//! The network of a cluster: one [`Proxy`] for each directed pair of processes that dial each other, and the ways to hurt it.
//!
//! A cut is between *ends*, as packets see it: what travels from A to B uses A's connections to B one way and B's connections to A
//! the other way.

use std::collections::BTreeMap;
use std::fmt;

use crate::proxy::{Flow, Proxy, Way};

/// A process on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The coordinator; it dials, nobody dials it.
    Coordinator,
    /// A node, from 1.
    Node(usize),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => f.write_str("coordinator"),
            Self::Node(node) => write!(f, "node {node}"),
        }
    }
}

/// Who cannot hear whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// The node and all others, the coordinator too, hear nothing of each other.
    Isolate(usize),
    /// The others hear nothing of the node; it hears them.
    Mute(usize),
    /// The node hears nothing; the others hear it.
    Deaf(usize),
    /// Nobody but this node connects the others: they hear it, and it them, but not each other. The coordinator hears all.
    Bridge(usize),
    /// The coordinator and the node hear nothing of each other.
    CoordinatorFrom(usize),
    /// The node and all other nodes hear nothing of each other. The coordinator hears all: it goes on asking whom nobody else hears.
    PeersFrom(usize),
}

impl Topology {
    /// The directed pairs that are cut.
    pub fn cuts(&self, nodes: usize) -> Vec<(End, End)> {
        let ends: Vec<End> = std::iter::once(End::Coordinator).chain((1..=nodes).map(End::Node)).collect();
        let is_cut = |from: End, to: End| match self {
            Self::Isolate(node) => from == End::Node(*node) || to == End::Node(*node),
            Self::Mute(node) => from == End::Node(*node),
            Self::Deaf(node) => to == End::Node(*node),
            Self::Bridge(bridge) => {
                let is_outer = |end| matches!(end, End::Node(node) if node != *bridge);
                is_outer(from) && is_outer(to)
            }
            Self::CoordinatorFrom(node) => {
                let pair = [End::Coordinator, End::Node(*node)];
                pair.contains(&from) && pair.contains(&to)
            }
            Self::PeersFrom(node) => {
                let pair = [from, to];
                pair.contains(&End::Node(*node)) && !pair.contains(&End::Coordinator)
            }
        };
        let pairs = ends.iter().flat_map(|from| ends.iter().map(move |to| (*from, *to)));
        pairs.filter(|(from, to)| from != to && is_cut(*from, *to)).collect()
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Isolate(node) => write!(f, "node {node} cut off from all"),
            Self::Mute(node) => write!(f, "nobody hears node {node}"),
            Self::Deaf(node) => write!(f, "node {node} hears nobody"),
            Self::Bridge(node) => write!(f, "the others meet only over node {node}"),
            Self::CoordinatorFrom(node) => write!(f, "coordinator and node {node} cut off from each other"),
            Self::PeersFrom(node) => write!(f, "node {node} cut off from all other nodes"),
        }
    }
}

/// All links of a cluster, or none where it runs without proxies.
#[derive(Debug, Default)]
pub struct Links {
    nodes: usize,
    proxies: BTreeMap<(End, usize), Proxy>,
}

impl Links {
    /// One link from every process to every node. `ports` are the links' own, `targets` those of the nodes.
    pub async fn start(targets: &[u16], mut ports: impl Iterator<Item = u16>) -> anyhow::Result<Self> {
        let mut proxies = BTreeMap::new();
        let nodes = targets.len();
        for from in std::iter::once(End::Coordinator).chain((1..=nodes).map(End::Node)) {
            for (index, target) in targets.iter().enumerate().filter(|(index, _)| from != End::Node(index + 1)) {
                let port = ports.next().ok_or_else(|| anyhow::anyhow!("too few ports for the links"))?;
                proxies.insert((from, index + 1), Proxy::start(port, *target).await?);
            }
        }
        Ok(Self { nodes, proxies })
    }

    /// Links that [`Links::start`] makes between that many nodes and a coordinator.
    pub fn count(nodes: usize) -> usize {
        nodes * nodes
    }

    /// Where `from` dials `to`; `None` without proxies.
    pub fn port(&self, from: End, to: usize) -> Option<u16> {
        self.proxies.get(&(from, to)).map(Proxy::port)
    }

    /// Whether there is anything to hurt.
    pub fn is_proxied(&self) -> bool {
        !self.proxies.is_empty()
    }

    /// How whatever travels from one end to the other does so from now on.
    pub fn set(&self, from: End, to: End, flow: Flow) {
        if let End::Node(node) = to
            && let Some(proxy) = self.proxies.get(&(from, node))
        {
            proxy.set(Way::There, flow);
        }
        if let End::Node(node) = from
            && let Some(proxy) = self.proxies.get(&(to, node))
        {
            proxy.set(Way::Back, flow);
        }
    }

    /// Cuts.
    pub fn cut(&self, topology: &Topology) {
        for (from, to) in topology.cuts(self.nodes) {
            self.set(from, to, Flow::Silent);
        }
    }

    /// Lets everything pass again. Links that refuse go on refusing: that is the process, not the network.
    pub fn heal(&self) {
        for proxy in self.proxies.values() {
            proxy.set(Way::There, Flow::Pass);
            proxy.set(Way::Back, Flow::Pass);
        }
    }

    /// Whether links to the node refuse, as a port without a process does.
    pub fn set_refusing(&self, node: usize, refusing: bool) {
        for proxy in self.proxies.iter().filter(|((_, to), _)| *to == node).map(|(_, proxy)| proxy) {
            proxy.set_refusing(refusing);
        }
    }

    /// Resets every connection from and to the node.
    pub fn reset(&self, node: usize) {
        for ((from, to), proxy) in &self.proxies {
            if *from == End::Node(node) || *to == node {
                proxy.reset();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(topology: &Topology) -> Vec<String> {
        let short = |end| match end {
            End::Coordinator => "c".to_owned(),
            End::Node(node) => node.to_string(),
        };
        topology.cuts(3).into_iter().map(|(from, to)| format!("{}>{}", short(from), short(to))).collect()
    }

    #[test]
    fn each_topology_cuts_what_its_name_says() {
        assert_eq!(shown(&Topology::Isolate(2)), ["c>2", "1>2", "2>c", "2>1", "2>3", "3>2"]);
        assert_eq!(shown(&Topology::Mute(1)), ["1>c", "1>2", "1>3"]);
        assert_eq!(shown(&Topology::Deaf(1)), ["c>1", "2>1", "3>1"]);
        assert_eq!(shown(&Topology::Bridge(2)), ["1>3", "3>1"]);
        assert_eq!(shown(&Topology::CoordinatorFrom(3)), ["c>3", "3>c"]);
        assert_eq!(shown(&Topology::PeersFrom(2)), ["1>2", "2>1", "2>3", "3>2"]);
    }
}
