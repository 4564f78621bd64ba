//! `susui bench http`: what the way over HTTP costs.

use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::dataset::Dataset;
use super::echo::Echo;
use super::load::{Load, Outcome};
use super::patient::Patient;
use super::requests::{Setting, ask_all, bodies, check, encode, ids, parse, read_answers, recall_of, search, searches};
use super::vectors::{load_and_index, open};
use super::wrk::{self, WrkReport};
use super::{DataArguments, PatientArguments};
use crate::cli::Global;
use crate::error::Error;
use crate::eval::metrics::mean;
use crate::output::Output;
use crate::wire::search::{SearchRequest, SearchResponse};

/// Connections of the batches: some are read and written while others are searched, or the processors stand idle in between.
const BATCH_CONNECTIONS: usize = 4;

/// Arguments of the verb.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// Which vectors.
    #[command(flatten)]
    pub data: DataArguments,
    /// Which cluster.
    #[command(flatten)]
    pub patient: PatientArguments,
    /// How the shards search.
    #[command(flatten)]
    pub setting: Setting,
    /// Connections of the throughput figures.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub connections: u16,
    /// Searches of each throughput figure: some seconds of the product's, a fraction of one of the echo's.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub requests: u32,
    /// Searches in a batch.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub batch_searches: u16,
    /// Have wrk send the requests, too.
    #[arg(long)]
    pub wrk: bool,
}

/// Times of a lone client, milliseconds.
#[derive(Debug, Serialize)]
struct Alone {
    p50_ms: f64,
    p99_ms: f64,
    /// Of the longest computation on a shard.
    shard_p50_ms: f64,
    /// Of what each search took on top of it: HTTP, JSON, coordinator, network, queue, the other shards.
    added_p50_ms: f64,
    /// Of the coordinator's own account: its total less the scatter.
    coordinator_p50_ms: f64,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    data: String,
    shards: u32,
    setting: String,
    recall_at_10: f64,
    alone: Alone,
    connections: u16,
    searches_per_second: f64,
    search_p99_ms: f64,
    echoes_per_second: f64,
    share_of_echo: f64,
    batch_searches: u16,
    batched_searches_per_second: f64,
    batch_recall_at_10: f64,
    batch_speed_up: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    wrk: Option<Wrk>,
}

#[derive(Debug, Serialize)]
struct Wrk {
    search: WrkReport,
    echo: WrkReport,
    share_of_echo: f64,
}

/// Runs the verb.
pub async fn run(global: &Global, arguments: &Arguments) -> Result<(), Error> {
    let output = global.output();
    let data = open(&arguments.data, output).await?;
    let mut patient = Patient::admit(global, &arguments.patient, data.base.dim()).await?;
    let measured = measure(&mut patient, &data, arguments, output).await;
    let discharged = patient.discharge().await;
    let report = measured?;
    discharged?;
    output.result(&report, || report.text());
    Ok(())
}

async fn measure(
    patient: &mut Patient,
    data: &Dataset,
    arguments: &Arguments,
    output: Output,
) -> Result<Report, Error> {
    load_and_index(patient, data, &arguments.patient, output).await?;
    let queries = data.queries.rows();
    let connections = usize::from(arguments.connections);
    output.note("a lone client");
    let alone = ask_all(patient, data, arguments.setting, queries).await?;
    let (recall_at_10, _) = read_answers(&alone.answers, data)?;
    output.note(&format!("{connections} connections"));
    let load = searches(
        patient,
        bodies(patient, data, arguments.setting, queries, false)?,
        connections,
        arguments.requests as usize,
    )?;
    let together = load.run().await?;
    let echo = Echo::start().await?;
    let echo_load = Load { address: echo.address.clone(), ..load.clone() };
    let echoed = echo_load.run().await?;
    output.note(&format!("batches of {}", arguments.batch_searches));
    let (batched, batch_recall_at_10) = batches(patient, data, arguments).await?;
    let batched = batched.rate() * f64::from(arguments.batch_searches);
    let wrk = if arguments.wrk {
        output.note("wrk");
        let (search, echo) = (wrk::run(&load).await?, wrk::run(&echo_load).await?);
        let share_of_echo = search.requests_per_second / echo.requests_per_second.max(1e-9);
        Some(Wrk { search, echo, share_of_echo })
    } else {
        None
    };
    Ok(Report {
        data: data.name.clone(),
        shards: patient.collection.shards,
        setting: arguments.setting.label(),
        recall_at_10,
        alone: Alone::of(&alone)?,
        connections: arguments.connections,
        searches_per_second: together.rate(),
        search_p99_ms: together.percentile_ms(99.0),
        echoes_per_second: echoed.rate(),
        share_of_echo: together.rate() / echoed.rate(),
        batch_searches: arguments.batch_searches,
        batched_searches_per_second: batched,
        batch_recall_at_10,
        batch_speed_up: batched / together.rate(),
        wrk,
    })
}

