//! Documents and their jobs: the queue's promises, on either engine.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cluster_config::error::ErrorKind;
use coordinator::catalog::deletion::DELETED;
use coordinator::catalog::documents::{DocumentState, OPEN_JOBS_MAX, Upload};
use coordinator::catalog::job_view::JobsQuery;
use coordinator::catalog::jobs::{ClaimLost, JobState};
use coordinator::catalog::stages::Part;
use coordinator::catalog::{Catalog, CatalogError, CatalogOptions};
use futures::future::join_all;
use sqlx::Connection;

use super::support::{document, finish, upload};
use crate::database::Database;

pub(crate) async fn a_document_goes_through_its_job(database: &Database) {
    let catalog = database.open().await;
    let enqueued = catalog.enqueue(upload("default", "d", "the text")).await.expect("takes it");
    let queued = catalog.job("default", enqueued.job_id).await.expect("reads").expect("is there");
    assert_eq!((queued.state, queued.attempt), (JobState::Queued, 0));

    let claim = catalog.claim_job().await.expect("reads").expect("a job waits");
    assert_eq!((claim.job_id, claim.attempt, &claim.upload.content[..]), (enqueued.job_id, 1, &b"the text"[..]));
    assert!(catalog.claim_job().await.expect("reads").is_none(), "a claimed job is not given out again");
    catalog.advance_job(&claim, JobState::Embedding, 0.25, 3).await.expect("writes").expect("holds");
    let row = catalog.job("default", claim.job_id).await.expect("reads").expect("is there");
    assert_eq!((row.state, row.progress, row.chunk_count), (JobState::Embedding, 0.25, 3));
    assert!(catalog.holds(&claim).await.expect("reads"));

    assert_eq!(claim.upload.indexed, None);
    catalog.keep_stage(&claim, Part::Parsed, b"kept").await.expect("writes");
    assert_eq!(catalog.stage(&claim, Part::Parsed).await.expect("reads").as_deref(), Some(&b"kept"[..]));
    catalog.finish_job(&claim, &finish("t", "extracted", 3, "token")).await.expect("writes").expect("holds");
    let row = catalog.job("default", claim.job_id).await.expect("reads").expect("is there");
    assert_eq!((row.state, row.session.as_deref()), (JobState::Done, Some("token")));
    let stored = catalog.document(&document("default", "d")).await.expect("reads").expect("is there");
    assert_eq!((stored.state, stored.title.as_str(), stored.content_bytes), (DocumentState::Ready, "t", 8));
    let text = catalog.extracted_text(&document("default", "d")).await.expect("reads");
    assert_eq!(text.as_deref(), Some("extracted"));
    assert_eq!(catalog.job_counts().await.expect("reads"), [(JobState::Done, 1)]);

    assert_eq!(
        catalog.stage(&claim, Part::Parsed).await.expect("reads"),
        None,
        "nothing is kept of a job that is done"
    );
    assert!(matches!(catalog.retry_job("default", claim.job_id).await, Err(CatalogError::NotRetryable)));

    // Another tenant sees neither the job nor the document.
    assert_eq!(catalog.job("other", claim.job_id).await.expect("reads"), None);
    assert_eq!(catalog.cancel_job("other", claim.job_id).await.expect("reads"), None);
    assert_eq!(catalog.document(&document("other", "d")).await.expect("reads"), None);
    let id = ["d".to_owned()];
    assert_eq!(catalog.delete_documents(1, "default", &id, DELETED).await.expect("writes"), 1);
    assert_eq!(catalog.delete_documents(1, "default", &id, DELETED).await.expect("writes"), 0);
}

