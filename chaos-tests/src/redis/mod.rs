//! Debian's `redis-server` on loopback, nothing on disk but node files: one, or a Redis Cluster of three masters and three replicas.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::ports::free_ports;
use crate::process::Process;
use crate::wait;

/// Masters; each has one replica.
const MASTERS: usize = 3;
/// Silence after which a node counts as failed.
const NODE_TIMEOUT_MS: u32 = 2000;
/// Forming the cluster, or failing a master over, on a machine that is busy with something else.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// One server. Dropping it kills it.
pub struct RedisServer {
    port: u16,
    _process: Process,
    _dir: TempDir,
}

impl RedisServer {
    /// Starts one on a free port and waits until it answers.
    pub async fn start() -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("susui-redis-")?;
        let port = free_ports(1)?[0];
        let (number, place) = (port.to_string(), dir.path().display().to_string());
        let arguments = ["--port", &number, "--dir", &place, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        let process = Process::start_program("redis", "redis-server", &arguments, &dir.path().join("log"))?;
        wait_answering(port).await?;
        Ok(Self { port, _process: process, _dir: dir })
    }

    /// The way in, as `redis_url` wants it.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

/// The servers. Dropping it kills them.
pub struct RedisCluster {
    servers: Vec<(u16, Option<Process>)>,
    _dir: TempDir,
}

impl RedisCluster {
    /// Starts six servers, joins them, and waits until every slot is served and every master has a replica that follows it.
    pub async fn start() -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("susui-redis-")?;
        let ports = free_ports(4 * MASTERS)?;
        let mut servers = Vec::new();
        for pair in ports.chunks(2) {
            let (port, bus) = (pair[0], pair[1]);
            let place = dir.path().join(port.to_string());
            std::fs::create_dir(&place)?;
            let (port_text, bus) = (port.to_string(), bus.to_string());
            let (place_text, timeout) = (place.display().to_string(), NODE_TIMEOUT_MS.to_string());
            let options = [
                ("--port", port_text.as_str()),
                ("--cluster-port", &bus),
                ("--dir", &place_text),
                ("--bind", "127.0.0.1"),
                ("--save", ""),
                ("--appendonly", "no"),
                ("--cluster-enabled", "yes"),
                ("--cluster-node-timeout", &timeout),
                // Replicas are filled at once instead of after 5 s: one that never was does not take over.
                ("--repl-diskless-sync-delay", "0"),
            ];
            let arguments: Vec<&str> = options.into_iter().flat_map(|(name, value)| [name, value]).collect();
            let log = place.join("log");
            let process = Process::start_program(&format!("redis {port}"), "redis-server", &arguments, &log)?;
            servers.push((port, Some(process)));
        }
        let cluster = Self { servers, _dir: dir };
        for (port, _) in &cluster.servers {
            wait_answering(*port).await?;
        }
        let addresses: Vec<String> = cluster.servers.iter().map(|(port, _)| format!("127.0.0.1:{port}")).collect();
        let mut create = vec!["--cluster", "create"];
        create.extend(addresses.iter().map(String::as_str));
        create.extend(["--cluster-replicas", "1", "--cluster-yes"]);
        cli(cluster.servers[0].0, &create)?;
        wait::until("the Redis Cluster to form", SETTLED_WITHIN, || async {
            for (port, _) in &cluster.servers {
                let nodes = nodes(*port)?;
                let with = |flag: &str| nodes.iter().filter(|node| node.is(flag) && node.is_connected).count();
                ensure!((with("master"), with("slave")) == (MASTERS, MASTERS), "not joined yet: {nodes:?}");
                is_whole(*port)?;
                let link = cli(*port, &["INFO", "replication"])?;
                ensure!(link.contains("role:master") || link.contains("master_link_status:up"), "not filled: {link}");
            }
            Ok(())
        })
        .await?;
        Ok(cluster)
    }

    /// The way in, as `redis_url` wants it: all servers.
    pub fn url(&self) -> String {
        let addresses: Vec<String> = self.servers.iter().map(|(port, _)| format!("127.0.0.1:{port}")).collect();
        format!("redis://{}", addresses.join(","))
    }

    /// `kill -9` of one master. Returns its port.
    pub fn kill_a_master(&mut self) -> anyhow::Result<u16> {
        let port = self.masters()?.first().copied().context("no master")?;
        let server = self.servers.iter_mut().find(|(known, _)| *known == port).context("an unknown master")?;
        server.1.take().context("killed already")?.kill_9()?;
        Ok(port)
    }

    /// Waits until the others serve every slot without it.
    pub async fn wait_failed_over(&self, dead: u16) -> anyhow::Result<()> {
        wait::until("a replica to take over", SETTLED_WITHIN, || async {
            let masters = self.masters()?;
            ensure!(masters.len() == MASTERS && !masters.contains(&dead), "masters are {masters:?}");
            let alive = self.alive()?;
            is_whole(alive)
        })
        .await
    }

    /// Ports of the masters that are not known to have failed.
    fn masters(&self) -> anyhow::Result<Vec<u16>> {
        let nodes = nodes(self.alive()?)?;
        Ok(nodes.iter().filter(|node| node.is("master") && !node.is("fail")).map(|node| node.port).collect())
    }

    fn alive(&self) -> anyhow::Result<u16> {
        self.servers.iter().find(|(_, process)| process.is_some()).map(|(port, _)| *port).context("no server is left")
    }
}

/// A line of `CLUSTER NODES`.
#[derive(Debug)]
struct Node {
    port: u16,
    flags: Vec<String>,
    is_connected: bool,
}

impl Node {
    fn is(&self, flag: &str) -> bool {
        self.flags.iter().any(|known| known == flag)
    }

    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let address = fields.get(1)?.split('@').next()?;
        Some(Self {
            port: address.rsplit_once(':')?.1.parse().ok()?,
            flags: fields.get(2)?.split(',').map(str::to_owned).collect(),
            is_connected: *fields.get(7)? == "connected",
        })
    }
}

fn nodes(port: u16) -> anyhow::Result<Vec<Node>> {
    Ok(cli(port, &["CLUSTER", "NODES"])?.lines().filter_map(Node::parse).collect())
}

fn is_whole(port: u16) -> anyhow::Result<()> {
    let info = cli(port, &["CLUSTER", "INFO"])?;
    ensure!(info.contains("cluster_state:ok"), "{info}");
    Ok(())
}

async fn wait_answering(port: u16) -> anyhow::Result<()> {
    wait::until("redis-server to answer", SETTLED_WITHIN, || async {
        let answer = cli(port, &["PING"])?;
        ensure!(answer == "PONG", "{answer}");
        Ok(())
    })
    .await
}

/// What `redis-cli` prints.
fn cli(port: u16, words: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("redis-cli").args(["-p", &port.to_string()]).args(words).output();
    let output = output.context("redis-cli is missing: ops/test installs redis-server")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_s_line_is_read() {
        let line = "07c3 127.0.0.1:30004@31004,host slave,fail e7d1 0 1426238317239 4 disconnected";
        let node = Node::parse(line).expect("a node");
        assert_eq!((node.port, node.is("slave"), node.is("fail"), node.is("master")), (30004, true, true, false));
        assert!(!node.is_connected);
        let master = "e7d1 127.0.0.1:30001@31001 myself,master - 0 0 1 connected 0-5460";
        assert!(Node::parse(master).is_some_and(|node| node.is("master") && node.is_connected));
        assert!(Node::parse("").is_none());
    }
}
