//! Every statement that the catalog sends is answered by an index, on both engines, and every index answers one.
//!
//! The statements are not listed here: they are caught on their way to the database while every call of the catalog is made once, on
//! tables of [`ROWS`] rows whose statistics are known and with the planner as it is. Postgres tells the plan of each as it runs
//! (`auto_explain`); SQLite is asked for them afterwards.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use chaos_tests::postgres::PostgresServer;
use cluster_config::error::ErrorKind;
use coordinator::catalog::deletion::DELETED;
use coordinator::catalog::documents::{DocumentRef, Indexed, Upload};
use coordinator::catalog::job_view::JobsQuery;
use coordinator::catalog::jobs::{Finish, JobState};
use coordinator::catalog::keys::{NewKey, Scope};
use coordinator::catalog::operators::AuditRow;
use coordinator::catalog::stages::Part;
use coordinator::catalog::tenants::{TenantLimits, UsageRow};
use coordinator::catalog::upkeep::Task;
use coordinator::catalog::{Catalog, CatalogOptions, LEASE};
use sqlx::{AnyConnection, Connection, Executor, Row};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use uuid::Uuid;

/// Of each table but the small ones.
const ROWS: usize = 20_000;

/// Tables that may be read whole: they have a handful of rows.
const SMALL: [&str; 2] = ["aliases", "upkeep"];

/// Statements that read a whole table on purpose: small tables, gauges, the nightly count, and the end of a collection.
const WHOLE_TABLE: [&str; 8] = [
    "SELECT state, count(*) FROM jobs GROUP BY state",
    "SELECT alias, collection FROM aliases",
    "SELECT task, ran_ms FROM upkeep",
    "SELECT tenant FROM tenants ORDER BY tenant FOR UPDATE",
    "UPDATE tenants SET stored_bytes = 0",
    "UPDATE tenants SET stored_bytes = counted.bytes",
    "DELETE FROM job_stages WHERE job_id NOT IN",
    "DELETE FROM job_stages WHERE job_id IN (SELECT job_id FROM jobs WHERE collection_id = $1)",
];

/// What sqlx reports: the statements it sends, and what Postgres tells of their plans.
#[derive(Clone, Default)]
struct Caught {
    statements: Arc<Mutex<BTreeSet<String>>>,
    plans: Arc<Mutex<Vec<String>>>,
}

struct StatementOf<'a>(&'a Caught);

impl Visit for StatementOf<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        // A statement of a few words stands in the summary, longer ones in the field beside it.
        let is_whole = field.name() == "db.statement" && !value.is_empty();
        if is_whole || field.name() == "summary" && !value.ends_with('…') {
            self.0.statements.lock().expect("not poisoned").insert(in_one_line(value));
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

struct PlanOf<'a>(&'a Caught);

impl Visit for PlanOf<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        // "duration: 0.1 ms  plan:", the text of the query, the plan.
        if let Some((_, plan)) = value.split_once("Query Text: ").filter(|_| field.name() == "message") {
            self.0.plans.lock().expect("not poisoned").push(in_one_line(plan));
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

fn in_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl<S: tracing::Subscriber> Layer<S> for Caught {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        match event.metadata().target() {
            "sqlx::query" => event.record(&mut StatementOf(self)),
            "sqlx::postgres::notice" => event.record(&mut PlanOf(self)),
            _ => {}
        }
    }
}

#[tokio::test]
async fn every_statement_uses_an_index_and_every_index_is_used() {
    let caught = Caught::default();
    let subscriber = tracing_subscriber::registry().with(caught.clone());
    tracing::subscriber::set_global_default(subscriber).expect("the only test of this process");
    on_sqlite(&caught).await;
    on_postgres(&caught).await;
}

