//! Jobs over the death of the process, cancellation, and failures that pass: on either engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cluster_config::ids::{DocumentKey, OperationId};
use cluster_config::operation::Operation;
use coordinator::cluster::client::{NodeClient, NodeWrite};
use coordinator::cluster::twin::{Fault, Twin, TwinClient};
use coordinator::embed::{EmbedError, Purpose};
use coordinator::startup::Running;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::json;
use sqlx::{AnyConnection, Connection, Executor};

use super::embedders::{Before, Behind, Gate};
use super::support::{Coordinator, Setup, ids, parts};
use crate::database::Database;

on_both_engines! {
    crate::jobs::a_job_survives_the_process_and_runs_once => a_job_survives_the_process_and_runs_once,
    crate::jobs::a_lost_acknowledgement_doubles_nothing => a_lost_acknowledgement_doubles_nothing,
    crate::jobs::a_cancelled_job_writes_nothing_and_a_stopped_process_gives_its_job_back => a_cancelled_job_writes_nothing_and_a_stopped_process_gives_its_job_back,
    crate::jobs::a_write_under_way_ends_before_the_process => a_write_under_way_ends_before_the_process,
    crate::jobs::a_failed_job_is_listed_and_retried => a_failed_job_is_listed_and_retried,
    crate::jobs::the_same_upload_is_not_indexed_again_unless_something_took_its_place => the_same_upload_is_not_indexed_again_unless_something_took_its_place,
    crate::jobs::steps_that_are_done_are_not_done_again => steps_that_are_done_are_not_done_again,
    crate::jobs::a_cancelled_job_stops_at_once_and_can_be_retried => a_cancelled_job_stops_at_once_and_can_be_retried,
}

pub(crate) fn on(database: &Database) -> Setup {
    Setup { catalog_url: Some(database.url.clone()), ..Setup::default() }
}

/// The catalog of a dead process as the next one finds it, if that is another than before: in this process the dead one's file is still
/// held by leaked state, so the next one takes a copy. On a server the dead one's lease has to run out.
fn left_behind(database: &Database) -> Option<Database> {
    if database.is_postgres() {
        return None;
    }
    let copy = Database::sqlite();
    let file = |database: &Database| database.url.trim_start_matches("sqlite://").to_owned();
    for suffix in ["", "-wal"] {
        std::fs::copy(file(database) + suffix, file(&copy) + suffix).expect("copies");
    }
    Some(copy)
}

/// The process dies in the middle of a job: nothing is given back, nothing is said goodbye to.
async fn a_job_survives_the_process_and_runs_once(database: &Database) {
    let gate = Behind::new(Gate::default());
    let first = Setup { embedder: gate.clone(), workers: 0, ..on(database) };
    let twin = Arc::clone(&first.twin);
    let c = Coordinator::start(first).await;
    c.create_texts("t").await;
    let accepted =
        c.post("/api/v1/documents", json!({"id": "d", "text": "words to keep", "collection": "t"})).await.ok();
    c.stop().await;

    // A life that claims the job, gets as far as embedding, and ends by abort.
    let runtime = std::thread::spawn({
        let mut setup = Setup { twin: Arc::clone(&twin), embedder: gate.clone(), workers: 1, ..Setup::default() };
        // Its claim outlives it for so long.
        setup.catalog.lease = Duration::from_secs(2);
        let url = database.url.clone();
        let gate = gate.clone();
        move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
            runtime.block_on(async {
                let running = Running::start(parts(&setup, &url)).await.expect("starts");
                gate.before.reached.notified().await;
                std::mem::forget(running.services.clone());
            });
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    });
    runtime.join().expect("ends");
    assert_eq!(twin.applied_total(), 0, "it had not come to writing");

    gate.before.is_open.store(true, Ordering::SeqCst);
    let left = left_behind(database);
    let second = Setup { twin: Arc::clone(&twin), embedder: gate, ..on(left.as_ref().unwrap_or(database)) };
    let c = Coordinator::start(second).await;
    let job = c.follow_job(accepted["job_id"].as_str().expect("id")).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("done"), &json!(2)), "{job}");
    assert_eq!(twin.applied_total(), 1);
    assert_eq!(ids(&c.post("/api/v1/search", json!({"collection": "t", "query": "words"})).await.ok()), ["d"]);
    c.stop().await;
}

