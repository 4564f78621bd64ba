use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::BoxFuture;
use tokio::sync::mpsc;

use super::super::backend::Backend;
use super::super::{FinishReason, Usage};
use super::*;

/// What a scripted backend does with a request.
enum Act {
    Refuse(BackendError),
    /// Never answers.
    Hang,
    /// Streams what the test sends into the channel, and ends when the test drops its end.
    Stream(mpsc::Receiver<Result<GenerateEvent, GenerateError>>),
}

struct Scripted {
    name: String,
    model: String,
    acts: Mutex<Vec<Act>>,
    asked: AtomicUsize,
    probe: Mutex<Result<Report, BackendError>>,
}

impl Backend for Scripted {
    fn name(&self) -> &str {
        &self.name
    }

    fn model(&self) -> &str {
        &self.model
    }

    fn generate(&self, _request: GenerateRequest) -> BoxFuture<'_, Result<EventStream, BackendError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let act = self.acts.lock().pop().expect("the script foresees this request");
        Box::pin(async move {
            match act {
                Act::Refuse(error) => Err(error),
                Act::Hang => std::future::pending().await,
                Act::Stream(events) => Ok(tokio_stream::wrappers::ReceiverStream::new(events).boxed()),
            }
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<Report, BackendError>> {
        let answer = self.probe.lock().clone();
        Box::pin(async move { answer })
    }
}

/// A backend that plays `acts` in order.
fn backend(name: &str, acts: Vec<Act>) -> Arc<Scripted> {
    Arc::new(Scripted {
        name: name.into(),
        model: format!("model-of-{name}"),
        acts: Mutex::new(acts.into_iter().rev().collect()),
        asked: AtomicUsize::new(0),
        probe: Mutex::new(Err(failed())),
    })
}

fn members(backends: &[&Arc<Scripted>], concurrency_max: usize) -> Vec<Member> {
    backends.iter().map(|backend| Member::new((*backend).clone() as Arc<dyn Backend>, concurrency_max)).collect()
}

fn pool(backends: &[&Arc<Scripted>], concurrency_max: usize, timeouts: Timeouts) -> Pool {
    let policy = Policy { timeouts, ..Policy::default() };
    Pool::new(members(backends, concurrency_max), policy, PoolMetrics::new())
}

impl Pool {
    fn in_flight(&self) -> Vec<usize> {
        self.status().iter().map(|backend| backend.in_flight).collect()
    }

    fn states(&self) -> Vec<&'static str> {
        self.status().iter().map(|backend| backend.state).collect()
    }
}

/// Asks in the background as `tenant`.
fn asked_by(pool: &Pool, tenant: &str) -> tokio::task::JoinHandle<Result<Generation, GenerateError>> {
    let (pool, tenant) = (pool.clone(), tenant.to_owned());
    tokio::spawn(async move { pool.generate(GenerateRequest { tenant, ..GenerateRequest::default() }, far()).await })
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

fn failed() -> BackendError {
    BackendError::Failed("status 500".into())
}

fn busy(retry_after_s: u64) -> Act {
    Act::Refuse(BackendError::Busy { status: 503, retry_after_s: Some(retry_after_s) })
}

fn delta(text: &str) -> Result<GenerateEvent, GenerateError> {
    Ok(GenerateEvent::Delta(text.into()))
}

fn done() -> Result<GenerateEvent, GenerateError> {
    Ok(GenerateEvent::Done { finish_reason: FinishReason::Stop })
}

/// A whole answer, already written.
fn answer(text: &str) -> Act {
    let (sender, receiver) = mpsc::channel(4);
    for event in [delta(text), Ok(GenerateEvent::Usage(Usage { prompt_tokens: 3, completion_tokens: 1 })), done()] {
        sender.try_send(event).expect("room");
    }
    Act::Stream(receiver)
}

fn live() -> (mpsc::Sender<Result<GenerateEvent, GenerateError>>, Act) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, Act::Stream(receiver))
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

async fn text_of(generation: Generation) -> String {
    let events: Vec<_> = generation.events.collect().await;
    assert!(matches!(events.last(), Some(Ok(GenerateEvent::Done { .. }))), "{events:?}");
    events
        .into_iter()
        .filter_map(|event| if let Ok(GenerateEvent::Delta(text)) = event { Some(text) } else { None })
        .collect()
}

async fn ask(pool: &Pool) -> Result<Generation, GenerateError> {
    pool.generate(GenerateRequest::default(), far()).await
}

#[tokio::test]
async fn before_the_first_token_the_next_backend_takes_over() {
    let (sender, cut) = live();
    drop(sender); // ends at once, without a word
    let ill = backend("ill", vec![Act::Refuse(failed()), cut, Act::Refuse(BackendError::Connect("refused".into()))]);
    let well = backend("well", vec![answer("a"), answer("b"), answer("c")]);
    let pool = pool(&[&ill, &well], 4, Timeouts::default());
    let mut served = Vec::new();
    while ill.asked.load(Ordering::SeqCst) < 3 {
        let generation = ask(&pool).await.expect("served");
        assert_eq!(generation.backend, "well");
        assert_eq!(generation.model, "model-of-well");
        served.push(text_of(generation).await);
        well.acts.lock().insert(0, answer("more"));
    }
    assert!(served.starts_with(&["a".into(), "b".into(), "c".into()]), "{served:?}");
    for _ in 0..4 {
        ask(&pool).await.expect("served");
        well.acts.lock().insert(0, answer("more"));
    }
    assert_eq!(ill.asked.load(Ordering::SeqCst), 3, "ejected after three failures, so not asked again");
    assert_eq!(pool.shared.metrics.ejected.with_label_values(&["ill"]).get(), 1);
}

#[tokio::test]
async fn after_the_first_token_a_failure_is_the_callers_to_see() {
    let (sender, act) = live();
    let first = backend("first", vec![act]);
    let pool = pool(&[&first], 1, Timeouts::default());
    sender.send(delta("Hel")).await.expect("open");
    let mut generation = ask(&pool).await.expect("begun");
    assert_eq!(generation.events.next().await, Some(delta("Hel")));
    drop(sender);
    let end = generation.events.next().await.expect("an end");
    assert!(matches!(&end, Err(GenerateError::Broken { backend, .. }) if backend == "first"), "{end:?}");
    assert_eq!(generation.events.next().await, None);
}

#[tokio::test]
async fn the_first_token_is_passed_on_before_the_backend_writes_another() {
    let (sender, act) = live();
    let one = backend("one", vec![act]);
    let pool = pool(&[&one], 1, Timeouts::default());
    let asked = tokio::spawn({
        let pool = pool.clone();
        async move { ask(&pool).await }
    });
    sender.send(delta("first")).await.expect("open");
    let mut generation = asked.await.expect("no panic").expect("begun");
    assert_eq!(generation.events.next().await, Some(delta("first")));
    // Only now does the backend go on.
    sender.send(done()).await.expect("open");
    assert_eq!(generation.events.next().await, Some(done()));
}

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
async fn busy_backends_are_passed_over_and_their_pause_is_handed_on() {
    let (a, b) = (backend("a", vec![busy(7)]), backend("b", vec![busy(9)]));
    let pool = pool(&[&a, &b], 1, Timeouts::default());
    let retry_after = Duration::from_secs(9);
    assert_eq!(ask(&pool).await.err(), Some(GenerateError::Overloaded { retry_after }));
    // Left alone as they asked: the next request does not even ask.
    assert!(matches!(ask(&pool).await, Err(GenerateError::Overloaded { .. })));
    assert_eq!(a.asked.load(Ordering::SeqCst) + b.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_refusal_is_final_unless_the_model_is_missing() {
    let refuse = |status| Act::Refuse(BackendError::Refused { status, message: "no".into() });
    let (a, b) = (backend("a", vec![refuse(404)]), backend("b", vec![refuse(404)]));
    let all_lack_it = pool(&[&a, &b], 1, Timeouts::default());
    assert!(matches!(ask(&all_lack_it).await, Err(GenerateError::Refused { .. })));
    assert_eq!((a.asked.load(Ordering::SeqCst), b.asked.load(Ordering::SeqCst)), (1, 1));

    let (c, d) = (backend("c", vec![refuse(400)]), backend("d", vec![refuse(400)]));
    let bad_request = pool(&[&c, &d], 1, Timeouts::default());
    assert!(matches!(ask(&bad_request).await, Err(GenerateError::Refused { .. })));
    assert_eq!(c.asked.load(Ordering::SeqCst) + d.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_named_model_goes_to_its_backend() {
    let (a, b) = (backend("a", vec![]), backend("b", vec![answer("x"), answer("y")]));
    let pool = pool(&[&a, &b], 4, Timeouts::default());
    for _ in 0..2 {
        let request = GenerateRequest { model: Some("model-of-b".into()), ..GenerateRequest::default() };
        assert_eq!(pool.generate(request, far()).await.expect("served").backend, "b");
    }
}

#[tokio::test]
async fn silence_before_and_between_tokens_is_bounded() {
    let (sender, act) = live();
    let (hanging, talking) = (backend("hanging", vec![Act::Hang]), backend("talking", vec![act]));
    let timeouts = Timeouts {
        first_token: Duration::from_millis(30),
        token_gap: Duration::from_millis(30),
        ..Timeouts::default()
    };
    let pool = pool(&[&hanging, &talking], 1, timeouts);
    // Whichever is asked first: the hanging one is given up, the talking one serves.
    sender.send(delta("x")).await.expect("open");
    let mut generation = ask(&pool).await.expect("served");
    assert_eq!(generation.backend, "talking");
    assert_eq!(generation.events.next().await, Some(delta("x")));
    let end = generation.events.next().await.expect("an end");
    assert!(matches!(&end, Err(GenerateError::Broken { message, .. }) if message.contains("silent")), "{end:?}");
    assert!(sender.is_closed());
}

#[tokio::test]
async fn the_requests_deadline_ends_the_answer() {
    let (sender, act) = live();
    let one = backend("one", vec![act, Act::Hang]);
    let pool = pool(&[&one], 1, Timeouts::default());
    sender.send(delta("x")).await.expect("open");
    let soon = Instant::now() + Duration::from_millis(50);
    let mut generation = pool.generate(GenerateRequest::default(), soon).await.expect("begun");
    generation.events.next().await.expect("the first").expect("a delta");
    assert_eq!(generation.events.next().await, Some(Err(GenerateError::DeadlineExceeded)));
    drop(generation);
    let soon = Instant::now() + Duration::from_millis(20);
    assert_eq!(pool.generate(GenerateRequest::default(), soon).await.err(), Some(GenerateError::DeadlineExceeded));
    assert_eq!(pool.states(), ["up"]);
}

#[tokio::test]
async fn an_ejected_backend_is_probed_and_comes_back() {
    let acts = (0..3).map(|_| Act::Refuse(failed())).chain([answer("back")]).collect();
    let one = backend("one", acts);
    let pool = pool(&[&one], 1, Timeouts::default());
    for _ in 0..3 {
        assert!(matches!(ask(&pool).await, Err(GenerateError::Unavailable { .. })));
    }
    let Err(GenerateError::Unavailable { reason }) = ask(&pool).await else { panic!("ejected") };
    assert!(reason.contains("left out"), "{reason}");

    *one.probe.lock() = Ok(Report::default());
    pool.probe_all().await;
    assert_eq!(pool.states(), ["up"]);
    assert_eq!(text_of(ask(&pool).await.expect("served")).await, "back");
}

#[tokio::test]
async fn a_missed_probe_ejects_before_any_request_fails() {
    let (dead, well) = (backend("dead", vec![]), backend("well", vec![answer("a"), answer("b"), answer("c")]));
    *well.probe.lock() = Ok(Report::default());
    let pool = pool(&[&dead, &well], 4, Timeouts::default());
    pool.probe_all().await;
    assert_eq!(pool.states(), ["ejected", "up"]);
    for _ in 0..3 {
        assert_eq!(ask(&pool).await.expect("served").backend, "well");
    }
    assert_eq!(dead.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_answer_without_end_is_ended() {
    let (sender, act) = live();
    let one = backend("one", vec![act]);
    let pool = pool(&[&one], 1, Timeouts::default());
    let writing = tokio::spawn(async move {
        let piece = "x".repeat(limits::LLM_ANSWER_BYTES_MAX / 4);
        while sender.send(delta(&piece)).await.is_ok() {}
    });
    let events: Vec<_> = ask(&pool).await.expect("begun").events.collect().await;
    assert_eq!(events.len(), 5, "four quarters and the end");
    assert!(matches!(events.last(), Some(Err(GenerateError::Broken { message, .. })) if message.contains("bytes")));
    writing.await.expect("the backend was let go of");
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
    let Err(GenerateError::Overloaded { retry_after }) = ask(&pool).await else { panic!("refused") };
    // 257 to be served at one place in 0.1 s each.
    assert_eq!(retry_after, Duration::from_secs(26));
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    until(|| pool.waiting() == 0).await;
}

#[tokio::test]
async fn retries_have_a_budget_but_turning_from_the_unreachable_is_free() {
    let always = |error: &BackendError| (0..40).map(|_| Act::Refuse(error.clone())).collect::<Vec<_>>();
    let (a, b) = (backend("a", always(&failed())), backend("b", always(&failed())));
    let tight = Policy { retry_percent: 0, ..Policy::default() };
    let none = Pool::new(members(&[&a, &b], 4), tight.clone(), PoolMetrics::new());
    assert!(matches!(ask(&none).await, Err(GenerateError::Unavailable { .. })));
    assert_eq!(a.asked.load(Ordering::SeqCst) + b.asked.load(Ordering::SeqCst), 1, "no second attempt is paid for");

    let gone = BackendError::Connect("refused".into());
    let (c, d) = (backend("c", always(&gone)), backend("d", (0..4).map(|_| answer("x")).collect()));
    let free = Pool::new(members(&[&c, &d], 4), tight, PoolMetrics::new());
    for _ in 0..4 {
        assert_eq!(ask(&free).await.expect("served").backend, "d");
    }
    assert!(c.asked.load(Ordering::SeqCst) > 0);
}

#[tokio::test]
async fn a_late_first_token_gets_company_and_the_loser_is_dropped() {
    let (sender, act) = live();
    let (slow, quick) = (backend("slow", vec![act]), backend("quick", vec![answer("quick")]));
    let mut both = members(&[&slow, &quick], 1);
    both[0].weight = 2; // so that it is asked first
    let pool = Pool::new(both, Policy::default(), PoolMetrics::new());
    let now = Instant::now();
    for _ in 0..20 {
        pool.shared.state.lock().first_tokens.note(now, Duration::from_millis(5));
    }
    assert_eq!(text_of(ask(&pool).await.expect("served")).await, "quick");
    assert_eq!((slow.asked.load(Ordering::SeqCst), pool.shared.metrics.hedges.get()), (1, 1));
    assert!(sender.is_closed(), "the loser's connection is closed");
    assert_eq!(pool.in_flight(), [0, 0]);
}

#[tokio::test]
async fn the_fast_model_serves_what_would_have_to_wait_and_stand_ins_what_would_fail() {
    let (sender, act) = live();
    let (big, fast) = (backend("big", vec![act]), backend("fast", vec![answer("fast"), answer("fast again")]));
    let policy = Policy {
        fast_model: Some("model-of-fast".into()),
        fallback_models: [("model-of-big".to_owned(), vec!["model-of-fast".to_owned()])].into(),
        ..Policy::default()
    };
    let pool = Pool::new(members(&[&big, &fast], 1), policy, PoolMetrics::new());
    sender.send(delta("x")).await.expect("open");
    let held = ask(&pool).await.expect("begun");
    assert_eq!(held.backend, "big", "the fast one keeps its place for later");
    let quick = ask(&pool).await.expect("served");
    assert_eq!((quick.backend.as_str(), quick.model.as_str()), ("fast", "model-of-fast"));
    assert!(pool.is_first_choice(None, &held.model) && !pool.is_first_choice(None, &quick.model));
    drop(quick);

    // Named and full: it waits. Named and down: the stand-in serves.
    let named = || GenerateRequest { model: Some("model-of-big".into()), ..GenerateRequest::default() };
    let soon = Instant::now() + Duration::from_millis(20);
    assert_eq!(pool.generate(named(), soon).await.err(), Some(GenerateError::DeadlineExceeded));
    *fast.probe.lock() = Ok(Report::default());
    pool.probe_all().await;
    assert_eq!(pool.states(), ["ejected", "up"]);
    let standing_in = pool.generate(named(), far()).await.expect("served");
    assert_eq!(standing_in.model, "model-of-fast");
    assert!(!pool.is_first_choice(Some("model-of-big"), &standing_in.model));
}

#[tokio::test]
async fn backends_come_and_go_while_requests_wait() {
    let (sender, act) = live();
    let one = backend("one", vec![act]);
    let pool = pool(&[&one], 1, Timeouts::default());
    sender.send(delta("x")).await.expect("open");
    let mut held = ask(&pool).await.expect("begun");
    let waiting = asked_by(&pool, "a");
    until(|| pool.waiting() == 1).await;
    let two = backend("two", vec![answer("from two")]);
    pool.add(members(&[&two], 1).remove(0)).expect("a free name");
    assert_eq!(text_of(waiting.await.expect("no panic").expect("served")).await, "from two");
    assert!(matches!(pool.add(members(&[&two], 1).remove(0)), Err(PoolError::NameTaken(_))));

    assert!(pool.remove("one") && !pool.remove("one"));
    sender.send(done()).await.expect("its answer goes on");
    assert_eq!(held.events.next().await, Some(delta("x")));
    assert_eq!(held.events.next().await, Some(done()));
    assert!(pool.remove("two") && pool.is_empty());
    assert!(matches!(ask(&pool).await, Err(GenerateError::Unavailable { .. })));
}

#[tokio::test]
async fn what_servers_tell_of_their_load_counts() {
    let (crowded, idle) = (backend("crowded", vec![]), backend("idle", (0..4).map(|_| answer("x")).collect()));
    *crowded.probe.lock() = Ok(Report { requests: Some(9), ..Report::default() });
    *idle.probe.lock() = Ok(Report { requests: Some(0), ..Report::default() });
    let pool = pool(&[&crowded, &idle], 8, Timeouts::default());
    pool.probe_all().await;
    for _ in 0..4 {
        assert_eq!(ask(&pool).await.expect("served").backend, "idle");
    }
    assert_eq!(pool.status()[0].foreign, 9);
}

#[test]
fn a_prompt_fits_the_narrowest_model_that_may_be_asked() {
    let (small, wide) = (backend("small", vec![]), backend("wide", vec![]));
    let mut members = members(&[&small, &wide], 1);
    members[1].context_tokens = 32_768;
    let pool = Pool::new(members, Policy::default(), PoolMetrics::new());
    assert_eq!(pool.prompt_tokens_max(None, Some(256)), 4096 - 256 - 128);
    assert_eq!(pool.prompt_tokens_max(Some("model-of-wide"), Some(256)), 32_768 - 256 - 128);
    assert_eq!(pool.prompt_tokens_max(None, Some(4000)), 1024, "an answer never takes it all");
}

#[test]
fn a_missing_key_is_named_and_metrics_register_once() {
    use cluster_config::llm_config::{LlmConfig, LlmKind, WrittenLlmBackend};
    let backend = WrittenLlmBackend {
        name: "gpt".into(),
        kind: LlmKind::Openai,
        url: "http://127.0.0.1:1/v1".into(),
        model: "m".into(),
        api_key_env: Some("KEY_OF_GPT".into()),
        weight: None,
        priority: None,
        concurrency_max: None,
        context_tokens: None,
    };
    let routing = LlmRouting::default();
    let mut config =
        LlmConfig { backends: vec![], max_tokens: 256, temperature: 0.1, top_k: 20, gpu_layers: None, routing };
    let metrics = PoolMetrics::new();
    assert!(Pool::from_config(&config, |_| None, metrics.clone()).expect("fine").is_empty());
    config.backends.push(backend.validate("").expect("valid"));
    let error = Pool::from_config(&config, |_| None, metrics.clone()).err().expect("no key");
    assert!(error.to_string().contains("KEY_OF_GPT"), "{error}");
    let pool = Pool::from_config(&config, |_| Some("secret".into()), metrics.clone()).expect("fine");
    assert_eq!(pool.models(), [("gpt".to_owned(), "m".to_owned())]);

    let registry = prometheus::Registry::new();
    metrics.register(&registry).expect("free names");
    crate::embed::metrics::EmbedMetrics::new().register(&registry).expect("free names");
    assert!(metrics.register(&registry).is_err());
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
