//! The red case: the last copy that holds everything is gone, and an operator accepts the loss. What readers are told before and after,
//! and what stays on record.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::checker::copies_agree;
use chaos_tests::client::Client;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::history::{History, Key, Level, Version};
use chaos_tests::susui::susui;
use chaos_tests::wait;
use chaos_tests::workload::documents::{self, Documents};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const COLLECTION: &str = "c";
const SHARD: &str = "c/0";
const DIM: usize = 16;
const COPIES: usize = 2;
const DOCUMENTS: Key = 50;
/// What both copies have, what only one has, and what is written after the loss.
const KEPT: Version = 1;
const LOST: Version = 2;
const AFTER: Version = 3;
const TIMEOUT_MS: u64 = 5_000;
/// While nobody can answer.
const RED_TIMEOUT_MS: u64 = 1_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// The only shard, as the API tells it.
async fn shard(client: &Client) -> anyhow::Result<Value> {
    client.cluster().await?["shards"].get(0).cloned().context("no shard")
}

/// Waits until so many copies are in sync, and returns the shard.
async fn until_in_sync(client: &Client, copies: usize) -> anyhow::Result<Value> {
    wait::until("the in-sync set to be so large", PATIENCE, || async {
        let shard = shard(client).await?;
        let in_sync = shard["in_sync"].as_array().map_or(0, Vec::len);
        ensure!(in_sync == copies && !shard["primary"].is_null(), "{in_sync} in sync: {shard}");
        Ok(shard)
    })
    .await
}

/// Copy and node of the copies that are in sync, or of those that are not.
fn copy_of(shard: &Value, is_in_sync: bool) -> anyhow::Result<(u64, usize)> {
    let in_sync = shard["in_sync"].as_array().context("no in_sync")?;
    let copies = shard["copies"].as_array().context("no copies")?;
    let found = copies.iter().find(|copy| in_sync.contains(&copy["copy"]) == is_in_sync).context("no such copy")?;
    let node = found["node"].as_u64().context("no node")?;
    Ok((found["copy"].as_u64().context("no copy")?, usize::try_from(node)?))
}

async fn put(documents: &Documents, version: Version) -> anyhow::Result<String> {
    let all: Vec<(Key, Version)> = (0..DOCUMENTS).map(|key| (key, version)).collect();
    documents.must_put(&all).await
}

