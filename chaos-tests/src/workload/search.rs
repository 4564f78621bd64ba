//! Searches by vector, one after another, and keeps how each went.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::vectors::unit_vector;

/// How one search went.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When it was sent.
    pub sent: Instant,
    /// How long it took.
    pub latency: Duration,
    /// `None`: complete, all shards answered. Else what was wrong.
    pub problem: Option<String>,
    /// The problem was an explicit error with a type, not a broken connection or a silent gap.
    pub explicit: bool,
}

/// Searches until `stop`, each call with `timeout_ms`, `pause` between calls.
pub async fn run(
    client: Client,
    collection: String,
    dim: usize,
    seed: u64,
    timeout_ms: u64,
    pause: Duration,
    stop: CancellationToken,
) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut number = 0;
    while !stop.is_cancelled() {
        number += 1;
        let vector = unit_vector(seed ^ 0xABCD, number, dim);
        let sent = Instant::now();
        let answer = client.search(&collection, &vector, json!({ "top_k": 10, "timeout_ms": timeout_ms })).await;
        let (problem, explicit) = match answer {
            Ok(answer) if answer.status.is_success() => {
                let shards = &answer.body["shards"];
                let complete = shards["total"].as_u64().is_some() && shards["ok"] == shards["total"];
                ((!complete).then(|| format!("incomplete without an error: {shards}")), false)
            }
            Ok(answer) => {
                let explicit = answer.body["error"]["type"].is_string();
                (Some(format!("{}: {}", answer.status, answer.body)), explicit)
            }
            Err(error) => (Some(error.to_string()), false),
        };
        samples.push(Sample { sent, latency: sent.elapsed(), problem, explicit });
        tokio::time::sleep(pause).await;
    }
    samples
}
