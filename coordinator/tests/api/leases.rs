//! Who works on a job, for how long, and which job goes first: on either engine.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use sqlx::{AnyConnection, Connection};

use super::embedders::{Behind, Gate};
use super::jobs::on;
use super::support::{Coordinator, Setup};
use super::tenants::{OPERATOR, make_key, with_keys};
use crate::database::Database;

on_both_engines! {
    crate::leases::a_claim_is_renewed_as_long_as_its_work_lasts => a_claim_is_renewed_as_long_as_its_work_lasts,
    crate::leases::the_urgent_tenants_job_goes_first => the_urgent_tenants_job_goes_first,
}

/// The ends of all leases, Unix milliseconds.
async fn lease_ends(connection: &mut AnyConnection) -> Vec<i64> {
    let ends = "SELECT lease_until_ms FROM jobs WHERE lease_until_ms IS NOT NULL";
    sqlx::query_scalar(ends).fetch_all(connection).await.expect("reads")
}

/// Work that takes three leases, while another worker (of another coordinator, where there can be one) looks for something to do.
async fn a_claim_is_renewed_as_long_as_its_work_lasts(database: &Database) {
    // Long enough that a busy machine renews in time, three times a lease.
    const LEASE: Duration = Duration::from_secs(3);
    let gate = Behind::new(Gate::default());
    let with_lease = |mut setup: Setup| {
        setup.catalog.lease = LEASE;
        setup
    };
    let owner = with_lease(Setup { embedder: gate.clone(), ..on(database) });
    let twin = Arc::clone(&owner.twin);
    let c = Coordinator::start(owner).await;
    c.create_texts("t").await;
    let accepted = c.post("/api/v1/documents", json!({"id": "d", "text": "words", "collection": "t"})).await.ok();
    gate.before.reached.notified().await;
    let other = if database.is_postgres() {
        let setup = Setup { twin: Arc::clone(&twin), embedder: gate.clone(), ..on(database) };
        Some(Coordinator::start(with_lease(setup)).await)
    } else {
        None
    };

    let mut connection = AnyConnection::connect(&database.url).await.expect("connects");
    let first = lease_ends(&mut connection).await;
    assert_eq!(first.len(), 1, "one claim");
    let patience = Instant::now() + 20 * LEASE;
    loop {
        let now = lease_ends(&mut connection).await;
        if now[0] >= first[0] + 3 * LEASE.as_millis() as i64 {
            break;
        }
        assert!(Instant::now() < patience, "the lease ends at {now:?}, at first {first:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let job_path = format!("/api/v1/jobs/{}", accepted["job_id"].as_str().expect("id"));
    let job = c.get(&job_path).await.ok();
    assert_eq!((&job["status"], &job["attempt"]), (&json!("embedding"), &json!(1)), "one owner: {job}");
    assert_eq!(twin.applied_total(), 0);

    // Stopped, it gives the claim back as it was; whoever runs then ends the job.
    gate.before.is_open.store(true, Ordering::SeqCst);
    c.stop().await;
    let next = match other {
        Some(other) => other,
        None => Coordinator::start(Setup { twin: Arc::clone(&twin), embedder: gate, ..on(database) }).await,
    };
    let job = next.follow_job(accepted["job_id"].as_str().expect("id")).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("done"), &json!(1)), "{job}");
    assert_eq!(twin.applied_total(), 1);
    next.stop().await;
}

/// `tenant_priority` of the configuration names the tenant `urgent`.
async fn the_urgent_tenants_job_goes_first(database: &Database) {
    let gate = Behind::new(Gate::default());
    let keyed =
        |workers| Setup { catalog_url: Some(database.url.clone()), embedder: gate.clone(), workers, ..with_keys() };
    let waiting = keyed(0);
    let twin = Arc::clone(&waiting.twin);
    let c = Coordinator::start(waiting).await;
    let spec = json!({"embedder": "fake-hash-16", "shards": 1, "copies": 1});
    c.call_as(OPERATOR, Method::PUT, "/api/v1/collections/docs", Some(spec)).await.ok();
    let (_, acme) = make_key(&c, "acme", "write").await;
    let (_, urgent) = make_key(&c, "urgent", "write").await;
    let upload = async |key: &str, id: &str| {
        let body = json!({"id": id, "collection": "docs", "text": "some words"});
        let accepted = c.call_as(key, Method::POST, "/api/v1/documents", Some(body)).await.ok();
        format!("/api/v1/jobs/{}", accepted["job_id"].as_str().expect("id"))
    };
    let older = [upload(&acme, "a").await, upload(&acme, "b").await];
    let newest = upload(&urgent, "c").await;
    c.stop().await;

    let c = Coordinator::start(Setup { twin: Arc::clone(&twin), ..keyed(1) }).await;
    gate.before.reached.notified().await;
    assert_eq!(c.call_as(&urgent, Method::GET, &newest, None).await.ok()["status"], "embedding");
    for job in &older {
        assert_eq!(c.call_as(&acme, Method::GET, job, None).await.ok()["status"], "queued", "only one worker runs");
    }
    c.stop().await;
}
