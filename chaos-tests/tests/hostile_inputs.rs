//! A corpus of hostile requests, twice: no panic, no 5xx but "not now", no memory that stays.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::client::Client;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::hostile::{self, Hostile};
use chaos_tests::wait;
use futures::{StreamExt, stream};
use reqwest::Method;
use serde_json::json;

/// Requests under way at a time.
const AT_ONCE: usize = 8;
/// Times the job of an upload is waited for.
const JOB_TIMEOUT: Duration = Duration::from_secs(180);
/// The second pass may leave this much more than the first; 0.97 was measured (DESIGN.md of the coordinator).
const GROWTH_MAX: f64 = 1.1;

#[derive(Debug, Default)]
struct Tally {
    refused: usize,
    closed: usize,
    taken: usize,
    indexed: usize,
}

/// Sends everything and follows every job that came of it to its end.
async fn pass(client: &Client, address: &str, corpus: &Arc<Vec<Hostile>>) -> anyhow::Result<Tally> {
    let sends = (0..corpus.len()).map(|position| {
        let (corpus, address) = (Arc::clone(corpus), address.to_owned());
        async move { (position, corpus[position].send(&address).await) }
    });
    let replies: Vec<_> = stream::iter(sends).buffer_unordered(AT_ONCE).collect().await;
    let (mut tally, mut jobs) = (Tally::default(), Vec::new());
    for (position, reply) in replies {
        let (name, reply) = (&corpus[position].name, reply?);
        match reply.status {
            None => tally.closed += 1,
            Some(status) => {
                let is_bad = status >= 500 && !matches!(status, 503 | 507);
                ensure!(!is_bad, "{name}: {status} {}", reply.text);
                tally.refused += usize::from((400..500).contains(&status));
            }
        }
        if let Some(job) = reply.job_id {
            tally.taken += 1;
            jobs.push((name.clone(), job));
        }
    }
    for (name, job) in jobs {
        let ended = wait::until("the job of a hostile upload to end", JOB_TIMEOUT, || async {
            let job = client.send(Method::GET, &format!("/api/v1/jobs/{job}"), None).await?.ok()?;
            ensure!(job["terminal"] == true, "{job}");
            Ok(job)
        });
        let ended = ended.await.with_context(|| name.clone())?;
        // A document may be read, or refused for what it is; a failure of ours would say internal.
        ensure!(ended["error"]["type"] != "internal", "{name}: {ended}");
        tally.indexed += usize::from(ended["status"] == "done");
    }
    Ok(tally)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_hostile_harms_it() -> anyhow::Result<()> {
    // Plenty for any honest document, and the endless ones are not waited for so long.
    let extra = "[ingest]\nworkers = 2\nparse_time = \"1s\"\nparse_memory = \"512MiB\"\n".to_owned();
    let mut cluster =
        Cluster::start(Options { fake_embedder: true, coordinator_extra: extra, ..Options::default() }).await?;
    let client = cluster.client();
    client.create_collection("c", &json!({ "embedder": "fake-hash-384", "shards": 2, "copies": 2 })).await?;
    let corpus = Arc::new(hostile::corpus("c"));
    ensure!(corpus.len() >= 200, "{} requests", corpus.len());
    let address = cluster.url().strip_prefix("http://").context("no scheme")?.to_owned();

    let mut resident = Vec::new();
    for number in 1..=2 {
        let tally = pass(&client, &address, &corpus).await.with_context(|| cluster.log_tails())?;
        cluster.check_running()?;
        resident.push(cluster.coordinator()?.resident_bytes()?);
        println!("pass {number} of {} requests: {tally:?}, {} MiB resident", corpus.len(), resident[number - 1] >> 20);
        ensure!(tally.refused > 50 && tally.taken > 100, "the corpus was not what it should be: {tally:?}");
    }
    let growth = resident[1] as f64 / resident[0] as f64;
    ensure!(growth <= GROWTH_MAX, "resident memory grew from {} to {} bytes", resident[0], resident[1]);
    let log = cluster.coordinator_log()?;
    ensure!(!log.contains("panicked at"), "something panicked:\n{log}");
    // And it still does what it is there for.
    let body = json!({ "id": "honest", "text": "an honest document about lighthouses", "collection": "c" });
    let job = client.send(Method::POST, "/api/v1/documents", Some(&body)).await?.ok()?["job_id"].clone();
    wait::until("an honest document", Duration::from_secs(30), || async {
        let path = format!("/api/v1/jobs/{}", job.as_str().context("no job")?);
        let job = client.send(Method::GET, &path, None).await?.ok()?;
        ensure!(job["status"] == "done", "{job}");
        Ok(())
    })
    .await?;
    cluster.shut_down().await
}
