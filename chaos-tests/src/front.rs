//! A further coordinator of a cluster: same nodes, same configuration, its own port and catalog.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::client::Client;
use crate::cluster::Cluster;
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
    port: u16,
    config: PathBuf,
    process: Option<Process>,
}

impl Front {
    /// Starts one called `name` and waits until it is ready.
    pub async fn start(cluster: &Cluster, name: &str) -> anyhow::Result<Self> {
        Self::start_with(cluster, name, true).await
    }

    /// The same, past the links: it reaches every node that lives, whatever is cut.
    pub async fn start_past_links(cluster: &Cluster, name: &str) -> anyhow::Result<Self> {
        Self::start_with(cluster, name, false).await
    }

    async fn start_with(cluster: &Cluster, name: &str, hurtable: bool) -> anyhow::Result<Self> {
        let port = free_ports(1)?[0];
        let config = cluster.path().join(format!("{name}.toml"));
        std::fs::write(&config, cluster.coordinator_config(name, port, hurtable))?;
        let mut front = Self { name: name.to_owned(), port, config, process: None };
        front.spawn()?;
        front.wait_ready().await?;
        Ok(front)
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        let (config, log) = (self.config.to_string_lossy(), self.config.with_extension("log"));
        self.process = Some(Process::start(&self.name, "susui-coordinator", &["--config", &config], &[], &log)?);
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
        self.spawn()?;
        self.wait_ready().await
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
        Client::new(self.port)
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
