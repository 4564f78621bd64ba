//! Tenants with their limits and keys, aliases, the audit log, and what is forgotten in time: on either engine.

use std::time::Duration;

use cluster_config::error::ErrorKind;
use coordinator::catalog::CatalogError;
use coordinator::catalog::deletion::DELETED;
use coordinator::catalog::job_view::JobsQuery;
use coordinator::catalog::jobs::JobState;
use coordinator::catalog::keys::{KeyRow, NewKey, Scope};
use coordinator::catalog::operators::AuditRow;
use coordinator::catalog::stages::Part;
use coordinator::catalog::tenants::TenantLimits;
use coordinator::catalog::upkeep::Task;
use uuid::Uuid;

use super::support::{document, finish, stored_bytes, upload};
use crate::database::Database;

/// A key for a minute.
fn key(tenant: &str, name: &str) -> NewKey {
    NewKey {
        key_id: Uuid::now_v7(),
        tenant: tenant.into(),
        name: name.into(),
        scope: Scope::Write,
        valid_ms: Some(60_000),
    }
}

/// The row but for when it was read.
fn undated(row: &KeyRow) -> KeyRow {
    KeyRow { read_ms: 0, ..row.clone() }
}

pub(crate) async fn keys_are_found_by_their_hash_and_end(database: &Database) {
    let catalog = database.open().await;
    assert_eq!(catalog.create_key(&key("acme", "n"), &[1; 32]).await.expect("writes"), None, "there is no such tenant");
    catalog.put_tenant("acme", false, TenantLimits::default()).await.expect("writes");
    let (first, second) = (key("acme", "nul \0"), key("acme", "second"));
    let first = catalog.create_key(&first, &[1; 32]).await.expect("writes").expect("is made");
    let second = catalog.create_key(&second, &[2; 32]).await.expect("writes").expect("is made");
    catalog.create_key(&key("acme", "twin"), &[2; 32]).await.expect_err("a hash opens one tenant's documents");

    let found = catalog.key_by_hash(&[1; 32]).await.expect("reads").expect("is there");
    assert_eq!((&*found.name, undated(&found)), ("nul  ", undated(&first)));
    let left = found.expires_ms.expect("it ends") - found.read_ms;
    assert!((1..=60_000).contains(&left) && found.read_ms >= found.created_ms, "{found:?}");
    let left = Duration::from_millis(left.unsigned_abs());
    assert!(found.is_valid_after(left - Duration::from_millis(1)) && !found.is_valid_after(left));
    assert_eq!(catalog.key_by_hash(&[3; 32]).await.expect("reads"), None);
    let page = catalog.keys("acme", "", 1).await.expect("reads");
    let next = catalog.keys("acme", &page[0].key_id.to_string(), 10).await.expect("reads");
    assert_eq!((page[0].key_id, next.len(), undated(&next[0])), (first.key_id, 1, undated(&second)));
    assert!(catalog.keys("other", "", 10).await.expect("reads").is_empty());

    let ended = catalog.revoke_key(first.key_id).await.expect("writes").expect("is there");
    assert!(ended.revoked_ms.is_some() && !ended.is_valid_after(Duration::ZERO));
    let again = catalog.revoke_key(first.key_id).await.expect("writes").expect("is there");
    assert_eq!(undated(&again), undated(&ended), "repeating changes nothing");
    let found = catalog.key_by_hash(&[1; 32]).await.expect("reads").expect("is there");
    assert_eq!(undated(&found), undated(&ended));
    assert_eq!(catalog.revoke_key(Uuid::now_v7()).await.expect("writes"), None);
}

