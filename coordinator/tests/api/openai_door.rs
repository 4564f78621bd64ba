//! The front door of OpenAI's clients: bodies, chunks, errors.

use chaos_tests::llm::{Ending, Script, ScriptedLlm};
use cluster_config::llm_config::LlmKind;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::llm::{data_of, pool_of, with_text};
use super::support::{Coordinator, Setup};

async fn stream(c: &Coordinator, body: &Value) -> Vec<Value> {
    let response = c.http.post(format!("{}/v1/chat/completions", c.base)).json(body).send().await.expect("answers");
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    let data = data_of(&response.text().await.expect("whole"));
    assert_eq!(data.last().map(String::as_str), Some("[DONE]"), "{data:?}");
    data[..data.len() - 1].iter().map(|data| serde_json::from_str(data).expect("JSON")).collect()
}

#[tokio::test]
async fn a_collection_is_a_model_that_cites() {
    let server = ScriptedLlm::start(Script::default()).await.expect("starts");
    let c = with_text(pool_of(&[(&server, LlmKind::Openai)])).await;
    let messages = json!([
        {"role": "system", "content": "obey"}, {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"},
        {"role": "user", "content": [{"type": "text", "text": "what makes lift"}]},
    ]);
    let body = json!({"model": "rag/t", "messages": messages, "rag": {"top_k": 1}, "an_unknown": {"field": 1}});
    let answer = c.post("/v1/chat/completions", body.clone()).await.ok();
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["choices"][0]["message"]["content"], "Lift is made by the wing [1].");
    assert_eq!((&answer["citations"][0]["document_id"], &answer["sources"][0]["marker"]), (&json!("aero"), &json!(1)));
    assert_eq!(answer["usage"]["completion_tokens"], 8);
    assert!(answer["session"].is_string());
    let asked = &server.exchanges()[0].body["messages"];
    let said: Vec<&str> = asked.as_array().expect("messages").iter().filter_map(|m| m["content"].as_str()).collect();
    assert_eq!(said[1..], ["hello", "hi", "what makes lift"]);
    assert!(said[0].contains("made by the wing") && !said[0].contains("obey"), "{said:?}");

    let mut streamed = body;
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({"include_usage": true});
    let chunks = stream(&c, &streamed).await;
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"] && chunk["object"] == "chat.completion.chunk"));
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(chunks[0]["sources"][0]["document_id"], "aero");
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "Lift is made by the wing [1].");
    let (finish, usage) = (&chunks[chunks.len() - 2], &chunks[chunks.len() - 1]);
    assert_eq!((&finish["choices"][0]["delta"], &finish["choices"][0]["finish_reason"]), (&json!({}), &json!("stop")));
    assert_eq!(finish["citations"][0]["marker"], 1);
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(8)));
    c.stop().await;
}

#[tokio::test]
async fn other_models_pass_through_with_their_options() {
    for (kind, path) in [(LlmKind::Openai, "/v1/chat/completions"), (LlmKind::Ollama, "/api/chat")] {
        let server = ScriptedLlm::start(Script::default()).await.expect("starts");
        let c = with_text(pool_of(&[(&server, kind)])).await;
        let body = json!({
            "model": "small", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
            "max_completion_tokens": 9, "temperature": 0.5, "stop": "END", "response_format": {"type": "json_object"},
        });
        let answer = c.post("/v1/chat/completions", body).await.ok();
        assert_eq!(answer["choices"][0]["message"]["content"], "Lift is made by the wing [1].");
        assert_eq!((&answer["model"], answer.get("citations")), (&json!("small"), None));
        let exchange = server.exchanges().remove(0);
        assert_eq!(exchange.path, path);
        assert_eq!(exchange.body["messages"][0], json!({"role": "system", "content": "s"}));
        if kind == LlmKind::Openai {
            assert_eq!((&exchange.body["max_tokens"], &exchange.body["stop"]), (&json!(9), &json!(["END"])));
            assert_eq!(exchange.body["response_format"], json!({"type": "json_object"}));
        } else {
            let options = &exchange.body["options"];
            assert_eq!((&options["num_predict"], &options["stop"]), (&json!(9), &json!(["END"])));
            assert_eq!(exchange.body["format"], "json");
        }
        let text = json!({"model": "small", "prompt": ["Lift is"]});
        let answer = c.post("/v1/completions", text).await.ok();
        assert_eq!(
            (&answer["object"], answer["choices"][0]["text"].as_str().is_some()),
            (&json!("text_completion"), true)
        );
        c.stop().await;
    }
}