/// The write was acknowledged by the shard but the process died before it noted so: the second run is the same operation.
async fn a_lost_acknowledgement_doubles_nothing(database: &Database) {
    let setup = on(database);
    let twin = Arc::clone(&setup.twin);
    let c = Coordinator::start(setup).await;
    c.create_texts("t").await;
    for node in 1..=3 {
        twin.set_fault(node, Some(Fault::LosesAcks));
    }
    let accepted = c.post("/api/v1/documents", json!({"id": "d", "text": "words", "collection": "t"})).await.ok();
    while twin.applied_total() == 0 || twin.calls("write") < 3 {
        tokio::task::yield_now().await;
    }
    for node in 1..=3 {
        twin.set_fault(node, None);
    }
    let job = c.follow_job(accepted["job_id"].as_str().expect("id")).await;
    assert_eq!(job["status"], "done", "{job}");
    assert_eq!(twin.applied_total(), 1, "retries carry the same operation id");
    c.stop().await;
}

async fn a_cancelled_job_writes_nothing_and_a_stopped_process_gives_its_job_back(database: &Database) {
    let gate = Behind::new(Gate::default());
    let setup = Setup { embedder: gate.clone(), workers: 2, ..on(database) };
    let twin = Arc::clone(&setup.twin);
    let c = Coordinator::start(setup).await;
    c.create_texts("t").await;
    let cancelled = c.post("/api/v1/documents", json!({"id": "a", "text": "one", "collection": "t"})).await.ok();
    gate.before.reached.notified().await;
    let kept = c.post("/api/v1/documents", json!({"id": "b", "text": "two", "collection": "t"})).await.ok();
    gate.before.reached.notified().await;
    let job_path = format!("/api/v1/jobs/{}", cancelled["job_id"].as_str().expect("id"));
    assert_eq!(c.delete(&job_path).await.ok()["status"], "cancelled");
    c.stop().await;

    gate.before.is_open.store(true, Ordering::SeqCst);
    let again = Setup { twin: Arc::clone(&twin), embedder: gate, ..on(database) };
    let c = Coordinator::start(again).await;
    let job = c.follow_job(kept["job_id"].as_str().expect("id")).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("done"), &json!(1)), "given back, not tried: {job}");
    assert_eq!(c.get(&job_path).await.ok()["status"], "cancelled");
    assert_eq!(twin.document_ids().into_iter().collect::<Vec<_>>(), ["b"]);
    c.stop().await;
}

/// The process is told to stop while a document's write is under way: that is waited for, so the job is done and nothing comes later.
async fn a_write_under_way_ends_before_the_process(database: &Database) {
    let setup = Setup { workers: 0, ..on(database) };
    let twin = Arc::clone(&setup.twin);
    let c = Coordinator::start(setup).await;
    c.create_texts("t").await;
    let accepted = c.post("/api/v1/documents", json!({"id": "d", "text": "words", "collection": "t"})).await.ok();
    c.stop().await;

    let refuse_writes = |fault: Option<Fault>| (1..=3).for_each(|node| twin.set_fault(node, fault));
    refuse_writes(Some(Fault::HandsOff));
    let setup = Setup { twin: Arc::clone(&twin), workers: 1, ..on(database) };
    let running = Running::start(parts(&setup, &database.url)).await.expect("starts");
    while twin.calls("write") == 0 {
        tokio::task::yield_now().await;
    }
    // Polled in this order: it is asked to stop before the write can go through.
    tokio::join!(biased; running.close(), async { refuse_writes(None) });
    assert_eq!(twin.document_ids().into_iter().collect::<Vec<_>>(), ["d"]);

    let c = Coordinator::start(Setup { twin: Arc::clone(&twin), workers: 0, ..on(database) }).await;
    let job = c.get(&format!("/api/v1/jobs/{}", accepted["job_id"].as_str().expect("id"))).await.ok();
    assert_eq!(job["status"], "done", "{job}");
    c.stop().await;
}

/// An SQLite file has one owner; a Postgres may have several (`two_coordinators`).
#[tokio::test]
async fn one_process_at_a_time_has_the_catalog() {
    let database = Database::sqlite();
    let c = Coordinator::start(on(&database)).await;
    let second = Running::start(parts(&Setup::default(), &database.url)).await.map(|_| ());
    assert!(second.expect_err("is refused").to_string().contains("in use by another process"));
    c.stop().await;
    let again = Running::start(parts(&Setup::default(), &database.url)).await.expect("the lock is free again");
    again.close().await;
}

