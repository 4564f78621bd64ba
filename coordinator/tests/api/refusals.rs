//! Bad input: a 4xx that names the field, nothing changed, the process lives.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{Answer, Coordinator, Setup};

#[track_caller]
fn assert_refused(answer: &Answer, status: u16, kind: &str, message_has: &str) {
    let error = &answer.body["error"];
    assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
    assert_eq!(error["type"], kind, "{error}");
    let message = error["message"].as_str().expect("message");
    assert!(message.contains(message_has), "{message:?} has no {message_has:?}");
    assert!(error["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{error}");
    assert_eq!(error["retryable"], false, "{error}");
    assert_eq!(error["request_id"].as_str(), answer.headers["x-request-id"].to_str().ok(), "{error}");
}

#[tokio::test]
async fn bad_bodies_are_refused_by_name_and_change_nothing() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_vectors("v", 2).await;
    c.create_texts("t").await;
    c.put_circle("v", 10).await;
    let (applied, state) = (c.twin.applied_total(), c.get("/api/v1/collections").await.ok());

    let search = |change: Value| {
        let mut body = json!({"collection": "v", "vector": [1, 0, 0]});
        for (key, value) in change.as_object().expect("object") {
            body[key] = value.clone();
        }
        body
    };
    let point = |change: Value| {
        let mut point = json!({"id": "x", "vector": [1, 0, 0]});
        for (key, value) in change.as_object().expect("object") {
            point[key] = value.clone();
        }
        json!({"points": [{"id": "good", "vector": [0, 1, 0]}, point]})
    };
    let (s, p) = ("/api/v1/search", "/api/v1/collections/v/points");
    let cases: Vec<(Method, &str, Value, u16, &str, &str)> = vec![
        (
            Method::POST,
            s,
            search(json!({"vector": [1, 0]})),
            400,
            "invalid_argument",
            "vector: the vector has 2 components",
        ),
        (Method::POST, s, search(json!({"vector": [0, 0, 0]})), 400, "invalid_argument", "vector: "),
        (Method::POST, s, search(json!({"vector": [1e39, 0, 0]})), 400, "invalid_argument", "vector"),
        (Method::POST, s, search(json!({"vector": [null, 0, 0]})), 400, "invalid_argument", "vector[0]"),
        (Method::POST, s, search(json!({"top_k": 0})), 400, "invalid_argument", "top_k: 0 is out of range"),
        (Method::POST, s, search(json!({"top_k": 1_000_000_000})), 400, "invalid_argument", "top_k: 1000000000"),
        (Method::POST, s, search(json!({"top_k": 1e20})), 400, "invalid_argument", "top_k"),
        (Method::POST, s, search(json!({"topk": 3})), 400, "invalid_argument", "unknown field `topk`"),
        (Method::POST, s, search(json!({"collection": "none"})), 404, "not_found", "\"none\""),
        (Method::POST, s, search(json!({"collection": "../x"})), 400, "invalid_argument", "collection"),
        (Method::POST, s, search(json!({"query": "both"})), 400, "invalid_argument", ""),
        (Method::POST, s, json!({"collection": "v"}), 400, "invalid_argument", "query"),
        (Method::POST, s, json!({"collection": "v", "query": "text"}), 400, "invalid_argument", "no embedder"),
        (Method::POST, s, search(json!({"timeout_ms": 0})), 400, "invalid_argument", "timeout_ms"),
        (Method::POST, s, search(json!({"min_coverage": 1.5})), 400, "invalid_argument", "min_coverage"),
        (Method::POST, s, search(json!({"session": "s1.zz"})), 400, "invalid_argument", "session"),
        (Method::POST, s, search(json!({"session": "x".repeat(100_000)})), 400, "invalid_argument", "session"),
        (Method::POST, s, search(json!({"max_staleness_ms": 10_001})), 400, "invalid_argument", "max_staleness_ms"),
        (Method::POST, s, search(json!({"max_staleness_ms": -1})), 400, "invalid_argument", "max_staleness_ms"),
        (
            Method::PUT,
            p,
            json!({"points": [{"id": "x", "vector": [1, 0, 0]}], "session": 7}),
            400,
            "invalid_argument",
            "session",
        ),
        (
            Method::PUT,
            p,
            json!({"points": [{"id": "x", "vector": [1, 0, 0]}], "session": "s1.x"}),
            400,
            "invalid_argument",
            "session",
        ),
        (Method::POST, s, search(json!({"consistency": "weak"})), 400, "invalid_argument", "consistency"),
        (Method::POST, s, search(json!({"prefer_copy": "best"})), 400, "invalid_argument", "prefer_copy"),
        (
            Method::POST,
            s,
            search(json!({"filters": {"must": [{"field": "no", "eq": 1}]}})),
            400,
            "invalid_argument",
            "filters.must[0].field",
        ),
        (
            Method::POST,
            s,
            search(json!({"filters": {"must": [{"field": "year", "eq": "x"}]}})),
            400,
            "invalid_argument",
            "filters.must[0].eq",
        ),
        (Method::POST, "/api/v1/search:batch", json!({"searches": []}), 400, "invalid_argument", "searches"),
        (
            Method::POST,
            "/api/v1/search:batch",
            json!({"searches": [search(json!({})), search(json!({"top_k": 0}))]}),
            400,
            "invalid_argument",
            "searches[1].top_k",
        ),
        (
            Method::POST,
            "/api/v1/query",
            json!({"query": " ", "collection": "t"}),
            400,
            "invalid_argument",
            "query: empty",
        ),
        (
            Method::POST,
            "/api/v1/query",
            json!({"query": "x", "collection": "t", "temperature": 9}),
            400,
            "invalid_argument",
            "temperature",
        ),
        (Method::PUT, p, point(json!({"vector": [1, 0]})), 400, "invalid_argument", "points[1].vector"),
        (Method::PUT, p, point(json!({"vector": [1e39, 0, 1]})), 400, "invalid_argument", "points[1].vector"),
        (Method::PUT, p, point(json!({"id": ""})), 400, "invalid_argument", "points[1].id"),
        (Method::PUT, p, point(json!({"id": "a\nb"})), 400, "invalid_argument", "points[1].id"),
        (Method::PUT, p, point(json!({"id": "good"})), 400, "invalid_argument", "points[1].id"),
        (Method::PUT, p, point(json!({"id": 7})), 400, "invalid_argument", "points[1].id"),
        (Method::PUT, p, point(json!({"metadata": {"year": "x"}})), 400, "invalid_argument", "points[1].metadata.year"),
        (Method::PUT, p, point(json!({"vektor": []})), 400, "invalid_argument", "points[1]"),
        (Method::PUT, p, json!({"points": []}), 400, "invalid_argument", "points: 0 points"),
        (Method::PUT, "/api/v1/collections/none/points", point(json!({})), 404, "not_found", "none"),
        (Method::POST, "/api/v1/collections/v/points:delete", json!({}), 400, "invalid_argument", "ids"),
        (
            Method::POST,
            "/api/v1/collections/v/points:delete",
            json!({"filters": {}}),
            400,
            "invalid_argument",
            "filters",
        ),
        (Method::PUT, "/api/v1/collections/w", json!({"dim": 0}), 400, "invalid_argument", "dim"),
        (Method::PUT, "/api/v1/collections/w", json!({}), 400, "invalid_argument", "dim: missing"),
        (Method::PUT, "/api/v1/collections/W", json!({"dim": 3}), 400, "invalid_argument", "name"),
        (
            Method::PUT,
            "/api/v1/collections/w",
            json!({"dim": 3, "index": {"nlists": 1}}),
            400,
            "invalid_argument",
            "index",
        ),
        (Method::PUT, "/api/v1/collections/w", json!({"embedder": "other"}), 400, "invalid_argument", "embedder"),
        (
            Method::POST,
            "/api/v1/documents",
            json!({"text": "x", "collection": "v"}),
            400,
            "invalid_argument",
            "no embedder",
        ),
        (Method::POST, "/api/v1/documents", json!({"text": " \n", "collection": "t"}), 400, "invalid_argument", "text"),
        (
            Method::POST,
            "/api/v1/documents",
            json!({"collection": "t"}),
            400,
            "invalid_argument",
            "missing field `text`",
        ),
        (Method::GET, "/api/v1/jobs/nope", Value::Null, 400, "invalid_argument", "id"),
        (Method::GET, "/api/v1/jobs/019aa0a0-0000-7000-8000-000000000000", Value::Null, 404, "not_found", "job"),
        (Method::GET, "/api/v1/documents/nope?collection=t", Value::Null, 404, "not_found", "nope"),
        (Method::GET, "/api/v1/documents?collection=t&limit=0", Value::Null, 400, "invalid_argument", "limit"),
        (Method::GET, "/api/v1/documents?kollektion=t", Value::Null, 400, "invalid_argument", "kollektion"),
        (Method::GET, "/nowhere", Value::Null, 404, "not_found", "/nowhere"),
        (Method::DELETE, s, Value::Null, 405, "invalid_argument", "DELETE"),
    ];
    for (method, path, body, status, kind, message) in cases {
        let label = format!("{method} {path} {body}");
        let answer = c.call(method, path, (!body.is_null()).then_some(body)).await;
        eprintln!("{label} -> {} {}", answer.status, answer.body);
        assert_refused(&answer, status, kind, message);
    }
    assert_eq!(c.twin.applied_total(), applied);
    assert_eq!(c.get("/api/v1/collections").await.ok(), state);
    c.stop().await;
}

