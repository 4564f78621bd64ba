//! The pool behind the API, against scripted servers: who goes away, who is down, who is added.

use chaos_tests::llm::{End, Ending, Exchange, Script, ScriptedLlm, Steps};
use cluster_config::llm_config::{LlmKind, LlmRouting};
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;

use super::llm::{pool_of, pool_with, with_text};
use super::support::{Coordinator, Setup, events};

fn chat(is_stream: bool) -> Value {
    json!({"model": "small", "messages": [{"role": "user", "content": "x"}], "stream": is_stream})
}

fn is_gone(exchange: &Exchange) -> bool {
    matches!(exchange.end, Some((_, End::ClientGone)))
}

async fn backends(c: &Coordinator) -> Vec<Value> {
    c.get("/api/v1/backends").await.ok()["backends"].as_array().expect("list").clone()
}

async fn until_waiting(c: &Coordinator, count: usize) {
    while c.get("/api/v1/backends").await.ok()["waiting"] != count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn until_state(c: &Coordinator, position: usize, state: &str) {
    while backends(c).await[position]["state"] != state {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_or_after_the_first_token_frees_the_backend() {
    for kind in [LlmKind::Ollama, LlmKind::Openai] {
        let steps = Steps::default();
        let server =
            ScriptedLlm::start(Script { steps: Some(steps.clone()), ..Script::default() }).await.expect("starts");
        let c = with_text(pool_of(&[(&server, kind)])).await;
        let rag = json!({"query": "what makes lift", "collection": "t", "stream": true});
        let requests =
            [("/v1/chat/completions", chat(true)), ("/v1/chat/completions", chat(false)), ("/api/v1/query", rag)];
        for (path, body) in requests {
            let count = server.exchanges().len();
            let call = tokio::spawn(c.http.post(format!("{}{path}", c.base)).json(&body).send());
            server.until(|exchanges| exchanges.len() > count).await.expect("is asked");
            call.abort();
            server.until(|exchanges| is_gone(&exchanges[count])).await.expect("is told");

            if body["stream"] == true {
                steps.allow(1);
                let response = c.http.post(format!("{}{path}", c.base)).json(&body).send().await.expect("answers");
                server.until(|exchanges| exchanges[count + 1].sent.len() == 1).await.expect("a token");
                drop(response);
                server.until(|exchanges| is_gone(&exchanges[count + 1])).await.expect("is told");
            }
        }
        c.stop().await;
    }
}

#[tokio::test]
async fn who_leaves_the_queue_was_never_at_the_backend() {
    let steps = Steps::default();
    let script = Script { steps: Some(steps.clone()), ..Script::default() };
    let server = ScriptedLlm::start(script).await.expect("starts");
    let c = Coordinator::start(Setup::default()).await;
    let backend =
        json!({"name": "narrow", "kind": "ollama", "url": server.url(), "model": "small", "concurrency_max": 1});
    assert_eq!(c.post("/api/v1/backends", backend).await.status, StatusCode::CREATED);
    let ask = || tokio::spawn(c.http.post(format!("{}/v1/chat/completions", c.base)).json(&chat(false)).send());
    let first = ask();
    server.until(|exchanges| exchanges.len() == 1).await.expect("is asked");
    let (second, third) = (ask(), ask());
    until_waiting(&c, 2).await;
    second.abort();
    until_waiting(&c, 1).await;
    steps.allow(100);
    for answered in [first, third] {
        assert!(answered.await.expect("no panic").expect("answers").status().is_success());
    }
    let exchanges = server.exchanges();
    assert_eq!(exchanges.len(), 2, "{exchanges:?}");
    c.stop().await;
}

#[tokio::test]
async fn one_dead_backend_costs_no_request_and_all_dead_an_extractive_answer() {
    let routing = LlmRouting { probe_interval: Duration::from_millis(20), ..LlmRouting::default() };
    let mut first = ScriptedLlm::start(Script::default()).await.expect("starts");
    let mut second = ScriptedLlm::start(Script::default()).await.expect("starts");
    let c = with_text(pool_with(routing, &[(&first, LlmKind::Openai), (&second, LlmKind::Ollama)])).await;
    let query = json!({"query": "what makes lift", "collection": "t"});
    first.stop().await;
    // Before the first failed probe the next backend takes over, after it nobody asks the dead one.
    for _ in 0..5 {
        assert_eq!(c.post("/api/v1/query", query.clone()).await.ok()["generator"], "backend-1");
    }
    until_state(&c, 0, "ejected").await;
    for _ in 0..20 {
        assert!(c.post("/v1/chat/completions", chat(false)).await.status.is_success());
    }

    second.stop().await;
    until_state(&c, 1, "ejected").await;
    let reply = c.post("/api/v1/query", query.clone()).await.ok();
    assert_eq!(reply["generator"], "extractive");
    assert!(reply["degraded"].as_str().is_some_and(|why| why.contains("no language model is available")), "{reply}");
    assert!(reply["answer"].as_str().is_some_and(|text| text.contains("Lift is made by the wing. [1]")), "{reply}");
    let mut streamed = query.clone();
    streamed["stream"] = true.into();
    let response = c.http.post(format!("{}/api/v1/query", c.base)).json(&streamed).send().await.expect("answers");
    let told = events(&response.text().await.expect("whole"));
    assert!(told[0].2["degraded"].is_string() && told.last().expect("an end").1 == "done", "{told:?}");
    let direct = c.post("/v1/chat/completions", chat(false)).await;
    assert_eq!(direct.status, StatusCode::SERVICE_UNAVAILABLE, "nothing can stand in for a model that was asked for");

    first.restart().await.expect("listens");
    until_state(&c, 0, "up").await;
    assert_eq!(c.post("/api/v1/query", query).await.ok()["generator"], "backend-0");
    c.stop().await;
}

#[tokio::test]
async fn silence_is_bounded_before_and_between_tokens() {
    let routing = LlmRouting {
        first_token_timeout: Duration::from_millis(100),
        token_gap_timeout: Duration::from_millis(100),
        ..LlmRouting::default()
    };
    let stalling = |after| Script { ending: Ending::Stall { after }, ..Script::default() };
    let mute = ScriptedLlm::start(stalling(0)).await.expect("starts");
    let c = with_text(pool_with(routing.clone(), &[(&mute, LlmKind::Openai)])).await;
    let silent = c.post("/v1/chat/completions", chat(false)).await;
    assert_eq!(silent.status, StatusCode::SERVICE_UNAVAILABLE, "{}", silent.body);
    mute.until(|exchanges| is_gone(&exchanges[0])).await.expect("is told");
    mute.play(stalling(2));
    let stopped = c.post("/v1/chat/completions", chat(false)).await;
    assert!(stopped.body["error"]["message"].as_str().is_some_and(|text| text.contains("silent")), "{}", stopped.body);
    mute.until(|exchanges| exchanges.iter().all(is_gone)).await.expect("is told");
    c.stop().await;
}

#[tokio::test]
async fn backends_are_added_listed_and_removed_while_it_runs() {
    let server = ScriptedLlm::start(Script { kv_used: 0.5, ..Script::default() }).await.expect("starts");
    let c = Coordinator::start(Setup::default()).await;
    c.create_texts("t").await;
    c.upload("t", "aero", "Aerodynamics", super::llm::TEXT).await;
    let query = json!({"query": "what makes lift", "collection": "t"});
    assert_eq!(c.post("/api/v1/query", query.clone()).await.ok()["generator"], "extractive");

    let url = format!("{}/v1/", server.url());
    let backend = json!({"name": "gpu-1", "kind": "vllm", "url": url, "model": "small", "weight": 2});
    assert_eq!(c.post("/api/v1/backends", backend.clone()).await.status, StatusCode::CREATED);
    assert_eq!(c.post("/api/v1/backends", backend.clone()).await.status, StatusCode::CONFLICT);
    assert_eq!(c.post("/api/v1/query", query.clone()).await.ok()["generator"], "gpu-1");
    let listed = backends(&c).await;
    assert_eq!(
        (&listed[0]["name"], &listed[0]["weight"], &listed[0]["state"]),
        (&json!("gpu-1"), &json!(2), &json!("up"))
    );
    for (change, field) in [
        (json!({"url": "ftp://x"}), "url"),
        (json!({"weight": 0}), "weight"),
        (json!({"api_key_env": "SURELY_NOT_SET"}), "api_key_env"),
        (json!({"kind": "other"}), "kind"),
    ] {
        let mut wrong = backend.clone();
        wrong["name"] = "other".into();
        wrong.as_object_mut().expect("object").extend(change.as_object().expect("object").clone());
        let refused = c.post("/api/v1/backends", wrong).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.body);
        assert!(refused.body["error"]["message"].as_str().is_some_and(|m| m.starts_with(field)), "{}", refused.body);
    }
    assert_eq!(c.delete("/api/v1/backends/gpu-1").await.ok()["backends"], json!([]));
    assert_eq!(c.delete("/api/v1/backends/gpu-1").await.status, StatusCode::NOT_FOUND);
    assert_eq!(c.post("/api/v1/query", query).await.ok()["generator"], "extractive");
    c.stop().await;
}

/// The name and the model stay, but another server writes: what the first one wrote is not passed off as its own.
#[tokio::test]
async fn a_backend_that_moved_writes_its_own_answers() {
    let servers = [ScriptedLlm::start(Script::default()).await, ScriptedLlm::start(Script::default()).await];
    let [first, second] = servers.map(|server| server.expect("starts"));
    let c = Coordinator::start(Setup::default()).await;
    c.create_texts("t").await;
    c.upload("t", "aero", "Aerodynamics", super::llm::TEXT).await;
    let query = json!({"query": "what makes lift", "collection": "t"});
    for (server, asked) in [(&first, [1, 0]), (&second, [1, 1]), (&first, [1, 1])] {
        let backend = json!({"name": "b", "kind": "ollama", "url": server.url(), "model": "small"});
        assert_eq!(c.post("/api/v1/backends", backend).await.status, StatusCode::CREATED);
        for _ in 0..2 {
            assert_eq!(c.post("/api/v1/query", query.clone()).await.ok()["generator"], "b");
            assert_eq!([&first, &second].map(|server| server.exchanges().len()), asked);
        }
        c.delete("/api/v1/backends/b").await.ok();
    }
    c.stop().await;
}

/// vLLM tells in `/metrics`, Ollama in `/api/ps`.
#[tokio::test]
async fn what_servers_tell_of_their_load_comes_with_the_probe_and_makes_them_dearer() {
    let cases = [
        (LlmKind::Vllm, Script { kv_used: 0.9, ..Script::default() }, 9.1),
        (LlmKind::Ollama, Script { on_gpu: Some(0.0), ..Script::default() }, 3.0),
        (LlmKind::Ollama, Script { on_gpu: Some(0.5), ..Script::default() }, 2.0),
    ];
    for (kind, says, penalty) in cases {
        let busy = ScriptedLlm::start(says).await.expect("starts");
        let free = ScriptedLlm::start(Script::default()).await.expect("starts");
        let routing = LlmRouting { probe_interval: Duration::from_millis(20), ..LlmRouting::default() };
        let c = with_text(pool_with(routing, &[(&busy, kind), (&free, kind)])).await;
        let penalty_of = async |position: usize| backends(&c).await[position]["penalty"].as_f64().expect("a number");
        while (penalty_of(0).await - penalty).abs() > 0.01 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(penalty_of(1).await, 1.0);
        c.stop().await;
    }
}
