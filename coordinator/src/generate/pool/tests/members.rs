//! Who is in the pool, and what a prompt may have there.

use super::*;

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
    let gpt = Identity { name: "gpt".into(), url: "http://127.0.0.1:1/v1".into(), model: "m".into() };
    assert_eq!(pool.identities(), [gpt]);

    let registry = prometheus::Registry::new();
    metrics.register(&registry).expect("free names");
    crate::embed::metrics::EmbedMetrics::new().register(&registry).expect("free names");
    assert!(metrics.register(&registry).is_err());
}
