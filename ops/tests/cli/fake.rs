//! A small coordinator that follows the documented API, and `susui` run against it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Multipart, Path as UrlPath, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use futures::StreamExt;
use serde_json::{Value, json};

/// What the fake coordinator was told, and how it is to behave.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) documents: HashMap<String, String>,
    pub(crate) points: Vec<(String, Vec<f32>)>,
    pub(crate) collections: HashMap<String, Value>,
    pub(crate) searches: Vec<Value>,
    /// Answers 503 this many times before it serves.
    pub(crate) busy_times: u32,
    pub(crate) idempotency_keys: Vec<String>,
    pub(crate) aliases: HashMap<String, String>,
    /// Times that it was asked.
    pub(crate) questions: u32,
    /// How it treats questions.
    pub(crate) model: Model,
}

/// How questions go.
#[derive(Clone, Copy, Default)]
pub(crate) enum Model {
    #[default]
    Answers,
    /// No answer ever comes.
    Hangs,
    /// The coordinator gives up.
    GivesUp,
    /// Streams a word every quarter of a second.
    Talks(u32),
    /// Streams a word, then nothing more.
    FallsSilent,
}

/// Between two words of a stream.
const WORD_PAUSE: Duration = Duration::from_millis(250);

/// It is asked and told from several threads.
pub(crate) type Shared = Arc<Mutex<Fake>>;

/// It listens at a port of loopback until it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    pub(crate) state: Shared,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub(crate) fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let state = Shared::default();
        let app = Router::new()
            .route("/api/v1/collections", get(list_collections))
            .route("/api/v1/collections/{name}", put(put_collection).get(get_collection).delete(delete_collection))
            .route("/api/v1/collections/{name}/points", put(put_points))
            .route("/api/v1/documents", post(post_document))
            .route("/api/v1/jobs/{id}", get(get_job))
            .route("/api/v1/cluster", get(cluster))
            .route("/api/v1/search", post(search))
            .route("/api/v1/query", post(query))
            .with_state(Arc::clone(&state));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("bound");
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self { address, state, _runtime: runtime }
    }

    /// Runs `susui` with these arguments against it.
    pub(crate) fn susui(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_susui"))
            .args(arguments)
            .env("SUSUI_URL", format!("http://{}", self.address))
            .output()
            .expect("susui runs")
    }
}

fn error(status: StatusCode, kind: &str, retryable: bool) -> Response {
    let body = json!({"error": {"type": kind, "message": "no", "hint": "try otherwise", "retryable": retryable, "request_id": "r1"}});
    (status, Json(body)).into_response()
}

fn info(name: &str, spec: &Value) -> Value {
    json!({"name": name, "dim": spec["dim"].as_u64().unwrap_or(384), "metric": "cosine", "shards": 4, "copies": 2, "embedder": spec["embedder"]})
}

async fn list_collections(State(state): State<Shared>) -> Json<Value> {
    let state = state.lock().expect("not poisoned");
    Json(json!({"collections": state.collections.iter().map(|(name, spec)| info(name, spec)).collect::<Vec<_>>()}))
}

async fn put_collection(
    State(state): State<Shared>,
    UrlPath(name): UrlPath<String>,
    Json(spec): Json<Value>,
) -> Json<Value> {
    state.lock().expect("not poisoned").collections.insert(name.clone(), spec.clone());
    Json(info(&name, &spec))
}

async fn get_collection(State(state): State<Shared>, UrlPath(name): UrlPath<String>) -> Response {
    let state = state.lock().expect("not poisoned");
    let name = state.aliases.get(&name).unwrap_or(&name);
    match state.collections.get(name) {
        Some(spec) => Json(info(name, spec)).into_response(),
        None => error(StatusCode::NOT_FOUND, "not_found", false),
    }
}

