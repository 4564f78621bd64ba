//! Looks through every copy of this node now and then for bytes that have rotted, one copy at a time and slowly.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use crate::copies::Copy;
use crate::pace::Pace;
use crate::telemetry::Metrics;
use crate::vector::Cancel;

/// What all copies of the process share.
pub struct Scrubbing {
    /// Between the end of one look and the beginning of the next.
    pub interval: Duration,
    /// How fast.
    pub pace: Pace,
    /// Where the checkpoint of the copy that is looked through lies, on the file system of the copies.
    pub dir: PathBuf,
    /// Counted here.
    pub metrics: Arc<Metrics>,
    /// Held by the copy whose turn it is.
    pub turn: Mutex<()>,
}

/// Looks through the copy again and again until its life ends. The first look comes at a random time within the interval, so that
/// copies that were opened together do not queue up together.
pub async fn run(copy: Arc<Copy>, scrubbing: Arc<Scrubbing>) {
    let mut pause = scrubbing.interval.mul_f64(rand::random());
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = copy.stop.cancelled() => return,
        }
        pause = scrubbing.interval;
        tokio::select! {
            _turn = scrubbing.turn.lock() => scrub(&copy, &scrubbing).await,
            () = copy.stop.cancelled() => return,
        }
    }
}

/// Makes room for the checkpoint: what a process left that died in the middle of a look goes.
fn prepare(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    dir.parent().map_or(Ok(()), std::fs::create_dir_all)
}

async fn scrub(copy: &Arc<Copy>, scrubbing: &Arc<Scrubbing>) {
    let cancel = Cancel::never();
    let job = tokio::task::spawn_blocking({
        let (shard, scrubbing, cancel) = (Arc::clone(&copy.shard), Arc::clone(scrubbing), cancel.clone());
        let dir = scrubbing.dir.join(format!("scrub-{}", copy.id));
        move || {
            prepare(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
            shard.scrub(&dir, &scrubbing.pace, &cancel).map_err(|error| error.to_string())
        }
    });
    // A cancelled job ends at its next piece; it must have ended before the copy's files go.
    let job = async { job.await.unwrap_or_else(|error| Err(error.to_string())) };
    tokio::pin!(job);
    let scrubbed = tokio::select! {
        scrubbed = &mut job => scrubbed,
        () = copy.stop.cancelled() => {
            cancel.cancel();
            job.await
        }
    };
    match scrubbed {
        Ok(scrubbed) => {
            scrubbing.metrics.scrub_bytes.inc_by(scrubbed.bytes);
            scrubbing.metrics.scrubs.with_label_values(&["ok"]).inc();
            tracing::info!(shard = %copy.shard_id, copy = %copy.id, bytes = scrubbed.bytes, "copy looked through, all right");
        }
        Err(_) if copy.stop.is_cancelled() => {}
        Err(error) => {
            scrubbing.metrics.scrubs.with_label_values(&["failed"]).inc();
            tracing::error!(shard = %copy.shard_id, copy = %copy.id, error, "looking through the copy failed");
        }
    }
}
