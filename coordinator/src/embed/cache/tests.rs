use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::join_all;
use tokio::sync::Semaphore;

use super::super::fake::FakeEmbedder;
use super::*;

const BOUNDS: Bounds = Bounds { entries: 100, bytes: 1 << 20, ttl: Duration::from_secs(3600) };

fn cached(inner: impl Embedder + 'static, bounds: Bounds) -> (CachedEmbedder, CacheMetrics) {
    let metrics = CacheMetrics::new();
    (CachedEmbedder::new(Arc::new(inner), bounds, None, metrics.clone()), metrics)
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

fn texts(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[tokio::test]
async fn a_repeated_text_is_a_hit_with_the_same_vector_in_its_place() {
    let fake = FakeEmbedder::new(16);
    let (cached, metrics) = cached(fake.clone(), BOUNDS);
    cached.embed(texts(&["a", "b"]), Purpose::Query, far()).await.expect("embeds");
    let mixed = cached.embed(texts(&["c", "a", "d", "b"]), Purpose::Query, far()).await.expect("embeds");
    assert_eq!(metrics.counted(Tier::Memory, Kind::Embedding), (2, 4));
    for (text, vector) in ["c", "a", "d", "b"].iter().zip(&mixed) {
        assert_eq!(vector, &fake.vector(text), "{text}");
    }
}

#[tokio::test]
async fn what_is_ingested_passes_by_however_little_it_is() {
    let (cached, metrics) = cached(FakeEmbedder::new(16), BOUNDS);
    for words in [&["a"][..], &["a"; 20]] {
        assert_eq!(cached.embed(texts(words), Purpose::Ingest, far()).await.expect("embeds").len(), words.len());
    }
    assert_eq!(metrics.counted(Tier::Memory, Kind::Embedding), (0, 0));
    cached.embed(texts(&["a"]), Purpose::Query, far()).await.expect("embeds");
    assert_eq!(metrics.counted(Tier::Memory, Kind::Embedding), (0, 1), "nothing was kept");
}

#[tokio::test]
async fn vectors_are_bounded_in_number_in_bytes_and_in_time() {
    let bounds = [
        Bounds { entries: 10, ..BOUNDS },
        Bounds { bytes: 10 * entry_bytes(16) + 1, ..BOUNDS },
        Bounds { ttl: Duration::from_millis(1), ..BOUNDS },
    ];
    for bounds in bounds {
        let (cached, metrics) = cached(FakeEmbedder::new(16), bounds);
        for number in 0..50 {
            cached.embed(vec![format!("text {number}")], Purpose::Query, far()).await.expect("embeds");
        }
        let kept = || {
            cached.memory.run_pending_tasks();
            cached.memory.entry_count()
        };
        if bounds.ttl == BOUNDS.ttl {
            assert!((1..=10).contains(&kept()), "{bounds:?}");
        } else {
            while kept() > 0 {
                tokio::task::yield_now().await;
            }
            cached.embed(texts(&["text 0"]), Purpose::Query, far()).await.expect("embeds");
        }
        assert_eq!(metrics.counted(Tier::Memory, Kind::Embedding).0, 0);
    }
}

#[tokio::test]
async fn a_failure_is_not_cached() {
    let (cached, _) = cached(FakeEmbedder::new(16), BOUNDS);
    let past = Instant::now() - Duration::from_secs(1);
    assert_eq!(cached.embed(texts(&["a"]), Purpose::Query, past).await, Err(EmbedError::DeadlineExceeded));
    assert!(cached.embed(texts(&["a"]), Purpose::Query, far()).await.is_ok());
}

/// The fake embedder behind a gate: each call needs a permit.
struct Gated {
    inner: FakeEmbedder,
    gate: Arc<Semaphore>,
    begun: Arc<AtomicUsize>,
}

impl Embedder for Gated {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn dim(&self) -> usize {
        self.inner.dim()
    }

    fn tokens_max(&self) -> usize {
        self.inner.tokens_max()
    }

    fn count_tokens(&self, text: &str) -> usize {
        self.inner.count_tokens(text)
    }

    fn embed(
        &self,
        texts: Vec<String>,
        purpose: Purpose,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Embedding>, EmbedError>> {
        Box::pin(async move {
            self.begun.fetch_add(1, Ordering::SeqCst);
            self.gate.acquire().await.map_err(|_| EmbedError::Closed)?.forget();
            self.inner.embed(texts, purpose, deadline).await
        })
    }
}

fn gated() -> (CachedEmbedder, Arc<Semaphore>, Arc<AtomicUsize>) {
    let (gate, begun) = (Arc::new(Semaphore::new(0)), Arc::<AtomicUsize>::default());
    let inner = Gated { inner: FakeEmbedder::new(16), gate: Arc::clone(&gate), begun: Arc::clone(&begun) };
    (cached(inner, BOUNDS).0, gate, begun)
}

#[tokio::test]
async fn of_equal_questions_at_once_one_is_embedded() {
    let (cached, gate, begun) = gated();
    let open = async {
        tokio::task::yield_now().await;
        gate.add_permits(20);
    };
    let (all, ()) = tokio::join!(join_all((0..20).map(|_| cached.embed(texts(&["a"]), Purpose::Query, far()))), open);
    assert!(all.iter().all(|vectors| vectors.as_ref().is_ok_and(|vectors| vectors.len() == 1)));
    assert_eq!(begun.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn whoever_embeds_may_leave_and_whoever_waits_goes_on() {
    let (cached, gate, begun) = gated();
    let cached = Arc::new(cached);
    let ask = || {
        let cached = Arc::clone(&cached);
        tokio::spawn(async move { cached.embed(texts(&["a"]), Purpose::Query, far()).await })
    };
    let leader = ask();
    while begun.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let follower = ask();
    tokio::task::yield_now().await;
    leader.abort();
    gate.add_permits(1);
    assert_eq!(follower.await.expect("joins").expect("embeds").len(), 1);
    assert_eq!(begun.load(Ordering::SeqCst), 2);
}

#[test]
fn only_a_whole_vector_of_the_right_size_is_read() {
    let vector: Embedding = Arc::from([1.0, -0.5]);
    let bytes = to_bytes(&vector);
    assert_eq!(from_bytes(&bytes, 2), Some(vector));
    assert_eq!((from_bytes(&bytes, 3), from_bytes(&bytes[..7], 2), from_bytes(&[], 2)), (None, None, None));
    assert_eq!(from_bytes(&to_bytes(&[1.0, f32::NAN]), 2), None);
}
