//! The network of a cluster, and the ways to hurt it: one [`Proxy`] for each directed pair of processes that dial each other, or a router of
//! [`Packets`] between their namespaces.
//!
//! A cut is between *ends*, as packets see it: what travels from A to B uses A's connections to B one way and B's connections to A
//! the other way.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use crate::packets::{Host, Packets, Road};
use crate::proxy::{Flow, Proxy, Way};

const LOOPBACK: &str = "127.0.0.1";
/// Nodes have their numbers.
const COORDINATOR: Host = 200;

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

/// How the processes of a cluster reach each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Over loopback; nothing can be hurt.
    #[default]
    Loopback,
    /// Over loopback, every connection through a proxy: bytes are held, late, or slow.
    Proxied,
    /// Each process in a network of its own: packets are lost, late, or overtaken. For those who may make namespaces.
    Namespaces,
}

impl Network {
    /// Ports that its links need between that many nodes and a coordinator.
    pub fn ports(self, nodes: usize) -> usize {
        if self == Self::Proxied { nodes * nodes } else { 0 }
    }
}

/// All links of a cluster.
#[derive(Default)]
pub struct Links {
    nodes: usize,
    wires: Wires,
}

#[derive(Default)]
enum Wires {
    #[default]
    Loopback,
    Proxies(BTreeMap<(End, usize), Proxy>),
    Packets(Packets),
}

/// The last number of an end's address, where each has one. A cluster has a handful of nodes.
fn host(end: End) -> Host {
    match end {
        End::Coordinator => COORDINATOR,
        End::Node(node) => Host::try_from(node).expect("fewer nodes than addresses"),
    }
}

impl Links {
    /// Between a coordinator and nodes that listen on the ports `targets`. `ports` are the links' own.
    pub async fn start(network: Network, targets: &[u16], ports: &[u16]) -> anyhow::Result<Self> {
        let nodes = targets.len();
        let wires = match network {
            Network::Loopback => Wires::Loopback,
            Network::Proxied => Wires::Proxies(proxies(targets, ports).await?),
            Network::Namespaces => Wires::Packets(Packets::start(&ends(nodes).map(host).collect::<Vec<_>>()).await?),
        };
        Ok(Self { nodes, wires })
    }

    /// Where `from` dials `to`; `None` where it dials its own address.
    pub fn port(&self, from: End, to: usize) -> Option<u16> {
        match &self.wires {
            Wires::Proxies(proxies) => proxies.get(&(from, to)).map(Proxy::port),
            Wires::Loopback | Wires::Packets(_) => None,
        }
    }

    /// The address at which an end listens.
    pub fn address(&self, end: End) -> String {
        match &self.wires {
            Wires::Packets(packets) => packets.address(host(end)),
            Wires::Loopback | Wires::Proxies(_) => LOOPBACK.to_owned(),
        }
    }

    /// The namespace in which an end runs, as `nsenter` takes it.
    pub fn namespace(&self, end: End) -> Option<PathBuf> {
        match &self.wires {
            Wires::Packets(packets) => packets.namespace(host(end)).map(|namespace| namespace.path().to_owned()),
            Wires::Loopback | Wires::Proxies(_) => None,
        }
    }

    /// Whether there is anything to hurt.
    pub fn can_be_hurt(&self) -> bool {
        !matches!(self.wires, Wires::Loopback)
    }

    /// How whatever travels from one end to the other does so from now on.
    pub fn set(&self, from: End, to: End, flow: Flow) {
        match &self.wires {
            Wires::Loopback => {}
            Wires::Packets(packets) => packets.set(host(from), host(to), road(flow)),
            Wires::Proxies(proxies) => {
                if let End::Node(node) = to
                    && let Some(proxy) = proxies.get(&(from, node))
                {
                    proxy.set(Way::There, flow);
                }
                if let End::Node(node) = from
                    && let Some(proxy) = proxies.get(&(to, node))
                {
                    proxy.set(Way::Back, flow);
                }
            }
        }
    }

    /// From and to the node packets are lost and overtake each other from now on. Nothing where there are no packets to lose.
    pub fn roughen(&self, node: usize, loss: f64, delay_max: Duration) {
        if let Wires::Packets(packets) = &self.wires {
            for other in ends(self.nodes).filter(|end| *end != End::Node(node)) {
                packets.set(host(other), host(End::Node(node)), Road::Rough { loss, delay_max });
                packets.set(host(End::Node(node)), host(other), Road::Rough { loss, delay_max });
            }
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
        match &self.wires {
            Wires::Loopback => {}
            Wires::Packets(packets) => packets.free_all(),
            Wires::Proxies(proxies) => {
                for proxy in proxies.values() {
                    proxy.set(Way::There, Flow::Pass);
                    proxy.set(Way::Back, Flow::Pass);
                }
            }
        }
    }

    /// Whether proxies of the node refuse, as a port without a process does. Without a proxy the kernel does that.
    pub fn set_refusing(&self, node: usize, refusing: bool) {
        let Wires::Proxies(proxies) = &self.wires else { return };
        for proxy in proxies.iter().filter(|((_, to), _)| *to == node).map(|(_, proxy)| proxy) {
            proxy.set_refusing(refusing);
        }
    }

    /// Resets every connection from and to the node, where proxies hold them.
    pub fn reset(&self, node: usize) {
        let Wires::Proxies(proxies) = &self.wires else { return };
        for ((from, to), proxy) in proxies {
            if *from == End::Node(node) || *to == node {
                proxy.reset();
            }
        }
    }
}

fn ends(nodes: usize) -> impl Iterator<Item = End> {
    std::iter::once(End::Coordinator).chain((1..=nodes).map(End::Node))
}

/// One link from every process to every node.
async fn proxies(targets: &[u16], ports: &[u16]) -> anyhow::Result<BTreeMap<(End, usize), Proxy>> {
    let mut ports = ports.iter();
    let mut proxies = BTreeMap::new();
    for from in ends(targets.len()) {
        for (index, target) in targets.iter().enumerate().filter(|(index, _)| from != End::Node(index + 1)) {
            let port = ports.next().context("too few ports for the links")?;
            proxies.insert((from, index + 1), Proxy::start(*port, *target).await?);
        }
    }
    Ok(proxies)
}

/// What a proxy holds, a network loses: TCP sends it again.
fn road(flow: Flow) -> Road {
    match flow {
        Flow::Pass => Road::Free,
        Flow::Silent => Road::Cut,
        Flow::Slow { delay, bytes_per_second } => Road::Narrow { delay, bytes_per_second },
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