/// Batches over [`BATCH_CONNECTIONS`].
async fn batches(patient: &Patient, data: &Dataset, arguments: &Arguments) -> Result<(Outcome, f64), Error> {
    #[derive(Serialize)]
    struct Body {
        searches: Vec<SearchRequest>,
    }
    #[derive(Deserialize)]
    struct Answer {
        results: Vec<SearchResponse>,
    }
    let size = usize::from(arguments.batch_searches);
    let whole_batches = (data.queries.rows() / size).max(1);
    let batch = |number: usize| {
        let rows = (0..size).map(|place| (number * size + place) % data.queries.rows());
        let searches = rows.map(|row| search(patient, data.queries.row(row), arguments.setting, false)).collect();
        encode(&Body { searches })
    };
    let batches: Vec<Bytes> = (0..whole_batches).map(batch).collect::<Result<_, _>>()?;
    let load = Load {
        path: "/api/v1/search:batch",
        connections: BATCH_CONNECTIONS,
        requests: (arguments.requests as usize / size).max(whole_batches),
        bodies: Arc::new(batches),
        keep_answers: true,
        ..searches(patient, Vec::new(), 1, 1)?
    };
    let outcome = load.run().await?;
    let mut found = Vec::new();
    for answer in &outcome.answers {
        let answer: Answer =
            serde_json::from_slice(answer).map_err(|error| Error::local(format!("an answer: {error}"), ""))?;
        if answer.results.len() != size {
            return Err(Error::CheckFailed(format!("{} results to {size} searches", answer.results.len())));
        }
        for result in answer.results {
            check(&result)?;
            found.push(ids(result));
        }
    }
    found.truncate(data.queries.rows());
    let recall = recall_of(&found, data);
    Ok((outcome, recall))
}

impl Alone {
    fn of(alone: &Outcome) -> Result<Self, Error> {
        let (mut shard, mut added, mut coordinator) = (Vec::new(), Vec::new(), Vec::new());
        for (answer, took) in alone.answers.iter().zip(&alone.answer_times) {
            let timings = parse(answer)?.timings_ms;
            let number = |stage: &str| timings[stage].as_f64().unwrap_or(0.0);
            shard.push(number("service"));
            added.push(took.as_secs_f64() * 1000.0 - number("service"));
            coordinator.push(number("total") - number("scatter"));
        }
        Ok(Self {
            p50_ms: alone.percentile_ms(50.0),
            p99_ms: alone.percentile_ms(99.0),
            shard_p50_ms: median(&shard),
            added_p50_ms: median(&added),
            coordinator_p50_ms: median(&coordinator),
        })
    }
}

/// Nearest rank; the mean of none is as good as their median.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or_else(|| mean(values))
}

impl Report {
    fn text(&self) -> String {
        let alone = &self.alone;
        let mut text = format!(
            "{}: {} shards, {}, recall@10 {:.4}\n  a lone client    p50 {:.2} ms, p99 {:.2} ms; slowest shard p50 {:.2} ms, added p50 {:.2} ms, of it in the coordinator {:.2} ms\n  {:>3} connections  {:.0} searches/s, p99 {:.1} ms: {:.1} % of the {:.0}/s that an echo reaches\n  batches of {:<4}  {:.0} searches/s, {:.1} times as many, recall@10 {:.4}\n",
            self.data,
            self.shards,
            self.setting,
            self.recall_at_10,
            alone.p50_ms,
            alone.p99_ms,
            alone.shard_p50_ms,
            alone.added_p50_ms,
            alone.coordinator_p50_ms,
            self.connections,
            self.searches_per_second,
            self.search_p99_ms,
            self.share_of_echo * 100.0,
            self.echoes_per_second,
            self.batch_searches,
            self.batched_searches_per_second,
            self.batch_speed_up,
            self.batch_recall_at_10,
        );
        if let Some(wrk) = &self.wrk {
            text.push_str(&format!(
                "  wrk              {:.0} searches/s, p50 {:.1} ms, p99 {:.1} ms: {:.1} % of the echo's {:.0}/s\n",
                wrk.search.requests_per_second,
                wrk.search.p50_ms,
                wrk.search.p99_ms,
                wrk.share_of_echo * 100.0,
                wrk.echo.requests_per_second,
            ));
        }
        text
    }
}
