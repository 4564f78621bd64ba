//! Any changes of a copy and any queries, and a simple model in memory of what they lead to.

use std::collections::BTreeMap;

use cluster_config::datetime::unix_ms;
use cluster_config::filter::{Condition, FieldValue, Filter, Predicate};
use cluster_config::ids::DocumentKey;
use cluster_config::operation::{Chunk, Operation};
use cluster_config::search::ShardQuery;
use node::vector::flat;
use proptest::prelude::*;

use crate::shard_support::{chunk, from_half, query, rng, unit_vector};

pub(crate) const DIM: usize = 8;
pub(crate) const TENANTS: [&str; 2] = ["default", "other"];

#[derive(Clone, Debug)]
pub(crate) enum Change {
    Put { tenant: usize, document: u8, chunks: Vec<Fields>, seed: u64 },
    Delete { tenant: usize, document: u8 },
}

#[derive(Clone, Debug)]
pub(crate) struct Fields {
    flag: Option<bool>,
    year: Option<i64>,
    price: Option<f64>,
    /// Seconds after 1970 began.
    when: Option<u8>,
    tags: Vec<String>,
    /// Not declared.
    size: Option<i64>,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Entries of some changes each, applied together.
    Commit(Vec<Vec<Change>>),
    /// The same entry once more, as a retry that slipped in.
    Repeat,
    /// Opened again, closed well or not.
    Reopen { closed: bool },
}

fn fields() -> impl Strategy<Value = Fields> {
    let tags = prop::collection::vec(prop::sample::select(vec!["a", "b", "b\u{0}", "ä", ""]), 0..3);
    let integer = || prop::option::of(-3..3i64);
    let numbers = (integer(), prop::option::of(-1.5..1.5f64), prop::option::of(0..5u8), integer());
    (any::<Option<bool>>(), numbers, tags).prop_map(|(flag, (year, price, when, size), tags)| Fields {
        flag,
        year,
        price,
        when,
        tags: tags.into_iter().map(str::to_owned).collect(),
        size,
    })
}

fn change() -> impl Strategy<Value = Change> {
    let tenant = prop_oneof![4 => Just(0usize), 1 => Just(1usize)];
    prop_oneof![
        3 => (tenant.clone(), 0..12u8, prop::collection::vec(fields(), 1..4), any::<u64>())
            .prop_map(|(tenant, document, chunks, seed)| Change::Put { tenant, document, chunks, seed }),
        1 => (tenant, 0..12u8).prop_map(|(tenant, document)| Change::Delete { tenant, document }),
    ]
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec(prop::collection::vec(change(), 0..4), 1..5).prop_map(Step::Commit),
        1 => Just(Step::Repeat),
        2 => any::<bool>().prop_map(|closed| Step::Reopen { closed }),
    ]
}

fn key_of(tenant: usize, document: u8) -> DocumentKey {
    DocumentKey::with_tenant(TENANTS[tenant], format!("d{document}")).expect("valid")
}

pub(crate) fn operation(change: &Change) -> Operation {
    match change {
        Change::Delete { tenant, document } => Operation::DeleteDocument { key: key_of(*tenant, *document) },
        Change::Put { tenant, document, chunks, seed } => {
            let mut rng = rng(*seed);
            let chunks = chunks.iter().enumerate().map(|(ordinal, fields)| {
                let metadata = metadata_json(fields);
                chunk(ordinal as u32, &format!("text {seed} {ordinal}"), &metadata, &unit_vector(&mut rng, DIM))
            });
            Operation::PutDocument {
                key: key_of(*tenant, *document),
                title: format!("title {seed}"),
                chunks: chunks.collect(),
            }
        }
    }
}

fn moment(seconds: u8) -> String {
    format!("1970-01-01T00:00:0{seconds}Z")
}

fn metadata_json(fields: &Fields) -> String {
    let mut object = serde_json::Map::new();
    object.insert("undeclared".into(), serde_json::json!({"x": 1}));
    if let Some(flag) = fields.flag {
        object.insert("flag".into(), flag.into());
    }
    if let Some(year) = fields.year {
        object.insert("year".into(), year.into());
    }
    if let Some(size) = fields.size {
        object.insert("size".into(), size.into());
    }
    if let Some(price) = fields.price {
        object.insert("price".into(), price.into());
    }
    if let Some(seconds) = fields.when {
        object.insert("when".into(), moment(seconds).into());
    }
    match fields.tags.as_slice() {
        [] => {}
        [tag] => drop(object.insert("tag".into(), tag.as_str().into())),
        tags => drop(object.insert("tag".into(), serde_json::json!(tags))),
    }
    serde_json::Value::Object(object).to_string()
}

/// What should be there: documents by tenant and id.
#[derive(Clone, Default)]
pub(crate) struct Model {
    pub(crate) documents: BTreeMap<(String, String), (String, Vec<Chunk>)>,
}

impl Model {
    pub(crate) fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::PutDocument { key, title, chunks } => {
                let key = (key.tenant.clone(), key.document_id.clone());
                self.documents.insert(key, (title.clone(), chunks.clone()));
            }
            Operation::DeleteDocument { key } => {
                self.documents.remove(&(key.tenant.clone(), key.document_id.clone()));
            }
            other => panic!("not in this test: {other:?}"),
        }
    }

    /// Names and scores of the best, by comparing with everything.
    pub(crate) fn search(&self, query: &ShardQuery) -> Vec<(String, u32, f32)> {
        let mut hits = Vec::new();
        for ((tenant, document_id), (_, chunks)) in &self.documents {
            for chunk in
                chunks.iter().filter(|chunk| *tenant == query.tenant && passes(&query.filter, document_id, chunk))
            {
                let score = flat::score(Default::default(), &query.vector, &from_half(&chunk.vector));
                hits.push((document_id.clone(), chunk.ordinal, score));
            }
        }
        hits.sort_by(|a, b| b.2.total_cmp(&a.2).then_with(|| a.0.cmp(&b.0)).then(a.1.cmp(&b.1)));
        hits.truncate(query.fetch_k as usize);
        hits
    }
}

