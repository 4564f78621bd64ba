//! A catalog whose connections are all in use, or whose server is away: callers are told which, in time and in the API's own words.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use chaos_tests::postgres::PostgresServer;
use cluster_config::error::ErrorKind;
use coordinator::catalog::{Catalog, CatalogOptions};
use reqwest::StatusCode;
use serde_json::json;
use sqlx::{AnyConnection, Connection};

use super::support::{Coordinator, Setup};
use crate::database::Database;

#[tokio::test]
async fn an_exhausted_pool_is_a_503_with_retry_after() {
    let database = Database::postgres().await;
    let mut setup = Setup { catalog_url: Some(database.url.clone()), workers: 0, ..Setup::default() };
    setup.catalog.pool_size = 1;
    setup.catalog.max_overflow = 1;
    setup.catalog.pool_timeout = Duration::from_secs(1);
    let c = Coordinator::start(setup).await;
    c.create_texts("t").await;
    let path = "/api/v1/documents/d?collection=t";
    assert_eq!(c.get(path).await.status, StatusCode::NOT_FOUND);

    let mut blocker = AnyConnection::connect(&database.url).await.expect("connects");
    let mut observer = AnyConnection::connect(&database.url).await.expect("connects");
    let mut held = blocker.begin().await.expect("begins");
    sqlx::query("LOCK TABLE documents IN ACCESS EXCLUSIVE MODE").execute(&mut *held).await.expect("locks");
    // Both connections wait for the table; those who come too late for one give up meanwhile.
    let refused = loop {
        let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_locks WHERE NOT granted")
            .fetch_one(&mut observer)
            .await
            .expect("counts");
        if waiting == 2 {
            break c.get(path).await;
        }
        drop(tokio::spawn(c.http.get(format!("{}{path}", c.base)).send()));
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.body);
    assert!(refused.headers["retry-after"].to_str().is_ok_and(|text| text.parse::<u64>().is_ok_and(|s| s >= 1)));
    let error = &refused.body["error"];
    assert_eq!((error["type"].as_str(), error["retryable"].as_bool()), (Some("overloaded"), Some(true)), "{error}");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("catalog is busy")), "{error}");
    held.rollback().await.expect("lets go");

    let (_, metrics) = c.text("/metrics").await;
    let timeouts = metrics.lines().find_map(|line| line.strip_prefix("catalog_pool_timeouts_total "));
    assert!(timeouts.is_some_and(|count| count != "0"), "{timeouts:?}");
    assert!(metrics.contains("catalog_pool_wait_seconds_bucket"), "{metrics}");
    let patience = Instant::now() + Duration::from_secs(30);
    while c.get(path).await.status != StatusCode::NOT_FOUND {
        assert!(Instant::now() < patience, "the pool is free again");
    }
    c.stop().await;
}

/// A server that is away is not one that is busy, whatever the pool says of both; probes and scrapes do not wait for it.
#[tokio::test]
async fn a_server_that_is_away_is_told_from_a_busy_pool_and_hides_no_metrics() {
    let mut server = PostgresServer::start().await.expect("postgres starts");
    let mut setup = Setup { catalog_url: Some(server.url()), workers: 0, ..Setup::default() };
    setup.catalog.pool_timeout = Duration::from_secs(1);
    let impatient = CatalogOptions { url: server.url(), ..setup.catalog.clone() };
    let impatient = Catalog::open(&impatient).await.expect("opens");
    // Longer than this test may take.
    setup.catalog.pool_timeout = Duration::from_secs(3600);
    let c = Coordinator::start(setup).await;
    c.create_texts("t").await;
    c.post("/api/v1/documents", json!({"id": "d", "text": "words", "collection": "t"})).await.ok();
    let waiting = "\ningest_jobs{state=\"queued\"} 1\n";
    assert!(c.text("/metrics").await.1.contains(waiting));

    server.stop();
    // Its socket as a server leaves it that was killed: there, and refusing.
    let url = server.url();
    let socket = format!("{}/.s.PGSQL.5432", url.split_once("host=").expect("a socket").1);
    let _ = std::fs::remove_file(&socket);
    drop(UnixListener::bind(&socket).expect("binds"));
    let (status, metrics) = c.text("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert!(metrics.contains(waiting), "as it was told last");
    let (status, obstacle) = c.text("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(obstacle.contains("database cannot be reached"), "{obstacle}");

    let away = impatient.check().await.expect_err("nobody is there");
    assert_eq!(away.kind(), ErrorKind::Unavailable, "{away}");
    assert_eq!(impatient.pool_counts().timeouts, 0, "a larger pool would not help");
    // Its background work waits for the server.
    drop(c);
}
