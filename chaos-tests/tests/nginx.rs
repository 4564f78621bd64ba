//! Two coordinators behind the shipped nginx file: streams, compression and conditional requests pass through it as they are.

use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::front::Front;
use chaos_tests::nginx::Nginx;
use chaos_tests::vectors::unit_vector;
use chaos_tests::wait;
use reqwest::Method;
use serde_json::json;

const DIM: usize = 384;
const WITHIN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn nginx_passes_streams_compression_and_conditions_through() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { fake_embedder: true, ..Options::default() }).await?;
    let spec = json!({ "embedder": "fake-hash-384", "shards": 2, "copies": 2 });
    cluster.client().create_collection("c", &spec).await?;
    let mut fronts = [Front::start(&cluster, "first").await?, Front::start(&cluster, "second").await?];
    let nginx = Nginx::start([fronts[0].port(), fronts[1].port()]).await?;
    let text = "Lift is made by the wing. ".repeat(100);
    let point = json!({ "points": [{ "id": "wing", "vector": unit_vector(1, 1, DIM), "text": text }] });
    cluster.client().send(Method::PUT, "/api/v1/collections/c/points", Some(&point)).await?.ok()?;
    for front in &fronts {
        wait::until("the collection to be known", WITHIN, || async {
            front.client().search("c", &unit_vector(1, 1, DIM), json!({})).await?.ok()
        })
        .await?;
    }

    let http = reqwest::Client::new();
    let search = format!("{}/api/v1/search?query=lift&collection=c", nginx.url());
    let compressed = http.get(&search).header("accept-encoding", "gzip").send().await?.error_for_status()?;
    ensure!(compressed.headers().get("content-encoding").is_some_and(|value| value == "gzip"), "{compressed:?}");
    let tag = compressed.headers().get("etag").context("no tag")?.clone();
    let same = http.get(&search).header("if-none-match", tag).send().await?;
    ensure!(same.status() == reqwest::StatusCode::NOT_MODIFIED, "{same:?}");

    let question = json!({ "query": "what makes lift", "collection": "c", "stream": true });
    let streamed = http.post(format!("{}/api/v1/query", nginx.url())).header("accept-encoding", "gzip, br");
    let streamed = streamed.json(&question).send().await?.error_for_status()?;
    ensure!(streamed.headers().get("content-encoding").is_none(), "{streamed:?}");
    let events = streamed.text().await?;
    ensure!(events.contains("event: done"), "{events}");

    let metrics = http.get(format!("{}/metrics", nginx.url())).send().await?;
    ensure!(metrics.status() == reqwest::StatusCode::NOT_FOUND, "metrics of one coordinator by chance: {metrics:?}");
    for front in &mut fronts {
        front.stop().await?;
    }
    cluster.shut_down().await
}
