//! A collection does not come back after its deletion, although the metadata leader had been asked to create it while it could not hear the
//! coordinator: the coordinator asked another node then, and what the leader was asked arrives when all is over.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chaos_tests::client::Client;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::front::Front;
use chaos_tests::links::{Network, Topology};
use reqwest::Method;
use serde_json::json;

/// Creations that arrive late.
const LATE: usize = 2;
/// Attempts at one: where the coordinator holds nothing of the leader at the moment, it asks others first.
const ROUNDS_MAX: usize = 10;
/// Less than it takes a coordinator to give up a node that is silent, more than a creation takes.
const HELD: Duration = Duration::from_millis(1_500);
/// How long a late creation has to show what it does.
const WATCHED: Duration = Duration::from_secs(1);

async fn names(client: &Client) -> anyhow::Result<Vec<String>> {
    let cluster = client.cluster().await?;
    let collections = cluster["collections"].as_array().context("no collections")?;
    Ok(collections.iter().filter_map(|collection| collection["name"].as_str().map(str::to_owned)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_arrives_after_the_deletion_creates_nothing() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { network: Network::Proxied, ..Options::default() }).await?;
    let mut second = Front::start_past_links(&cluster, "second").await?;
    let (client, other) = (cluster.client(), second.client());
    let mut late = 0;
    for round in 0..ROUNDS_MAX {
        let name = format!("brief-{round}");
        let leader = other.cluster().await?["metadata"]["leader"].as_u64().context("no leader")?;
        cluster.links().cut(&Topology::CoordinatorFrom(usize::try_from(leader)?));
        let begun = Instant::now();
        let created = client.create_collection(&name, &json!({ "dim": 8, "shards": 1, "copies": 2 })).await;
        let took = begun.elapsed();
        println!("{name}: {} after {took:?}", if created.is_ok() { "created" } else { "not known to be created" });
        if created.is_ok() {
            ensure!(names(&other).await?.contains(&name), "{name} was created");
            late += usize::from(took >= HELD);
        }
        other.send(Method::DELETE, &format!("/api/v1/collections/{name}"), None).await?.ok()?;
        cluster.links().heal();
        let healed = Instant::now();
        while healed.elapsed() < WATCHED {
            let there = names(&other).await?;
            ensure!(there.is_empty(), "back after its deletion: {there:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if late == LATE {
            break;
        }
    }
    ensure!(late == LATE, "only {late} of {LATE} creations arrived late");
    second.stop().await?;
    cluster.shut_down().await
}
