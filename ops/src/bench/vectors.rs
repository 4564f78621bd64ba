//! `susui bench vectors`: load > index > sweep the knobs > compare > report.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::dataset::Dataset;
use super::faiss::{self, Comparison};
use super::fill::{Filled, fill};
use super::patient::{Memory, Patient};
use super::plot::{self, Place};
use super::requests::{Setting, ask_all, bodies, read_answers, searches};
use super::truth::{exact_neighbors, shared};
use super::{DataArguments, K, PatientArguments};
use crate::cli::Global;
use crate::error::Error;
use crate::output::{self, Output, table};

/// Queries of an exact sweep: each looks at every row.
const EXACT_QUERIES_MAX: usize = 100;
/// Least requests of a throughput figure, so that it lasts about a second.
const REQUESTS_MIN: usize = 2000;

/// Arguments of the verb.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// Which vectors.
    #[command(flatten)]
    pub data: DataArguments,
    /// Which cluster.
    #[command(flatten)]
    pub patient: PatientArguments,
    /// Numbers of lists to probe.
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_values_t = [1, 4, 16, 64])]
    pub nprobe: Vec<u32>,
    /// Candidates re-scored per result, for each nprobe; the collection's own if not given.
    #[arg(long, value_name = "X,X,...", value_delimiter = ',')]
    pub oversample: Vec<f32>,
    /// Recalls to ask for.
    #[arg(long, value_name = "X,X,...", value_delimiter = ',', default_values_t = [0.90, 0.95, 0.99])]
    pub target_recall: Vec<f32>,
    /// Leave exact search out.
    #[arg(long)]
    pub no_exact: bool,
    /// Connections of the throughput figures.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub connections: u16,
    /// Also measure plain FAISS, our search of one shard, and the guide's parameters, in one process.
    #[arg(long)]
    pub compare_faiss: bool,
    /// Write a plot of recall against queries per second here.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// Every setting of a run, the defaults first.