pub(crate) async fn a_tenants_bytes_are_bounded_and_counted(database: &Database) {
    let catalog = database.open().await;
    let limits = TenantLimits {
        requests_per_second: Some(7),
        tokens_per_minute: None,
        streams_max: Some(2),
        stored_bytes_max: Some(10),
    };
    let made = catalog.put_tenant("acme", false, limits).await.expect("writes");
    assert_eq!((made.limits, made.disabled, made.stored_bytes), (limits, false, 0));
    catalog.enqueue(upload("acme", "a", "12345678")).await.expect("fits");
    // A refused upload leaves nothing: no row, no job, no key.
    let mut too_much = upload("acme", "b", "123");
    too_much.idempotency = Some(("key".into(), [1; 32]));
    let refused = catalog.enqueue(too_much.clone()).await.expect_err("above the bound");
    assert!(matches!(refused, CatalogError::StoredBytes { bytes_max: 10 }), "{refused}");
    assert_eq!(catalog.document(&document("acme", "b")).await.expect("reads"), None);
    let jobs = JobsQuery { tenant: "acme", state: None, collection_id: None, after: "", limit: 10 };
    assert_eq!(catalog.jobs(&jobs).await.expect("reads").len(), 1);
    // A new version of what is there counts by the difference.
    catalog.enqueue(upload("acme", "a", "1234567890")).await.expect("fits exactly");
    assert_eq!(stored_bytes(&catalog, "acme").await, 10);
    catalog.delete_documents(1, "acme", &["a".to_owned()], DELETED).await.expect("writes");
    assert!(!catalog.enqueue(too_much).await.expect("fits now").repeated);
    assert_eq!(stored_bytes(&catalog, "acme").await, 3);

    // Settings change, bytes stay; a bound below what is there refuses the next byte only.
    let bound = TenantLimits { stored_bytes_max: Some(1), ..limits };
    let changed = catalog.put_tenant("acme", true, bound).await.expect("writes");
    assert_eq!((changed.disabled, changed.stored_bytes, changed.created_ms), (true, 3, made.created_ms));
    catalog.enqueue(upload("acme", "c", "1")).await.expect_err("above the bound");
    let names = catalog.tenants("", 10).await.expect("reads").into_iter().map(|row| row.tenant).collect::<Vec<_>>();
    assert_eq!(names, ["acme", "default"]);
    assert_eq!(catalog.tenants("acme", 10).await.expect("reads").len(), 1);
    assert_eq!(catalog.tenant("nobody").await.expect("reads"), None);
}

pub(crate) async fn aliases_and_the_audit_log_keep_what_they_are_told(database: &Database) {
    let catalog = database.open().await;
    for (alias, collection) in [("live", "blue"), ("Zoo", "z"), ("live", "green")] {
        catalog.put_alias(alias, collection).await.expect("writes");
    }
    let aliases = catalog.aliases().await.expect("reads");
    assert_eq!(aliases, [("Zoo".into(), "z".into()), ("live".into(), "green".into())]);
    assert!(catalog.delete_alias("live").await.expect("writes"));
    assert!(!catalog.delete_alias("live").await.expect("writes"));

    let call = |number: i64| AuditRow {
        audit_id: Uuid::now_v7(),
        at_ms: number,
        tenant: "default".into(),
        key_id: (number % 2 == 0).then(Uuid::now_v7),
        request_id: format!("r{number}"),
        action: "PUT /x".into(),
        target: "/x/\u{e4}".into(),
        status: 200,
    };
    let calls: Vec<AuditRow> = (0..5).map(call).collect();
    for call in &calls {
        catalog.append_audit(call).await.expect("writes");
    }
    let newest = catalog.audit(None, 2).await.expect("reads");
    assert_eq!(newest, [calls[4].clone(), calls[3].clone()]);
    let older = catalog.audit(Some(newest[1].audit_id), 10).await.expect("reads");
    assert_eq!(older, [calls[2].clone(), calls[1].clone(), calls[0].clone()]);
}

