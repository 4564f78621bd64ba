//! A first user's cluster, all of it killed in the middle of an ingestion and brought back by `susui dev up`.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::checker::copies_agree;
use chaos_tests::client::Client;
use chaos_tests::dev::Dev;
use chaos_tests::model::model_dir;
use chaos_tests::susui::susui;
use chaos_tests::wait;
use reqwest::Method;
use serde_json::json;

const DOCUMENTS: usize = 60;
/// So many are indexed before the kill; the others are acknowledged uploads in every stage.
const INDEXED_BEFORE: usize = 10;
const COLORS: [&str; 6] = ["red", "green", "blue", "white", "black", "yellow"];

fn id(number: usize) -> String {
    format!("note-{number}")
}

/// One chunk each, no two alike.
fn text(number: usize) -> String {
    format!("The {} lighthouse number {number} stands on cape {}.", COLORS[number % COLORS.len()], number * 7919 % 1000)
}

async fn is_searchable(client: &Client, id: &str) -> anyhow::Result<bool> {
    let path = format!("/api/v1/documents/{id}?collection=notes");
    Ok(client.send(Method::GET, &path, None).await?.ok()?["searchable"] == true)
}

async fn searchable(client: &Client, ids: &BTreeSet<String>) -> anyhow::Result<usize> {
    let mut count = 0;
    for id in ids {
        count += usize::from(is_searchable(client, id).await?);
    }
    Ok(count)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_document_survives() -> anyhow::Result<()> {
    let Some(model) = model_dir() else { return Ok(()) };
    let dev = Dev::start(&model).await?;
    let client = dev.client();
    let spec = json!({ "embedder": "all-MiniLM-L6-v2", "shards": 4, "copies": 2 });
    client.create_collection("notes", &spec).await?;

    let mut acknowledged = BTreeSet::new();
    for number in 0..DOCUMENTS {
        let body = json!({ "id": id(number), "text": text(number), "collection": "notes" });
        let answer = client.send(Method::POST, "/api/v1/documents", Some(&body)).await?;
        ensure!(answer.status == 202, "{answer:?}");
        acknowledged.insert(id(number));
    }
    let some = wait::until("the first documents to be searchable", Duration::from_secs(60), || async {
        let count = searchable(&client, &acknowledged).await?;
        ensure!(count >= INDEXED_BEFORE, "{count} are");
        Ok(count)
    });
    println!("{} of {DOCUMENTS} searchable before the kill", some.await?);
    dev.kill_all().await?;

    dev.up().await?;
    wait::until("every acknowledged document to be searchable", Duration::from_secs(120), || async {
        let count = searchable(&client, &acknowledged).await?;
        ensure!(count == acknowledged.len(), "{count} of {} are", acknowledged.len());
        Ok(())
    })
    .await?;
    let chunks = copies_agree::check(&client, "notes", 4, 2, Duration::from_secs(60)).await?;
    ensure!(chunks == DOCUMENTS as u64, "{chunks} chunks of {DOCUMENTS} documents: some are lost or doubled");
    for number in 0..DOCUMENTS {
        let body = json!({ "collection": "notes", "query": text(number), "top_k": 1 });
        let found = client.send(Method::POST, "/api/v1/search", Some(&body)).await?.ok()?;
        ensure!(found["hits"][0]["document_id"] == id(number).as_str(), "{number}: {found}");
    }
    let status = susui(&dev.url(), &["status", "--check"]).await?;
    status.json(0).context("susui status --check")?;
    dev.down().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a drill, which other tests do on clusters of their own; ops/test --full"]
async fn a_drill_hurts_the_running_cluster_and_leaves_it_whole() -> anyhow::Result<()> {
    let Some(model) = model_dir() else { return Ok(()) };
    let dev = Dev::start(&model).await?;
    let place = dev.place().display().to_string();
    for mode in ["kill", "stop"] {
        let drill = susui(&dev.url(), &["drill", "failover", "--mode", mode, "--assert", "--dir", &place]).await?;
        println!("{}{}", drill.stdout, drill.stderr);
        ensure!(drill.json(0)?["kept"] == true);
    }
    let refused = susui(&dev.url(), &["drill", "failover", "--mode", "deaf", "--dir", &place]).await?;
    ensure!(refused.code != 0 && refused.stderr.contains("no proxies"), "{refused:?}");
    susui(&dev.url(), &["status", "--check"]).await?.json(0).context("susui status --check")?;
    dev.down().await
}
