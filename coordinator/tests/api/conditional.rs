//! `GET` with `If-None-Match`, and compressed answers.

use reqwest::{Method, StatusCode};
use serde_json::json;

use super::support::{Answer, Coordinator, Setup};

async fn get_with(c: &Coordinator, path: &str, header: &str, value: &str) -> Answer {
    let request = c.http.request(Method::GET, format!("{}{path}", c.base)).header(header, value);
    Coordinator::read(request.send().await.expect("answers")).await
}

#[tokio::test]
async fn a_search_by_url_is_not_modified_until_it_is() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_texts("t").await;
    c.upload("t", "wings", "Wings", "Lift is made by the wing.").await;
    let path = "/api/v1/search?query=lift&collection=t&top_k=3&include=text";
    let first = c.get(path).await;
    let tag = first.headers["etag"].to_str().expect("text").to_owned();
    assert_eq!(first.headers["cache-control"], "private, no-cache");
    let posted = c.post("/api/v1/search", json!({"query": "lift", "collection": "t", "top_k": 3, "include": ["text"]}));
    assert_eq!(first.body["hits"], posted.await.ok()["hits"]);

    let same = get_with(&c, path, "if-none-match", &tag).await;
    assert_eq!((same.status, &same.headers["etag"]), (StatusCode::NOT_MODIFIED, &first.headers["etag"]));
    assert_eq!(get_with(&c, path, "if-none-match", "W/\"other\"").await.status, StatusCode::OK);
    c.upload("t", "drag", "Drag", "Lift costs drag.").await;
    assert_eq!(get_with(&c, path, "if-none-match", &tag).await.status, StatusCode::OK, "a write changes the tag");
    c.stop().await;
}

#[tokio::test]
async fn a_bad_url_is_refused_by_field() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_texts("t").await;
    for (parameters, field) in [
        ("query=a&top_k=0", "top_k"),
        ("query=a&include=texts", "include"),
        ("query=a&filters=%7B", "filters:"),
        ("query=a&vector=1", "query string"),
        ("", "query"),
    ] {
        let refused = c.get(&format!("/api/v1/search?collection=t&{parameters}")).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{parameters}: {}", refused.body);
        let message = refused.body["error"]["message"].as_str().expect("message");
        assert!(message.starts_with(field), "{parameters}: {message}");
    }
    c.stop().await;
}

#[tokio::test]
async fn the_description_may_be_kept_and_asked_about() {
    let c = Coordinator::start(Setup::default()).await;
    let first = c.get("/openapi.json").await;
    assert_eq!(first.headers["cache-control"], "public, max-age=3600");
    let tag = first.headers["etag"].to_str().expect("text").to_owned();
    let again = get_with(&c, "/openapi.json", "if-none-match", &tag).await;
    assert_eq!((again.status, again.body), (StatusCode::NOT_MODIFIED, json!(null)));
    c.stop().await;
}

#[tokio::test]
async fn json_is_compressed_on_request_and_only_then_and_streams_never() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_texts("t").await;
    c.upload("t", "wings", "Wings", &"Lift is made by the wing. ".repeat(200)).await;
    for encoding in ["gzip", "br"] {
        let compressed = get_with(&c, "/openapi.json", "accept-encoding", encoding).await;
        assert_eq!(compressed.headers["content-encoding"], encoding);
        assert!(compressed.headers["vary"].to_str().expect("text").eq_ignore_ascii_case("accept-encoding"));
    }
    let plain = c.get("/openapi.json").await;
    assert!(!plain.headers.contains_key("content-encoding"));
    let small = get_with(&c, "/livez", "accept-encoding", "gzip").await;
    assert!(!small.headers.contains_key("content-encoding"), "not worth it");

    let question = json!({"query": "lift", "collection": "t", "stream": true});
    let streamed =
        c.http.post(format!("{}/api/v1/query", c.base)).header("accept-encoding", "gzip, br").json(&question);
    let streamed = streamed.send().await.expect("answers");
    assert_eq!(streamed.headers()["content-type"], "text/event-stream");
    assert!(!streamed.headers().contains_key("content-encoding"));
    let text = streamed.text().await.expect("text");
    assert!(text.contains("event: done"), "{text}");

    let messages = json!([{"role": "user", "content": "lift"}]);
    for (path, body, kind, end) in [
        ("/v1/chat/completions", json!({"messages": messages}), "text/event-stream", "data: [DONE]"),
        ("/v1/completions", json!({"prompt": "lift"}), "text/event-stream", "data: [DONE]"),
        ("/api/chat", json!({"messages": messages}), "application/x-ndjson", "\"done\":true"),
        ("/api/generate", json!({"prompt": "lift"}), "application/x-ndjson", "\"done\":true"),
    ] {
        let mut body = body;
        body["model"] = json!("rag/t");
        body["stream"] = json!(true);
        let asked = c.http.post(format!("{}{path}", c.base)).header("accept-encoding", "gzip, br").json(&body);
        let streamed = asked.send().await.expect("answers");
        assert!(streamed.headers()["content-type"].to_str().is_ok_and(|value| value.starts_with(kind)), "{path}");
        assert!(!streamed.headers().contains_key("content-encoding"), "{path}");
        let text = streamed.text().await.expect("text");
        assert!(text.contains(end), "{path}: {text}");
    }
    c.stop().await;
}
