//! A whole coordinator in this process, and a client for it.

use std::sync::Arc;
use std::time::Duration;

use cluster_config::cache_config::RedisConfig;
use coordinator::cache::redis::SharedCache;
use coordinator::catalog::{CatalogOptions, LEASE};
use coordinator::cluster::twin::{Twin, TwinClient};
use coordinator::embed::Embedder;
use coordinator::embed::fake::FakeEmbedder;
use coordinator::generate::pool::Pool;
use coordinator::ingest::IngestOptions;
use coordinator::ingest::sandbox::Sandbox;
use coordinator::startup::{CacheOptions, Parts, Running};
use coordinator::telemetry::Metrics;
use coordinator::tenants::TenantOptions;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::database::Database;

/// Dimension of the fake embedder.
pub(crate) const DIM: usize = 16;

/// What a test varies.
pub(crate) struct Setup {
    pub(crate) twin: Arc<Twin>,
    pub(crate) caching: bool,
    /// URL of the tier that coordinators share.
    pub(crate) redis: Option<String>,
    pub(crate) max_staleness: Duration,
    pub(crate) llm: Option<Pool>,
    pub(crate) workers: usize,
    pub(crate) embedder: Arc<dyn Embedder>,
    /// Kept by the caller to start again on it; a scratch SQLite file if not given.
    pub(crate) catalog_url: Option<String>,
    /// But for the URL.
    pub(crate) catalog: CatalogOptions,
    pub(crate) tenants: TenantOptions,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            twin: Twin::new(3),
            caching: true,
            redis: None,
            max_staleness: Duration::from_secs(10),
            llm: None,
            workers: 2,
            embedder: Arc::new(FakeEmbedder::new(DIM)),
            catalog_url: None,
            catalog: CatalogOptions {
                url: String::new(),
                pool_size: 4,
                max_overflow: 2,
                pool_timeout: Duration::from_secs(10),
                lease: LEASE,
            },
            tenants: TenantOptions::default(),
        }
    }
}

/// A coordinator that serves.
pub(crate) struct Coordinator {
    pub(crate) base: String,
    pub(crate) http: reqwest::Client,
    pub(crate) twin: Arc<Twin>,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<anyhow::Result<()>>,
    _own_catalog: Option<Database>,
}

/// An answer with its JSON body (`Null` if it is none).
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// The body of a success.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert!(self.status.is_success(), "{} {}", self.status, self.body);
        self.body
    }
}

pub(crate) fn parts(setup: &Setup, catalog_url: &str) -> Parts {
    let metrics = Arc::new(Metrics::new().expect("registers"));
    let ttl = Duration::from_secs(3600);
    let shared = setup.redis.as_ref().map(|url| {
        // Patient: on a busy machine an answer may take longer than the 5 ms that a real coordinator waits.
        let config = RedisConfig { urls: vec![url.clone()], timeout: Duration::from_secs(5) };
        SharedCache::new(&config, "test", ttl, metrics.cache.clone())
    });
    Parts {
        client: Arc::new(TwinClient(Arc::clone(&setup.twin))),
        seeds: vec!["seed:1".into()],
        embedder: Arc::clone(&setup.embedder),
        llm: setup.llm.clone().unwrap_or_else(Pool::empty),
        metrics,
        shared,
        catalog: CatalogOptions { url: catalog_url.to_owned(), ..setup.catalog.clone() },
        tenants: setup.tenants.clone(),
        cache: setup.caching.then(|| CacheOptions { memory_bytes: 1 << 20, ttl, backends: String::new() }),
        default_timeout: Duration::from_secs(10),
        max_staleness: setup.max_staleness,
        zone: None,
        ingest: IngestOptions {
            workers: setup.workers,
            sandbox: Sandbox {
                program: env!("CARGO_BIN_EXE_susui-coordinator").into(),
                memory_bytes: 1 << 30,
                time: Duration::from_secs(20),
            },
            priorities: [("urgent".to_owned(), 1)].into(),
        },
        drain_timeout: Duration::from_secs(20),
    }
}

impl Coordinator {
    pub(crate) async fn start(setup: Setup) -> Self {
        let own_catalog = setup.catalog_url.is_none().then(Database::sqlite);
        let catalog_url = own_catalog.as_ref().map(|database| &database.url).or(setup.catalog_url.as_ref());
        let parts = parts(&setup, catalog_url.expect("given, or made above"));
        let running = Running::start(parts).await.expect("starts");
        let known =
            running.services.view.wait_for(std::time::Instant::now() + Duration::from_secs(30), |s| s.version > 0);
        known.await.expect("hears of the cluster");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let base = format!("http://{}", listener.local_addr().expect("bound"));
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(running.serve(listener, async { drop(stopped.await) }));
        let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().expect("client");
        Self { base, http, twin: setup.twin, stop: Some(stop), served, _own_catalog: own_catalog }
    }

