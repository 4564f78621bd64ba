//! Migrations: both engines have the same tables, and what is there stays.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use chaos_tests::postgres::PostgresServer;
use cluster_config::error::ErrorKind;
use coordinator::catalog::documents::DocumentState;
use coordinator::catalog::tenants::UsageRow;
use coordinator::catalog::upkeep::Task;
use coordinator::catalog::{Catalog, CatalogError, CatalogOptions, LEASE};
use prometheus::{Registry, TextEncoder};
use sqlx::migrate::Migrator;
use sqlx::{AnyConnection, Connection, Row};
use uuid::Uuid;

use super::support::{document, finish, stored_bytes, upload};
use crate::database::Database;

pub(crate) async fn opening_again_keeps_what_is_there(database: &Database) {
    let catalog = database.open().await;
    let enqueued = catalog.enqueue(upload("default", "d", "x")).await.expect("takes it");
    let claim = catalog.claim_job().await.expect("reads").expect("a job waits");
    catalog.close().await;
    drop(catalog);
    let catalog = database.open().await;
    assert!(catalog.document(&document("default", "d")).await.expect("reads").is_some());
    let again = catalog.claim_job().await.expect("reads");
    if database.is_postgres() {
        // Another coordinator may hold it: it is free when its lease ends.
        assert!(again.is_none() && catalog.holds(&claim).await.expect("reads"));
    } else {
        assert_eq!(again.expect("the file has one owner, so the claim was nobody's").job_id, enqueued.job_id);
    }
}

/// A database that the first release left, with a job under way: everything is there afterwards, and the tenant's bytes are counted.
pub(crate) async fn data_of_the_first_schema_is_brought_along(database: &Database) {
    sqlx::any::install_default_drivers();
    let engine = if database.is_postgres() { "postgres" } else { "sqlite" };
    let migrations = format!("{}/migrations/{engine}", env!("CARGO_MANIFEST_DIR"));
    let url = if database.is_postgres() { database.url.clone() } else { format!("{}?mode=rwc", database.url) };
    let mut connection = AnyConnection::connect(&url).await.expect("connects");
    let migrator = Migrator::new(Path::new(&migrations)).await.expect("reads the migrations");
    migrator.run_to(1, &mut connection).await.expect("makes the first schema");
    let job_id = Uuid::now_v7();
    for (id, state, job, upload, title) in [
        ("ready", "ready", Uuid::now_v7(), None, "Zebra"),
        ("waiting", "processing", job_id, Some(&b"bytes"[..]), "apple"),
    ] {
        sqlx::query(
            "INSERT INTO documents (collection_id, tenant, document_id, version, state, title, metadata_json, media_type,
                 file_name, content_hash, content_bytes, upload, extracted, chunk_count, job_id, created_ms, updated_ms)
             VALUES (1, 'default', $1, 5, $2, $3, '{}', 'text/plain', '', $4, 5, $5, 'old text', 2, $6, 17, 17)",
        )
        .bind(id)
        .bind(state)
        .bind(title)
        .bind(&[7_u8; 32][..])
        .bind(upload)
        .bind(job.to_string())
        .execute(&mut connection)
        .await
        .expect("writes");
    }
    sqlx::query(
        "INSERT INTO jobs (job_id, collection_id, tenant, document_id, document_version, state, progress, attempt,
             run_after_ms, lease_until_ms, created_ms, updated_ms)
         VALUES ($1, 1, 'default', 'waiting', 5, 'embedding', 0.5, 3, 17, 18, 17, 17)",
    )
    .bind(job_id.to_string())
    .execute(&mut connection)
    .await
    .expect("writes");
    connection.close().await.expect("closes");

    let catalog = database.open().await;
    let row = catalog.document(&document("default", "ready")).await.expect("reads").expect("is there");
    assert_eq!(
        (row.state, row.title.as_str(), row.chunk_count, row.created_ms),
        (DocumentState::Ready, "Zebra", 2, 17)
    );
    let text = catalog.extracted_text(&document("default", "ready")).await.expect("reads");
    assert_eq!(text.as_deref(), Some("old text"));
    assert_eq!(stored_bytes(&catalog, "default").await, 10);
    let titled = catalog.titled_documents(1, "default", "", None, 10).await.expect("reads");
    assert_eq!(titled.iter().map(|row| row.title.as_str()).collect::<Vec<_>>(), ["Zebra", "apple"]);
    let claim = catalog.claim_job().await.expect("reads").expect("its worker is long gone");
    assert_eq!((claim.job_id, claim.attempt, claim.tries, &claim.upload.content[..]), (job_id, 4, 4, &b"bytes"[..]));
    catalog.finish_job(&claim, &finish("apple", "new text", 1, "s")).await.expect("writes").expect("holds");
    let text = catalog.extracted_text(&document("default", "waiting")).await.expect("reads");
    assert_eq!(text.as_deref(), Some("new text"));
    for task in Task::ALL {
        catalog.upkeep_now(task).await.expect("runs");
    }
    assert_eq!(stored_bytes(&catalog, "default").await, 10, "counted anew");
}

