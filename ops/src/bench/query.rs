//! `susui bench query`: each stage's share of a query, as the answers time themselves.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::cli::Global;
use crate::error::Error;
use crate::output::{self, table};
use crate::wire::search::{QueryRequest, QueryResponse, SearchRequest, SearchResponse};

/// Stages in the order they happen. `queued` and `service` are the slowest shard's and lie within `scatter`.
const STAGES: [&str; 6] = ["embed", "cache", "scatter", "queued", "service", "fetch"];
/// Stages that lie within another.
const NESTED: [&str; 2] = ["queued", "service"];

/// Arguments of the verb.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// Texts to ask.
    #[arg(value_name = "TEXT", required_unless_present = "texts")]
    pub text: Vec<String>,
    /// A file with a text per line.
    #[arg(long, value_name = "FILE")]
    pub texts: Option<PathBuf>,
    /// Where to look.
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    pub collection: String,
    /// Results wanted.
    #[arg(long, short = 'k', value_name = "N", default_value_t = 5)]
    pub top_k: u32,
    /// How often each text is asked.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub repeat: u32,
    /// Ask for generated answers (`/api/v1/query`) instead of passages.
    #[arg(long)]
    pub answer: bool,
}

/// One stage over all queries, milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Stage {
    stage: String,
    mean_ms: f64,
    p50_ms: f64,
    p95_ms: f64,
    /// Of the mean time of a query.
    share: f64,
    /// It lies within another stage and is no part of the sum.
    nested: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    queries: usize,
    /// As seen by this client.
    mean_ms: f64,
    stages: Vec<Stage>,
}

/// Runs the verb.
pub async fn run(global: &Global, arguments: &Arguments) -> Result<(), Error> {
    let output = global.output();
    let client = global.client()?;
    let texts = texts(arguments)?;
    let bar = output.progress(texts.len() as u64 * u64::from(arguments.repeat), "queries");
    let (mut timings, mut outside) = (Vec::new(), Vec::new());
    for _ in 0..arguments.repeat {
        for text in &texts {
            let begun = Instant::now();
            let answered = if arguments.answer {
                let request = QueryRequest {
                    query: text.clone(),
                    collection: arguments.collection.clone(),
                    top_k: arguments.top_k,
                    filters: None,
                    stream: false,
                    model: None,
                    max_tokens: None,
                    timeout_ms: None,
                };
                client.post_once::<_, QueryResponse>(&["api", "v1", "query"], &request).await?.timings_ms
            } else {
                let request = SearchRequest {
                    query: Some(text.clone()),
                    collection: arguments.collection.clone(),
                    top_k: arguments.top_k,
                    ..SearchRequest::default()
                };
                client.post_once::<_, SearchResponse>(&["api", "v1", "search"], &request).await?.timings_ms
            };
            outside.push(begun.elapsed().as_secs_f64() * 1000.0);
            timings.push(answered);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let report = report(&timings, &outside);
    output.result(&report, || report.text());
    Ok(())
}

fn texts(arguments: &Arguments) -> Result<Vec<String>, Error> {
    let mut texts = arguments.text.clone();
    if let Some(file) = &arguments.texts {
        let read = std::fs::read_to_string(file).map_err(|error| Error::file(file, &error))?;
        texts.extend(read.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
    }
    if texts.is_empty() {
        return Err(Error::usage("no text to ask", "give one, or a file with one per line"));
    }
    Ok(texts)
}

/// `timings`: `timings_ms` of each answer; `seen_ms`: the time each took as seen from here.
fn report(timings: &[Value], seen_ms: &[f64]) -> Report {
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (timing, seen) in timings.iter().zip(seen_ms) {
        let number = |stage: &str| timing[stage].as_f64().unwrap_or(0.0);
        STAGES.iter().for_each(|stage| values.entry(stage).or_default().push(number(stage)));
        let known: f64 = STAGES.iter().filter(|stage| !NESTED.contains(stage)).map(|stage| number(stage)).sum();
        let total = number("total");
        values.entry("other").or_default().push((total - known).max(0.0));
        values.entry("outside").or_default().push((seen - total).max(0.0));
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let mean_ms = mean(seen_ms);
    let stages = STAGES.iter().chain(&["other", "outside"]).map(|stage| {
        let values = values.get(stage).map(Vec::as_slice).unwrap_or_default();
        Stage {
            stage: (*stage).to_owned(),
            mean_ms: mean(values),
            p50_ms: percentile(values, 0.50),
            p95_ms: percentile(values, 0.95),
            share: mean(values) / mean_ms.max(1e-9),
            nested: NESTED.contains(stage),
        }
    });
    Report { queries: seen_ms.len(), mean_ms, stages: stages.collect() }
}

/// Nearest rank.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0.0)
}

impl Report {
    fn text(&self) -> String {
        let mut rows = vec![output::row(["STAGE", "MEAN MS", "P50 MS", "P95 MS", "SHARE"])];
        rows.extend(self.stages.iter().map(|stage| {
            let name = if stage.nested { format!("  {} (nested)", stage.stage) } else { stage.stage.clone() };
            let number = |value: f64| format!("{value:.3}");
            let share = format!("{:.1} %", stage.share * 100.0);
            vec![name, number(stage.mean_ms), number(stage.p50_ms), number(stage.p95_ms), share]
        }));
        format!("{} queries, {:.3} ms each\n\n{}", self.queries, self.mean_ms, table(&rows))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn stages_and_the_rest_add_up_to_the_time_seen() {
        let timing = |scatter: f64| {
            json!({"embed": 1.0, "cache": 0.0, "scatter": scatter, "queued": 0.1, "service": scatter / 2.0,
            "fetch": 0.5, "total": scatter + 2.0})
        };
        let report = report(&[timing(2.0), timing(4.0)], &[5.0, 7.0]);
        let sum: f64 = report.stages.iter().filter(|stage| !stage.nested).map(|stage| stage.mean_ms).sum();
        assert!((sum - report.mean_ms).abs() < 1e-9, "{report:?}");
        let of = |name: &str| report.stages.iter().find(|stage| stage.stage == name).expect("a stage");
        assert_eq!((of("scatter").p50_ms, of("scatter").p95_ms, of("outside").mean_ms), (2.0, 4.0, 1.0));
        assert!((of("other").mean_ms - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_stage_that_an_answer_does_not_name_took_no_time() {
        let report = report(&[json!({})], &[3.0]);
        assert_eq!(report.stages.last().map(|stage| stage.mean_ms), Some(3.0));
    }
}
