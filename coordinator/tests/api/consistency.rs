//! Session and strong reads over copies that lag, and writes while primaries change.

use std::time::{Duration, Instant};

use coordinator::cluster::twin::Fault;
use coordinator::retrieve::session::Session;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::support::{Coordinator, Setup, ids};

const SHARDS: u32 = 3;

/// Points on three nodes, two copies each, without a cache.
async fn start() -> Coordinator {
    let c = Coordinator::start(Setup { caching: false, ..Setup::default() }).await;
    c.create_vectors("v", SHARDS).await;
    c.put_circle("v", 12).await;
    c
}

async fn put(c: &Coordinator, id: &str) -> Value {
    let point = json!({"id": id, "vector": [1, 0, 0], "text": "new"});
    c.put("/api/v1/collections/v/points", json!({"points": [point]})).await.ok()["session"].clone()
}

fn search(level: &str, session: &Value) -> Value {
    let mut body = json!({"collection": "v", "vector": [1, 0, 0], "top_k": 50, "consistency": level, "explain": true});
    if session.is_string() {
        body["session"] = session.clone();
    }
    body
}

fn parse(token: &Value) -> Session {
    Session::parse(token.as_str().expect("a token")).expect("parses")
}

/// Whether `later` has seen whatever `earlier` has.
fn covers(later: &Session, earlier: &Session) -> bool {
    let mut merged = later.clone();
    merged.merge(earlier);
    merged == *later
}

#[tokio::test]
async fn a_session_sees_its_writes_and_never_less_than_before_whichever_copy_answers() {
    let c = start().await;
    let mut session = Value::Null;
    for round in 0..12_u64 {
        let lagging = round % 3 + 1;
        c.twin.hold_back(lagging);
        let id = format!("new{round}");
        let point = json!({"id": id, "vector": [1, 0, 0]});
        let mut body = json!({"points": [point]});
        if session.is_string() {
            body["session"] = session.clone();
        }
        let before = if session.is_string() { parse(&session) } else { Session::default() };
        session = c.put("/api/v1/collections/v/points", body).await.ok()["session"].clone();
        assert!(covers(&parse(&session), &before), "a write gives the session back, raised");
        for prefer in ["primary", "replica", "node:1", "node:2", "node:3"] {
            let mut body = search("session", &session);
            body["prefer_copy"] = json!(prefer);
            let reply = c.post("/api/v1/search", body).await.ok();
            assert!(ids(&reply).contains(&id), "round {round}, {prefer}");
            assert!(covers(&parse(&reply["session"]), &parse(&session)), "{} < {session}", reply["session"]);
            session = reply["session"].clone();
        }
        c.twin.let_go(lagging);
    }
    c.stop().await;
}

#[tokio::test]
async fn any_copy_that_has_caught_up_serves_a_session() {
    let c = start().await;
    let session = put(&c, "new").await;
    let mut copies = std::collections::BTreeSet::new();
    for _ in 0..30 {
        let reply = c.post("/api/v1/search", search("session", &session)).await.ok();
        assert!(ids(&reply).contains(&"new".to_owned()));
        let shards = reply["explain"]["shards"].as_array().expect("explained");
        copies.extend(shards.iter().map(|shard| shard["copy"].as_u64().expect("copy")));
    }
    assert!(copies.len() > SHARDS as usize, "not only primaries answered: {copies:?}");
    c.stop().await;
}

#[tokio::test]
async fn an_eventual_read_may_be_old_up_to_the_caller_s_bound() {
    let c = start().await;
    let (_, _, others) = c.twin.place_of("v", "new");
    let lagging = others[0].0;
    c.twin.hold_back(lagging);
    put(&c, "new").await;
    let read = async |max_staleness_ms: Option<u64>| {
        let mut body = search("eventual", &Value::Null);
        body["prefer_copy"] = json!(format!("node:{lagging}"));
        if let Some(bound) = max_staleness_ms {
            body["max_staleness_ms"] = json!(bound);
        }
        ids(&c.post("/api/v1/search", body).await.ok()).contains(&"new".to_owned())
    };
    assert!(!read(None).await, "the copy lags");
    assert!(read(Some(0)).await, "another one is asked");
    c.stop().await;
}

