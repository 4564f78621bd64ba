use futures::StreamExt;
use serde_json::json;

use super::*;

async fn post(server: &ScriptedLlm, path: &str) -> reqwest::Result<reqwest::Response> {
    let body = json!({"model": "small", "stream": true, "messages": [{"role": "user", "content": "why?"}]});
    reqwest::Client::new().post(format!("{}{path}", server.url())).json(&body).send().await
}

fn two_tokens(ending: Ending) -> Script {
    Script { tokens: vec!["a".into(), "b".into()], ending, ..Script::default() }
}

#[tokio::test]
async fn both_protocols_end_well_and_are_noted() {
    let server = ScriptedLlm::start(two_tokens(Ending::Complete)).await.expect("starts");
    let text = post(&server, "/api/chat").await.expect("answers").text().await.expect("whole");
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&records[1]["message"]["content"], &records[2]["done"]), (&json!("b"), &json!(true)));
    let text = post(&server, "/v1/chat/completions").await.expect("answers").text().await.expect("whole");
    assert!(text.contains("\"content\":\"b\"") && text.ends_with("data: [DONE]\n\n"), "{text}");
    let exchanges = server.exchanges();
    assert_eq!((exchanges.len(), exchanges[1].sent.len()), (2, 2));
    assert!(exchanges.iter().all(|exchange| matches!(exchange.end, Some((_, End::Complete)))), "{exchanges:?}");
}

#[tokio::test]
async fn failures_are_as_scripted() {
    let server = ScriptedLlm::start(two_tokens(Ending::Cut { after: 1 })).await.expect("starts");
    assert!(post(&server, "/api/chat").await.expect("begins").text().await.is_err(), "cut");
    server.play(two_tokens(Ending::Error { after: 1 }));
    assert!(post(&server, "/api/chat").await.expect("begins").text().await.expect("ends").contains("\"error\""));
    server.play(two_tokens(Ending::TruncatedText { after: 0 }));
    let bytes = post(&server, "/api/chat").await.expect("begins").bytes().await.expect("ends");
    assert_eq!(bytes.last(), Some(&0xc3));
    server.play(Script { at_once_max: 0, ..Script::default() });
    assert_eq!(post(&server, "/api/chat").await.expect("answers").status(), 503);
}

#[tokio::test]
async fn a_client_that_leaves_is_seen_before_and_after_the_first_token() {
    let server = ScriptedLlm::start(two_tokens(Ending::Stall { after: 1 })).await.expect("starts");
    let mut stream = post(&server, "/api/chat").await.expect("begins").bytes_stream();
    stream.next().await.expect("one token").expect("bytes");
    drop(stream);
    server.until(|exchanges| matches!(exchanges[0].end, Some((_, End::ClientGone)))).await.expect("seen");

    let steps = Steps::default();
    server.play(Script { steps: Some(steps), ..Script::default() });
    let asked = tokio::time::timeout(Duration::from_millis(50), post(&server, "/api/chat")).await;
    assert!(asked.is_err(), "no token was allowed");
    server.until(|exchanges| exchanges.len() == 2 && exchanges[1].end.is_some()).await.expect("seen");
}

#[tokio::test]
async fn it_stops_and_comes_back_on_its_port() {
    let mut server = ScriptedLlm::start(Script::default()).await.expect("starts");
    server.stop().await;
    assert!(post(&server, "/api/chat").await.is_err(), "nobody listens");
    server.restart().await.expect("listens");
    assert!(post(&server, "/api/chat").await.expect("answers").status().is_success());
}
