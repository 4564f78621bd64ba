//! `susui` as its users run it, against a small coordinator that follows the documented API.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
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
struct Fake {
    documents: HashMap<String, String>,
    points: Vec<(String, Vec<f32>)>,
    collections: HashMap<String, Value>,
    searches: Vec<Value>,
    /// Answers 503 this many times before it serves.
    busy_times: u32,
    idempotency_keys: Vec<String>,
    aliases: HashMap<String, String>,
    /// How often it was asked, and how it treats questions.
    questions: u32,
    model: Model,
}

/// How questions go.
#[derive(Clone, Copy, Default)]
enum Model {
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

type Shared = Arc<Mutex<Fake>>;

struct Server {
    address: SocketAddr,
    state: Shared,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let state = Shared::default();
        let app = Router::new()
            .route("/api/v1/collections", get(list_collections))
            .route("/api/v1/collections/{name}", put(put_collection).get(get_collection).delete(delete_collection))
            .route("/api/v1/collections/{name}/points", put(put_points))
            .route("/api/v1/documents", post(post_document))
            .route("/api/v1/jobs/{id}", get(get_job))
            .route("/api/v1/search", post(search))
            .route("/api/v1/query", post(query))
            .with_state(Arc::clone(&state));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("bound");
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self { address, state, _runtime: runtime }
    }

    fn susui(&self, arguments: &[&str]) -> Output {
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

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_exit(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}{}", stdout(output), stderr(output));
}

fn npy(path: &Path, rows: &[[f32; 2]]) {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, 2), }}\n", rows.len());
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(rows.iter().flatten().flat_map(|x| x.to_le_bytes()));
    std::fs::write(path, bytes).expect("writes");
}

#[test]
fn documents_are_ingested_and_what_is_refused_is_listed() {
    let server = Server::start();
    let dir = tempfile::tempdir().expect("a directory");
    let corpus = dir.path().join("corpus.jsonl");
    let lines = [
        "{\"_id\":\"1\",\"title\":\"T\",\"text\":\"one\"}",
        "{\"_id\":\"2\",\"text\":\"\"}",
        "{broken",
        "{\"_id\":\"4\",\"text\":\"FAILS LATER\"}",
    ];
    std::fs::write(&corpus, lines.join("\n")).expect("writes");
    std::fs::create_dir(dir.path().join("notes")).expect("creates");
    std::fs::write(dir.path().join("notes/a.md"), "# A").expect("writes");
    std::fs::write(dir.path().join("notes/b.html"), "UNPARSABLE").expect("writes");
    let (corpus, notes) = (corpus.display().to_string(), dir.path().join("notes").display().to_string());

    // No collection: refused with a hint, nothing sent.
    let refused = server.susui(&["ingest", &corpus, "-c", "docs"]);
    assert_exit(&refused, 5);
    assert!(stderr(&refused).contains("susui collection create docs"));
    assert!(server.state.lock().expect("not poisoned").documents.is_empty());

    let ingested = server.susui(&["ingest", &corpus, &notes, "-c", "docs", "--create"]);
    assert_exit(&ingested, 3);
    for line in [
        "corpus.jsonl:2: document \"2\" has no text",
        "corpus.jsonl:3: not JSON",
        "corpus.jsonl:4: the model choked",
        "b.html: no (unsupported_media",
    ] {
        assert!(stderr(&ingested).contains(line), "no {line:?} in\n{}", stderr(&ingested));
    }
    assert!(stdout(&ingested).starts_with("2 documents into docs"), "{}", stdout(&ingested));
    let state = server.state.lock().expect("not poisoned");
    assert_eq!(state.documents["1"], "one");
    assert_eq!(state.documents["notes/a.md"], "# A");
    let keys: std::collections::HashSet<_> = state.idempotency_keys.iter().collect();
    assert_eq!(keys.len(), state.idempotency_keys.len(), "each document has a key of its own");
}