async fn delete_collection(State(state): State<Shared>, UrlPath(name): UrlPath<String>) -> Json<Value> {
    let existed = state.lock().expect("not poisoned").collections.remove(&name).is_some();
    Json(json!({ "existed": existed }))
}

/// One shard of each collection, with a copy that has not reported.
async fn cluster(State(state): State<Shared>) -> Json<Value> {
    let state = state.lock().expect("not poisoned");
    let shard = |name: &String| {
        json!({"collection": name, "index": 0, "primary_term": 1, "primary": 1, "in_sync": [1], "min_in_sync": 1, "health": "green",
            "copies": [{"copy": 1, "node": 1, "role": "primary"}]})
    };
    Json(json!({"cluster_id": "c", "state_version": 1,
        "metadata": {"leader": 1, "raft_term": 1, "last_applied_index": 1, "voters": [1]},
        "nodes": [{"id": 1, "rpc_address": "", "http_address": "", "zone": "z", "is_data": true, "incarnation": 1, "liveness": "alive",
            "lifecycle": "active"}],
        "shards": state.collections.keys().map(shard).collect::<Vec<_>>()}))
}

async fn put_points(State(state): State<Shared>, Json(body): Json<Value>) -> Response {
    let mut state = state.lock().expect("not poisoned");
    if state.busy_times > 0 {
        state.busy_times -= 1;
        return error(StatusCode::SERVICE_UNAVAILABLE, "unavailable", true);
    }
    let points = body["points"].as_array().expect("points");
    for point in points {
        let vector = point["vector"].as_array().expect("a vector").iter().map(|x| x.as_f64().expect("a number") as f32);
        state.points.push((point["id"].as_str().expect("an id").to_owned(), vector.collect()));
    }
    Json(json!({"acked": points.len(), "copies_acked_min": 2, "session": "s"})).into_response()
}

