//! Keys: SHA-256 over canonical JSON of everything that decides a result.
//!
//! One function per kind writes it for reading and filling alike, in every coordinator: the keys are shared. Canonical means: fields in
//! the order of the struct, filters as sorted sets (clauses, and the values of an `in`), floats by their bits, so that the same
//! question asked in another order finds the same entry and no two different ones run together. The shards' positions and model
//! generations stand in the entry, not in the key: whoever looks does not know yet where the shards stand, and an entry that is
//! outdated is to be replaced, not left beside its successor.

use std::collections::BTreeSet;
use std::fmt;

use cluster_config::collection::Collection;
use cluster_config::filter::{Condition, FieldValue, Predicate};
use cluster_config::search::ShardQuery;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::generate::backend::Identity;
use crate::generate::{AnswerFormat, GenerateOptions, GenerateRequest};
use crate::retrieve::RetrievalOptions;
use crate::retrieve::plan::PreferCopy;

/// Raised when the meaning of a key changes.
const FORMAT: u32 = 2;

/// A SHA-256 digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey(pub [u8; 32]);

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A search over one collection.
#[derive(Serialize)]
struct SearchIdentity<'a> {
    kind: &'static str,
    format: u32,
    collection: u64,
    epoch: u64,
    embedder: Option<&'a str>,
    tenant: &'a str,
    fetch_k: u32,
    /// Digest of the components' bits.
    vector: String,
    nprobe: Option<u32>,
    oversample: Option<u32>,
    target_recall: Option<u32>,
    exact: bool,
    filter: [BTreeSet<String>; 3],
    include: [bool; 3],
    prefer_copy: Option<String>,
}

/// The embedding of a query's text.
#[derive(Serialize)]
struct EmbeddingIdentity<'a> {
    kind: &'static str,
    format: u32,
    model: &'a str,
    text: &'a str,
}

/// A generated answer.
#[derive(Serialize)]
struct AnswerIdentity<'a> {
    kind: &'static str,
    format: u32,
    tenant: &'a str,
    /// The configuration of the backends.
    backends: &'a str,
    /// The backends that there are.
    members: BTreeSet<&'a Identity>,
    model: Option<&'a str>,
    /// The whole prompt, instructions and sources included: the text depends on nothing else of the index.
    messages: Vec<(&'static str, &'a str)>,
    max_tokens: Option<u32>,
    temperature: Option<u32>,
    top_k: Option<u32>,
    top_p: Option<u32>,
    seed: Option<i64>,
    stop: &'a [String],
    gpu_layers: Option<i32>,
    answer_format: Option<String>,
}

impl CacheKey {
    /// The key of one search over one collection. The embedding model is part of it through the vector and the collection.
    pub fn of_search(collection: &Collection, query: &ShardQuery, options: &RetrievalOptions) -> Self {
        let knobs = &query.knobs;
        let clauses = [&query.filter.must, &query.filter.should, &query.filter.must_not];
        Self::of(&SearchIdentity {
            kind: "search",
            format: FORMAT,
            collection: collection.id.0,
            epoch: collection.epoch,
            embedder: collection.spec.embedder.as_deref(),
            tenant: &query.tenant,
            fetch_k: query.fetch_k,
            vector: digest_of(&query.vector).to_string(),
            nprobe: knobs.nprobe,
            oversample: knobs.oversample.map(bits),
            target_recall: knobs.target_recall.map(bits),
            exact: knobs.exact,
            filter: clauses.map(|clause| clause.iter().map(condition_text).collect()),
            include: [options.include.text, options.include.metadata, options.include.vector],
            prefer_copy: options.prefer_copy.map(|copy| match copy {
                PreferCopy::Primary => "primary".to_owned(),
                PreferCopy::Replica => "replica".to_owned(),
                PreferCopy::Node(node) => format!("node:{node}"),
            }),
        })
    }

    /// The key of a text's embedding by the model of that name.
    pub fn of_embedding(model: &str, text: &str) -> Self {
        Self::of(&EmbeddingIdentity { kind: "embedding", format: FORMAT, model, text })
    }

    /// The key of the text that the backends write for a request. The prompt holds the retrieved text itself, so that an
    /// answer made of text that has changed since cannot be found.
    pub fn of_answer(backends: &str, members: &[Identity], request: &GenerateRequest) -> Self {
        let GenerateOptions { max_tokens, temperature, top_k, top_p, seed, stop, gpu_layers, format } =
            &request.options;
        Self::of(&AnswerIdentity {
            kind: "answer",
            format: FORMAT,
            tenant: &request.tenant,
            backends,
            members: members.iter().collect(),
            model: request.model.as_deref(),
            messages: request.messages.iter().map(|turn| (turn.role.as_str(), turn.content.as_str())).collect(),
            max_tokens: *max_tokens,
            temperature: temperature.map(bits),
            top_k: *top_k,
            top_p: top_p.map(bits),
            seed: *seed,
            stop,
            gpu_layers: *gpu_layers,
            answer_format: format.as_ref().map(|format| match format {
                AnswerFormat::Json => "json".to_owned(),
                AnswerFormat::Schema(schema) => format!("schema:{schema}"),
            }),
        })
    }

