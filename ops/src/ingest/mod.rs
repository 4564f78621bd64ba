//! `susui ingest`: documents out of files, folders and JSON lines, or vectors out of a `.npy` file, into a collection.
//!
//! `source` finds what there is to send, `documents` sends texts and follows their jobs, `vectors` sends points. What is
//! refused is reported line by line and the rest goes on.

pub mod documents;
pub mod source;
pub mod vectors;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::cli::Global;
use crate::client::Client;
use crate::collection;
use crate::error::Error;
use crate::output::Output;

/// Most refusals kept for the summary; all of them are printed and counted.
const REFUSED_KEPT_MAX: usize = 1000;

/// Put documents (files, folders, JSON lines) or vectors (.npy) into a collection
///
/// Taken are .txt, .md, .html, .pdf, .docx, .xlsx, .pptx, .epub, .csv and .tsv files, one
/// document each, and .jsonl files, one document per line as {"_id" or "id", "title"?, "text", "metadata"?}. Folders are walked; hidden and
/// other files are skipped. A file's id is its path from the folder given (docs/setup.md), a
/// line's id is its own: ingesting again replaces instead of doubling.
///
/// Each document is followed until it is indexed. One that is refused (no text, too large) is
/// reported with its file and line, the rest goes on, and the command ends with exit code 3.
/// Interrupted, it can simply be run again.
///
/// With --vectors FILE.npy the rows of a float16 or float32 array become points with ids 0,
/// 1, 2, ... in batches.
///
/// Examples:
///   susui ingest ./notes report.html -c docs
///   susui ingest corpus.jsonl -c papers --create
///   susui ingest --vectors base.npy -c glosses
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Arguments {
    /// Files and folders.
    #[arg(value_name = "PATH", required_unless_present = "vectors")]
    pub paths: Vec<PathBuf>,
    /// Where to put them.
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    pub collection: String,
    /// Create the collection with default settings if it does not exist.
    #[arg(long)]
    pub create: bool,
    /// A .npy file of vectors instead of documents.
    #[arg(long, value_name = "FILE", conflicts_with = "paths")]
    pub vectors: Option<PathBuf>,
    /// Put in front of every id.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub id_prefix: String,
    /// Documents (or batches of vectors) in flight at once [default: 16, or 2 batches].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: Option<u16>,
    /// Vectors per batch, at most 10000.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub batch: u32,
    /// Longest wait for one document to be indexed.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    pub job_timeout: Duration,
}

/// What was done, as printed at the end.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Where it went.
    pub collection: String,
    /// `documents` or `vectors`.
    pub unit: &'static str,
    /// Indexed and acknowledged.
    pub done: u64,
    /// Refused or failed.
    pub refused: u64,
    /// The first of them.
    pub refusals: Vec<Refusal>,
    /// Files of other types that a folder held.
    pub skipped_files: u64,
    /// Fewest copies that acknowledged a batch; vectors only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copies_acked_min: Option<u32>,
    /// From the first to the last.
    pub seconds: f64,
    /// `done / seconds`.
    pub per_second: f64,
}

/// Something that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// `corpus.jsonl:471`, a path, or rows of an array.
    pub origin: String,
    /// Why.
    pub reason: String,
}

impl Summary {
    fn refuse(&mut self, refusal: Refusal) {
        self.refused += 1;
        if self.refusals.len() < REFUSED_KEPT_MAX {
            self.refusals.push(refusal);
        }
    }

    fn finish(&mut self, elapsed: Duration) {
        self.seconds = (elapsed.as_secs_f64() * 1000.0).round() / 1000.0;
        self.per_second = (self.done as f64 / elapsed.as_secs_f64().max(1e-9) * 10.0).round() / 10.0;
    }

    fn text(&self) -> String {
        let mut text = format!(
            "{} {} into {} in {:.1} s ({:.1} {}/s), {} refused",
            self.done, self.unit, self.collection, self.seconds, self.per_second, self.unit, self.refused
        );
        if self.skipped_files > 0 {
            text.push_str(&format!("; {} file(s) of other types skipped", self.skipped_files));
        }
        text
    }
}

/// Runs the verb.
pub async fn run(global: &Global, arguments: Arguments) -> Result<(), Error> {
    let (client, output) = (global.client()?, global.output());
    if arguments.vectors.is_some() && arguments.create {
        return Err(Error::usage(
            "--create is for documents",
            format!("create it first: susui collection create {} --dim N", arguments.collection),
        ));
    }
    ensure_collection(&client, output, &arguments).await?;
    let summary = match &arguments.vectors {
        Some(file) => vectors::ingest(&client, output, &arguments, file).await?,
        None => documents::ingest(&client, output, &arguments).await?,
    };
    output.result(&summary, || summary.text());
    if summary.refused > 0 {
        return Err(Error::Partial(format!(
            "{} of {} {} were refused",
            summary.refused,
            summary.refused + summary.done,
            summary.unit
        )));
    }
    Ok(())
}

async fn ensure_collection(client: &Client, output: Output, arguments: &Arguments) -> Result<(), Error> {
    let name = &arguments.collection;
    match collection::show(client, name).await {
        Ok(_) => Ok(()),
        Err(Error::Api(error)) if error.status == 404 && arguments.create => {
            collection::create(client, name, &collection::text_collection()).await?;
            output.note(&format!("created collection {name}"));
            Ok(())
        }
        Err(Error::Api(mut error)) if error.status == 404 => {
            error.hint = format!("create it with `susui collection create {name}`, or add --create");
            Err(Error::Api(error))
        }
        Err(error) => Err(error),
    }
}
