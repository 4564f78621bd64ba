//! Two coordinators over one Postgres and one cluster: what one takes the other knows, and each job is done once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chaos_tests::postgres::PostgresServer;
use coordinator::cluster::twin::Fault;
use reqwest::{Method, StatusCode};
use serde_json::json;
use sqlx::Connection;

use super::support::{Coordinator, Setup, ids};

async fn start_two(server: &PostgresServer) -> (Coordinator, Coordinator) {
    let first = Setup { catalog_url: Some(server.url()), ..Setup::default() };
    let second = Setup { catalog_url: Some(server.url()), twin: Arc::clone(&first.twin), ..Setup::default() };
    (Coordinator::start(first).await, Coordinator::start(second).await)
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds().await {
        assert!(Instant::now() < end, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Sessions that wait for an advisory lock.
async fn locks_awaited(server: &PostgresServer) -> i64 {
    let mut connection = sqlx::AnyConnection::connect(&server.url()).await.expect("connects");
    let count = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    sqlx::query_scalar(count).fetch_one(&mut connection).await.expect("counts")
}

#[tokio::test]
async fn each_document_is_worked_on_once() {
    const DOCUMENTS: usize = 24;
    let server = PostgresServer::start().await.expect("postgres starts");
    let (a, b) = start_two(&server).await;
    a.create_texts("docs").await;
    let mut jobs = Vec::new();
    for number in 0..DOCUMENTS {
        let taker = if number % 2 == 0 { &a } else { &b };
        let body =
            json!({"id": format!("d{number:02}"), "collection": "docs", "text": format!("text number {number}")});
        // The other coordinator hears of the new collection by its own watch.
        let accepted = loop {
            let answer = taker.post("/api/v1/documents", body.clone()).await;
            if answer.status != StatusCode::NOT_FOUND {
                break answer.ok();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        jobs.push(accepted["job_id"].as_str().expect("job").to_owned());
    }
    for (number, job) in jobs.iter().enumerate() {
        // Asked of the one that did not take it.
        let other = if number % 2 == 0 { &b } else { &a };
        let ended = other.follow_job(job).await;
        assert_eq!((&ended["status"], &ended["attempt"]), (&json!("done"), &json!(1)), "{ended}");
    }
    assert_eq!(a.twin.document_ids().len(), DOCUMENTS);
    let page = b.get("/api/v1/documents?collection=docs&limit=1000").await.ok();
    assert_eq!(page["documents"].as_array().map(Vec::len), Some(DOCUMENTS));
    let found =
        b.post("/api/v1/search", json!({"collection": "docs", "query": "text number 7", "top_k": 1})).await.ok();
    assert_eq!(ids(&found), ["d07"]);
    a.stop().await;
    b.stop().await;
}

/// One coordinator is writing a document while the other is told to delete it: the deletion waits, and is the last word.
#[tokio::test]
async fn a_deletion_through_one_waits_for_the_write_of_the_other() {
    let server = PostgresServer::start().await.expect("postgres starts");
    let first = Setup { catalog_url: Some(server.url()), ..Setup::default() };
    let twin = Arc::clone(&first.twin);
    // The other one takes no jobs, so that the write is the first one's.
    let second = Setup { catalog_url: Some(server.url()), twin: Arc::clone(&twin), workers: 0, ..Setup::default() };
    let (a, b) = (Coordinator::start(first).await, Coordinator::start(second).await);
    a.create_texts("docs").await;
    until("the other one hears of the collection", async || {
        b.get("/api/v1/documents?collection=docs").await.status == StatusCode::OK
    })
    .await;
    for node in 1..=3 {
        twin.set_fault(node, Some(Fault::HandsOff));
    }
    a.post("/api/v1/documents", json!({"id": "d", "text": "words", "collection": "docs"})).await.ok();
    until("the write is tried", async || twin.calls("write") > 0).await;

    let path = "/api/v1/documents/d?collection=docs";
    let deletion = b.delete(path);
    let release = async {
        until("the deletion waits", async || locks_awaited(&server).await == 1).await;
        assert_eq!(b.get(path).await.ok()["status"], "processing", "nothing is deleted yet");
        for node in 1..=3 {
            twin.set_fault(node, None);
        }
    };
    let (deleted, ()) = tokio::join!(deletion, release);
    assert_eq!(deleted.ok()["acked"], 1);
    assert_eq!(b.get(path).await.status, StatusCode::NOT_FOUND);
    assert_eq!(twin.applied_total(), 2, "written, then deleted");
    assert!(twin.document_ids().is_empty(), "{:?}", twin.document_ids());
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn an_alias_set_through_one_is_seen_through_the_other() {
    let server = PostgresServer::start().await.expect("postgres starts");
    let (a, b) = start_two(&server).await;
    for (name, id) in [("blue", "b"), ("green", "g")] {
        a.create_vectors(name, 1).await;
        let points = json!({"points": [{"id": id, "vector": [1, 0, 0], "text": "x"}]});
        a.put(&format!("/api/v1/collections/{name}/points"), points).await.ok();
    }
    let search = json!({"collection": "live", "vector": [1, 0, 0]});
    for (collection, expected) in [("blue", "b"), ("green", "g")] {
        a.put("/api/v1/aliases/live", json!({"collection": collection})).await.ok();
        assert_eq!(ids(&a.post("/api/v1/search", search.clone()).await.ok()), [expected], "here at once");
        until("there soon", async || {
            let there = b.post("/api/v1/search", search.clone()).await;
            there.status == StatusCode::OK && ids(&there.body) == [expected]
        })
        .await;
    }
    // Names are told apart, and a name means one thing.
    for (method, path, body, status) in [
        (Method::PUT, "/api/v1/aliases/blue", json!({"collection": "green"}), 409),
        (Method::PUT, "/api/v1/aliases/x", json!({"collection": "live"}), 400),
        (Method::PUT, "/api/v1/collections/live", json!({"dim": 3}), 409),
        (Method::PUT, "/api/v1/aliases/X", json!({"collection": "green"}), 400),
    ] {
        let answer = a.call(method.clone(), path, Some(body)).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {}", answer.body);
    }
    assert_eq!(a.delete("/api/v1/aliases/live").await.ok(), json!({"existed": true}));
    assert_eq!(a.post("/api/v1/search", search).await.status, StatusCode::NOT_FOUND);
    a.stop().await;
    b.stop().await;
}
