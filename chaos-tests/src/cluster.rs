//! A cluster as a user has it: nodes and a coordinator on loopback, in a scratch directory; with a hurtable network if wanted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::checker::{Finding, invariants};
use crate::client::Client;
use crate::links::{End, Links, Network};
use crate::ports::free_ports;
use crate::process::Process;
use crate::tmpfs::Tmpfs;
use crate::wait;

/// What a test wants of its cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// Data nodes, numbered from 1.
    pub nodes: usize,
    /// Nodes that only vote in the metadata group, numbered after the data nodes. 0: the data nodes are the voters.
    pub metadata_nodes: usize,
    /// Directory of the embedding model; `None` starts the coordinator without an embedder.
    pub model_dir: Option<PathBuf>,
    /// The embedder without a model, where no directory of one is given.
    pub fake_embedder: bool,
    /// Further lines of the coordinator's configuration, for example an LLM backend.
    pub coordinator_extra: String,
    /// Further lines of a node's configuration, by node, for example its `[storage]`.
    pub node_extra: BTreeMap<usize, String>,
    /// How the processes reach each other.
    pub network: Network,
    /// Nodes check their invariants after each step (`SUSUI_CHECK=1`).
    pub check_invariants: bool,
    /// Failpoints of every node (`SUSUI_FAILPOINTS`).
    pub failpoints: String,
    /// Put this node's data on a file system of that many bytes.
    pub small_disk: Option<(usize, u64)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 3,
            metadata_nodes: 0,
            model_dir: None,
            fake_embedder: false,
            coordinator_extra: String::new(),
            node_extra: BTreeMap::new(),
            network: Network::Loopback,
            check_invariants: true,
            failpoints: String::new(),
            small_disk: None,
        }
    }
}

impl Options {
    fn processes(&self) -> usize {
        self.nodes + self.metadata_nodes
    }

    fn roles(&self, node: usize) -> &'static str {
        match (self.metadata_nodes, node > self.nodes) {
            (0, _) => "\"metadata\", \"data\"",
            (_, false) => "\"data\"",
            (_, true) => "\"metadata\"",
        }
    }

    fn voters(&self) -> std::ops::RangeInclusive<usize> {
        if self.metadata_nodes == 0 { 1..=self.nodes } else { self.nodes + 1..=self.processes() }
    }
}

/// A running cluster. Dropping it kills every process and removes its directory, unless `SUSUI_KEEP_DIR` is set.
pub struct Cluster {
    options: Options,
    nodes: Vec<Option<Process>>,
    coordinator: Option<Process>,
    links: Links,
    rpc: Vec<u16>,
    node_http: Vec<u16>,
    http: u16,
    path: PathBuf,
    // Dropped in this order: processes, then the small disk, then the directory it is mounted in.
    small_disk: Option<Tmpfs>,
    dir: Option<TempDir>,
}

impl Cluster {
    /// Writes the configurations, starts all processes and waits until the coordinator is ready.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("susui-test-")?;
        let path = dir.path().to_owned();
        let count = options.processes();
        let ports = free_ports(2 * count + 1 + options.network.ports(count))?;
        let (rpc, rest) = ports.split_at(count);
        let (node_http, rest) = rest.split_at(count);
        let (http, link_ports) = rest.split_first().context("no port for the coordinator")?;
        let links = Links::start(options.network, rpc, link_ports).await?;
        let small_disk = match options.small_disk {
            Some((node, bytes)) => Some(Tmpfs::mount(&path.join(format!("n{node}")), bytes)?),
            None => None,
        };
        let mut cluster = Self {
            nodes: (0..count).map(|_| None).collect(),
            coordinator: None,
            links,
            rpc: rpc.to_vec(),
            node_http: node_http.to_vec(),
            http: *http,
            path,
            small_disk,
            dir: Some(dir),
            options,
        };
        cluster.write_configurations()?;
        for node in 1..=count {
            cluster.start_node(node)?;
        }
        cluster.start_coordinator()?;
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    fn write_configurations(&self) -> anyhow::Result<()> {
        let (dir, rpc) = (self.path.display(), &self.rpc);
        let mut voters = String::new();
        for node in self.options.voters() {
            let address = self.links.address(End::Node(node));
            write!(voters, "{{ node_id = {node}, address = \"{address}:{}\" }}, ", rpc[node - 1])?;
        }
        for (index, port) in rpc.iter().enumerate() {
            let id = index + 1;
            let text = format!(
                "cluster_id = \"test\"\nnode_id = {id}\nroles = [{roles}]\ndata_dir = \"{dir}/n{id}\"\n\
                 rpc_listen = \"{address}:{port}\"\nhttp_listen = \"{address}:{http}\"\ntest_hooks = true\n\n\
                 [metadata]\nvoters = [{voters}]\n{extra}\n{overrides}",
                roles = self.options.roles(id),
                address = self.links.address(End::Node(id)),
                http = self.node_http[index],
                extra = self.options.node_extra.get(&id).map_or("", String::as_str),
                overrides = self.overrides(End::Node(id)),
            );
            std::fs::write(self.path.join(format!("n{id}.toml")), text)?;
        }
        let coordinator = self.coordinator_config("coordinator", self.http, true);
        std::fs::write(self.path.join("coordinator.toml"), coordinator)?;
        Ok(())
    }