pub(crate) async fn a_superseded_claim_changes_nothing(database: &Database) {
    let catalog = database.open().await;
    catalog.enqueue(upload("default", "d", "old")).await.expect("takes it");
    let old = catalog.claim_job().await.expect("reads").expect("a job waits");
    let newer = catalog.enqueue(upload("default", "d", "new")).await.expect("takes it");
    assert_eq!(catalog.advance_job(&old, JobState::Indexing, 0.9, 1).await.expect("writes"), Err(ClaimLost));
    assert_eq!(catalog.finish_job(&old, &finish("t", "old", 1, "s")).await.expect("writes"), Err(ClaimLost));
    catalog.fail_job(&old, ErrorKind::Internal, "too late").await.expect("writes");
    catalog.requeue_job(&old, 0, ErrorKind::Internal, "too late").await.expect("writes");
    let ended = catalog.job("default", old.job_id).await.expect("reads").expect("is there");
    assert_eq!(ended.state, JobState::Cancelled);
    let stored = catalog.document(&document("default", "d")).await.expect("reads").expect("is there");
    assert_eq!((stored.state, stored.job_id), (DocumentState::Processing, newer.job_id.to_string()));

    let claim = catalog.claim_job().await.expect("reads").expect("the newer one waits");
    assert_eq!(claim.upload.content, b"new");
    catalog.requeue_job(&claim, 0, ErrorKind::Unavailable, "no primary").await.expect("writes");
    let again = catalog.claim_job().await.expect("reads").expect("is back");
    assert_eq!((again.job_id, again.attempt), (claim.job_id, 2));
    assert_eq!(catalog.finish_job(&claim, &finish("t", "x", 1, "s")).await.expect("writes"), Err(ClaimLost), "fenced");
    catalog.release_job(&again).await.expect("writes");
    let third = catalog.claim_job().await.expect("reads").expect("is back");
    assert_eq!(third.attempt, 2, "giving a claim back unused does not count");
    let cancelled = catalog.cancel_job("default", third.job_id).await.expect("writes").expect("is there");
    assert_eq!(cancelled.state, JobState::Cancelled);
    assert_eq!(catalog.advance_job(&third, JobState::Chunking, 0.1, 0).await.expect("writes"), Err(ClaimLost));
    let stored = catalog.document(&document("default", "d")).await.expect("reads").expect("is there");
    assert_eq!(stored.state, DocumentState::Failed);
}

pub(crate) async fn one_key_makes_one_job(database: &Database) {
    let first = database.open().await;
    let second = database.open_beside(&first).await;
    let with_key = |content: &str, hash: u8| {
        let mut upload = upload("default", "d", content);
        upload.idempotency = Some(("key".into(), [hash; 32]));
        upload
    };
    let calls = (0..8).map(|number| {
        let catalog = if number % 2 == 0 { &first } else { &second };
        catalog.enqueue(with_key("x", 1))
    });
    let enqueued: Vec<_> = join_all(calls).await.into_iter().map(|result| result.expect("takes it")).collect();
    let jobs: BTreeSet<_> = enqueued.iter().map(|enqueued| enqueued.job_id).collect();
    assert_eq!(jobs.len(), 1, "{enqueued:?}");
    assert_eq!(enqueued.iter().filter(|enqueued| !enqueued.repeated).count(), 1);
    assert!(matches!(first.enqueue(with_key("y", 2)).await, Err(CatalogError::KeyReused)));
    // Keys are the tenant's own.
    let mut foreign = with_key("y", 2);
    foreign.document = document("other", "d");
    assert!(!first.enqueue(foreign).await.expect("takes it").repeated);
}

pub(crate) async fn claims_are_never_shared(database: &Database) {
    const JOBS: usize = 40;
    let first = database.open().await;
    let second = database.open_beside(&first).await;
    for number in 0..JOBS {
        first.enqueue(upload("default", &format!("d{number}"), "x")).await.expect("takes it");
    }
    let claimers = (0..8).map(|number| {
        let catalog = if number % 2 == 0 { first.clone() } else { second.clone() };
        async move {
            let mut claimed = Vec::new();
            while let Some(claim) = catalog.claim_job().await.expect("reads") {
                claimed.push(claim.job_id);
            }
            claimed
        }
    });
    let claimed: Vec<_> = join_all(claimers).await.into_iter().flatten().collect();
    let distinct: BTreeSet<_> = claimed.iter().collect();
    assert_eq!((claimed.len(), distinct.len()), (JOBS, JOBS));
}

