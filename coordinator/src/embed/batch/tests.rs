use std::any::Any;
use std::time::Duration;

use super::*;

/// Embeds a text of n characters as `[n]`; each forward pass waits for a permit, so that tests decide when a batch ends.
struct Scripted {
    permits: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
    /// Texts of each batch begun.
    begun: std::sync::mpsc::SyncSender<Vec<usize>>,
}

impl Model for Scripted {
    fn enter_thread(&self) -> Result<Box<dyn Any>, String> {
        Ok(Box::new(()))
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, String> {
        assert!(!text.contains('\u{2}'), "a bug of the model, as a test wants it");
        if text.contains('\u{1}') { Err("bad text".into()) } else { Ok(vec![0; text.len()]) }
    }

    fn forward(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, String> {
        self.begun.send(texts.iter().map(Vec::len).collect()).map_err(|e| e.to_string())?;
        self.permits.lock().expect("not poisoned").recv().map_err(|e| e.to_string())?;
        Ok(texts.iter().map(|text| vec![text.len() as f32]).collect())
    }
}

struct Stage {
    pool: Arc<BatchPool>,
    permit: std::sync::mpsc::SyncSender<()>,
    begun: std::sync::mpsc::Receiver<Vec<usize>>,
    metrics: EmbedMetrics,
}

impl Stage {
    fn new(batch_max: usize) -> Self {
        let (permit, permits) = std::sync::mpsc::sync_channel(100);
        let (begun_sender, begun) = std::sync::mpsc::sync_channel(100);
        let model = Arc::new(Scripted { permits: std::sync::Mutex::new(permits), begun: begun_sender });
        let metrics = EmbedMetrics::new();
        let pool = BatchPool::start(model, 1, batch_max, metrics.clone()).expect("threads start");
        Self { pool: Arc::new(pool), permit, begun, metrics }
    }

    /// Queues a query of texts with these lengths and returns once it is queued.
    fn call(&self, lengths: &[usize]) -> impl Future<Output = Result<Vec<Embedding>, EmbedError>> + use<> {
        self.call_for(Purpose::Query, lengths)
    }

    fn call_for(
        &self,
        purpose: Purpose,
        lengths: &[usize],
    ) -> impl Future<Output = Result<Vec<Embedding>, EmbedError>> + use<> {
        let texts = lengths.iter().map(|length| "x".repeat(*length)).collect();
        let reply = self.pool.shared.enqueue(texts, purpose, far()).expect("queued");
        async move { reply.await.unwrap_or(Err(EmbedError::Closed)) }
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

fn flat(vectors: &[Embedding]) -> Vec<f32> {
    vectors.iter().map(|vector| vector[0]).collect()
}

#[tokio::test]
async fn what_queues_behind_a_busy_thread_becomes_one_batch_in_order() {
    let stage = Stage::new(8);
    let first = stage.call(&[1]);
    assert_eq!(stage.begun.recv().expect("begins at once"), [1]);
    let (second, third) = (stage.call(&[2, 3]), stage.call(&[4]));
    stage.permit.send(()).expect("open");
    assert_eq!(stage.begun.recv().expect("begins"), [2, 3, 4]);
    stage.permit.send(()).expect("open");
    assert_eq!(flat(&first.await.expect("done")), [1.0]);
    assert_eq!(flat(&second.await.expect("done")), [2.0, 3.0]);
    assert_eq!(flat(&third.await.expect("done")), [4.0]);
}

#[tokio::test]
async fn queries_overtake_ingestion_but_that_has_its_turn() {
    let stage = Stage::new(1);
    let opening = stage.call(&[9]);
    assert_eq!(stage.begun.recv().expect("begins"), [9]);
    let chunks = stage.call_for(Purpose::Ingest, &[5; 9]);
    let queries: Vec<_> = (0..4).map(|_| stage.call(&[1])).collect();
    let mut order = Vec::new();
    for _ in 0..queries.len() + 1 {
        stage.permit.send(()).expect("open");
        order.extend(stage.begun.recv().expect("begins"));
    }
    assert_eq!(order, [1, 1, 5, 1, 1], "the fourth batch of all is ingestion's");
    for _ in 0..20 {
        let _ = stage.permit.try_send(());
    }
    opening.await.expect("done");
    chunks.await.expect("done");
}

#[tokio::test]
async fn a_question_overtakes_a_document_of_one_chunk() {
    let stage = Stage::new(1);
    let opening = stage.call(&[9]);
    assert_eq!(stage.begun.recv().expect("begins"), [9]);
    let document = stage.call_for(Purpose::Ingest, &[5]);
    let question = stage.call_for(Purpose::Query, &[1, 1]);
    (0..4).for_each(|_| stage.permit.send(()).expect("open"));
    let order: Vec<usize> = (0..3).flat_map(|_| stage.begun.recv().expect("begins")).collect();
    assert_eq!(order, [1, 1, 5]);
    for call in [opening.await, document.await, question.await] {
        call.expect("done");
    }
}

#[tokio::test]
async fn a_batch_is_bounded_by_tokens() {
    let stage = Stage::new(64);
    let opening = stage.call(&[1]);
    stage.begun.recv().expect("begins");
    let rest = stage.call(&[BATCH_TOKENS / 2; 5]);
    (0..4).for_each(|_| stage.permit.send(()).expect("open"));
    let sizes: Vec<usize> = (0..3).map(|_| stage.begun.recv().expect("begins").len()).collect();
    assert_eq!(sizes, [2, 2, 1]);
    opening.await.expect("done");
    assert_eq!(rest.await.expect("done").len(), 5);
}

#[tokio::test]
async fn work_nobody_waits_for_is_skipped() {
    let stage = Stage::new(8);
    let opening = stage.call(&[1]);
    stage.begun.recv().expect("begins");
    drop(stage.call(&[2, 2]));
    let late = stage.pool.shared.enqueue(vec!["xxx".into()], Purpose::Query, Instant::now()).expect("queued");
    let kept = stage.call(&[4]);
    (0..2).for_each(|_| stage.permit.send(()).expect("open"));
    assert_eq!(stage.begun.recv().expect("begins"), [4]);
    opening.await.expect("done");
    kept.await.expect("done");
    assert_eq!(stage.metrics.abandoned.get(), 3);
    drop(late);
}

#[tokio::test]
async fn a_full_queue_refuses_ingestion_before_queries() {
    let stage = Stage::new(8);
    let opening = stage.call(&[1]);
    stage.begun.recv().expect("begins");
    let most = limits::EMBED_TEXTS_MAX;
    let _held = [most, INGEST_QUEUE_MAX - most].map(|count| stage.call_for(Purpose::Ingest, &vec![1; count]));
    let full = |purpose| stage.pool.shared.enqueue(vec!["x".into()], purpose, far()).err();
    assert!(matches!(full(Purpose::Ingest), Some(EmbedError::Overloaded { .. })));
    assert_eq!(full(Purpose::Query), None);
    let too_many = stage.pool.embed(vec![String::new(); most + 1], Purpose::Query, far()).await;
    assert!(matches!(too_many, Err(EmbedError::TooLarge { .. })));
    drop((stage, opening));
}

#[tokio::test]
async fn a_bad_text_fails_its_own_call_only_and_closing_answers_the_rest() {
    let stage = Stage::new(8);
    let opening = stage.call(&[1]);
    stage.begun.recv().expect("begins");
    let bad = stage.pool.shared.enqueue(vec!["\u{1}".into()], Purpose::Query, far()).expect("queued");
    let worse = stage.pool.shared.enqueue(vec!["\u{2}".into()], Purpose::Query, far()).expect("queued");
    let good = stage.call(&[2]);
    (0..2).for_each(|_| stage.permit.send(()).expect("open"));
    assert_eq!(stage.begun.recv().expect("begins"), [2]);
    assert_eq!(bad.await.expect("answered"), Err(EmbedError::Model("bad text".into())));
    assert_eq!(worse.await.expect("answered"), Err(EmbedError::Model("it panicked".into())));
    good.await.expect("done");
    opening.await.expect("done");

    let held = stage.call(&[3]);
    assert_eq!(stage.begun.recv().expect("begins"), [3]);
    let waiting = stage.call(&[4]);
    stage.pool.shared.close();
    assert_eq!(waiting.await, Err(EmbedError::Closed));
    stage.permit.send(()).expect("open");
    held.await.expect("the batch in hand is finished");
    stage.pool.close();
    assert_eq!(stage.pool.embed(vec!["x".into()], Purpose::Query, far()).await, Err(EmbedError::Closed));
}

#[tokio::test]
async fn the_deadline_is_the_callers() {
    let stage = Stage::new(8);
    let result = stage.pool.embed(vec!["x".into()], Purpose::Query, Instant::now() + Duration::from_millis(20)).await;
    assert_eq!(result, Err(EmbedError::DeadlineExceeded));
}
