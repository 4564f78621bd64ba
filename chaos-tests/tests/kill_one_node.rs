//! `kill -9` of any one of three nodes while searches and writes run.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chaos_tests::checker::{acknowledged, copies_agree};
use chaos_tests::client::Client;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::wait;
use chaos_tests::workload::search::Sample;
use chaos_tests::workload::{ingest, search};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const DIM: usize = 32;
const SHARDS: u32 = 4;
const COPIES: usize = 2;
const SEED: u64 = 7;
/// From this long after the kill on, everything must be served (node timeout 3 s, plus detection and re-grant).
const SERVED_AFTER: Duration = Duration::from_secs(7);
const SEARCH_TIMEOUT_MS: u64 = 5000;

/// Every readable shard has all its copies in sync again.
async fn all_in_sync(client: &Client) -> anyhow::Result<()> {
    let cluster = client.cluster().await?;
    let shards = cluster["shards"].as_array().context("no shards")?;
    ensure!(shards.len() == SHARDS as usize, "{} shards", shards.len());
    for shard in shards {
        let in_sync = shard["in_sync"].as_array().map_or(0, Vec::len);
        ensure!(in_sync == COPIES, "shard has {in_sync} in-sync copies: {shard}");
    }
    Ok(())
}

fn check_searches(samples: &[Sample], killed: Instant) -> anyhow::Result<()> {
    let (early, late): (Vec<&Sample>, Vec<&Sample>) =
        samples.iter().partition(|sample| sample.sent < killed + SERVED_AFTER);
    let failed: Vec<&Sample> = early.iter().copied().filter(|sample| sample.problem.is_some()).collect();
    println!(
        "searches: {} before {SERVED_AFTER:?}, {} of them failed; {} after; slowest {:?}",
        early.len(),
        failed.len(),
        late.len(),
        samples.iter().map(|sample| sample.latency).max().unwrap_or_default(),
    );
    ensure!(late.len() > 50, "only {} searches after the kill: the load stalled", late.len());
    if let Some(sample) = late.iter().find(|sample| sample.problem.is_some()) {
        anyhow::bail!("{:?} after the kill: {:?}", sample.sent - killed, sample.problem);
    }
    for sample in &failed {
        ensure!(sample.explicit, "a failure without an explicit error: {:?}", sample.problem);
    }
    ensure!(failed.len() * 100 <= early.len(), "{} of {} searches failed: {:?}", failed.len(), early.len(), failed[0]);
    Ok(())
}

fn check_writes(ledger: &ingest::Ledger, killed: Instant) -> anyhow::Result<()> {
    let late: Vec<_> = ledger.requests.iter().filter(|(at, _)| *at > killed + SERVED_AFTER).collect();
    let failed = ledger.requests.iter().filter(|(_, error)| error.is_some()).count();
    println!("writes: {} batches, {failed} failed, {} after {SERVED_AFTER:?}", ledger.requests.len(), late.len());
    ensure!(late.len() > 20, "only {} write batches after the kill: writes stalled", late.len());
    match late.iter().find(|(_, error)| error.is_some()) {
        Some((at, error)) => anyhow::bail!("{:?} after the kill: {error:?}", *at - killed),
        None => Ok(()),
    }
}

async fn kill_and_return(victim: usize) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let client = cluster.client();
    let spec = json!({ "dim": DIM, "shards": SHARDS, "copies": COPIES });
    client.create_collection("load", &spec).await?;
    wait::until("all copies in sync", Duration::from_secs(30), || all_in_sync(&client)).await?;

    let stop = CancellationToken::new();
    let plan = ingest::Plan {
        collection: "load".into(),
        dim: DIM,
        seed: SEED,
        first: 0,
        batch: 20,
        count_max: 1_000_000,
        pause: Duration::from_millis(50),
    };
    let writer = tokio::spawn(ingest::run(client.clone(), plan.clone(), stop.clone()));
    let pause = Duration::from_millis(10);
    let searcher =
        tokio::spawn(search::run(client.clone(), "load".into(), DIM, SEED, SEARCH_TIMEOUT_MS, pause, stop.clone()));
    // The load runs for a fixed while on each side of the fault; the checks below are on what it recorded.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let killed = Instant::now();
    cluster.kill_node(victim)?;
    tokio::time::sleep(SERVED_AFTER + Duration::from_secs(6)).await;
    stop.cancel();
    let (ledger, samples) = (writer.await?, searcher.await?);
    println!("victim {victim}: {} points acknowledged, {} unknown", ledger.acknowledged.len(), ledger.unknown.len());
    check_searches(&samples, killed).with_context(|| cluster.log_tails())?;
    check_writes(&ledger, killed).with_context(|| cluster.log_tails())?;
    acknowledged::check(&client, &plan, &ledger).await.context("with one node dead")?;

    cluster.start_missing().await?;
    wait::until("the node to catch up", Duration::from_secs(60), || all_in_sync(&client))
        .await
        .with_context(|| cluster.log_tails())?;
    let chunks = copies_agree::check(&client, "load", SHARDS, COPIES, Duration::from_secs(30)).await?;
    acknowledged::check_count(chunks, &ledger)?;
    acknowledged::check(&client, &plan, &ledger).await.context("after the node returned")?;
    cluster.shut_down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn node_1() -> anyhow::Result<()> {
    kill_and_return(1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn node_2() -> anyhow::Result<()> {
    kill_and_return(2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn node_3() -> anyhow::Result<()> {
    kill_and_return(3).await
}
