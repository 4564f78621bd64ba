//! What a deletion takes along, and that several at a time do not get stuck.

use cluster_config::error::ErrorKind;
use coordinator::catalog::CatalogError;
use coordinator::catalog::deletion::DELETED;
use coordinator::catalog::documents::DocumentRef;
use coordinator::catalog::jobs::{ClaimLost, JobState};
use coordinator::catalog::stages::Part;

use super::support::{document, finish, stored_bytes, upload};
use crate::database::Database;

pub(crate) async fn a_deletion_takes_rows_texts_jobs_stages_and_bytes(database: &Database) {
    let catalog = database.open().await;
    let claim_next = async || catalog.claim_job().await.expect("reads").expect("a job waits");
    let begin = async |id: &str| {
        catalog.enqueue(upload("default", id, "12345")).await.expect("takes it");
        claim_next().await
    };
    let (done, failed, claimed) = (begin("done").await, begin("failed").await, begin("claimed").await);
    for id in ["queued", "kept"] {
        catalog.enqueue(upload("default", id, "12345")).await.expect("takes it");
    }
    catalog.enqueue(upload("other", "queued", "x")).await.expect("takes it");
    catalog.finish_job(&done, &finish("t", "the text", 1, "s")).await.expect("writes").expect("holds");
    catalog.keep_stage(&failed, Part::Parsed, b"the text").await.expect("writes");
    catalog.fail_job(&failed, ErrorKind::Internal, "x").await.expect("writes");
    catalog.keep_stage(&claimed, Part::Parsed, b"the text").await.expect("writes");
    assert_eq!(stored_bytes(&catalog, "default").await, 25);

    let ids = ["done", "failed", "claimed", "queued", "never there"].map(str::to_owned);
    assert_eq!(catalog.delete_documents(1, "default", &ids, DELETED).await.expect("writes"), 4);
    for id in &ids {
        assert_eq!(catalog.document(&document("default", id)).await.expect("reads"), None);
        assert_eq!(catalog.extracted_text(&document("default", id)).await.expect("reads"), None);
    }
    assert_eq!(stored_bytes(&catalog, "default").await, 5, "only the kept one is charged for");
    for claim in [&done, &failed, &claimed] {
        assert_eq!(catalog.stage(claim, Part::Parsed).await.expect("reads"), None, "nothing is left of its text");
    }
    // A worker that has not heard of it changes nothing and leaves nothing.
    assert!(!catalog.holds(&claimed).await.expect("reads"));
    catalog.keep_stage(&claimed, Part::Parsed, b"the text").await.expect("writes");
    assert_eq!(catalog.stage(&claimed, Part::Parsed).await.expect("reads"), None);
    let late = catalog.finish_job(&claimed, &finish("t", "the text", 1, "s")).await.expect("writes");
    assert_eq!(late, Err(ClaimLost));
    assert_eq!(catalog.document(&claimed.document).await.expect("reads"), None);
    // Whoever waits for the jobs hears what became of them; nobody can bring one back.
    let row = catalog.job("default", claimed.job_id).await.expect("reads").expect("is there");
    assert_eq!(
        (row.state, row.error.map(|(_, text)| text)),
        (JobState::Cancelled, Some("the document was deleted".into()))
    );
    assert!(matches!(catalog.retry_job("default", failed.job_id).await, Err(CatalogError::NotRetryable)));
    assert_eq!(catalog.job("default", done.job_id).await.expect("reads").map(|row| row.state), Some(JobState::Done));

    // What was not named is as before, the same id of another tenant and of another collection included.
    let mut left = [claim_next().await.document, claim_next().await.document];
    left.sort_by(|a, b| a.tenant.cmp(&b.tenant));
    assert_eq!(left, [document("default", "kept"), document("other", "queued")]);
    assert!(catalog.claim_job().await.expect("reads").is_none());
    assert_eq!(catalog.delete_documents(2, "default", &["kept".to_owned()], DELETED).await.expect("writes"), 0);
    assert_eq!(catalog.delete_documents(1, "default", &[], DELETED).await.expect("writes"), 0);
    assert!(catalog.document(&document("default", "kept")).await.expect("reads").is_some());
}

pub(crate) async fn a_collections_deletion_takes_everything_of_it(database: &Database) {
    let catalog = database.open().await;
    catalog.enqueue(upload("default", "a", "12345")).await.expect("takes it");
    let claim = catalog.claim_job().await.expect("reads").expect("a job waits");
    catalog.keep_stage(&claim, Part::Parsed, b"the text").await.expect("writes");
    let mut elsewhere = upload("default", "a", "123");
    elsewhere.document.collection_id = 2;
    catalog.enqueue(elsewhere).await.expect("takes it");
    catalog.delete_collection(1).await.expect("writes");
    assert_eq!(catalog.stage(&claim, Part::Parsed).await.expect("reads"), None);
    assert_eq!(catalog.document(&claim.document).await.expect("reads"), None);
    assert!(!catalog.holds(&claim).await.expect("reads"));
    assert_eq!(stored_bytes(&catalog, "default").await, 3);
    let other = catalog.claim_job().await.expect("reads").expect("the other collection's job waits");
    assert_eq!(other.document.collection_id, 2);
}

/// Deletions of overlapping sets, in opposite orders and through two coordinators, beside uploads and workers of the same documents.
pub(crate) async fn deletions_uploads_and_ends_never_deadlock(database: &Database) {
    const DOCUMENTS: usize = 40;
    let first = database.open().await;
    let second = database.open_beside(&first).await;
    let ids: Vec<String> = (0..DOCUMENTS).map(|number| format!("d{number}")).collect();
    let delete = async |catalog: &coordinator::catalog::Catalog, ids: Vec<String>| {
        let documents: Vec<DocumentRef> = ids.iter().map(|id| document("default", id)).collect();
        for _ in 0..10 {
            let _locks = catalog.lock_documents(&documents).await.expect("its turn comes");
            catalog.delete_documents(1, "default", &ids, DELETED).await.expect("writes");
        }
    };
    let upload_all = async {
        for number in 0..100 {
            let id = &ids[number % DOCUMENTS];
            first.enqueue(upload("default", id, "text")).await.expect("takes it");
        }
    };
    let work = async {
        for _ in 0..100 {
            if let Some(claim) = second.claim_job().await.expect("reads") {
                let _lock = second.lock_document(&claim.document).await.expect("its turn comes");
                second.keep_stage(&claim, Part::Parsed, b"x").await.expect("writes");
                let _ = second.finish_job(&claim, &finish("t", "x", 1, "s")).await.expect("writes");
            }
            tokio::task::yield_now().await;
        }
    };
    let backwards = ids[10..].iter().rev().cloned().collect();
    tokio::join!(upload_all, work, delete(&first, ids[..30].to_vec()), delete(&second, backwards));
    // Whatever the order was, the last word leaves nothing.
    first.delete_documents(1, "default", &ids, DELETED).await.expect("writes");
    assert_eq!(stored_bytes(&first, "default").await, 0, "every byte was given back once");
    assert!(second.claim_job().await.expect("reads").is_none());
    assert!(first.documents(1, "default", "", 10).await.expect("reads").is_empty());
}
