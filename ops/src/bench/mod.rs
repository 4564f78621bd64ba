//! `susui bench`: how fast and how good, measured from outside through the public API.
//!
//! `dataset`, `synthetic` and `truth` make data and know the right answers; `patient` is the cluster that is measured, `fill` loads it;
//! `requests` makes and reads searches, `load` (or `wrk`) sends them and takes times. `vectors`, `http` and `query` are the verbs, `faiss` has the node's own index measured in
//! process, `plot` draws.

pub mod dataset;
pub mod echo;
pub mod faiss;
pub mod fill;
pub mod http;
pub mod load;
pub mod patient;
pub mod plot;
pub mod query;
pub mod requests;
pub mod synthetic;
pub mod truth;
pub mod vectors;
pub mod wrk;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use cluster_config::limits;

use crate::cli::Global;
use crate::error::Error;

pub use echo::{ECHO_VERB, EchoArguments};

/// Results of every search, and the neighbours that recall counts: recall@10.
pub const K: usize = 10;

/// The verbs of `susui bench`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load vectors, and measure recall against speed over the search's knobs
    ///
    /// Without --running it starts a scratch cluster (three nodes, a coordinator without cache) and leaves nothing behind. Loads a
    /// .npy set or a seeded synthetic one, waits for the index, and for each setting prints recall@10 against
    /// exact search, queries/s over --connections, and the latency of a lone client; besides that the time to
    /// load and to index, and bytes of memory per vector. Searches are asked while vectors are loaded, too.
    /// --compare-faiss has `susui-node` measure the same vectors in one process: plain FAISS, our search
    /// of one shard, and the tuning guide's own parameters.
    ///
    /// Examples:
    ///   susui bench vectors --n 50000 --dim 128
    ///   susui bench vectors --base base.npy --queries queries.npy --neighbors neighbors.npy --compare-faiss
    ///   susui bench vectors --n 200000 --nprobe 8,32 --svg recall.svg --json
    #[command(verbatim_doc_comment)]
    Vectors(Box<vectors::Arguments>),
    /// Measure the HTTP path: searches/s, the share of a handler that only echoes, the time added to a shard's, batches
    ///
    /// Loads vectors as `bench vectors` does. --wrk lets wrk (Debian package wrk) send the requests of the
    /// throughput as well.
    ///
    /// Examples:
    ///   susui bench http --base base.npy --queries queries.npy --neighbors neighbors.npy
    ///   susui bench http --n 50000 --dim 128 --connections 32 --wrk --json
    #[command(verbatim_doc_comment)]
    Http(Box<http::Arguments>),
    /// Show where the time of a query goes: each stage's share, from the answers' own timings
    ///
    /// Asks the cluster at --url with texts, one per line of a file or as given, and prints mean, p50 and
    /// p95 of each stage, and what lies outside of them (HTTP, JSON, this client). `nested` stages are parts
    /// of the scatter on the nodes.
    ///
    /// Examples:
    ///   susui bench query "how do I stop a node?" -c docs
    ///   susui bench query --texts questions.txt -c docs --repeat 5 --json
    #[command(verbatim_doc_comment)]
    Query(query::Arguments),
}

/// Which vectors.
#[derive(Clone, Debug, Args)]
pub struct DataArguments {
    /// Vectors to load, .npy of float16 or float32.
    #[arg(long, value_name = "FILE")]
    pub base: Option<PathBuf>,
    /// Vectors to ask for, .npy; without it the last rows of --base are held out.
    #[arg(long, value_name = "FILE", requires = "base")]
    pub queries: Option<PathBuf>,
    /// Row numbers of the exact nearest neighbours, .npy; computed if not given.
    #[arg(long, value_name = "FILE", requires = "queries")]
    pub neighbors: Option<PathBuf>,
    /// Rows of a synthetic set.
    #[arg(long, value_name = "N", default_value_t = 50_000, conflicts_with = "base", value_parser = parse_rows)]
    pub n: usize,
    /// Dimension of a synthetic set.
    #[arg(long, value_name = "N", default_value_t = 128, conflicts_with = "base", value_parser = clap::value_parser!(u32).range(2..=i64::from(limits::DIM_MAX)))]
    pub dim: u32,
    /// Seed of a synthetic set.
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "base")]
    pub seed: u64,
    /// Most queries.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = parse_query_count)]
    pub query_count: usize,
}

/// Which cluster, and what the collection is made like. What is not given is chosen by the cluster.
#[derive(Clone, Debug, Args)]
pub struct PatientArguments {
    /// Measure the cluster at --url, in a collection that is deleted again, instead of a scratch cluster.
    #[arg(long)]
    pub running: bool,
    /// Nodes of the scratch cluster.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9), conflicts_with = "running")]
    pub nodes: u16,
    /// Shards.
    #[arg(long, value_name = "N")]
    pub shards: Option<u32>,
    /// Copies of each shard.
    #[arg(long, value_name = "N")]
    pub copies: Option<u32>,
    /// Dimension after PCA.
    #[arg(long, value_name = "N")]
    pub pca_dim: Option<u32>,
    /// Lists of each shard's index.
    #[arg(long, value_name = "N")]
    pub nlist: Option<u32>,
    /// Sub-quantisers.
    #[arg(long, value_name = "N")]
    pub m: Option<u32>,
    /// Bits per sub-quantiser, 4 or 8.
    #[arg(long, value_name = "N")]
    pub nbits: Option<u32>,
    /// Vectors per request while loading.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=limits::POINTS_PER_BATCH_MAX as i64))]
    pub batch: u32,
}

/// Most rows: row numbers are 32 bits, and all rows are held in memory.
fn parse_rows(text: &str) -> Result<usize, String> {
    parse_count(text, 100, 100_000_000)
}

fn parse_query_count(text: &str) -> Result<usize, String> {
    parse_count(text, 1, 100_000)
}

fn parse_count(text: &str, min: usize, max: usize) -> Result<usize, String> {
    let count = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (min..=max).contains(&count) { Ok(count) } else { Err(format!("use {min} to {max}")) }
}

/// Runs one verb.
pub async fn run(global: &Global, command: Command) -> Result<(), Error> {
    match command {
        Command::Vectors(arguments) => vectors::run(global, &arguments).await,
        Command::Http(arguments) => http::run(global, &arguments).await,
        Command::Query(arguments) => query::run(global, &arguments).await,
    }
}

/// Serves the handler that only echoes, until the process is ended.
pub async fn echo(arguments: EchoArguments) -> Result<(), Error> {
    echo::serve(arguments).await
}
