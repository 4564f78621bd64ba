//! What a primary does for its shard between writes: training, and moving the tail into the index.
//!
//! Both are logged operations, proposed through the same write that clients use, so every copy follows in the same order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::ids::OperationId;
use cluster_config::operation::Operation;

use crate::copies::Copy;
use crate::pool::Pool;
use crate::shard::Maintenance;
use crate::vector::Cancel;

/// Between two looks at what the shard needs.
const INTERVAL: Duration = Duration::from_millis(500);
/// Longest wait for one entry to be acknowledged.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Works while the copy is primary, until its life ends.
pub async fn run(copy: Arc<Copy>, training_pool: Pool) {
    while !copy.stop.is_cancelled() {
        let worked = match copy.handle.is_primary().then(|| copy.shard.next_maintenance()).flatten() {
            None => false,
            Some(Maintenance::IndexUpTo { generation, row_end }) => {
                log(&copy, Operation::IndexUpTo { generation, row_end }).await
            }
            Some(Maintenance::Train) => train(&copy, &training_pool).await,
        };
        if !worked {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = copy.stop.cancelled() => return,
            }
        }
    }
}

/// Trains a generation and logs its pieces. Whether all of it was done.
async fn train(copy: &Arc<Copy>, training_pool: &Pool) -> bool {
    let started = Instant::now();
    let (shard, cancel) = (Arc::clone(&copy.shard), Cancel::never());
    let cancelled = cancel.clone();
    let trained = tokio::select! {
        trained = training_pool.run(move || shard.train(&cancel)) => trained,
        () = copy.stop.cancelled() => {
            cancelled.cancel();
            return false;
        }
    };
    let pieces = match trained {
        Ok(Ok(pieces)) => pieces,
        Ok(Err(error)) => {
            tracing::warn!(shard = %copy.shard_id, %error, "training failed, the shard stays exact");
            return false;
        }
        // The queue is full: other shards train first.
        Err(_) => return false,
    };
    tracing::info!(shard = %copy.shard_id, seconds = started.elapsed().as_secs_f32(), "model generation trained");
    for piece in pieces {
        if !log(copy, piece).await {
            return false;
        }
    }
    true
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