    /// The configuration of a coordinator called `name` that listens on `http`. It shares the links of the first one, where there are any,
    /// unless it is not to be `hurtable`.
    pub(crate) fn coordinator_config(&self, name: &str, http: u16, hurtable: bool) -> String {
        let dir = self.path.display();
        let seed = |(index, port): (usize, &u16)| {
            let link = self.links.port(End::Coordinator, index + 1).filter(|_| hurtable);
            format!("\"{}:{}\"", self.links.address(End::Node(index + 1)), link.unwrap_or(*port))
        };
        let address = self.coordinator_address(hurtable);
        let seeds: Vec<String> = self.rpc.iter().enumerate().map(seed).collect();
        let embedder = match &self.options.model_dir {
            Some(model) => format!("model_dir = \"{}\"", model.display()),
            None if self.options.fake_embedder => "name = \"fake\"".to_owned(),
            None => "name = \"none\"".to_owned(),
        };
        format!(
            "cluster_id = \"test\"\nhttp_listen = \"{address}:{http}\"\nnodes = [{}]\ndata_dir = \"{dir}/{name}\"\n\
             test_hooks = true\n\n\
             [embedder]\n{embedder}\n{}\n{}",
            seeds.join(", "),
            self.options.coordinator_extra,
            if hurtable { self.overrides(End::Coordinator) } else { String::new() },
        )
    }

    /// Where a coordinator listens: one that is not to be hurt is where this process is.
    pub(crate) fn coordinator_address(&self, hurtable: bool) -> String {
        if hurtable { self.links.address(End::Coordinator) } else { "127.0.0.1".to_owned() }
    }

    /// The scratch directory.
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// `[dial_overrides]` that lead one process over its links.
    fn overrides(&self, from: End) -> String {
        let link = |to: usize| self.links.port(from, to).map(|port| format!("{to} = \"127.0.0.1:{port}\"\n"));
        let links: String = (1..=self.options.processes()).filter_map(link).collect();
        if links.is_empty() { links } else { format!("\n[dial_overrides]\n{links}") }
    }

    /// Starts node `node` (from 1) again after it was killed.
    pub fn start_node(&mut self, node: usize) -> anyhow::Result<()> {
        let config = self.path.join(format!("n{node}.toml"));
        let log = self.node_log(node);
        let arguments = ["--config", &config.to_string_lossy()];
        let check = if self.options.check_invariants { "1" } else { "0" };
        let hooks = [("SUSUI_CHECK", check), ("SUSUI_FAILPOINTS", &self.options.failpoints)];
        self.links.set_refusing(node, false);
        let namespace = self.links.namespace(End::Node(node));
        let name = format!("node {node}");
        let process = Process::start_in(namespace.as_deref(), &name, "susui-node", &arguments, &hooks, &log)?;
        self.nodes[node - 1] = Some(process);
        Ok(())
    }

    fn node_log(&self, node: usize) -> PathBuf {
        self.path.join(format!("n{node}.log"))
    }

