//! The JSON form of filters to the words of `cluster-config`.

use cluster_config::error::ConfigError;
use cluster_config::filter::{Condition, FieldValue, Filter, Predicate};
use serde::Deserialize;
use utoipa::ToSchema;

/// All of `must`, none of `must_not`, and at least one of `should` where there are any.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FilterBody {
    /// All must hold.
    #[serde(default)]
    pub must: Vec<ConditionBody>,
    /// One must hold, where there are any.
    #[serde(default)]
    pub should: Vec<ConditionBody>,
    /// None may hold.
    #[serde(default)]
    pub must_not: Vec<ConditionBody>,
}

/// One condition: a field and one operator; `gt`/`gte` and `lt`/`lte` may stand together.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConditionBody {
    /// A declared field, or `document_id`.
    #[schema(example = "year")]
    pub field: String,
    /// Equal to the value.
    #[schema(value_type = Option<Object>)]
    pub eq: Option<FieldValue>,
    /// Equal to one of the values.
    #[schema(value_type = Option<Vec<Object>>)]
    pub r#in: Option<Vec<FieldValue>>,
    /// At least.
    #[schema(value_type = Option<Object>)]
    pub gte: Option<FieldValue>,
    /// At most.
    #[schema(value_type = Option<Object>)]
    pub lte: Option<FieldValue>,
    /// Greater than.
    #[schema(value_type = Option<Object>)]
    pub gt: Option<FieldValue>,
    /// Less than.
    #[schema(value_type = Option<Object>)]
    pub lt: Option<FieldValue>,
    /// Present, or absent.
    pub exists: Option<bool>,
}

impl FilterBody {
    /// The filter. Errors name the clause; whether fields exist is for the collection to say (`Filter::validate`).
    pub fn into_filter(self) -> Result<Filter, ConfigError> {
        let clause = |name: &str, conditions: Vec<ConditionBody>| {
            let numbered = conditions.into_iter().enumerate();
            numbered
                .map(|(position, condition)| condition.into_condition(&format!("filters.{name}[{position}]")))
                .collect::<Result<Vec<Condition>, ConfigError>>()
        };
        Ok(Filter {
            must: clause("must", self.must)?,
            should: clause("should", self.should)?,
            must_not: clause("must_not", self.must_not)?,
        })
    }
}

impl ConditionBody {
    fn into_condition(self, path: &str) -> Result<Condition, ConfigError> {
        let contradictory = |text: &str| {
            Err(ConfigError::new(path, text, "give one of eq, in, exists, or a range of gte, lte, gt, lt"))
        };
        let has_range = self.gte.is_some() || self.lte.is_some() || self.gt.is_some() || self.lt.is_some();
        let operators = [self.eq.is_some(), self.r#in.is_some(), self.exists.is_some(), has_range];
        match operators.iter().filter(|given| **given).count() {
            0 => return contradictory("no operator"),
            1 => {}
            _ => return contradictory("several operators"),
        }
        if (self.gte.is_some() && self.gt.is_some()) || (self.lte.is_some() && self.lt.is_some()) {
            return contradictory("two bounds on the same side");
        }
        let bound = |inclusive: Option<FieldValue>, exclusive: Option<FieldValue>| {
            inclusive.map(|value| (value, true)).or(exclusive.map(|value| (value, false)))
        };
        let predicate = if let Some(value) = self.eq {
            Predicate::Eq(value)
        } else if let Some(values) = self.r#in {
            Predicate::In(values)
        } else if let Some(present) = self.exists {
            Predicate::Exists(present)
        } else {
            Predicate::Range { lower: bound(self.gte, self.gt), upper: bound(self.lte, self.lt) }
        };
        Ok(Condition { field: self.field, predicate })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::json::parse_json;

    fn read(text: &str) -> Result<Filter, String> {
        let body: FilterBody = parse_json(text.as_bytes()).map_err(|error| error.to_string())?;
        body.into_filter().map_err(|error| error.key)
    }

    #[test]
    fn the_documented_form_is_read() {
        let filter =
            read(r#"{"must":[{"field":"tenant_id","eq":"a"},{"field":"year","gte":2020,"lt":2024}]}"#).expect("reads");
        assert_eq!(filter.must[0].predicate, Predicate::Eq(FieldValue::Keyword("a".into())));
        let range = Predicate::Range {
            lower: Some((FieldValue::Integer(2020), true)),
            upper: Some((FieldValue::Integer(2024), false)),
        };
        assert_eq!(filter.must[1].predicate, range);
    }

    #[test]
    fn contradictions_name_the_clause() {
        assert_eq!(read(r#"{"must_not":[{"field":"a"}]}"#), Err("filters.must_not[0]".into()));
        assert_eq!(read(r#"{"must":[{"field":"a","eq":1,"exists":true}]}"#), Err("filters.must[0]".into()));
        assert_eq!(read(r#"{"should":[{"field":"a","gt":1,"gte":1}]}"#), Err("filters.should[0]".into()));
        assert!(read(r#"{"must":[{"field":"a","equals":1}]}"#).expect_err("unknown").contains("must[0]"));
    }
}
