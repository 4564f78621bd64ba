//! Steady ingest in batches, with searches beside it: new documents as long as there are few, then new versions of old ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use super::documents::{Documents, Numbers};
use crate::history::{Key, Level, Version};

/// Documents per call.
const BATCH: u64 = 16;
/// Of each document, so that logs are long enough to be cut while somebody is away.
const FILLER_BYTES: usize = 2048;
/// Between two calls.
const PAUSE: Duration = Duration::from_millis(40);
/// Documents after which old ones get new versions: a run of an hour must be able to read every one back.
const KEYS_MAX: u64 = 40_000;
/// Keys of this workload begin here, apart from those of the others.
pub const FIRST_KEY: Key = 1 << 40;

/// How many documents were sent so far.
#[derive(Debug, Default)]
pub struct Sent(AtomicU64);

/// Puts until `stop`.
pub async fn put(documents: Documents, numbers: Arc<Numbers>, sent: Arc<Sent>, seed: u64, stop: CancellationToken) {
    let mut random = StdRng::seed_from_u64(seed);
    while !stop.is_cancelled() {
        let count = sent.0.load(Ordering::Relaxed);
        let first = if count < KEYS_MAX { count } else { random.random_range(0..KEYS_MAX - BATCH) };
        let batch: Vec<(Key, Version)> =
            (first..first + BATCH).map(|number| (FIRST_KEY + number, numbers.version())).collect();
        documents.put_filled(&batch, FILLER_BYTES).await;
        sent.0.fetch_max(first + BATCH, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Searches, with the settings of a user who sets nothing, for documents sent so far until `stop`.
pub async fn search(documents: Documents, sent: Arc<Sent>, seed: u64, stop: CancellationToken) {
    let mut random = StdRng::seed_from_u64(seed);
    while !stop.is_cancelled() {
        let count = sent.0.load(Ordering::Relaxed).max(1);
        documents.read(FIRST_KEY + random.random_range(0..count), Level::Eventual, "").await;
        tokio::time::sleep(PAUSE / 4).await;
    }
}