#[test]
fn vectors_are_ingested_in_batches_through_a_busy_moment_and_found_again() {
    let server = Server::start();
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str| dir.path().join(name);
    let rows: Vec<[f32; 2]> = (0..25).map(|row| [row as f32, 0.5]).collect();
    npy(&file("base.npy"), &rows);
    npy(&file("queries.npy"), &[[0.0, 0.5], [24.0, 0.5]]);
    let base = file("base.npy").display().to_string();

    assert_exit(&server.susui(&["collection", "create", "wide", "--dim", "3"]), 0);
    assert_exit(&server.susui(&["ingest", "--vectors", &base, "-c", "wide"]), 2);

    assert_exit(&server.susui(&["collection", "create", "v", "--dim", "2"]), 0);
    server.state.lock().expect("not poisoned").busy_times = 2;
    let ingested = server.susui(&["--json", "ingest", "--vectors", &base, "-c", "v", "--batch", "10"]);
    assert_exit(&ingested, 0);
    let summary: Value = serde_json::from_slice(&ingested.stdout).expect("JSON");
    assert_eq!((&summary["done"], &summary["copies_acked_min"]), (&json!(25), &json!(2)));
    {
        let mut state = server.state.lock().expect("not poisoned");
        state.points.sort_by_key(|(id, _)| id.parse::<u32>().expect("a row number"));
        let found: Vec<[f32; 2]> = state.points.iter().map(|(_, vector)| [vector[0], vector[1]]).collect();
        assert_eq!(found, rows);
    }

    // The exact neighbours of row 0 are 0..10; of row 24 they are 24, 23, ..., of which one is given wrong.
    let lists: Vec<u8> = (0..10u32).chain([24, 23, 22, 21, 20, 19, 18, 17, 16, 3]).flat_map(u32::to_le_bytes).collect();
    let header = "{'descr': '<u4', 'fortran_order': False, 'shape': (2, 10), }";
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(lists);
    std::fs::write(file("neighbors.npy"), bytes).expect("writes");
    let (queries, neighbors) = (file("queries.npy").display().to_string(), file("neighbors.npy").display().to_string());
    let measure = ["--json", "eval", "-c", "v", "--vectors", &queries, "--neighbors", &neighbors];
    let measured = server.susui(&measure);
    assert_exit(&measured, 0);
    let report: Value = serde_json::from_slice(&measured.stdout).expect("JSON");
    assert_eq!((&report["recall_at_10"], &report["codes_scanned_share"]), (&json!(0.95), &json!(0.25)));
    assert_exit(&server.susui(&[&measure[..], &["--min-recall", "0.96"]].concat()), 7);
}

#[test]
fn judged_queries_are_ranked_by_their_best_chunk() {
    let server = Server::start();
    let dir = tempfile::tempdir().expect("a directory");
    {
        let mut state = server.state.lock().expect("not poisoned");
        state.documents = ["a", "b", "c"].map(|id| (id.to_owned(), String::new())).into();
    }
    let (queries, qrels) = (dir.path().join("q.jsonl"), dir.path().join("qrels.tsv"));
    std::fs::write(&queries, "{\"_id\":\"1\",\"text\":\"x\"}\n{\"_id\":\"9\",\"text\":\"unjudged\"}\n")
        .expect("writes");
    std::fs::write(&qrels, "query-id\tcorpus-id\tscore\n1\tb\t1\n1\tz\t1\n").expect("writes");
    let (queries, qrels) = (queries.display().to_string(), qrels.display().to_string());
    let measured = server.susui(&[
        "--json",
        "eval",
        "-c",
        "docs",
        "--queries",
        &queries,
        "--qrels",
        &qrels,
        "--prefer-copy",
        "replica",
    ]);
    assert_exit(&measured, 0);
    let report: Value = serde_json::from_slice(&measured.stdout).expect("JSON");
    // b is second of a, b, c; z is never found: DCG 0.63093 over an ideal of 1.63093.
    assert!((report["ndcg_at_10"].as_f64().expect("a number") - 0.386_853).abs() < 1e-6, "{report}");
    assert_eq!(
        (&report["recall_at_100"], &report["mrr_at_10"], &report["queries"]),
        (&json!(0.5), &json!(0.5), &json!(1))
    );
    let sent = &server.state.lock().expect("not poisoned").searches[0];
    assert_eq!((&sent["top_k"], &sent["include"], &sent["prefer_copy"]), (&json!(300), &json!([]), &json!("replica")));
}