#[tokio::test]
async fn what_is_no_json_is_refused() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_vectors("v", 1).await;
    let send = async |content_type: &str, body: &'static str| {
        let request = c.http.post(format!("{}/api/v1/search", c.base)).header("content-type", content_type).body(body);
        Coordinator::read(request.send().await.expect("answers")).await
    };
    assert_refused(&send("application/json", "{\"collection\":").await, 400, "invalid_argument", "malformed JSON");
    assert_refused(&send("application/json", "").await, 400, "invalid_argument", "malformed JSON");
    let nan = send("application/json", "{\"collection\":\"v\",\"vector\":[NaN,0,0]}").await;
    assert_refused(&nan, 400, "invalid_argument", "malformed JSON");
    let infinite = send("application/json", "{\"collection\":\"v\",\"vector\":[1e999,0,0]}").await;
    assert_refused(&infinite, 400, "invalid_argument", "");
    assert_refused(&send("application/xml", "<a/>").await, 415, "unsupported_media", "application/xml");
    let deep: &'static str = Box::leak("[".repeat(100_000).into_boxed_str());
    assert_refused(&send("application/json", deep).await, 400, "invalid_argument", "");
    c.stop().await;
}

/// The bytes are announced, not sent: the refusal must come without them.
#[tokio::test]
async fn a_gigabyte_is_refused_at_its_announcement() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_vectors("v", 1).await;
    for path in ["/api/v1/search", "/api/v1/collections/v/points", "/api/v1/documents"] {
        let method = if path.ends_with("points") { "PUT" } else { "POST" };
        let address = c.base.strip_prefix("http://").expect("http");
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connects");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1073741824\r\nconnection: close\r\n\r\n{{"
        );
        stream.write_all(head.as_bytes()).await.expect("sends");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{path}: {answer}");
        assert!(answer.contains("\"type\":\"too_large\""), "{answer}");
    }
    assert_eq!(c.text("/livez").await.0, StatusCode::OK);
    c.stop().await;
}
