//! `susui dev status`: the processes of a directory as the operating system and their `/readyz` see them.

use std::time::Duration;

use serde::Serialize;

use super::Place;
use super::layout::{Layout, Member};
use super::process::Identity;
use super::up::readiness;
use crate::cli::Global;
use crate::client::Client;
use crate::error::Error;
use crate::output::{bytes, row, table};

/// Time one readiness probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct DevReport {
    cluster_id: String,
    data_dir: std::path::PathBuf,
    url: String,
    processes: Vec<ProcessReport>,
}

#[derive(Serialize)]
struct ProcessReport {
    name: String,
    /// Absent where it does not run.
    pid: Option<u32>,
    ready: bool,
    /// Why it is not ready; empty where it is.
    reason: String,
    resident_bytes: Option<u64>,
    http: String,
    log: std::path::PathBuf,
}

/// Runs the verb. Errors: `CheckFailed` unless every process runs and is ready.
pub async fn run(global: &Global, place: &Place) -> Result<(), Error> {
    let layout = place.layout()?;
    let manifest = layout.existing_manifest()?;
    let client = Client::new(&manifest.url(), PROBE_TIMEOUT, None)?;
    let members = manifest.members();
    let processes = futures::future::join_all(members.iter().map(|member| look_at(&layout, &client, member))).await;
    let not_ready: Vec<&str> =
        processes.iter().filter(|process| !process.ready).map(|process| process.name.as_str()).collect();
    let not_ready = not_ready.join(", ");
    let report = DevReport {
        cluster_id: manifest.cluster_id.clone(),
        data_dir: layout.root().to_owned(),
        url: manifest.url(),
        processes,
    };
    global.output().result(&report, || report.text());
    if not_ready.is_empty() { Ok(()) } else { Err(Error::CheckFailed(format!("not ready: {not_ready}"))) }
}

async fn look_at(layout: &Layout, client: &Client, member: &Member) -> ProcessReport {
    let identity = Identity::read(&layout.pid_file(&member.name)).filter(Identity::is_running);
    let readiness = match &identity {
        Some(_) => readiness(client, member).await,
        None => Err("not running".into()),
    };
    ProcessReport {
        name: member.name.clone(),
        pid: identity.as_ref().map(|identity| identity.pid),
        ready: readiness.is_ok(),
        reason: readiness.err().unwrap_or_default(),
        resident_bytes: identity.and_then(|identity| identity.resident_bytes()),
        http: member.url(),
        log: layout.log_file(&member.name),
    }
}

impl DevReport {
    fn text(&self) -> String {
        let mut rows = vec![row(["PROCESS", "PID", "READY", "MEMORY", "HTTP", "NOTE"])];
        for process in &self.processes {
            rows.push(vec![
                process.name.clone(),
                process.pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
                if process.ready { "yes" } else { "no" }.into(),
                process.resident_bytes.map_or_else(|| "-".into(), bytes),
                process.http.clone(),
                process.reason.clone(),
            ]);
        }
        format!("cluster {} in {}\n{}", self.cluster_id, self.data_dir.display(), table(&rows))
    }
}
