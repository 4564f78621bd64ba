//! A node can say what its memory goes to: what it accounts for is, within a margin, what the kernel counts of its process.

use std::time::Duration;

use anyhow::{Context, ensure};
use cluster_config::memory::NodeMemory;
use serde::Deserialize;

use crate::cluster::Cluster;
use crate::susui::susui;
use crate::wait;

/// Most that may be missing from the ledger, or be in it and not there.
const MARGIN: f64 = 0.15;

/// Waits until the ledger of each node, as `susui status --memory` tells it, agrees with what the kernel counts of the process. Waits,
/// because a ledger is as old as its heartbeat, and the allocator gives back what a load has freed within some seconds after it.
pub async fn check(cluster: &Cluster, at_most: Duration) -> anyhow::Result<()> {
    for node in 1..=cluster.node_count() {
        let what = format!("an honest ledger of node {node}");
        let agrees = wait::until(&what, at_most, || async {
            let memory = ledger_of(cluster, node).await?;
            let counted = cluster.anonymous_bytes(node)?;
            let off = memory.accounted() as f64 / counted as f64 - 1.0;
            ensure!(off.abs() <= MARGIN, "{:.1} % off {counted} bytes: {memory:?}", 100.0 * off);
            Ok((off, counted))
        });
        let (off, counted) = agrees.await?;
        println!("node {node}: {} MiB anonymous, the ledger is {:.1} % off", counted >> 20, 100.0 * off);
    }
    Ok(())
}

async fn ledger_of(cluster: &Cluster, node: usize) -> anyhow::Result<NodeMemory> {
    let report = susui(&cluster.url(), &["status", "--memory"]).await?.json(0)?;
    let nodes = report["nodes"].as_array().context("no nodes")?;
    let found = nodes.iter().find(|found| found["id"] == node).context("not told of")?;
    NodeMemory::deserialize(&found["memory"]).context("no ledger yet")
}
