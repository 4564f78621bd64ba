//! The retrieval cache is never seen but in its speed: a write between two equal searches shows.

use std::sync::Arc;
use std::time::Duration;

use coordinator::cluster::twin::Twin;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use super::redis_server::RedisServer;
use super::support::{Coordinator, Setup};

/// Asks the primaries, whose word counts for the staleness bound: which copy answers is left to chance otherwise.
async fn search(c: &Coordinator, vector: [f64; 3], session: Option<&Value>) -> Value {
    let mut body = json!({"collection": "v", "vector": vector, "top_k": 5, "explain": true, "prefer_copy": "primary"});
    if let Some(session) = session {
        body["consistency"] = json!("session");
        body["session"] = session.clone();
    }
    c.post("/api/v1/search", body).await.ok()
}

#[tokio::test]
async fn a_repeated_search_asks_no_shard_and_a_write_ends_that() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_vectors("v", 3).await;
    c.put_circle("v", 10).await;
    let first = search(&c, [1.0, 0.0, 0.0], None).await;
    let calls = c.twin.calls("search");
    let second = search(&c, [1.0, 0.0, 0.0], None).await;
    assert_eq!((&first["explain"]["cached"], &second["explain"]["cached"]), (&json!(false), &json!(true)));
    assert_eq!((&first["hits"], c.twin.calls("search")), (&second["hits"], calls));
    let point = json!({"points": [{"id": "new", "vector": [1, 0, 0]}]});
    c.put("/api/v1/collections/v/points", point).await.ok();
    let third = search(&c, [1.0, 0.0, 0.0], None).await;
    assert_eq!((&third["explain"]["cached"], &third["hits"][0]["document_id"]), (&json!(false), &json!("new")));
    c.stop().await;
}

#[tokio::test]
async fn an_answer_s_tag_changes_with_the_answer() {
    let c = Coordinator::start(Setup::default()).await;
    c.create_vectors("v", 2).await;
    c.put_circle("v", 6).await;
    let tag = async || {
        let answer = c.post("/api/v1/search", json!({"collection": "v", "vector": [1, 0, 0]})).await;
        assert_eq!(answer.headers["cache-control"], "private, no-cache");
        answer.headers["etag"].clone()
    };
    let first = tag().await;
    assert_eq!(first, tag().await);
    c.put("/api/v1/collections/v/points", json!({"points": [{"id": "new", "vector": [1, 0, 0]}]})).await.ok();
    assert_ne!(first, tag().await);
    c.stop().await;
}

#[tokio::test]
async fn another_coordinator_s_write_is_seen_by_session_and_within_the_bound() {
    let setup = Setup { max_staleness: Duration::from_secs(3600), ..Setup::default() };
    let twin = Arc::clone(&setup.twin);
    let (reader, writer) =
        (Coordinator::start(setup).await, Coordinator::start(Setup { twin, ..Setup::default() }).await);
    writer.create_vectors("v", 3).await;
    writer.put_circle("v", 10).await;
    while reader.get("/api/v1/collections/v").await.status != 200 {}
    search(&reader, [1.0, 0.0, 0.0], None).await;
    let point = json!({"points": [{"id": "new", "vector": [1, 0, 0]}]});
    let session = writer.put("/api/v1/collections/v/points", point).await.ok()["session"].clone();
    let stale = search(&reader, [1.0, 0.0, 0.0], None).await;
    assert_eq!(stale["explain"]["cached"], true, "within an hour, an eventual read may be this old");
    let fresh = search(&reader, [1.0, 0.0, 0.0], Some(&session)).await;
    assert_eq!(fresh["hits"][0]["document_id"], "new");
    let positions = reader.twin.calls("positions");
    let repeated = search(&reader, [1.0, 0.0, 0.0], Some(&session)).await;
    assert_eq!(
        repeated["explain"]["cached"], true,
        "a session read is served from the cache once the primaries confirm it"
    );
    assert!(reader.twin.calls("positions") > positions);
    reader.stop().await;
    writer.stop().await;
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    Search(u8),
    FailOver(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0u8..6, 0u8..8).prop_map(|(id, angle)| Step::Put(id, angle)),
        1 => (0u8..6).prop_map(Step::Delete),
        4 => (0u8..2).prop_map(Step::Search),
        1 => (1u8..=3).prop_map(Step::FailOver),
    ];
    proptest::collection::vec(step, 1..40)
}

/// Any sequence of writes by one coordinator and searches by others with `max_staleness` 0: with the cache on, each search
/// answers exactly as one without a cache. `cached_count` coordinators take turns at searching with a cache.
fn the_cache_is_invisible(cached_count: usize, redis: Option<&RedisServer>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let mut runner = TestRunner::new(Config { cases: 12, ..Config::default() });
    let outcome = runner.run(&steps(), |steps| {
        runtime.block_on(async {
            let twin = Twin::new(3);
            // Each case is a cluster of its own under the same name; what the last one left would be taken for this one's.
            if let Some(redis) = redis {
                assert_eq!(redis.command(&["FLUSHALL"]), "OK");
            }
            let mut cached = Vec::new();
            for _ in 0..cached_count {
                let (twin, redis) = (Arc::clone(&twin), redis.map(RedisServer::url));
                let setup = Setup { max_staleness: Duration::ZERO, twin, redis, ..Setup::default() };
                cached.push(Coordinator::start(setup).await);
            }
            let plain = Coordinator::start(Setup { twin: Arc::clone(&twin), caching: false, ..Setup::default() }).await;
            plain.create_vectors("v", 2).await;
            for c in &cached {
                while c.get("/api/v1/collections/v").await.status != 200 {}
            }
            let mut turns = (0..cached_count).cycle();
            for step in &steps {
                match step {
                    Step::Put(id, angle) => {
                        let angle = f64::from(*angle);
                        let point = json!({"id": format!("p{id}"), "vector": [angle.cos(), angle.sin(), 0.5]});
                        plain.put("/api/v1/collections/v/points", json!({"points": [point]})).await.ok();
                    }
                    Step::Delete(id) => {
                        let body = json!({"ids": [format!("p{id}")]});
                        plain.post("/api/v1/collections/v/points:delete", body).await.ok();
                    }
                    Step::FailOver(node) => twin.fail_over(u64::from(*node), true),
                    Step::Search(direction) => {
                        let vector = if *direction == 0 { [1.0, 0.0, 0.0] } else { [0.0, 1.0, 0.0] };
                        let turn = &cached[turns.next().expect("endless")];
                        let (with, without) = (search(turn, vector, None).await, search(&plain, vector, None).await);
                        prop_assert_eq!(&with["hits"], &without["hits"]);
                    }
                }
            }
            for c in cached {
                c.stop().await;
            }
            plain.stop().await;
            Ok(())
        })
    });
    outcome.expect("holds");
}

#[test]
fn with_no_staleness_allowed_the_cache_is_invisible() {
    the_cache_is_invisible(1, None);
}

#[test]
fn with_no_staleness_allowed_the_shared_cache_is_invisible() {
    let server = RedisServer::start();
    the_cache_is_invisible(2, Some(&server));
    let stats = server.command(&["INFO", "stats"]);
    let hits = stats.lines().find_map(|line| line.strip_prefix("keyspace_hits:")).expect("counted");
    assert_ne!(hits.trim(), "0", "nothing was ever found in Redis");
}
