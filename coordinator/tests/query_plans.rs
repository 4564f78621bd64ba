//! Every statement that the catalog sends is answered by an index, on both engines.
//!
//! The statements are not listed here: they are caught on their way to the database while every call of the catalog is made once, and
//! then explained. On Postgres sequential scans are made unattractive, so that one in a plan means that there is no index to use.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use chaos_tests::postgres::PostgresServer;
use cluster_config::error::ErrorKind;
use coordinator::catalog::documents::{DocumentRef, Indexed, Upload};
use coordinator::catalog::job_view::JobsQuery;
use coordinator::catalog::jobs::{Finish, JobState};
use coordinator::catalog::keys::{KeyRow, Scope};
use coordinator::catalog::operators::AuditRow;
use coordinator::catalog::stages::Part;
use coordinator::catalog::tenants::{TenantLimits, UsageRow};
use coordinator::catalog::upkeep::Task;
use coordinator::catalog::{Catalog, CatalogOptions};
use sqlx::{AnyConnection, Connection, Executor, Row};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use uuid::Uuid;

/// Statements that read a whole table on purpose: small tables, gauges, and the nightly count.
const WHOLE_TABLE: [&str; 6] = [
    "SELECT state, count(*) FROM jobs GROUP BY state",
    "SELECT alias, collection FROM aliases",
    "SELECT task, ran_ms FROM upkeep",
    "SELECT tenant FROM tenants ORDER BY tenant FOR UPDATE",
    "UPDATE tenants SET stored_bytes =",
    "DELETE FROM job_stages WHERE job_id NOT IN",
];

/// Collects the statements that sqlx reports.
#[derive(Clone, Default)]
struct Statements(Arc<Mutex<BTreeSet<String>>>);

struct StatementOf<'a>(&'a Statements);

impl Visit for StatementOf<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        // A statement of a few words stands in the summary, longer ones in the field beside it.
        let is_whole = field.name() == "db.statement" && !value.is_empty();
        if is_whole || field.name() == "summary" && !value.ends_with('…') {
            self.0.0.lock().expect("not poisoned").insert(value.trim().to_owned());
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl<S: tracing::Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "sqlx::query" {
            event.record(&mut StatementOf(self));
        }
    }
}

#[tokio::test]
async fn every_statement_uses_an_index() {
    let statements = Statements::default();
    let subscriber = tracing_subscriber::registry().with(statements.clone());
    tracing::subscriber::set_global_default(subscriber).expect("the only test of this process");

    let dir = tempfile::tempdir().expect("scratch directory");
    let sqlite = format!("sqlite://{}", dir.path().join("catalog.db").display());
    let caught = use_everything(&sqlite, &statements).await;
    // The upkeep has counted tables of a row or two, for which SQLite would rather read the table.
    let mut connection = AnyConnection::connect(&sqlite).await.expect("connects");
    connection.execute("DELETE FROM sqlite_stat1").await.expect("forgets");
    connection.close().await.expect("closes");
    let mut connection = AnyConnection::connect(&sqlite).await.expect("connects");
    for statement in &caught {
        let plan = explain_sqlite(&mut connection, statement).await;
        // "SCAN t USING INDEX" reads an index made for exactly these rows.
        let scans =
            plan.iter().any(|line| line.starts_with("SCAN ") && !line.contains("INDEX") && !line.contains("CONSTANT"));
        assert!(!scans, "{statement}\n{plan:#?}");
    }

    let server = PostgresServer::start().await.expect("postgres starts");
    let caught = use_everything(&server.url(), &statements).await;
    let mut connection = AnyConnection::connect(&server.url()).await.expect("connects");
    connection.execute("SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan").await.expect("sets");
    for statement in &caught {
        let plan = explain_postgres(&mut connection, statement).await;
        assert!(!plan.iter().any(|line| line.contains("Seq Scan")), "{statement}\n{plan:#?}");
    }
}

/// Makes every call of the catalog and gives the statements that it sent, but for those that read whole tables on purpose.
async fn use_everything(url: &str, statements: &Statements) -> BTreeSet<String> {
    let options = CatalogOptions {
        url: url.to_owned(),
        pool_size: 2,
        max_overflow: 0,
        pool_timeout: std::time::Duration::from_secs(30),
    };
    let catalog = Catalog::open(&options).await.expect("opens");
    // Migrations and the settings of connections are not the catalog's statements.
    catalog.check().await.expect("answers");
    statements.0.lock().expect("not poisoned").clear();

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
    let jobs = JobsQuery { tenant: "default", state: None, collection_id: None, after: "", limit: 10 };
    catalog.jobs(&jobs).await.expect("reads");
    catalog.job_counts().await.expect("reads");
    catalog.document(&document).await.expect("reads");
    catalog.documents(1, "default", "", 10).await.expect("reads");
    catalog.extracted_text(&document).await.expect("reads");
    catalog.delete_document(&document).await.expect("writes");
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
    let key = KeyRow {
        key_id: Uuid::now_v7(),
        tenant: "acme".into(),
        name: "n".into(),
        scope: Scope::Read,
        created_ms: 0,
        expires_ms: None,
        revoked_ms: None,
    };
    assert!(catalog.create_key(&key, &[1; 32]).await.expect("writes"));
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

    let caught = std::mem::take(&mut *statements.0.lock().expect("not poisoned"));
    let is_explained = |statement: &String| {
        ["SELECT", "INSERT", "UPDATE", "DELETE"].iter().any(|verb| statement.starts_with(verb))
            && statement != "SELECT 1"
            && !WHOLE_TABLE.iter().any(|known| statement.starts_with(known))
    };
    let explained: BTreeSet<String> = caught.into_iter().filter(is_explained).collect();
    assert!(explained.len() >= 30, "{explained:#?}");
    explained
}

async fn explain_sqlite(connection: &mut AnyConnection, statement: &str) -> Vec<String> {
    let sql = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
    let rows = sqlx::query(sql).fetch_all(connection).await.expect("explains");
    rows.iter().map(|row| row.get::<String, _>("detail")).collect()
}

async fn explain_postgres(connection: &mut AnyConnection, statement: &str) -> Vec<String> {
    let highest = (1..).take_while(|number| statement.contains(&format!("${number}"))).last().unwrap_or(0);
    let nulls = vec!["NULL"; highest].join(", ");
    let execute = if highest == 0 { "EXECUTE plan_of".to_owned() } else { format!("EXECUTE plan_of({nulls})") };
    let prepare = sqlx::AssertSqlSafe(format!("PREPARE plan_of AS {statement}"));
    connection.execute(prepare).await.expect("prepares");
    let explain = sqlx::AssertSqlSafe(format!("EXPLAIN {execute}"));
    let rows = connection.fetch_all(explain).await.expect("explains");
    connection.execute("DEALLOCATE plan_of").await.expect("forgets");
    rows.iter().map(|row| row.get::<String, _>(0)).collect()
}
