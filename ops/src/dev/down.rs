//! `susui dev down`: stop what the pid files name, the coordinator before the nodes it writes to.

use std::fs;

use rustix::process::Signal;
use serde::Serialize;
use tokio::time::Instant;

use super::DownArguments;
use super::layout::Layout;
use super::process::Identity;
use crate::cli::Global;
use crate::error::Error;

#[derive(Default, Serialize)]
struct DownReport {
    stopped: Vec<String>,
    killed: Vec<String>,
    not_running: Vec<String>,
}

/// Runs the verb. Safe to repeat; a cluster that does not run is already down.
pub async fn run(global: &Global, arguments: &DownArguments) -> Result<(), Error> {
    let output = global.output();
    let layout = arguments.place.layout()?;
    let manifest = layout.existing_manifest()?;
    let _lock = layout.lock()?;
    let mut report = DownReport::default();
    let (coordinators, nodes): (Vec<_>, Vec<_>) =
        manifest.members().into_iter().map(|member| member.name).partition(|name| name == "coordinator");
    for names in [coordinators, nodes] {
        let spinner = output.spinner();
        spinner.set_message(format!("stopping {}", names.join(", ")));
        stop(&layout, &names, arguments.grace, &mut report).await?;
        spinner.finish_and_clear();
    }
    output.result(&report, || report.text());
    Ok(())
}

impl DownReport {
    fn text(&self) -> String {
        let list =
            |what: &str, names: &[String]| (!names.is_empty()).then(|| format!("{what}: {}\n", names.join(", ")));
        [
            list("stopped", &self.stopped),
            list("killed after the grace period", &self.killed),
            list("not running", &self.not_running),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// SIGTERM to all at once, then SIGKILL to those still there after the grace period.
async fn stop(
    layout: &Layout,
    names: &[String],
    grace: std::time::Duration,
    report: &mut DownReport,
) -> Result<(), Error> {
    let mut signalled = Vec::new();
    for name in names {
        match Identity::read(&layout.pid_file(name)) {
            Some(identity) if identity.signal(Signal::TERM)? => signalled.push((name, identity)),
            _ => {
                forget(layout, name)?;
                report.not_running.push(name.clone());
            }
        }
    }
    let deadline = Instant::now() + grace;
    for (name, identity) in signalled {
        if identity.wait_gone(deadline).await {
            report.stopped.push(name.clone());
        } else {
            identity.signal(Signal::KILL)?;
            // SIGKILL cannot be refused; the kernel only needs its time.
            while !identity.wait_gone(Instant::now() + grace).await {}
            report.killed.push(name.clone());
        }
        forget(layout, name)?;
    }
    Ok(())
}

fn forget(layout: &Layout, name: &str) -> Result<(), Error> {
    let path = layout.pid_file(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file(&path, &error)),
        _ => Ok(()),
    }
}
