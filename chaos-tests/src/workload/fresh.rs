//! Writes through one coordinator and reads through the others at once: whatever a cache anywhere still holds has every chance to show.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::documents::{Documents, Numbers};
use crate::history::Level;

/// Every so many writes the document is deleted instead.
const DELETE_EVERY: u64 = 4;
/// Between a write's reads and the next write.
const PAUSE: Duration = Duration::from_millis(5);

/// Works on one document until `stop`. `ways` lead to the coordinators; all record as the same process.
///
/// Each read is asked twice of each coordinator: the second time it can come out of a cache.
pub async fn run(ways: Vec<Documents>, numbers: Arc<Numbers>, stop: CancellationToken) {
    let key = numbers.key();
    let mut round = 0;
    while !stop.is_cancelled() {
        let writer = &ways[round as usize % ways.len()];
        round += 1;
        let written = match round % DELETE_EVERY {
            0 => writer.delete(key).await,
            _ => writer.put(&[(key, numbers.version())]).await,
        };
        let Some(token) = written else { continue };
        for reader in ways.iter().chain(&ways) {
            reader.read(key, Level::Session, &token).await;
            reader.read(key, Level::Eventual, "").await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