    /// Asks it to stop and waits until it has.
    pub(crate) async fn stop(mut self) {
        drop(self.stop.take());
        (&mut self.served).await.expect("joins").expect("stops well");
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.json(&body);
        }
        Self::read(request.send().await.expect("answers")).await
    }

    /// A call with a key.
    pub(crate) async fn call_as(&self, key: &str, method: Method, path: &str, body: Option<Value>) -> Answer {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).bearer_auth(key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        Self::read(request.send().await.expect("answers")).await
    }

    pub(crate) async fn read(response: reqwest::Response) -> Answer {
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.expect("whole body");
        Answer { status, headers, body: serde_json::from_str(&text).unwrap_or(Value::Null) }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PUT, path, Some(body)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, None).await
    }

    pub(crate) async fn text(&self, path: &str) -> (StatusCode, String) {
        let response = self.http.get(format!("{}{path}", self.base)).send().await.expect("answers");
        (response.status(), response.text().await.expect("text"))
    }

    /// A collection of three-dimensional vectors.
    pub(crate) async fn create_vectors(&self, name: &str, shards: u32) {
        let spec = json!({"dim": 3, "shards": shards, "copies": 2, "fields": {"year": "integer", "kind": "keyword"}});
        self.put(&format!("/api/v1/collections/{name}"), spec).await.ok();
    }

    /// A collection for texts.
    pub(crate) async fn create_texts(&self, name: &str) {
        let spec = json!({"embedder": "fake-hash-16", "shards": 3, "copies": 2});
        self.put(&format!("/api/v1/collections/{name}"), spec).await.ok();
    }

    /// Puts points `p0..pN` with vectors spread over the circle, and gives the answer.
    pub(crate) async fn put_circle(&self, collection: &str, count: usize) -> Value {
        let points: Vec<Value> = (0..count)
            .map(|number| {
                let angle = number as f64 / count as f64 * std::f64::consts::TAU;
                let kind = if number % 2 == 0 { "even" } else { "odd" };
                json!({
                    "id": format!("p{number}"), "vector": [angle.cos(), angle.sin(), 0.1],
                    "text": format!("point {number}"), "metadata": {"year": 2000 + number, "kind": kind},
                })
            })
            .collect();
        self.put(&format!("/api/v1/collections/{collection}/points"), json!({ "points": points })).await.ok()
    }

    /// Uploads a text document and follows its job to the end.
    pub(crate) async fn upload(&self, collection: &str, id: &str, title: &str, text: &str) -> Value {
        let body = json!({"id": id, "title": title, "text": text, "collection": collection});
        let accepted = self.post("/api/v1/documents", body).await;
        assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.body);
        self.follow_job(accepted.body["job_id"].as_str().expect("job id")).await
    }

    /// Uploads a file and follows its job to the end.
    pub(crate) async fn upload_file(&self, collection: &str, id: &str, name: &str, bytes: &[u8]) -> Value {
        let part = reqwest::multipart::Part::bytes(bytes.to_vec()).file_name(name.to_owned());
        let form = reqwest::multipart::Form::new().text("id", id.to_owned()).text("collection", collection.to_owned());
        let request = self.http.post(format!("{}/api/v1/documents", self.base)).multipart(form.part("file", part));
        let accepted = Self::read(request.send().await.expect("answers")).await;
        assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.body);
        self.follow_job(accepted.body["job_id"].as_str().expect("job id")).await
    }

    /// The job's last event.
    pub(crate) async fn follow_job(&self, job_id: &str) -> Value {
        let (status, events) = self.text(&format!("/api/v1/jobs/{job_id}/events")).await;
        assert_eq!(status, StatusCode::OK, "{events}");
        let last =
            events.lines().filter_map(|line| line.strip_prefix("data: ")).next_back().expect("at least one event");
        let job: Value = serde_json::from_str(last).expect("JSON");
        assert_eq!(job["terminal"], true, "{events}");
        job
    }
}

/// Ids of the hits, in order.
pub(crate) fn ids(reply: &Value) -> Vec<String> {
    let hits = reply["hits"].as_array().expect("hits");
    hits.iter().map(|hit| hit["document_id"].as_str().expect("id").to_owned()).collect()
}

/// Server-sent events as (id, name, data).
pub(crate) fn events(text: &str) -> Vec<(u64, String, Value)> {
    let mut events = Vec::new();
    for block in text.split("\n\n").filter(|block| block.contains("data: ")) {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
        let data = serde_json::from_str(&field("data: ")).expect("JSON data");
        events.push((field("id: ").parse().expect("numeric id"), field("event: "), data));
    }
    events
}
