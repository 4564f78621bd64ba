//! Places and the queue for them: held, waited for in turn, given back.

use super::*;

#[tokio::test]
async fn a_permit_is_held_until_the_end_or_the_drop_of_the_stream() {
    let (sender, act) = live();
    let one = backend("one", vec![act, answer("second"), answer("third")]);
    let pool = pool(&[&one], 1, Timeouts::default());
    sender.send(delta("x")).await.expect("open");
    let first = ask(&pool).await.expect("begun");
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { text_of(ask(&pool).await.expect("begun")).await }
    });
    until(|| pool.waiting() == 1).await;
    assert_eq!(one.asked.load(Ordering::SeqCst), 1);
    drop(first);
    assert!(sender.is_closed(), "dropping the stream drops the backend's end");
    assert_eq!(waiting.await.expect("no panic"), "second");
    assert_eq!(pool.shared.metrics.requests.with_label_values(&["one", "cancelled"]).get(), 1);

    // The last event frees the place, though the stream is still held.
    let mut third = ask(&pool).await.expect("begun");
    while !matches!(third.events.next().await, Some(Ok(GenerateEvent::Done { .. }))) {}
    assert_eq!(pool.in_flight(), [0]);
    assert_eq!(pool.shared.metrics.tokens.with_label_values(&["one", "prompt"]).get(), 6);
}

#[tokio::test]
async fn a_full_pool_and_a_full_queue_are_overload() {
    let (_sender, act) = live();
    let one = backend("one", vec![act]);
    let timeouts = Timeouts { queue: Duration::from_millis(20), ..Timeouts::default() };
    let pool = pool(&[&one], 1, timeouts);
    _sender.send(delta("x")).await.expect("open");
    let _held = ask(&pool).await.expect("begun");
    assert!(
        matches!(ask(&pool).await, Err(GenerateError::Overloaded { retry_after }) if retry_after >= Duration::from_secs(1))
    );
    let near = Instant::now() + Duration::from_millis(5);
    assert_eq!(pool.generate(GenerateRequest::default(), near).await.err(), Some(GenerateError::DeadlineExceeded));
    assert_eq!(pool.waiting(), 0, "who gives up leaves the queue");
}

