//! A catalog whose connections are all in use: callers are told so, in time and in the API's own words.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
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
