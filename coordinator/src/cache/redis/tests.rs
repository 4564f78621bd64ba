//! What holds without a server. With one: `tests/redis.rs`.

use super::*;

fn unconnected() -> (SharedCache, SharedWorker) {
    let config = RedisConfig { urls: vec!["redis://127.0.0.1:1".into()], timeout: Duration::from_millis(5) };
    SharedCache::new(&config, "test", Duration::from_secs(60), CacheMetrics::new())
}

#[tokio::test]
async fn before_the_first_connection_everything_is_a_miss_at_once() {
    let (cache, _worker) = unconnected();
    let key = CacheKey::of_embedding("m", "t");
    assert_eq!(cache.get(Kind::Retrieval, &key).await, None);
    assert!(matches!(cache.lease(&key, Term::Fixed(Duration::from_millis(250))).await, Leased::Unknown));
    cache.put(Kind::Retrieval, &key, b"value");
    cache.remove(Kind::Retrieval, &key);
    assert_eq!(cache.eval("x", "return 1", &[]).await, None);
}

#[test]
fn the_queue_is_bounded_in_number_and_in_bytes() {
    let metrics = CacheMetrics::new();
    let (queue, writes) = writer::queue(metrics.clone());
    let put = |bytes: usize| Job::Put { name: String::new(), value: vec![0; bytes], ttl: Duration::from_secs(1) };
    let large = limits::REDIS_VALUE_BYTES_MAX;
    for _ in 0..2 * limits::REDIS_WRITE_BYTES_MAX / large {
        queue.push(put(large));
    }
    assert_eq!(writes.waiting(), limits::REDIS_WRITE_BYTES_MAX / large);
    drop(writes);

    let (queue, writes) = writer::queue(metrics);
    for _ in 0..2 * limits::REDIS_WRITES_MAX {
        queue.push(put(1));
    }
    assert_eq!(writes.waiting(), limits::REDIS_WRITES_MAX);
}
