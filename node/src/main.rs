//! `susui-node`: a metadata voter, a data node, or both.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use cluster_config::node_config::NodeConfig;
use node::{measure, startup, telemetry};

/// A Susui node: votes in the metadata group, holds shard copies, or both.
///
/// Ends with 0 after SIGTERM or Ctrl-C, 1 when it cannot start or go on, 2 on wrong arguments, 70 on a bug.
#[derive(Parser)]
#[command(name = "susui-node", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Arguments {
    /// The configuration, for example cluster-config/examples/node.toml.
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Measure the vector engine beside plain FAISS on the vectors of a directory (for `susui bench vectors`), and end.
    Measure {
        /// With order.json and vectors.f32.
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    telemetry::start_logging();
    telemetry::end_on_panic();
    let outcome = match (&arguments.command, &arguments.config) {
        (Some(Command::Measure { dir }), _) => measure::run(dir),
        (None, Some(config)) => serve(config),
        // Not reached: the argument is required then.
        (None, None) => Err(anyhow::anyhow!("no configuration")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(path: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let config = NodeConfig::from_toml(&text, std::env::vars()).with_context(|| path.display().to_string())?;
    node::vector::check_cpu().map_err(anyhow::Error::msg)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(startup::reactor_threads()).enable_all().build()?;
    runtime.block_on(startup::run(config))
}
