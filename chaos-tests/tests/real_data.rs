//! Real inputs through the command line: Cranfield texts with their judgements, WordNet vectors with their exact neighbours.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::checker::ledger;
use chaos_tests::client::Client;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::data::shared_file;
use chaos_tests::model::model_dir;
use chaos_tests::susui::susui;
use chaos_tests::wait;
use serde_json::{Value, json};

/// Documents 471 and 995 of the corpus have no text.
const CRANFIELD_DOCUMENTS: u64 = 1400;
const CRANFIELD_WITHOUT_TEXT: [&str; 2] = ["471", "995"];
/// Exact dense ranking with one vector per document: 0.3953 and 0.7756 (measured outside the project).
const NDCG_FLOOR: f64 = 0.390;
const RECALL_100_FLOOR: f64 = 0.77;
/// With the defaults of a collection, over all four shards.
const RECALL_10_FLOOR: f64 = 0.97;
const SCANNED_SHARE_CEILING: f64 = 0.30;

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn cranfield() -> anyhow::Result<()> {
    let (Some(model), Some(corpus), Some(queries), Some(qrels)) = (
        model_dir(),
        shared_file("cranfield/corpus.jsonl"),
        shared_file("cranfield/queries.jsonl"),
        shared_file("cranfield/qrels.tsv"),
    ) else {
        return Ok(());
    };
    let cluster = Cluster::start(Options { model_dir: Some(model), ..Options::default() }).await?;
    let url = cluster.url();
    let spec = json!({ "dim": 384, "shards": 4, "copies": 2, "embedder": "all-MiniLM-L6-v2" });
    cluster.client().create_collection("cran", &spec).await?;

    let run = susui(&url, &["ingest", text(&corpus)?, "-c", "cran"]).await?;
    let summary = run.json(3)?;
    println!("ingest: {} documents in {} s, {}/s", summary["done"], summary["seconds"], summary["per_second"]);
    ensure!(summary["done"] == CRANFIELD_DOCUMENTS - 2, "{summary}");
    let refusals = summary["refusals"].as_array().context("no refusals")?;
    ensure!(refusals.len() == 2, "{summary}");
    for (refusal, id) in refusals.iter().zip(CRANFIELD_WITHOUT_TEXT) {
        let told = refusal.to_string();
        ensure!(told.contains(&format!("corpus.jsonl:{id}")), "line {id} is not named: {told}");
    }

    let dir = tempfile::tempdir()?;
    let mut rankings = Vec::new();
    for copy in ["primary", "replica"] {
        let file = dir.path().join(copy);
        let arguments = [
            "eval",
            "-c",
            "cran",
            "--queries",
            text(&queries)?,
            "--qrels",
            text(&qrels)?,
            "--prefer-copy",
            copy,
            "--rankings",
            text(&file)?,
        ];
        let figures = susui(&url, &arguments).await?.json(0)?;
        println!("eval, copy {copy}: {figures}");
        ensure!(figures["ndcg_at_10"].as_f64().is_some_and(|value| value >= NDCG_FLOOR), "{figures}");
        ensure!(figures["recall_at_100"].as_f64().is_some_and(|value| value >= RECALL_100_FLOOR), "{figures}");
        rankings.push(std::fs::read_to_string(&file)?);
    }
    ensure!(rankings[0] == rankings[1], "the ranking depends on the copy that answers");
    check_citations(&cluster.client()).await?;
    cluster.shut_down().await
}

/// Every citation's span is byte-equal to that slice of its source: an extractive answer quotes it, a hit carries it.
async fn check_citations(client: &Client) -> anyhow::Result<()> {
    let body = json!({ "collection": "cran", "query": "what is the lift of a slender wing in supersonic flow?" });
    let answer = client.send(reqwest::Method::POST, "/api/v1/query", Some(&body)).await?.ok()?;
    ensure!(answer["generator"] == "extractive", "{answer}");
    let citations = answer["citations"].as_array().context("no citations")?;
    ensure!(!citations.is_empty(), "an answer without sources: {answer}");
    let text = answer["answer"].as_str().context("no answer")?;
    let hits = answer["hits"].as_array().context("no hits")?;
    for citation in citations.iter().chain(hits) {
        let id = citation["document_id"].as_str().context("no document_id")?;
        let path = format!("/api/v1/documents/{id}?collection=cran&include_text=true");
        let document = client.send(reqwest::Method::GET, &path, None).await?.ok()?;
        let source = document["text"].as_str().context("no text")?;
        let span = |key: &str| citation["span"][key].as_u64().map(|offset| offset as usize);
        let (start, end) = span("start").zip(span("end")).with_context(|| format!("no span: {citation}"))?;
        let slice = source.get(start..end).with_context(|| format!("span {start}..{end} of {} bytes", source.len()))?;
        match citation["text"].as_str() {
            Some(carried) => ensure!(carried == slice, "{citation} is not {slice:?}"),
            None => ensure!(text.contains(slice), "{slice:?} is cited but not quoted in {text:?}"),
        }
    }
    Ok(())
}

async fn index_settled(client: &Client) -> anyhow::Result<Value> {
    let cluster = client.cluster().await?;
    let shards = cluster["shards"].as_array().context("no shards")?;
    for shard in shards {
        for copy in shard["copies"].as_array().context("no copies")? {
            let report = &copy["report"];
            let settled = report["index_state"] == "indexed" && report["rows_tail"] == 0 && report["generation"] == 1;
            ensure!(settled, "{copy}");
        }
    }
    Ok(cluster)
}

#[tokio::test(flavor = "multi_thread")]
async fn wordnet_vectors() -> anyhow::Result<()> {
    let (Some(base), Some(queries), Some(neighbors)) = (
        shared_file("wordnet-minilm/base.npy"),
        shared_file("wordnet-minilm/queries.npy"),
        shared_file("wordnet-minilm/neighbors.npy"),
    ) else {
        return Ok(());
    };
    let mut cluster = Cluster::start(Options::default()).await?;
    let (url, client) = (cluster.url(), cluster.client());
    let spec = json!({ "dim": 384, "shards": 4, "copies": 2, "pca_dim": 192 });
    client.create_collection("glosses", &spec).await?;
    let summary = susui(&url, &["ingest", "--vectors", text(&base)?, "-c", "glosses"]).await?.json(0)?;
    println!("ingest: {summary}");
    ensure!(summary["done"] == 50_000, "{summary}");
    wait::until("trained shards with empty tails", Duration::from_secs(180), || index_settled(&client))
        .await
        .with_context(|| cluster.log_tails())?;

    let arguments = ["eval", "-c", "glosses", "--vectors", text(&queries)?, "--neighbors", text(&neighbors)?];
    let (evaluated, honest) = tokio::join!(susui(&url, &arguments), ledger::check(&cluster, Duration::from_secs(60)));
    honest?;
    let figures = evaluated?.json(0)?;
    println!("eval: {figures}");
    ensure!(figures["recall_at_10"].as_f64().is_some_and(|value| value >= RECALL_10_FLOOR), "{figures}");
    let share = figures["codes_scanned_share"].as_f64().context("no codes_scanned_share")?;
    ensure!(share > 0.0 && share <= SCANNED_SHARE_CEILING, "{figures}");
    for node in 1..=3 {
        println!("node {node}: {} MiB resident", cluster.node(node)?.resident_bytes()? >> 20);
    }
    println!("coordinator: {} MiB resident", cluster.coordinator()?.resident_bytes()? >> 20);
    cluster.shut_down().await
}
