//! Deleting documents by id and by filter: after the acknowledgement nothing of them is left anywhere, on either engine.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use coordinator::cluster::twin::Fault;
use reqwest::StatusCode;
use serde_json::json;

use super::embedders::{Behind, Gate};
use super::jobs::on;
use super::support::{Coordinator, DIM, Setup, ids};
use crate::database::Database;

on_both_engines! {
    crate::deletion::a_deletion_by_id_or_filter_leaves_nothing => a_deletion_by_id_or_filter_leaves_nothing,
    crate::deletion::a_deletion_that_failed_half_way_can_be_repeated => a_deletion_that_failed_half_way_can_be_repeated,
}

const DELETE: &str = "/api/v1/collections/t/points:delete";

async fn create_collection(c: &Coordinator) {
    let spec = json!({"embedder": "fake-hash-16", "shards": 3, "copies": 2, "fields": {"year": "integer"}});
    c.put("/api/v1/collections/t", spec).await.ok();
}

/// Posts a document and gives its job's id.
async fn post(c: &Coordinator, id: &str, text: &str, year: u32) -> String {
    let body = json!({"id": id, "text": text, "collection": "t", "metadata": {"year": year}});
    let accepted = c.post("/api/v1/documents", body).await.ok();
    accepted["job_id"].as_str().expect("id").to_owned()
}

async fn index(c: &Coordinator, id: &str, text: &str, year: u32) {
    let job = post(c, id, text, year).await;
    assert_eq!(c.follow_job(&job).await["status"], "done");
}

async fn assert_gone(c: &Coordinator, id: &str) {
    let answer = c.get(&format!("/api/v1/documents/{id}?collection=t&include_text=true&consistency=strong")).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND, "{id}: {}", answer.body);
}

async fn stored_bytes(c: &Coordinator) -> u64 {
    c.get("/api/v1/tenants/default").await.ok()["stored_bytes"].as_u64().expect("a number")
}

async fn a_deletion_by_id_or_filter_leaves_nothing(database: &Database) {
    let gate = Behind::new(Gate::default());
    gate.before.is_open.store(true, Ordering::SeqCst);
    let setup = Setup { embedder: gate.clone(), workers: 1, ..on(database) };
    let twin = Arc::clone(&setup.twin);
    let c = Coordinator::start(setup).await;
    create_collection(&c).await;
    for (id, year) in [("a", 1), ("b", 1), ("c", 2), ("d", 3)] {
        index(&c, id, "ten bytes.", year).await;
    }
    let point = json!({"points": [{"id": "point", "vector": vec![1.0; DIM], "text": "x", "metadata": {"year": 1}}]});
    c.put("/api/v1/collections/t/points", point).await.ok();
    // A newer version of one is being worked on, another one waits, and one was never indexed.
    gate.before.is_open.store(false, Ordering::SeqCst);
    let at_work = post(&c, "b", "a newer version", 1).await;
    gate.before.reached.notified().await;
    let (waiting, fresh) = (post(&c, "c", "a newer version", 2).await, post(&c, "fresh", "words", 2).await);
    assert_eq!(stored_bytes(&c).await, 10 + 15 + 15 + 10 + 5);

    let by_filter = c.post(DELETE, json!({"filters": {"must": [{"field": "year", "eq": 1}]}})).await.ok();
    assert_eq!((&by_filter["acked"], &by_filter["copies_acked_min"]), (&json!(3), &json!(2)), "a, b and the point");
    let by_id = c.post(DELETE, json!({"ids": ["c", "fresh", "never there"]})).await.ok();
    assert_eq!(by_id["acked"], 3);
    for id in ["a", "b", "c", "fresh", "point", "never there"] {
        assert_gone(&c, id).await;
    }
    assert_eq!(stored_bytes(&c).await, 10, "of d");
    for job in [at_work, waiting, fresh] {
        let job = c.get(&format!("/api/v1/jobs/{job}")).await.ok();
        assert_eq!(job["status"], "cancelled", "{job}");
    }
    // The only worker is free again, and nothing that it did before comes after.
    gate.before.is_open.store(true, Ordering::SeqCst);
    index(&c, "e", "words", 4).await;
    assert_eq!(twin.document_ids().into_iter().collect::<Vec<_>>(), ["d", "e"]);
    let listed = c.get("/api/v1/documents?collection=t").await.ok();
    let listed: Vec<_> = listed["documents"].as_array().expect("documents").iter().map(|d| d["id"].clone()).collect();
    assert_eq!(listed, ["d", "e"]);
    // What was deleted can come again.
    index(&c, "a", "ten bytes.", 1).await;
    let search = json!({"collection": "t", "query": "bytes", "consistency": "strong", "top_k": 10,
        "filters": {"must": [{"field": "year", "lte": 2}]}});
    assert_eq!(ids(&c.post("/api/v1/search", search).await.ok()), ["a"]);
    c.stop().await;
}

/// The catalog has forgotten the documents and the shards have not: what was not acknowledged is found again, by filter, too.
async fn a_deletion_that_failed_half_way_can_be_repeated(database: &Database) {
    let setup = on(database);
    let twin = Arc::clone(&setup.twin);
    let c = Coordinator::start(setup).await;
    create_collection(&c).await;
    index(&c, "a", "words", 1).await;
    index(&c, "b", "words", 2).await;
    let by_filter = json!({"filters": {"must": [{"field": "year", "eq": 1}]}, "timeout_ms": 300});
    let by_id = json!({"ids": ["b"], "timeout_ms": 300});
    for node in 1..=3 {
        twin.set_fault(node, Some(Fault::HandsOff));
    }
    for body in [&by_filter, &by_id] {
        let answer = c.post(DELETE, body.clone()).await;
        assert!(answer.status.is_server_error(), "{} {}", answer.status, answer.body);
    }
    assert_eq!(twin.document_ids().len(), 2, "nothing was acknowledged, nothing is deleted there");
    for node in 1..=3 {
        twin.set_fault(node, None);
    }
    let patient = |mut body: serde_json::Value| {
        body["timeout_ms"] = json!(10_000);
        body
    };
    for body in [by_filter, by_id] {
        assert_eq!(c.post(DELETE, patient(body)).await.ok()["acked"], 1);
    }
    for id in ["a", "b"] {
        assert_gone(&c, id).await;
    }
    assert!(twin.document_ids().is_empty());
    assert_eq!(stored_bytes(&c).await, 0);
    c.stop().await;
}
