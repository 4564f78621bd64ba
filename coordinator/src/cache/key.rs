//! The key of a retrieval: SHA-256 over everything that decides the result, except the shards' positions, which the entry names.
//!
//! One function writes it for reading and filling alike. Filters are order-free where their meaning is: clauses, and the
//! values of an `in`, are sorted, so that the same question asked in another order finds the same entry. Every part is length-prefixed
//! or of fixed width, so that no two different questions run together.

use cluster_config::collection::Collection;
use cluster_config::filter::{Condition, FieldValue, Filter, Predicate};
use cluster_config::search::ShardQuery;
use sha2::{Digest, Sha256};

use crate::retrieve::RetrievalOptions;
use crate::retrieve::plan::PreferCopy;

/// Raised when the meaning of the bytes changes.
const FORMAT: u8 = 1;

/// A SHA-256 digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey([u8; 32]);

impl CacheKey {
    /// The key of one search over one collection. The embedding model is part of it through the vector and the collection.
    pub fn of_search(collection: &Collection, query: &ShardQuery, options: &RetrievalOptions) -> Self {
        let mut bytes = Vec::with_capacity(query.vector.len() * 4 + 256);
        bytes.push(FORMAT);
        put_u64(&mut bytes, collection.id.0);
        put_u64(&mut bytes, collection.epoch);
        put_text(&mut bytes, collection.spec.embedder.as_deref().unwrap_or(""));
        put_text(&mut bytes, &query.tenant);
        put_u64(&mut bytes, u64::from(query.fetch_k));
        put_u64(&mut bytes, query.vector.len() as u64);
        for component in &query.vector {
            // -0.0 and 0.0 ask the same.
            bytes.extend_from_slice(&(component + 0.0).to_bits().to_be_bytes());
        }
        let knobs = &query.knobs;
        put_optional(&mut bytes, knobs.nprobe.map(u64::from));
        put_optional(&mut bytes, knobs.oversample.map(|value| u64::from(value.to_bits())));
        put_optional(&mut bytes, knobs.target_recall.map(|value| u64::from(value.to_bits())));
        bytes.push(u8::from(knobs.exact));
        put_filter(&mut bytes, &query.filter);
        let include = options.include;
        bytes.extend([u8::from(include.text), u8::from(include.metadata), u8::from(include.vector)]);
        match options.prefer_copy {
            None => bytes.push(0),
            Some(PreferCopy::Primary) => bytes.push(1),
            Some(PreferCopy::Replica) => bytes.push(2),
            Some(PreferCopy::Node(node)) => {
                bytes.push(3);
                put_u64(&mut bytes, node.0);
            }
        }
        Self::of_bytes(&bytes)
    }

