//! Answers: extractive without a model, streamed from a scripted one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coordinator::generate::backend::{Backend, BackendError, Report};
use coordinator::generate::metrics::PoolMetrics;
use coordinator::generate::pool::{Member, Policy, Pool};
use coordinator::generate::{EventStream, FinishReason, GenerateEvent, GenerateRequest, Usage};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Semaphore;

use super::support::{Coordinator, Setup, events};

const TEXT: &str = "Lift is made by the wing. Drag is the price of it. The engine pays the price in fuel.";

/// A backend that gives one piece per permit, and notes how it ended.
#[derive(Default)]
struct Script {
    pieces: Vec<&'static str>,
    permits: Semaphore0,
    was_dropped: Arc<AtomicBool>,
    asked: Mutex<Option<GenerateRequest>>,
}

struct Semaphore0(Arc<Semaphore>);

impl Default for Semaphore0 {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }
}

struct NoteDrop(Arc<AtomicBool>);

impl Drop for NoteDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Backend for Script {
    fn name(&self) -> &str {
        "scripted"
    }

    fn url(&self) -> &str {
        "http://scripted"
    }

    fn model(&self) -> &str {
        "tiny"
    }

    fn generate(&self, request: GenerateRequest) -> BoxFuture<'_, Result<EventStream, BackendError>> {
        *self.asked.lock() = Some(request);
        let (pieces, permits) = (self.pieces.clone(), Arc::clone(&self.permits.0));
        let note = NoteDrop(Arc::clone(&self.was_dropped));
        let events = async_stream::stream! {
            let _note = note;
            for piece in pieces {
                permits.acquire().await.expect("open").forget();
                yield Ok(GenerateEvent::Delta(piece.to_owned()));
            }
            yield Ok(GenerateEvent::Usage(Usage { prompt_tokens: 7, completion_tokens: 3 }));
            yield Ok(GenerateEvent::Done { finish_reason: FinishReason::Stop });
        };
        async move { Ok(events.boxed()) }.boxed()
    }

    fn probe(&self) -> BoxFuture<'_, Result<Report, BackendError>> {
        async { Ok(Report::default()) }.boxed()
    }
}

fn pool_of(script: &Arc<Script>) -> Pool {
    let member = Member::new(Arc::clone(script) as Arc<dyn Backend>, 4);
    Pool::new(vec![member], Policy::default(), PoolMetrics::new())
}

async fn with_text(llm: Option<Pool>) -> Coordinator {
    let c = Coordinator::start(Setup { llm, ..Setup::default() }).await;
    c.create_texts("t").await;
    assert_eq!(c.upload("t", "aero", "Aerodynamics", TEXT).await["status"], "done");
    c
}

#[tokio::test]
async fn without_a_model_the_answer_is_made_of_the_sources() {
    let c = with_text(None).await;
    let reply = c.post("/api/v1/query", json!({"query": "what does the engine pay", "collection": "t"})).await.ok();
    assert_eq!(reply["generator"], "extractive");
    let source = c.get("/api/v1/documents/aero?collection=t&include_text=true").await.ok()["text"].clone();
    let source = source.as_str().expect("text");
    let citations = reply["citations"].as_array().expect("citations");
    assert!(!citations.is_empty());
    for citation in citations {
        let (start, end) = (citation["span"]["start"].as_u64(), citation["span"]["end"].as_u64());
        let quoted = &source[start.expect("start") as usize..end.expect("end") as usize];
        assert!(reply["answer"].as_str().expect("text").contains(quoted), "{quoted:?} in {reply}");
        assert_eq!((&citation["document_id"], &citation["title"]), (&json!("aero"), &json!("Aerodynamics")));
    }
    assert!(reply["answer"].as_str().expect("text").contains("The engine pays the price in fuel. [1]"), "{reply}");
    c.stop().await;
}

#[tokio::test]
async fn an_empty_collection_is_answered_honestly() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_texts("t").await;
    let reply = c.post("/api/v1/query", json!({"query": "anything", "collection": "t"})).await.ok();
    assert_eq!((&reply["hits"], &reply["citations"]), (&json!([]), &json!([])));
    assert_eq!(reply["answer"], "Nothing in the collection answers this.");
    c.stop().await;
}

