//! Sends the rows of a `.npy` array as points, in batches, a few at a time.

use std::path::Path;

use cluster_config::limits;
use futures::StreamExt;
use reqwest::Method;
use tokio::time::Instant;

use super::{Arguments, Refusal, Summary};
use crate::client::Client;
use crate::collection;
use crate::error::Error;
use crate::npy::{self, NpyError};
use crate::output::{Output, ProgressLines};
use crate::wire::write::{Point, PointsAccepted, PointsRequest};

/// Batches in flight unless asked otherwise: one on its way while the other is written.
const CONCURRENCY_DEFAULT: u16 = 2;
/// Most bytes one float takes in JSON, with its comma.
const FLOAT_JSON_BYTES_MAX: usize = 16;

/// Ingests a file of vectors. Errors: the file is not one, its dimension is not the collection's, or the coordinator is gone.
pub async fn ingest(client: &Client, output: Output, arguments: &Arguments, file: &Path) -> Result<Summary, Error> {
    let mut array = npy::open(file)?;
    let info = collection::show(client, &arguments.collection).await?;
    if array.columns() != info.dim as usize {
        return Err(Error::usage(
            format!(
                "{} holds vectors of {} dimensions, collection {} takes {}",
                file.display(),
                array.columns(),
                info.name,
                info.dim
            ),
            "ingest another file, or create another collection with --dim",
        ));
    }
    let total = array.rows() as u64;
    let batch_rows = batch_rows(arguments.batch as usize, array.columns());
    let mut summary = Summary { collection: info.name, unit: "vectors", ..Summary::default() };
    let bar = output.progress(total, "vectors");
    bar.set_message("ingesting");
    let mut lines = ProgressLines::new(output);
    let begun = Instant::now();
    let mut first = 0;
    let batches = std::iter::from_fn(move || match array.next_vectors(batch_rows) {
        Ok(rows) if rows.is_empty() => None,
        Ok(rows) => {
            let batch = Batch { first, rows };
            first += batch.rows.len();
            Some(Ok(batch))
        }
        Err(error) => Some(Err(error)),
    });
    // A file that cannot be read any more ends the run: its error is the last item.
    let sends = batches.map(|batch: Result<Batch, NpyError>| async move { put(client, arguments, batch?).await });
    let concurrency = usize::from(arguments.concurrency.unwrap_or(CONCURRENCY_DEFAULT));
    let mut outcomes = std::pin::pin!(futures::stream::iter(sends).buffer_unordered(concurrency));
    while let Some(outcome) = outcomes.next().await {
        let (count, outcome) = outcome?;
        match outcome {
            Ok(accepted) => {
                summary.done += accepted.acked;
                let copies = summary
                    .copies_acked_min
                    .map_or(accepted.copies_acked_min, |min| min.min(accepted.copies_acked_min));
                summary.copies_acked_min = Some(copies);
            }
            Err(refusal) => {
                bar.suspend(|| output.note(&format!("refused {}: {}", refusal.origin, refusal.reason)));
                summary.refuse(refusal);
                summary.refused += count as u64 - 1;
            }
        }
        bar.inc(count as u64);
        lines.tick(|| format!("{} of {total} vectors", summary.done + summary.refused));
    }
    bar.finish_and_clear();
    summary.finish(begun.elapsed());
    Ok(summary)
}

struct Batch {
    first: usize,
    rows: Vec<Vec<f32>>,
}

/// Sends one batch. Returns its rows and what became of them; the outer error ends the run.
async fn put(
    client: &Client,
    arguments: &Arguments,
    batch: Batch,
) -> Result<(usize, Result<PointsAccepted, Refusal>), Error> {
    let count = batch.rows.len();
    let origin = format!("rows {}..{}", batch.first, batch.first + count);
    let point = |(offset, vector)| Point { id: format!("{}{}", arguments.id_prefix, batch.first + offset), vector };
    let body = PointsRequest { points: batch.rows.into_iter().enumerate().map(point).collect() };
    match client.send(Method::PUT, &["api", "v1", "collections", &arguments.collection, "points"], &body).await {
        Ok(accepted) => Ok((count, Ok(accepted))),
        Err(error @ Error::Api(_)) => Ok((count, Err(Refusal { origin, reason: error.to_string() }))),
        Err(error) => Err(error),
    }
}

/// Rows per batch: as asked, but never a body above the API's limit.
fn batch_rows(asked: usize, dim: usize) -> usize {
    let fitting = limits::JSON_BODY_BYTES_MAX / 2 / (dim * FLOAT_JSON_BYTES_MAX);
    asked.min(fitting).clamp(1, limits::POINTS_PER_BATCH_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_stay_below_the_body_limit() {
        assert_eq!(batch_rows(1000, 384), 1000);
        for dim in [1, 384, limits::DIM_MAX as usize] {
            let rows = batch_rows(limits::POINTS_PER_BATCH_MAX, dim);
            let vector: Vec<f32> = (0..dim).map(|n| -1.1754944e-38 * (n as f32 + 1.1)).collect();
            let bytes = serde_json::to_vec(&vector).expect("encodes").len();
            assert!(
                rows >= 1 && rows * (bytes + 64) <= limits::JSON_BODY_BYTES_MAX,
                "dim {dim}: {rows} rows of {bytes} bytes"
            );
        }
    }
}
