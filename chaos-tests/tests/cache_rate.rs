//! A search by text that was asked before is answered many times as fast as a new one: nothing is embedded, no shard is asked.

use std::time::{Duration, Instant};

use anyhow::ensure;
use chaos_tests::client::Client;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::model::model_dir;
use chaos_tests::vectors::unit_vector;
use reqwest::Method;
use serde_json::json;

/// The least a repeated search must be faster.
const RATIO_MIN: f64 = 20.0;
/// Passages to search, 384-dimensional like the model's.
const PASSAGES: u64 = 2000;
const DIM: usize = 384;
/// New texts searched for.
const NEW: u32 = 200;
/// Repetitions of one text.
const REPEATED: u32 = 4000;

async fn search(client: &Client, text: &str) -> anyhow::Result<bool> {
    let body = json!({ "query": text, "collection": "c", "top_k": 5, "explain": true });
    let reply = client.send(Method::POST, "/api/v1/search", Some(&body)).await?.ok()?;
    ensure!(reply["hits"].as_array().is_some_and(|hits| hits.len() == 5), "{reply}");
    Ok(reply["explain"]["cached"] == true)
}

/// Time per search of the texts that `text` gives; all of them must (not) be cached.
async fn timed(client: &Client, count: u32, is_cached: bool, text: impl Fn(u32) -> String) -> anyhow::Result<Duration> {
    let began = Instant::now();
    for number in 0..count {
        ensure!(search(client, &text(number)).await? == is_cached, "search {number}: cached is not {is_cached}");
    }
    Ok(began.elapsed() / count)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "asserts on a ratio of times, which needs a quiet machine; ops/test --full runs it"]
async fn a_repeated_search_by_text_is_twenty_times_as_fast() -> anyhow::Result<()> {
    let Some(model) = model_dir() else { anyhow::bail!("no embedding model: ops/test fetches it") };
    // No write comes in between, so that a word of the primaries is believed for as long as the default says.
    let cluster = Cluster::start(Options { model_dir: Some(model), ..Options::default() }).await?;
    let client = cluster.client();
    let spec = json!({ "embedder": "all-MiniLM-L6-v2", "shards": 4, "copies": 2 });
    client.create_collection("c", &spec).await?;
    for first in (0..PASSAGES).step_by(500) {
        let points: Vec<(String, Vec<f32>)> =
            (first..first + 500).map(|number| (format!("p{number}"), unit_vector(1, number, DIM))).collect();
        client.put_points("c", &points).await?.ok()?;
    }
    let question = |number: u32| format!("What should an operator do when node {number} of the cluster dies at night?");
    timed(&client, 20, false, |number| question(1_000_000 + number)).await?;
    let new = timed(&client, NEW, false, question).await?;
    let repeated = timed(&client, REPEATED, true, |_| question(0)).await?;
    let ratio = new.as_secs_f64() / repeated.as_secs_f64();
    println!("new text {new:?}, repeated {repeated:?}: {ratio:.1} times as fast");
    ensure!(ratio >= RATIO_MIN, "only {ratio:.1} times");
    cluster.shut_down().await
}