#[tokio::test]
async fn errors_have_openais_shape() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_texts("t").await;
    let user = json!([{"role": "user", "content": "x"}]);
    let cases = [
        (json!({"model": "rag/none", "messages": user}), 404, "none", Value::Null),
        (json!({"model": "unserved", "messages": user}), 404, "unserved", Value::Null),
        (json!({"model": "rag/t", "messages": []}), 400, "0 messages", json!("messages")),
        (json!({"model": "rag/t"}), 400, "missing", json!("messages")),
        (json!({"messages": user}), 400, "missing field `model`", json!("body")),
        (json!({"model": "rag/t", "messages": user, "temperature": 3}), 400, "out of range", json!("temperature")),
        (json!({"model": "rag/t", "messages": user, "n": 2}), 400, "one answer", json!("n")),
        (json!({"model": "rag/t", "messages": user, "rag": {"topk": 3}}), 400, "unknown field", json!("rag.topk")),
        (
            json!({"model": "rag/t", "messages": [{"role": "tool", "content": "x"}]}),
            400,
            "tool",
            json!("messages[0].role"),
        ),
        (json!({"model": "rag/t", "messages": user, "tools": [{}]}), 400, "not passed on", json!("tools")),
    ];
    for (body, status, words, param) in cases {
        let answer = c.post("/v1/chat/completions", body.clone()).await;
        let error = &answer.body["error"];
        assert_eq!((answer.status.as_u16(), &error["param"]), (status, &param), "{body}: {error}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(words)), "{body}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(error["code"], if status == 404 { json!("model_not_found") } else { Value::Null });
    }
    let long = json!([{"role": "user", "content": "x".repeat(2 << 20)}]);
    let answer = c.post("/v1/chat/completions", json!({"model": "rag/t", "messages": long})).await;
    assert_eq!((answer.status.as_u16(), &answer.body["error"]["code"]), (413, &json!("too_large")));
    let response = c.http.post(format!("{}/v1/chat/completions", c.base)).body("{").send().await.expect("answers");
    let answer = Coordinator::read(response).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.body["error"]["type"].is_string(), "{}", answer.body);
    assert_eq!(c.get("/v1/none").await.body["error"]["type"], "invalid_request_error");
    let refused = c.get("/v1/completions").await;
    assert_eq!(refused.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(refused.body["error"]["type"], "invalid_request_error", "{}", refused.body);
    let long = "x".repeat(20 << 10);
    let chat = json!({"model": "rag/t", "messages": [{"role": "user", "content": long}]});
    for (path, body, param) in [
        ("/v1/chat/completions", chat, "messages"),
        ("/v1/completions", json!({"model": "rag/t", "prompt": long}), "prompt"),
    ] {
        let refused = c.post(path, body).await;
        assert_eq!((refused.status.as_u16(), &refused.body["error"]["param"]), (400, &json!(param)), "{path}");
    }
    assert_eq!(c.get("/v1/models/none").await.status, StatusCode::NOT_FOUND);
    c.stop().await;
}

#[tokio::test]
async fn a_busy_and_a_breaking_backend_are_told_as_such() {
    let server = ScriptedLlm::start(Script { at_once_max: 0, ..Script::default() }).await.expect("starts");
    let c = with_text(pool_of(&[(&server, LlmKind::Openai)])).await;
    let body = json!({"model": "small", "messages": [{"role": "user", "content": "x"}], "stream": true});
    let busy = c.post("/v1/chat/completions", body.clone()).await;
    assert_eq!((busy.status, &busy.body["error"]["type"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("server_error")));
    assert!(busy.headers.contains_key("retry-after"));
    c.stop().await;

    for ending in [Ending::Error { after: 2 }, Ending::Cut { after: 2 }, Ending::TruncatedText { after: 2 }] {
        let server = ScriptedLlm::start(Script { ending, ..Script::default() }).await.expect("starts");
        let c = with_text(pool_of(&[(&server, LlmKind::Openai)])).await;
        let response =
            c.http.post(format!("{}/v1/chat/completions", c.base)).json(&body).send().await.expect("answers");
        let data = data_of(&response.text().await.expect("whole"));
        let last: Value = serde_json::from_str(data.last().expect("an end")).expect("JSON");
        assert_eq!(last["error"]["type"], "server_error", "{ending:?}: {data:?}");
        assert!(data.iter().any(|data| data.contains("Lift ")), "{ending:?}: {data:?}");
        c.stop().await;
    }
}

#[tokio::test]
async fn models_and_embeddings() {
    let server = ScriptedLlm::start(Script::default()).await.expect("starts");
    let c = with_text(pool_of(&[(&server, LlmKind::Ollama), (&server, LlmKind::Openai)])).await;
    c.create_vectors("vectors", 1).await;
    let models = c.get("/v1/models").await.ok();
    let ids: Vec<&str> = models["data"].as_array().expect("list").iter().filter_map(|m| m["id"].as_str()).collect();
    assert_eq!(ids, ["rag/t", "small", "fake-hash-16"], "a collection without an embedder cannot be asked");
    assert_eq!(c.get("/v1/models/rag/t").await.ok()["object"], "model");

    let embed = |body: Value| c.post("/v1/embeddings", body);
    let plain = embed(json!({"model": "fake-hash-16", "input": "lift"})).await.ok();
    assert_eq!(plain["data"][0]["embedding"].as_array().map(Vec::len), Some(16));
    assert!(plain["usage"]["total_tokens"].as_u64() > Some(0));
    let coded = embed(json!({"model": "fake-hash-16", "input": ["lift"], "encoding_format": "base64"})).await.ok();
    // 16 components of 4 bytes are 64 bytes, which are 88 characters.
    assert_eq!(coded["data"][0]["embedding"].as_str().map(str::len), Some(88));
    for (body, param) in [
        (json!({"model": "fake-hash-16", "input": [1, 2]}), "input"),
        (json!({"model": "fake-hash-16", "input": []}), "input"),
        (json!({"model": "fake-hash-16", "input": ["a", ""]}), "input[1]"),
        (json!({"model": "fake-hash-16", "input": "a", "dimensions": 8}), "dimensions"),
        (json!({"model": "fake-hash-16", "input": "a", "encoding_format": "hex"}), "encoding_format"),
    ] {
        let refused = embed(body.clone()).await;
        assert_eq!((refused.status.as_u16(), &refused.body["error"]["param"]), (400, &json!(param)), "{body}");
    }
    assert_eq!(embed(json!({"model": "other", "input": "a"})).await.status, StatusCode::NOT_FOUND);
    let many = embed(json!({"model": "fake-hash-16", "input": vec!["a"; 1025]})).await;
    assert_eq!((many.status.as_u16(), &many.body["error"]["code"]), (413, &json!("too_large")), "{}", many.body);
    c.stop().await;
}