async fn on_sqlite(caught: &Caught) {
    let dir = tempfile::tempdir().expect("scratch directory");
    let url = format!("sqlite://{}", dir.path().join("catalog.db").display());
    open(&url).await.close().await;
    fill(&url, "CAST('x' AS BLOB)").await;
    let statements = use_everything(&url, caught).await;
    let mut connection = AnyConnection::connect(&url).await.expect("connects");
    let mut used = BTreeSet::new();
    for statement in statements.iter().filter(|statement| !reads_a_whole_table(statement)) {
        let sql = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
        let rows = sqlx::query(sql).fetch_all(&mut connection).await.expect("explains");
        let plan: Vec<String> = rows.iter().map(|row| row.get::<String, _>("detail")).collect();
        for line in &plan {
            // "SCAN jobs USING INDEX jobs_open" reads an index made for exactly these rows.
            let is_scan = line.starts_with("SCAN ") && !line.contains("CONSTANT") && !line.contains(" INDEX jobs_");
            let is_small = SMALL.iter().any(|table| line.contains(table));
            assert!(!is_scan || is_small, "{statement}\n{plan:#?}");
            used.extend(line.split_once("INDEX ").and_then(|(_, rest)| rest.split(' ').next()).map(str::to_owned));
        }
    }
    let named = "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL";
    let rows = sqlx::query(named).fetch_all(&mut connection).await.expect("reads");
    for row in rows {
        let index: String = row.get("name");
        assert!(used.contains(&index), "no statement uses {index}: {used:#?}");
    }
}

async fn on_postgres(caught: &Caught) {
    let settings = "shared_buffers = 64MB\nsession_preload_libraries = 'auto_explain'\n\
                    auto_explain.log_min_duration = 0\nclient_min_messages = log\n";
    let server = PostgresServer::start_with(settings).await.expect("postgres starts");
    open(&server.url()).await.close().await;
    fill(&server.url(), "CAST('x' AS BYTEA)").await;
    let statements = use_everything(&server.url(), caught).await;
    let plans = std::mem::take(&mut *caught.plans.lock().expect("not poisoned"));
    for statement in &statements {
        assert!(plans.iter().any(|plan| plan.starts_with(statement.as_str())), "no plan was told of {statement}");
    }
    for plan in plans.iter().filter(|plan| !reads_a_whole_table(plan)) {
        let scanned = plan.match_indices("Seq Scan on ").map(|(at, before)| &plan[at + before.len()..]);
        let scanned = scanned.filter(|table| !SMALL.iter().any(|small| table.starts_with(small)));
        assert_eq!(scanned.count(), 0, "{plan}");
    }
    let mut connection = AnyConnection::connect(&server.url()).await.expect("connects");
    let of_large_tables = "SELECT CAST(indexname AS TEXT) AS name FROM pg_indexes
                           WHERE schemaname = 'public' AND tablename NOT IN ('_sqlx_migrations', 'aliases', 'upkeep')";
    let rows = sqlx::query(of_large_tables).fetch_all(&mut connection).await.expect("reads");
    assert!(rows.len() > 10, "the schema has indexes");
    for row in rows {
        let index: String = row.get("name");
        let is_used =
            plans.iter().any(|plan| plan.contains(&format!(" {index} ")) || plan.contains(&format!(" {index}(")));
        assert!(is_used, "no statement uses {index}: {plans:#?}");
    }
}

fn reads_a_whole_table(statement: &str) -> bool {
    WHOLE_TABLE.iter().any(|known| statement.starts_with(known))
}

async fn open(url: &str) -> Catalog {
    let options = CatalogOptions {
        url: url.to_owned(),
        pool_size: 2,
        max_overflow: 0,
        pool_timeout: std::time::Duration::from_secs(30),
        lease: LEASE,
    };
    Catalog::open(&options).await.expect("opens")
}

