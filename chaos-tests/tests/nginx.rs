//! Two coordinators behind the shipped nginx file, restarted one after the other under load: no request fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::client::Client;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::front::Front;
use chaos_tests::nginx::Nginx;
use chaos_tests::vectors::unit_vector;
use chaos_tests::wait;
use reqwest::Method;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const DIM: usize = 384;
const WITHIN: Duration = Duration::from_secs(60);
/// Requests of one coordinator that show that nginx uses it.
const REQUESTS: f64 = 100.0;

/// What the clients did.
#[derive(Default)]
struct Counts {
    searches: AtomicU64,
    answers: AtomicU64,
    writes: AtomicU64,
}

/// One client's calls until `stop`; the first that fails ends it.
async fn client(client: Client, number: u64, counts: Arc<Counts>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut round = 0;
    while !stop.is_cancelled() {
        round += 1;
        let vector = unit_vector(number, round % 50, DIM);
        client.search("c", &vector, json!({ "top_k": 3 })).await?.ok().context("search")?;
        counts.searches.fetch_add(1, Ordering::Relaxed);
        if round % 4 == 0 {
            let id = format!("w{number}-{round}");
            client.put_points("c", &[(id, vector)]).await?.ok().context("write")?;
            counts.writes.fetch_add(1, Ordering::Relaxed);
        }
        if round % 8 == 0 {
            let question = json!({ "query": "what makes lift", "collection": "c" });
            let answer = client.send(Method::POST, "/api/v1/query", Some(&question)).await?.ok().context("query")?;
            ensure!(answer["generator"] == "extractive", "{answer}");
            counts.answers.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn requests(front: &Front) -> anyhow::Result<f64> {
    let text = front.client().text("/metrics").await?;
    let of_api = text.lines().filter(|line| line.starts_with("http_requests_total{") && line.contains("/api/v1/"));
    of_api.map(|line| Ok(line.rsplit_once(' ').context("no value")?.1.parse::<f64>()?)).sum()
}

/// nginx sends this one requests (again).
async fn wait_used(front: &Front) -> anyhow::Result<()> {
    let before = requests(front).await?;
    wait::until("nginx to use the coordinator", WITHIN, || async {
        let taken = requests(front).await? - before;
        ensure!(taken >= REQUESTS, "{taken} requests");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn coordinators_are_restarted_behind_nginx_and_no_request_fails() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { fake_embedder: true, ..Options::default() }).await?;
    let spec = json!({ "dim": DIM, "embedder": "fake-hash-384", "shards": 2, "copies": 2 });
    cluster.client().create_collection("c", &spec).await?;
    let mut fronts = [Front::start(&cluster, "first").await?, Front::start(&cluster, "second").await?];
    let nginx = Nginx::start([fronts[0].port(), fronts[1].port()]).await?;
    let point =
        json!({ "points": [{ "id": "wing", "vector": unit_vector(1, 1, DIM), "text": "Lift is made by the wing." }] });
    nginx.client().send(Method::PUT, "/api/v1/collections/c/points", Some(&point)).await?.ok()?;
    for front in &fronts {
        wait::until("the collection to be known", WITHIN, || async {
            front.client().search("c", &unit_vector(1, 1, DIM), json!({})).await?.ok()
        })
        .await?;
        ensure!(front.log()?.contains("simd="), "the SIMD level is not in the log");
    }

    let (counts, stop) = (Arc::new(Counts::default()), CancellationToken::new());
    let clients: Vec<JoinHandle<anyhow::Result<()>>> =
        (0..8).map(|number| tokio::spawn(client(nginx.client(), number, Arc::clone(&counts), stop.clone()))).collect();
    for front in &fronts {
        wait_used(front).await?;
    }
    for front in &mut fronts {
        front.restart().await?;
        wait_used(front).await?;
    }
    stop.cancel();
    for client in clients {
        client.await??;
    }
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (searches, answers, writes) = (count(&counts.searches), count(&counts.answers), count(&counts.writes));
    println!("through two restarts: {searches} searches, {answers} answers, {writes} writes, none failed");
    ensure!(searches >= 400 && answers > 0 && writes > 0, "too little to mean anything");

    for front in &mut fronts {
        front.stop().await?;
    }
    cluster.shut_down().await
}

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
