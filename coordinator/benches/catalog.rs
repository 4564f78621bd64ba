//! What batched inserts and prepared statements bring, on both engines, and how often Postgres finds a statement prepared:
//! `cargo bench -p coordinator --bench catalog`.
//!
//! Durable writes on scratch databases in the temporary directory; Postgres over its Unix socket. Each figure is the best of
//! [`ROUNDS`] rounds, because the machine is shared.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chaos_tests::postgres::PostgresServer;
use coordinator::catalog::documents::{DocumentRef, Indexed, Upload};
use coordinator::catalog::jobs::{Finish, JobState};
use coordinator::catalog::tenants::UsageRow;
use coordinator::catalog::{Catalog, CatalogOptions, LEASE};
use sqlx::{AnyConnection, Connection};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

const ROUNDS: usize = 5;
const ROWS: usize = 500;
const LOOKUPS: usize = 2000;
const LOOKUP: &str =
    "SELECT key_id, tenant, name, scope, created_ms, expires_ms, revoked_ms FROM api_keys WHERE key_hash = $1";

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let dir = tempfile::tempdir().expect("scratch directory");
        measure("sqlite", &format!("sqlite://{}", dir.path().join("catalog.db").display())).await;
        let server = PostgresServer::start().await.expect("postgres starts");
        measure("postgres", &server.url()).await;
    });
    runtime.block_on(count_prepared());
}

/// Statements that the server parsed and executed, as it tells its clients.
#[derive(Clone, Default)]
struct Told {
    parsed: Arc<AtomicUsize>,
    executed: Arc<AtomicUsize>,
}

impl Visit for &Told {
    fn record_str(&mut self, _: &Field, value: &str) {
        // "duration: 0.034 ms  parse sqlx_s_5: SELECT ..."
        let Some((_, told)) = value.split_once(" ms  ") else { return };
        if told.starts_with("parse sqlx_s_") {
            self.parsed.fetch_add(1, Ordering::Relaxed);
        } else if told.starts_with("execute sqlx_s_") {
            self.executed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl<S: tracing::Subscriber> Layer<S> for Told {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "sqlx::postgres::notice" {
            event.record(&mut { self });
        }
    }
}

/// Documents through their jobs on a catalog that has just been opened: each connection prepares a statement the first time.
async fn count_prepared() {
    const DOCUMENTS: usize = 500;
    let told = Told::default();
    let subscriber = tracing_subscriber::registry().with(told.clone());
    tracing::subscriber::set_global_default(subscriber).expect("the first");
    let settings = "log_min_duration_statement = 0\nclient_min_messages = log\n";
    let server = PostgresServer::start_with(settings).await.expect("postgres starts");
    let pool_timeout = Duration::from_secs(30);
    let options = CatalogOptions { url: server.url(), pool_size: 4, max_overflow: 0, pool_timeout, lease: LEASE };
    let catalog = Catalog::open(&options).await.expect("opens");
    let work = |worker: usize| {
        let catalog = catalog.clone();
        async move {
            for number in 0..DOCUMENTS / 4 {
                catalog.enqueue(document(worker, number)).await.expect("takes it");
                let claim = catalog.claim_job().await.expect("reads").expect("a job waits");
                for state in [JobState::Chunking, JobState::Embedding, JobState::Indexing] {
                    catalog.advance_job(&claim, state, 0.5, 1).await.expect("writes").expect("holds");
                }
                let indexed = Indexed { from: vec![1; 32], chunks: vec![2; 32] };
                let finish = Finish { title: "t", extracted: Some("text"), chunk_count: 1, session: "s", indexed };
                catalog.finish_job(&claim, &finish).await.expect("writes").expect("holds");
            }
        }
    };
    futures::future::join_all((0..4).map(work)).await;
    let (parsed, executed) = (told.parsed.load(Ordering::Relaxed), told.executed.load(Ordering::Relaxed));
    println!(
        "postgres  {DOCUMENTS} documents  statements executed: {executed}   parsed: {parsed}   found prepared: {:.2} %",
        100.0 * (1.0 - parsed as f64 / executed as f64)
    );
}

fn document(worker: usize, number: usize) -> Upload {
    let document_id = format!("{worker}-{number}");
    Upload {
        document: DocumentRef { collection_id: 1, tenant: "default".into(), document_id },
        title: String::new(),
        metadata_json: "{}".into(),
        media_type: String::new(),
        file_name: String::new(),
        content_hash: [0; 32],
        content: b"text".to_vec(),
        idempotency: None,
        priority: 0,
    }
}

async fn measure(engine: &str, url: &str) {
    let pool_timeout = Duration::from_secs(30);
    let options = CatalogOptions { url: url.to_owned(), pool_size: 4, max_overflow: 0, pool_timeout, lease: LEASE };
    let catalog = Catalog::open(&options).await.expect("opens");
    let rows = |round: usize| -> Vec<UsageRow> {
        let row = |number: usize| UsageRow {
            tenant: format!("tenant-{number}"),
            day: round as i64,
            model: "m".into(),
            requests: 1,
            prompt_tokens: 10,
            completion_tokens: 10,
        };
        (0..ROWS).map(row).collect()
    };
    let (mut one_by_one, mut batched) = (Duration::MAX, Duration::MAX);
    for round in 0..ROUNDS {
        let some = rows(round);
        let began = Instant::now();
        for row in &some {
            catalog.add_usage(std::slice::from_ref(row)).await.expect("writes");
        }
        one_by_one = one_by_one.min(began.elapsed());
        let some = rows(ROUNDS + round);
        let began = Instant::now();
        catalog.add_usage(&some).await.expect("writes");
        batched = batched.min(began.elapsed());
    }
    report(engine, "inserted rows", ROWS, ("one by one", one_by_one), ("batched", batched));
    catalog.close().await;

    sqlx::any::install_default_drivers();
    // One for each: a connection that has a statement prepared uses it, whatever a later query asks for.
    let mut forgetful = AnyConnection::connect(url).await.expect("connects");
    let mut remembering = AnyConnection::connect(url).await.expect("connects");
    let (mut unprepared, mut prepared) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        unprepared = unprepared.min(look_up(&mut forgetful, false).await);
        prepared = prepared.min(look_up(&mut remembering, true).await);
    }
    report(engine, "lookups", LOOKUPS, ("prepared each time", unprepared), ("prepared once", prepared));
}

async fn look_up(connection: &mut AnyConnection, persistent: bool) -> Duration {
    let began = Instant::now();
    for number in 0..LOOKUPS {
        let hash = [number as u8; 32];
        let query = sqlx::query(LOOKUP).bind(&hash[..]).persistent(persistent);
        query.fetch_optional(&mut *connection).await.expect("reads");
    }
    began.elapsed()
}

fn report(engine: &str, what: &str, count: usize, slow: (&str, Duration), fast: (&str, Duration)) {
    let rate = |took: Duration| count as f64 / took.as_secs_f64();
    println!(
        "{engine:9} {what:14} {}: {:>9.0}/s   {}: {:>9.0}/s   {:.1} times",
        slow.0,
        rate(slow.1),
        fast.0,
        rate(fast.1),
        slow.1.as_secs_f64() / fast.1.as_secs_f64()
    );
}
