//! A document of many chunks is uploaded again and again, each time longer or shorter, while others read: each of them sees a version
//! as a whole, never parts of two, never a part of one, and never nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::client::Client;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::wait;
use futures::future::try_join_all;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::watch;

const VERSIONS: usize = 16;
const CONSISTENCIES: [&str; 3] = ["eventual", "session", "strong"];

/// Chunks of a version, each a section too long to share a chunk with another.
fn chunks_of(version: usize) -> usize {
    if version.is_multiple_of(2) { 12 } else { 7 }
}

fn text_of(version: usize) -> String {
    let section = |part: usize| format!("# Part {part}\n\n{}\n\n", format!("harbour version{version} ").repeat(90));
    (0..chunks_of(version)).map(section).collect()
}

async fn upload(client: &Client, version: usize) -> anyhow::Result<()> {
    let fields = [("id", "d"), ("collection", "docs")];
    let accepted = client.upload(&fields, "d.md", text_of(version).into_bytes()).await?.ok()?;
    let job = format!("/api/v1/jobs/{}", accepted["job_id"].as_str().context("no job")?);
    wait::until("the document to be indexed", Duration::from_secs(60), || async {
        let job = client.send(Method::GET, &job, None).await?.ok()?;
        ensure!(job["status"] == "done", "{job}");
        Ok(())
    })
    .await
}

/// The version that a read shows.
fn version_shown(answer: &Value) -> anyhow::Result<usize> {
    let hits = answer["hits"].as_array().context("no hits")?;
    let marks: BTreeSet<&str> = hits
        .iter()
        .filter_map(|hit| hit["text"].as_str())
        .flat_map(|text| text.split_whitespace().filter(|word| word.starts_with("version")))
        .collect();
    ensure!(marks.len() == 1, "{} chunks of {marks:?}", hits.len());
    let version = marks.first().and_then(|mark| mark.strip_prefix("version")).context("no version")?.parse()?;
    ensure!(hits.len() == chunks_of(version), "{} of {} chunks of version {version}", hits.len(), chunks_of(version));
    Ok(version)
}

/// Reads until the writer has ended; how many versions were seen.
async fn read(client: Client, consistency: &str, ended: watch::Receiver<bool>) -> anyhow::Result<usize> {
    let mut body = json!({"collection": "docs", "query": "harbour", "top_k": 100, "consistency": consistency});
    let mut seen = BTreeSet::new();
    while !*ended.borrow() {
        let answer = client.send(Method::POST, "/api/v1/search", Some(&body)).await?.ok()?;
        seen.insert(version_shown(&answer).with_context(|| format!("{consistency}, after versions {seen:?}"))?);
        if consistency == "session" {
            body["session"] = answer["session"].clone();
        }
    }
    Ok(seen.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_sees_one_version_as_a_whole() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { fake_embedder: true, ..Options::default() }).await?;
    let client = cluster.client();
    let embedder = json!({ "shards": 2, "copies": 2, "embedder": "fake-hash-384" });
    client.create_collection("docs", &embedder).await?;
    upload(&client, 0).await?;
    let (ended, end) = watch::channel(false);
    let readers = CONSISTENCIES.map(|consistency| tokio::spawn(read(client.clone(), consistency, end.clone())));
    let mut written = Ok(());
    for version in 1..VERSIONS {
        written = upload(&client, version).await;
        if written.is_err() {
            break;
        }
    }
    ended.send_replace(true);
    for (consistency, seen) in CONSISTENCIES.iter().zip(try_join_all(readers).await?) {
        let seen = seen?;
        println!("{consistency}: {seen} of {VERSIONS} versions seen");
        ensure!(seen > 1, "{consistency}: nothing was replaced meanwhile");
    }
    written?;
    cluster.shut_down().await
}
