//! A chaos run of any length: `ops/chaos --minutes 60 --seed 7` builds what it needs and runs it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use chaos_tests::chaos::{self, Run};
use chaos_tests::links::Network;
use clap::Parser;

/// Starts a cluster, hurts it by plan under load, heals it, and prints a verdict for each promise
///
/// Needs the binaries of node and coordinator beside it; ops/chaos builds them.
/// Ends with 0 if every promise was tested and kept, else with 1.
#[derive(Debug, Parser)]
#[command(verbatim_doc_comment)]
struct Arguments {
    /// How long faults are injected.
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Seed of plan and workloads [default: drawn and printed].
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
    /// Write every operation to this file, a line of JSON each.
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Every process in a network of its own, where packets can be lost, instead of proxies between them; for root.
    #[arg(long)]
    namespaces: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let Arguments { minutes, seed, history, namespaces } = Arguments::parse();
    let (seed, duration) = (seed.unwrap_or_else(rand::random), Duration::from_secs(60 * minutes));
    let network = if namespaces { Network::Namespaces } else { Network::Proxied };
    let run = Run { history, network, ..Run::of_seed(seed, duration) };
    let verdict = chaos::run(&run).await?;
    println!("{verdict}");
    Ok(if verdict.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
