//! Workers: claim a job, run it, note how it ended. Bounded in number; a job's fate is always on disk before the next is claimed.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use cluster_config::error::ErrorKind;
use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use super::{Ingest, Stop};
use crate::catalog::jobs::Claim;
use crate::error::Error;
use crate::telemetry::Metrics;

/// Looks for jobs whose pause has ended even when nobody wakes it.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// First pause after a failure that may pass, doubled up to [`RETRY_PAUSE_MAX_MS`].
const RETRY_PAUSE_MS: i64 = 500;
const RETRY_PAUSE_MAX_MS: i64 = 60_000;
/// Tries of a job whose failures may pass: with the pauses above, about an hour of a cluster that is down.
const ATTEMPTS_MAX: u32 = 60;
/// Tries of a job that fails by a bug or kills the process.
const ATTEMPTS_UNEXPLAINED_MAX: u32 = 3;

/// Works until cancelled; then the job in hand ends if it is being written, or goes back to the queue as it was.
pub async fn run(ingest: Arc<Ingest>, metrics: Arc<Metrics>, cancel: CancellationToken) {
    while !cancel.is_cancelled() {
        let claim = match ingest.catalog.claim_job().await {
            Ok(Some(claim)) => claim,
            Ok(None) => {
                idle(&ingest, &cancel).await;
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "no job could be claimed");
                idle(&ingest, &cancel).await;
                continue;
            }
        };
        // There may be more than one; whoever is idle takes the next.
        ingest.queued.notify_one();
        ingest.announce();
        let outcome = attempt(&ingest, &claim, &cancel).await;
        let label = settle(&ingest, &claim, outcome).await;
        metrics.jobs.with_label_values(&[label]).inc();
        ingest.announce();
    }
}

/// Runs the job, unless it was claimed too often: then it ends the process each time, before a failure can be noted. A panic in it is
/// this document's failure: ending the process would let one document stop everybody's, try by try.
async fn attempt(ingest: &Ingest, claim: &Claim, cancel: &CancellationToken) -> Result<(), Stop> {
    if claim.tries > ATTEMPTS_MAX {
        return Err(Error::internal(format!("claimed {} times without an end", claim.tries)).into());
    }
    let run = AssertUnwindSafe(ingest.run(claim, cancel)).catch_unwind().await;
    run.unwrap_or_else(|_| Err(Error::internal("the job panicked").into()))
}

async fn idle(ingest: &Ingest, cancel: &CancellationToken) {
    tokio::select! {
        () = cancel.cancelled() => {}
        () = ingest.queued.notified() => {}
        () = tokio::time::sleep(POLL_INTERVAL) => {}
    }
}

/// Notes the outcome; gives its metric label.
async fn settle(ingest: &Ingest, claim: &Claim, outcome: Result<(), Stop>) -> &'static str {
    let error = match outcome {
        Ok(()) => return "done",
        Err(Stop::ClaimLost) => return "cancelled",
        Err(Stop::Stopping) => {
            if let Err(error) = ingest.catalog.release_job(claim).await {
                tracing::warn!(job_id = %claim.job_id, %error, "claim was not given back; the lease will end");
            }
            return "released";
        }
        Err(Stop::Error(error)) => error,
    };
    let kind = error.kind();
    let (noted, label) = match decide_retry(kind, claim.tries) {
        Some(pause_ms) => {
            tracing::info!(job_id = %claim.job_id, attempt = claim.attempt, %error, pause_ms, "document will be tried again");
            (ingest.catalog.requeue_job(claim, pause_ms, kind, &public_text(&error)).await, "retried")
        }
        None => {
            tracing::warn!(job_id = %claim.job_id, document_id = claim.document.document_id, %error, "document failed");
            (ingest.catalog.fail_job(claim, kind, &public_text(&error)).await, "failed")
        }
    };
    if let Err(error) = noted {
        tracing::warn!(job_id = %claim.job_id, %error, "outcome was not noted; the lease will end");
    }
    label
}

/// Pause before the next try, or `None` to give up.
fn decide_retry(kind: ErrorKind, tries: u32) -> Option<i64> {
    let attempts_max = match kind {
        kind if kind.is_deterministic() => 0,
        kind if kind.is_retryable() => ATTEMPTS_MAX,
        _ => ATTEMPTS_UNEXPLAINED_MAX,
    };
    let pause_ms = RETRY_PAUSE_MS.saturating_mul(1 << tries.saturating_sub(1).min(10)).min(RETRY_PAUSE_MAX_MS);
    (tries < attempts_max).then_some(pause_ms)
}

/// What the caller may read of an error.
fn public_text(error: &Error) -> String {
    match error.kind() {
        ErrorKind::Internal | ErrorKind::Corrupt => "internal error".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        assert_eq!(decide_retry(ErrorKind::InvalidArgument, 1), None);
        assert_eq!(decide_retry(ErrorKind::Unavailable, 1), Some(500));
        assert_eq!(decide_retry(ErrorKind::Unavailable, 2), Some(1000));
        assert_eq!(decide_retry(ErrorKind::Unavailable, 40), Some(RETRY_PAUSE_MAX_MS));
        assert_eq!(decide_retry(ErrorKind::Unavailable, ATTEMPTS_MAX), None);
        assert_eq!(decide_retry(ErrorKind::Internal, ATTEMPTS_UNEXPLAINED_MAX), None);
    }
}
