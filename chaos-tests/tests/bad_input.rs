//! Bad requests over real HTTP: each is a 4xx that says what is wrong and what to do, nothing changes, the process lives. So is a
//! collection for which there is no memory, with 507.

use std::time::Duration;

use anyhow::{Context, ensure};
use chaos_tests::checker::copies_agree;
use chaos_tests::client::{Answer, Client};
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::wait;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const POINTS: &str = "/api/v1/collections/c/points";
const SEARCH: &str = "/api/v1/search";

fn check_refusal(what: &str, answer: &Answer) -> anyhow::Result<()> {
    ensure!(answer.status.is_client_error(), "{what}: {} {}", answer.status, answer.body);
    ensure!(answer.body["error"]["retryable"] == false, "{what}: must not be retried: {}", answer.body);
    check_body(what, answer)
}

/// Says what is wrong, and what to do.
fn check_body(what: &str, answer: &Answer) -> anyhow::Result<()> {
    let error = &answer.body["error"];
    for key in ["type", "message", "hint", "request_id"] {
        ensure!(error[key].as_str().is_some_and(|text| !text.is_empty()), "{what}: no {key} in {}", answer.body);
    }
    println!("{what}: {} {}: {} ({})", answer.status, error["type"], error["message"], error["hint"]);
    Ok(())
}

/// Announces a gigabyte and sends a little of it: the refusal must come without the body having been read.
async fn one_gigabyte(url: &str) -> anyhow::Result<String> {
    let address = url.strip_prefix("http://").context("no scheme")?;
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let head = format!(
        "PUT {POINTS} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: 1073741824\r\n\
         connection: close\r\n\r\n{{\"points\": ["
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut answer)).await??;
    Ok(String::from_utf8_lossy(&answer[..read]).into_owned())
}

async fn refuse_all(client: &Client) -> anyhow::Result<()> {
    let raw: [(&str, Method, &str, &[u8]); 6] = [
        ("malformed JSON", Method::PUT, POINTS, b"{\"points\": [}"),
        ("empty body", Method::POST, SEARCH, b""),
        ("NaN", Method::PUT, POINTS, b"{\"points\": [{\"id\": \"a\", \"vector\": [NaN, 0, 0, 0]}]}"),
        ("number beyond f32", Method::PUT, POINTS, b"{\"points\": [{\"id\": \"a\", \"vector\": [1e999, 0, 0, 0]}]}"),
        ("not UTF-8", Method::POST, SEARCH, b"{\"query\": \"\xff\xfe\"}"),
        ("deeply nested", Method::POST, SEARCH, &[b'['; 100_000]),
    ];
    for (what, method, path, body) in raw {
        check_refusal(what, &client.send_raw(method, path, body.to_vec()).await?)?;
    }
    let vector = json!([1.0, 0.0, 0.0, 0.0]);
    let cases: Vec<(&str, Method, &str, Value)> = vec![
        ("wrong dimension", Method::PUT, POINTS, json!({ "points": [{ "id": "a", "vector": [1.0, 0.0] }] })),
        ("zero vector", Method::PUT, POINTS, json!({ "points": [{ "id": "a", "vector": [0.0, 0.0, 0.0, 0.0] }] })),
        ("no points", Method::PUT, POINTS, json!({ "points": [] })),
        ("empty id", Method::PUT, POINTS, json!({ "points": [{ "id": "", "vector": vector }] })),
        ("unknown field", Method::PUT, POINTS, json!({ "points": [{ "id": "a", "vector": vector, "colour": 1 }] })),
        (
            "one good and one bad",
            Method::PUT,
            POINTS,
            json!({ "points": [{ "id": "a", "vector": vector }, { "id": "b", "vector": [1.0] }] }),
        ),
        (
            "unknown collection",
            Method::PUT,
            "/api/v1/collections/none/points",
            json!({ "points": [{ "id": "a", "vector": vector }] }),
        ),
        ("unknown collection in a search", Method::POST, SEARCH, json!({ "collection": "none", "vector": vector })),
        ("top_k 0", Method::POST, SEARCH, json!({ "collection": "c", "vector": vector, "top_k": 0 })),
        ("top_k 10^9", Method::POST, SEARCH, json!({ "collection": "c", "vector": vector, "top_k": 1_000_000_000 })),
        ("search of a wrong dimension", Method::POST, SEARCH, json!({ "collection": "c", "vector": [1.0] })),
        ("search with nothing to search for", Method::POST, SEARCH, json!({ "collection": "c" })),
        ("unknown search field", Method::POST, SEARCH, json!({ "collection": "c", "vector": vector, "topk": 3 })),
        (
            "undeclared filter field",
            Method::POST,
            SEARCH,
            json!({ "collection": "c", "vector": vector, "filters": { "must": [{ "field": "x", "eq": 1 }] } }),
        ),
        ("text query without an embedder", Method::POST, SEARCH, json!({ "collection": "c", "query": "hello" })),
        ("collection with dim 0", Method::PUT, "/api/v1/collections/d", json!({ "dim": 0 })),
        ("collection with a bad name", Method::PUT, "/api/v1/collections/UP", json!({ "dim": 4 })),
        ("collection again with another dim", Method::PUT, "/api/v1/collections/c", json!({ "dim": 5 })),
        ("unknown job", Method::GET, "/api/v1/jobs/nope", Value::Null),
        ("unknown path", Method::GET, "/api/v1/nope", Value::Null),
        ("wrong method", Method::DELETE, "/api/v1/search", Value::Null),
    ];
    for (what, method, path, body) in cases {
        let body = (!body.is_null()).then_some(&body);
        check_refusal(what, &client.send(method, path, body).await?)?;
    }
    Ok(())
}