#[tokio::test]
async fn a_stream_shows_the_first_token_before_the_backend_has_sent_its_last() {
    let script = Arc::new(Script { pieces: vec!["Lift is made ", "by the wing [1", "]."], ..Script::default() });
    let c = with_text(Some(pool_of(&script))).await;
    let body =
        json!({"query": "what makes lift", "collection": "t", "stream": true, "temperature": 0.5, "model": "tiny"});
    script.permits.0.add_permits(1);
    let response = c.http.post(format!("{}/api/v1/query", c.base)).json(&body).send().await.expect("answers");
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut bytes = response.bytes_stream();
    let mut text = String::new();
    while !text.contains("event: delta") {
        text.push_str(std::str::from_utf8(&bytes.next().await.expect("more").expect("bytes")).expect("utf-8"));
    }
    assert!(!text.contains("by the wing"), "the second piece has not been permitted yet");
    script.permits.0.add_permits(2);
    while let Some(next) = bytes.next().await {
        text.push_str(std::str::from_utf8(&next.expect("bytes")).expect("utf-8"));
    }
    let events = events(&text);
    let names: Vec<&str> = events.iter().map(|(_, name, _)| name.as_str()).collect();
    assert_eq!(names, ["meta", "sources", "delta", "delta", "delta", "citation", "usage", "done"]);
    assert!(events.iter().enumerate().all(|(position, (id, ..))| *id == position as u64));
    assert_eq!((&events[0].2["generator"], &events[0].2["model"]), (&json!("scripted"), &json!("tiny")));
    assert_eq!((&events[1].2[0]["marker"], &events[1].2[0]["document_id"]), (&json!(1), &json!("aero")));
    assert_eq!((&events[5].2["marker"], &events[6].2["prompt_tokens"]), (&json!(1), &json!(7)));
    assert_eq!(events[7].2["finish_reason"], "stop");
    let asked = script.asked.lock().clone().expect("was asked");
    assert_eq!(asked.options.temperature, Some(0.5));
    assert!(asked.messages[0].content.contains("Drag is the price of it."), "the source is in the prompt");
    c.stop().await;
}

#[tokio::test]
async fn closing_the_client_stops_the_backend() {
    let script = Arc::new(Script { pieces: vec!["never ", "ending"], ..Script::default() });
    let c = with_text(Some(pool_of(&script))).await;
    let body = json!({"query": "what makes lift", "collection": "t", "stream": true});
    script.permits.0.add_permits(1);
    let response = c.http.post(format!("{}/api/v1/query", c.base)).json(&body).send().await.expect("answers");
    let mut bytes = response.bytes_stream();
    bytes.next().await.expect("begins").expect("bytes");
    assert!(!script.was_dropped.load(Ordering::SeqCst));
    drop(bytes);
    while !script.was_dropped.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
    c.stop().await;
}