#[tokio::test]
async fn strong_reads_are_served_by_every_search_call_and_never_from_the_cache() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_vectors("v", SHARDS).await;
    c.put_circle("v", 12).await;
    let strong = search("strong", &Value::Null);
    let first = c.post("/api/v1/search", strong.clone()).await.ok();
    let calls = c.twin.calls("search");
    let second = c.post("/api/v1/search", strong.clone()).await.ok();
    assert_eq!((&first["hits"], &second["explain"]["cached"]), (&second["hits"], &json!(false)));
    assert!(c.twin.calls("search") > calls, "asked again");
    let batch = c.post("/api/v1/search:batch", json!({"searches": [strong.clone(), strong.clone()]})).await.ok();
    assert_eq!(batch["results"][1]["hits"], first["hits"]);

    // Nobody tells the coordinator that the primaries of node 1 moved: the refusal does.
    c.twin.fail_over(1, false);
    let after = c.post("/api/v1/search", strong).await.ok();
    assert_eq!(after["hits"], first["hits"]);
    c.create_texts("t").await;
    c.upload("t", "doc", "Title", "The wing makes the lift. The engine makes the noise.").await;
    let question = json!({"query": "lift", "collection": "t", "consistency": "strong"});
    let answer = c.post("/api/v1/query", question).await.ok();
    assert_eq!(answer["shards"]["ok"], 3);
    c.stop().await;
}

#[tokio::test]
async fn a_token_of_before_a_recovery_with_data_loss_is_refused_with_a_hint() {
    let c = start().await;
    let session = put(&c, "new").await;
    c.twin.force_promote(c.twin.place_of("v", "new").0);
    let refused = c.post("/api/v1/search", search("session", &session)).await;
    assert_eq!((refused.status, &refused.body["error"]["type"]), (StatusCode::CONFLICT, &json!("token_void")));
    let error = &refused.body["error"];
    assert_eq!(error["retryable"], false);
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("drop the session token")), "{error}");
    c.post("/api/v1/search", search("eventual", &session)).await.ok();
    c.stop().await;
}

#[tokio::test]
async fn texts_come_from_a_copy_that_has_what_was_found() {
    let c = start().await;
    let (_, primary, others) = c.twin.place_of("v", "new");
    others.iter().for_each(|node| c.twin.hold_back(node.0));
    c.twin.set_fault(primary.0, Some(Fault::LosesTexts));
    let session = put(&c, "new").await;
    // The primary found it, its connection broke, and the other copy does not have it yet: an error, not a shorter answer.
    let mut body = search("session", &session);
    body["timeout_ms"] = json!(2000);
    let refused = c.post("/api/v1/search", body.clone()).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.body);
    others.iter().for_each(|node| c.twin.let_go(node.0));
    let found = ids(&c.post("/api/v1/search", body).await.ok());
    assert!(found.contains(&"new".to_owned()), "{found:?}");
    c.stop().await;
}

