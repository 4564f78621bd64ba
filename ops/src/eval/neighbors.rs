//! Query vectors with known exact neighbours: recall@10 and the share of codes scanned.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;

use super::{Arguments, Latency, Ranking, check_floors, metrics, timed_search, write_rankings};
use crate::cli::Global;
use crate::client::Client;
use crate::error::Error;
use crate::npy;
use crate::wire::search::{SearchRequest, Work};

/// Neighbours asked for and compared.
const K: usize = 10;
/// Most query vectors of a run: they are held in memory.
const QUERIES_MAX: usize = 100_000;

#[derive(Debug, Serialize)]
struct Report {
    collection: String,
    queries: usize,
    recall_at_10: f64,
    recall_at_10_worst: f64,
    /// Absent where nothing is indexed.
    codes_scanned_share: Option<f64>,
    rows_exact_mean: f64,
    latency_ms: Latency,
}

struct Answered {
    documents: Vec<String>,
    scores: Vec<f64>,
    recall: f64,
    work: Work,
    elapsed: Duration,
}

/// Runs every query vector and prints the means.
pub(super) async fn run(global: &Global, arguments: &Arguments, vectors: &Path, neighbors: &Path) -> Result<(), Error> {
    let (mut queries, mut exact) = (npy::open(vectors)?, npy::open(neighbors)?);
    if queries.rows() != exact.rows() || queries.rows() > QUERIES_MAX || exact.columns() < K {
        return Err(Error::usage(
            format!("{} query vectors, but {} lists of {} neighbours", queries.rows(), exact.rows(), exact.columns()),
            format!("give one list of at least {K} neighbours for each of at most {QUERIES_MAX} vectors"),
        ));
    }
    let vectors = queries.next_vectors(QUERIES_MAX)?;
    let expected = exact.next_numbers(QUERIES_MAX)?;
    let (client, output) = (global.client()?, global.output());
    let bar = output.progress(vectors.len() as u64, "queries");
    let answers: Vec<_> = vectors
        .into_iter()
        .zip(&expected)
        .map(|(vector, expected)| ask(&client, arguments, vector, &expected[..K]))
        .collect();
    let answered: Vec<Answered> = futures::stream::iter(answers)
        .buffered(usize::from(arguments.concurrency))
        .inspect(|_| bar.inc(1))
        .try_collect()
        .await?;
    bar.finish_and_clear();

    let recalls: Vec<f64> = answered.iter().map(|answer| answer.recall).collect();
    let total = |counter: fn(&Work) -> u64| answered.iter().map(|answer| counter(&answer.work)).sum::<u64>() as f64;
    let codes_total = total(|work| work.codes_total);
    let report = Report {
        collection: arguments.collection.clone(),
        queries: answered.len(),
        recall_at_10: metrics::mean(&recalls),
        recall_at_10_worst: recalls.iter().copied().fold(1.0, f64::min),
        codes_scanned_share: (codes_total > 0.0).then(|| total(|work| work.codes_scanned) / codes_total),
        rows_exact_mean: total(|work| work.rows_exact) / answered.len().max(1) as f64,
        latency_ms: Latency::of(&answered.iter().map(|answer| answer.elapsed).collect::<Vec<_>>()),
    };
    output.result(&report, || report.text());
    let rankings = answered.iter().enumerate().map(|(row, answer)| Ranking {
        query: row.to_string(),
        documents: &answer.documents,
        scores: answer.scores.clone(),
    });
    write_rankings(arguments.rankings.as_ref(), rankings)?;
    check_floors(&[("recall@10", report.recall_at_10, arguments.min_recall)])
}

async fn ask(client: &Client, arguments: &Arguments, vector: Vec<f32>, expected: &[i64]) -> Result<Answered, Error> {
    let request = SearchRequest {
        vector: Some(vector),
        include: Some(Vec::new()),
        explain: true,
        ..arguments.knobs.request(&arguments.collection, K as u32)
    };
    let (found, elapsed) = timed_search(client, &request).await?;
    let work = found.explain.as_ref().map(|explain| explain.work).unwrap_or_default();
    let expected: HashSet<String> = expected.iter().map(|row| format!("{}{row}", arguments.id_prefix)).collect();
    let (documents, scores): (Vec<String>, Vec<f64>) =
        found.hits.into_iter().map(|hit| (hit.document_id, hit.score)).unzip();
    Ok(Answered { recall: metrics::recall(&documents, &expected, K), documents, scores, work, elapsed })
}

impl Report {
    fn text(&self) -> String {
        let share = match self.codes_scanned_share {
            Some(share) => format!("{:.1} % of the codes per query", share * 100.0),
            None => "no index used".into(),
        };
        format!(
            "{} query vectors over {}\n  recall@{K}   {:.4} (worst query {:.1})\n  scanned     {share}, {:.0} rows compared exactly\n  latency     {}",
            self.queries,
            self.collection,
            self.recall_at_10,
            self.recall_at_10_worst,
            self.rows_exact_mean,
            self.latency_ms.text()
        )
    }
}