/// Tables with their columns and whether these may be NULL.
async fn columns(database: &Database) -> BTreeSet<(String, String, bool)> {
    let sql = if database.is_postgres() {
        "SELECT table_name::text, column_name::text, CASE is_nullable WHEN 'YES' THEN 1 ELSE 0 END::bigint AS nullable
         FROM information_schema.columns WHERE table_schema = 'public'"
    } else {
        "SELECT m.name AS table_name, c.name AS column_name, CASE WHEN c.\"notnull\" = 0 AND c.pk = 0 THEN 1 ELSE 0 END AS nullable
         FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table'"
    };
    let mut connection = AnyConnection::connect(&database.url).await.expect("connects");
    let rows = sqlx::query(sql).fetch_all(&mut connection).await.expect("reads");
    rows.iter()
        .map(|row| (row.get("table_name"), row.get("column_name"), row.get::<i64, _>("nullable") == 1))
        .filter(|(table, _, _): &(String, String, bool)| !table.starts_with('_') && !table.starts_with("sqlite_"))
        .collect()
}

#[tokio::test]
async fn both_engines_have_the_same_tables() {
    let (sqlite, postgres) = (Database::sqlite(), Database::postgres().await);
    drop((sqlite.open().await, postgres.open().await));
    let (left, right) = (columns(&sqlite).await, columns(&postgres).await);
    assert!(left.len() > 30, "{left:?}");
    assert_eq!(left, right);
}

/// Whoever finds no connection is told so in time, and the pool is as before afterwards.
#[tokio::test]
async fn an_exhausted_pool_is_told_in_time() {
    let database = Database::postgres().await;
    let options = CatalogOptions {
        pool_size: 1,
        max_overflow: 1,
        pool_timeout: Duration::from_millis(200),
        ..database.options()
    };
    let catalog = Catalog::open(&options).await.expect("opens");
    let mut blocker = AnyConnection::connect(&database.url).await.expect("connects");
    let mut held = blocker.begin().await.expect("begins");
    sqlx::query("LOCK TABLE documents IN ACCESS EXCLUSIVE MODE").execute(&mut *held).await.expect("locks");

    let wanted = document("default", "d");
    let (row, other, ()) = tokio::join!(catalog.document(&wanted), catalog.document(&wanted), async {
        // The calls above have both connections, and wait for the table.
        while catalog.pool_counts().open < 2 || catalog.pool_counts().idle > 0 {
            tokio::task::yield_now().await;
        }
        let refused = catalog.check().await.expect_err("there are two connections");
        assert!(matches!(refused, CatalogError::Busy { what: "connection is free", .. }), "{refused}");
        assert_eq!(refused.kind(), ErrorKind::Overloaded);
        assert_eq!((catalog.pool_counts().timeouts, catalog.pool_counts().max), (1, 2));
        held.rollback().await.expect("lets go");
    });
    assert_eq!((row.expect("the table is free again"), other.expect("for both")), (None, None));
    catalog.check().await.expect("the connection is free again");
}

/// A server that went away is an error of the kind that says "later", not a hang.
#[tokio::test]
async fn a_dead_server_is_no_hang() {
    let mut server = PostgresServer::start().await.expect("postgres starts");
    let options = CatalogOptions {
        url: server.url(),
        pool_size: 2,
        max_overflow: 0,
        pool_timeout: Duration::from_millis(500),
        lease: LEASE,
    };
    let catalog = Catalog::open(&options).await.expect("opens");
    server.stop();
    let error = catalog.check().await.expect_err("nobody is there");
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Overloaded), "{error}");
}

