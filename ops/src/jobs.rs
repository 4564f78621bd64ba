//! `susui jobs`: how uploads go, those that failed, and trying them again.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::{Deserialize, Serialize};

use crate::cli::Global;
use crate::client::Client;
use crate::error::Error;
use crate::output::{row, table};

/// Jobs asked for in one call.
const PAGE_ROWS: u32 = 1000;

/// The verbs of `susui jobs`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List jobs in the order they were made
    ///
    /// Examples:
    ///   susui jobs list --status failed
    ///   susui jobs list -c docs --json | jq -r '.[] | select(.attempt > 3) | .id'
    #[command(verbatim_doc_comment)]
    List(ListArguments),
    /// Try failed or cancelled jobs again
    ///
    /// The upload of a job that failed is kept, so nothing has to be sent again; it is gone once its
    /// document was uploaded anew or deleted. A job that cannot be tried again is reported and the
    /// others are, and the command ends with exit code 3.
    ///
    /// Examples:
    ///   susui jobs retry 019aa0c2-71e4-7c70-8a52-0f5b6f3f4a11
    ///   susui jobs retry --all-failed -c docs
    #[command(verbatim_doc_comment)]
    Retry(RetryArguments),
    /// Cancel jobs that have not ended. What is searchable of their documents stays
    ///
    /// Example:
    ///   susui jobs cancel 019aa0c2-71e4-7c70-8a52-0f5b6f3f4a11
    #[command(verbatim_doc_comment)]
    Cancel {
        /// The jobs.
        #[arg(value_name = "JOB", required = true)]
        jobs: Vec<String>,
    },
}

/// Arguments of `susui jobs list`.
#[derive(Debug, Args)]
pub struct ListArguments {
    /// In this state only: queued, parsing, chunking, embedding, indexing, done, failed or cancelled.
    #[arg(long, value_name = "STATUS")]
    pub status: Option<String>,
    /// Of this collection only.
    #[arg(long, short, value_name = "NAME")]
    pub collection: Option<String>,
}

/// Arguments of `susui jobs retry`.
#[derive(Debug, Args)]
pub struct RetryArguments {
    /// The jobs.
    #[arg(value_name = "JOB", required_unless_present = "all_failed")]
    pub jobs: Vec<String>,
    /// Every failed job.
    #[arg(long, conflicts_with = "jobs")]
    pub all_failed: bool,
    /// With --all-failed: of this collection only.
    #[arg(long, short, value_name = "NAME", requires = "all_failed")]
    pub collection: Option<String>,
}

/// A job as the coordinator tells it.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct JobRow {
    id: String,
    status: String,
    document_id: String,
    attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Page {
    jobs: Vec<JobRow>,
    #[serde(default)]
    next_cursor: Option<String>,
}

/// Runs the verb.
pub async fn run(global: &Global, command: Command) -> Result<(), Error> {
    let (client, output) = (global.client()?, global.output());
    match command {
        Command::List(arguments) => {
            let jobs = list(&client, arguments.status.as_deref(), arguments.collection.as_deref()).await?;
            output.result(&jobs, || shown(&jobs));
            Ok(())
        }
        Command::Retry(RetryArguments { mut jobs, all_failed, collection }) => {
            if all_failed {
                jobs =
                    list(&client, Some("failed"), collection.as_deref()).await?.into_iter().map(|job| job.id).collect();
            }
            let retry = async |job: &str| {
                client
                    .send::<_, JobRow>(Method::POST, &["api", "v1", "jobs", job, "retry"], &serde_json::json!({}))
                    .await
            };
            each(global, &jobs, "queued again", retry).await
        }
        Command::Cancel { jobs } => {
            let cancel = async |job: &str| client.delete::<JobRow>(&["api", "v1", "jobs", job]).await;
            each(global, &jobs, "ended", cancel).await
        }
    }
}

async fn list(client: &Client, status: Option<&str>, collection: Option<&str>) -> Result<Vec<JobRow>, Error> {
    let mut jobs = Vec::new();
    let mut cursor = None;
    loop {
        let limit = PAGE_ROWS.to_string();
        let named = [("status", status), ("collection", collection), ("cursor", cursor.as_deref())];
        let mut query: Vec<(&str, &str)> = named.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        query.push(("limit", &limit));
        let page: Page = client.get_query(&["api", "v1", "jobs"], &query).await?;
        jobs.extend(page.jobs);
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(jobs);
        }
    }
}

/// Does the same to each job; those that refuse are named, the others go on.
async fn each(
    global: &Global,
    jobs: &[String],
    done: &str,
    act: impl AsyncFn(&str) -> Result<JobRow, Error>,
) -> Result<(), Error> {
    let output = global.output();
    let (mut changed, mut refused) = (Vec::new(), 0);
    for job in jobs {
        match act(job).await {
            Ok(row) => changed.push(row),
            Err(error @ Error::Api(_)) => {
                output.note(&format!("{job}: {error}"));
                refused += 1;
            }
            Err(error) => return Err(error),
        }
    }
    output.result(&changed, || format!("{} of {} jobs {done}", changed.len(), jobs.len()));
    if refused > 0 {
        return Err(Error::Partial(format!("{refused} of {} jobs refused", jobs.len())));
    }
    Ok(())
}

fn shown(jobs: &[JobRow]) -> String {
    let mut rows = vec![row(["JOB", "STATUS", "TRIES", "DOCUMENT", "WHY"])];
    for job in jobs {
        let why = job.error.as_ref().and_then(|error| error["message"].as_str()).unwrap_or("");
        rows.push(row([&job.id, &job.status, &job.attempt.to_string(), &job.document_id, why]));
    }
    table(&rows)
}
