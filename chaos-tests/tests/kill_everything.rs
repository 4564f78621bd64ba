//! `kill -9` of all processes in the middle of writes, and a restart: every acknowledged point and document is there.

use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::checker::{acknowledged, copies_agree};
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::workload::ingest;
use serde_json::json;
use tokio_util::sync::CancellationToken;

const DIM: usize = 32;

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_point_survives() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let client = cluster.client();
    client.create_collection("load", &json!({ "dim": DIM, "shards": 4, "copies": 2 })).await?;
    let plan = ingest::Plan {
        collection: "load".into(),
        dim: DIM,
        seed: 11,
        first: 0,
        batch: 50,
        count_max: 1_000_000,
        pause: Duration::ZERO,
    };
    let stop = CancellationToken::new();
    let writer = tokio::spawn(ingest::run(client.clone(), plan.clone(), stop.clone()));
    tokio::time::sleep(Duration::from_secs(4)).await;
    cluster.kill_all()?;
    stop.cancel();
    let ledger = writer.await?;
    println!("{} points acknowledged, {} unknown", ledger.acknowledged.len(), ledger.unknown.len());
    ensure!(ledger.acknowledged.len() > 500, "only {} points before the kill", ledger.acknowledged.len());

    cluster.start_missing().await?;
    let chunks = copies_agree::check(&client, "load", 4, 2, Duration::from_secs(60))
        .await
        .with_context(|| cluster.log_tails())?;
    acknowledged::check_count(chunks, &ledger)?;
    acknowledged::check(&client, &plan, &ledger).await?;
    cluster.shut_down().await
}
