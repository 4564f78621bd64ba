//! One request: who takes over, what ends it, what its reader sees.

use super::*;

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