/// Asks for a copy on each of three nodes, of which the last has no memory for it.
async fn refuse_for_want_of_memory(client: &Client) -> anyhow::Result<()> {
    let told = wait::until("the budgets to be known", Duration::from_secs(30), || async {
        let cluster = client.cluster().await?;
        let nodes = cluster["nodes"].as_array().context("no nodes")?;
        ensure!(nodes.iter().all(|node| node["memory"]["budget"].as_u64() > Some(0)), "{cluster}");
        Ok(())
    });
    told.await?;
    let answer = client.send(Method::PUT, "/api/v1/collections/d", Some(&json!({ "dim": 4, "copies": 3 }))).await?;
    let error = &answer.body["error"];
    ensure!(answer.status == 507 && error["type"] == "storage_full", "{} {}", answer.status, answer.body);
    let says = |key: &str, words: &str| error[key].as_str().is_some_and(|text| text.contains(words));
    ensure!(says("message", "the memory of node 3 is full"), "{}", answer.body);
    ensure!(says("hint", "storage.memory_budget") && error["retryable"] == true, "{}", answer.body);
    check_body("no memory", &answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_and_change_nothing() -> anyhow::Result<()> {
    // Less than any process takes.
    let node_extra = [(3, "[storage]\nmemory_budget = \"1MiB\"".into())].into();
    let mut cluster = Cluster::start(Options { node_extra, ..Options::default() }).await?;
    let client = cluster.client();
    client.create_collection("c", &json!({ "dim": 4, "shards": 2, "copies": 2 })).await?;
    client.put_points("c", &[("kept".into(), vec![1.0, 0.0, 0.0, 0.0])]).await?.ok()?;
    let before = client.send(Method::GET, "/api/v1/collections", None).await?.ok()?;

    refuse_all(&client).await.with_context(|| cluster.log_tails())?;
    refuse_for_want_of_memory(&client).await.with_context(|| cluster.log_tails())?;
    let answer = one_gigabyte(&cluster.url()).await?;
    ensure!(answer.starts_with("HTTP/1.1 413"), "1 GB body: {answer}");
    ensure!(answer.contains("too_large"), "1 GB body: {answer}");

    ensure!(cluster.coordinator()?.is_running(), "the coordinator died");
    for node in 1..=3 {
        ensure!(cluster.node(node)?.is_running(), "node {node} died");
    }
    let after = client.send(Method::GET, "/api/v1/collections", None).await?.ok()?;
    ensure!(before == after, "the collections changed: {before} became {after}");
    let chunks = copies_agree::check(&client, "c", 2, 2, Duration::from_secs(30)).await?;
    ensure!(chunks == 1, "{chunks} chunks instead of the one that was put");
    cluster.shut_down().await
}
