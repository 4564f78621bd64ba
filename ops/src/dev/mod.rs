//! `susui dev`: a whole cluster on this machine, for a first look, for development and for the quickstart.
//!
//! `layout` says where everything lies and what the configuration files hold (pure); `process` starts, recognises and stops
//! processes; `up`, `down` and `report` are the verbs. Nothing here knows what the processes do beyond `/readyz`.

pub mod down;
pub mod layout;
pub mod process;
pub mod report;
pub mod up;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use cluster_config::limits;

use crate::cli::Global;
use crate::error::Error;
use layout::Layout;

pub use process::{EXEC_VERB, ExecArguments, exec};

/// The verbs of `susui dev`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start what is missing of a cluster on this machine, and wait until it is ready
    ///
    /// Writes one configuration file per process below DIR/conf (once: edit them freely), starts
    /// the nodes and a coordinator in sessions of their own, so that they survive this command
    /// and its terminal, and waits for /readyz. Safe to repeat: processes that run are left
    /// alone, those that a signal stopped go on, those that died are started again on their data.
    ///
    /// Examples:
    ///   susui dev up
    ///   susui dev up --nodes 1 --data-dir /tmp/susui --base-port 9000
    ///   susui dev up --metadata 3 --data 3
    ///
    /// Ports, from --base-port P: the coordinator's HTTP on P, node N's gRPC on P+10+N, its
    /// health and metrics on P+20+N.
    #[command(verbatim_doc_comment)]
    Up(UpArguments),
    /// Stop the cluster of a directory: SIGTERM, then SIGKILL after a grace period. The data stays
    ///
    /// Only processes that this directory's pid files name, and whose start time still matches,
    /// are touched.
    ///
    /// Example:
    ///   susui dev down
    #[command(verbatim_doc_comment)]
    Down(DownArguments),
    /// Show the processes of a directory: running or not, ready or why not, memory, ports
    ///
    /// Ends with exit code 7 unless every process runs and is ready.
    ///
    /// Example:
    ///   susui dev status --json
    #[command(verbatim_doc_comment)]
    Status(Place),
}

/// Which directory.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// Directory of the cluster: configuration, data, logs, pid files. Default: ~/.local/share/susui/dev
    #[arg(long, value_name = "DIR", env = "SUSUI_DEV_DIR")]
    pub data_dir: Option<PathBuf>,
}

/// Arguments of `susui dev up`.
#[derive(Debug, Args)]
pub struct UpArguments {
    /// Which directory.
    #[command(flatten)]
    pub place: Place,
    /// Nodes to run, 1 to 9, each a metadata voter (the first ones) and a data node [default: 3, or what the directory was made with].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=i64::from(layout::NODES_MAX)), conflicts_with_all = ["metadata", "data"])]
    pub nodes: Option<u16>,
    /// Metadata voters in processes of their own, 1, 3 or 5: nodes 1 to M.
    #[arg(long, value_name = "M", value_parser = parse_voters, requires = "data")]
    pub metadata: Option<u16>,
    /// Data nodes in processes of their own; with --metadata at most 9 together.
    #[arg(long, value_name = "D", value_parser = clap::value_parser!(u16).range(1..i64::from(layout::NODES_MAX)), requires = "metadata")]
    pub data: Option<u16>,
    /// First port [default: 8000, or what the directory was made with].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1024..=65_000))]
    pub base_port: Option<u16>,
    /// Directory of susui-node and susui-coordinator [default: where this program is].
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Directory of the embedding model [default: ~/.local/share/susui/models/all-MiniLM-L6-v2].
    #[arg(long, value_name = "DIR", env = "SUSUI_MODEL_DIR")]
    pub model_dir: Option<PathBuf>,
    /// Longest wait until everything is ready.
    #[arg(long, value_name = "DURATION", default_value = "90s", value_parser = humantime::parse_duration)]
    pub wait: Duration,
}

/// Arguments of `susui dev down`.
#[derive(Debug, Args)]
pub struct DownArguments {
    /// Which directory.
    #[command(flatten)]
    pub place: Place,
    /// Time between SIGTERM and SIGKILL. A coordinator takes up to 12 s more than its drain_timeout (15 s).
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub grace: Duration,
}

impl Place {
    /// The layout of the directory. Errors: no directory given and no HOME to default to.
    pub fn layout(&self) -> Result<Layout, Error> {
        let root = match &self.data_dir {
            Some(dir) => dir.clone(),
            None => home_share()?.join("dev"),
        };
        let root = std::path::absolute(&root).map_err(|error| Error::file(&root, &error))?;
        Ok(Layout::new(root))
    }
}

/// `~/.local/share/susui`: where clusters and models of this user lie.
pub fn home_share() -> Result<PathBuf, Error> {
    match std::env::var_os("HOME") {
        Some(home) if !home.is_empty() => Ok(PathBuf::from(home).join(".local/share/susui")),
        _ => Err(Error::usage("HOME is not set", "name a directory with --data-dir")),
    }
}

fn parse_voters(text: &str) -> Result<u16, String> {
    let count: u16 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if limits::VOTER_COUNTS.contains(&usize::from(count)) {
        return Ok(count);
    }
    Err("1, 3 or 5: an even number survives no more failures than one less".into())
}

/// Runs one verb.
pub async fn run(global: &Global, command: Command) -> Result<(), Error> {
    match command {
        Command::Up(arguments) => up::run(global, arguments).await,
        Command::Down(arguments) => down::run(global, &arguments).await,
        Command::Status(place) => report::run(global, &place).await,
    }
}