/// [`ROWS`] rows into each table: a hundred collections of one tenant, whose jobs have all ended but for a few that wait for their time,
/// and as many tenants, keys, days and calls. Then the statistics.
async fn fill(url: &str, blob: &str) {
    let now = "1800000000000";
    let tables = [
        format!(
            "documents (collection_id, tenant, document_id, version, state, title, metadata_json, media_type, file_name,
                 content_hash, content_bytes, extracted, job_id, created_ms, updated_ms)
             SELECT 1 + i / 200, 'default', 'd' || i, 1, 'ready', 'title ' || i, '{{}}', 'text/plain', '', {blob}, 100,
                 'the text', '00000000-0000-7000-8000-' || (100000000000 + i), {now} - i, {now} FROM n"
        ),
        format!(
            "jobs (job_id, collection_id, tenant, document_id, document_version, state, progress, attempt, run_after_ms,
                 created_ms, updated_ms)
             SELECT '00000000-0000-7000-8000-' || (100000000000 + i), 1 + i / 200, CASE WHEN i % 2 = 0 THEN 'default' ELSE 't' || i END, 'd' || i, 1,
                 CASE WHEN i % 100 = 0 THEN 'queued' WHEN i % 100 = 1 THEN 'failed' ELSE 'done' END,
                 0.5, 1, {now} * 2 + i, {now}, {now} FROM n"
        ),
        format!("job_stages (job_id, part, body) SELECT '00000000-0000-7000-8000-' || (100000000000 + i), 'parsed', {blob} FROM n"),
        format!(
            "idempotency_keys (tenant, key, request_hash, document_id, job_id, created_ms)
             SELECT 'default', 'key ' || i, {blob}, 'd' || i, '00000000-0000-7000-8000-' || (100000000000 + i), {now} FROM n"
        ),
        format!("tenants (tenant, created_ms, updated_ms) SELECT 't' || i, {now}, {now} FROM n"),
        format!(
            "api_keys (key_id, key_hash, tenant, name, scope, created_ms)
             SELECT 'key ' || i, CAST('hash ' || i AS {}), 't' || (i / 2), '', 'read', {now} FROM n",
            if blob.contains("BLOB") { "BLOB" } else { "BYTEA" }
        ),
        "usage (tenant, day, model, requests, prompt_tokens, completion_tokens)
         SELECT 't' || (i / 10), i % 10, 'm', 1, 1, 1 FROM n"
            .to_owned(),
        format!(
            "audit (audit_id, at_ms, tenant, request_id, action, target, status)
             SELECT 'ffffffff-0000-7000-8000-' || (100000000000 + i), {now}, 'default', 'r', 'PUT', '/', 200 FROM n"
        ),
    ];
    let mut connection = AnyConnection::connect(url).await.expect("connects");
    for table in tables {
        let numbers = format!("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})");
        let sql = sqlx::AssertSqlSafe(format!("{numbers} INSERT INTO {table}"));
        let filled = sqlx::query(sql).execute(&mut connection).await.expect("fills");
        assert_eq!(filled.rows_affected(), ROWS as u64);
    }
    connection.execute("ANALYZE").await.expect("counts");
    connection.close().await.expect("closes");
}

