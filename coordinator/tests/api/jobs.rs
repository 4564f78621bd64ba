//! Jobs over the death of the process, cancellation, and failures that pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coordinator::embed::fake::FakeEmbedder;
use coordinator::embed::{EmbedError, Embedder, Embedding};
use coordinator::startup::Running;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::json;
use tokio::sync::Notify;

use super::support::{Coordinator, DIM, Setup, ids, parts};

/// An embedder that stops at the first text until it is let go, and says that it was reached.
struct Gate {
    inner: FakeEmbedder,
    is_open: AtomicBool,
    reached: Notify,
}

impl Gate {
    fn closed() -> Arc<Self> {
        Arc::new(Self { inner: FakeEmbedder::new(DIM), is_open: AtomicBool::new(false), reached: Notify::new() })
    }
}

impl Embedder for Gate {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn dim(&self) -> usize {
        self.inner.dim()
    }

    fn tokens_max(&self) -> usize {
        self.inner.tokens_max()
    }

    fn count_tokens(&self, text: &str) -> usize {
        self.inner.count_tokens(text)
    }

    fn embed(&self, texts: Vec<String>, deadline: Instant) -> BoxFuture<'_, Result<Vec<Embedding>, EmbedError>> {
        async move {
            if !self.is_open.load(Ordering::SeqCst) {
                self.reached.notify_one();
                std::future::pending::<()>().await;
            }
            self.inner.embed(texts, deadline).await
        }
        .boxed()
    }
}

/// The process dies in the middle of a job: nothing is given back, nothing is said goodbye to.
#[tokio::test]
async fn a_job_survives_the_process_and_runs_once() {
    let dir = tempfile::tempdir().expect("scratch");
    let gate = Gate::closed();
    let first = Setup { dir: Some(dir.path().to_owned()), embedder: gate.clone(), workers: 0, ..Setup::default() };
    let twin = Arc::clone(&first.twin);
    let c = Coordinator::start(first).await;
    c.create_texts("t").await;
    let accepted =
        c.post("/api/v1/documents", json!({"id": "d", "text": "words to keep", "collection": "t"})).await.ok();
    c.stop().await;

    // A life that claims the job, gets as far as embedding, and ends by abort.
    let runtime = std::thread::spawn({
        let setup = Setup { twin: Arc::clone(&twin), embedder: gate.clone(), workers: 1, ..Setup::default() };
        let dir = dir.path().to_owned();
        let gate = gate.clone();
        move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
            runtime.block_on(async {
                let running = Running::start(parts(&setup, &dir)).await.expect("starts");
                gate.reached.notified().await;
                std::mem::forget(running.services.clone());
            });
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    });
    runtime.join().expect("ends");
    assert_eq!(twin.applied_total(), 0, "it had not come to writing");

    gate.is_open.store(true, Ordering::SeqCst);
    let copied = tempfile::tempdir().expect("scratch");
    // The dead life's lock went with its process; here it is still held by leaked state, so the files are taken elsewhere.
    for entry in std::fs::read_dir(dir.path()).expect("reads") {
        let path = entry.expect("entry").path();
        if path.extension().is_none_or(|extension| extension != "lock") {
            std::fs::copy(&path, copied.path().join(path.file_name().expect("named"))).expect("copies");
        }
    }
    let second =
        Setup { twin: Arc::clone(&twin), dir: Some(copied.path().to_owned()), embedder: gate, ..Setup::default() };
    let c = Coordinator::start(second).await;
    let job = c.follow_job(accepted["job_id"].as_str().expect("id")).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("done"), &json!(2)), "{job}");
    assert_eq!(twin.applied_total(), 1);
    assert_eq!(ids(&c.post("/api/v1/search", json!({"collection": "t", "query": "words"})).await.ok()), ["d"]);
    c.stop().await;
}

/// The write was acknowledged by the shard but the process died before it noted so: the second run is the same operation.
#[tokio::test]
async fn a_lost_acknowledgement_doubles_nothing() {
    let setup = Setup::default();
    let twin = Arc::clone(&setup.twin);
    let c = Coordinator::start(setup).await;
    c.create_texts("t").await;
    for node in 1..=3 {
        twin.set_fault(node, Some(coordinator::cluster::twin::Fault::LosesAcks));
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

#[tokio::test]
async fn a_cancelled_job_writes_nothing_and_a_stopped_process_gives_its_job_back() {
    let dir = tempfile::tempdir().expect("scratch");
    let gate = Gate::closed();
    let setup = Setup { dir: Some(dir.path().to_owned()), embedder: gate.clone(), workers: 2, ..Setup::default() };
    let twin = Arc::clone(&setup.twin);
    let c = Coordinator::start(setup).await;
    c.create_texts("t").await;
    let cancelled = c.post("/api/v1/documents", json!({"id": "a", "text": "one", "collection": "t"})).await.ok();
    gate.reached.notified().await;
    let kept = c.post("/api/v1/documents", json!({"id": "b", "text": "two", "collection": "t"})).await.ok();
    gate.reached.notified().await;
    let job_path = format!("/api/v1/jobs/{}", cancelled["job_id"].as_str().expect("id"));
    assert_eq!(c.delete(&job_path).await.ok()["status"], "cancelled");
    c.stop().await;

    gate.is_open.store(true, Ordering::SeqCst);
    let again = Setup { dir: Some(dir.path().to_owned()), twin: Arc::clone(&twin), embedder: gate, ..Setup::default() };
    let c = Coordinator::start(again).await;
    let job = c.follow_job(kept["job_id"].as_str().expect("id")).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("done"), &json!(1)), "given back, not tried: {job}");
    assert_eq!(c.get(&job_path).await.ok()["status"], "cancelled");
    assert_eq!(twin.document_ids().into_iter().collect::<Vec<_>>(), ["b"]);
    c.stop().await;
}

#[tokio::test]
async fn one_process_at_a_time_has_the_catalog() {
    let dir = tempfile::tempdir().expect("scratch");
    let c = Coordinator::start(Setup { dir: Some(dir.path().to_owned()), ..Setup::default() }).await;
    let second = Running::start(parts(&Setup::default(), dir.path())).await.map(|_| ());
    assert!(second.expect_err("is refused").to_string().contains("in use by another process"));
    c.stop().await;
    let again = Running::start(parts(&Setup::default(), dir.path())).await.expect("the lock is free again");
    again.close().await;
}
