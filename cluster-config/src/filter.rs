//! Metadata filters: `must` and `should` and `must_not` over typed conditions.

use serde::{Deserialize, Serialize};

use crate::collection::{CollectionSpec, FieldType};
use crate::datetime;
use crate::error::ConfigError;
use crate::limits;

/// A metadata value.
#[derive(Clone, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FieldValue {
    /// true or false.
    Bool(bool),
    /// 64-bit signed integer.
    Integer(i64),
    /// 64-bit float, finite.
    Float(f64),
    /// Text compared as a whole.
    Keyword(String),
}

/// What a condition asks of its field.
#[derive(Clone, Debug, PartialEq)]
pub enum Predicate {
    /// Equal to the value.
    Eq(FieldValue),
    /// Equal to one of the values.
    In(Vec<FieldValue>),
    /// Within bounds; each bound is a value and whether it is included.
    Range {
        /// Lower bound.
        lower: Option<(FieldValue, bool)>,
        /// Upper bound.
        upper: Option<(FieldValue, bool)>,
    },
    /// The field is present (true) or absent (false).
    Exists(bool),
}

/// One condition on one field.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// Declared field, or `document_id`.
    pub field: String,
    /// What is asked.
    pub predicate: Predicate,
}

/// All of `must`, none of `must_not`, and at least one of `should` where it is not empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// All must hold.
    pub must: Vec<Condition>,
    /// One must hold, where there are any.
    pub should: Vec<Condition>,
    /// None may hold.
    pub must_not: Vec<Condition>,
}

/// Name under which a filter may ask for document ids without declaring a field.
pub const DOCUMENT_ID_FIELD: &str = "document_id";

impl Filter {
    /// Whether it lets everything through.
    pub fn is_empty(&self) -> bool {
        self.must.is_empty() && self.should.is_empty() && self.must_not.is_empty()
    }

    /// Checks fields, value types and bounds against the collection. Errors name the clause, as `filters.must[0].eq`.
    pub fn validate(&self, spec: &CollectionSpec) -> Result<(), ConfigError> {
        let count = self.must.len() + self.should.len() + self.must_not.len();
        if count > limits::FILTER_CONDITIONS_MAX {
            return Err(ConfigError::new(
                "filters",
                format!("{count} conditions"),
                format!("use at most {}", limits::FILTER_CONDITIONS_MAX),
            ));
        }
        for (clause, conditions) in [("must", &self.must), ("should", &self.should), ("must_not", &self.must_not)] {
            for (position, condition) in conditions.iter().enumerate() {
                condition.validate(spec, &format!("filters.{clause}[{position}]"))?;
            }
        }
        Ok(())
    }
}

impl Condition {
    fn validate(&self, spec: &CollectionSpec, path: &str) -> Result<(), ConfigError> {
        let field_type = if self.field == DOCUMENT_ID_FIELD {
            FieldType::Keyword
        } else {
            spec.filter_type(&self.field).ok_or_else(|| {
                let declared: Vec<&str> = spec.fields.keys().map(String::as_str).collect();
                ConfigError::new(
                    format!("{path}.field"),
                    format!("{:?} is not a declared field", self.field),
                    format!(
                        "the collection declares [{}]; document_id is always there; a collection created with the field \"*\": \"scan\" takes any",
                        declared.join(", ")
                    ),
                )
            })?
        };
        let fits = |value: &FieldValue| field_accepts(field_type, value);
        let wrong = |operator: &str| {
            ConfigError::new(
                format!("{path}.{operator}"),
                format!("the value does not fit field {:?}", self.field),
                format!("the field is of type {}", field_type.expected()),
            )
        };
        match &self.predicate {
            Predicate::Eq(value) if !fits(value) => Err(wrong("eq")),
            Predicate::In(values) if values.is_empty() || values.len() > limits::FILTER_VALUES_MAX => {
                Err(ConfigError::new(
                    format!("{path}.in"),
                    format!("{} values", values.len()),
                    format!("give 1 to {}", limits::FILTER_VALUES_MAX),
                ))
            }
            Predicate::In(values) if !values.iter().all(fits) => Err(wrong("in")),
            Predicate::Range { lower: None, upper: None } => {
                Err(ConfigError::new(path, "no operator", "give one of eq, in, gte, lte, gt, lt, exists"))
            }
            Predicate::Range { lower, upper } => {
                if lower.as_ref().is_some_and(|(value, _)| !fits(value)) {
                    return Err(wrong("gte"));
                }
                if upper.as_ref().is_some_and(|(value, _)| !fits(value)) {
                    return Err(wrong("lte"));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Whether a value may stand in a field of that type. Integers are accepted where floats are declared, and as milliseconds since 1970
/// where datetimes are.
pub fn field_accepts(field_type: FieldType, value: &FieldValue) -> bool {
    match (field_type, value) {
        (FieldType::Keyword, FieldValue::Keyword(_)) | (FieldType::Integer, FieldValue::Integer(_)) => true,
        (FieldType::Bool, FieldValue::Bool(_)) | (FieldType::Float, FieldValue::Integer(_)) => true,
        (FieldType::Float, FieldValue::Float(number)) => number.is_finite(),
        (FieldType::Datetime, FieldValue::Integer(_)) => true,
        (FieldType::Datetime, FieldValue::Keyword(text)) => datetime::unix_ms(text).is_some(),
        (FieldType::Scan, FieldValue::Float(number)) => number.is_finite(),
        (FieldType::Scan, _) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collection::UNDECLARED_FIELDS;

    #[test]
    fn undeclared_fields_are_refused_with_a_hint_unless_the_collection_allows_scanning() {
        let condition = |field: &str, predicate| Condition { field: field.into(), predicate };
        let refusal = |spec: &CollectionSpec, one: Condition| {
            Filter { must: vec![one], ..Filter::default() }.validate(spec).err()
        };
        let year = |value| condition("year", Predicate::Eq(value));
        let colour = || condition("colour", Predicate::Eq(FieldValue::Keyword("red".into())));
        let mut spec = CollectionSpec::new("c", 2);
        spec.fields.insert("year".into(), FieldType::Integer);
        let refused = refusal(&spec, colour()).expect("an undeclared field");
        assert_eq!(refused.key, "filters.must[0].field");
        assert!(refused.hint.contains(r#""*": "scan""#), "{}", refused.hint);
        spec.fields.insert(UNDECLARED_FIELDS.into(), FieldType::Scan);
        spec.validate().expect("valid");
        assert_eq!(refusal(&spec, colour()), None);
        assert_eq!(refusal(&spec, year(FieldValue::Integer(1))), None);
        assert!(refusal(&spec, year(FieldValue::Bool(true))).is_some(), "a declared field keeps its type");
        assert!(refusal(&spec, condition("x", Predicate::Eq(FieldValue::Float(f64::NAN)))).is_some());
    }
}
