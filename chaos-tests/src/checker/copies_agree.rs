//! All in-sync copies of a shard hold equal documents, index membership and log.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

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
    let mut chunks = 0;
    for shard in 0..shards {
        chunks += wait::until(&format!("equal copies of shard {shard}"), at_most, || async {
            compare(&client.digest(collection, shard).await?, copies)
        })
        .await?;
    }
    Ok(chunks)
}

fn compare(reply: &Value, copies: usize) -> anyhow::Result<u64> {
    let all = reply["copies"].as_array().context("no copies")?;
    ensure!(all.len() == copies, "{} copies instead of {copies}: {reply}", all.len());
    ensure!(all.iter().all(|copy| copy["error"].is_null()), "a copy gave no digest: {reply}");
    ensure!(all.iter().all(|copy| copy["in_sync"] == true), "a copy is not in sync: {reply}");
    for key in ["applied", "documents", "index_membership", "log", "chunk_count", "document_count"] {
        ensure!(
            all.iter().all(|copy| !copy[key].is_null() && copy[key] == all[0][key]),
            "copies differ in {key}: {reply}"
        );
    }
    all[0]["chunk_count"].as_u64().context("no chunk_count")
}
