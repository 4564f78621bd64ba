//! `susui-coordinator`: reads its configuration and lives one life (`startup::run`); or, started by itself, parses one document.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use cluster_config::coordinator_config::CoordinatorConfig;
use coordinator::ingest::parse::child;
use coordinator::{startup, telemetry};

/// Front of a Susui cluster: HTTP API, ingestion, scatter-gather, answers.
///
/// Stops on SIGTERM or Ctrl-C after finishing what is under way. Exit codes: 0 stopped as asked, 1 could not start or failed,
/// 2 wrong arguments.
#[derive(Parser)]
#[command(name = "susui-coordinator", version)]
struct Arguments {
    /// Configuration file, TOML; cluster-config/examples/coordinator.toml describes every key.
    #[arg(long)]
    config: PathBuf,
    /// Overrides `http_listen`; port 0 takes a free one, which the log names.
    #[arg(long)]
    http_listen: Option<std::net::SocketAddr>,
    /// Log as JSON lines.
    #[arg(long)]
    log_json: bool,
}

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|first| first == child::SUBCOMMAND) {
        return child::main();
    }
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    telemetry::init_logs(arguments.log_json)?;
    let path = arguments.config.display().to_string();
    let text = std::fs::read_to_string(&arguments.config).with_context(|| format!("cannot read {path}"))?;
    let mut config = CoordinatorConfig::from_toml(&text, std::env::vars()).with_context(|| path)?;
    if let Some(http_listen) = arguments.http_listen {
        config.http_listen = http_listen;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async { startup::run(config, startup::stop_signal()?).await });
    // What is still computed for requests that were cut is not waited for.
    runtime.shutdown_background();
    outcome
}
