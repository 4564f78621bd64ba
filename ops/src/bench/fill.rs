//! Loads the vectors, and asks searches meanwhile: a collection that is being filled must go on answering.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use reqwest::Method;
use serde::Serialize;
use tokio::time::Instant;

use super::dataset::Dataset;
use super::load::Load;
use super::patient::Patient;
use super::requests::{self, Setting, bodies, searches};
use crate::error::Error;
use crate::eval::metrics::percentile;
use crate::output::{Output, ProgressLines};
use crate::wire::write::{Point, PointsAccepted, PointsRequest};

/// Requests in flight: while one is replicated the next is parsed.
const WRITES_IN_FLIGHT: usize = 4;
/// Pause between two searches while vectors are loaded.
const SEARCH_PAUSE: Duration = Duration::from_millis(20);

/// How loading went.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Filled {
    /// Vectors acknowledged.
    pub vectors: u64,
    /// From the first request to the last acknowledgement.
    pub seconds: f64,
    /// Acknowledged per second.
    pub vectors_per_second: f64,
    /// Fewest copies on which one of them was durable when it was acknowledged.
    pub copies_acked_min: u32,
    /// Searches answered meanwhile; one that failed would have ended the run.
    pub searches_meanwhile: usize,
    /// The 99th percentile of their times, milliseconds.
    pub search_p99_ms: f64,
}

/// Puts every row of the base under its number. Errors: the first refusal, of a write or of a search meanwhile.
pub async fn fill(patient: &Patient, data: &Dataset, batch: usize, output: Output) -> Result<Filled, Error> {
    patient.wait_in_sync().await?;
    // The collection is new: until its copies are open, a search is refused for good reason. This one is repeated until it is served.
    let first = requests::search(patient, data.queries.row(0), Setting::default(), false);
    requests::check(&crate::search::search(&patient.client, &first).await?)?;
    let stop = Arc::new(AtomicBool::new(false));
    let search = searches(patient, bodies(patient, data, Setting::default(), 1, false)?, 1, 1)?;
    let searcher = tokio::spawn(search_until(search, Arc::clone(&stop)));
    let begun = Instant::now();
    let loaded = put_all(patient, data, batch, output).await;
    let seconds = begun.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    let searched = searcher.await.map_err(|error| Error::local(format!("the searching task: {error}"), ""))?;
    let (vectors, copies_acked_min) = loaded?;
    let latencies = searched?;
    Ok(Filled {
        vectors,
        seconds,
        vectors_per_second: vectors as f64 / seconds.max(1e-9),
        copies_acked_min,
        searches_meanwhile: latencies.len(),
        search_p99_ms: percentile(&latencies, 99.0).as_secs_f64() * 1000.0,
    })
}

async fn put_all(patient: &Patient, data: &Dataset, batch: usize, output: Output) -> Result<(u64, u32), Error> {
    let rows = data.base.rows();
    let bar = output.progress(rows as u64, "vectors");
    bar.set_message("loading");
    let mut lines = ProgressLines::new(output);
    let puts = (0..rows).step_by(batch.max(1)).map(|first| {
        let numbers = first..rows.min(first + batch);
        async move {
            let point = |row: usize| Point { id: row.to_string(), vector: data.base.row(row).to_vec() };
            let body = PointsRequest { points: numbers.map(point).collect() };
            let path = ["api", "v1", "collections", &patient.collection.name, "points"];
            patient.client.send::<_, PointsAccepted>(Method::PUT, &path, &body).await
        }
    });
    let mut accepted = futures::stream::iter(puts).buffer_unordered(WRITES_IN_FLIGHT);
    let (mut vectors, mut copies_min) = (0, u32::MAX);
    while let Some(accepted) = accepted.next().await {
        let accepted = accepted?;
        vectors += accepted.acked;
        copies_min = copies_min.min(accepted.copies_acked_min);
        bar.inc(accepted.acked);
        lines.tick(|| format!("{vectors} of {rows} vectors"));
    }
    bar.finish_and_clear();
    Ok((vectors, copies_min))
}

async fn search_until(search: Load, stop: Arc<AtomicBool>) -> Result<Vec<Duration>, Error> {
    let mut latencies = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        latencies.extend(search.run().await?.latencies);
        tokio::time::sleep(SEARCH_PAUSE).await;
    }
    Ok(latencies)
}
