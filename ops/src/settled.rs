//! Waiting until a collection's shards search as they will: every row in a trained index, or too few rows for one.
//!
//! A copy that is large enough begins to train only after a pause in the writes, and copies report about once a second. So "exact" is
//! settled only below the training floor, and only a state that two looks at a distance agree on counts.

use std::time::Duration;

use tokio::time::Instant;

use crate::client::Client;
use crate::error::Error;
use crate::output::Output;
use crate::status;
use crate::wire::cluster::ShardReport;
use crate::wire::collection::CollectionInfo;

/// How often the shards are looked at.
const POLL: Duration = Duration::from_millis(250);
/// For so long nothing may be left to do. Twice the interval of reports.
const SETTLED_FOR: Duration = Duration::from_secs(2);

/// Waits, at most for `at_most`, until nothing is left to do, and all copies report `rows` live rows together where they are given.
/// Gives the time it took and the shards as they then are. Errors: `CheckFailed` when the time is over.
pub async fn wait(
    client: &Client,
    output: Output,
    collection: &CollectionInfo,
    rows: Option<u64>,
    at_most: Duration,
) -> Result<(Duration, Vec<ShardReport>), Error> {
    let begun = Instant::now();
    let spinner = output.spinner();
    let mut settled_at = None;
    loop {
        let mut shards = status::fetch(client).await?.shards;
        shards.retain(|shard| shard.collection == collection.name);
        let floor = u64::from(collection.index.training_floor);
        let mut waiting: Vec<String> = shards.iter().flat_map(|shard| left_to_do(shard, floor)).collect();
        let live: u64 = shards.iter().map(rows_on_every_copy).sum();
        if let Some(rows) = rows.filter(|rows| *rows != live) {
            waiting.push(format!("{live} of {rows} rows on every copy"));
        }
        if shards.is_empty() {
            waiting.push("no shards yet".to_owned());
        }
        if waiting.is_empty() {
            let settled = *settled_at.get_or_insert_with(|| begun.elapsed());
            if begun.elapsed() >= settled + SETTLED_FOR {
                spinner.finish_and_clear();
                return Ok((settled, shards));
            }
        } else {
            settled_at = None;
        }
        spinner.set_message(format!("indexing: {}", waiting.first().map_or("settling", String::as_str)));
        if begun.elapsed() >= at_most && !waiting.is_empty() {
            spinner.finish_and_clear();
            let text = format!("not indexed after {}: {}", humantime::format_duration(at_most), waiting.join("; "));
            return Err(Error::CheckFailed(text));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What the copies of a shard still have to do. `floor`: live rows from which on a shard is trained.
fn left_to_do(shard: &ShardReport, floor: u64) -> Vec<String> {
    let unsettled = shard.copies.iter().filter(|copy| copy.role != "retiring").filter_map(|copy| {
        let name = format!("{}/{} copy {}", shard.collection, shard.index, copy.copy);
        let Some(report) = &copy.report else { return Some(format!("{name}: no report yet")) };
        match (report.index_state.as_str(), report.rows_tail) {
            ("exact", _) if report.rows_live < floor => None,
            ("exact", _) => Some(format!("{name}: {} rows, not yet trained", report.rows_live)),
            ("indexed", 0) => None,
            (state, tail) => Some(format!("{name}: {state}, tail {tail}")),
        }
    });
    unsettled.collect()
}

fn rows_on_every_copy(shard: &ShardReport) -> u64 {
    let reports = shard.copies.iter().filter_map(|copy| copy.report.as_ref());
    reports.map(|report| report.rows_live).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn training_that_is_due_a_tail_or_a_silent_copy_keep_us_waiting() {
        const FLOOR: u64 = 10;
        let report = |state: &str, live: u64, tail: u64| {
            json!({"last_seqno": 9, "applied": 9, "global_checkpoint": 9, "generation": 1, "index_state": state, "rows_live": live,
                "rows_indexed": live - tail, "rows_tail": tail, "disk_bytes": 1, "memory_bytes": 1})
        };
        let cases = [
            (report("exact", 9, 9), None),
            (report("exact", 10, 10), Some("c/0 copy 1: 10 rows, not yet trained")),
            (report("training", 10, 10), Some("c/0 copy 1: training, tail 10")),
            (report("building", 10, 8), Some("c/0 copy 1: building, tail 8")),
            (report("indexed", 10, 1), Some("c/0 copy 1: indexed, tail 1")),
            (report("renewing", 10, 0), Some("c/0 copy 1: renewing, tail 0")),
            (report("indexed", 10, 0), None),
            (Value::Null, Some("c/0 copy 1: no report yet")),
        ];
        for (report, expected) in cases {
            let shard = json!({"collection": "c", "index": 0, "primary_term": 1, "primary": 1, "in_sync": [1], "min_in_sync": 1,
                "health": "green", "copies": [{"copy": 1, "node": 1, "role": "primary", "report": report}]});
            let shard: ShardReport = serde_json::from_value(shard).expect("the API's shape");
            assert_eq!(left_to_do(&shard, FLOOR).first().map(String::as_str), expected, "{report}");
        }
    }
}
