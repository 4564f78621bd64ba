//! What a request changes in the catalog and in the shards together: points in the place of documents, and edits whose client leaves in
//! the middle. On either engine.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use coordinator::cluster::twin::{Fault, Twin};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::embedders::{Behind, Gate};
use super::jobs::on;
use super::support::{Coordinator, DIM, Setup};
use crate::database::Database;

on_both_engines! {
    crate::edits::a_point_takes_the_whole_place_of_a_document => a_point_takes_the_whole_place_of_a_document,
    crate::edits::an_edit_is_seen_through_although_its_client_left => an_edit_is_seen_through_although_its_client_left,
}

const POINTS: &str = "/api/v1/collections/t/points";
const DELETE: &str = "/api/v1/collections/t/points:delete";
/// However busy the machine is, an edit that is held up here is still tried when it is let go.
const PATIENCE_MS: u64 = 60_000;

fn points(ids: &[&str]) -> Value {
    let point = |id: &&str| json!({"id": id, "vector": vec![1.0; DIM], "text": format!("point {id}")});
    json!({"points": ids.iter().map(point).collect::<Vec<_>>(), "timeout_ms": PATIENCE_MS})
}

async fn document(c: &Coordinator, id: &str) -> Value {
    c.get(&format!("/api/v1/documents/{id}?collection=t&include_text=true&consistency=strong")).await.ok()
}

async fn stored_bytes(c: &Coordinator) -> Value {
    c.get("/api/v1/tenants/default").await.ok()["stored_bytes"].clone()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < end, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether its shards take writes.
fn take_writes(twin: &Twin, fault: Option<Fault>) {
    (1..=3).for_each(|node| twin.set_fault(node, fault));
}

async fn a_point_takes_the_whole_place_of_a_document(database: &Database) {
    let gate = Behind::new(Gate::default());
    gate.before.is_open.store(true, Ordering::SeqCst);
    let setup = Setup { embedder: gate.clone(), workers: 1, ..on(database) };
    let twin = Arc::clone(&setup.twin);
    let c = Coordinator::start(setup).await;
    c.create_texts("t").await;
    c.upload("t", "indexed", "Its title", "ten bytes.").await;
    c.upload("t", "left", "", "ten bytes.").await;
    gate.before.is_open.store(false, Ordering::SeqCst);
    let upload = json!({"id": "waiting", "text": "ten bytes.", "collection": "t"});
    let accepted = c.post("/api/v1/documents", upload).await.ok();
    gate.before.reached.notified().await;
    assert_eq!(stored_bytes(&c).await, 30);

    // A write that fails takes nobody's upload away.
    take_writes(&twin, Some(Fault::HandsOff));
    let mut impatient = points(&["indexed", "waiting"]);
    impatient["timeout_ms"] = json!(300);
    let failed = c.put(POINTS, impatient).await;
    assert!(failed.status.is_server_error(), "{} {}", failed.status, failed.body);
    assert_eq!(stored_bytes(&c).await, 30);
    take_writes(&twin, None);

    let written = c.put(POINTS, points(&["indexed", "waiting", "of its own"])).await.ok();
    assert_eq!((&written["acked"], &written["copies_acked_min"]), (&json!(3), &json!(2)), "{written}");
    for id in ["indexed", "waiting", "of its own"] {
        let found = document(&c, id).await;
        assert_eq!((&found["text"], &found["title"]), (&json!(format!("point {id}")), &json!("")), "{found}");
        assert_eq!((&found["bytes"], &found["job_id"]), (&Value::Null, &Value::Null), "the catalog has forgotten it");
    }
    assert_eq!(document(&c, "left").await["text"], "ten bytes.");
    assert_eq!(stored_bytes(&c).await, 10, "of the one that is left");
    let job = c.get(&format!("/api/v1/jobs/{}", accepted["job_id"].as_str().expect("id"))).await.ok();
    assert_eq!(job["status"], "cancelled", "{job}");
    assert!(job["error"].to_string().contains("a point took"), "{job}");

    // The only worker is free again; what it had in hand does not come back. What is uploaded later takes the point's place.
    gate.before.is_open.store(true, Ordering::SeqCst);
    c.upload("t", "indexed", "", "ten bytes.").await;
    assert_eq!(document(&c, "indexed").await["text"], "ten bytes.");
    assert_eq!(document(&c, "waiting").await["text"], "point waiting");
    c.stop().await;
}

/// Sends a request in the background.
fn send(c: &Coordinator, method: Method, path: &str, body: &Value) -> JoinHandle<()> {
    let request = c.http.request(method, format!("{}{path}", c.base)).json(body);
    tokio::spawn(async move { drop(request.send().await) })
}

fn delete(c: &Coordinator, id: &str) -> JoinHandle<()> {
    send(c, Method::POST, DELETE, &json!({"ids": [id], "timeout_ms": PATIENCE_MS}))
}

/// Goes away and waits until the coordinator has noticed: the only request that it answers is the one that asks.
async fn leave(c: &Coordinator, request: JoinHandle<()>) {
    request.abort();
    until("it hears that the client has gone", async || {
        c.text("/metrics").await.1.contains("\nhttp_requests_in_flight 1\n")
    })
    .await;
}

async fn an_edit_is_seen_through_although_its_client_left(database: &Database) {
    let setup = on(database);
    let twin = Arc::clone(&setup.twin);
    let c = Coordinator::start(setup).await;
    c.create_texts("t").await;
    for id in ["a", "b", "c"] {
        c.upload("t", id, "", "ten bytes.").await;
    }
    let is_known = async |id: &str| document(&c, id).await["job_id"].is_string();

    // A collection that nothing can be uploaded to, and more points than one round finds.
    c.create_vectors("v", 3).await;
    c.put_circle("v", 1500).await;
    take_writes(&twin, Some(Fault::HandsOff));
    let writes = twin.calls("write");
    let all = json!({"filters": {"must": [{"field": "year", "gte": 0}]}, "timeout_ms": PATIENCE_MS});
    let deletion = send(&c, Method::POST, "/api/v1/collections/v/points:delete", &all);
    until("the first round is tried", async || twin.calls("write") > writes).await;
    leave(&c, deletion).await;
    take_writes(&twin, None);
    until("no point is left", async || twin.document_ids().len() == 3).await;

    take_writes(&twin, Some(Fault::HandsOff));
    let deletion = delete(&c, "a");
    until("the catalog has forgotten it", async || !is_known("a").await).await;
    leave(&c, deletion).await;
    assert!(twin.document_ids().contains("a"), "the shards have it still");
    take_writes(&twin, None);
    until("the shards have forgotten it", async || !twin.document_ids().contains("a")).await;

    take_writes(&twin, Some(Fault::HandsOff));
    let writes = twin.calls("write");
    let put = send(&c, Method::PUT, POINTS, &points(&["b"]));
    until("the write is tried", async || twin.calls("write") > writes).await;
    leave(&c, put).await;
    assert!(is_known("b").await);
    take_writes(&twin, None);
    until("the catalog has forgotten it", async || !is_known("b").await).await;
    assert_eq!(document(&c, "b").await["text"], "point b");

    // The process is told to stop meanwhile.
    take_writes(&twin, Some(Fault::HandsOff));
    let deletion = delete(&c, "c");
    until("the catalog has forgotten it", async || !is_known("c").await).await;
    leave(&c, deletion).await;
    // Polled in this order: it is asked to stop before the write can go through.
    tokio::join!(biased; c.stop(), async { take_writes(&twin, None) });
    assert_eq!(twin.document_ids().into_iter().collect::<Vec<_>>(), ["b"]);
}
