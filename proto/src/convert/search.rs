//! Searches and their answers.

use cluster_config::filter::{Condition, FieldValue, Filter, Predicate};
use cluster_config::ids::ShardId;
use cluster_config::limits;
use cluster_config::search::{
    Consistency, CopyPosition, NodeSearch, SearchKnobs, ShardAnswer, ShardHit, ShardQuery, ShardTarget,
};
use cluster_config::seqno::SeqNo;

use super::ids::shard_id;
use super::status::RemoteError;
use super::{WireError, convert_enum, each, enum_field, required, to_wire};
use crate::v1;

convert_enum!(Consistency, v1::Consistency, "consistency", [Eventual, Session, Strong]);

/// The consistency of a fetch or a listing. A sender that names none asks for no more than its `min_seqno`.
pub fn fetch_consistency(wire: i32) -> Result<Consistency, WireError> {
    match v1::Consistency::try_from(wire) {
        Ok(v1::Consistency::Unspecified) => Ok(Consistency::Session),
        _ => enum_field::<v1::Consistency, _>("consistency", wire),
    }
}

impl From<FieldValue> for v1::FieldValue {
    fn from(value: FieldValue) -> Self {
        use v1::field_value::Kind;
        let kind = match value {
            FieldValue::Keyword(text) => Kind::Keyword(text),
            FieldValue::Integer(number) => Kind::Integer(number),
            FieldValue::Float(number) => Kind::Float(number),
            FieldValue::Bool(truth) => Kind::Bool(truth),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::FieldValue> for FieldValue {
    type Error = WireError;

    fn try_from(wire: v1::FieldValue) -> Result<Self, WireError> {
        use v1::field_value::Kind;
        Ok(match wire.kind.ok_or_else(|| WireError::missing("kind"))? {
            Kind::Keyword(text) => Self::Keyword(text),
            Kind::Integer(number) => Self::Integer(number),
            Kind::Float(number) => Self::Float(number),
            Kind::Bool(truth) => Self::Bool(truth),
        })
    }
}

fn bound_to_wire((value, inclusive): (FieldValue, bool)) -> v1::Bound {
    v1::Bound { value: Some(value.into()), inclusive }
}

fn bound_from_wire(field: &str, wire: Option<v1::Bound>) -> Result<Option<(FieldValue, bool)>, WireError> {
    let Some(bound) = wire else { return Ok(None) };
    let value = required("value", bound.value).map_err(|error| error.within(field))?;
    Ok(Some((value, bound.inclusive)))
}

impl From<Condition> for v1::Condition {
    fn from(condition: Condition) -> Self {
        use v1::condition::Predicate as Wire;
        let predicate = match condition.predicate {
            Predicate::Eq(value) => Wire::Eq(value.into()),
            Predicate::In(values) => Wire::In(v1::ValueList { values: to_wire(values) }),
            Predicate::Range { lower, upper } => {
                Wire::Range(v1::Range { lower: lower.map(bound_to_wire), upper: upper.map(bound_to_wire) })
            }
            Predicate::Exists(present) => Wire::Exists(present),
        };
        Self { field: condition.field, predicate: Some(predicate) }
    }
}

impl TryFrom<v1::Condition> for Condition {
    type Error = WireError;

    fn try_from(wire: v1::Condition) -> Result<Self, WireError> {
        use v1::condition::Predicate as Wire;
        let predicate = match wire.predicate.ok_or_else(|| WireError::missing("predicate"))? {
            Wire::Eq(value) => Predicate::Eq(value.try_into().map_err(|error: WireError| error.within("eq"))?),
            Wire::In(list) => Predicate::In(each("in", list.values)?),
            Wire::Range(range) => Predicate::Range {
                lower: bound_from_wire("range.lower", range.lower)?,
                upper: bound_from_wire("range.upper", range.upper)?,
            },
            Wire::Exists(present) => Predicate::Exists(present),
        };
        Ok(Self { field: wire.field, predicate })
    }
}

impl From<Filter> for v1::Filter {
    fn from(filter: Filter) -> Self {
        Self { must: to_wire(filter.must), should: to_wire(filter.should), must_not: to_wire(filter.must_not) }
    }
}

impl TryFrom<v1::Filter> for Filter {
    type Error = WireError;

    fn try_from(wire: v1::Filter) -> Result<Self, WireError> {
        Ok(Self {
            must: each("must", wire.must)?,
            should: each("should", wire.should)?,
            must_not: each("must_not", wire.must_not)?,
        })
    }
}

impl From<ShardQuery> for v1::ShardQuery {
    fn from(query: ShardQuery) -> Self {
        Self {
            vector: query.vector,
            fetch_k: query.fetch_k,
            filter: (!query.filter.is_empty()).then(|| query.filter.into()),
            tenant: query.tenant,
            nprobe: query.knobs.nprobe,
            oversample: query.knobs.oversample,
            exact: query.knobs.exact,
            target_recall: query.knobs.target_recall,
        }
    }
}

impl TryFrom<v1::ShardQuery> for ShardQuery {
    type Error = WireError;

    /// Nothing of a query is ever stored, so its ranges are checked right here, where not-a-number would otherwise walk on
    /// into an order of scores.
    fn try_from(wire: v1::ShardQuery) -> Result<Self, WireError> {
        if let Some(position) = wire.vector.iter().position(|value| !value.is_finite()) {
            return Err(WireError::new(format!("vector[{position}]"), "not a finite number"));
        }
        if !(1..=limits::RESCORE_MAX).contains(&wire.fetch_k) {
            let problem = format!("{} is not in 1..={}", wire.fetch_k, limits::RESCORE_MAX);
            return Err(WireError::new("fetch_k", problem));
        }
        if wire.tenant.is_empty() {
            return Err(WireError::missing("tenant"));
        }
        if wire.nprobe == Some(0) {
            return Err(WireError::new("nprobe", "0 lists"));
        }
        if wire.oversample.is_some_and(|factor| !(1.0..=limits::OVERSAMPLE_MAX).contains(&factor)) {
            return Err(WireError::new("oversample", format!("not in 1..={}", limits::OVERSAMPLE_MAX)));
        }
        if wire.target_recall.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
            return Err(WireError::new("target_recall", "not above 0 and at most 1"));
        }
        Ok(Self {
            vector: wire.vector,
            fetch_k: wire.fetch_k,
            filter: wire.filter.unwrap_or_default().try_into().map_err(|error: WireError| error.within("filter"))?,
            tenant: wire.tenant,
            knobs: SearchKnobs {
                nprobe: wire.nprobe,
                oversample: wire.oversample,
                exact: wire.exact,
                target_recall: wire.target_recall,
            },
        })
    }
}

impl From<ShardTarget> for v1::ShardTarget {
    fn from(target: ShardTarget) -> Self {
        Self { target: Some(target.target.into()), min_seqno: target.min_seqno.0 }
    }
}

impl TryFrom<v1::ShardTarget> for ShardTarget {
    type Error = WireError;

    fn try_from(wire: v1::ShardTarget) -> Result<Self, WireError> {
        Ok(Self { target: required("target", wire.target)?, min_seqno: SeqNo(wire.min_seqno) })
    }
}

/// The request for one node.
pub fn search_request(envelope: v1::Envelope, search: NodeSearch) -> v1::SearchRequest {
    v1::SearchRequest {
        envelope: Some(envelope),
        queries: to_wire(search.queries),
        targets: to_wire(search.targets),
        consistency: v1::Consistency::from(search.consistency).into(),
        max_staleness_ms: search.max_staleness_ms,
    }
}

impl TryFrom<v1::SearchRequest> for NodeSearch {
    type Error = WireError;

    /// The envelope is not looked at: it is checked before anything else of a request is.
    fn try_from(wire: v1::SearchRequest) -> Result<Self, WireError> {
        if wire.queries.len() > limits::SEARCHES_PER_BATCH_MAX {
            let problem = format!("{} queries, at most {}", wire.queries.len(), limits::SEARCHES_PER_BATCH_MAX);
            return Err(WireError::new("queries", problem));
        }
        Ok(Self {
            queries: each("queries", wire.queries)?,
            targets: each("targets", wire.targets)?,
            consistency: enum_field::<v1::Consistency, _>("consistency", wire.consistency)?,
            max_staleness_ms: wire.max_staleness_ms,
        })
    }
}

impl From<ShardHit> for v1::ShardHit {
    fn from(hit: ShardHit) -> Self {
        Self { row: hit.row, score: hit.score, document_id: hit.document_id, ordinal: hit.ordinal }
    }
}

impl From<v1::ShardHit> for ShardHit {
    fn from(wire: v1::ShardHit) -> Self {
        Self { row: wire.row, score: wire.score, document_id: wire.document_id, ordinal: wire.ordinal }
    }
}

/// What one shard of a scatter answered.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardReply {
    /// Which shard.
    pub shard: ShardId,
    /// One answer per query, in order and all at one position; or why there is none.
    pub outcome: Result<Vec<ShardAnswer>, RemoteError>,
    /// Microseconds waiting for a search thread.
    pub queued_us: u64,
    /// Microseconds computing.
    pub service_us: u64,
}

impl ShardReply {
    /// The answer of a shard that was not searched.
    pub fn refused(shard: ShardId, error: RemoteError) -> Self {
        Self { shard, outcome: Err(error), queued_us: 0, service_us: 0 }
    }
}

impl From<ShardReply> for v1::ShardResult {
    fn from(reply: ShardReply) -> Self {
        let (answers, error) = match reply.outcome {
            Ok(answers) => (answers, None),
            Err(error) => (Vec::new(), Some(error.into())),
        };
        Self {
            shard: Some(reply.shard.into()),
            position: answers.first().map(|answer| answer.position.into()),
            answers: answers.into_iter().map(answer_to_wire).collect(),
            error,
            queued_us: reply.queued_us,
            service_us: reply.service_us,
        }
    }
}

impl TryFrom<v1::ShardResult> for ShardReply {
    type Error = WireError;

    fn try_from(wire: v1::ShardResult) -> Result<Self, WireError> {
        let shard = shard_id("shard", wire.shard)?;
        let outcome = match (wire.error, wire.position) {
            (Some(error), _) => Err(error.into()),
            (None, None) if !wire.answers.is_empty() => return Err(WireError::missing("position")),
            (None, position) => {
                let position = position.map(CopyPosition::from).unwrap_or_default();
                Ok(wire.answers.into_iter().map(|answer| answer_from_wire(answer, position)).collect())
            }
        };
        Ok(Self { shard, outcome, queued_us: wire.queued_us, service_us: wire.service_us })
    }
}

fn answer_to_wire(answer: ShardAnswer) -> v1::QueryAnswer {
    v1::QueryAnswer {
        hits: to_wire(answer.hits),
        codes_scanned: answer.codes_scanned,
        codes_total: answer.codes_total,
        rows_exact: answer.rows_exact,
    }
}

fn answer_from_wire(wire: v1::QueryAnswer, position: CopyPosition) -> ShardAnswer {
    ShardAnswer {
        hits: to_wire(wire.hits),
        position,
        codes_scanned: wire.codes_scanned,
        codes_total: wire.codes_total,
        rows_exact: wire.rows_exact,
    }
}
