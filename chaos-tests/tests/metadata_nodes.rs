//! Three metadata nodes and three data nodes in processes of their own: the data plane does not need the control plane.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chaos_tests::cluster::Options;
use chaos_tests::loaded::Loaded;
use chaos_tests::{observer, wait};
use serde_json::json;

/// After this long there must be a new metadata leader that can commit: a collection can be created.
const CONTROL_BACK: Duration = Duration::from_secs(3);
/// The same where the machine has more to do: there is an election and not, say, a deadline that was waited for.
const CONTROL_BACK_BUSY: Duration = Duration::from_secs(8);

/// Nodes 1 to 3 hold data, 4 to 6 vote.
fn six_nodes() -> Options {
    Options { metadata_nodes: 3, ..Options::default() }
}

async fn leader(loaded: &Loaded) -> anyhow::Result<usize> {
    let look = loaded.wait_whole().await?;
    Ok(usize::try_from(look.leader.context("no metadata leader")?)?)
}

/// Kills the metadata leader, and returns after how long a collection was created.
async fn kill_the_leader() -> anyhow::Result<Duration> {
    let mut loaded = Loaded::start(six_nodes()).await?;
    let leader = leader(&loaded).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let client = loaded.cluster.client();
    let killed = Instant::now();
    loaded.cluster.kill_node(leader)?;
    let spec = json!({ "dim": 8, "shards": 1, "copies": 2 });
    client.create_collection("after", &spec).await?;
    let created = killed.elapsed();
    println!("metadata leader (node {leader}) killed: a collection created after {created:?}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    loaded.cluster.start_node(leader)?;
    loaded.check(0).await?;
    Ok(created)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metadata_leader_is_killed() -> anyhow::Result<()> {
    let created = kill_the_leader().await?;
    ensure!(created <= CONTROL_BACK_BUSY, "no collection could be created for {created:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a promise of seconds; ops/test --full"]
async fn a_collection_can_be_created_soon_after_the_metadata_leader_is_killed() -> anyhow::Result<()> {
    let created = kill_the_leader().await?;
    ensure!(created <= CONTROL_BACK, "a collection was created after {created:?}, not {CONTROL_BACK:?}");
    Ok(())
}

async fn quorum_down_for(time: Duration) -> anyhow::Result<()> {
    let mut loaded = Loaded::start(six_nodes()).await?;
    let leader = leader(&loaded).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let other = (4..=6).find(|node| *node != leader).context("three metadata nodes")?;
    loaded.cluster.kill_node(leader)?;
    loaded.cluster.kill_node(other)?;
    tokio::time::sleep(time).await;
    loaded.cluster.start_node(leader)?;
    loaded.cluster.start_node(other)?;
    let client = loaded.cluster.client();
    let look = || observer::look(&client, &loaded.history);
    wait::until("the metadata group", Duration::from_secs(30), look).await?;
    loaded.check(0).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quorum_is_down_for_twenty_seconds() -> anyhow::Result<()> {
    quorum_down_for(Duration::from_secs(20)).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a minute; ops/test --full"]
async fn the_quorum_is_down_for_a_minute() -> anyhow::Result<()> {
    quorum_down_for(Duration::from_secs(60)).await
}
