//! Puts numbered points, one batch at a time, and keeps the independent list of what was acknowledged.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::vectors::unit_vector;

/// Which points to put.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Into which collection.
    pub collection: String,
    /// Its dimension.
    pub dim: usize,
    /// Seed of the vectors.
    pub seed: u64,
    /// First point number.
    pub first: u64,
    /// Points per request.
    pub batch: u64,
    /// Stop after this many points, if not stopped before.
    pub count_max: u64,
    /// Pause between requests, so that the load is steady rather than maximal.
    pub pause: Duration,
}

/// The independent list.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Acknowledged point numbers: must be found for ever.
    pub acknowledged: BTreeSet<u64>,
    /// Sent, but the answer was an error or none: may be there or not.
    pub unknown: BTreeSet<u64>,
    /// Every request: when it ended, and the error if it failed.
    pub requests: Vec<(Instant, Option<String>)>,
}

/// The id of point `number`.
pub fn point_id(number: u64) -> String {
    format!("p{number}")
}

/// Puts points until `stop` or `count_max`. A failed batch is not repeated: its points stay unknown.
pub async fn run(client: Client, plan: Plan, stop: CancellationToken) -> Ledger {
    let mut ledger = Ledger::default();
    let mut next = plan.first;
    while next < plan.first + plan.count_max && !stop.is_cancelled() {
        let end = (next + plan.batch).min(plan.first + plan.count_max);
        let points: Vec<(String, Vec<f32>)> =
            (next..end).map(|number| (point_id(number), unit_vector(plan.seed, number, plan.dim))).collect();
        let error = match client.put_points(&plan.collection, &points).await {
            Ok(answer) if answer.status.is_success() => None,
            Ok(answer) => Some(format!("{}: {}", answer.status, answer.body)),
            Err(error) => Some(error.to_string()),
        };
        let list = if error.is_none() { &mut ledger.acknowledged } else { &mut ledger.unknown };
        list.extend(next..end);
        ledger.requests.push((Instant::now(), error));
        next = end;
        tokio::time::sleep(plan.pause).await;
    }
    ledger
}
