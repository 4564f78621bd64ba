//! Text queries with relevance judgements: nDCG@10, recall@100, MRR@10.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;

use super::{Arguments, Latency, Ranking, check_floors, metrics, qrels, timed_search, write_rankings};
use crate::cli::Global;
use crate::client::Client;
use crate::error::Error;
use crate::jsonl::{self, Record};
use crate::wire::search::SearchRequest;

#[derive(Debug, Serialize)]
struct Report {
    collection: String,
    queries: usize,
    fetch: u32,
    ndcg_at_10: f64,
    recall_at_100: f64,
    mrr_at_10: f64,
    /// Queries that some chunk limit cut short of 100 documents.
    queries_below_100_documents: usize,
    latency_ms: Latency,
}

struct Answered {
    query: String,
    documents: Vec<String>,
    scores: Vec<f64>,
    elapsed: Duration,
}

/// Runs every judged query and prints the means.
pub(super) async fn run(global: &Global, arguments: &Arguments, queries: &Path, qrels: &Path) -> Result<(), Error> {
    let text = fs::read_to_string(qrels).map_err(|error| Error::file(qrels, &error))?;
    let relevant = qrels::parse(&text)
        .map_err(|problem| Error::local(format!("{}: {problem}", qrels.display()), "expected the layout of BEIR"))?;
    let (judged, unjudged): (Vec<Record>, Vec<Record>) =
        read_queries(queries)?.into_iter().partition(|query| relevant.contains_key(&query.id));
    if judged.is_empty() {
        return Err(Error::local(
            format!("{} judges no query of {}", qrels.display(), queries.display()),
            "do the two files belong together?",
        ));
    }
    let output = global.output();
    if !unjudged.is_empty() {
        output.note(&format!("{} queries without judgements are left out", unjudged.len()));
    }
    let client = global.client()?;
    let bar = output.progress(judged.len() as u64, "queries");
    let answers = judged.into_iter().map(|query| ask(&client, arguments, query)).collect::<Vec<_>>();
    let answered: Vec<Answered> = futures::stream::iter(answers)
        .buffered(usize::from(arguments.concurrency))
        .inspect(|_| bar.inc(1))
        .try_collect()
        .await?;
    bar.finish_and_clear();

    let mean_of = |value: &dyn Fn(&Answered) -> f64| metrics::mean(&answered.iter().map(value).collect::<Vec<_>>());
    let report = Report {
        collection: arguments.collection.clone(),
        queries: answered.len(),
        fetch: arguments.fetch,
        ndcg_at_10: mean_of(&|answer| metrics::ndcg(&answer.documents, &relevant[&answer.query], 10)),
        recall_at_100: mean_of(&|answer| metrics::recall(&answer.documents, &relevant[&answer.query], 100)),
        mrr_at_10: mean_of(&|answer| metrics::reciprocal_rank(&answer.documents, &relevant[&answer.query], 10)),
        queries_below_100_documents: answered.iter().filter(|answer| answer.documents.len() < 100).count(),
        latency_ms: Latency::of(&answered.iter().map(|answer| answer.elapsed).collect::<Vec<_>>()),
    };
    output.result(&report, || report.text());
    let rankings = answered.iter().map(|answer| Ranking {
        query: answer.query.clone(),
        documents: &answer.documents,
        scores: answer.scores.clone(),
    });
    write_rankings(arguments.rankings.as_ref(), rankings)?;
    check_floors(&[
        ("nDCG@10", report.ndcg_at_10, arguments.min_ndcg),
        ("recall@100", report.recall_at_100, arguments.min_recall),
    ])
}

/// Queries are few and all needed: unlike documents, a bad line ends the run.
fn read_queries(path: &Path) -> Result<Vec<Record>, Error> {
    let file = File::open(path).map_err(|error| Error::file(path, &error))?;
    jsonl::records(BufReader::new(file))
        .map(|record| match record {
            Ok((_, query)) => Ok(query),
            Err(refused) => Err(Error::local(
                format!("{}:{}: {}", path.display(), refused.line, refused.reason),
                "expected {\"_id\", \"text\"} per line",
            )),
        })
        .collect()
}

async fn ask(client: &Client, arguments: &Arguments, query: Record) -> Result<Answered, Error> {
    let request = SearchRequest {
        query: Some(query.text),
        // Ids and scores are all that is measured; texts would only cost time.
        include: Some(Vec::new()),
        ..arguments.knobs.request(&arguments.collection, arguments.fetch)
    };
    let (found, elapsed) = timed_search(client, &request).await?;
    let ranked = metrics::rank_documents(found.hits.into_iter().map(|hit| (hit.document_id, hit.score)));
    let (documents, scores) = ranked.into_iter().unzip();
    Ok(Answered { query: query.id, documents, scores, elapsed })
}

impl Report {
    fn text(&self) -> String {
        let mut text = format!(
            "{} queries over {}, documents ranked by their best of {} chunks\n  nDCG@10     {:.4}\n  recall@100  {:.4}\n  MRR@10      {:.4}\n  latency     {}",
            self.queries,
            self.collection,
            self.fetch,
            self.ndcg_at_10,
            self.recall_at_100,
            self.mrr_at_10,
            self.latency_ms.text()
        );
        if self.queries_below_100_documents > 0 {
            text.push_str(&format!(
                "\n  note: {} queries found fewer than 100 documents; raise --fetch",
                self.queries_below_100_documents
            ));
        }
        text
    }
}