    /// Starts the coordinator, again after it was killed.
    pub fn start_coordinator(&mut self) -> anyhow::Result<()> {
        self.start_coordinator_with(&[])
    }

    /// Starts the coordinator with further environment variables.
    pub fn start_coordinator_with(&mut self, variables: &[(&str, &str)]) -> anyhow::Result<()> {
        let config = self.path.join("coordinator.toml");
        let log = self.path.join("coordinator.log");
        let arguments = ["--config", &config.to_string_lossy()];
        let namespace = self.links.namespace(End::Coordinator);
        let (name, binary) = ("coordinator", "susui-coordinator");
        self.coordinator = Some(Process::start_in(namespace.as_deref(), name, binary, &arguments, variables, &log)?);
        Ok(())
    }

    /// Waits until the coordinator says it is ready and every node is known to live: a collection created earlier would be placed
    /// on those that happened to be first. Errors carry the ends of the logs.
    pub async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let client = self.client();
        let nodes = self.nodes.len();
        let ready = wait::until("the cluster to be ready", Duration::from_secs(60), || async {
            client.ready().await?;
            let cluster = client.cluster().await?;
            let known = cluster["nodes"].as_array().context("no nodes")?;
            let alive = known.iter().filter(|node| node["liveness"] == "alive").count();
            ensure!(alive == nodes, "{alive} of {nodes} nodes are alive");
            Ok(())
        });
        ready.await.with_context(|| self.log_tails())
    }

    /// A client of the coordinator.
    pub fn client(&self) -> Client {
        Client::at(&self.links.address(End::Coordinator), self.http)
    }

    /// Base URL of the coordinator.
    pub fn url(&self) -> String {
        format!("http://{}:{}", self.links.address(End::Coordinator), self.http)
    }

    /// Clients of the nodes' health and metrics, in order.
    pub fn node_clients(&self) -> Vec<Client> {
        let client = |(index, port): (usize, &u16)| Client::at(&self.links.address(End::Node(index + 1)), *port);
        self.node_http.iter().enumerate().map(client).collect()
    }

    /// The network between the processes.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// The small file system, where one was asked for, and the node whose data it holds.
    pub fn small_disk(&self) -> Option<(usize, &Tmpfs)> {
        Some((self.options.small_disk?.0, self.small_disk.as_ref()?))
    }

    /// Nodes of all roles.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// The data directory of a node, from 1.
    pub fn data_dir(&self, node: usize) -> PathBuf {
        self.path.join(format!("n{node}"))
    }

    /// Node `node`, from 1. Errors: it is not running.
    pub fn node(&mut self, node: usize) -> anyhow::Result<&mut Process> {
        self.nodes[node - 1].as_mut().with_context(|| format!("node {node} is not running"))
    }

    /// Anonymous memory of node `node`, as the kernel counts it. Errors: it is not running.
    pub fn anonymous_bytes(&self, node: usize) -> anyhow::Result<u64> {
        self.nodes[node - 1].as_ref().with_context(|| format!("node {node} is not running"))?.anonymous_bytes()
    }

    /// The coordinator. Errors: it is not running.
    pub fn coordinator(&mut self) -> anyhow::Result<&mut Process> {
        self.coordinator.as_mut().context("the coordinator is not running")
    }

    /// All that the coordinators of this cluster have logged so far.
    pub fn coordinator_log(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.path.join("coordinator.log"))?)
    }

    /// `kill -9` of one node.
    pub fn kill_node(&mut self, node: usize) -> anyhow::Result<()> {
        let mut process = self.nodes[node - 1].take().with_context(|| format!("node {node} is not running"))?;
        process.kill_9()?;
        self.links.set_refusing(node, true);
        Ok(())
    }

    /// SIGTERM to one node, and waits for its end. Errors: another exit code than 0, or it does not end in time.
    pub async fn stop_node(&mut self, node: usize, at_most: Duration) -> anyhow::Result<()> {
        let mut process = self.nodes[node - 1].take().with_context(|| format!("node {node} is not running"))?;
        let code = process.terminate(at_most).await?;
        self.links.set_refusing(node, true);
        ensure!(code == Some(0), "node {node} ended with {code:?}:\n{}", process.log_tail());
        Ok(())
    }

    /// SIGTERM to the coordinator, and waits for its end. Errors: another exit code than 0, or it does not end in time.
    pub async fn stop_coordinator(&mut self, at_most: Duration) -> anyhow::Result<()> {
        let mut process = self.coordinator.take().context("the coordinator is not running")?;
        let code = process.terminate(at_most).await?;
        ensure!(code == Some(0), "the coordinator ended with {code:?}:\n{}", process.log_tail());
        Ok(())
    }

    /// `kill -9` of everything, as nearly at once as one thread can.
    pub fn kill_all(&mut self) -> anyhow::Result<()> {
        for process in self.nodes.iter_mut().filter_map(Option::take).chain(self.coordinator.take()).collect::<Vec<_>>()
        {
            let mut process = process;
            process.kill_9()?;
        }
        Ok(())
    }

    /// Starts nodes again that ended by themselves, or that were killed, and lets those go on that were stopped.
    pub fn revive_nodes(&mut self) -> anyhow::Result<()> {
        for node in 1..=self.nodes.len() {
            match self.nodes[node - 1].as_mut().is_some_and(Process::is_running) {
                true => self.node(node)?.resume()?,
                false => self.start_node(node)?,
            }
        }
        Ok(())
    }

    /// Starts whatever does not run.
    pub async fn start_missing(&mut self) -> anyhow::Result<()> {
        for node in 1..=self.nodes.len() {
            if self.nodes[node - 1].is_none() {
                self.start_node(node)?;
            }
        }
        if self.coordinator.is_none() {
            self.start_coordinator()?;
        }
        self.wait_ready().await
    }

    /// Whether every process that was started and not ended by us still runs. Errors: one ended by itself; the end of its log.
    pub fn check_running(&mut self) -> anyhow::Result<()> {
        for process in self.nodes.iter_mut().flatten().chain(&mut self.coordinator) {
            ensure!(process.is_running(), "{} ended by itself:\n{}", process.name(), process.log_tail());
        }
        Ok(())
    }

    /// What the nodes have logged of invariants that did not hold. Nothing else shows it: a node goes on without the copy, and opens it
    /// again when it is next started. Not checked where the nodes do not check.
    pub fn broken_invariants(&self) -> anyhow::Result<Finding> {
        let checking = if self.options.check_invariants { self.nodes.len() } else { 0 };
        let read = |node| Ok((node, std::fs::read(self.node_log(node))?));
        let logs: Vec<(usize, Vec<u8>)> = (1..=checking).map(read).collect::<std::io::Result<_>>()?;
        Ok(invariants::check(logs.iter().map(|(node, log)| (*node, String::from_utf8_lossy(log)))))
    }

    /// Ends every process with SIGTERM. Errors: an exit code other than 0; an invariant was broken at any time before.
    pub async fn shut_down(mut self) -> anyhow::Result<()> {
        self.end().await?;
        let broken = self.broken_invariants()?;
        ensure!(broken.breaches.is_empty(), "{broken}");
        Ok(())
    }

    /// Ends every process with SIGTERM. Errors: an exit code other than 0.
    pub async fn end(&mut self) -> anyhow::Result<()> {
        let mut processes: Vec<Process> = self.coordinator.take().into_iter().collect();
        processes.extend(self.nodes.iter_mut().filter_map(Option::take));
        for mut process in processes {
            let code = process.terminate(Duration::from_secs(30)).await?;
            ensure!(code == Some(0), "{} ended with {code:?}:\n{}", process.name(), process.log_tail());
        }
        Ok(())
    }

    /// The ends of all logs.
    pub fn log_tails(&self) -> String {
        let mut text = String::new();
        for process in self.nodes.iter().flatten().chain(&self.coordinator) {
            text.push_str(&format!("--- {} (process {}) ---\n{}\n", process.name(), process.pid(), process.log_tail()));
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::env::var_os("SUSUI_KEEP_DIR").is_some()
            && let Some(dir) = self.dir.take()
        {
            println!("kept {}", dir.keep().display());
        }
    }
}