    fn of(identity: &impl Serialize) -> Self {
        // Structs of texts, numbers and lists always become JSON; a key of nothing would be shared by all that do not.
        let canonical = serde_json::to_vec(identity).expect("plain data becomes JSON");
        Self(Sha256::digest(canonical).into())
    }
}

/// -0.0 and 0.0 ask the same.
fn bits(value: f32) -> u32 {
    (value + 0.0).to_bits()
}

fn digest_of(vector: &[f32]) -> CacheKey {
    let mut hash = Sha256::new();
    for component in vector {
        hash.update(bits(*component).to_be_bytes());
    }
    CacheKey(hash.finalize().into())
}

fn condition_text(condition: &Condition) -> String {
    let predicate = match &condition.predicate {
        Predicate::Eq(value) => json!(["eq", value_json(value)]),
        Predicate::In(values) => {
            let values: BTreeSet<String> = values.iter().map(|value| value_json(value).to_string()).collect();
            json!(["in", values])
        }
        Predicate::Range { lower, upper } => {
            let bound = |bound: &Option<(FieldValue, bool)>| {
                bound.as_ref().map(|(value, is_inclusive)| json!([value_json(value), is_inclusive]))
            };
            json!(["range", bound(lower), bound(upper)])
        }
        Predicate::Exists(present) => json!(["exists", present]),
    };
    json!([condition.field, predicate]).to_string()
}

/// The type is part of it: 1 and 1.0 are different questions to a field.
fn value_json(value: &FieldValue) -> Value {
    match value {
        FieldValue::Bool(value) => json!(["bool", value]),
        FieldValue::Integer(value) => json!(["integer", value]),
        FieldValue::Float(value) => json!(["float", (value + 0.0).to_bits()]),
        FieldValue::Keyword(value) => json!(["keyword", value]),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use cluster_config::collection::CollectionSpec;
    use cluster_config::filter::Filter;
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

    proptest! {
        #[test]
        fn no_two_texts_or_models_share_a_key(a in ("[a\"{}\\\\]{0,3}", "[a\"{}\\\\]{0,3}"), b in ("[a\"{}\\\\]{0,3}", "[a\"{}\\\\]{0,3}")) {
            prop_assert_eq!(CacheKey::of_embedding(&a.0, &a.1) == CacheKey::of_embedding(&b.0, &b.1), a == b);
        }
    }

    #[test]
    fn every_part_of_an_answer_counts() {
        use crate::generate::{Affinity, Message, Role};
        let request = |content: &str| GenerateRequest {
            messages: vec![Message { role: Role::User, content: content.into() }],
            ..GenerateRequest::default()
        };
        let member =
            |name: &str, url: &str, model: &str| Identity { name: name.into(), url: url.into(), model: model.into() };
        let members = [member("b1", "http://a", "m1"), member("b2", "http://a", "m2")];
        let moved = [member("b1", "http://b", "m1"), member("b2", "http://a", "m2")];
        let key = |request: GenerateRequest| CacheKey::of_answer("b", &members, &request);
        let base = key(request("q"));
        let with = |options: GenerateOptions| key(GenerateRequest { options, ..request("q") });
        let other = [
            ("tenant", key(GenerateRequest { tenant: "u".into(), ..request("q") })),
            ("backends", CacheKey::of_answer("c", &members, &request("q"))),
            ("members", CacheKey::of_answer("b", &members[..1], &request("q"))),
            ("a member's url", CacheKey::of_answer("b", &moved, &request("q"))),
            ("prompt", key(request("r"))),
            ("model", key(GenerateRequest { model: Some("m".into()), ..request("q") })),
            ("tokens", with(GenerateOptions { max_tokens: Some(1), ..GenerateOptions::default() })),
            ("temperature", with(GenerateOptions { temperature: Some(0.5), ..GenerateOptions::default() })),
            ("seed", with(GenerateOptions { seed: Some(1), ..GenerateOptions::default() })),
            ("format", with(GenerateOptions { format: Some(AnswerFormat::Json), ..GenerateOptions::default() })),
            ("stop", with(GenerateOptions { stop: vec!["x".into()], ..GenerateOptions::default() })),
        ];
        for (what, key) in other {
            assert_ne!(key, base, "{what}");
        }
        let affinity = Affinity { client: Some(7), prefix: Some(8) };
        assert_eq!(key(GenerateRequest { affinity, ..request("q") }), base, "who is asked first changes nothing");
    }

    /// Coordinators of one version share their keys, so these change only with FORMAT. The values are Python's `hashlib` over the JSON
    /// that the module describes.
    #[test]
    fn golden() {
        let search = CacheKey::of_search(&collection(), &query(Filter::default()), &options());
        assert_eq!(search.to_string(), "76085e84ef4ea797e94e67c4579556dadf3615958133985af2624dd4d95185e9");
        assert_eq!(
            CacheKey::of_embedding("m", "a \"b\"").to_string(),
            "2625d3d57bd73d4efbeaa9b7cec71b886d8d5c9be40a028d28eb840ca8a13050"
        );
    }
}