#[tokio::test]
async fn a_document_is_read_at_the_caller_s_session() {
    let c = start().await;
    let (_, primary, others) = c.twin.place_of("v", "new");
    let session = put(&c, "new").await;
    let token = session.as_str().expect("token");
    for level in ["session", "strong"] {
        let read = c.get(&format!("/api/v1/documents/new?collection=v&consistency={level}&session={token}")).await.ok();
        assert!(covers(&parse(&read["session"]), &parse(&session)));
        let list = c.get(&format!("/api/v1/documents?collection=v&consistency={level}&session={token}")).await.ok();
        assert!(list["documents"].as_array().expect("documents").iter().any(|document| document["id"] == "new"));
        assert!(covers(&parse(&list["session"]), &parse(&session)));
    }

    // With the primary gone and the other copy behind, "not yet" is not answered as "gone".
    others.iter().for_each(|node| c.twin.hold_back(node.0));
    let deleted = c.delete(&format!("/api/v1/documents/new?collection=v&session={token}")).await.ok();
    assert!(covers(&parse(&deleted["session"]), &parse(&session)));
    let token = deleted["session"].as_str().expect("token");
    c.twin.set_fault(primary.0, Some(Fault::Refuses));
    c.get("/api/v1/documents/new?collection=v").await.ok();
    let path = format!("/api/v1/documents/new?collection=v&consistency=session&session={token}");
    let asked = c.twin.calls("fetch");
    let (read, ()) = tokio::join!(c.get(&path), async {
        while c.twin.calls("fetch") < asked + 2 {
            tokio::task::yield_now().await;
        }
        others.iter().for_each(|node| c.twin.let_go(node.0));
    });
    assert_eq!(read.status, StatusCode::NOT_FOUND, "{}", read.body);
    for bad in ["consistency=weak", "session=zz"] {
        let refused = c.get(&format!("/api/v1/documents/new?collection=v&{bad}")).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{bad}");
    }
    c.stop().await;
}

#[tokio::test]
async fn a_hand_off_costs_no_write() {
    let c = start().await;
    c.twin.set_fault(1, Some(Fault::HandsOff));
    let calls = c.twin.calls("write");
    let (written, ()) = tokio::join!(c.put_circle("v", 30), async {
        while c.twin.calls("write") < calls + 8 {
            tokio::task::yield_now().await;
        }
        c.twin.fail_over(1, true);
    });
    assert_eq!(written["acked"], 30);
    c.stop().await;
}

#[tokio::test]
async fn a_primary_that_was_replaced_is_not_waited_for() {
    let c = start().await;
    c.twin.set_fault(1, Some(Fault::Silent));
    let (applied, calls, began) = (c.twin.applied_total(), c.twin.calls("write"), Instant::now());
    let (written, ()) = tokio::join!(c.put_circle("v", 30), async {
        while c.twin.calls("write") < calls + u64::from(SHARDS) {
            tokio::task::yield_now().await;
        }
        c.twin.fail_over(1, true);
    });
    assert_eq!(written["acked"], 30);
    assert_eq!(c.twin.applied_total() - applied, u64::from(SHARDS));
    assert!(began.elapsed() < Duration::from_secs(5), "the silent one would have been given up after that");
    c.stop().await;
}

/// The sample of that name and labels.
fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {metrics}"));
    line.rsplit(' ').next().expect("a value").parse().expect("a number")
}

#[tokio::test]
async fn ranks_requests_hedges_and_ejections_are_metrics() {
    let c = start().await;
    c.twin.set_fault(2, Some(Fault::Silent));
    // Several searches in one call are not hedged, so the silent node is waited for each time that it is asked first. Its trials fail
    // too, and each time out is twice as long as the one before: it is soon seen to be out.
    let mut asked = search("eventual", &Value::Null);
    asked["prefer_copy"] = json!("node:2");
    let mut calls = 0;
    let metrics = loop {
        c.post("/api/v1/search:batch", json!({"searches": [asked.clone(), asked.clone()]})).await.ok();
        c.post("/api/v1/search", search("eventual", &Value::Null)).await.ok();
        calls += 1;
        let (_, text) = c.text("/metrics").await;
        if value(&text, "node_ejected{node=\"2\"}") == 1.0 {
            break text;
        }
        assert!(calls < 40, "never ejected: {text}");
    };
    assert!(value(&metrics, "node_ejections_total") >= 1.0);
    assert!(value(&metrics, "node_rank_us{node=\"1\"}") > 0.0);
    assert!(value(&metrics, "shard_requests_total") >= f64::from(2 * calls * SHARDS));
    assert!(value(&metrics, "hedges_total{outcome=\"sent\"}") <= 10.0 + value(&metrics, "shard_requests_total") / 20.0);
    c.stop().await;
}
