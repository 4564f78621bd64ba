//! Sends documents and follows each until it is indexed, a bounded number at a time.

use std::time::Duration;

use cluster_config::limits;
use futures::StreamExt;
use reqwest::multipart::{Form, Part};
use tokio::time::Instant;

use super::source::{self, Body, Item};
use super::{Arguments, Refusal, Summary};
use crate::client::Client;
use crate::error::Error;
use crate::output::{Output, ProgressLines};
use crate::wire::write::{DocumentAccepted, DocumentRequest, Job};

/// Documents in flight unless asked otherwise: enough to keep the embedder's batches full.
const CONCURRENCY_DEFAULT: u16 = 16;
/// First pause between two looks at a job; doubled up to [`POLL_MAX`].
const POLL_FIRST: Duration = Duration::from_millis(25);
/// Longest pause between two looks at a job.
const POLL_MAX: Duration = Duration::from_millis(400);

/// Ingests everything under the paths given. Errors: a path cannot be read, or the coordinator is gone; what one document
/// suffers is in the summary.
/// Cancel: documents already accepted go on being indexed.
pub async fn ingest(client: &Client, output: Output, arguments: &Arguments) -> Result<Summary, Error> {
    let plan = source::plan(&arguments.paths)?;
    let mut summary = Summary {
        collection: arguments.collection.clone(),
        unit: "documents",
        skipped_files: plan.skipped_files,
        ..Summary::default()
    };
    let total = plan.documents;
    let bar = output.progress(total, "documents");
    bar.set_message("ingesting");
    let mut lines = ProgressLines::new(output);
    let begun = Instant::now();
    let concurrency = usize::from(arguments.concurrency.unwrap_or(CONCURRENCY_DEFAULT));
    let sends = plan.items(&arguments.id_prefix).map(|item| async move {
        match item {
            Ok(item) => send(client, arguments, item).await,
            Err(refusal) => Ok(Err(refusal)),
        }
    });
    let mut outcomes = std::pin::pin!(futures::stream::iter(sends).buffer_unordered(concurrency));
    while let Some(outcome) = outcomes.next().await {
        match outcome? {
            Ok(()) => summary.done += 1,
            Err(refusal) => {
                bar.suspend(|| output.note(&format!("refused {}: {}", refusal.origin, refusal.reason)));
                summary.refuse(refusal);
            }
        }
        bar.inc(1);
        lines.tick(|| format!("{} of {total} documents", summary.done + summary.refused));
    }
    bar.finish_and_clear();
    summary.finish(begun.elapsed());
    Ok(summary)
}

/// Sends one document and follows it. The inner error is the document's own, the outer one ends the run.
async fn send(client: &Client, arguments: &Arguments, item: Item) -> Result<Result<(), Refusal>, Error> {
    let origin = item.origin.clone();
    let refuse = |reason: String| Ok(Err(Refusal { origin: origin.clone(), reason }));
    let accepted = match post(client, &arguments.collection, item).await {
        Ok(accepted) => accepted,
        Err(error @ (Error::Api(_) | Error::Local { .. })) => return refuse(error.to_string()),
        Err(error) => return Err(error),
    };
    match follow(client, &accepted.job_id, arguments.job_timeout).await {
        Ok(None) => Ok(Ok(())),
        Ok(Some(reason)) => refuse(reason),
        Err(error @ Error::Api(_)) => {
            refuse(format!("accepted, then its job {} could not be followed: {error}", accepted.job_id))
        }
        Err(error) => Err(error),
    }
}

async fn post(client: &Client, collection: &str, item: Item) -> Result<DocumentAccepted, Error> {
    let path = ["api", "v1", "documents"];
    let key = uuid::Uuid::new_v4().to_string();
    match item.body {
        Body::Record(record) => {
            let Item { id, .. } = item;
            let body = DocumentRequest {
                id,
                title: record.title.filter(|title| !title.trim().is_empty()),
                text: record.text,
                metadata: record.metadata,
                collection: collection.to_owned(),
            };
            client.post_idempotent(&path, &key, &body).await
        }
        Body::File(file) => {
            let length = tokio::fs::metadata(&file).await.map_err(|error| Error::file(&file, &error))?.len();
            if length > limits::DOCUMENT_BYTES_MAX as u64 {
                return Err(Error::local(
                    format!("the file has {length} bytes, at most {} are allowed", limits::DOCUMENT_BYTES_MAX),
                    "",
                ));
            }
            let bytes = tokio::fs::read(&file).await.map_err(|error| Error::file(&file, &error))?;
            let file_name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            // Small fields go first, so that the server knows where the bytes belong before they come.
            let form = || {
                let part = Part::bytes(bytes.clone()).file_name(file_name.clone());
                Form::new().text("id", item.id.clone()).text("collection", collection.to_owned()).part("file", part)
            };
            client.post_form(&path, &key, form).await
        }
    }
}

/// Follows a job to its end: `None` once it is done, else why not.
async fn follow(client: &Client, job_id: &str, timeout: Duration) -> Result<Option<String>, Error> {
    let deadline = Instant::now() + timeout;
    let mut pause = POLL_FIRST;
    loop {
        let job: Job = client.get(&["api", "v1", "jobs", job_id]).await?;
        if job.terminal {
            return Ok((job.status != "done").then(|| job.error.map_or(job.status, |error| error.message)));
        }
        if Instant::now() >= deadline {
            let limit = humantime::format_duration(timeout);
            return Ok(Some(format!("still {} after {limit}; job {job_id} goes on", job.status)));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL_MAX);
    }
}
