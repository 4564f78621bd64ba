//! A running development cluster as a patient: its processes are those that its pid files name.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use chaos_tests::client::Client;
use chaos_tests::drill::{Mode, Patient};
use rustix::process::Signal;

use crate::dev::layout::{Layout, Manifest, Member};
use crate::dev::process::{self, Identity};
use crate::dev::up::{bin_dir, is_running, start};
use crate::error::Error;

/// A development cluster.
pub(super) struct DevCluster {
    layout: Layout,
    manifest: Manifest,
}

impl DevCluster {
    /// The one of that directory. Errors: none was made there.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        let dir = std::path::absolute(dir).map_err(|error| Error::file(dir, &error))?;
        let layout = Layout::new(dir);
        let manifest = layout.existing_manifest()?;
        Ok(Self { layout, manifest })
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
            Mode::Kill => self.signal(node, Signal::KILL),
            Mode::Stop => self.signal(node, Signal::STOP),
            Mode::Partition | Mode::Mute | Mode::Deaf | Mode::Bridge => bail!("no proxies"),
        }
    }

    async fn heal(&mut self, mode: Mode, node: usize) -> anyhow::Result<()> {
        match mode {
            Mode::Kill => {
                let member = self.member(node)?;
                ensure!(!is_running(&self.layout, &member), "node {node} runs already");
                start(&self.layout, &bin_dir(None)?, &member).await?;
                Ok(())
            }
            Mode::Stop => self.signal(node, Signal::CONT),
            Mode::Partition | Mode::Mute | Mode::Deaf | Mode::Bridge => bail!("no proxies"),
        }
    }

    fn log_tails(&self) -> String {
        let tail = |member: Member| {
            let log = process::log_tail(&self.layout.log_file(&member.name));
            format!("--- {} ---\n{log}", member.name)
        };
        self.manifest.members().into_iter().map(tail).collect::<Vec<_>>().join("\n")
    }
}