#[tokio::test]
async fn tenants_wait_in_turn_and_who_leaves_the_queue_was_never_asked_for() {
    let (sender, act) = live();
    let one = backend("one", vec![act, answer("1"), answer("2"), answer("3")]);
    let pool = pool(&[&one], 1, Timeouts::default());
    sender.send(delta("x")).await.expect("open");
    let held = ask(&pool).await.expect("begun");
    let mut order = Vec::new();
    for (position, tenant) in ["a", "a", "a", "b"].into_iter().enumerate() {
        order.push(asked_by(&pool, tenant));
        until(|| pool.waiting() == position + 1).await;
    }
    // The second of "a" goes away: its place is free, and the backend never hears of it.
    order.remove(1).abort();
    until(|| pool.waiting() == 3).await;
    assert_eq!(one.asked.load(Ordering::SeqCst), 1);
    drop(held);
    let third_of_a = order.remove(1);
    let (first, of_b) = (order.remove(0), order.remove(0));
    assert_eq!(text_of(first.await.expect("no panic").expect("served")).await, "1");
    assert_eq!(text_of(of_b.await.expect("no panic").expect("served")).await, "2");
    assert_eq!(text_of(third_of_a.await.expect("no panic").expect("served")).await, "3");
    assert_eq!((one.asked.load(Ordering::SeqCst), pool.waiting()), (4, 0));
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_says_when_to_come_back() {
    let (sender, act) = live();
    let one = backend("one", vec![act]);
    let pool = pool(&[&one], 1, Timeouts::default());
    sender.send(delta("x")).await.expect("open");
    let _held = ask(&pool).await.expect("begun");
    let waiting: Vec<_> = (0..limits::LLM_QUEUE_MAX).map(|_| asked_by(&pool, "a")).collect();
    until(|| pool.waiting() == limits::LLM_QUEUE_MAX).await;
    pool.shared.state.lock().held.observe(Duration::from_millis(100));
    let refused = asked_by(&pool, "a").await.expect("no panic");
    let Err(GenerateError::Overloaded { retry_after }) = refused else { panic!("refused") };
    // 257 to be served at one place in 0.1 s each.
    assert_eq!(retry_after, Duration::from_secs(26));
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    until(|| pool.waiting() == 0).await;
}

#[tokio::test]
async fn one_tenant_that_fills_the_queue_makes_room_for_another() {
    let (sender, act) = live();
    let one = backend("one", vec![act, answer("of b")]);
    let pool = pool(&[&one], 1, Timeouts::default());
    sender.send(delta("x")).await.expect("open");
    let held = ask(&pool).await.expect("begun");
    let mut of_a = Vec::new();
    for count in 1..=limits::LLM_QUEUE_MAX {
        of_a.push(asked_by(&pool, "a"));
        until(|| pool.waiting() == count).await;
    }
    let of_b = asked_by(&pool, "b");
    let newest = of_a.pop().expect("waits").await.expect("no panic");
    assert!(matches!(newest, Err(GenerateError::Overloaded { .. })));
    assert_eq!(pool.waiting(), limits::LLM_QUEUE_MAX, "b has its place");
    of_a.iter().for_each(tokio::task::JoinHandle::abort);
    until(|| pool.waiting() == 1).await;
    drop(held);
    assert_eq!(text_of(of_b.await.expect("no panic").expect("served")).await, "of b");
}

/// Answers each request after a few turns of the scheduler, and notes the most it had at once.
struct Counting {
    name: String,
    now: Arc<AtomicUsize>,
    most: AtomicUsize,
}

struct Leave(Arc<AtomicUsize>);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Backend for Counting {
    fn name(&self) -> &str {
        &self.name
    }

    fn url(&self) -> &str {
        "http://scripted"
    }

    fn model(&self) -> &str {
        "any"
    }

    fn generate(&self, _request: GenerateRequest) -> BoxFuture<'_, Result<EventStream, BackendError>> {
        let at_once = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(at_once, Ordering::SeqCst);
        let leave = Leave(Arc::clone(&self.now));
        Box::pin(async move {
            let events = async_stream::stream! {
                let _leave = leave;
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                    yield delta("x");
                }
                yield done();
            };
            Ok(events.boxed())
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<Report, BackendError>> {
        Box::pin(async { Ok(Report::default()) })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_leaves_and_whenever_no_place_is_lost_and_none_is_given_twice() {
    const PLACES: usize = 2;
    let backends: Vec<Arc<Counting>> = (0..3)
        .map(|number| Arc::new(Counting { name: format!("b{number}"), now: Arc::default(), most: AtomicUsize::new(0) }))
        .collect();
    let members = backends.iter().map(|backend| Member::new(backend.clone() as Arc<dyn Backend>, PLACES)).collect();
    let pool = Pool::new(members, Policy { balance: Balance::P2c, ..Policy::default() }, PoolMetrics::new());
    let mut tasks = Vec::new();
    for number in 0..600_usize {
        let asking = asked_by(&pool, &format!("tenant-{}", number % 5));
        tasks.push(tokio::spawn(async move {
            // A third goes away soon, in the queue or before its first token; a third after it; the rest stay.
            if number % 3 == 0 {
                for _ in 0..number % 7 {
                    tokio::task::yield_now().await;
                }
                asking.abort();
                return 0;
            }
            let Ok(Ok(mut generation)) = asking.await else { return 0 };
            if number % 3 == 1 {
                generation.events.next().await;
                return 0;
            }
            text_of(generation).await.len()
        }));
    }
    let mut whole = 0;
    for task in tasks {
        whole += usize::from(task.await.expect("no panic") == 3);
    }
    until(|| pool.waiting() == 0 && pool.in_flight() == [0, 0, 0]).await;
    assert!(whole > 0, "some were served to the end");
    for backend in &backends {
        assert_eq!(backend.now.load(Ordering::SeqCst), 0, "{}", backend.name);
        assert!((1..=PLACES).contains(&backend.most.load(Ordering::SeqCst)), "{}", backend.name);
    }
}
