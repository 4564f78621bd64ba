//! What batched inserts and prepared statements bring, on both engines: `cargo bench -p coordinator --bench catalog`.
//!
//! Durable writes on scratch databases in the temporary directory; Postgres over its Unix socket. Each figure is the best of
//! [`ROUNDS`] rounds, because the machine is shared.

use std::time::{Duration, Instant};

use chaos_tests::postgres::PostgresServer;
use coordinator::catalog::tenants::UsageRow;
use coordinator::catalog::{Catalog, CatalogOptions};
use sqlx::{AnyConnection, Connection};

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
}

async fn measure(engine: &str, url: &str) {
    let pool_timeout = Duration::from_secs(30);
    let options = CatalogOptions { url: url.to_owned(), pool_size: 4, max_overflow: 0, pool_timeout };
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