#[test]
fn an_answer_is_printed_with_its_sources_whole_or_streamed() {
    let server = Server::start();
    for stream in [&[][..], &["--stream"]] {
        let asked = server.susui(&[&["ask", "really?", "-c", "docs"], stream].concat());
        assert_exit(&asked, 3);
        let text = stdout(&asked);
        assert!(text.starts_with("Yes [1].\n"), "{text}");
        assert!(text.contains("[1] Doc (d#0, bytes 0..9), score 0.900"), "{text}");
        assert!(stderr(&asked).contains("3 of 4 shards answered"));
    }
}

#[test]
fn a_question_that_took_its_time_is_not_asked_again() {
    let server = Server::start();
    for model in [Model::Hangs, Model::GivesUp] {
        {
            let mut state = server.state.lock().expect("not poisoned");
            (state.questions, state.model) = (0, model);
        }
        let asked = server.susui(&["--timeout", "300ms", "ask", "really?", "-c", "docs"]);
        assert_exit(&asked, 6);
        assert!(stderr(&asked).contains("raise --timeout"), "{}", stderr(&asked));
        assert_eq!(server.state.lock().expect("not poisoned").questions, 1);
    }
}

#[test]
fn a_stream_may_last_while_it_says_something() {
    let server = Server::start();
    let ask = |model| {
        server.state.lock().expect("not poisoned").model = model;
        server.susui(&["--timeout", "2s", "ask", "really?", "-c", "docs", "--stream"])
    };
    // Ten pauses: longer than the timeout, which no single one comes near.
    let asked = ask(Model::Talks(9));
    assert_exit(&asked, 0);
    assert!(stdout(&asked).starts_with(&"word ".repeat(9)), "{}", stdout(&asked));

    let asked = ask(Model::FallsSilent);
    assert_exit(&asked, 6);
    assert!(stdout(&asked).starts_with("word") && stderr(&asked).contains("--timeout"), "{}", stderr(&asked));
}

#[test]
fn an_alias_is_not_deleted_in_the_place_of_its_collection() {
    let server = Server::start();
    assert_exit(&server.susui(&["collection", "create", "docs-2"]), 0);
    server.state.lock().expect("not poisoned").aliases.insert("docs".into(), "docs-2".into());
    for yes in [&[][..], &["--yes"]] {
        let refused = server.susui(&[&["collection", "delete", "docs"], yes].concat());
        assert_exit(&refused, 2);
        assert!(stderr(&refused).contains("docs is an alias of docs-2"), "{}", stderr(&refused));
    }
    assert_exit(&server.susui(&["collection", "show", "docs-2"]), 0);
}

#[test]
fn deleting_is_a_dry_run_first() {
    let server = Server::start();
    assert_exit(&server.susui(&["collection", "create", "docs"]), 0);
    let dry = server.susui(&["collection", "delete", "docs"]);
    assert_exit(&dry, 0);
    assert!(stdout(&dry).contains("nothing was done"));
    assert!(stdout(&server.susui(&["collection", "list"])).contains("docs"));
    let deleted = server.susui(&["collection", "delete", "docs", "--yes"]);
    assert_exit(&deleted, 0);
    assert!(stdout(&deleted).contains("docs is deleted"));
    assert_exit(&server.susui(&["collection", "show", "docs"]), 5);
}

#[test]
fn a_missing_coordinator_is_explained() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let url = format!("http://127.0.0.1:{port}");
    let output = Command::new(env!("CARGO_BIN_EXE_susui")).args(["--url", &url, "status"]).output().expect("runs");
    assert_exit(&output, 4);
    assert!(
        stderr(&output).contains("connection refused") && stderr(&output).contains("susui dev up"),
        "{}",
        stderr(&output)
    );
    let output =
        Command::new(env!("CARGO_BIN_EXE_susui")).args(["--url", &url, "--json", "status"]).output().expect("runs");
    let error: Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert_eq!((&error["error"]["type"], &error["error"]["exit_code"]), (&json!("unreachable"), &json!(4)));
}
