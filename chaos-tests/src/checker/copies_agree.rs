//! All copies of a shard, read replicas too, hold equal documents, index membership and log.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::Finding;
use crate::client::Client;
use crate::wait;

/// Waits until every shard has `copies` in-sync copies with equal digests, and returns the chunks held by all shards together.
pub async fn check(
    client: &Client,
    collection: &str,
    shards: u32,
    copies: usize,
    at_most: Duration,
) -> anyhow::Result<u64> {
    check_with_replicas(client, collection, shards, copies, 0, at_most).await
}

/// The same where each shard also has `replicas` read replicas.
pub async fn check_with_replicas(
    client: &Client,
    collection: &str,
    shards: u32,
    copies: usize,
    replicas: usize,
    at_most: Duration,
) -> anyhow::Result<u64> {
    let mut chunks = 0;
    for shard in 0..shards {
        chunks += wait::until(&format!("equal copies of shard {shard}"), at_most, || async {
            compare(&client.digest(collection, shard).await?, copies, replicas)
        })
        .await?;
    }
    Ok(chunks)
}

/// The outcome of a check.
pub fn finding(converged: &anyhow::Result<()>) -> Finding {
    let breaches = converged.as_ref().err().into_iter().map(|reason| format!("{reason:#}")).collect();
    Finding { promise: "copies converge to equal digests", checked: 1, breaches }
}

fn compare(reply: &Value, copies: usize, replicas: usize) -> anyhow::Result<u64> {
    let all = reply["copies"].as_array().context("no copies")?;
    ensure!(all.len() == copies + replicas, "{} copies instead of {}: {reply}", all.len(), copies + replicas);
    ensure!(all.iter().all(|copy| copy["error"].is_null()), "a copy gave no digest: {reply}");
    let in_sync = all.iter().filter(|copy| copy["in_sync"] == true).count();
    ensure!(in_sync == copies, "{in_sync} copies in sync instead of {copies}: {reply}");
    for key in ["applied", "documents", "index_membership", "chunk_count", "document_count"] {
        ensure!(
            all.iter().all(|copy| !copy[key].is_null() && copy[key] == all[0][key]),
            "copies differ in {key}: {reply}"
        );
    }
    // Each keeps as much of the log as it is told to, and one built from a snapshot has none of before.
    let mut logs: BTreeMap<u64, &Value> = BTreeMap::new();
    for copy in all {
        let from = copy["log_from"].as_u64().context("no log_from")?;
        let log = *logs.entry(from).or_insert(&copy["log"]);
        ensure!(!log.is_null() && copy["log"] == *log, "copies differ in log: {reply}");
    }
    all[0]["chunk_count"].as_u64().context("no chunk_count")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn any_difference_and_any_silence_is_told() {
        let copy = |in_sync: bool| {
            json!({ "in_sync": in_sync, "applied": 9, "documents": "a", "index_membership": "b", "log": "c",
                "log_from": 3, "chunk_count": 4, "document_count": 4 })
        };
        let equal = json!({ "copies": [copy(true), copy(true), copy(false)] });
        assert_eq!(compare(&equal, 2, 1).expect("equal"), 4);
        assert!(compare(&equal, 3, 0).is_err(), "a copy is not in sync");
        for (key, value) in [("documents", json!("x")), ("log", json!("x")), ("error", json!("silent"))] {
            let mut reply = equal.clone();
            reply["copies"][2][key] = value;
            assert!(compare(&reply, 2, 1).is_err(), "{key}");
        }
        let mut purged = equal;
        (purged["copies"][2]["log"], purged["copies"][2]["log_from"]) = (json!("x"), json!(5));
        assert!(compare(&purged, 2, 1).is_ok(), "another part of the log");
    }
}
