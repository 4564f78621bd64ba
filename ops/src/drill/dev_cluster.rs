//! A running development cluster as a patient: its processes are those that its pid files name.
//!
//! It goes on running when the drill is interrupted, so what was done to it is undone on drop, as far as that needs no waiting: a
//! stopped node is continued. A killed one is named; `susui dev up` starts it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use chaos_tests::client::Client;
use chaos_tests::drill::{Mode, Patient};
use rustix::process::Signal;

use crate::dev::layout::{Layout, Manifest, Member};
use crate::dev::process::{self, Identity};
use crate::dev::up::{bin_dir, is_running, start};
use crate::error::Error;
use crate::output::Output;

/// A development cluster.
pub(super) struct DevCluster {
    layout: Layout,
    manifest: Manifest,
    output: Output,
    /// What was done to which node and is not healed yet.
    hurt: BTreeMap<usize, Mode>,
}

impl DevCluster {
    /// The one of that directory. Errors: none was made there.
    pub(super) fn open(dir: &Path, output: Output) -> Result<Self, Error> {
        let dir = std::path::absolute(dir).map_err(|error| Error::file(dir, &error))?;
        let layout = Layout::new(dir);
        let manifest = layout.existing_manifest()?;
        Ok(Self { layout, manifest, output, hurt: BTreeMap::new() })
    }

    fn member(&self, node: usize) -> anyhow::Result<Member> {
        let name = format!("node-{node}");
        let members = self.manifest.members();
        members.into_iter().find(|member| member.name == name).with_context(|| format!("there is no {name}"))
    }

    fn signal(&self, node: usize, signal: Signal) -> anyhow::Result<()> {
        let member = self.member(node)?;
        let identity = Identity::read(&self.layout.pid_file(&member.name));
        let identity = identity.with_context(|| format!("{} was never started here", member.name))?;
        ensure!(identity.signal(signal)?, "{} does not run", member.name);
        Ok(())
    }
}

impl Patient for DevCluster {
    fn client(&self) -> Client {
        Client::new(self.manifest.base_port)
    }

    fn can(&self, mode: Mode) -> anyhow::Result<()> {
        ensure!(mode.cut(1).is_none(), "a development cluster has no proxies to cut; leave --dir out");
        Ok(())
    }

    fn inject(&mut self, mode: Mode, node: usize) -> anyhow::Result<()> {
        match mode {
            Mode::Kill => self.signal(node, Signal::KILL)?,
            Mode::Stop => self.signal(node, Signal::STOP)?,
            Mode::Partition | Mode::Mute | Mode::Deaf | Mode::Bridge => bail!("no proxies"),
        }
        self.hurt.insert(node, mode);
        Ok(())
    }

    async fn heal(&mut self, mode: Mode, node: usize) -> anyhow::Result<()> {
        match mode {
            Mode::Kill => {
                let member = self.member(node)?;
                ensure!(!is_running(&self.layout, &member), "node {node} runs already");
                start(&self.layout, &bin_dir(None)?, &member).await?;
            }
            Mode::Stop => self.signal(node, Signal::CONT)?,
            Mode::Partition | Mode::Mute | Mode::Deaf | Mode::Bridge => bail!("no proxies"),
        }
        self.hurt.remove(&node);
        Ok(())
    }

    fn log_tails(&self) -> String {
        let tail = |member: Member| {
            let log = process::log_tail(&self.layout.log_file(&member.name));
            format!("--- {} ---\n{log}", member.name)
        };
        self.manifest.members().into_iter().map(tail).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for DevCluster {
    fn drop(&mut self) {
        let root = self.layout.root().display();
        for (node, mode) in &self.hurt {
            let continued = match mode {
                Mode::Stop => self.signal(*node, Signal::CONT),
                _ => Err(anyhow::anyhow!("it is dead")),
            };
            match continued {
                Ok(()) => self.output.note(&format!("node {node} was stopped and goes on")),
                Err(reason) => self.output.note(&format!(
                    "node {node} does not run ({reason:#}): `susui dev up --data-dir {root}` starts it again"
                )),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    use super::*;

    /// A cluster whose second node is a process of ours.
    fn cluster(dir: &Path) -> (DevCluster, Child) {
        let layout = Layout::new(dir.to_owned());
        let manifest = Manifest {
            cluster_id: "dev-1".into(),
            nodes: 3,
            metadata_only: 0,
            base_port: 8000,
            model_dir: "/models/m".into(),
        };
        layout.write(&manifest).expect("writes");
        let child = Command::new("sleep").arg("600").spawn().expect("sleep starts");
        let identity = Identity::of(child.id()).expect("runs");
        std::fs::write(layout.pid_file("node-2"), serde_json::to_vec(&identity).expect("plain data")).expect("writes");
        (DevCluster::open(dir, Output { json: true }).expect("a cluster"), child)
    }

    fn wait_stopped(child: &Child, is_stopped: bool) {
        let (identity, begun) = (Identity::of(child.id()).expect("runs"), Instant::now());
        while identity.is_stopped() != is_stopped {
            assert!(begun.elapsed() < Duration::from_secs(60), "is it stopped? {}", !is_stopped);
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_interrupted_drill_leaves_no_node_stopped() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut cluster, mut child) = cluster(dir.path());
        cluster.inject(Mode::Stop, 2).expect("runs");
        wait_stopped(&child, true);
        drop(cluster);
        wait_stopped(&child, false);
        child.kill().expect("ends");
        child.wait().expect("ends");
    }

    #[tokio::test]
    async fn what_is_healed_is_let_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut cluster, mut child) = cluster(dir.path());
        cluster.inject(Mode::Stop, 2).expect("runs");
        cluster.heal(Mode::Stop, 2).await.expect("runs");
        wait_stopped(&child, false);
        assert!(cluster.hurt.is_empty());
        child.kill().expect("ends");
        child.wait().expect("ends");
    }
}
