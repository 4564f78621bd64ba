//! Two coordinators over one Postgres, one's wall clock a minute ahead, the other's a minute behind: no upload is worked on by two at once,
//! lost or doubled, the jobs of whoever is killed pass on when their leases end, and keys end when they are to.
//!
//! Leases last 30 s. By the clocks of the two a lease of the one would be over before it began, that of the other good for two minutes more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::checker::copies_agree;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::front::Front;
use chaos_tests::postgres::PostgresServer;
use chaos_tests::wait;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const SKEW_MS: i64 = 60_000;
const SHARDS: u32 = 2;
const COPIES: usize = 2;
/// Workers of each coordinator, and so jobs in its hands at most.
const WORKERS: usize = 2;
/// Documents that each stage begins with.
const DOCUMENTS: usize = 8;
const WITHIN: Duration = Duration::from_secs(60);
/// How long a job may wait for its next owner after its lease ended: far less than the clocks are apart.
const TAKEN_WITHIN: Duration = Duration::from_secs(30);

/// What a document is to be in the end: its text.
type Expected = BTreeMap<String, String>;

struct Scene {
    cluster: Cluster,
    server: PostgresServer,
    http: reqwest::Client,
    expected: Expected,
    /// Jobs of accepted uploads.
    jobs: BTreeSet<String>,
    /// Jobs that were in the hands of a coordinator when it was killed.
    orphaned: BTreeSet<String>,
}

/// Words that no other version of any document has.
fn text(id: &str, version: u32) -> String {
    format!("the harbour of {id} has crane{version}{id} and pilot{version}{id}")
}

