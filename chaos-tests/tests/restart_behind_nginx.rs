//! Two coordinators behind the shipped nginx file, over one catalog and one language model, restarted one after the other under load:
//! searches, writes, answers, streams of tokens, a front door and uploads. No request fails, and no upload is lost.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use chaos_tests::client::Client;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::front::Front;
use chaos_tests::llm::{End, Script, ScriptedLlm};
use chaos_tests::metrics;
use chaos_tests::nginx::Nginx;
use chaos_tests::postgres::PostgresServer;
use chaos_tests::vectors::unit_vector;
use chaos_tests::wait;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const DIM: usize = 384;
const WITHIN: Duration = Duration::from_secs(60);
/// Searches of one coordinator that show that nginx uses it.
const SEARCHES: f64 = 100.0;
const SEARCH: &str = "/api/v1/search";
const QUERY: &str = "/api/v1/query";
/// Between two tokens: eight of them are under way for most of a second.
const TOKEN_GAP: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(5);

/// What the clients did.
#[derive(Default)]
struct Counts {
    searches: AtomicU64,
    writes: AtomicU64,
    answers: AtomicU64,
    streams: AtomicU64,
    doors: AtomicU64,
    /// Jobs of accepted uploads.
    jobs: Mutex<BTreeSet<String>>,
}

impl Counts {
    fn of(count: &AtomicU64) -> u64 {
        count.load(Ordering::Relaxed)
    }

    fn all(&self) -> [u64; 6] {
        let jobs = self.jobs.lock().expect("no panic while held").len() as u64;
        let [searches, writes, answers] = [&self.searches, &self.writes, &self.answers].map(Self::of);
        [searches, writes, answers, Self::of(&self.streams), Self::of(&self.doors), jobs]
    }
}

/// What every client has. The first call that fails ends it.
#[derive(Clone)]
struct Caller {
    number: u64,
    nginx: String,
    client: Client,
    http: reqwest::Client,
    counts: Arc<Counts>,
    stop: CancellationToken,
}