/// The shards are away for so long that the job is given up; a day later somebody tries it again.
async fn a_failed_job_is_listed_and_retried(database: &Database) {
    let setup = on(database);
    let c = Coordinator::start(setup).await;
    c.create_texts("t").await;
    c.create_texts("other").await;
    let broken = c.upload_file("t", "b", "broken.pdf", b"%PDF-1.4 nothing more").await;
    assert_eq!(broken["status"], "failed", "{broken}");
    c.upload("t", "good", "", "words").await;
    let failed = c.get("/api/v1/jobs?status=failed&collection=t").await.ok();
    assert_eq!(failed["jobs"].as_array().expect("jobs").len(), 1, "{failed}");
    assert_eq!((&failed["jobs"][0]["id"], &failed["jobs"][0]["document_id"]), (&broken["id"], &json!("b")));
    assert_eq!(c.get("/api/v1/jobs?status=failed&collection=other").await.ok()["jobs"], json!([]));
    let first = c.get("/api/v1/jobs?limit=1").await.ok();
    let next =
        c.get(&format!("/api/v1/jobs?limit=1&cursor={}", first["next_cursor"].as_str().expect("more"))).await.ok();
    assert_ne!(first["jobs"][0]["id"], next["jobs"][0]["id"]);
    assert_eq!(next["next_cursor"], json!(null));
    assert_eq!(c.get("/api/v1/jobs?status=lost").await.status, 400);

    let retry = format!("/api/v1/jobs/{}/retry", broken["id"].as_str().expect("id"));
    let again = c.post(&retry, json!({})).await;
    assert_eq!(again.status, 202, "{}", again.body);
    let job = c.follow_job(broken["id"].as_str().expect("id")).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("failed"), &json!(2)), "it was tried again: {job}");
    // Uploaded anew, the old job has nothing to try any more.
    c.upload("t", "b", "", "readable").await;
    let refused = c.post(&retry, json!({})).await;
    assert_eq!((refused.status.as_u16(), &refused.body["error"]["type"]), (409, &json!("conflict")));
    c.stop().await;
}

async fn the_same_upload_is_not_indexed_again_unless_something_took_its_place(database: &Database) {
    let setup = on(database);
    let twin = Arc::clone(&setup.twin);
    let c = Coordinator::start(setup).await;
    c.create_texts("t").await;
    let first = c.upload("t", "d", "Title", "words to keep").await;
    let applied = twin.applied_total();
    let again = c.upload("t", "d", "Title", "words to keep").await;
    assert_eq!((&again["status"], &again["chunk_count"]), (&json!("done"), &first["chunk_count"]), "{again}");
    assert_ne!(again["id"], first["id"]);
    assert_eq!(twin.applied_total(), applied, "nothing was written");
    let document = c.get("/api/v1/documents/d?collection=t&include_text=true").await.ok();
    assert_eq!((&document["status"], &document["text"]), (&json!("ready"), &json!("words to keep")));

    // Another title makes another document.
    c.upload("t", "d", "Other", "words to keep").await;
    assert_eq!(twin.applied_total(), applied + 1);
    // Gone from its shard without the catalog's knowing, as after the death of a process between the two.
    remove_from_shard(&twin, "t", "d").await;
    assert_eq!(c.upload("t", "d", "Other", "words to keep").await["status"], "done");
    let found =
        c.post("/api/v1/search", json!({"collection": "t", "query": "words", "consistency": "strong"})).await.ok();
    assert_eq!(found["hits"][0]["text"], "words to keep", "it was indexed again");
    c.stop().await;
}

