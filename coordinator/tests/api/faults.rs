//! Nodes that refuse, keep silent, lose acknowledgements or hand over the primary role.

use std::sync::Arc;

use coordinator::cluster::twin::Fault;
use reqwest::StatusCode;
use serde_json::json;

use super::support::{Coordinator, Setup, ids};

async fn with_points() -> Coordinator {
    let c = Coordinator::start(Setup { caching: false, ..Setup::default() }).await;
    c.create_vectors("v", 6).await;
    c.put_circle("v", 30).await;
    c
}

#[tokio::test]
async fn one_bad_node_costs_no_search_its_completeness() {
    let c = with_points().await;
    let search = json!({"collection": "v", "vector": [1, 0, 0], "top_k": 30});
    let whole = ids(&c.post("/api/v1/search", search.clone()).await.ok());
    for fault in [Fault::Refuses, Fault::Overloaded, Fault::Silent] {
        for node in 1..=3 {
            c.twin.set_fault(node, Some(fault));
            let reply = c.post("/api/v1/search", search.clone()).await.ok();
            assert_eq!(ids(&reply), whole, "{fault:?} on node {node}");
            assert_eq!(reply["shards"], json!({"total": 6, "ok": 6, "failed": 0, "timed_out": 0}));
            c.twin.set_fault(node, None);
        }
    }
    c.stop().await;
}

#[tokio::test]
async fn a_missing_shard_is_an_error_unless_less_is_enough() {
    let c = with_points().await;
    // Copies of shard i are on nodes i+1 and i+2 (modulo 3): with two nodes gone, two shards of six have no copy left.
    c.twin.set_fault(1, Some(Fault::Refuses));
    c.twin.set_fault(2, Some(Fault::Refuses));
    let search = |min_coverage: f64, timeout_ms: u64| json!({"collection": "v", "vector": [1, 0, 0], "top_k": 30, "min_coverage": min_coverage, "timeout_ms": timeout_ms});
    let refused = c.post("/api/v1/search", search(1.0, 5000)).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.body);
    assert!(refused.headers.contains_key("retry-after"));
    let error = &refused.body["error"];
    assert_eq!((&error["type"], &error["retryable"]), (&json!("unavailable"), &json!(true)));
    assert_eq!(error["shards"], json!({"total": 6, "ok": 4, "failed": 2, "timed_out": 0}));

    let partial = c.post("/api/v1/search", search(0.5, 5000)).await.ok();
    assert_eq!(partial["shards"], json!({"total": 6, "ok": 4, "failed": 2, "timed_out": 0}));
    assert!(!ids(&partial).is_empty());

    c.twin.set_fault(1, Some(Fault::Silent));
    c.twin.set_fault(2, Some(Fault::Silent));
    let late = c.post("/api/v1/search", search(1.0, 700)).await;
    assert_eq!((late.status, &late.body["error"]["type"]), (StatusCode::GATEWAY_TIMEOUT, &json!("deadline_exceeded")));
    assert_eq!(late.body["error"]["shards"]["timed_out"], 2);
    c.stop().await;
}

#[tokio::test]
async fn writes_follow_the_primary_without_waiting_for_the_watch() {
    let c = with_points().await;
    // The state changes, nobody tells the coordinator: it learns the register from the refusal.
    c.twin.fail_over(1, false);
    let written = c.put_circle("v", 30).await;
    assert_eq!(written["acked"], 30);
    c.stop().await;
}

/// A primary is cut off together with whoever told the coordinator of the state: nothing refuses, nothing is announced.
#[tokio::test]
async fn a_write_that_nobody_answers_looks_for_another_primary() {
    let c = with_points().await;
    c.twin.set_fault(1, Some(Fault::Silent));
    c.twin.fail_over(1, false);
    let written = c.put_circle("v", 30).await;
    assert_eq!(written["acked"], 30);
    c.stop().await;
}

#[tokio::test]
async fn a_lost_acknowledgement_is_asked_for_again_and_applied_once() {
    let c = with_points().await;
    let applied = c.twin.applied_total();
    for node in 1..=3 {
        c.twin.set_fault(node, Some(Fault::LosesAcks));
    }
    let calls = c.twin.calls("write");
    let twin = Arc::clone(&c.twin);
    let heal = tokio::spawn(async move {
        while twin.calls("write") < calls + 12 {
            tokio::task::yield_now().await;
        }
        (1..=3).for_each(|node| twin.set_fault(node, None));
    });
    let written = c.put_circle("v", 30).await;
    heal.await.expect("healed");
    assert_eq!(written["acked"], 30);
    assert_eq!(c.twin.applied_total() - applied, 6, "one operation per shard, however often it was sent");
    c.stop().await;
}

#[tokio::test]
async fn a_write_that_cannot_be_is_an_error_that_counts() {
    let c = with_points().await;
    c.twin.set_fault(1, Some(Fault::Refuses));
    let point = |id: usize| json!({"id": format!("p{id}"), "vector": [1, 0, 0]});
    let points: Vec<_> = (0..30).map(point).collect();
    let failed = c.put("/api/v1/collections/v/points", json!({"points": points, "timeout_ms": 300})).await;
    assert_eq!(failed.status, StatusCode::SERVICE_UNAVAILABLE, "{}", failed.body);
    assert!(failed.headers.contains_key("retry-after"));
    let message = failed.body["error"]["message"].as_str().expect("message");
    assert!(message.contains("of 30 operations were acknowledged"), "{message}");
    c.stop().await;
}

#[tokio::test]
async fn a_full_disk_is_told_with_the_nodes_own_advice() {
    let c = with_points().await;
    (1..=3).for_each(|node| c.twin.set_fault(node, Some(Fault::Full)));
    let point = json!({"points": [{"id": "p", "vector": [1, 0, 0]}]});
    let refused = c.put("/api/v1/collections/v/points", point).await;
    let error = &refused.body["error"];
    assert_eq!((refused.status.as_u16(), &error["type"]), (507, &json!("storage_full")), "{error}");
    assert_eq!(error["hint"], "delete documents");
    c.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_the_search_on_the_nodes() {
    let c = with_points().await;
    for node in 1..=3 {
        c.twin.set_fault(node, Some(Fault::Silent));
    }
    let body = json!({"collection": "v", "vector": [1, 0, 0], "timeout_ms": 60000});
    let request = c.http.post(format!("{}/api/v1/search", c.base)).json(&body).send();
    let waiting = tokio::spawn(request);
    while c.twin.live_streams() == 0 {
        tokio::task::yield_now().await;
    }
    waiting.abort();
    while c.twin.live_streams() > 0 {
        tokio::task::yield_now().await;
    }
    c.stop().await;
}

#[tokio::test]
async fn a_collection_that_finds_no_room_is_refused_at_once() {
    let c = Coordinator::start(Setup::default()).await;
    (1..=3).for_each(|node| c.twin.set_fault(node, Some(Fault::NoRoom)));
    let refused = c.put("/api/v1/collections/a", json!({"dim": 3})).await;
    assert_eq!(refused.status, StatusCode::INSUFFICIENT_STORAGE, "{}", refused.body);
    let error = &refused.body["error"];
    assert_eq!((&error["type"], &error["retryable"]), (&json!("storage_full"), &json!(true)), "{error}");
    assert_eq!(c.twin.calls("create_collection"), 1, "what the leader decided is not asked of others, nor again");
    c.stop().await;
}
