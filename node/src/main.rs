//! `susui-node`: a metadata voter, a data node, or both.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use cluster_config::node_config::NodeConfig;
use node::{startup, telemetry};

/// A Susui node: votes in the metadata group, holds shard copies, or both.
///
/// Ends with 0 after SIGTERM or Ctrl-C, 1 when it cannot start or go on, 2 on wrong arguments, 70 on a bug.
#[derive(Parser)]
#[command(name = "susui-node", version)]
struct Arguments {
    /// The configuration, for example cluster-config/examples/node.toml.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    telemetry::start_logging();
    telemetry::end_on_panic();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let path = &arguments.config;
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let config = NodeConfig::from_toml(&text, std::env::vars()).with_context(|| path.display().to_string())?;
    node::vector::check_cpu().map_err(anyhow::Error::msg)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(startup::run(config))
}
