//! Promises that are times. Ignored: they say something only on a machine that does nothing else (`ops/test --full`).

use std::time::{Duration, Instant};

use chaos_tests::llm::{Script, ScriptedLlm, Steps};
use cluster_config::llm_config::{Balance, LlmKind};
use futures::StreamExt;
use futures::future::join_all;
use serde_json::{Value, json};

use super::llm::{balanced, pool_of, pool_with, with_text};
use super::support::Coordinator;

fn chat() -> Value {
    json!({"model": "small", "messages": [{"role": "user", "content": "x"}], "stream": true})
}

/// The `share` quantile, 0..1.
fn quantile(mut times: Vec<Duration>, share: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * share).round() as usize]
}

/// A client that keeps its connections, as a front end does.
fn client() -> reqwest::Client {
    reqwest::Client::builder().tcp_nodelay(true).build().expect("client")
}

/// Reads a stream and notes when each of `tokens` tokens came.
async fn arrivals(http: &reqwest::Client, base: &str, number: usize, tokens: usize) -> (usize, Vec<Instant>) {
    let mut body = chat();
    body["messages"][0]["content"] = format!("stream {number}").into();
    let response = http.post(format!("{base}/v1/chat/completions")).json(&body).send().await.expect("answers");
    let (mut bytes, mut text, mut seen) = (response.bytes_stream(), String::new(), Vec::new());
    while let Some(piece) = bytes.next().await {
        let now = Instant::now();
        text.push_str(&String::from_utf8_lossy(&piece.expect("bytes")));
        let count = text.matches("token ").count().min(tokens);
        seen.resize(count, now);
    }
    (number, seen)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a time: ops/test --full"]
async fn gaps_between_tokens_survive_with_a_hundred_streams() {
    const TOKENS: usize = 60;
    let (first_token, token_gap) = (Duration::from_millis(50), Duration::from_millis(50));
    let tokens = (0..TOKENS).map(|number| format!("token {number} ")).collect();
    let script = Script { tokens, first_token, token_gap, ..Script::default() };
    let server = ScriptedLlm::start(script).await.expect("starts");
    let c = with_text(pool_of(&[(&server, LlmKind::Openai)])).await;
    let http = client();
    let streams = join_all((0..100).map(|number| arrivals(&http, &c.base, number, TOKENS))).await;
    let mut late = Vec::new();
    for exchange in server.exchanges() {
        let asked = exchange.body["messages"][0]["content"].as_str().expect("text");
        let number: usize = asked.rsplit(' ').next().and_then(|word| word.parse().ok()).expect("a number");
        let (_, seen) = &streams[number];
        assert_eq!((seen.len(), exchange.sent.len()), (TOKENS, TOKENS));
        for position in 1..TOKENS {
            let sent = exchange.sent[position] - exchange.sent[position - 1];
            let came = seen[position] - seen[position - 1];
            late.push(came.saturating_sub(sent).max(sent.saturating_sub(came)));
        }
    }
    let (p50, p99) = (quantile(late.clone(), 0.5), quantile(late.clone(), 0.99));
    println!("{} gaps over 100 streams: differ by p50 {p50:?}, p99 {p99:?}", late.len());
    assert!(p99 <= Duration::from_millis(5), "{p99:?}");
    c.stop().await;
}

/// Times to the first byte of an answer's text, at `rate` requests per second, sent whether or not earlier ones are answered.
async fn first_tokens(http: &reqwest::Client, base: &str, rate: u32, count: u32) -> Vec<Duration> {
    let began = Instant::now();
    let calls = (0..count).map(|number| async move {
        let due = began + Duration::from_secs(1) * number / rate;
        tokio::time::sleep_until(due.into()).await;
        let sent = Instant::now();
        let response = http.post(format!("{base}/v1/chat/completions")).json(&chat()).send().await.expect("answers");
        let mut bytes = response.bytes_stream();
        let mut text = String::new();
        while !text.contains("Lift ") {
            text.push_str(&String::from_utf8_lossy(&bytes.next().await.expect("more").expect("bytes")));
        }
        let took = sent.elapsed();
        while bytes.next().await.is_some() {}
        took
    });
    join_all(calls).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a time: ops/test --full"]
async fn passing_through_adds_little_to_the_first_token() {
    let script = || Script { first_token: Duration::from_millis(20), ..Script::default() };
    let (behind, direct) = (ScriptedLlm::start(script()).await, ScriptedLlm::start(script()).await);
    let (behind, direct) = (behind.expect("starts"), direct.expect("starts"));
    let c = with_text(pool_of(&[(&behind, LlmKind::Openai)])).await;
    let http = client();
    first_tokens(&http, &c.base, 50, 100).await;
    first_tokens(&http, &direct.url(), 50, 100).await;
    // In turns, so that both see the same machine.
    let (mut through, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        plain.extend(first_tokens(&http, &direct.url(), 200, 400).await);
        through.extend(first_tokens(&http, &c.base, 200, 400).await);
    }
    let at = |times: &[Duration], share| quantile(times.to_vec(), share);
    let added = |share| at(&through, share).saturating_sub(at(&plain, share));
    println!(
        "first token of 1600 at 200/s: direct p50 {:?} p99 {:?}, through p50 {:?} p99 {:?}, added p50 {:?} p99 {:?}",
        at(&plain, 0.5),
        at(&plain, 0.99),
        at(&through, 0.5),
        at(&through, 0.99),
        added(0.5),
        added(0.99),
    );
    assert!(added(0.99) <= Duration::from_millis(2), "{:?}", added(0.99));
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a time: ops/test --full"]
async fn p2c_gives_a_server_ten_times_slower_under_a_fifth() {
    let script = |first_token| Script { first_token, token_gap: first_token / 10, ..Script::default() };
    let quick = ScriptedLlm::start(script(Duration::from_millis(20))).await.expect("starts");
    let slow = ScriptedLlm::start(script(Duration::from_millis(200))).await.expect("starts");
    let c = with_text(pool_with(balanced(Balance::P2c), &[(&slow, LlmKind::Openai), (&quick, LlmKind::Ollama)])).await;
    let http = client();
    let clients = (0..8).map(|_| async {
        for _ in 0..100 {
            let call =
                http.post(format!("{}/v1/chat/completions", c.base)).json(&chat()).send().await.expect("answers");
            call.bytes().await.expect("whole");
        }
    });
    join_all(clients).await;
    let (slow, quick) = (slow.exchanges().len(), quick.exchanges().len());
    println!("p2c: {slow} of {} at the slow one", slow + quick);
    assert!(slow * 5 < slow + quick, "{slow} of {}", slow + quick);
    c.stop().await;
}

/// How long after the client's going away the server saw it.
async fn told_after(c: &Coordinator, server: &ScriptedLlm, steps: &Steps, tokens: usize) -> Duration {
    let count = server.exchanges().len();
    steps.allow(tokens);
    let call = tokio::spawn(c.http.post(format!("{}/v1/chat/completions", c.base)).json(&chat()).send());
    server.until(|exchanges| exchanges.len() > count && exchanges[count].sent.len() == tokens).await.expect("begins");
    let left = Instant::now();
    if tokens == 0 {
        call.abort();
    } else {
        drop(call.await.expect("no panic").expect("answers"));
    }
    let exchanges = server.until(|exchanges| exchanges[count].end.is_some()).await.expect("is told");
    exchanges[count].end.expect("ended").0.saturating_duration_since(left)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a time: ops/test --full"]
async fn a_backend_hears_within_a_tenth_of_a_second_that_its_client_left() {
    let steps = Steps::default();
    let server = ScriptedLlm::start(Script { steps: Some(steps.clone()), ..Script::default() }).await.expect("starts");
    let c = with_text(pool_of(&[(&server, LlmKind::Openai)])).await;
    for tokens in [0, 1] {
        let mut worst = Duration::ZERO;
        for _ in 0..20 {
            worst = worst.max(told_after(&c, &server, &steps, tokens).await);
        }
        println!("client gone after {tokens} tokens: told after at most {worst:?} of 20");
        assert!(worst <= Duration::from_millis(100), "{worst:?}");
    }
    c.stop().await;
}