impl Caller {
    fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.http.post(format!("{}{path}", self.nginx)).timeout(WITHIN).json(body)
    }

    /// Searches, and now and then a write or a question.
    async fn search(self) -> anyhow::Result<()> {
        let mut round = 0;
        while !self.stop.is_cancelled() {
            round += 1;
            let vector = unit_vector(self.number, round % 50, DIM);
            self.client.search("c", &vector, json!({ "top_k": 3 })).await?.ok().context("search")?;
            self.counts.searches.fetch_add(1, Ordering::Relaxed);
            if round % 4 == 0 {
                let id = format!("w{}-{round}", self.number);
                self.client.put_points("c", &[(id, vector)]).await?.ok().context("write")?;
                self.counts.writes.fetch_add(1, Ordering::Relaxed);
            }
            if round % 8 == 0 {
                let question = json!({ "query": "what makes lift", "collection": "c", "filters": of_wings() });
                let answer = self.client.send(Method::POST, QUERY, Some(&question)).await?.ok().context("query")?;
                ensure!(answer["answer"].as_str().is_some_and(|text| text.contains("wing")), "{answer}");
                self.counts.answers.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Streamed answers to questions that no cache has, each read to its end.
    async fn stream(self) -> anyhow::Result<()> {
        let mut round = 0;
        while !self.stop.is_cancelled() {
            round += 1;
            let query = format!("What makes lift, for the {round}th time of {}?", self.number);
            let question = json!({ "query": query, "collection": "c", "stream": true, "filters": of_wings() });
            let events = self.post(QUERY, &question).send().await?.error_for_status()?.text().await?;
            ensure!(events.contains("event: done") && !events.contains("event: error"), "{events}");
            self.counts.streams.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Both front doors, whole and streamed.
    async fn knock(self) -> anyhow::Result<()> {
        let mut round = 0;
        while !self.stop.is_cancelled() {
            round += 1;
            let content = format!("What makes lift, at the door for the {round}th time?");
            let messages = json!([{ "role": "user", "content": content }]);
            let (path, end) =
                if round % 2 == 0 { ("/api/chat", "\"done\":true") } else { ("/v1/chat/completions", "[DONE]") };
            let rag = json!({ "filters": of_wings() });
            let body = json!({ "model": "rag/c", "messages": messages, "stream": true, "rag": rag });
            let text = self.post(path, &body).send().await?.error_for_status()?.text().await?;
            ensure!(text.contains(end), "{path}: {text}");
            let body = json!({ "model": "rag/c", "messages": messages, "stream": false, "rag": rag });
            self.post(path, &body).send().await?.error_for_status().with_context(|| path.to_owned())?;
            self.counts.doors.fetch_add(2, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Uploads with a key, so that nginx may repeat them.
    async fn upload(self) -> anyhow::Result<()> {
        let mut round = 0;
        while !self.stop.is_cancelled() {
            round += 1;
            let id = format!("u{}-{round}", self.number);
            let text = format!("Upload {round} of {} says nothing of wings.", self.number);
            let body = json!({ "id": id, "text": text, "collection": "c" });
            let accepted = self.post("/api/v1/documents", &body).header("idempotency-key", &id).send().await?;
            let accepted: Value = accepted.error_for_status().context("upload")?.json().await?;
            let job = accepted["job_id"].as_str().context("no job")?.to_owned();
            self.counts.jobs.lock().expect("no panic while held").insert(job);
            tokio::time::sleep(4 * PAUSE).await;
        }
        Ok(())
    }
}

/// Questions are about the one point that has an answer: what is written meanwhile would push it out of the best.
fn of_wings() -> Value {
    json!({ "must": [{ "field": "document_id", "eq": "wing" }] })
}

/// Of that route, so far.
async fn requests(front: &Front, route: &str) -> anyhow::Result<f64> {
    let text = front.client().text("/metrics").await?;
    Ok(metrics::samples(&text, "http_requests_total", &[("route", route)]).map(|sample| sample.value).sum())
}

/// nginx sends this one that many requests (again).
async fn wait_used(front: &Front, route: &str, count: f64) -> anyhow::Result<()> {
    let before = requests(front, route).await?;
    wait::until("nginx to use the coordinator", WITHIN, || async {
        let taken = requests(front, route).await? - before;
        ensure!(taken >= count, "{taken} requests");
        Ok(())
    })
    .await
}

/// Restarts both, the second one when both upstreams of nginx use the first again: each counts by itself who refused. The one that answers
/// questions is stopped in the midst of a stream. Returns when that was.
async fn restart_one_by_one(fronts: &mut [Front; 2], counts: &Counts, model: &ScriptedLlm) -> anyhow::Result<Instant> {
    for front in &*fronts {
        wait_used(front, SEARCH, SEARCHES).await?;
    }
    wait::until("calls of every kind", WITHIN, || async {
        let counts = counts.all();
        ensure!(counts.iter().all(|count| *count > 0), "{counts:?}");
        Ok(())
    })
    .await?;
    // By address of the client: all questions of this test go to one of the two, while that one is there.
    let home = if requests(&fronts[0], QUERY).await? > 0.0 { 0 } else { 1 };
    let mut stopped_at = None;
    for (number, front) in fronts.iter_mut().enumerate() {
        if number == home {
            let is_begun = |exchange: &chaos_tests::llm::Exchange| exchange.end.is_none() && exchange.sent.len() == 1;
            model.until(|exchanges| exchanges.iter().any(is_begun)).await?;
            stopped_at = Some(Instant::now());
        }
        front.restart().await?;
        wait_used(front, SEARCH, SEARCHES).await?;
        if number == home {
            wait_used(front, QUERY, 1.0).await?;
        }
    }
    stopped_at.context("nobody answers questions")
}

async fn wait_done(client: &Client, job: &str) -> anyhow::Result<()> {
    wait::until("an upload to be indexed", WITHIN, || async {
        let job = client.send(Method::GET, &format!("/api/v1/jobs/{job}"), None).await?.ok()?;
        ensure!(job["status"] == "done", "{job}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn coordinators_are_restarted_behind_nginx_and_no_request_fails() -> anyhow::Result<()> {
    let postgres = PostgresServer::start().await?;
    let model = ScriptedLlm::start(Script { token_gap: TOKEN_GAP, ..Script::default() }).await?;
    let coordinator_extra = format!(
        "[catalog]\nurl = \"{}\"\n\n\
         [[llm.backends]]\nname = \"scripted\"\nkind = \"ollama\"\nurl = \"{}\"\nmodel = \"small\"\nconcurrency_max = 64\n",
        postgres.url(),
        model.url()
    );
    let cluster = Cluster::start(Options { fake_embedder: true, coordinator_extra, ..Options::default() }).await?;
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
    let caller = |number| Caller {
        number,
        nginx: nginx.url(),
        client: nginx.client(),
        http: reqwest::Client::new(),
        counts: Arc::clone(&counts),
        stop: stop.clone(),
    };
    let mut clients = JoinSet::new();
    for number in 0..8 {
        clients.spawn(caller(number).search());
    }
    for number in 0..2 {
        clients.spawn(caller(number).stream());
        clients.spawn(caller(number).upload());
    }
    clients.spawn(caller(0).knock());
    let stopped_at = tokio::select! {
        stopped_at = restart_one_by_one(&mut fronts, &counts, &model) => stopped_at?,
        Some(ended) = clients.join_next() => {
            ended?.with_context(|| nginx.log_tail())?;
            bail!("a client ended before it was told to");
        }
    };
    stop.cancel();
    while let Some(ended) = clients.join_next().await {
        ended?.with_context(|| nginx.log_tail())?;
    }
    let [searches, writes, answers, streams, doors, uploads] = counts.all();
    println!(
        "through two restarts: {searches} searches, {writes} writes, {answers} answers, {streams} streams, {doors} calls of \
         the doors, {uploads} uploads, none failed"
    );
    ensure!(searches >= 400, "too little to mean anything");
    let exchanges = model.exchanges();
    let spans = exchanges.iter().filter(|exchange| exchange.received < stopped_at);
    let through = spans.filter(|exchange| matches!(exchange.end, Some((ended, End::Complete)) if ended > stopped_at));
    ensure!(through.count() > 0, "no stream was under way when the coordinator was told to stop");
    let cut = exchanges.iter().filter(|exchange| !matches!(exchange.end, Some((_, End::Complete)))).count();
    ensure!(cut == 0, "{cut} of {} texts were cut off", exchanges.len());
    let jobs = std::mem::take(&mut *counts.jobs.lock().expect("no panic while held"));
    for job in &jobs {
        wait_done(&cluster.client(), job).await?;
    }

    for front in &mut fronts {
        front.stop().await?;
    }
    cluster.shut_down().await
}