pub(crate) async fn upkeep_counts_anew_and_takes_turns(database: &Database) {
    let catalog = database.open().await;
    let second = database.open_beside(&catalog).await;
    catalog.enqueue(upload("default", "a", "12345")).await.expect("takes it");
    catalog.enqueue(upload("default", "a", "123")).await.expect("takes it");
    catalog.enqueue(upload("default", "b", "1234567")).await.expect("takes it");
    let stored = async || catalog.tenant("default").await.expect("reads").expect("is there").stored_bytes;
    assert_eq!(stored().await, 10);
    let mut connection = AnyConnection::connect(&database.url).await.expect("connects");
    sqlx::query("UPDATE tenants SET stored_bytes = 99").execute(&mut connection).await.expect("spoils");
    // Of two that find it due one does it.
    let (first, other) = tokio::join!(catalog.upkeep_if_due(Task::Analyze), second.upkeep_if_due(Task::Analyze));
    assert_eq!(u8::from(first.expect("runs")) + u8::from(other.expect("runs")), 1);
    assert_eq!(stored().await, 10);
    let runs = catalog.upkeep_runs().await.expect("reads");
    assert!(runs.iter().any(|(task, ran_ms)| task == "analyze" && *ran_ms > 0), "{runs:?}");
    catalog.delete_collection(1).await.expect("writes");
    assert_eq!(stored().await, 0);
    assert_eq!(catalog.server_settings().await.expect("reads").is_empty(), !database.is_postgres());
}

pub(crate) async fn a_task_that_failed_is_not_taken_for_done(database: &Database) {
    let catalog = database.open().await;
    let done_ms = async || {
        let runs = catalog.upkeep_runs().await.expect("reads");
        runs.into_iter().find(|(task, _)| task == "prune").expect("is there").1
    };
    database.execute("ALTER TABLE audit RENAME TO away").await;
    catalog.upkeep_if_due(Task::Prune).await.expect_err("a table is missing");
    assert_eq!(done_ms().await, 0, "it was not done");
    assert!(!catalog.upkeep_if_due(Task::Prune).await.expect("looks"), "its turn is not over yet");
    database.execute("ALTER TABLE away RENAME TO audit").await;
    database.execute("UPDATE upkeep SET begun_ms = begun_ms - 3600001").await;
    assert!(catalog.upkeep_if_due(Task::Prune).await.expect("runs"), "an hour later it is tried again");
    assert!(done_ms().await > 0);
    assert!(!catalog.upkeep_if_due(Task::Prune).await.expect("looks"), "it was done");
}

/// Another process has SQLite's lock for writing: one of ours waits for it there, and the next for its turn here.
#[tokio::test]
async fn waits_are_counted_and_timed() {
    let database = Database::sqlite();
    let options = CatalogOptions { pool_timeout: Duration::from_secs(2), ..database.options() };
    let catalog = Catalog::open(&options).await.expect("opens");
    let registry = Registry::new();
    catalog.register(&registry).expect("a free name");
    let waits = || {
        let text = TextEncoder::new().encode_to_string(&registry.gather()).expect("renders");
        let count = text.lines().find_map(|line| line.strip_prefix("catalog_pool_wait_seconds_count "));
        count.expect("the histogram").parse::<u64>().expect("a number")
    };
    let before = waits();
    let mut other = AnyConnection::connect(&database.url).await.expect("connects");
    let held = other.begin_with("BEGIN IMMEDIATE").await.expect("begins");
    let (taken, ()) = tokio::join!(catalog.enqueue(upload("default", "a", "x")), async {
        let refused = catalog.enqueue(upload("default", "b", "x")).await.expect_err("another writes");
        assert!(matches!(refused, CatalogError::Busy { what: "turn to write", .. }), "{refused}");
        held.rollback().await.expect("lets go");
    });
    taken.expect("its turn came");
    assert_eq!((catalog.pool_counts().timeouts, waits() - before), (1, 2));
}

pub(crate) async fn usage_adds_up(database: &Database) {
    let catalog = database.open().await;
    let row = |number: usize, requests: u64| UsageRow {
        tenant: "default".into(),
        day: 20_000 + (number / 10) as i64,
        model: format!("m{}", number % 10),
        requests,
        prompt_tokens: 2,
        completion_tokens: 3,
    };
    // More than one statement takes.
    let rows: Vec<UsageRow> = (0..230).map(|number| row(number, 1)).collect();
    catalog.add_usage(&rows).await.expect("writes");
    catalog.add_usage(&[row(7, 4)]).await.expect("writes");
    let stored = catalog.usage("default", 0, i64::MAX, 1000).await.expect("reads");
    assert_eq!(stored.len(), 230);
    let sum = stored.iter().map(|row| row.requests).sum::<u64>();
    let tokens = stored.iter().map(|row| row.prompt_tokens + row.completion_tokens).sum::<u64>();
    assert_eq!((sum, tokens), (234, 231 * 5));
    assert_eq!(catalog.usage("default", 20_000, 20_000, 1000).await.expect("reads").len(), 10);
    assert!(catalog.usage("other", 0, i64::MAX, 1000).await.expect("reads").is_empty());
}
