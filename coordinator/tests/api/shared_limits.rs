//! A tenant's limits over two coordinators that share a Redis: what one lets through the other counts; without the Redis each counts
//! by itself again, and nobody is refused because of that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::json;

use super::redis_server::RedisServer;
use super::support::{Answer, Coordinator, Setup};
use super::tenants::{OPERATOR, make_key, with_keys};

async fn start_two(server: &RedisServer) -> [Coordinator; 2] {
    let setup = || Setup { redis: Some(server.url()), ..with_keys() };
    let first = setup();
    let twin = Arc::clone(&first.twin);
    let both = [Coordinator::start(first).await, Coordinator::start(Setup { twin, ..setup() }).await];
    for c in &both {
        until("Redis is in use", async || c.text("/metrics").await.1.contains("\ncache_redis_up 1")).await;
    }
    both
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < end, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A key of the tenant at each coordinator; their catalogs are two.
async fn keys(both: &[Coordinator; 2], tenant: &str, limits: serde_json::Value) -> [String; 2] {
    let mut keys = [String::new(), String::new()];
    for (c, key) in both.iter().zip(&mut keys) {
        *key = make_key(c, tenant, "read").await.1;
        let path = format!("/api/v1/tenants/{tenant}");
        c.call_as(OPERATOR, Method::PUT, &path, Some(limits.clone())).await.ok();
    }
    keys
}

async fn embed(c: &Coordinator, key: &str, texts: &[&str]) -> Answer {
    c.call_as(key, Method::POST, "/v1/embeddings", Some(json!({"model": "fake-hash-16", "input": texts}))).await
}

fn retry_after(refused: &Answer) -> u64 {
    refused.headers["retry-after"].to_str().expect("text").parse().expect("seconds")
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_counted_over_both() {
    let server = RedisServer::start();
    let both = start_two(&server).await;
    // A tenant that the second has never seen has its whole allowance there; if a second passes between the two calls, that in Redis is
    // full again, too, and the next tenant's turn comes.
    for attempt in 0..100 {
        let [at_first, at_second] = keys(&both, &format!("t{attempt}"), json!({"requests_per_second": 1})).await;
        let call = async |c: &Coordinator, key: &str| c.call_as(key, Method::GET, "/api/v1/collections", None).await;
        assert_eq!(call(&both[0], &at_first).await.status, StatusCode::OK);
        let second = call(&both[1], &at_second).await;
        if second.status == StatusCode::TOO_MANY_REQUESTS {
            assert_eq!((&second.body["error"]["type"], retry_after(&second)), (&json!("rate_limited"), 1));
            for c in both {
                c.stop().await;
            }
            return;
        }
        second.ok();
    }
    panic!("of a hundred times two requests not one pair came within a second");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_counted_over_both_and_by_each_alone_without_redis() {
    let server = RedisServer::start();
    let both = start_two(&server).await;
    let [at_first, at_second] = keys(&both, "acme", json!({"tokens_per_minute": 100})).await;
    let others = keys(&both, "other", json!({"tokens_per_minute": 1_000_000})).await;
    // Twelve minutes' worth, which is known only once it is spent.
    let long = "word ".repeat(300);
    embed(&both[0], &at_first, &[long.as_str(); 5]).await.ok();
    let refused = embed(&both[0], &at_first, &["word"]).await;
    assert_eq!((refused.status.as_u16(), &refused.body["error"]["type"]), (429, &json!("rate_limit_error")));
    until("the other one hears of the debt", async || {
        let answer = embed(&both[1], &at_second, &["word"]).await;
        answer.status == StatusCode::TOO_MANY_REQUESTS && retry_after(&answer) > 300
    })
    .await;
    for (c, other) in both.iter().zip(&others) {
        embed(c, other, &["word"]).await.ok();
    }

    drop(server);
    for (c, other) in both.iter().zip(&others) {
        until("Redis is given up", async || {
            embed(c, other, &["word"]).await.ok();
            c.text("/metrics").await.1.contains("\ncache_redis_up 0")
        })
        .await;
    }
    until("its own count lets it through", async || embed(&both[1], &at_second, &["word"]).await.status == 200).await;
    assert_eq!(embed(&both[0], &at_first, &["word"]).await.status.as_u16(), 429, "its own count goes on to hold");
    for c in both {
        c.stop().await;
    }
}