fn settings(arguments: &Arguments) -> Vec<Setting> {
    let mut settings = vec![Setting::default()];
    let oversamples: Vec<Option<f32>> = match arguments.oversample.as_slice() {
        [] => vec![None],
        some => some.iter().copied().map(Some).collect(),
    };
    for nprobe in &arguments.nprobe {
        let with = |oversample| Setting { nprobe: Some(*nprobe), oversample, ..Setting::default() };
        settings.extend(oversamples.iter().copied().map(with));
    }
    let targets = arguments.target_recall.iter();
    settings.extend(targets.map(|target| Setting { target_recall: Some(*target), ..Setting::default() }));
    if !arguments.no_exact {
        settings.push(Setting { exact: true, ..Setting::default() });
    }
    settings
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Measured {
    label: String,
    #[serde(flatten)]
    setting: Setting,
    queries: usize,
    recall_at_10: f64,
    /// Over all connections.
    queries_per_second: f64,
    /// Of a lone client, HTTP included.
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
    /// Of the codes in the indexes; absent without an index.
    #[serde(skip_serializing_if = "Option::is_none")]
    codes_scanned_share: Option<f64>,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    data: String,
    vectors: u64,
    dim: usize,
    shards: u32,
    copies: u32,
    /// Recall@10 of exact search over half floats, which is what is stored, against the vectors as given; absent where the neighbours were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    stored_recall_at_10: Option<f64>,
    filled: Filled,
    index_seconds: f64,
    index_states: BTreeMap<String, u32>,
    memory: MemoryReport,
    connections: u16,
    settings: Vec<Measured>,
    #[serde(skip_serializing_if = "Option::is_none")]
    faiss: Option<Comparison>,
}

/// Bytes per vector and copy. Anonymous and file pages are those of the whole processes, less what they were before loading.
#[derive(Debug, Serialize)]
struct MemoryReport {
    reported_per_vector: f64,
    anonymous_per_vector: f64,
    file_per_vector: f64,
}

/// Runs the verb.
pub async fn run(global: &Global, arguments: &Arguments) -> Result<(), Error> {
    let output = global.output();
    let data = open(&arguments.data, output).await?;
    let mut patient = Patient::admit(global, &arguments.patient, data.base.dim()).await?;
    let collection = patient.collection.clone();
    let measured = measure(&mut patient, &data, arguments, output).await;
    // Also after a failure: a running cluster keeps nothing of ours.
    let discharged = patient.discharge().await;
    let mut report = measured?;
    discharged?;
    if arguments.compare_faiss {
        let efforts = arguments.nprobe.iter().map(|nprobe| (*nprobe, arguments.oversample.first().copied()));
        report.faiss = Some(faiss::compare(&data, &collection, efforts.collect(), output).await?);
    }
    if let Some(file) = &arguments.svg {
        write_svg(file, &report)?;
        output.note(&format!("wrote {}", file.display()));
    }
    output.result(&report, || report.text());
    Ok(())
}

/// The data with its true neighbours: those of a file, or else those among the rows as they are stored. What rounding to half floats costs
/// is a property of the rows, not of the search, and is told apart from it.
pub async fn open(arguments: &DataArguments, output: Output) -> Result<Arc<Dataset>, Error> {
    let arguments = arguments.clone();
    let worker = tokio::task::spawn_blocking(move || {
        let mut data = Dataset::open(&arguments)?;
        if data.neighbors.is_none() {
            let some = data.queries.first(EXACT_QUERIES_MAX);
            let bar = output.progress((data.queries.rows() + some.rows()) as u64, "queries");
            bar.set_message("true neighbours");
            let given = exact_neighbors(&data.base, &some, K, &|done| bar.inc(done));
            let stored = exact_neighbors(&data.base.as_stored(), &data.queries, K, &|done| bar.inc(done));
            bar.finish_and_clear();
            data.stored_share = Some(shared(&stored, &given));
            data.neighbors = Some(stored);
        }
        Ok(Arc::new(data))
    });
    worker.await.map_err(|error| Error::local(format!("reading the data: {error}"), ""))?
}

/// Loads the data and waits for the index.
pub async fn load_and_index(
    patient: &mut Patient,
    data: &Dataset,
    arguments: &PatientArguments,
    output: Output,
) -> Result<(Filled, f64), Error> {
    let filled = fill(patient, data, arguments.batch as usize, output).await?;
    output.note(&format!("loaded {} vectors at {:.0}/s", filled.vectors, filled.vectors_per_second));
    let indexing = patient.wait_indexed(output, filled.vectors).await?;
    patient.wait_idle(output).await?;
    Ok((filled, indexing.as_secs_f64()))
}

async fn measure(
    patient: &mut Patient,
    data: &Dataset,
    arguments: &Arguments,
    output: Output,
) -> Result<Report, Error> {
    let before = patient.memory().await?;
    let (filled, index_seconds) = load_and_index(patient, data, &arguments.patient, output).await?;
    let settings = settings(arguments);
    let bar = output.progress(settings.len() as u64, "settings");
    bar.set_message("measuring");
    let mut measured = Vec::new();
    for setting in settings {
        measured.push(measure_setting(patient, data, setting, arguments.connections.into()).await?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let after = patient.memory().await?;
    let collection = &patient.collection;
    Ok(Report {
        data: data.name.clone(),
        vectors: filled.vectors,
        dim: data.base.dim(),
        shards: collection.shards,
        copies: collection.copies,
        stored_recall_at_10: data.stored_share,
        memory: MemoryReport::of(&before, &after, filled.vectors * u64::from(collection.copies)),
        filled,
        index_seconds,
        index_states: patient.index_states().await?,
        connections: arguments.connections,
        settings: measured,
        faiss: None,
    })
}

async fn measure_setting(
    patient: &Patient,
    data: &Dataset,
    setting: Setting,
    connections: usize,
) -> Result<Measured, Error> {
    let queries = if setting.exact { data.queries.rows().min(EXACT_QUERIES_MAX) } else { data.queries.rows() };
    let alone = ask_all(patient, data, setting, queries).await?;
    let (recall_at_10, codes_scanned_share) = read_answers(&alone.answers, data)?;
    let requests = if setting.exact { queries } else { queries.max(REQUESTS_MIN) };
    let together =
        searches(patient, bodies(patient, data, setting, queries, false)?, connections, requests)?.run().await?;
    Ok(Measured {
        label: setting.label(),
        setting,
        queries,
        recall_at_10,
        queries_per_second: together.rate(),
        p50_ms: alone.percentile_ms(50.0),
        p95_ms: alone.percentile_ms(95.0),
        p99_ms: alone.percentile_ms(99.0),
        codes_scanned_share,
    })
}

fn write_svg(file: &std::path::Path, report: &Report) -> Result<(), Error> {
    let places: Vec<Place> = report
        .settings
        .iter()
        .map(|measured| Place {
            label: measured.label.clone(),
            recall: measured.recall_at_10,
            rate: measured.queries_per_second,
        })
        .collect();
    let title = format!("{}: {} shards x {} copies", report.data, report.shards, report.copies);
    let text = plot::svg(&title, &places).map_err(|problem| Error::local(format!("the plot: {problem}"), ""))?;
    std::fs::write(file, text).map_err(|error| Error::file(file, &error))
}

impl MemoryReport {
    fn of(before: &Memory, after: &Memory, vectors: u64) -> Self {
        let per_vector = |before: u64, after: u64| after.saturating_sub(before) as f64 / vectors.max(1) as f64;
        Self {
            reported_per_vector: per_vector(before.reported, after.reported),
            anonymous_per_vector: per_vector(before.anonymous, after.anonymous),
            file_per_vector: per_vector(before.file, after.file),
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let states: Vec<String> = self.index_states.iter().map(|(state, count)| format!("{count} {state}")).collect();
        let mut text = format!(
            "{}: {} shards x {} copies ({})\n  loaded   {:.0} vectors/s, durable on {} copies; {} searches meanwhile, p99 {:.1} ms\n  indexed  {:.1} s after the last write\n  memory   {:.0} bytes per vector and copy as reported; of the processes {:.0} anonymous, {:.0} of files\n",
            self.data,
            self.shards,
            self.copies,
            states.join(", "),
            self.filled.vectors_per_second,
            self.filled.copies_acked_min,
            self.filled.searches_meanwhile,
            self.filled.search_p99_ms,
            self.index_seconds,
            self.memory.reported_per_vector,
            self.memory.anonymous_per_vector,
            self.memory.file_per_vector,
        );
        if let Some(recall) = self.stored_recall_at_10 {
            let line = format!(
                "  recall   of exact search over the half floats that are stored; they keep {recall:.4} of the neighbours of the vectors as given\n"
            );
            text.push_str(&line);
        }
        text.push('\n');
        let queries_per_second = format!("QUERIES/S ({} CONN)", self.connections);
        let mut rows =
            vec![output::row(["SETTING", "RECALL@10", &queries_per_second, "P50 MS", "P95 MS", "P99 MS", "SCANNED"])];
        rows.extend(self.settings.iter().map(|measured| {
            vec![
                measured.label.clone(),
                format!("{:.4}", measured.recall_at_10),
                format!("{:.0}", measured.queries_per_second),
                format!("{:.2}", measured.p50_ms),
                format!("{:.2}", measured.p95_ms),
                format!("{:.2}", measured.p99_ms),
                measured.codes_scanned_share.map_or_else(|| "-".into(), |share| format!("{:.1} %", share * 100.0)),
            ]
        }));
        text.push_str(&table(&rows));
        if let Some(faiss) = &self.faiss {
            text.push('\n');
            text.push_str(&faiss.text());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn labels(line: &[&str]) -> Vec<String> {
        let line = Line::parse_from(std::iter::once(&"bench").chain(line));
        settings(&line.arguments).iter().map(Setting::label).collect()
    }

    #[test]
    fn the_defaults_come_first_and_exact_search_last() {
        let expected = ["defaults", "nprobe 1", "nprobe 4", "nprobe 16", "nprobe 64", "target 0.9", "target 0.95"];
        let swept = labels(&[]);
        assert_eq!(swept[..7], expected);
        assert_eq!(swept.last().map(String::as_str), Some("exact"));
    }

    #[test]
    fn every_oversample_goes_with_every_nprobe() {
        let swept = labels(&["--nprobe", "2,3", "--oversample", "5,10", "--target-recall", "0.5", "--no-exact"]);
        let expected = [
            "defaults",
            "nprobe 2, oversample 5",
            "nprobe 2, oversample 10",
            "nprobe 3, oversample 5",
            "nprobe 3, oversample 10",
            "target 0.5",
        ];
        assert_eq!(swept, expected);
    }

    #[test]
    fn memory_is_what_came_on_top() {
        let before = Memory { anonymous: 1000, file: 0, reported: 0 };
        let after = Memory { anonymous: 5000, file: 800, reported: 1000 };
        let report = MemoryReport::of(&before, &after, 10);
        assert_eq!((report.anonymous_per_vector, report.file_per_vector), (400.0, 80.0));
    }
}
