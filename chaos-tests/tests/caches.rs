//! Two coordinators over one Redis, one catalog and one language model, all of them well: documents are uploaded, changed and deleted through
//! both while both search and answer. Whatever tier a vector, a result or an answer comes from, no session sees an old text, and no other read
//! one that is older than the bound.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use chaos_tests::checker::{Finding, fresh, phantom, sessions};
use chaos_tests::client::Client;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::front::Front;
use chaos_tests::history::{History, Level, Operation, Outcome};
use chaos_tests::llm::{Script, ScriptedLlm};
use chaos_tests::metrics;
use chaos_tests::postgres::PostgresServer;
use chaos_tests::redis::RedisServer;
use chaos_tests::wait;
use chaos_tests::workload::documents::Numbers;
use chaos_tests::workload::texts::{self, Texts};
use futures::future::join_all;
use serde_json::json;

const MAX_STALENESS: Duration = Duration::from_secs(2);
/// What may come on top on a busy machine: a copy counts its staleness from when a message of its primary reached it.
const DELIVERY_MAX: Duration = Duration::from_secs(2);
/// The same on an idle one.
const DELIVERY_IDLE_MAX: Duration = Duration::from_millis(200);
/// Documents that are worked on at the same time, and writes of each.
const DOCUMENTS: u64 = 3;
const ROUNDS: u64 = 24;
const WITHIN: Duration = Duration::from_secs(60);

/// Hits of both coordinators, by kind and tier.
async fn hits(clients: &[Client]) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut hits = BTreeMap::new();
    for client in clients {
        let text = client.text("/metrics").await?;
        for sample in metrics::samples(&text, "cache_lookups_total", &[("result", "hit")]) {
            *hits.entry(sample.labels.to_owned()).or_default() += sample.value as u64;
        }
    }
    Ok(hits)
}

fn check(history: &[Operation], bound: Duration) -> anyhow::Result<()> {
    let failed: Vec<&Operation> = history.iter().filter(|operation| operation.outcome != Outcome::Ok).collect();
    ensure!(failed.is_empty(), "{} calls failed, the first: {:?}", failed.len(), failed[0]);
    let bound_us = bound.as_micros() as u64;
    let findings: [Finding; 3] =
        [fresh::check(history, Level::Eventual, bound_us), sessions::check(history), phantom::check(history)];
    for finding in &findings {
        println!("{finding}");
        ensure!(finding.is_kept(), "{finding}");
    }
    Ok(())
}

async fn run(bound: Duration) -> anyhow::Result<()> {
    let (redis, postgres) = (RedisServer::start().await?, PostgresServer::start().await?);
    let model = ScriptedLlm::start(Script { quotes: true, ..Script::default() }).await?;
    let coordinator_extra = format!(
        "[cache]\nredis_url = \"{}\"\nredis_timeout = \"200ms\"\n\n[search]\nmax_staleness = \"{}ms\"\n\n\
         [catalog]\nurl = \"{}\"\n\n\
         [[llm.backends]]\nname = \"quoting\"\nkind = \"ollama\"\nurl = \"{}\"\nmodel = \"small\"\n",
        redis.url(),
        MAX_STALENESS.as_millis(),
        postgres.url(),
        model.url(),
    );
    let cluster = Cluster::start(Options { fake_embedder: true, coordinator_extra, ..Options::default() }).await?;
    let mut second = Front::start(&cluster, "second").await?;
    let clients = [cluster.client(), second.client()];
    let spec = json!({ "embedder": "fake-hash-384", "shards": 2, "copies": 2, "fields": { "key": "integer" } });
    clients[0].create_collection("c", &spec).await?;
    for client in &clients {
        wait::until("the collection and Redis to be in use", WITHIN, || async {
            client.search("c", &chaos_tests::vectors::unit_vector(1, 1, 384), json!({})).await?.ok()?;
            ensure!(metrics::read(client, "cache_redis_up", &[]).await? == 1.0, "no Redis");
            Ok(())
        })
        .await?;
    }

    let (history, numbers) = (Arc::new(History::new(None)?), Arc::new(Numbers::default()));
    let ways = |process: u64| -> Vec<Texts> {
        let way = |client: &Client| Texts {
            client: client.clone(),
            collection: "c".into(),
            timeout_ms: 10_000,
            history: Arc::clone(&history),
            process,
        };
        clients.iter().map(way).collect()
    };
    let writers = (0..DOCUMENTS).map(|process| texts::run(ways(process), Arc::clone(&numbers), ROUNDS));
    let keys = join_all(writers).await;
    // Whatever was kept of an earlier version has had its time.
    tokio::time::sleep(bound).await;
    texts::read_all(&ways(DOCUMENTS), &keys).await;

    check(&history.snapshot(), bound)?;
    let hits = hits(&clients).await?;
    println!("{hits:#?}\n{} calls of the model", model.exchanges().len());
    ensure!(hits.len() == 6 && hits.values().all(|count| *count > 0), "a tier was never hit: {hits:#?}");
    second.stop().await?;
    cluster.shut_down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tier_of_two_coordinators_shows_an_old_text() -> anyhow::Result<()> {
    run(MAX_STALENESS + DELIVERY_MAX).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a bound of milliseconds needs a quiet machine; ops/test --full"]
async fn no_tier_of_two_coordinators_shows_a_text_older_than_the_bound() -> anyhow::Result<()> {
    run(MAX_STALENESS + DELIVERY_IDLE_MAX).await
}
