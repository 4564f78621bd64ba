//! A copy against a simple model in memory: any sequence of puts, updates and deletes, grouped in any way, with the copy closed or
//! killed at any point, leads to what the model says, and to the same on a second copy that applied the same log otherwise.

mod shard_changes;
mod shard_support;

use cluster_config::collection::{FieldType, UNDECLARED_FIELDS};
use cluster_config::filter::{Condition, FieldValue, Filter, Predicate};
use cluster_config::ids::OperationId;
use cluster_config::operation::{Chunk, Operation};
use cluster_config::search::{ShardHit, ShardQuery};
use cluster_config::seqno::SeqNo;
use node::replication::storage::CopyStorage;
use node::shard::Shard;
use node::shard::operation::EncodedEntry;
use node::vector::Cancel;
use proptest::prelude::*;
use shard_changes::{DIM, Model, Step, TENANTS, operation, shard_query, step};
use shard_support::*;

/// Everything that can be asked of the copy agrees with the model.
fn assert_agrees(shard: &Shard, model: &Model, queries: &[ShardQuery]) {
    shard.check().expect("invariants");
    for tenant in TENANTS {
        let expected: Vec<_> = model.documents.iter().filter(|((owner, _), _)| owner == tenant).collect();
        let mut listed = Vec::new();
        loop {
            let after = listed.last().map(|document: &node::shard::ListedDocument| document.key.document_id.clone());
            let (page, more) = shard.list_documents(tenant, after.as_deref(), 5).expect("lists");
            listed.extend(page);
            if !more {
                break;
            }
        }
        let names: Vec<_> =
            listed.iter().map(|d| (d.key.document_id.as_str(), d.title.as_str(), d.chunk_count)).collect();
        let wanted: Vec<_> =
            expected.iter().map(|((_, id), (title, c))| (id.as_str(), title.as_str(), c.len() as u32)).collect();
        assert_eq!(names, wanted);
        let keys: Vec<_> = listed.into_iter().map(|document| document.key).collect();
        let fetched = shard.fetch_documents(&keys, true).expect("fetches");
        let chunks: Vec<_> = fetched.into_iter().map(|stored| stored.chunk).collect();
        assert_eq!(chunks, expected.iter().flat_map(|(_, (_, chunks))| chunks.clone()).collect::<Vec<_>>());
    }
    for query in queries {
        let answer = shard.search(query, &Cancel::never()).expect("searches");
        let hits: Vec<_> = answer.hits.iter().map(|hit| (hit.document_id.clone(), hit.ordinal, hit.score)).collect();
        assert_eq!(hits, model.search(query), "{query:?}");
        assert_rows_are(shard, &answer.hits, &query.tenant, model);
    }
    let alone: Vec<_> = queries.iter().map(|query| shard.search(query, &Cancel::never()).expect("searches")).collect();
    assert_eq!(shard.search_all(queries, &Cancel::never()).expect("searches"), alone);
    let stats = shard.stats();
    assert_eq!(stats.document_count, model.documents.len() as u64);
    assert_eq!(stats.rows_live, model.documents.values().map(|(_, chunks)| chunks.len() as u64).sum::<u64>());
}

