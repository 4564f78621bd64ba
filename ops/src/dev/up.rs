//! `susui dev up`: write what is missing, start what does not run, wait until all of it is ready.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use cluster_config::coordinator_config::CoordinatorConfig;
use cluster_config::error::ConfigError;
use cluster_config::node_config::NodeConfig;
use rustix::process::Signal;
use serde::Serialize;
use tokio::time::Instant;

use super::layout::{BASE_PORT_DEFAULT, Layout, Manifest, Member, NODES_DEFAULT, NODES_MAX};
use super::process::{self, Identity};
use super::{UpArguments, home_share};
use crate::cli::Global;
use crate::client::Client;
use crate::collection::EMBEDDER_DEFAULT;
use crate::error::Error;
use crate::output::Output;

/// Time one readiness probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two rounds of probes.
const PROBE_INTERVAL: Duration = Duration::from_millis(150);

/// Runs the verb.
pub async fn run(global: &Global, arguments: UpArguments) -> Result<(), Error> {
    let output = global.output();
    let layout = arguments.place.layout()?;
    let _lock = layout.lock()?;
    let manifest = settle_manifest(&layout, &arguments)?;
    let bin_dir = bin_dir(arguments.bin_dir)?;
    layout.write(&manifest)?;
    check_configs(&layout, &manifest)?;
    wake(&layout, &manifest, output)?;
    let missing: Vec<Member> = manifest.members().into_iter().filter(|member| !is_running(&layout, member)).collect();
    for member in &missing {
        check_startable(&bin_dir, member)?;
    }
    let mut started = Vec::new();
    for member in missing {
        let child = start(&layout, &bin_dir, &member).await?;
        let log = layout.log_file(&member.name);
        output.note(&format!("started {} (pid {}), log {}", member.name, child.id(), log.display()));
        started.push((member.name, child));
    }
    wait_ready(global, &layout, &manifest, &mut started, arguments.wait).await?;
    let report = UpReport {
        url: manifest.url(),
        data_dir: layout.root().to_owned(),
        nodes: manifest.nodes,
        metadata_only: manifest.metadata_only,
        started: started.into_iter().map(|(name, _)| name).collect(),
    };
    output.result(&report, || report.text());
    Ok(())
}

#[derive(Serialize)]
struct UpReport {
    url: String,
    data_dir: PathBuf,
    nodes: u16,
    /// Of them: voters without shards.
    metadata_only: u16,
    started: Vec<String>,
}

impl UpReport {
    fn text(&self) -> String {
        let nodes = match self.metadata_only {
            0 => format!("{} node(s)", self.nodes),
            voters => format!("{voters} metadata voter(s), {} data node(s)", self.nodes - voters),
        };
        let mut text = format!("ready: {nodes} and a coordinator at {}\n", self.url);
        if self.url != crate::cli::URL_DEFAULT {
            text.push_str(&format!("for the other commands: export SUSUI_URL={}\n", self.url));
        }
        text
    }
}

