//! The front door of Ollama's clients: records, bodies, errors.

use chaos_tests::llm::{Ending, Script, ScriptedLlm};
use cluster_config::llm_config::LlmKind;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::llm::{pool_of, records_of, with_text};
use super::support::{Coordinator, Setup};

async fn records(c: &Coordinator, path: &str, body: Value) -> Vec<Value> {
    let response = c.http.post(format!("{}{path}", c.base)).json(&body).send().await.expect("answers");
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    records_of(&response.text().await.expect("whole"))
}

#[tokio::test]
async fn chat_and_generate_stream_records_and_end_with_counts() {
    let server = ScriptedLlm::start(Script::default()).await.expect("starts");
    let c = with_text(pool_of(&[(&server, LlmKind::Ollama)])).await;
    for model in ["small", "rag/t", "rag/t:latest"] {
        let chat =
            json!({"model": model, "messages": [{"role": "user", "content": "what makes lift"}], "keep_alive": "5m"});
        let chat = records(&c, "/api/chat", chat).await;
        let text: String = chat.iter().filter_map(|record| record["message"]["content"].as_str()).collect();
        assert_eq!(text, "Lift is made by the wing [1].");
        let generated =
            records(&c, "/api/generate", json!({"model": model, "prompt": "what makes lift", "think": false})).await;
        let text: String = generated.iter().filter_map(|record| record["response"].as_str()).collect();
        assert_eq!(text, "Lift is made by the wing [1].");
        for records in [chat, generated] {
            let (last, before) = records.split_last().expect("records");
            assert!(before.iter().all(|record| record["done"] == false && record["model"] == model));
            assert_eq!(
                (&last["done"], &last["done_reason"], &last["eval_count"]),
                (&json!(true), &json!("stop"), &json!(8))
            );
            assert!(last["total_duration"].as_u64() >= last["eval_duration"].as_u64());
            let cited = last["citations"][0]["document_id"].as_str();
            assert_eq!(cited, model.starts_with("rag/").then_some("aero"), "{last}");
        }
    }
    c.stop().await;
}

#[tokio::test]
async fn whole_answers_options_and_loading() {
    let server = ScriptedLlm::start(Script::default()).await.expect("starts");
    let c = with_text(pool_of(&[(&server, LlmKind::Ollama)])).await;
    let body = json!({
        "model": "small", "prompt": "u", "system": "s", "stream": false, "format": {"type": "object"},
        "options": {"num_predict": 7, "temperature": 0.5, "top_k": 3, "num_gpu": 12, "num_ctx": 8192},
    });
    let answer = c.post("/api/generate", body).await.ok();
    assert_eq!((&answer["response"], &answer["done"]), (&json!("Lift is made by the wing [1]."), &json!(true)));
    let asked = server.exchanges().remove(0).body;
    assert_eq!(asked["messages"], json!([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]));
    let options = &asked["options"];
    assert_eq!((&options["num_predict"], &options["top_k"], &options["num_gpu"]), (&json!(7), &json!(3), &json!(12)));
    assert_eq!(asked["format"], json!({"type": "object"}));

    let loaded = c.post("/api/generate", json!({"model": "small"})).await.ok();
    assert_eq!((&loaded["done"], &loaded["done_reason"]), (&json!(true), &json!("load")));
    assert_eq!(server.exchanges().len(), 1, "nothing was generated");
    c.stop().await;
}

#[tokio::test]
async fn errors_are_one_text() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_texts("t").await;
    let user = json!([{"role": "user", "content": "x"}]);
    for (path, body, status) in [
        ("/api/chat", json!({"model": "rag/none", "messages": user}), 404),
        ("/api/chat", json!({"model": "unserved", "messages": user}), 404),
        ("/api/chat", json!({"messages": user}), 400),
        ("/api/chat", json!({"model": "rag/t", "messages": [{"role": "x", "content": "x"}]}), 400),
        ("/api/generate", json!({"model": "rag/t", "prompt": "x", "format": 7}), 400),
        ("/api/generate", json!({"model": "rag/t", "prompt": "x", "images": ["aa"]}), 400),
        ("/api/show", json!({"model": "none"}), 404),
        ("/api/generate", json!({"model": "none"}), 404),
        ("/api/chat", json!({"model": "rag/none"}), 404),
        ("/api/embed", json!({"model": "none", "input": "x"}), 404),
    ] {
        let answer = c.post(path, body.clone()).await;
        assert_eq!(answer.status.as_u16(), status, "{path} {body}: {}", answer.body);
        assert!(answer.body["error"].as_str().is_some_and(|text| !text.is_empty()), "{path} {body}: {}", answer.body);
    }
    let refused = c.get("/api/chat").await;
    assert_eq!(refused.status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(refused.body["error"].is_string(), "{}", refused.body);
    c.put("/api/v1/aliases/live", json!({"collection": "t"})).await.ok();
    c.post("/api/chat", json!({"model": "rag/live"})).await.ok();
    c.stop().await;

    let script = Script { ending: Ending::Cut { after: 1 }, ..Script::default() };
    let server = ScriptedLlm::start(script).await.expect("starts");
    let c = with_text(pool_of(&[(&server, LlmKind::Ollama)])).await;
    let broken = records(&c, "/api/chat", json!({"model": "small", "messages": user})).await;
    assert_eq!(broken[0]["message"]["content"], "Lift ");
    assert!(broken.last().expect("an end")["error"].is_string(), "{broken:?}");
    c.stop().await;
}

#[tokio::test]
async fn what_clients_ask_of_the_server() {
    let server = ScriptedLlm::start(Script::default()).await.expect("starts");
    let c = with_text(pool_of(&[(&server, LlmKind::Ollama)])).await;
    assert_eq!(c.text("/").await, (StatusCode::OK, "Ollama is running".to_owned()));
    let head = c.http.head(format!("{}/", c.base)).send().await.expect("answers");
    assert_eq!(head.status(), StatusCode::OK);
    assert!(c.get("/api/version").await.ok()["version"].is_string());
    let tags = c.get("/api/tags").await.ok();
    let names: Vec<&str> = tags["models"].as_array().expect("list").iter().filter_map(|m| m["name"].as_str()).collect();
    assert_eq!(names, ["rag/t", "small"]);
    assert_eq!(c.post("/api/show", json!({"name": "rag/t:latest"})).await.ok()["capabilities"], json!(["completion"]));
    let embedded = c.post("/api/embed", json!({"model": "fake-hash-16", "input": ["lift", "drag"]})).await.ok();
    assert_eq!(embedded["embeddings"].as_array().map(Vec::len), Some(2));
    let one = c.post("/api/embeddings", json!({"model": "fake-hash-16", "prompt": "lift"})).await.ok();
    assert_eq!(one["embedding"], embedded["embeddings"][0]);
    c.stop().await;
}