async fn remove_from_shard(twin: &Arc<Twin>, collection: &str, document_id: &str) {
    let (shard, primary, _) = twin.place_of(collection, document_id);
    let mut target = None;
    twin.change_silently(|state| {
        let group = &state.shards[&shard];
        target = group.primary_copy().map(|copy| group.target(copy));
    });
    let key = DocumentKey::with_tenant("default", document_id).expect("an id");
    let write = NodeWrite {
        target: target.expect("has a primary"),
        operation_id: OperationId(1),
        operations: Arc::new(vec![Operation::DeleteDocument { key }]),
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    TwinClient(Arc::clone(twin)).write(primary, write, deadline).await.expect("is written");
}

/// Counts the calls and, until it is mended, refuses them after so many.
struct Tired {
    calls: AtomicUsize,
    calls_max: AtomicUsize,
}

impl Before for Tired {
    fn before(&self, _: &[String], _: Purpose) -> BoxFuture<'_, Result<(), EmbedError>> {
        async move {
            if self.calls.load(Ordering::SeqCst) >= self.calls_max.load(Ordering::SeqCst) {
                return Err(EmbedError::Overloaded { queued_max: 0 });
            }
            self.calls.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
        .boxed()
    }
}

async fn steps_that_are_done_are_not_done_again(database: &Database) {
    let embedder = Behind::new(Tired { calls: 0.into(), calls_max: 2.into() });
    let c = Coordinator::start(Setup { embedder: embedder.clone(), ..on(database) }).await;
    c.create_texts("t").await;
    let section = |part: usize| format!("# Part {part}\n\n{}\n\n", format!("word{part} ").repeat(200));
    let text: String = (0..150).map(section).collect();
    let body = json!({"id": "long", "text": text, "collection": "t"});
    let accepted = c.post("/api/v1/documents", body).await.ok();
    let job_path = format!("/api/v1/jobs/{}", accepted["job_id"].as_str().expect("id"));
    // It fails at the third step and is queued again.
    while c.get(&job_path).await.ok()["error"].is_null() {
        tokio::task::yield_now().await;
    }
    assert_eq!(embedder.before.calls.load(Ordering::SeqCst), 2);
    embedder.before.calls_max.store(usize::MAX, Ordering::SeqCst);
    let job = c.follow_job(accepted["job_id"].as_str().expect("id")).await;
    assert_eq!(job["status"], "done", "{job}");
    let steps = job["chunk_count"].as_u64().expect("number").div_ceil(64);
    assert!(steps >= 3, "{job}");
    assert_eq!(embedder.before.calls.load(Ordering::SeqCst) as u64, steps, "each step once over both runs");
    c.stop().await;
}

async fn a_cancelled_job_stops_at_once_and_can_be_retried(database: &Database) {
    let gate = Behind::new(Gate::default());
    let c = Coordinator::start(Setup { embedder: gate.clone(), workers: 1, ..on(database) }).await;
    c.create_texts("t").await;
    let stuck = c.post("/api/v1/documents", json!({"id": "a", "text": "one", "collection": "t"})).await.ok();
    gate.before.reached.notified().await;
    let job_path = format!("/api/v1/jobs/{}", stuck["job_id"].as_str().expect("id"));
    assert_eq!(c.delete(&job_path).await.ok()["status"], "cancelled");
    gate.before.is_open.store(true, Ordering::SeqCst);
    // The only worker waits in the embedder for ever, unless the cancellation has taken it out.
    assert_eq!(c.upload("t", "b", "", "two").await["status"], "done");
    assert_eq!(c.post(&format!("{job_path}/retry"), json!({})).await.status, 202);
    assert_eq!(c.follow_job(stuck["job_id"].as_str().expect("id")).await["status"], "done");
    c.stop().await;
}

/// The catalog fails for a while: the events of a job go on afterwards.
#[tokio::test]
async fn a_catalog_that_fails_meanwhile_does_not_end_the_events() {
    let database = Database::sqlite();
    let c = Coordinator::start(Setup { workers: 0, ..on(&database) }).await;
    c.create_texts("t").await;
    let accepted = c.post("/api/v1/documents", json!({"id": "d", "text": "words", "collection": "t"})).await.ok();
    let path = format!("{}/api/v1/jobs/{}", c.base, accepted["job_id"].as_str().expect("id"));
    let mut stream = c.http.get(format!("{path}/events")).send().await.expect("answers");
    let mut events = stream.chunk().await.expect("reads").expect("the first event").to_vec();

    let mut shell = AnyConnection::connect(&database.url).await.expect("connects");
    shell.execute("ALTER TABLE jobs RENAME TO jobs_away").await.expect("renames");
    // Long enough for two looks. Comments that keep the connection open may come meanwhile.
    let enough = tokio::time::Instant::now() + Duration::from_millis(2500);
    while let Ok(chunk) = tokio::time::timeout_at(enough, stream.chunk()).await {
        events.extend(chunk.expect("reads").expect("the events go on"));
    }
    shell.execute("ALTER TABLE jobs_away RENAME TO jobs").await.expect("renames");
    c.http.delete(path).send().await.expect("answers");
    while let Some(chunk) = stream.chunk().await.expect("reads") {
        events.extend(chunk);
    }
    let text = String::from_utf8(events).expect("text");
    assert!(text.contains("\"status\":\"cancelled\"") && !text.contains("event: error"), "{text}");
    c.stop().await;
}