/// Ten days later, the audit log aside.
pub(crate) async fn what_is_old_is_forgotten_and_nothing_else(database: &Database) {
    const AGE: &str = "UPDATE jobs SET updated_ms = updated_ms - 864000000;
                       UPDATE idempotency_keys SET created_ms = created_ms - 864000000;";
    let catalog = database.open().await;
    let with_key = |id: &str| {
        let mut upload = upload("default", id, "x");
        upload.idempotency = Some((id.into(), [1; 32]));
        upload
    };
    catalog.enqueue(with_key("done")).await.expect("takes it");
    let done = catalog.claim_job().await.expect("reads").expect("a job waits");
    catalog.finish_job(&done, &finish("t", "x", 1, "s")).await.expect("writes").expect("holds");
    catalog.enqueue(with_key("stopped")).await.expect("takes it");
    let stopped = catalog.claim_job().await.expect("reads").expect("a job waits");
    catalog.keep_stage(&stopped, Part::Parsed, b"x").await.expect("writes");
    catalog.cancel_job("default", stopped.job_id).await.expect("writes").expect("is there");
    catalog.enqueue(upload("default", "failed", "x")).await.expect("takes it");
    let failed = catalog.claim_job().await.expect("reads").expect("a job waits");
    catalog.fail_job(&failed, ErrorKind::Internal, "a bug").await.expect("writes");
    catalog.enqueue(upload("default", "under way", "y")).await.expect("takes it");
    let superseded = catalog.claim_job().await.expect("reads").expect("a job waits");
    catalog.enqueue(upload("default", "under way", "x")).await.expect("takes it");
    let open = catalog.claim_job().await.expect("reads").expect("a job waits");
    catalog.keep_stage(&open, Part::Parsed, b"x").await.expect("writes");
    database.execute(AGE).await;
    catalog.enqueue(with_key("new")).await.expect("takes it");
    let two_years_ago = Uuid::parse_str("018d0000-0000-7000-8000-000000000000").expect("an id of January 2024");
    let mut call = AuditRow {
        audit_id: two_years_ago,
        at_ms: 0,
        tenant: "default".into(),
        key_id: None,
        request_id: "r".into(),
        action: "PUT /x".into(),
        target: "/x".into(),
        status: 200,
    };
    catalog.append_audit(&call).await.expect("writes");
    call.audit_id = Uuid::now_v7();
    catalog.append_audit(&call).await.expect("writes");

    catalog.upkeep_now(Task::Prune).await.expect("runs");
    // What can be tried again is kept.
    for (claim, is_known) in [(&done, false), (&superseded, false), (&stopped, true), (&failed, true), (&open, true)] {
        let found = catalog.job("default", claim.job_id).await.expect("reads");
        assert_eq!(found.is_some(), is_known, "{}", claim.document.document_id);
    }
    assert_eq!(catalog.stage(&stopped, Part::Parsed).await.expect("reads"), None);
    assert!(catalog.stage(&open, Part::Parsed).await.expect("reads").is_some(), "it is under way");
    assert_eq!(catalog.audit(None, 10).await.expect("reads"), [call]);
    // Documents stay, and a key of ten days ago is a new one.
    for id in ["done", "stopped", "under way", "new"] {
        assert!(catalog.document(&document("default", id)).await.expect("reads").is_some(), "{id}");
    }
    assert!(!catalog.enqueue(with_key("done")).await.expect("takes it").repeated);
    assert!(catalog.enqueue(with_key("new")).await.expect("knows it").repeated);
    let waiting = catalog.job_counts().await.expect("reads");
    assert!(waiting.contains(&(JobState::Queued, 2)), "{waiting:?}");
    let again = catalog.retry_job("default", failed.job_id).await.expect("writes").expect("is there");
    assert_eq!(again.state, JobState::Queued);
    // Once it is done, it is forgotten like any other.
    let claim = loop {
        let claim = catalog.claim_job().await.expect("reads").expect("a job waits");
        if claim.job_id == failed.job_id {
            break claim;
        }
    };
    catalog.finish_job(&claim, &finish("t", "x", 1, "s")).await.expect("writes").expect("holds");
    database.execute(AGE).await;
    catalog.upkeep_now(Task::Prune).await.expect("runs");
    assert_eq!(catalog.job("default", failed.job_id).await.expect("reads"), None);
}