/// A worker that hangs, or whose coordinator died.
pub(crate) async fn a_claim_that_nobody_renews_is_anothers_when_its_lease_ends(database: &Database) {
    let lease = Duration::from_millis(300);
    let catalog = Catalog::open(&CatalogOptions { lease, ..database.options() }).await.expect("opens");
    let enqueued = catalog.enqueue(upload("default", "d", "x")).await.expect("takes it");
    let before = Instant::now();
    let lost = catalog.claim_job().await.expect("reads").expect("a job waits");
    let taken = loop {
        if let Some(claim) = catalog.claim_job().await.expect("reads") {
            break claim;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(before.elapsed() >= lease / 2, "taken after {:?}", before.elapsed());
    assert_eq!((taken.job_id, lost.attempt, taken.attempt, taken.tries), (enqueued.job_id, 1, 2, 2));
    assert_eq!(catalog.renew_job(&lost).await.expect("writes"), Err(ClaimLost), "too late");
    assert_eq!(catalog.finish_job(&lost, &finish("t", "x", 1, "s")).await.expect("writes"), Err(ClaimLost));
    catalog.release_job(&lost).await.expect("writes");
    let row = catalog.job("default", enqueued.job_id).await.expect("reads").expect("is there");
    assert_eq!((row.state, row.attempt), (JobState::Parsing, 2), "it is the other one's");
}

pub(crate) async fn the_larger_priority_goes_first_then_the_older_job(database: &Database) {
    let catalog = database.open().await;
    for (id, priority) in [("old", 0), ("later", 0), ("slow", -1), ("urgent", 5), ("urgent too", 5)] {
        let upload = Upload { priority, ..upload("default", id, "x") };
        catalog.enqueue(upload).await.expect("takes it");
        // Jobs of one millisecond are of one age.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut order = Vec::new();
    while let Some(claim) = catalog.claim_job().await.expect("reads") {
        order.push(claim.document.document_id);
    }
    assert_eq!(order, ["urgent", "urgent too", "old", "later", "slow"]);
}

pub(crate) async fn pages_are_in_the_order_of_bytes(database: &Database) {
    let catalog = database.open().await;
    // In English "a" stands before "B"; in bytes after "Z".
    let ids = ["B", "Z", "_", "a", "b", "\u{e4}", "\u{1F980}"];
    for id in ids.iter().rev() {
        catalog.enqueue(upload("default", id, "x")).await.expect("takes it");
    }
    catalog.enqueue(upload("other", "C", "x")).await.expect("takes it");
    let mut found = Vec::new();
    let mut after = String::new();
    loop {
        let page = catalog.documents(1, "default", &after, 2).await.expect("reads");
        let Some(last) = page.last() else { break };
        after = last.document_id.clone();
        found.extend(page.into_iter().map(|row| row.document_id));
    }
    assert_eq!(found, ids);
}

pub(crate) async fn uploads_are_listed_newest_first_and_by_title(database: &Database) {
    let catalog = database.open().await;
    let titles = ["Harbour", "Harbour dues", "harbour", "Hafen", "Harbour", "H\u{e4}fen", "Harbour\u{1F980}", "Z"];
    for (number, title) in titles.into_iter().enumerate() {
        let upload = Upload { title: title.into(), ..upload("default", &format!("d{number}"), "x") };
        catalog.enqueue(upload).await.expect("takes it");
    }
    let foreign = Upload { title: "Harbour".into(), ..upload("other", "foreign", "x") };
    catalog.enqueue(foreign).await.expect("takes it");
    // Two of one millisecond, as a batch of uploads makes them.
    database
        .execute("UPDATE documents SET created_ms = 1000 + CAST(substr(document_id, 2) AS INTEGER) / 2 WHERE tenant = 'default'")
        .await;
    for limit in [1, 2, 3, 8] {
        let (mut newest, mut titled) = (Vec::new(), Vec::new());
        let mut before: Option<(i64, String)> = None;
        loop {
            let place = before.as_ref().map(|(created_ms, id)| (*created_ms, id.as_str()));
            let page = catalog.newest_documents(1, "default", place, limit).await.expect("reads");
            let Some(last) = page.last() else { break };
            before = Some((last.created_ms, last.document_id.clone()));
            newest.extend(page.into_iter().map(|row| row.document_id));
        }
        assert_eq!(newest, ["d7", "d6", "d5", "d4", "d3", "d2", "d1", "d0"], "pages of {limit}");
        let mut after: Option<(String, String)> = None;
        loop {
            let place = after.as_ref().map(|(title, id)| (title.as_str(), id.as_str()));
            let page = catalog.titled_documents(1, "default", "Harbour", place, limit).await.expect("reads");
            let Some(last) = page.last() else { break };
            after = Some((last.title.clone(), last.document_id.clone()));
            titled.extend(page.into_iter().map(|row| row.document_id));
        }
        assert_eq!(titled, ["d0", "d4", "d1", "d6"], "pages of {limit}: by bytes, equal titles by id");
    }
    let all = catalog.titled_documents(1, "default", "", None, 100).await.expect("reads");
    let all: Vec<_> = all.iter().map(|row| row.title.as_str()).collect();
    assert_eq!(all, ["Hafen", "Harbour", "Harbour", "Harbour dues", "Harbour\u{1F980}", "H\u{e4}fen", "Z", "harbour"]);
}

pub(crate) async fn odd_texts_come_back(database: &Database) {
    let catalog = database.open().await;
    let mut odd = upload("default", "'; DROP TABLE jobs; --", "a\0b");
    odd.title = "nul \0 and quote ' and \u{1F980}".into();
    odd.metadata_json = r#"{"k":"\u0000$1 ?"}"#.into();
    let document = odd.document.clone();
    catalog.enqueue(odd).await.expect("takes it");
    let claim = catalog.claim_job().await.expect("reads").expect("a job waits");
    assert_eq!(claim.upload.content, b"a\0b", "bytes are kept as they are");
    let title = "nul   and quote ' and \u{1F980}";
    assert_eq!(claim.upload.title, title);
    catalog.finish_job(&claim, &finish(&claim.upload.title, "a\0b", 1, "s")).await.expect("writes").expect("holds");
    let text = catalog.extracted_text(&document).await.expect("reads").expect("is there");
    assert_eq!(text, "a b", "as long as before, so that spans still fit");
    let row = catalog.document(&document).await.expect("reads").expect("is there");
    assert_eq!((row.title.as_str(), row.metadata_json.as_str()), (title, r#"{"k":"\u0000$1 ?"}"#));
}

/// Cursors and names come from the caller as they are.
pub(crate) async fn a_nul_in_a_cursor_or_name_finds_nothing(database: &Database) {
    const NUL: &str = "~\0";
    let catalog = database.open().await;
    catalog.enqueue(upload("default", "d", "x")).await.expect("takes it");
    assert!(catalog.documents(1, "default", NUL, 10).await.expect("reads").is_empty());
    assert!(catalog.newest_documents(1, "default", Some((0, NUL)), 10).await.expect("reads").is_empty());
    assert!(catalog.titled_documents(1, "default", NUL, Some((NUL, NUL)), 10).await.expect("reads").is_empty());
    let jobs = JobsQuery { tenant: "default", state: None, collection_id: None, after: NUL, limit: 10 };
    catalog.jobs(&jobs).await.expect("reads, in the database's own order of texts");
    assert!(catalog.keys(NUL, NUL, 10).await.expect("reads").is_empty());
    assert!(catalog.tenants(NUL, 10).await.expect("reads").is_empty());
    assert_eq!(catalog.tenant(NUL).await.expect("reads"), None);
}

/// Uploads take the document before its jobs, and so does everything that ends a job: in the other order Postgres would have to
/// abort one of two that wait for each other.
pub(crate) async fn uploads_and_ends_of_one_document_never_deadlock(database: &Database) {
    let first = database.open().await;
    let second = database.open_beside(&first).await;
    let uploads = async {
        for number in 0..30 {
            first.enqueue(upload("default", "d", &number.to_string())).await.expect("takes it");
        }
    };
    let ends = async {
        for number in 0..60 {
            if let Some(claim) = second.claim_job().await.expect("reads") {
                match number % 3 {
                    0 => _ = second.finish_job(&claim, &finish("t", "x", 1, "s")).await.expect("writes"),
                    1 => second.fail_job(&claim, ErrorKind::Internal, "x").await.expect("writes"),
                    _ => _ = second.cancel_job("default", claim.job_id).await.expect("writes"),
                }
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(uploads, ends);
    while let Some(claim) = second.claim_job().await.expect("reads") {
        let _ = second.finish_job(&claim, &finish("t", "last", 1, "s")).await.expect("writes");
    }
    let open: i64 =
        first.job_counts().await.expect("reads").iter().filter(|(state, _)| !state.is_final()).map(|(_, n)| n).sum();
    assert_eq!(open, 0);
}

pub(crate) async fn a_document_is_locked_by_one_at_a_time(database: &Database) {
    let first = database.open().await;
    let second = database.open_beside(&first).await;
    let wanted = document("default", "d");
    let held = first.lock_document(&wanted).await.expect("is free");
    // Another document's lock is another lock.
    drop(second.lock_document(&document("default", "other")).await.expect("is free"));
    let mut waiting = std::pin::pin!(second.lock_document(&wanted));
    let is_taken = tokio::select! {
        taken = &mut waiting => { taken.expect("no error in the first moments"); true }
        () = tokio::time::sleep(Duration::from_millis(300)) => false,
    };
    assert!(!is_taken, "two hold the lock");
    drop(held);
    drop(waiting.await.expect("is free again"));
}

pub(crate) async fn a_tenant_cannot_fill_the_queue_for_all(database: &Database) {
    let catalog = database.open().await;
    let mut connection = sqlx::AnyConnection::connect(&database.url).await.expect("connects");
    // As if it had uploaded three quarters of what may wait.
    let fill = format!(
        "INSERT INTO jobs (job_id, collection_id, tenant, document_id, document_version, state, progress, attempt,
             run_after_ms, created_ms, updated_ms)
         WITH RECURSIVE numbers(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < {})
         SELECT 'job-' || number, 1, 'greedy', 'd-' || number, 1, 'queued', 0, 0, 0, 0, 0 FROM numbers",
        OPEN_JOBS_MAX / 4 * 3
    );
    sqlx::query(sqlx::AssertSqlSafe(fill)).execute(&mut connection).await.expect("writes");
    let refused = catalog.enqueue(upload("greedy", "one more", "text")).await.expect_err("has its share");
    assert!(matches!(refused, CatalogError::QueueFull { .. }) && refused.kind() == ErrorKind::Overloaded, "{refused}");
    catalog.enqueue(upload("modest", "d", "text")).await.expect("finds room");
    catalog.close().await;
}