/// Makes every call of the catalog and gives the statements that it sent.
async fn use_everything(url: &str, caught: &Caught) -> BTreeSet<String> {
    let catalog = open(url).await;
    // Migrations and the settings of connections are not the catalog's statements.
    catalog.check().await.expect("answers");
    caught.statements.lock().expect("not poisoned").clear();
    caught.plans.lock().expect("not poisoned").clear();

    let document = DocumentRef { collection_id: 1, tenant: "default".into(), document_id: "d".into() };
    let upload = Upload {
        document: document.clone(),
        title: "t".into(),
        metadata_json: "{}".into(),
        media_type: String::new(),
        file_name: String::new(),
        content_hash: [0; 32],
        content: b"text".to_vec(),
        priority: 0,
        idempotency: Some(("key".into(), [0; 32])),
    };
    let claim = async || {
        let enqueued = catalog.enqueue(Upload { idempotency: None, ..upload.clone() }).await.expect("takes it");
        let claim = catalog.claim_job().await.expect("reads").expect("a job waits");
        assert_eq!(claim.job_id, enqueued.job_id);
        claim
    };
    catalog.enqueue(upload.clone()).await.expect("takes it");
    catalog.enqueue(upload.clone()).await.expect("knows it");
    let first = claim().await;
    catalog.advance_job(&first, JobState::Parsing, 0.1, 0).await.expect("writes").expect("holds");
    catalog.holds(&first).await.expect("reads");
    catalog.renew_job(&first).await.expect("writes").expect("holds");
    catalog.keep_stage(&first, Part::Parsed, b"x").await.expect("writes");
    catalog.stage(&first, Part::Parsed).await.expect("reads");
    let indexed = Indexed { from: vec![1], chunks: vec![2] };
    let finish = Finish { title: "t", extracted: Some("x"), chunk_count: 1, session: "s", indexed };
    catalog.finish_job(&first, &finish).await.expect("writes").expect("holds");
    let second = claim().await;
    catalog.fail_job(&second, ErrorKind::Internal, "x").await.expect("writes");
    let third = claim().await;
    catalog.requeue_job(&third, 0, ErrorKind::Internal, "x").await.expect("writes");
    let fourth = catalog.claim_job().await.expect("reads").expect("a job waits");
    catalog.release_job(&fourth).await.expect("writes");
    catalog.cancel_job("default", fourth.job_id).await.expect("writes");
    catalog.retry_job("default", fourth.job_id).await.expect("writes");
    for state in [None, Some(JobState::Failed)] {
        let jobs = JobsQuery { tenant: "default", state, collection_id: None, after: "", limit: 10 };
        catalog.jobs(&jobs).await.expect("reads");
    }
    catalog.job_counts().await.expect("reads");
    catalog.document(&document).await.expect("reads");
    catalog.documents(1, "default", "", 10).await.expect("reads");
    catalog.extracted_text(&document).await.expect("reads");
    catalog.newest_documents(1, "default", None, 10).await.expect("reads");
    catalog.titled_documents(1, "default", "ti", None, 10).await.expect("reads");
    catalog.lock_document(&document).await.map(drop).expect("is free");
    for ids in [vec!["d".to_owned()], vec!["d".to_owned(), "d7".to_owned()]] {
        catalog.known_documents(1, "default", &ids).await.expect("reads");
        catalog.delete_documents(1, "default", &ids, DELETED).await.expect("writes");
    }
    catalog.delete_collection(1).await.expect("writes");

    let limits = TenantLimits { stored_bytes_max: Some(0), ..TenantLimits::default() };
    catalog.put_tenant("acme", false, limits).await.expect("writes");
    let foreign = DocumentRef { tenant: "acme".into(), ..document };
    catalog.enqueue(Upload { document: foreign, idempotency: None, ..upload }).await.expect_err("above its bound");
    catalog.tenant("acme").await.expect("reads");
    catalog.tenants("", 10).await.expect("reads");
    let usage = UsageRow { tenant: "acme".into(), day: 1, model: "m".into(), ..UsageRow::default() };
    catalog.add_usage(&[usage]).await.expect("writes");
    catalog.usage("acme", 0, 10, 10).await.expect("reads");
    let key =
        NewKey { key_id: Uuid::now_v7(), tenant: "acme".into(), name: "n".into(), scope: Scope::Read, valid_ms: None };
    catalog.create_key(&key, &[1; 32]).await.expect("writes").expect("there is such a tenant");
    catalog.key_by_hash(&[1; 32]).await.expect("reads").expect("is there");
    catalog.keys("acme", "", 10).await.expect("reads");
    catalog.revoke_key(key.key_id).await.expect("writes");
    let call = AuditRow {
        audit_id: Uuid::now_v7(),
        at_ms: 0,
        tenant: "default".into(),
        key_id: None,
        request_id: "r".into(),
        action: "PUT x".into(),
        target: "x".into(),
        status: 200,
    };
    catalog.append_audit(&call).await.expect("writes");
    catalog.audit(None, 10).await.expect("reads");
    catalog.put_alias("a", "c").await.expect("writes");
    catalog.aliases().await.expect("reads");
    catalog.delete_alias("a").await.expect("writes");
    for task in Task::ALL {
        catalog.upkeep_now(task).await.expect("runs");
        assert!(!catalog.upkeep_if_due(task).await.expect("looks"), "it has just run");
    }
    catalog.upkeep_runs().await.expect("reads");
    catalog.close().await;

    let statements = std::mem::take(&mut *caught.statements.lock().expect("not poisoned"));
    let is_explained = |statement: &String| {
        ["SELECT", "INSERT", "UPDATE", "DELETE"].iter().any(|verb| statement.starts_with(verb))
            && statement != "SELECT 1"
    };
    let explained: BTreeSet<String> = statements.into_iter().filter(is_explained).collect();
    assert!(explained.len() >= 40, "{explained:#?}");
    explained
}