/// What the directory was made with, or what was asked for where it is new. Errors: the two contradict each other.
fn settle_manifest(layout: &Layout, arguments: &UpArguments) -> Result<Manifest, Error> {
    let asked = asked_nodes(arguments)?;
    let Some(existing) = layout.manifest()? else {
        let model_dir = match &arguments.model_dir {
            Some(dir) => std::path::absolute(dir).map_err(|error| Error::file(dir, &error))?,
            None => home_share()?.join("models").join(EMBEDDER_DEFAULT),
        };
        let (nodes, metadata_only) = asked.unwrap_or((NODES_DEFAULT, 0));
        return Ok(Manifest {
            cluster_id: format!("dev-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]),
            nodes,
            metadata_only,
            base_port: arguments.base_port.unwrap_or(BASE_PORT_DEFAULT),
            model_dir,
        });
    };
    let differs = |flag: &str, made_with: &str, asked: &str| {
        Error::usage(
            format!("{} holds a cluster made with {flag} {made_with}, not {asked}", layout.root().display()),
            format!("leave {flag} out, or choose another --data-dir"),
        )
    };
    let made_with = (existing.nodes, existing.metadata_only);
    if let Some(asked) = asked.filter(|asked| *asked != made_with) {
        let words = |(nodes, metadata_only): (u16, u16)| match metadata_only {
            0 => format!("{nodes}"),
            voters => format!("({voters} metadata, {} data)", nodes - voters),
        };
        return Err(differs("--nodes", &words(made_with), &words(asked)));
    }
    if let Some(port) = arguments.base_port.filter(|port| *port != existing.base_port) {
        return Err(differs("--base-port", &existing.base_port.to_string(), &port.to_string()));
    }
    Ok(existing)
}

/// The nodes that the command line names, and how many of them only vote.
fn asked_nodes(arguments: &UpArguments) -> Result<Option<(u16, u16)>, Error> {
    match (arguments.metadata, arguments.data) {
        (Some(metadata), Some(data)) if metadata + data > NODES_MAX => Err(Error::usage(
            format!("--metadata {metadata} and --data {data} are {} nodes", metadata + data),
            format!("run at most {NODES_MAX} together"),
        )),
        (Some(metadata), Some(data)) => Ok(Some((metadata + data, metadata))),
        _ => Ok(arguments.nodes.map(|nodes| (nodes, 0))),
    }
}

/// Reads every file as its process will, so that a mistake is told before anything is started; likewise a missing model.
fn check_configs(layout: &Layout, manifest: &Manifest) -> Result<(), Error> {
    for member in manifest.members() {
        let path = layout.config_file(&member.name);
        let text = std::fs::read_to_string(&path).map_err(|error| Error::file(&path, &error))?;
        let invalid = |error: ConfigError| {
            Error::local(format!("{}: {}: {}", path.display(), error.key, error.problem), error.hint)
        };
        if member.rpc_port.is_some() {
            NodeConfig::from_toml(&text, std::env::vars()).map_err(invalid)?;
            continue;
        }
        let config = CoordinatorConfig::from_toml(&text, std::env::vars()).map_err(invalid)?;
        let weights = config.embedder.model_dir.join("model.safetensors");
        if config.embedder.name == EMBEDDER_DEFAULT && !weights.exists() {
            let problem = format!("there is no embedding model at {}", weights.display());
            return Err(Error::local(
                problem,
                format!("`ops/fetch-model` of the sources fetches it; or correct model_dir in {}", path.display()),
            ));
        }
    }
    Ok(())
}

/// The directory of the programs: as given, else where this one is.
pub fn bin_dir(given: Option<PathBuf>) -> Result<PathBuf, Error> {
    let dir = match given {
        Some(dir) => dir,
        None => {
            let ourselves = std::env::current_exe()
                .map_err(|error| Error::local(format!("cannot find this program: {error}"), ""))?;
            ourselves.parent().map(Path::to_owned).unwrap_or_default()
        }
    };
    std::path::absolute(&dir).map_err(|error| Error::file(&dir, &error))
}

/// Lets processes go on that a signal has stopped: they run, but would never be ready.
fn wake(layout: &Layout, manifest: &Manifest, output: Output) -> Result<(), Error> {
    for member in manifest.members() {
        let identity = Identity::read(&layout.pid_file(&member.name));
        if let Some(identity) = identity.filter(Identity::is_stopped)
            && identity.signal(Signal::CONT)?
        {
            output.note(&format!("{} (pid {}) was stopped by a signal and goes on", member.name, identity.pid));
        }
    }
    Ok(())
}

/// Whether the process that its pid file names still runs.
pub fn is_running(layout: &Layout, member: &Member) -> bool {
    Identity::read(&layout.pid_file(&member.name)).is_some_and(|identity| identity.is_running())
}

/// Errors: its program is not built, or somebody else has one of its ports.
fn check_startable(bin_dir: &Path, member: &Member) -> Result<(), Error> {
    let program = bin_dir.join(member.binary);
    if !program.is_file() {
        return Err(Error::local(
            format!("{} does not exist", program.display()),
            "build it with `cargo build --release`, or name its directory with --bin-dir",
        ));
    }
    for port in member.ports() {
        // SO_REUSEADDR is set by the standard library, so a port in TIME_WAIT is free here as it is for the process.
        if let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return Err(Error::local(
                format!("port {port}, needed by {}, cannot be taken: {error}", member.name),
                "is another cluster running? stop it, or use another --base-port with another --data-dir",
            ));
        }
    }
    Ok(())
}

/// Starts one process, which must not run.
pub async fn start(layout: &Layout, bin_dir: &Path, member: &Member) -> Result<Child, Error> {
    check_startable(bin_dir, member)?;
    let (config, pid_file) = (layout.config_file(&member.name), layout.pid_file(&member.name));
    let arguments = [Path::new("--config"), &config];
    process::start(&bin_dir.join(member.binary), &arguments, &pid_file, &layout.log_file(&member.name)).await
}

/// Polls `/readyz` of every process until all say yes. Errors: one of them died (its log's end is shown), or time is up.
/// Cancel: the processes go on running.
async fn wait_ready(
    global: &Global,
    layout: &Layout,
    manifest: &Manifest,
    started: &mut [(String, Child)],
    wait: Duration,
) -> Result<(), Error> {
    let client = Client::new(&manifest.url(), PROBE_TIMEOUT, None)?;
    let spinner = global.output().spinner();
    let deadline = Instant::now() + wait;
    loop {
        let mut waiting = Vec::new();
        for member in manifest.members() {
            fail_if_dead(layout, &member, started)?;
            if let Err(reason) = readiness(&client, &member).await {
                waiting.push(format!("{}: {reason}", member.name));
            }
        }
        if waiting.is_empty() {
            spinner.finish_and_clear();
            return Ok(());
        }
        spinner.set_message(format!("waiting for {}", waiting.join("; ")));
        if Instant::now() >= deadline {
            spinner.finish_and_clear();
            return Err(Error::CheckFailed(format!(
                "not ready after {}: {} (logs in {})",
                humantime::format_duration(wait),
                waiting.join("; "),
                layout.root().join("log").display()
            )));
        }
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
}

fn fail_if_dead(layout: &Layout, member: &Member, started: &mut [(String, Child)]) -> Result<(), Error> {
    let log = layout.log_file(&member.name);
    let dead = |how: String| {
        Error::local(
            format!("{} {how}; the end of its log:\n{}", member.name, process::log_tail(&log)),
            format!("the whole log: {}", log.display()),
        )
    };
    if let Some((_, child)) = started.iter_mut().find(|(name, _)| *name == member.name) {
        return match child.try_wait() {
            Ok(Some(status)) => Err(dead(format!("ended with {status}"))),
            _ => Ok(()),
        };
    }
    if is_running(layout, member) { Ok(()) } else { Err(dead("died".into())) }
}

/// Whether a process says it is ready; the reason in one line where it does not.
pub(super) async fn readiness(client: &Client, member: &Member) -> Result<(), String> {
    match client.probe(&format!("{}/readyz", member.url())).await {
        Ok((200, _)) => Ok(()),
        Ok((status, text)) => Err(text.lines().next().map_or_else(|| format!("HTTP {status}"), str::to_owned)),
        Err(Error::Unreachable { .. }) => Err("not listening yet".into()),
        Err(error) => Err(error.to_string()),
    }
}