#[tokio::test]
async fn a_whole_answer_from_a_model_has_its_citations_and_usage() {
    let script = Arc::new(Script { pieces: vec!["The wing [1][9]."], ..Script::default() });
    let c = with_text(Some(pool_of(&script))).await;
    script.permits.0.add_permits(1);
    let reply = c.post("/api/v1/query", json!({"query": "what makes lift", "collection": "t"})).await.ok();
    assert_eq!((&reply["answer"], &reply["generator"]), (&json!("The wing [1]."), &json!("scripted")));
    assert_eq!(reply["citations"].as_array().map(Vec::len), Some(1), "9 is no source: {reply}");
    assert_eq!(reply["usage"], json!({"prompt_tokens": 7, "completion_tokens": 3}));
    // The tenant's account has it within a second or two.
    let days = loop {
        let usage = c.get("/api/v1/tenants/default/usage").await.ok();
        match usage["days"].as_array() {
            Some(days) if !days.is_empty() => break days.clone(),
            _ => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    };
    assert_eq!((&days[0]["model"], &days[0]["requests"]), (&json!("tiny"), &json!(1)), "{days:?}");
    assert_eq!((&days[0]["prompt_tokens"], &days[0]["completion_tokens"]), (&json!(7), &json!(3)), "{days:?}");

    // Ten tokens are more than one a minute: the next answer has to wait, a search has not.
    c.put("/api/v1/tenants/default", json!({"tokens_per_minute": 1})).await.ok();
    script.permits.0.add_permits(1);
    c.post("/api/v1/query", json!({"query": "what else makes lift", "collection": "t"})).await.ok();
    let refused = c.post("/api/v1/query", json!({"query": "what makes lift", "collection": "t"})).await;
    assert_eq!((refused.status.as_u16(), &refused.body["error"]["type"]), (429, &json!("rate_limited")));
    let wait_s: u64 = refused.headers["retry-after"].to_str().expect("text").parse().expect("seconds");
    assert!((500..=600).contains(&wait_s), "ten tokens at one a minute: {wait_s}");
    c.post("/api/v1/search", json!({"query": "what makes lift", "collection": "t"})).await.ok();
    c.stop().await;
}

#[tokio::test]
async fn the_same_prompt_is_generated_once_and_another_text_or_option_anew() {
    let script = Arc::new(Script { pieces: vec!["Lift ", "[1]."], ..Script::default() });
    script.permits.0.add_permits(1000);
    let c = Coordinator::start(Setup { llm: Some(pool_of(&script)), ..Setup::default() }).await;
    c.create_texts("t").await;
    c.upload("t", "wings", "Wings", TEXT).await;
    let question = json!({"query": "what makes lift", "collection": "t"});
    let asked = || script.asked.lock().take().is_some();

    let first = c.post("/api/v1/query", question.clone()).await.ok();
    assert!(asked());
    let again = c.post("/api/v1/query", question.clone()).await.ok();
    assert!(!asked(), "found in the cache");
    for part in ["answer", "generator", "model", "citations", "finish_reason"] {
        assert_eq!(again[part], first[part], "{part}");
    }
    assert_eq!((&first["usage"]["completion_tokens"], again.get("usage")), (&json!(3), None), "it cost no tokens");
    let mut streamed = question.clone();
    streamed["stream"] = json!(true);
    let streamed = c.http.post(format!("{}/api/v1/query", c.base)).json(&streamed).send().await.expect("answers");
    let streamed = events(&streamed.text().await.expect("text"));
    assert!(!asked());
    let delta = streamed.iter().find(|(_, name, _)| name == "delta").expect("text");
    assert_eq!(delta.2["text"], first["answer"]);

    for (option, value) in [("temperature", json!(0.9)), ("max_tokens", json!(9)), ("model", json!("other"))] {
        let mut other = question.clone();
        other[option] = value;
        c.post("/api/v1/query", other).await.ok();
        assert!(asked(), "{option}");
    }
    c.upload("t", "wings", "Wings", "Lift is made by something else.").await;
    c.post("/api/v1/query", question).await.ok();
    assert!(asked(), "the sources read differently");
    c.stop().await;
}

#[tokio::test]
async fn an_answer_that_nobody_read_to_its_end_is_not_kept() {
    let script = Arc::new(Script { pieces: vec!["a", "b"], ..Script::default() });
    let c = Coordinator::start(Setup { llm: Some(pool_of(&script)), ..Setup::default() }).await;
    c.create_texts("t").await;
    c.upload("t", "wings", "Wings", TEXT).await;
    let question = json!({"query": "what makes lift", "collection": "t", "stream": true});
    script.permits.0.add_permits(1);
    let left = c.http.post(format!("{}/api/v1/query", c.base)).json(&question).send().await.expect("answers");
    drop(left);
    while !script.was_dropped.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
    script.asked.lock().take();
    script.permits.0.add_permits(1000);
    c.post("/api/v1/query", json!({"query": "what makes lift", "collection": "t"})).await.ok();
    assert!(script.asked.lock().is_some());
    c.stop().await;
}
