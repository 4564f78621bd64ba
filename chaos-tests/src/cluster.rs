//! A cluster as a user has it: three nodes and a coordinator on loopback, in a scratch directory.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::client::Client;
use crate::ports::free_ports;
use crate::process::Process;
use crate::wait;

/// What a test wants of its cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// Data nodes that are metadata voters as well.
    pub nodes: usize,
    /// Directory of the embedding model; `None` starts the coordinator without an embedder.
    pub model_dir: Option<PathBuf>,
    /// Further lines of the coordinator's configuration, for example an LLM backend.
    pub coordinator_extra: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 3, model_dir: None, coordinator_extra: String::new() }
    }
}

/// A running cluster. Dropping it kills every process and removes its directory, unless `SUSUI_KEEP_DIR` is set.
pub struct Cluster {
    dir: Option<TempDir>,
    path: PathBuf,
    nodes: Vec<Option<Process>>,
    coordinator: Option<Process>,
    node_http: Vec<u16>,
    http: u16,
}

impl Cluster {
    /// Writes the configurations, starts all processes and waits until the coordinator is ready.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("susui-test-")?;
        let path = dir.path().to_owned();
        let ports = free_ports(2 * options.nodes + 1)?;
        let (rpc, rest) = ports.split_at(options.nodes);
        let http = *rest.last().context("no port for the coordinator")?;
        let mut voters = String::new();
        for (index, port) in rpc.iter().enumerate() {
            write!(voters, "{{ node_id = {}, address = \"127.0.0.1:{port}\" }}, ", index + 1)?;
        }
        for (index, port) in rpc.iter().enumerate() {
            let text = format!(
                "cluster_id = \"test\"\nnode_id = {id}\nroles = [\"metadata\", \"data\"]\ndata_dir = \"{dir}/n{id}\"\n\
                 rpc_listen = \"127.0.0.1:{port}\"\nhttp_listen = \"127.0.0.1:{http}\"\ntest_hooks = true\n\n\
                 [metadata]\nvoters = [{voters}]\n",
                id = index + 1,
                dir = path.display(),
                http = rest[index],
            );
            std::fs::write(path.join(format!("n{}.toml", index + 1)), text)?;
        }
        let seeds: Vec<String> = rpc.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
        let embedder = options
            .model_dir
            .as_ref()
            .map_or_else(|| "name = \"none\"".to_owned(), |model| format!("model_dir = \"{}\"", model.display()));
        let text = format!(
            "cluster_id = \"test\"\nhttp_listen = \"127.0.0.1:{http}\"\nnodes = [{}]\ndata_dir = \"{}/coordinator\"\n\n[embedder]\n{embedder}\n{}\n",
            seeds.join(", "),
            path.display(),
            options.coordinator_extra,
        );
        std::fs::write(path.join("coordinator.toml"), text)?;
        let mut cluster = Self {
            dir: Some(dir),
            path,
            nodes: (0..options.nodes).map(|_| None).collect(),
            coordinator: None,
            node_http: rest[..options.nodes].to_vec(),
            http,
        };
        for node in 1..=options.nodes {
            cluster.start_node(node)?;
        }
        cluster.start_coordinator()?;
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// Starts node `node` (from 1) again after it was killed.
    pub fn start_node(&mut self, node: usize) -> anyhow::Result<()> {
        let config = self.path.join(format!("n{node}.toml"));
        let log = self.path.join(format!("n{node}.log"));
        let process =
            Process::start(&format!("node {node}"), "susui-node", &["--config", &config.to_string_lossy()], &log)?;
        self.nodes[node - 1] = Some(process);
        Ok(())
    }

    /// Starts the coordinator, again after it was killed.
    pub fn start_coordinator(&mut self) -> anyhow::Result<()> {
        let config = self.path.join("coordinator.toml");
        let log = self.path.join("coordinator.log");
        let arguments = ["--config", &config.to_string_lossy()];
        self.coordinator = Some(Process::start("coordinator", "susui-coordinator", &arguments, &log)?);
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
        Client::new(self.http)
    }

    /// Base URL of the coordinator.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    /// Ports of the nodes' health and metrics.
    pub fn node_http_ports(&self) -> &[u16] {
        &self.node_http
    }

    /// Node `node`, from 1. Errors: it is not running.
    pub fn node(&mut self, node: usize) -> anyhow::Result<&mut Process> {
        self.nodes[node - 1].as_mut().with_context(|| format!("node {node} is not running"))
    }

    /// The coordinator. Errors: it is not running.
    pub fn coordinator(&mut self) -> anyhow::Result<&mut Process> {
        self.coordinator.as_mut().context("the coordinator is not running")
    }

    /// `kill -9` of one node.
    pub fn kill_node(&mut self, node: usize) -> anyhow::Result<()> {
        let mut process = self.nodes[node - 1].take().with_context(|| format!("node {node} is not running"))?;
        process.kill_9()
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

    /// Ends every process with SIGTERM; each must exit with code 0.
    pub async fn shut_down(mut self) -> anyhow::Result<()> {
        let mut processes: Vec<Process> = self.coordinator.take().into_iter().collect();
        processes.extend(self.nodes.iter_mut().filter_map(Option::take));
        for mut process in processes {
            let code = process.terminate(Duration::from_secs(30)).await?;
            ensure!(code == Some(0), "a process ended with {code:?}:\n{}", process.log_tail());
        }
        Ok(())
    }

    /// The ends of all logs.
    pub fn log_tails(&self) -> String {
        let mut text = String::new();
        for process in self.nodes.iter().flatten().chain(&self.coordinator) {
            text.push_str(&format!("--- process {} ---\n{}\n", process.pid(), process.log_tail()));
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