/// The rows of hits lead to the texts of exactly those chunks.
fn assert_rows_are(shard: &Shard, hits: &[ShardHit], tenant: &str, model: &Model) {
    let rows: Vec<u64> = hits.iter().map(|hit| hit.row).collect();
    let fetched = shard.fetch_rows(&rows, false).expect("fetches");
    assert_eq!(fetched.len(), hits.len());
    for (hit, stored) in hits.iter().zip(fetched) {
        let (title, chunks) = &model.documents[&(tenant.to_owned(), hit.document_id.clone())];
        assert_eq!((stored.row, &stored.title), (hit.row, title));
        assert_eq!(stored.chunk, Chunk { vector: Vec::new(), ..chunks[hit.ordinal as usize].clone() });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_changes_leads_to_what_the_model_says(
        steps in prop::collection::vec(step(), 1..16),
        queries in prop::collection::vec(shard_query(), 6..12),
        group in 1..20usize,
    ) {
        let mut spec = spec(DIM as u32);
        spec.fields.insert(UNDECLARED_FIELDS.into(), FieldType::Scan);
        let place = Place::new(spec);
        let mut shard = place.open(1);
        let mut log = LogWriter::new();
        let mut entries: Vec<EncodedEntry> = Vec::new();
        let mut model = Model::default();
        for step in &steps {
            match step {
                Step::Commit(writes) => {
                    let from = entries.len();
                    for changes in writes {
                        let operations: Vec<_> = changes.iter().map(operation).collect();
                        operations.iter().for_each(|operation| model.apply(operation));
                        entries.push(log.entry(operations));
                    }
                    commit(&shard, &entries[from..]);
                }
                Step::Repeat => {
                    let Some(earlier) = entries.get(entries.len() / 2) else { continue };
                    let id = earlier.operation_id;
                    let again = earlier.decode().expect("decodes").operations;
                    let first = shard.find_operation(id).expect("finds");
                    entries.push(log.entry_of(id, again));
                    commit(&shard, &entries[entries.len() - 1..]);
                    prop_assert_eq!(shard.find_operation(id).expect("finds"), first);
                }
                Step::Reopen { closed } => {
                    if *closed {
                        shard.close().expect("closes");
                    }
                    drop(shard);
                    shard = place.open(1);
                }
            }
        }
        assert_agrees(&shard, &model, &queries);
        let state = shard.state().expect("state");
        prop_assert_eq!(state.applied.seqno, SeqNo(entries.len() as u64));

        // The second copy gets the same log in other portions, and answers the same.
        let other = place.open(2);
        persist(&other, &entries).expect("persists");
        for portion in entries.chunks(group) {
            other.apply(portion).expect("applies");
        }
        assert_agrees(&other, &model, &queries);
        let (digest, other_digest) = (shard.digest().expect("digest"), other.digest().expect("digest"));
        prop_assert_eq!(node::shard::ShardDigest { position: digest.position, ..other_digest }, digest);
        for query in &queries {
            let hits = |shard: &Shard| shard.search(query, &Cancel::never()).expect("searches").hits;
            prop_assert_eq!(hits(&shard), hits(&other), "rows and scores are the same on both copies");
        }
        drop(shard);
        assert_agrees(&place.open(1), &model, &queries);
    }
}

#[test]
fn a_repeated_operation_id_has_its_effect_once() {
    let place = Place::new(spec(4));
    let shard = place.open(1);
    let mut log = LogWriter::new();
    let mut rng = rng(1);
    let first = log.entry_of(OperationId(5), vec![put("a", "one", &unit_vector(&mut rng, 4))]);
    let middle = log.entry_of(OperationId(6), vec![delete("a")]);
    let again = log.entry_of(OperationId(5), vec![put("a", "one", &unit_vector(&mut rng, 4))]);
    // Within one group, and again after reopening.
    commit(&shard, &[first, middle, again]);
    drop(shard);
    let shard = place.open(1);
    let later = log.entry_of(OperationId(5), vec![put("a", "two", &unit_vector(&mut rng, 4))]);
    commit(&shard, &[later]);
    assert_eq!(shard.list_documents("default", None, 10).expect("lists"), (vec![], false));
    assert_eq!(shard.find_operation(OperationId(5)).expect("finds"), Some(SeqNo(1)));
    assert_eq!(shard.find_operation(OperationId(6)).expect("finds"), Some(SeqNo(2)));
}

#[test]
fn operation_ids_leave_the_window_by_entries() {
    const WINDOW: u64 = cluster_config::limits::DEDUP_WINDOW;
    let place = Place::new(spec(4));
    let shard = place.open(1);
    let mut log = LogWriter::new();
    commit(&shard, &[log.entry_of(OperationId(1), vec![Operation::Barrier])]);
    commit(&shard, &[log.entry_of(OperationId(2), vec![Operation::Barrier])]);
    let fill: Vec<_> = (0..WINDOW - 2).map(|_| log.entry_of(OperationId(0), vec![Operation::Barrier])).collect();
    commit(&shard, &fill);
    assert_eq!(shard.find_operation(OperationId(1)).expect("finds"), Some(SeqNo(1)));
    commit(&shard, &[log.entry_of(OperationId(3), vec![Operation::Barrier])]);
    assert_eq!(shard.find_operation(OperationId(1)).expect("finds"), None);
    assert_eq!(shard.find_operation(OperationId(2)).expect("finds"), Some(SeqNo(2)));
    // Forgotten means new: it is remembered again where it comes now.
    commit(&shard, &[log.entry_of(OperationId(1), vec![Operation::Barrier])]);
    assert_eq!(shard.find_operation(OperationId(1)).expect("finds"), Some(SeqNo(WINDOW + 2)));
    assert_eq!(shard.find_operation(OperationId(2)).expect("finds"), None);
}

#[test]
fn texts_of_a_deleted_document_go_at_once_and_of_a_replaced_one_stay_for_those_who_found_them() {
    let place = Place::new(spec(4));
    let shard = place.open(1);
    let mut log = LogWriter::new();
    let mut rng = rng(1);
    commit(
        &shard,
        &[log.entry(vec![put("kept", "one", &unit_vector(&mut rng, 4)), put("gone", "x", &unit_vector(&mut rng, 4))])],
    );
    let hits = shard.search(&query(&[1.0, 0.0, 0.0, 0.0], 10), &Cancel::never()).expect("searches").hits;
    let row_of = |id: &str| hits.iter().find(|hit| hit.document_id == id).expect("found").row;
    commit(&shard, &[log.entry(vec![put("kept", "two", &unit_vector(&mut rng, 4)), delete("gone")])]);
    let texts: Vec<_> = shard
        .fetch_rows(&[row_of("kept"), row_of("gone"), 99], true)
        .expect("fetches")
        .into_iter()
        .map(|stored| (stored.key.document_id, stored.chunk.text))
        .collect();
    assert_eq!(texts, [("kept".to_owned(), "one".to_owned())]);
    let hits = shard.search(&query(&[1.0, 0.0, 0.0, 0.0], 10), &Cancel::never()).expect("searches").hits;
    assert_eq!(hits.len(), 1);
    assert!(hits[0].row > 1, "the new version has a row of its own");
}

#[test]
fn a_search_beside_writes_sees_whole_entries() {
    // Every entry puts or deletes both documents; a search that sees one without the other, or chunks of two versions, fails.
    let place = Place::new(spec(4));
    let shard = place.open(1);
    let mut log = LogWriter::new();
    let mut rng = rng(2);
    let mut version = |number: usize| {
        let mut put_both = |id: &str| Operation::PutDocument {
            key: key(id),
            title: String::new(),
            chunks: (0..3)
                .map(|ordinal| chunk(ordinal, &number.to_string(), "{}", &unit_vector(&mut rng, 4)))
                .collect(),
        };
        log.entry(vec![put_both("a"), put_both("b")])
    };
    commit(&shard, &[version(0)]);
    let done = std::sync::atomic::AtomicBool::new(false);
    let searches = std::thread::scope(|scope| {
        let searcher = scope.spawn(|| {
            let mut searches = 0u64;
            while !done.load(std::sync::atomic::Ordering::Relaxed) || searches == 0 {
                let mut asked = query(&[1.0, 0.0, 0.0, 0.0], 100);
                if searches.is_multiple_of(2) {
                    let ids = ["a", "b"].map(|id| FieldValue::Keyword(id.into()));
                    let predicate = Predicate::In(ids.to_vec());
                    asked.filter.must.push(Condition { field: "document_id".into(), predicate });
                }
                let hits = shard.search(&asked, &Cancel::never()).expect("searches").hits;
                assert_eq!(hits.len(), 6, "{hits:?}");
                let rows: Vec<u64> = hits.iter().map(|hit| hit.row).collect();
                let texts: Vec<String> = shard
                    .fetch_rows(&rows, false)
                    .expect("fetches")
                    .into_iter()
                    .map(|stored| stored.chunk.text)
                    .collect();
                assert_eq!(texts.len(), 6, "what was found can be fetched");
                assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
                searches += 1;
            }
            searches
        });
        for number in 1..300 {
            commit(&shard, &[version(number)]);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        searcher.join().expect("the searcher saw whole entries")
    });
    println!("{searches} searches beside 300 entries");
}

#[test]
fn bad_queries_are_refused_with_the_fields_name() {
    let place = Place::new(spec(4));
    let shard = place.open(1);
    let good = query(&[1.0, 0.0, 0.0, 0.0], 1);
    let condition = Condition { field: "colour".into(), predicate: Predicate::Exists(true) };
    let bad = [
        ("vector", ShardQuery { vector: vec![1.0; 3], ..good.clone() }),
        ("fetch_k", ShardQuery { fetch_k: 0, ..good.clone() }),
        ("fetch_k", ShardQuery { fetch_k: u32::MAX, ..good.clone() }),
        (
            "filters.must[0].field",
            ShardQuery { filter: Filter { must: vec![condition], ..Filter::default() }, ..good.clone() },
        ),
    ];
    for (field, query) in bad {
        let error = shard.search(&query, &Cancel::never()).expect_err(field);
        assert!(error.to_string().starts_with(field), "{error}");
        assert_eq!(error.kind(), cluster_config::error::ErrorKind::InvalidArgument);
    }
    let nan = ShardQuery { vector: vec![f32::NAN; 4], ..good.clone() };
    let error = shard.search(&nan, &Cancel::never()).expect_err("not finite");
    assert_eq!(error.kind(), cluster_config::error::ErrorKind::InvalidArgument);
    let cancel = Cancel::never();
    cancel.cancel();
    let filter = Filter {
        must: vec![Condition { field: "year".into(), predicate: Predicate::Exists(true) }],
        ..Filter::default()
    };
    commit(&shard, &[LogWriter::new().entry(vec![put("a", "x", &[1.0, 0.0, 0.0, 0.0])])]);
    let error = shard.search(&ShardQuery { filter, ..good }, &cancel).expect_err("cancelled");
    assert_eq!(error.kind(), cluster_config::error::ErrorKind::Cancelled);
    assert!(shard.state().is_ok(), "refusing a query does not end the copy's service");
}
