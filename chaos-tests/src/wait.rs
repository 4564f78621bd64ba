//! Waiting on states: a condition is polled until it holds or its time is over, and the last reason is told.

use std::future::Future;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(50);

/// Polls `condition` until it is `Ok`, at most for `at_most`. Errors: what was waited for, and the last reason it gave.
pub async fn until<T, F, Fut>(what: &str, at_most: Duration, mut condition: F) -> anyhow::Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = anyhow::Result<T>>,
{
    let end = Instant::now() + at_most;
    loop {
        match condition().await {
            Ok(value) => return Ok(value),
            Err(reason) if Instant::now() >= end => {
                return Err(reason.context(format!("gave up after {at_most:?} waiting for {what}")));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
