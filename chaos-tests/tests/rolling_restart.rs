//! Nodes are restarted one after the other, each drained first: nobody notices.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chaos_tests::cluster::Options;
use chaos_tests::drill::measure::Measured;
use chaos_tests::loaded::Loaded;
use chaos_tests::susui::susui;
use chaos_tests::wait;

/// Longest time without an acknowledged write on a shard.
const WRITE_PAUSE_MS: u64 = 250;
/// The same where the machine has more to do: half the ack timeout, which is what a write waits for that waits for a node that has gone.
const WRITE_PAUSE_BUSY_MS: u64 = 1_000;
const SHUT_DOWN: Duration = Duration::from_secs(30);

/// Drains, stops and starts the nodes under load.
async fn restart(mut loaded: Loaded, nodes: impl IntoIterator<Item = usize>) -> anyhow::Result<Measured> {
    loaded.wait_whole().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let from_us = loaded.history.now_us();
    let url = loaded.cluster.url();
    for node in nodes {
        let began = Instant::now();
        let id = node.to_string();
        susui(&url, &["node", "drain", &id, "--wait"]).await?.json(0)?;
        let drained = began.elapsed();
        loaded.cluster.stop_node(node, SHUT_DOWN).await?;
        let stopped = began.elapsed() - drained;
        loaded.cluster.start_node(node)?;
        let health = loaded.cluster.node_clients().swap_remove(node - 1);
        wait::until("the node to be ready", Duration::from_secs(30), || health.ready()).await?;
        loaded.wait_whole().await?;
        susui(&url, &["node", "undrain", &id]).await?.json(0)?;
        println!("node {id}: drained in {drained:?}, stopped in {stopped:?}, back after {:?}", began.elapsed());
    }
    loaded.check(from_us).await
}

async fn start() -> anyhow::Result<Loaded> {
    Loaded::start(Options::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metadata_leader_is_restarted_and_nothing_fails() -> anyhow::Result<()> {
    let loaded = start().await?;
    let leader = loaded.wait_whole().await?.leader.context("no metadata leader")?;
    let gap = restart(loaded, [usize::try_from(leader)?]).await?.write_gap_ms;
    ensure!(gap <= WRITE_PAUSE_BUSY_MS, "a shard took no write for {gap} ms: a write waited for the node that stopped");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a promise of milliseconds, and half a minute; ops/test --full"]
async fn all_nodes_are_restarted_and_no_shard_pauses() -> anyhow::Result<()> {
    let loaded = start().await?;
    let nodes = 1..=loaded.cluster.node_count();
    let gap = restart(loaded, nodes).await?.write_gap_ms;
    ensure!(gap <= WRITE_PAUSE_MS, "a shard took no write for {gap} ms, {WRITE_PAUSE_MS} at most");
    Ok(())
}
