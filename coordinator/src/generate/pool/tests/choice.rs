//! Who is asked: the sick, the busy, the slow, and what may be tried besides.

use super::*;

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