fn passes(filter: &Filter, document_id: &str, chunk: &Chunk) -> bool {
    let holds = |condition: &Condition| condition_holds(condition, document_id, chunk);
    filter.must.iter().all(holds)
        && (filter.should.is_empty() || filter.should.iter().any(holds))
        && !filter.must_not.iter().any(holds)
}

fn condition_holds(condition: &Condition, document_id: &str, chunk: &Chunk) -> bool {
    let metadata: serde_json::Value = serde_json::from_str(&chunk.metadata_json).expect("JSON");
    let values: Vec<FieldValue> = match (condition.field.as_str(), &metadata[&condition.field]) {
        ("document_id", _) => vec![FieldValue::Keyword(document_id.to_owned())],
        (_, serde_json::Value::Null) => Vec::new(),
        (_, serde_json::Value::Array(items)) => items.iter().map(field_value).collect(),
        (_, value) => vec![field_value(value)],
    };
    match &condition.predicate {
        Predicate::Exists(wanted) => *wanted != values.is_empty(),
        Predicate::Eq(wanted) => values.iter().any(|value| compare(value, wanted).is_eq()),
        Predicate::In(wanted) => values.iter().any(|value| wanted.iter().any(|one| compare(value, one).is_eq())),
        Predicate::Range { lower, upper } => values.iter().any(|value| {
            let above = lower.as_ref().is_none_or(|(bound, inclusive)| {
                let order = compare(value, bound);
                order.is_gt() || (*inclusive && order.is_eq())
            });
            let below = upper.as_ref().is_none_or(|(bound, inclusive)| {
                let order = compare(value, bound);
                order.is_lt() || (*inclusive && order.is_eq())
            });
            above && below
        }),
    }
}

fn field_value(value: &serde_json::Value) -> FieldValue {
    serde_json::from_value(value.clone()).expect("a scalar")
}

fn compare(left: &FieldValue, right: &FieldValue) -> std::cmp::Ordering {
    let number = |value: &FieldValue| match value {
        FieldValue::Integer(number) => Some(*number as f64),
        FieldValue::Float(number) => Some(*number),
        // No other text of this test is a point in time.
        FieldValue::Keyword(text) => unix_ms(text).map(|ms| ms as f64),
        FieldValue::Bool(_) => None,
    };
    match (number(left), number(right)) {
        (Some(left), Some(right)) => left.partial_cmp(&right).expect("finite"),
        _ => left.partial_cmp(right).expect("of one type"),
    }
}

fn condition() -> impl Strategy<Value = Condition> {
    let integer = || (-3..3i64).prop_map(FieldValue::Integer);
    let float = || prop_oneof![(-1.5..1.5f64).prop_map(FieldValue::Float), (-1..2i64).prop_map(FieldValue::Integer)];
    let tag =
        || prop::sample::select(vec!["a", "b", "b\u{0}", "ä", "", "z"]).prop_map(|tag| FieldValue::Keyword(tag.into()));
    let when = || {
        let ms = prop::sample::select(vec![0i64, 1000, 2000, 2001, 4000]).prop_map(FieldValue::Integer);
        prop_oneof![ms, (0..5u8).prop_map(|seconds| FieldValue::Keyword(moment(seconds)))]
    };
    let id = || (0..14u8).prop_map(|number| FieldValue::Keyword(format!("d{number}")));
    prop_oneof![
        any::<bool>().prop_map(|flag| ("flag", Predicate::Eq(FieldValue::Bool(flag)))),
        (prop::sample::select(vec!["flag", "year", "price", "tag", "when", "size", "document_id"]), any::<bool>())
            .prop_map(|(field, wanted)| (field, Predicate::Exists(wanted))),
        predicate(integer()).prop_map(|predicate| ("year", predicate)),
        predicate(float()).prop_map(|predicate| ("price", predicate)),
        predicate(float()).prop_map(|predicate| ("size", predicate)),
        predicate(tag()).prop_map(|predicate| ("tag", predicate)),
        predicate(when()).prop_map(|predicate| ("when", predicate)),
        predicate(id()).prop_map(|predicate| ("document_id", predicate)),
    ]
    .prop_map(|(field, predicate)| Condition { field: field.into(), predicate })
}

fn predicate(value: impl Strategy<Value = FieldValue> + Clone + 'static) -> impl Strategy<Value = Predicate> {
    let bound = prop::option::of((value.clone(), any::<bool>()));
    prop_oneof![
        value.clone().prop_map(Predicate::Eq),
        prop::collection::vec(value, 1..4).prop_map(Predicate::In),
        (bound.clone(), bound)
            .prop_filter("a range has a bound", |(lower, upper)| lower.is_some() || upper.is_some())
            .prop_map(|(lower, upper)| Predicate::Range { lower, upper }),
    ]
}

pub(crate) fn shard_query() -> impl Strategy<Value = ShardQuery> {
    let conditions = || prop::collection::vec(condition(), 0..3);
    (any::<u64>(), 1..40u32, conditions(), conditions(), conditions(), 0..2usize).prop_map(
        |(seed, fetch_k, must, should, must_not, tenant)| ShardQuery {
            filter: Filter { must, should, must_not },
            tenant: TENANTS[tenant].into(),
            ..query(&unit_vector(&mut rng(seed), DIM), fetch_k)
        },
    )
}
