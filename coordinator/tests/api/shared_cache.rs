//! The tier in Redis, with a real server: what one coordinator computed serves the other, writes show at once, and a Redis that is slow,
//! dead or full of strange things costs a bounded few waits and no error.

use std::sync::Arc;
use std::time::Duration;

use cluster_config::cache_config::RedisConfig;
use coordinator::cache::key::CacheKey;
use coordinator::cache::metrics::{CacheMetrics, Kind};
use coordinator::cache::redis::{Leased, SharedCache, Term};
use prometheus::{Registry, TextEncoder};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::redis_server::RedisServer;
use super::support::{Coordinator, Setup};

/// Reads that fail before the breaker keeps requests from asking.
const FAILED_READS_MAX: u64 = 5;

/// Life of a lease whose owner dies.
const LEASE: Term = Term::Fixed(Duration::from_millis(250));

/// One coordinator's end of the tier.
struct End {
    cache: SharedCache,
    registry: Registry,
    _worker: DropGuard,
}

impl End {
    fn new(url: &str, timeout: Duration) -> Self {
        let (metrics, registry) = (CacheMetrics::new(), Registry::new());
        metrics.register(&registry).expect("registers");
        let config = RedisConfig { urls: vec![url.to_owned()], timeout };
        let (cache, worker) = SharedCache::new(&config, "test", Duration::from_secs(60), metrics);
        let cancel = CancellationToken::new();
        tokio::spawn(worker.run(cancel.clone()));
        Self { cache, registry, _worker: cancel.drop_guard() }
    }

    /// Connected, and patient: on a busy machine an answer may take longer than the 5 ms of a real coordinator.
    async fn connected(server: &RedisServer) -> Self {
        let end = Self::new(&server.url(), Duration::from_millis(500));
        end.until_up(1).await;
        end
    }

    async fn until_up(&self, up: u64) {
        until(async || self.series("cache_redis_up") == up).await;
    }

    fn series(&self, name: &str) -> u64 {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather()).expect("renders");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.expect("such a series").parse().expect("a number")
    }

    async fn get(&self, key: &CacheKey) -> Option<Vec<u8>> {
        self.cache.get(Kind::Retrieval, key).await
    }
}

async fn until(condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("becomes true within a minute");
}

fn key(text: &str) -> CacheKey {
    CacheKey::of_embedding("m", text)
}

