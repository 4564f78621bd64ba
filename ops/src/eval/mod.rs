//! `susui eval`: how well and how fast a collection answers, against judged queries or exact neighbours.
//!
//! `metrics` computes, `judged` runs text queries with relevance judgements, `neighbors` runs vectors with known neighbours.
//! Queries are sent one by one unless asked otherwise, so that the latencies are those of an idle cluster.

pub mod judged;
pub mod metrics;
pub mod neighbors;
pub mod qrels;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use cluster_config::limits;
use serde::Serialize;
use tokio::time::Instant;

use crate::cli::Global;
use crate::client::Client;
use crate::error::Error;
use crate::output::milliseconds;
use crate::search::Knobs;
use crate::wire::search::{SearchRequest, SearchResponse};

/// Measure retrieval quality and latency
///
/// With --queries and --qrels: text queries with relevance judgements in the layout of BEIR
/// (queries.jsonl of {"_id", "text"}; qrels.tsv of query-id, corpus-id, score). Documents are
/// ranked by their best chunk among --fetch chunks. Printed are nDCG@10 (binary), recall@100
/// and MRR@10, means over the judged queries.
///
/// With --vectors and --neighbors: query vectors and the row numbers of their exact nearest
/// neighbours, nearest first. Printed are recall@10 (share of the exact ten found) and the
/// share of the index' codes scanned per query.
///
/// Both print the latency of a query, measured here, HTTP included. --min-ndcg and
/// --min-recall make it end with exit code 7 below a floor. Every query must be answered by
/// all shards, else it ends with 3.
///
/// Examples:
///   susui eval -c cran --queries queries.jsonl --qrels qrels.tsv
///   susui eval -c cran --queries queries.jsonl --qrels qrels.tsv --prefer-copy replica --json
///   susui eval -c glosses --vectors queries.npy --neighbors neighbors.npy --min-recall 0.97
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Arguments {
    /// Where to look.
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    pub collection: String,
    /// Text queries, JSON lines.
    #[arg(long, value_name = "FILE", requires = "qrels", required_unless_present = "vectors")]
    pub queries: Option<PathBuf>,
    /// Relevance judgements, tab-separated.
    #[arg(long, value_name = "FILE", requires = "queries")]
    pub qrels: Option<PathBuf>,
    /// Query vectors, .npy.
    #[arg(long, value_name = "FILE", requires = "neighbors", conflicts_with = "queries")]
    pub vectors: Option<PathBuf>,
    /// Row numbers of the exact nearest neighbours, .npy.
    #[arg(long, value_name = "FILE", requires = "vectors")]
    pub neighbors: Option<PathBuf>,
    /// What `ingest --vectors` put in front of the row numbers.
    #[arg(long, value_name = "TEXT", default_value = "", requires = "vectors")]
    pub id_prefix: String,
    /// Chunks fetched per text query.
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::TOP_K_MAX)))]
    pub fetch: u32,
    /// Queries in flight at once.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// How the shards search.
    #[command(flatten)]
    pub knobs: Knobs,
    /// Also write each query's ranking, as JSON lines, for comparing runs.
    #[arg(long, value_name = "FILE")]
    pub rankings: Option<PathBuf>,
    /// Fail below this nDCG@10.
    #[arg(long, value_name = "X", requires = "queries")]
    pub min_ndcg: Option<f64>,
    /// Fail below this recall (@100 of texts, @10 of vectors).
    #[arg(long, value_name = "X")]
    pub min_recall: Option<f64>,
}

/// Runs the verb.
pub async fn run(global: &Global, arguments: &Arguments) -> Result<(), Error> {
    match (&arguments.queries, &arguments.qrels, &arguments.vectors, &arguments.neighbors) {
        (Some(queries), Some(qrels), ..) => judged::run(global, arguments, queries, qrels).await,
        (_, _, Some(vectors), Some(neighbors)) => neighbors::run(global, arguments, vectors, neighbors).await,
        _ => Err(Error::usage("nothing to measure with", "give --queries and --qrels, or --vectors and --neighbors")),
    }
}

/// Latency of the queries, milliseconds, as measured by this program.
#[derive(Debug, Default, Serialize)]
pub struct Latency {
    mean: f64,
    p50: f64,
    p99: f64,
    max: f64,
}

impl Latency {
    fn of(durations: &[Duration]) -> Self {
        let total: Duration = durations.iter().sum();
        Self {
            mean: milliseconds(total / u32::try_from(durations.len().max(1)).unwrap_or(u32::MAX)),
            p50: milliseconds(metrics::percentile(durations, 50.0)),
            p99: milliseconds(metrics::percentile(durations, 99.0)),
            max: milliseconds(metrics::percentile(durations, 100.0)),
        }
    }

    fn text(&self) -> String {
        format!("p50 {} ms, p99 {} ms, mean {} ms, max {} ms", self.p50, self.p99, self.mean, self.max)
    }
}

/// A search and the time it took, HTTP included. Errors: also where a shard did not answer, because figures over part of the
/// data would be wrong.
async fn timed_search(client: &Client, request: &SearchRequest) -> Result<(SearchResponse, Duration), Error> {
    let begun = Instant::now();
    let found: SearchResponse = client.post_once(&["api", "v1", "search"], request).await?;
    let elapsed = begun.elapsed();
    if !found.shards.is_complete() {
        return Err(Error::Partial(format!(
            "only {} of {} shards answered a query: no figures",
            found.shards.ok, found.shards.total
        )));
    }
    Ok((found, elapsed))
}

/// Fails where a figure is below its floor.
fn check_floors(floors: &[(&str, f64, Option<f64>)]) -> Result<(), Error> {
    let below: Vec<String> = floors
        .iter()
        .filter_map(|(name, value, floor)| {
            floor.filter(|floor| value < floor).map(|floor| format!("{name} {value:.4} is below {floor}"))
        })
        .collect();
    if below.is_empty() { Ok(()) } else { Err(Error::CheckFailed(below.join("; "))) }
}

/// One line of `--rankings`.
#[derive(Serialize)]
struct Ranking<'a> {
    query: String,
    documents: &'a [String],
    scores: Vec<f64>,
}

/// Writes rankings where they were asked for.
fn write_rankings<'a>(file: Option<&PathBuf>, rankings: impl Iterator<Item = Ranking<'a>>) -> Result<(), Error> {
    let Some(file) = file else { return Ok(()) };
    let mut text = String::new();
    for ranking in rankings {
        text.push_str(&serde_json::to_string(&ranking).expect("a ranking is plain data"));
        text.push('\n');
    }
    std::fs::write(file, text).map_err(|error| Error::file(file, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_that_is_met_exactly_is_met() {
        assert!(check_floors(&[("recall", 0.97, Some(0.97)), ("ndcg", 0.1, None)]).is_ok());
        let error = check_floors(&[("recall", 0.9699, Some(0.97))]).expect_err("below");
        assert_eq!(error.to_string(), "recall 0.9699 is below 0.97");
    }
}
