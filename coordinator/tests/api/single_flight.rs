//! Equal questions at the same time: one is embedded and written, the others get the same; nobody is stuck behind one that fails or
//! leaves, and no stream waits for another.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chaos_tests::llm::{End, Ending, Script, ScriptedLlm, Steps};
use cluster_config::llm_config::LlmKind;
use coordinator::cache::metrics::CacheMetrics;
use coordinator::embed::Embedder;
use coordinator::embed::cache::{Bounds, CachedEmbedder};
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::embedders::{Behind, Questions};
use super::llm::{TEXT, pool_of};
use super::redis_server::RedisServer;
use super::support::{Answer, Coordinator, Setup};

/// An embedder behind its cache, and what counts the questions that reach it.
fn counting() -> (Arc<dyn Embedder>, Arc<Behind<Questions>>) {
    let inner = Behind::new(Questions::default());
    let bounds = Bounds { entries: 100, bytes: 1 << 20, ttl: Duration::from_secs(3600) };
    (Arc::new(CachedEmbedder::new(Arc::clone(&inner) as _, bounds, None, CacheMetrics::new())), inner)
}

fn question(is_stream: bool) -> Value {
    json!({"query": "what makes lift", "collection": "t", "stream": is_stream})
}

/// Asks in the background; dropping the task's connection is the client's going away.
fn ask(c: &Coordinator) -> JoinHandle<Answer> {
    let call = c.http.post(format!("{}/api/v1/query", c.base)).json(&question(false));
    tokio::spawn(async move { Coordinator::read(call.send().await.expect("answers")).await })
}

async fn with_text(setup: Setup) -> Coordinator {
    let c = Coordinator::start(setup).await;
    c.create_texts("t").await;
    assert_eq!(c.upload("t", "aero", "Aerodynamics", TEXT).await["status"], "done");
    c
}

async fn stepped(steps: &Steps) -> ScriptedLlm {
    ScriptedLlm::start(Script { steps: Some(steps.clone()), ..Script::default() }).await.expect("starts")
}

#[tokio::test(flavor = "multi_thread")]
async fn of_twenty_equal_questions_one_is_embedded_and_one_is_written() {
    let steps = Steps::default();
    let server = stepped(&steps).await;
    let (embedder, counted) = counting();
    let questions = || counted.before.0.load(Ordering::SeqCst);
    let llm = Some(pool_of(&[(&server, LlmKind::Ollama)]));
    let c = with_text(Setup { llm, embedder, ..Setup::default() }).await;
    assert_eq!(questions(), 0, "a document of one chunk is no question");

    let asked: Vec<_> = (0..20).map(|_| ask(&c)).collect();
    server.until(|exchanges| exchanges.len() == 1).await.expect("is asked");
    steps.allow(8);
    let answers = join_all(asked).await;
    for answer in answers {
        let answer = answer.expect("joins").ok();
        assert_eq!(
            (&answer["answer"], &answer["generator"]),
            (&json!("Lift is made by the wing [1]."), &json!("backend-0"))
        );
        assert_eq!(answer["citations"][0]["document_id"], "aero");
    }
    assert_eq!((server.exchanges().len(), questions()), (1, 1));
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_goes_on_when_the_first_leaves_or_fails() {
    let steps = Steps::default();
    let server = stepped(&steps).await;
    let c = with_text(Setup { llm: Some(pool_of(&[(&server, LlmKind::Ollama)])), ..Setup::default() }).await;
    let leaves = ask(&c);
    server.until(|exchanges| exchanges.len() == 1).await.expect("is asked");
    let follows = ask(&c);
    leaves.abort();
    server.until(|exchanges| matches!(exchanges[0].end, Some((_, End::ClientGone)))).await.expect("is told");
    server.until(|exchanges| exchanges.len() == 2).await.expect("the other asks");
    steps.allow(8);
    assert_eq!(follows.await.expect("joins").ok()["generator"], "backend-0");

    // A text that breaks off is kept by nobody, and who waited for it is not left waiting.
    server.play(Script { ending: Ending::Cut { after: 2 }, ..Script::default() });
    c.upload("t", "more", "More", "What makes lift is the wing and nothing else.").await;
    for answer in join_all([ask(&c), ask(&c)]).await {
        let answer = answer.expect("joins");
        assert!(answer.status.is_server_error() || answer.body["generator"] == "extractive", "{}", answer.body);
    }
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_at_once_although_the_same_is_being_written() {
    let steps = Steps::default();
    let server = stepped(&steps).await;
    let c = with_text(Setup { llm: Some(pool_of(&[(&server, LlmKind::Ollama)])), ..Setup::default() }).await;
    let first = ask(&c);
    server.until(|exchanges| exchanges.len() == 1).await.expect("is asked");
    let streamed = tokio::spawn(c.http.post(format!("{}/api/v1/query", c.base)).json(&question(true)).send());
    server.until(|exchanges| exchanges.len() == 2).await.expect("does not wait");
    steps.allow(16);
    let text = streamed.await.expect("joins").expect("answers").text().await.expect("whole");
    assert!(text.contains("event: done"), "{text}");
    first.await.expect("joins").ok();
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_coordinators_have_one_text_written() {
    let (redis, steps) = (RedisServer::start(), Steps::default());
    let server = stepped(&steps).await;
    let setup =
        || Setup { llm: Some(pool_of(&[(&server, LlmKind::Ollama)])), redis: Some(redis.url()), ..Setup::default() };
    let first = setup();
    let twin = Arc::clone(&first.twin);
    let (a, b) = (with_text(first).await, Coordinator::start(Setup { twin, ..setup() }).await);
    for c in [&a, &b] {
        while c.get("/api/v1/collections/t").await.status != 200
            || !c.text("/metrics").await.1.contains("\ncache_redis_up 1")
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let asked: Vec<_> = (0..6).map(|number| ask(if number % 2 == 0 { &a } else { &b })).collect();
    server.until(|exchanges| exchanges.len() == 1).await.expect("is asked");
    steps.allow(8);
    for answer in join_all(asked).await {
        assert_eq!(answer.expect("joins").ok()["answer"], "Lift is made by the wing [1].");
    }
    assert_eq!(server.exchanges().len(), 1);
    a.stop().await;
    b.stop().await;
}
