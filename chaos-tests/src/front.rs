//! A further coordinator of a cluster: same nodes, same configuration, its own port and catalog.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::client::Client;
use crate::cluster::Cluster;
use crate::links::End;
use crate::ports::free_ports;
use crate::process::Process;
use crate::wait;

/// Until it must answer after its start.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Until it must have ended after SIGTERM.
const STOPPED_WITHIN: Duration = Duration::from_secs(30);

/// One more coordinator. Dropping it kills the process.
pub struct Front {
    name: String,
    address: String,
    port: u16,
    namespace: Option<PathBuf>,
    config: PathBuf,
    /// Of every process that it starts: names and values.
    variables: Vec<(&'static str, String)>,
    process: Option<Process>,
}

impl Front {
    /// Starts one called `name` and waits until it is ready.
    pub async fn start(cluster: &Cluster, name: &str) -> anyhow::Result<Self> {
        Self::start_with(cluster, name, true, Vec::new()).await
    }

    /// The same whose wall clock is wrong by so many milliseconds.
    pub async fn start_skewed(cluster: &Cluster, name: &str, skew_ms: i64) -> anyhow::Result<Self> {
        Self::start_with(cluster, name, true, vec![("SUSUI_CLOCK_SKEW_MS", skew_ms.to_string())]).await
    }

    /// The same, past the links: it reaches every node that lives, whatever is cut.
    pub async fn start_past_links(cluster: &Cluster, name: &str) -> anyhow::Result<Self> {
        Self::start_with(cluster, name, false, Vec::new()).await
    }

    async fn start_with(
        cluster: &Cluster,
        name: &str,
        hurtable: bool,
        variables: Vec<(&'static str, String)>,
    ) -> anyhow::Result<Self> {
        let port = free_ports(1)?[0];
        let config = cluster.path().join(format!("{name}.toml"));
        std::fs::write(&config, cluster.coordinator_config(name, port, hurtable))?;
        let namespace = cluster.links().namespace(End::Coordinator).filter(|_| hurtable);
        let (name, address) = (name.to_owned(), cluster.coordinator_address(hurtable));
        let mut front = Self { name, address, port, namespace, config, variables, process: None };
        front.start_again().await?;
        Ok(front)
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        let (config, log) = (self.config.to_string_lossy(), self.config.with_extension("log"));
        let variables: Vec<(&str, &str)> = self.variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (binary, arguments) = ("susui-coordinator", ["--config", &*config]);
        let namespace = self.namespace.as_deref();
        self.process = Some(Process::start_in(namespace, &self.name, binary, &arguments, &variables, &log)?);
        Ok(())
    }

    async fn wait_ready(&self) -> anyhow::Result<()> {
        let client = self.client();
        let ready = wait::until("the coordinator to be ready", READY_WITHIN, || client.ready());
        ready.await.with_context(|| self.process.as_ref().map(Process::log_tail).unwrap_or_default())
    }

    /// SIGTERM, its end, and a new start; returns when that is ready.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await?;
        self.start_again().await
    }

    /// Starts it after its end; returns when it is ready.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.spawn()?;
        self.wait_ready().await
    }

    /// `kill -9`.
    pub fn kill_9(&mut self) -> anyhow::Result<()> {
        self.process.take().context("it is not running")?.kill_9()
    }

    /// Ends it with SIGTERM. Errors: another exit code than 0.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let mut process = self.process.take().context("it is not running")?;
        let code = process.terminate(STOPPED_WITHIN).await?;
        ensure!(code == Some(0), "{} ended with {code:?}:\n{}", self.name, process.log_tail());
        Ok(())
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::at(&self.address, self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Everything it has logged.
    pub fn log(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.config.with_extension("log"))?)
    }
}