/// Every document at level strong has that version.
async fn ensure_all(documents: &Documents, version: Version) -> anyhow::Result<()> {
    for key in 0..DOCUMENTS {
        let found = documents.read(key, Level::Strong, "").await.context("no answer")?.version;
        ensure!(found == Some(version), "document {key}: {found:?} instead of version {version}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_lost_copy_had_is_lost_on_an_operator_s_word_and_not_before() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let (client, url) = (cluster.client(), cluster.url());
    client.create_collection(COLLECTION, &documents::collection(DIM, 1, COPIES)).await?;
    let documents = Documents {
        client: client.clone(),
        collection: COLLECTION.into(),
        dim: DIM,
        seed: 17,
        timeout_ms: TIMEOUT_MS,
        history: Arc::new(History::new(None)?),
        process: 0,
        prefer_copy: None,
    };
    until_in_sync(&client, COPIES).await?;
    put(&documents, KEPT).await?;

    // One copy misses what only the other one has, and comes back when that has gone.
    let before = shard(&client).await?;
    let primary = before["primary"].as_u64().context("no primary")?;
    let copies = before["copies"].as_array().context("no copies")?;
    let survivor = copies.iter().find(|copy| copy["copy"] != primary).and_then(|copy| copy["node"].as_u64());
    let survivor = usize::try_from(survivor.context("no other copy")?)?;
    cluster.kill_node(survivor)?;
    let alone = until_in_sync(&client, 1).await?;
    let ((lost, lost_node), (copy, _)) = (copy_of(&alone, true)?, copy_of(&alone, false)?);
    let session = put(&documents, LOST).await?;
    ensure_all(&documents, LOST).await?;
    let written = documents::tokens(&session).first().context("no token")?.2;
    wait::until("the metadata leader to have heard of it", PATIENCE, || async {
        let shard = shard(&client).await?;
        let copies = shard["copies"].as_array().context("no copies")?;
        let report = copies.iter().find(|copy| copy["copy"] == lost).map(|copy| &copy["report"]["last_seqno"]);
        ensure!(report.and_then(Value::as_u64) >= Some(written), "{report:?}");
        Ok(())
    })
    .await?;
    cluster.kill_node(lost_node)?;
    cluster.start_node(survivor)?;

    // It is there, and nobody pretends that it has everything.
    let copy_text = copy.to_string();
    let promote = ["shard", "force-promote", SHARD, "--copy", &copy_text, "--by", "ada"];
    let outlook = wait::until("no objection", PATIENCE, || async { susui(&url, &promote).await?.json(0) }).await?;
    println!("outlook: {outlook}");
    ensure!(outlook["done"] == false, "{outlook}");
    let told = outlook["entries_lost_known"].as_u64().unwrap_or(0) + outlook["in_sync_unknown"].as_u64().unwrap_or(0);
    ensure!(told > 0, "the loss is not told: {outlook}");
    let red = shard(&client).await?;
    ensure!(red["health"] == "red" && red["lineage"] == before["lineage"], "looking changed something: {red}");
    let impatient = Documents { timeout_ms: RED_TIMEOUT_MS, ..documents.clone() };
    for (level, token) in
        [(Level::Eventual, ""), (Level::Bounded, ""), (Level::Session, &*session), (Level::Strong, "")]
    {
        let found = impatient.read(0, level, token).await;
        // A cache may give what it was given before the loss, as long as that is within the bound.
        let is_whole = found.as_ref().is_none_or(|found| level != Level::Strong && found.version == Some(LOST));
        ensure!(is_whole, "a {level:?} read was answered from a copy that misses writes: {found:?}");
    }

    let accept: Vec<&str> = promote.into_iter().chain(["--accept-data-loss"]).collect();
    let done = susui(&url, &accept).await?.json(0)?;
    ensure!(done["done"] == true && done["lineage"].as_u64() > before["lineage"].as_u64(), "{done}");
    wait::until("the new lineage to take reads", PATIENCE, || ensure_all(&documents, KEPT)).await?;
    let mut body = json!({ "collection": COLLECTION, "vector": vec![1.0; DIM], "consistency": "session" });
    body["session"] = session.as_str().into();
    let refused = client.send(Method::POST, "/api/v1/search", Some(&body)).await?;
    ensure!(
        refused.status == StatusCode::CONFLICT && refused.body["error"]["type"] == "token_void",
        "a token of before the loss: {} {}",
        refused.status,
        refused.body
    );
    put(&documents, AFTER).await?;
    let audit = client.cluster().await?["audit"].clone();
    ensure!(audit.as_array().is_some_and(|all| all.len() == 1), "{audit}");
    let record = &audit[0];
    ensure!(record["by"] == "ada" && record["copy"] == copy && record["lineage"] == done["lineage"], "{record}");
    ensure!(record["former_in_sync"] == json!([lost]) && record["overrode_live"] == false, "{record}");

    // What was lost does not come back with its node.
    cluster.start_node(lost_node)?;
    let chunks = copies_agree::check(&client, COLLECTION, 1, COPIES, PATIENCE).await?;
    ensure!(chunks == DOCUMENTS, "{chunks} of {DOCUMENTS} documents");
    let healed = shard(&client).await?;
    let kept = healed["copies"].as_array().is_some_and(|copies| copies.iter().all(|found| found["copy"] != lost));
    ensure!(kept, "the lost copy is back: {healed}");
    ensure_all(&documents, AFTER).await?;
    cluster.shut_down().await
}