/// Documents come as JSON, or as a form whose small fields precede the file.
async fn post_document(State(state): State<Shared>, headers: HeaderMap, request: Request) -> Response {
    let key = headers["idempotency-key"].to_str().expect("text").to_owned();
    let (id, text) = if headers["content-type"] == "application/json" {
        let bytes = axum::body::to_bytes(request.into_body(), 1 << 20).await.expect("a body");
        let body: Value = serde_json::from_slice(&bytes).expect("JSON");
        (body["id"].as_str().expect("an id").to_owned(), body["text"].as_str().expect("a text").to_owned())
    } else {
        let mut form = <Multipart as axum::extract::FromRequest<()>>::from_request(request, &()).await.expect("a form");
        let (mut id, mut text) = (None, String::new());
        while let Some(field) = form.next_field().await.expect("a field") {
            match field.name() {
                Some("id") => id = Some(field.text().await.expect("text")),
                Some("file") => {
                    assert!(id.is_some() && field.file_name().is_some(), "the id comes first");
                    text = field.text().await.expect("text");
                }
                _ => {}
            }
        }
        (id.expect("an id"), text)
    };
    let mut state = state.lock().expect("not poisoned");
    state.idempotency_keys.push(key);
    if text.contains("UNPARSABLE") {
        return error(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media", false);
    }
    state.documents.insert(id.clone(), text);
    (StatusCode::ACCEPTED, Json(json!({"id": id, "status": "processing", "job_id": id}))).into_response()
}

async fn get_job(State(state): State<Shared>, UrlPath(id): UrlPath<String>) -> Response {
    match state.lock().expect("not poisoned").documents.get(&id) {
        Some(text) if text.contains("FAILS LATER") => {
            Json(json!({"status": "failed", "terminal": true, "error": {"message": "the model choked"}}))
                .into_response()
        }
        Some(_) => Json(json!({"status": "done", "terminal": true, "progress": 1.0, "session": "s"})).into_response(),
        None => error(StatusCode::NOT_FOUND, "not_found", false),
    }
}

/// Answers with all documents, two chunks each, in order of id; a vector finds the points by distance.
async fn search(State(state): State<Shared>, Json(body): Json<Value>) -> Json<Value> {
    let mut state = state.lock().expect("not poisoned");
    state.searches.push(body.clone());
    let mut found: Vec<(f64, String)> = match body["vector"].as_array() {
        Some(vector) => {
            let score = |point: &[f32]| -> f64 {
                -point
                    .iter()
                    .zip(vector)
                    .map(|(a, b)| (f64::from(*a) - b.as_f64().expect("a number")).powi(2))
                    .sum::<f64>()
            };
            state.points.iter().map(|(id, point)| (score(point), id.clone())).collect()
        }
        None => state.documents.keys().flat_map(|id| [(1.0, id.clone()), (0.5, id.clone())]).collect(),
    };
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let hits: Vec<Value> = found
        .iter()
        .take(body["top_k"].as_u64().expect("top_k") as usize)
        .map(|(score, id)| json!({"chunk_id": format!("{id}#0"), "document_id": id, "score": score, "text": "t", "metadata": {}}))
        .collect();
    Json(
        json!({"hits": hits, "shards": {"total": 4, "ok": 4, "failed": 0, "timed_out": 0}, "timings_ms": {}, "session": "s",
        "explain": {"cached": false, "work": {"codes_scanned": 2, "codes_total": 8, "rows_exact": 0}, "shards": []}}),
    )
}

async fn query(State(state): State<Shared>, Json(body): Json<Value>) -> Response {
    let model = {
        let mut state = state.lock().expect("not poisoned");
        state.questions += 1;
        state.model
    };
    match model {
        Model::Answers => answer(&body),
        Model::Hangs => std::future::pending().await,
        Model::GivesUp => error(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", true),
        Model::Talks(words) => talk(words, true),
        Model::FallsSilent => talk(1, false),
    }
}

/// A stream of `words` deltas with pauses, then `done` or silence.
fn talk(words: u32, is_done: bool) -> Response {
    let shards = json!({"total": 1, "ok": 1, "failed": 0, "timed_out": 0});
    let meta =
        format!("event: meta\ndata: {}\n\n", json!({"generator": "ollama", "request_id": "r", "shards": shards}));
    let deltas = (0..words).map(|_| "event: delta\ndata: {\"text\":\"word \"}\n\n".to_owned());
    let end = is_done.then(|| "event: done\ndata: {}\n\n".to_owned());
    let pieces = futures::stream::iter(std::iter::once(meta).chain(deltas).chain(end)).then(|piece| async move {
        tokio::time::sleep(WORD_PAUSE).await;
        Ok::<_, std::convert::Infallible>(piece)
    });
    let rest = if is_done { futures::stream::empty().left_stream() } else { futures::stream::pending().right_stream() };
    ([("content-type", "text/event-stream")], axum::body::Body::from_stream(pieces.chain(rest))).into_response()
}

fn answer(body: &Value) -> Response {
    let citation = json!({"marker": 1, "chunk_id": "d#0", "document_id": "d", "title": "Doc", "span": {"start": 0, "end": 9}, "score": 0.9});
    let shards = json!({"total": 4, "ok": 3, "failed": 0, "timed_out": 1});
    if body["stream"] != json!(true) {
        return Json(
            json!({"answer": "Yes [1].", "generator": "extractive", "citations": [citation], "shards": shards}),
        )
        .into_response();
    }
    let events = format!(
        "event: meta\ndata: {}\n\nevent: sources\ndata: [{citation}]\n\nevent: delta\ndata: {{\"text\":\"Yes \"}}\n\nevent: delta\ndata: {{\"text\":\"[1].\"}}\n\nevent: citation\ndata: {citation}\n\nevent: done\ndata: {{\"finish_reason\":\"stop\"}}\n\n",
        json!({"generator": "ollama", "request_id": "r", "shards": shards}),
    );
    ([("content-type", "text/event-stream")], events).into_response()
}