fn name(key: &CacheKey) -> String {
    format!("susui:test:retrieval:{key}")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_end_puts_the_other_gets_with_a_life_and_strange_values_are_misses() {
    let server = RedisServer::start();
    let (a, b) = (End::connected(&server).await, End::connected(&server).await);
    a.cache.put(Kind::Retrieval, &key("x"), b"payload");
    until(async || b.get(&key("x")).await.as_deref() == Some(b"payload")).await;
    let life: i64 = server.command(&["TTL", &name(&key("x"))]).parse().expect("a number");
    assert!((1..=60).contains(&life), "{life}");
    a.cache.remove(Kind::Retrieval, &key("x"));
    until(async || b.get(&key("x")).await.is_none()).await;

    server.command(&["SET", &name(&key("text")), "someone else's"]);
    server.command(&["RPUSH", &name(&key("list")), "a", "b"]);
    a.cache.put(Kind::Retrieval, &key("moved"), b"payload");
    until(async || b.get(&key("moved")).await.is_some()).await;
    server.command(&["RENAME", &name(&key("moved")), &name(&key("elsewhere"))]);
    for strange in ["text", "list", "elsewhere"] {
        for _ in 0..10 {
            assert_eq!(b.get(&key(strange)).await, None, "{strange}");
        }
    }
    assert_eq!((b.series("cache_redis_foreign_total"), b.series("cache_redis_up")), (30, 1), "counted, and no failure");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_end_has_the_lease_until_it_gives_it_back_or_dies() {
    let server = RedisServer::start();
    let (a, b) = (End::connected(&server).await, End::connected(&server).await);
    let lease = a.cache.lease(&key("q"), LEASE).await;
    assert!(matches!(lease, Leased::Mine(_)));
    assert!(matches!(b.cache.lease(&key("other"), LEASE).await, Leased::Mine(_)));
    drop(lease);
    until(async || matches!(b.cache.lease(&key("q"), LEASE).await, Leased::Mine(_))).await;
    std::mem::forget(a.cache.lease(&key("dead"), LEASE).await);
    until(async || matches!(b.cache.lease(&key("dead"), LEASE).await, Leased::Mine(_))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_lease_holds_for_as_long_as_its_owner() {
    let server = RedisServer::start();
    let (a, b) = (End::connected(&server).await, End::connected(&server).await);
    let lease = a.cache.lease(&key("q"), Term::Renewed(Duration::from_secs(6))).await;
    assert!(matches!(lease, Leased::Mine(_)));
    // Its life only ever grows shorter, but for a renewal.
    let life =
        || server.command(&["PTTL", &format!("susui:test:lease:{}", key("q"))]).parse::<i64>().expect("a number");
    let shortest = std::cell::Cell::new(life());
    until(async || {
        let before = shortest.replace(life());
        shortest.get() > before
    })
    .await;
    assert!(matches!(b.cache.lease(&key("q"), LEASE).await, Leased::Theirs));
    drop(lease);
    until(async || matches!(b.cache.lease(&key("q"), LEASE).await, Leased::Mine(_))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_redis_is_left_alone_after_a_few_reads_and_taken_back_when_it_thaws() {
    let server = RedisServer::start();
    let end = End::new(&server.url(), Duration::from_millis(5));
    end.until_up(1).await;
    end.cache.put(Kind::Retrieval, &key("x"), b"payload");
    until(async || end.series("cache_redis_writes_total{outcome=\"written\"}") == 1).await;
    let failed_before = end.series("cache_redis_failures_total");
    server.signal("STOP");
    for _ in 0..100 {
        assert_eq!(end.get(&key("x")).await, None);
    }
    let failed = end.series("cache_redis_failures_total") - failed_before;
    assert!((1..=FAILED_READS_MAX).contains(&failed), "{failed} reads waited");
    assert_eq!(end.series("cache_redis_up"), 0);
    server.signal("CONT");
    until(async || end.get(&key("x")).await.as_deref() == Some(b"payload")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_redis_is_used_again_once_it_is_back() {
    let server = RedisServer::start();
    let end = End::connected(&server).await;
    let url = server.url();
    drop(server);
    for _ in 0..100 {
        assert_eq!(end.get(&key("x")).await, None);
    }
    end.until_up(0).await;
    let port: u16 = url.rsplit_once(':').expect("a port").1.parse().expect("a number");
    let _server = RedisServer::start_at(port);
    end.until_up(1).await;
    end.cache.put(Kind::Retrieval, &key("x"), b"again");
    until(async || end.get(&key("x")).await.as_deref() == Some(b"again")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_no_redis_is_never_asked_by_a_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("redis://{}", listener.local_addr().expect("bound"));
    let (greeted, mut greetings) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = [0; 1024];
            let _ = stream.read(&mut bytes).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
            let _ = greeted.try_send(());
        }
    });
    let end = End::new(&url, Duration::from_millis(5));
    greetings.recv().await.expect("is dialled");
    greetings.recv().await.expect("is dialled again");
    assert_eq!((end.get(&key("x")).await, end.series("cache_redis_skipped_total")), (None, 1));
}

async fn two(server: &RedisServer, max_staleness: Duration) -> (Coordinator, Coordinator) {
    let first = Setup { redis: Some(server.url()), max_staleness, ..Setup::default() };
    let second = Setup { redis: Some(server.url()), max_staleness, twin: Arc::clone(&first.twin), ..Setup::default() };
    let (first, second) = (Coordinator::start(first).await, Coordinator::start(second).await);
    for c in [&first, &second] {
        until(async || c.text("/metrics").await.1.contains("\ncache_redis_up 1")).await;
    }
    first.create_vectors("v", 3).await;
    until(async || second.get("/api/v1/collections/v").await.status == 200).await;
    (first, second)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_coordinator_s_result_serves_the_other_until_a_write() {
    let server = RedisServer::start();
    let (a, b) = two(&server, Duration::from_secs(10)).await;
    a.put_circle("v", 10).await;
    let search = json!({"collection": "v", "vector": [1, 0, 0], "explain": true, "prefer_copy": "primary"});
    let first = a.post("/api/v1/search", search.clone()).await.ok();
    assert_eq!(first["explain"]["cached"], false);
    until(async || server.command(&["DBSIZE"]) != "0").await;
    // From here on `b` answers without a search of its own, from Redis and then from its memory.
    let searches = b.twin.calls("search");
    for _ in 0..2 {
        let second = b.post("/api/v1/search", search.clone()).await.ok();
        assert_eq!((&second["explain"]["cached"], &second["hits"]), (&json!(true), &first["hits"]));
    }
    assert_eq!(b.twin.calls("search"), searches);
    let metrics = b.text("/metrics").await.1;
    assert!(metrics.contains("cache_hit_rate{kind=\"retrieval\",tier=\"redis\"} 1\n"), "{metrics}");

    let point = json!({"points": [{"id": "new", "vector": [1, 0, 0]}]});
    let session = a.put("/api/v1/collections/v/points", point).await.ok()["session"].clone();
    let mut again = search;
    again["consistency"] = json!("session");
    again["session"] = session;
    let fresh = b.post("/api/v1/search", again).await.ok();
    assert_eq!((&fresh["explain"]["cached"], &fresh["hits"][0]["document_id"]), (&json!(false), &json!("new")));
    a.stop().await;
    b.stop().await;
}