    /// The digest of canonical bytes.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

fn put_u64(bytes: &mut Vec<u8>, value: u64) {
    bytes.extend_from_slice(&value.to_be_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_u64(bytes, text.len() as u64);
    bytes.extend_from_slice(text.as_bytes());
}

fn put_optional(bytes: &mut Vec<u8>, value: Option<u64>) {
    bytes.push(u8::from(value.is_some()));
    put_u64(bytes, value.unwrap_or(0));
}

/// Clauses in a fixed order, conditions within a clause sorted by their bytes.
fn put_filter(bytes: &mut Vec<u8>, filter: &Filter) {
    for clause in [&filter.must, &filter.should, &filter.must_not] {
        let mut conditions: Vec<Vec<u8>> = clause.iter().map(condition_bytes).collect();
        conditions.sort();
        conditions.dedup();
        put_u64(bytes, conditions.len() as u64);
        for condition in conditions {
            put_u64(bytes, condition.len() as u64);
            bytes.extend_from_slice(&condition);
        }
    }
}

fn condition_bytes(condition: &Condition) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_text(&mut bytes, &condition.field);
    match &condition.predicate {
        Predicate::Eq(value) => {
            bytes.push(1);
            bytes.extend(value_bytes(value));
        }
        Predicate::In(values) => {
            bytes.push(2);
            let mut values: Vec<Vec<u8>> = values.iter().map(value_bytes).collect();
            values.sort();
            values.dedup();
            put_u64(&mut bytes, values.len() as u64);
            bytes.extend(values.into_iter().flatten());
        }
        Predicate::Range { lower, upper } => {
            bytes.push(3);
            for bound in [lower, upper] {
                match bound {
                    None => bytes.push(0),
                    Some((value, inclusive)) => {
                        bytes.push(1 + u8::from(*inclusive));
                        bytes.extend(value_bytes(value));
                    }
                }
            }
        }
        Predicate::Exists(present) => bytes.extend([4, u8::from(*present)]),
    }
    bytes
}

fn value_bytes(value: &FieldValue) -> Vec<u8> {
    let mut bytes = Vec::new();
    match value {
        FieldValue::Bool(value) => bytes.extend([1, u8::from(*value)]),
        FieldValue::Integer(value) => {
            bytes.push(2);
            bytes.extend_from_slice(&value.to_be_bytes());
        }
        FieldValue::Float(value) => {
            bytes.push(3);
            bytes.extend_from_slice(&(value + 0.0).to_bits().to_be_bytes());
        }
        FieldValue::Keyword(value) => {
            bytes.push(4);
            put_text(&mut bytes, value);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use cluster_config::collection::CollectionSpec;
    use cluster_config::ids::CollectionId;
    use cluster_config::search::{Consistency, SearchKnobs};
    use proptest::prelude::*;

    use super::*;
    use crate::retrieve::Include;
    use crate::retrieve::session::Session;

    fn collection() -> Collection {
        Collection { id: CollectionId(1), spec: CollectionSpec::new("c", 2), epoch: 1 }
    }

    fn options() -> RetrievalOptions {
        RetrievalOptions {
            consistency: Consistency::Eventual,
            max_staleness: std::time::Duration::from_secs(10),
            session: Session::default(),
            prefer_copy: None,
            min_coverage: 1.0,
            include: Include { text: true, metadata: true, vector: false },
            deadline: Instant::now(),
        }
    }

    fn query(filter: Filter) -> ShardQuery {
        ShardQuery {
            vector: vec![1.0, 0.0],
            fetch_k: 5,
            filter,
            tenant: "default".into(),
            knobs: SearchKnobs::default(),
        }
    }

    fn value() -> impl Strategy<Value = FieldValue> {
        prop_oneof![
            any::<bool>().prop_map(FieldValue::Bool),
            (-3i64..3).prop_map(FieldValue::Integer),
            "[ab]{0,2}".prop_map(FieldValue::Keyword),
        ]
    }

    fn condition() -> impl Strategy<Value = Condition> {
        let predicate = prop_oneof![
            value().prop_map(Predicate::Eq),
            proptest::collection::vec(value(), 1..4).prop_map(Predicate::In),
            any::<bool>().prop_map(Predicate::Exists),
        ];
        ("[ab]{1,2}", predicate).prop_map(|(field, predicate)| Condition { field, predicate })
    }

    fn conditions() -> impl Strategy<Value = Vec<Condition>> {
        proptest::collection::vec(condition(), 0..4)
    }

    /// What a filter means, as a value to compare: sets of conditions whose `in` lists are sets.
    fn meaning(filter: &Filter) -> Vec<std::collections::BTreeSet<String>> {
        let normal = |condition: &Condition| match &condition.predicate {
            Predicate::In(values) => {
                let values: std::collections::BTreeSet<String> = values.iter().map(|v| format!("{v:?}")).collect();
                format!("{} in {values:?}", condition.field)
            }
            other => format!("{} {other:?}", condition.field),
        };
        [&filter.must, &filter.should, &filter.must_not]
            .iter()
            .map(|clause| clause.iter().map(normal).collect())
            .collect()
    }

    proptest! {
        #[test]
        fn equal_exactly_when_the_filters_mean_the_same(
            a in (conditions(), conditions(), conditions()), b in (conditions(), conditions(), conditions()), shuffle in any::<bool>()
        ) {
            let filter = |(must, should, must_not): (Vec<_>, Vec<_>, Vec<_>)| Filter { must, should, must_not };
            let a = filter(a);
            let b = if shuffle {
                let mut turned = a.clone();
                turned.must.reverse();
                turned.should.reverse();
                turned.must_not.reverse();
                turned
            } else {
                filter(b)
            };
            let key = |filter: &Filter| CacheKey::of_search(&collection(), &query(filter.clone()), &options());
            prop_assert_eq!(key(&a) == key(&b), meaning(&a) == meaning(&b));
        }
    }

    #[test]
    fn every_part_counts() {
        let base = CacheKey::of_search(&collection(), &query(Filter::default()), &options());
        let with = |change: &dyn Fn(&mut Collection, &mut ShardQuery, &mut RetrievalOptions)| {
            let (mut collection, mut query, mut options) = (collection(), query(Filter::default()), options());
            change(&mut collection, &mut query, &mut options);
            CacheKey::of_search(&collection, &query, &options)
        };
        type Change = (&'static str, fn(&mut Collection, &mut ShardQuery, &mut RetrievalOptions));
        let changes: [Change; 11] = [
            ("collection", |c, _, _| c.id = CollectionId(2)),
            ("epoch", |c, _, _| c.epoch = 2),
            ("model", |c, _, _| c.spec.embedder = Some("m".into())),
            ("tenant", |_, q, _| q.tenant = "other".into()),
            ("k", |_, q, _| q.fetch_k = 6),
            ("vector", |_, q, _| q.vector[1] = 0.1),
            ("nprobe", |_, q, _| q.knobs.nprobe = Some(0)),
            ("exact", |_, q, _| q.knobs.exact = true),
            ("recall", |_, q, _| q.knobs.target_recall = Some(0.9)),
            ("include", |_, _, o| o.include.vector = true),
            ("copy", |_, _, o| o.prefer_copy = Some(PreferCopy::Replica)),
        ];
        for (what, change) in changes {
            assert_ne!(with(&change), base, "{what}");
        }
        assert_eq!(with(&|_, q, _| q.vector[1] = -0.0), base);
    }
}
