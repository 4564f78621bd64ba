//! All nodes are restarted one after the other, each drained first: nobody notices.

use std::time::Duration;

use anyhow::ensure;
use chaos_tests::cluster::Options;
use chaos_tests::loaded::Loaded;
use chaos_tests::susui::susui;

/// Longest time without an acknowledged write on a shard.
const WRITE_PAUSE_MS: u64 = 250;
const SHUT_DOWN: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn with_drain_nothing_fails() -> anyhow::Result<()> {
    let mut loaded = Loaded::start(Options { check_invariants: true, ..Options::default() }).await?;
    loaded.wait_whole().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let from_us = loaded.history.now_us();
    let url = loaded.cluster.url();
    for node in 1..=loaded.cluster.node_count() {
        let id = node.to_string();
        susui(&url, &["node", "drain", &id, "--wait"]).await?.json(0)?;
        loaded.cluster.stop_node(node, SHUT_DOWN).await?;
        loaded.cluster.start_node(node)?;
        loaded.wait_whole().await?;
        susui(&url, &["node", "undrain", &id]).await?.json(0)?;
    }
    let measured = loaded.check(from_us).await?;
    let gap = measured.write_gap_ms;
    ensure!(gap <= WRITE_PAUSE_MS, "a shard took no write for {gap} ms, {WRITE_PAUSE_MS} at most");
    Ok(())
}
