//! Search by vector and text, batches, filters, points in and out.

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::support::{Coordinator, Setup, ids};

#[tokio::test]
async fn points_go_in_are_found_replaced_and_deleted() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_vectors("v", 4).await;
    let written = c.put_circle("v", 20).await;
    assert_eq!((&written["acked"], &written["copies_acked_min"]), (&json!(20), &json!(2)));

    let reply = c.post("/api/v1/search", json!({"collection": "v", "vector": [1, 0, 0.1], "top_k": 3})).await.ok();
    assert_eq!(ids(&reply)[0], "p0");
    assert_eq!(reply["shards"], json!({"total": 4, "ok": 4, "failed": 0, "timed_out": 0}));
    let hit = &reply["hits"][0];
    assert_eq!(hit["chunk_id"], "p0#0");
    assert_eq!(hit["text"], "point 0");
    assert_eq!(hit["metadata"], json!({"year": 2000, "kind": "even"}));
    assert!((hit["score"].as_f64().expect("score") - 1.0).abs() < 1e-3, "{hit}");
    assert!(hit.get("vector").is_none());

    let bare = json!({"collection": "v", "vector": [1, 0, 0.1], "include": ["vector"]});
    let bare = c.post("/api/v1/search", bare).await.ok();
    assert!(bare["hits"][0].get("text").is_none());
    assert_eq!(bare["hits"][0]["vector"].as_array().map(Vec::len), Some(3));

    let moved = json!({"points": [{"id": "p0", "vector": [-1, 0, 0]}]});
    let session = c.put("/api/v1/collections/v/points", moved).await.ok()["session"].clone();
    let near =
        json!({"collection": "v", "vector": [1, 0, 0.1], "top_k": 1, "consistency": "session", "session": session});
    assert_ne!(ids(&c.post("/api/v1/search", near).await.ok()), ["p0"]);

    let gone = c.post("/api/v1/collections/v/points:delete", json!({"ids": ["p1", "p2", "never"]})).await.ok();
    assert_eq!(gone["acked"], 3);
    let everything = json!({"collection": "v", "vector": [1, 0, 0], "top_k": 100});
    let left = ids(&c.post("/api/v1/search", everything.clone()).await.ok());
    assert_eq!(left.len(), 18);
    assert!(!left.contains(&"p1".to_owned()));

    let filter =
        json!({"filters": {"must": [{"field": "kind", "eq": "odd"}], "must_not": [{"field": "year", "lt": 2010}]}});
    let gone = c.post("/api/v1/collections/v/points:delete", filter).await.ok();
    assert_eq!((&gone["acked"], gone.get("more")), (&json!(5), None));
    assert_eq!(ids(&c.post("/api/v1/search", everything).await.ok()).len(), 13);
    c.stop().await;
}

#[tokio::test]
async fn filters_hold_in_every_hit() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_vectors("v", 3).await;
    c.put_circle("v", 30).await;
    let cases: [(Value, usize); 4] = [
        (json!({"must": [{"field": "year", "gte": 2010, "lt": 2020}]}), 10),
        (json!({"should": [{"field": "year", "eq": 2001}, {"field": "year", "eq": 2002}]}), 2),
        (json!({"must": [{"field": "document_id", "in": ["p3", "p4", "none"]}]}), 2),
        (json!({"must_not": [{"field": "kind", "exists": true}]}), 0),
    ];
    for (filters, expected) in cases {
        let body = json!({"collection": "v", "vector": [1, 0, 0], "top_k": 100, "filters": filters});
        let reply = c.post("/api/v1/search", body).await.ok();
        assert_eq!(ids(&reply).len(), expected, "{filters}");
    }
    c.stop().await;
}

#[tokio::test]
async fn a_collection_may_let_filters_name_undeclared_fields() {
    let c = Coordinator::start(Setup::default()).await;
    let refused = c.put("/api/v1/collections/v", json!({"dim": 3, "fields": {"year": "scan"}})).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.body.to_string().contains("fields.year"), "{}", refused.body);
    let created = c.put("/api/v1/collections/v", json!({"dim": 3, "fields": {"*": "scan"}})).await.ok();
    assert_eq!(created["fields"], json!({"*": "scan"}));
    c.put_circle("v", 30).await;
    let filters = json!({"must": [{"field": "year", "gte": 2010, "lt": 2020}, {"field": "kind", "eq": "odd"}]});
    let body = json!({"collection": "v", "vector": [1, 0, 0], "top_k": 100, "filters": filters});
    assert_eq!(ids(&c.post("/api/v1/search", body).await.ok()).len(), 5);
    c.stop().await;
}

#[tokio::test]
async fn a_batch_answers_like_its_searches_one_by_one() {
    let c = Coordinator::start(Setup { caching: false, ..Setup::default() }).await;
    c.create_vectors("v", 3).await;
    c.create_vectors("w", 2).await;
    c.put_circle("v", 12).await;
    c.put_circle("w", 7).await;
    let searches = vec![
        json!({"collection": "v", "vector": [1, 0, 0], "top_k": 2}),
        json!({"collection": "w", "vector": [0, 1, 0], "top_k": 3}),
        json!({"collection": "v", "vector": [0, -1, 0], "top_k": 4, "filters": {"must": [{"field": "kind", "eq": "odd"}]}}),
        json!({"collection": "v", "vector": [0, 1, 0], "include": []}),
    ];
    let calls_before = c.twin.calls("search");
    let batch = c.post("/api/v1/search:batch", json!({"searches": searches})).await.ok();
    let calls = c.twin.calls("search") - calls_before;
    assert!(calls <= 9, "three groups on at most three nodes each, not {calls} streams");
    for (search, result) in searches.into_iter().zip(batch["results"].as_array().expect("results")) {
        let alone = c.post("/api/v1/search", search).await.ok();
        assert_eq!(alone["hits"], result["hits"]);
    }
    c.stop().await;
}

#[tokio::test]
async fn every_copy_gives_the_same_ranking() {
    let c = Coordinator::start(Setup { caching: false, ..Setup::default() }).await;
    c.create_vectors("v", 4).await;
    c.put_circle("v", 40).await;
    let mut replies = Vec::new();
    let mut copies = Vec::new();
    for prefer in ["primary", "replica", "node:1", "node:2", "node:3"] {
        let body =
            json!({"collection": "v", "vector": [0.3, 0.2, 0.1], "top_k": 40, "prefer_copy": prefer, "explain": true});
        let reply = c.post("/api/v1/search", body).await.ok();
        copies.push(reply["explain"]["shards"].clone());
        replies.push(reply["hits"].clone());
    }
    assert!(replies.iter().all(|hits| *hits == replies[0]));
    assert_ne!(copies[0], copies[1], "primary and replica are different copies");
    c.stop().await;
}

#[tokio::test]
async fn a_request_id_comes_back() {
    let c = Coordinator::start(Setup::default()).await;
    let request = c.http.get(format!("{}/api/v1/collections", c.base)).header("x-request-id", "mine-7");
    let answer = request.send().await.expect("answers");
    assert_eq!((answer.status(), answer.headers()["x-request-id"].as_bytes()), (StatusCode::OK, &b"mine-7"[..]));
    c.stop().await;
}
