//! A cluster on this machine as a first user has it: started, found and stopped by `susui dev`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::ports::free_port_range;
use crate::susui::susui;
use crate::wait;

/// Ports that `susui dev` may take from its base port on.
pub const PORTS: u16 = 30;

/// Three nodes and a coordinator. Dropping it stops them.
pub struct Dev {
    dir: TempDir,
    base_port: u16,
}

impl Dev {
    /// A directory for a cluster that embeds with the model in `model_dir`; [`Dev::up`] starts it.
    pub async fn start(model_dir: &Path) -> anyhow::Result<Self> {
        let dev = Self { dir: TempDir::with_prefix("susui-test-")?, base_port: free_port_range(PORTS)? };
        let (port, model) = (dev.base_port.to_string(), model_dir.display().to_string());
        dev.run(&["up", "--base-port", &port, "--model-dir", &model]).await?;
        Ok(dev)
    }

    /// `susui dev up`: whatever does not run is started again.
    pub async fn up(&self) -> anyhow::Result<()> {
        self.run(&["up"]).await.map(drop)
    }

    /// `susui dev down`. Errors: a process did not end by itself.
    pub async fn down(&self) -> anyhow::Result<()> {
        self.run(&["down"]).await.map(drop)
    }

    /// Its directory, as `--dir` and `--data-dir` want it.
    pub fn place(&self) -> PathBuf {
        self.dir.path().join("cluster")
    }

    /// Root of the API.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.base_port)
    }

    /// A client of the coordinator.
    pub fn client(&self) -> Client {
        Client::new(self.base_port)
    }

    /// Pids of all processes, as `susui dev status` names them.
    pub async fn pids(&self) -> anyhow::Result<Vec<Pid>> {
        let status = self.status().await?;
        let processes = status["processes"].as_array().context("no processes")?;
        let pid = |process: &Value| Pid::from_raw(i32::try_from(process["pid"].as_i64()?).ok()?);
        Ok(processes.iter().filter_map(pid).collect())
    }

    /// `kill -9` of every process; returns when all are gone.
    pub async fn kill_all(&self) -> anyhow::Result<()> {
        for pid in self.pids().await? {
            kill_process(pid, Signal::KILL)?;
        }
        wait::until("every process to be gone", Duration::from_secs(10), || async {
            let left = self.pids().await?;
            ensure!(left.is_empty(), "{left:?} are still there");
            Ok(())
        })
        .await
    }

    async fn status(&self) -> anyhow::Result<Value> {
        let place = self.place().display().to_string();
        let run = susui(&self.url(), &["dev", "status", "--data-dir", &place]).await?;
        serde_json::from_str(&run.stdout).with_context(|| format!("no status: {}{}", run.stdout, run.stderr))
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let place = self.place().display().to_string();
        let arguments: Vec<&str> = ["dev"].iter().chain(arguments).chain(&["--data-dir", &place]).copied().collect();
        susui(&self.url(), &arguments).await?.json(0)
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let place = self.place();
        if let Ok(bin) = crate::process::bin_dir() {
            let mut down = std::process::Command::new(bin.join("susui"));
            // Stopped already, or stopped here: both are fine.
            let _ = down.args(["--json", "dev", "down", "--grace", "1s", "--data-dir"]).arg(place).output();
        }
    }
}
