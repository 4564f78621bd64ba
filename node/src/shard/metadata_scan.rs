//! Conditions on fields that have no index: decided by a chunk's metadata as it was sent. Pure.
//!
//! Numbers compare as numbers, texts by their bytes, false before true; values of different kinds are neither equal nor in order. A
//! field may hold an array; a condition holds if it holds for one of its values. `null` and an empty array are absence.

use std::cmp::Ordering;

use cluster_config::filter::{FieldValue, Predicate};
use serde_json::Value;

/// Whether the condition holds for the field of this chunk.
pub(crate) fn holds(metadata_json: &str, field: &str, predicate: &Predicate) -> bool {
    let metadata: Value = serde_json::from_str(metadata_json).unwrap_or_default();
    let values = match metadata.get(field) {
        None | Some(Value::Null) => &[],
        Some(Value::Array(items)) => items.as_slice(),
        Some(value) => std::slice::from_ref(value),
    };
    match predicate {
        Predicate::Exists(wanted) => values.is_empty() != *wanted,
        Predicate::Eq(wanted) => values.iter().any(|value| is_equal(value, wanted)),
        Predicate::In(wanted) => values.iter().any(|value| wanted.iter().any(|one| is_equal(value, one))),
        Predicate::Range { lower, upper } => values.iter().any(|value| {
            let is_within = |bound: &Option<(FieldValue, bool)>, beyond: Ordering| {
                bound.as_ref().is_none_or(|(bound, inclusive)| match order(value, bound) {
                    Some(Ordering::Equal) => *inclusive,
                    found => found == Some(beyond),
                })
            };
            is_within(lower, Ordering::Greater) && is_within(upper, Ordering::Less)
        }),
    }
}

fn is_equal(value: &Value, wanted: &FieldValue) -> bool {
    order(value, wanted) == Some(Ordering::Equal)
}

/// `None`: of different kinds.
fn order(value: &Value, other: &FieldValue) -> Option<Ordering> {
    match other {
        FieldValue::Bool(other) => value.as_bool().map(|value| value.cmp(other)),
        FieldValue::Keyword(other) => value.as_str().map(|value| value.cmp(other)),
        // Integers are compared as such: beyond 2^53 floats cannot tell neighbours apart.
        FieldValue::Integer(other) => match value.as_i64() {
            Some(value) => Some(value.cmp(other)),
            None => value.as_f64()?.partial_cmp(&(*other as f64)),
        },
        FieldValue::Float(other) => value.as_f64()?.partial_cmp(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_compare_within_their_kind() {
        const JSON: &str =
            r#"{"n":3,"x":2.5,"big":9007199254740993,"t":"b","yes":true,"many":[1,"a"],"none":null,"empty":[],"o":{}}"#;
        let eq = |value| Predicate::Eq(value);
        let text = |text: &str| FieldValue::Keyword(text.into());
        let range = |lower: Option<FieldValue>, upper: Option<FieldValue>| Predicate::Range {
            lower: lower.map(|bound| (bound, true)),
            upper: upper.map(|bound| (bound, false)),
        };
        use FieldValue::{Bool, Float, Integer};
        for (field, predicate, expected) in [
            ("n", eq(Integer(3)), true),
            ("n", eq(Float(3.0)), true),
            ("n", eq(text("3")), false),
            ("x", eq(Integer(2)), false),
            ("big", eq(Integer(9_007_199_254_740_992)), false),
            ("yes", eq(Bool(true)), true),
            ("yes", eq(Integer(1)), false),
            ("many", eq(text("a")), true),
            ("many", Predicate::In(vec![Integer(7), Integer(1)]), true),
            ("n", range(Some(Integer(3)), None), true),
            ("n", range(None, Some(Integer(3))), false),
            ("x", range(Some(Integer(2)), Some(Float(2.6))), true),
            ("t", range(Some(text("a")), Some(text("c"))), true),
            ("t", range(Some(Integer(0)), None), false),
            ("gone", range(None, Some(Integer(3))), false),
            ("o", Predicate::Exists(true), true),
            ("none", Predicate::Exists(true), false),
            ("empty", Predicate::Exists(false), true),
            ("gone", Predicate::Exists(false), true),
        ] {
            assert_eq!(holds(JSON, field, &predicate), expected, "{field} {predicate:?}");
        }
        assert!(!holds("", "n", &Predicate::Exists(true)), "no metadata at all");
    }
}
