//! What a primary does for its shard between writes: training, moving the tail into the index, measuring what efforts find there.
//!
//! All are logged operations, proposed through the same write that clients use, so every copy follows in the same order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::ids::OperationId;
use cluster_config::operation::Operation;

use crate::copies::Copy;
use crate::pool::Pool;
use crate::shard::{Maintenance, Shard, ShardError};
use crate::vector::Cancel;

/// Between two looks at what the shard needs: what is written meanwhile, each search compares exactly.
const INTERVAL: Duration = Duration::from_millis(100);
/// After a step that was not acknowledged.
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_millis(500);
/// After a training or measurement that failed: it cost seconds of a core and may well fail again.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// Longest wait for one entry to be acknowledged.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Works until the copy's life ends: what is to be logged while it is primary, and the recall of its own searches in any case.
pub async fn run(copy: Arc<Copy>, training_pool: Pool) {
    while !copy.stop.is_cancelled() {
        let work = copy.handle.is_primary().then(|| copy.shard.next_maintenance()).flatten();
        let pause = match work {
            None => INTERVAL,
            Some(Maintenance::IndexUpTo { .. }) => PAUSE_AFTER_REFUSAL,
            Some(Maintenance::Train | Maintenance::MeasureEffort) => PAUSE_AFTER_FAILURE,
        };
        let worked = match work {
            None => false,
            Some(Maintenance::IndexUpTo { generation, row_end }) => {
                log(&copy, Operation::IndexUpTo { generation, row_end }).await
            }
            Some(Maintenance::Train) => train(&copy, &training_pool).await,
            Some(Maintenance::MeasureEffort) => measure_effort(&copy, &training_pool).await,
        };
        if copy.shard.has_sample() {
            compute(&copy, &training_pool, "comparing a sampled query", Shard::check_sample).await;
        }
        if !worked {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = copy.stop.cancelled() => return,
            }
        }
    }
}

/// Trains a generation and logs its pieces. Whether all of it was done.
async fn train(copy: &Arc<Copy>, pool: &Pool) -> bool {
    let started = Instant::now();
    let Some(pieces) = compute(copy, pool, "training", Shard::train).await else { return false };
    tracing::info!(shard = %copy.shard_id, seconds = started.elapsed().as_secs_f32(), "model generation trained");
    for piece in pieces {
        if !log(copy, piece).await {
            return false;
        }
    }
    true
}

/// Measures what each effort finds and logs it. Whether that was done.
async fn measure_effort(copy: &Arc<Copy>, pool: &Pool) -> bool {
    let started = Instant::now();
    match compute(copy, pool, "measuring efforts", Shard::measure_effort).await.flatten() {
        Some(curve) => {
            tracing::info!(shard = %copy.shard_id, seconds = started.elapsed().as_secs_f32(), "efforts measured");
            log(copy, curve).await
        }
        None => false,
    }
}

/// Runs a long computation on the training pool until the copy's life ends. `None`: it was not done.
async fn compute<T: Send + 'static>(
    copy: &Arc<Copy>,
    pool: &Pool,
    what: &str,
    computation: fn(&Shard, &Cancel) -> Result<T, ShardError>,
) -> Option<T> {
    let (shard, cancel) = (Arc::clone(&copy.shard), Cancel::never());
    let cancelled = cancel.clone();
    let computed = tokio::select! {
        computed = pool.run(move || computation(&shard, &cancel)) => computed,
        () = copy.stop.cancelled() => {
            cancelled.cancel();
            return None;
        }
    };
    match computed {
        Ok(Ok(result)) => Some(result),
        Ok(Err(error)) => {
            tracing::warn!(shard = %copy.shard_id, %error, "{what} failed, searches go on as before");
            None
        }
        // The queue is full: other shards go first.
        Err(_) => None,
    }
}

async fn log(copy: &Copy, operation: Operation) -> bool {
    let id = OperationId(uuid::Uuid::new_v4().as_u128());
    let deadline = (Instant::now() + WRITE_TIMEOUT).into();
    match copy.handle.write(id, vec![operation], deadline).await {
        Ok(_) => true,
        Err(error) => {
            tracing::info!(shard = %copy.shard_id, %error, "maintenance put off");
            false
        }
    }
}