impl Scene {
    async fn call(
        &self,
        front: &Front,
        method: Method,
        path: &str,
        key: &str,
        body: Option<Value>,
    ) -> anyhow::Result<Value> {
        let mut request = self.http.request(method, format!("http://127.0.0.1:{}{path}", front.port())).timeout(WITHIN);
        if !key.is_empty() {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await?;
        let (status, text) = (response.status(), response.text().await?);
        ensure!(status.is_success(), "{path}: {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// The job of an upload.
    async fn upload(&self, front: &Front, id: &str, version: u32, key: &str) -> anyhow::Result<String> {
        let body = json!({ "id": id, "collection": "notes", "text": text(id, version) });
        let accepted = self.call(front, Method::POST, "/api/v1/documents", key, Some(body)).await?;
        Ok(accepted["job_id"].as_str().context("no job id")?.to_owned())
    }

    /// Uploads by turns to both; some are sent to both at once with one key, some are updated at the other one, some deleted there.
    async fn load(&mut self, stage: &str, fronts: [&Front; 2]) -> anyhow::Result<()> {
        for number in 0..DOCUMENTS {
            let id = format!("{stage}-{number}");
            let (here, there) = (fronts[number % 2], fronts[(number + 1) % 2]);
            let key = format!("key-{id}");
            let (first, second) = tokio::try_join!(self.upload(here, &id, 1, &key), self.upload(there, &id, 1, &key))?;
            ensure!(first == second, "{id}: one key, two jobs: {first}, {second}");
            self.jobs.insert(first);
            let version = if number % 4 == 1 {
                self.jobs.insert(self.upload(there, &id, 2, "").await?);
                2
            } else {
                1
            };
            if number % 4 == 3 {
                self.call(there, Method::DELETE, &format!("/api/v1/documents/{id}?collection=notes"), "", None).await?;
            } else {
                self.expected.insert(id.clone(), text(&id, version));
            }
        }
        Ok(())
    }

    /// Jobs with a lease, and their attempts.
    fn held(&self) -> anyhow::Result<BTreeMap<String, u32>> {
        self.attempts("lease_until_ms IS NOT NULL")
    }

    fn attempts(&self, condition: &str) -> anyhow::Result<BTreeMap<String, u32>> {
        let rows = self.server.query(&format!("SELECT job_id, attempt FROM jobs WHERE {condition}"))?;
        let read = |row: &String| {
            let (job, attempt) = row.split_once('|').context("two columns")?;
            Ok((job.to_owned(), attempt.parse()?))
        };
        rows.iter().map(read).collect()
    }

    async fn wait_done(&self, what: &str, at_most: Duration) -> anyhow::Result<()> {
        wait::until(what, at_most, || async {
            let open = self.attempts("state NOT IN ('done', 'cancelled')")?;
            ensure!(open.is_empty(), "{open:?}");
            Ok(())
        })
        .await
    }

    /// Kills `victim` while it has as many jobs in hand as it ever has, and looks what `survivor` makes of them.
    async fn pass_on(&mut self, stage: &str, victim: &mut Front, survivor: &Front) -> anyhow::Result<()> {
        // While no node answers, every worker of both holds a job.
        let nodes = 1..=self.cluster.node_count();
        for node in nodes.clone() {
            self.cluster.node(node)?.stop()?;
        }
        for number in 0..2 * WORKERS + 2 {
            let id = format!("{stage}-held-{number}");
            self.jobs.insert(self.upload(survivor, &id, 1, "").await?);
            self.expected.insert(id.clone(), text(&id, 1));
        }
        wait::until("a job for every worker", WITHIN, || async {
            ensure!(self.held()?.len() == 2 * WORKERS, "{:?}", self.held()?);
            Ok(())
        })
        .await?;
        let now = "(extract(epoch FROM clock_timestamp()) * 1000)";
        let too_long = self
            .server
            .query(&format!("SELECT lease_until_ms - {now} FROM jobs WHERE lease_until_ms > {now} + 30000"))?;
        ensure!(too_long.is_empty(), "leases that end in {too_long:?} ms");
        victim.kill_9()?;
        for node in nodes {
            self.cluster.node(node)?.resume()?;
        }
        // The survivor goes on with what waits. Whatever of the dead one's it took for lapsed would be older, and go first.
        wait::until("only the dead one's jobs to be left", WITHIN, || async {
            let open = self.attempts("state NOT IN ('done', 'cancelled')")?;
            ensure!(open.len() <= WORKERS, "{open:?}");
            Ok(())
        })
        .await?;
        let fresh = self.upload(survivor, &format!("{stage}-fresh"), 1, "").await?;
        self.expected.insert(format!("{stage}-fresh"), text(&format!("{stage}-fresh"), 1));
        wait::until("a fresh upload to be done", WITHIN, || async {
            let done = self.attempts(&format!("job_id = '{fresh}' AND state = 'done'"))?;
            ensure!(done.len() == 1, "it is not");
            Ok(())
        })
        .await?;
        self.jobs.insert(fresh);
        let left = self.held()?;
        ensure!(left.len() == WORKERS, "taken before their leases ended, but for {left:?}");
        self.orphaned.extend(left.into_keys());
        // As if 30 s had passed.
        self.server
            .execute("UPDATE jobs SET lease_until_ms = lease_until_ms - 30000 WHERE lease_until_ms IS NOT NULL")?;
        self.wait_done("the dead one's jobs to pass on", TAKEN_WITHIN).await
    }

    /// Every claim of every job is accounted for: it ended the job, put it back into the queue, or died.
    fn check_claims(&self, logs: &str) -> anyhow::Result<()> {
        let attempts = self.attempts("state = 'done'")?;
        for job in &self.jobs {
            let Some(attempt) = attempts.get(job) else { continue };
            let retried =
                logs.lines().filter(|line| line.contains("will be tried again") && line.contains(job)).count();
            let accounted = 1 + retried + usize::from(self.orphaned.contains(job));
            ensure!(
                *attempt as usize == accounted,
                "job {job} was claimed {attempt} times, {accounted} are accounted for"
            );
        }
        Ok(())
    }

    /// Every document that is to be there is, once, and nothing else.
    async fn check_documents(&self, front: &Front) -> anyhow::Result<()> {
        let path = "/api/v1/documents?collection=notes&limit=1000&consistency=strong";
        let page = self.call(front, Method::GET, path, "", None).await?;
        let listed = page["documents"].as_array().context("no documents")?;
        let ids: BTreeSet<&str> = listed.iter().filter_map(|document| document["id"].as_str()).collect();
        ensure!(ids == self.expected.keys().map(String::as_str).collect(), "{ids:?}");
        let chunks: u64 = listed.iter().filter_map(|document| document["chunk_count"].as_u64()).sum();
        let held = copies_agree::check(&front.client(), "notes", SHARDS, COPIES, WITHIN).await?;
        ensure!(held == chunks, "the shards hold {held} chunks, the documents have {chunks}");
        for (id, text) in &self.expected {
            let body = json!({ "collection": "notes", "query": text, "top_k": 1, "consistency": "strong" });
            let found = self.call(front, Method::POST, "/api/v1/search", "", Some(body)).await?;
            let hit = &found["hits"][0];
            ensure!(hit["document_id"] == id.as_str() && hit["text"] == text.as_str(), "{id}: {found}");
        }
        Ok(())
    }

    async fn status_with_key(&self, front: &Front, key: &str) -> anyhow::Result<StatusCode> {
        let url = format!("http://127.0.0.1:{}/api/v1/documents?collection=notes", front.port());
        Ok(self.http.get(url).bearer_auth(key).timeout(WITHIN).send().await?.status())
    }

    /// A key that `maker` makes opens at both, and ends at both.
    async fn check_keys(&self, maker: &Front, other: &Front) -> anyhow::Result<()> {
        let make = async |seconds: u64| {
            let body = json!({ "name": "skew", "scope": "read", "ttl_seconds": seconds });
            let made = self.call(maker, Method::POST, "/api/v1/keys", "", Some(body)).await?;
            anyhow::Ok(made["key"].as_str().context("no key")?.to_owned())
        };
        // Less than the clocks are apart, and far more than the calls take.
        let lasting = make(45).await?;
        for front in [maker, other] {
            let status = self.status_with_key(front, &lasting).await?;
            ensure!(status == StatusCode::OK, "a key for 45 s is refused: {status}");
        }
        let brief = make(1).await?;
        for front in [maker, other] {
            wait::until("a key for a second to end", TAKEN_WITHIN, || async {
                let status = self.status_with_key(front, &brief).await?;
                ensure!(status == StatusCode::UNAUTHORIZED, "{status}");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_two_minutes_apart_change_nothing() -> anyhow::Result<()> {
    let server = PostgresServer::start().await?;
    let coordinator_extra = format!("[catalog]\nurl = \"{}\"\n[ingest]\nworkers = {WORKERS}\n", server.url());
    let mut cluster = Cluster::start(Options { fake_embedder: true, coordinator_extra, ..Options::default() }).await?;
    let spec = json!({ "embedder": "fake-hash-384", "shards": SHARDS, "copies": COPIES });
    cluster.client().create_collection("notes", &spec).await?;
    // The one whose clock is right takes no part.
    cluster.stop_coordinator(WITHIN).await?;
    let mut ahead = Front::start_skewed(&cluster, "ahead", SKEW_MS).await?;
    let mut behind = Front::start_skewed(&cluster, "behind", -SKEW_MS).await?;
    let (http, expected) = (reqwest::Client::new(), BTreeMap::new());
    let mut scene = Scene { cluster, server, http, expected, jobs: BTreeSet::new(), orphaned: BTreeSet::new() };

    scene.check_keys(&ahead, &behind).await?;
    scene.check_keys(&behind, &ahead).await?;
    scene.load("both", [&ahead, &behind]).await?;
    scene.wait_done("the first uploads to be done", WITHIN).await?;
    scene.pass_on("behind", &mut behind, &ahead).await?;
    behind.start_again().await?;
    scene.pass_on("ahead", &mut ahead, &behind).await?;
    ahead.start_again().await?;
    scene.load("again", [&ahead, &behind]).await?;
    scene.wait_done("the last uploads to be done", WITHIN).await?;

    scene.check_claims(&(ahead.log()? + &behind.log()?))?;
    scene.check_documents(&behind).await?;
    println!(
        "{} jobs, {} of them passed on, {} documents",
        scene.jobs.len(),
        scene.orphaned.len(),
        scene.expected.len()
    );
    for front in [&mut ahead, &mut behind] {
        front.stop().await?;
    }
    scene.cluster.shut_down().await
}
