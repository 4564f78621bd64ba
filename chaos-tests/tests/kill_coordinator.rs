//! `kill -9` of the coordinator at every stage of an ingestion: after it, every acknowledged document is there, each once, and
//! nothing else is. With either catalog: a file, whose next owner takes the dead one's jobs at once, and a Postgres, where a
//! dead one's leases have to lapse.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::checker::copies_agree;
use chaos_tests::client::Client;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::postgres::PostgresServer;
use chaos_tests::wait;
use reqwest::Method;
use serde_json::{Value, json};

const SHARDS: u32 = 3;
const COPIES: usize = 2;
/// Every stage's end, in order.
const STAGES: [&str; 6] =
    ["ingest-claimed", "ingest-parsed", "ingest-chunked", "ingest-embedded", "ingest-written", "ingest-finished"];
/// How much is ingested.
struct Load {
    documents: usize,
    /// Documents that pass a stage before the process dies there.
    passes: usize,
    /// Uploads begun in each life: at least one more than pass.
    uploads_per_life: usize,
}

/// Chunks of a long document: several steps of the embedder.
const LONG_CHUNKS: usize = 150;

fn id(number: usize) -> String {
    format!("doc-{number}")
}

/// Words that no other document has.
fn words(number: usize) -> String {
    format!("harbour{number} crane{} pilot{}", number * 7919, number * 104_729)
}

/// Most are plain texts, some need a parser, some are long.
fn file(number: usize) -> (&'static str, String) {
    match number % 10 {
        3 => ("page.html", format!("<h1>Page</h1><p>{}</p>", words(number))),
        6 => ("table.csv", format!("name,words\n{},{}\n", number, words(number))),
        9 => {
            let section = |part: usize| format!("# Part {part}\n\n{}\n\n", format!("{} ", words(number)).repeat(60));
            ("long.md", (0..LONG_CHUNKS).map(section).collect())
        }
        _ => ("note.txt", words(number)),
    }
}

async fn upload(client: &Client, number: usize) -> anyhow::Result<String> {
    let (name, text) = file(number);
    let fields = [("id", id(number)), ("collection", "notes".to_owned())];
    let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let answer = client.upload(&fields, name, text.into_bytes()).await?;
    ensure!(answer.status == 202, "{answer:?}");
    Ok(answer.body["job_id"].as_str().context("no job id")?.to_owned())
}

/// Lives until the process dies at `stage`. Uploads that were not answered are left for the next life.
async fn live_and_die(
    cluster: &mut Cluster,
    load: &Load,
    stage: &str,
    accepted: &mut BTreeMap<usize, String>,
) -> anyhow::Result<()> {
    let points = format!("{stage}={}*off->return", load.passes);
    cluster.start_coordinator_with(&[("SUSUI_FAILPOINTS", &points)])?;
    let client = cluster.client();
    // It may be dead before it is ready: jobs of the life before are taken up at once.
    let mut begun = 0;
    while cluster.coordinator()?.is_running() && begun < load.uploads_per_life {
        let next = (0..load.documents).find(|number| !accepted.contains_key(number));
        match (next, client.ready().await) {
            (Some(number), Ok(())) => {
                begun += 1;
                if let Ok(job) = upload(&client, number).await {
                    accepted.insert(number, job);
                }
            }
            (None, _) => break,
            (_, Err(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    let ended = std::sync::Mutex::new(cluster.coordinator()?);
    wait::until("the coordinator to die at its failpoint", Duration::from_secs(60), || async {
        let mut process = ended.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
        ensure!(!process.is_running(), "it lives");
        Ok(())
    })
    .await
    .with_context(|| stage.to_owned())
}

async fn job(client: &Client, job: &str) -> anyhow::Result<Value> {
    client.send(Method::GET, &format!("/api/v1/jobs/{job}"), None).await?.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_documents_each_once_whatever_stage_it_died_in() -> anyhow::Result<()> {
    each_once(&Load { documents: 50, passes: 3, uploads_per_life: 8 }, None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_document_once_with_the_catalog_in_postgres() -> anyhow::Result<()> {
    let server = PostgresServer::start().await?;
    each_once(&Load { documents: 20, passes: 1, uploads_per_life: 3 }, Some(&server)).await
}

/// Puts the ends of the dead one's leases forward, which are 30 s away.
fn lapse(server: Option<&PostgresServer>) -> anyhow::Result<()> {
    let ended = "UPDATE jobs SET lease_until_ms = 0 WHERE lease_until_ms IS NOT NULL";
    server.map_or(Ok(()), |server| server.execute(ended))
}

async fn each_once(load: &Load, server: Option<&PostgresServer>) -> anyhow::Result<()> {
    let catalog = server.map(|server| format!("[catalog]\nurl = \"{}\"\n", server.url()));
    let options = Options { fake_embedder: true, coordinator_extra: catalog.unwrap_or_default(), ..Options::default() };
    let mut cluster = Cluster::start(options).await?;
    let client = cluster.client();
    let spec = json!({ "embedder": "fake-hash-384", "shards": SHARDS, "copies": COPIES });
    client.create_collection("notes", &spec).await?;
    cluster.coordinator()?.kill_9()?;

    let mut accepted = BTreeMap::new();
    for stage in STAGES {
        live_and_die(&mut cluster, load, stage, &mut accepted).await?;
        lapse(server)?;
        println!("died at {stage}; {} of {} documents accepted so far", accepted.len(), load.documents);
    }
    cluster.start_coordinator()?;
    cluster.wait_ready().await?;
    for number in 0..load.documents {
        if let std::collections::btree_map::Entry::Vacant(entry) = accepted.entry(number) {
            entry.insert(upload(&client, number).await?);
        }
    }

    let mut chunks_expected = 0;
    for (number, job_id) in &accepted {
        let done = wait::until("a job to end", Duration::from_secs(120), || async {
            let job = job(&client, job_id).await?;
            ensure!(job["terminal"] == true, "{job}");
            Ok(job)
        })
        .await?;
        ensure!(done["status"] == "done", "document {number}: {done}");
        chunks_expected += done["chunk_count"].as_u64().context("no chunk count")?;
    }
    let held = copies_agree::check(&client, "notes", SHARDS, COPIES, Duration::from_secs(60)).await?;
    ensure!(held == chunks_expected, "the shards hold {held} chunks, the documents have {chunks_expected}");
    let page =
        client.send(Method::GET, "/api/v1/documents?collection=notes&limit=1000&consistency=strong", None).await?;
    let listed = page.ok()?["documents"].as_array().context("no documents")?.clone();
    ensure!(listed.len() == load.documents, "{} documents are listed", listed.len());
    for document in &listed {
        ensure!(document["status"] == "ready" && document["searchable"] == true, "{document}");
    }
    for number in 0..load.documents {
        let body = json!({ "collection": "notes", "query": words(number), "top_k": 1, "consistency": "strong" });
        let found = client.send(Method::POST, "/api/v1/search", Some(&body)).await?.ok()?;
        ensure!(found["hits"][0]["document_id"] == id(number).as_str(), "{number}: {found}");
    }
    cluster.shut_down().await
}
