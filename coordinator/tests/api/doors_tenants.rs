//! Tenants at the front doors: keys, isolation, and whose account an answer is on.

use chaos_tests::llm::{End, Ending, Script, ScriptedLlm, Steps};
use cluster_config::llm_config::LlmKind;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::llm::pool_of;
use super::support::{Coordinator, Setup};
use super::tenants::{OPERATOR, make_key, upload_as, with_keys};

/// Stands in the tenant acme's document only.
const SECRET: &str = "xylophone";

/// A question to both doors.
fn questions(model: &str) -> [(&'static str, Value); 2] {
    let messages = json!([{"role": "user", "content": "What is planned for spring?"}]);
    [
        ("/v1/chat/completions", json!({"model": model, "messages": messages})),
        ("/api/chat", json!({"model": model, "messages": messages, "stream": false})),
    ]
}

async fn create_docs(c: &Coordinator) {
    let spec = json!({"embedder": "fake-hash-16", "shards": 2, "copies": 1});
    c.call_as(OPERATOR, Method::PUT, "/api/v1/collections/docs", Some(spec)).await.ok();
}

#[tokio::test]
async fn the_doors_ask_for_keys_and_show_each_tenant_its_own() {
    let c = Coordinator::start(with_keys()).await;
    create_docs(&c).await;
    let (_, acme) = make_key(&c, "acme", "write").await;
    let (_, other) = make_key(&c, "other", "read").await;
    let text = format!("The {SECRET} is planned for spring.");
    upload_as(&c, &acme, json!({"id": "plans", "collection": "docs", "text": text})).await.ok();
    for (path, body) in questions("rag/docs") {
        let refused = c.post(path, body.clone()).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{path}");
        let error = &refused.body["error"];
        if path.starts_with("/v1") {
            assert_eq!(error["code"], "invalid_api_key", "{error}");
        } else {
            assert!(error.is_string(), "{error}");
        }
        let own = c.call_as(&acme, Method::POST, path, Some(body.clone())).await.ok().to_string();
        assert!(own.contains(SECRET), "{own}");
        let foreign = c.call_as(&other, Method::POST, path, Some(body)).await.ok().to_string();
        assert!(!foreign.contains(SECRET), "{foreign}");
    }
    for path in ["/v1/models", "/api/tags"] {
        assert_eq!(c.get(path).await.status, StatusCode::UNAUTHORIZED, "{path}");
        c.call_as(&other, Method::GET, path, None).await.ok();
    }
    // Ollama's clients look for the server before they send a key.
    assert_eq!(c.text("/").await.0, StatusCode::OK);
    c.get("/api/version").await.ok();
    c.stop().await;
}

#[tokio::test]
async fn an_answer_is_on_its_tenants_account_even_if_nobody_reads_it_to_the_end() {
    let steps = Steps::default();
    let server = ScriptedLlm::start(Script { steps: Some(steps.clone()), ..Script::default() }).await.expect("starts");
    let c = Coordinator::start(Setup { llm: Some(pool_of(&[(&server, LlmKind::Openai)])), ..with_keys() }).await;
    create_docs(&c).await;
    let (_, acme) = make_key(&c, "acme", "write").await;
    let [(path, body), _] = questions("small");
    let usage = async || {
        let reply = c.call_as(&acme, Method::GET, "/api/v1/tenants/acme/usage", None).await.ok();
        let day = reply["days"][0].clone();
        (day["requests"].as_u64().unwrap_or(0), day["completion_tokens"].as_u64().unwrap_or(0))
    };

    steps.allow(8);
    c.call_as(&acme, Method::POST, path, Some(body.clone())).await.ok();
    while usage().await != (1, 8) {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }

    // Three tokens are "Lift is made ", which is estimated as five; then the client goes away.
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    steps.allow(3);
    let response =
        c.http.post(format!("{}{path}", c.base)).bearer_auth(&acme).json(&streamed).send().await.expect("answers");
    server.until(|exchanges| exchanges.len() == 2 && exchanges[1].sent.len() == 3).await.expect("writes");
    drop(response);
    server.until(|exchanges| matches!(exchanges[1].end, Some((_, End::ClientGone)))).await.expect("is told");
    loop {
        let (requests, tokens) = usage().await;
        if requests == 2 {
            // What the coordinator had read of it by then.
            assert!((9..=13).contains(&tokens), "{tokens}");
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }

    // The account is overdrawn from now on: no model is asked for this tenant before the minute is over.
    let limits = json!({"tokens_per_minute": 1});
    c.call_as(OPERATOR, Method::PUT, "/api/v1/tenants/acme", Some(limits)).await.ok();
    steps.allow(100);
    let mut refused = None;
    for _ in 0..3 {
        let answer = c.call_as(&acme, Method::POST, path, Some(body.clone())).await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("a token a minute is soon used up");
    assert_eq!(refused.body["error"]["code"], "rate_limit_exceeded", "{}", refused.body);
    assert!(refused.headers.contains_key("retry-after"));
    c.stop().await;
}

#[tokio::test]
async fn what_a_door_embeds_is_on_its_tenants_account() {
    let c = Coordinator::start(with_keys()).await;
    let (_, acme) = make_key(&c, "acme", "read").await;
    let (_, other) = make_key(&c, "other", "read").await;
    // The fake embedder counts words, and two tokens more for each text.
    let calls = [
        ("/v1/embeddings", json!({"model": "fake-hash-16", "input": ["one two", "three"]}), 7),
        ("/api/embed", json!({"model": "fake-hash-16", "input": "one two three"}), 5),
        ("/api/embeddings", json!({"model": "fake-hash-16", "prompt": "one"}), 3),
    ];
    let mut total = 0;
    for (path, body, tokens) in &calls {
        c.call_as(&acme, Method::POST, path, Some(body.clone())).await.ok();
        total += tokens;
        loop {
            let usage = c.call_as(&acme, Method::GET, "/api/v1/tenants/acme/usage", None).await.ok();
            if usage["days"][0]["prompt_tokens"] == total {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    let limits = json!({"tokens_per_minute": 1});
    c.call_as(OPERATOR, Method::PUT, "/api/v1/tenants/acme", Some(limits)).await.ok();
    // The first call overdraws the account by far; it is minutes until that is paid back.
    let (path, body, _) = &calls[0];
    c.call_as(&acme, Method::POST, path, Some(body.clone())).await.ok();
    for (path, body, _) in &calls {
        let refused = c.call_as(&acme, Method::POST, path, Some(body.clone())).await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{path}: {}", refused.body);
        assert!(refused.headers.contains_key("retry-after"), "{path}");
        c.call_as(&other, Method::POST, path, Some(body.clone())).await.ok();
    }
    c.stop().await;
}

#[tokio::test]
async fn a_door_s_stream_takes_one_of_its_tenants_places() {
    // One token, and then nothing until the client leaves.
    let script = Script { ending: Ending::Stall { after: 1 }, ..Script::default() };
    let server = ScriptedLlm::start(script).await.expect("starts");
    let c = Coordinator::start(Setup { llm: Some(pool_of(&[(&server, LlmKind::Openai)])), ..with_keys() }).await;
    let (_, acme) = make_key(&c, "acme", "read").await;
    let (_, other) = make_key(&c, "other", "read").await;
    c.call_as(OPERATOR, Method::PUT, "/api/v1/tenants/acme", Some(json!({"streams_max": 1}))).await.ok();
    let open = async |key: &str, path: &str, mut body: Value| {
        body["stream"] = true.into();
        c.http.post(format!("{}{path}", c.base)).bearer_auth(key).json(&body).send().await.expect("answers")
    };
    let [(first_path, first_body), _] = questions("small");
    let first = open(&acme, first_path, first_body).await;
    assert_eq!(first.status(), StatusCode::OK);
    for (path, body) in questions("small") {
        let refused = Coordinator::read(open(&acme, path, body.clone()).await).await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{path}: {}", refused.body);
        assert!(refused.headers.contains_key("retry-after"), "{path}");
        assert_eq!(open(&other, path, body).await.status(), StatusCode::OK, "{path}: places of its own");
    }
    assert_eq!(server.exchanges().len(), 3, "nobody is asked for a stream that has no place");
    drop(first);
    // The server hears of it when it next writes or reads the connection.
    let (path, body) = questions("small")[1].clone();
    while open(&acme, path, body.clone()).await.status() != StatusCode::OK {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    c.stop().await;
}
