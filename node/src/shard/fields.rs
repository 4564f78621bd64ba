//! Declared metadata fields of a chunk: taken out of its JSON object, typed, ready to become filter keys.
//!
//! A field may hold one value or an array of values; a condition holds if it holds for one of them. `null` is absence.

use cluster_config::collection::{CollectionSpec, FieldType};
use cluster_config::datetime;
use cluster_config::filter::FieldValue;
use serde_json::Value;

/// What is wrong with a chunk's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MetadataProblem {
    /// The field, where it is one.
    pub(crate) field: Option<String>,
    pub(crate) problem: String,
}

/// The declared fields that the metadata has, with their values, in field order. Undeclared ones are stored but not filterable.
pub(crate) fn declared_fields<'a>(
    spec: &'a CollectionSpec,
    metadata_json: &str,
) -> Result<Vec<(&'a str, Vec<FieldValue>)>, MetadataProblem> {
    if spec.fields.is_empty() && (metadata_json == "{}" || metadata_json.is_empty()) {
        return Ok(Vec::new());
    }
    let object = match serde_json::from_str::<Value>(if metadata_json.is_empty() { "{}" } else { metadata_json }) {
        Ok(Value::Object(object)) => object,
        Ok(_) => return Err(MetadataProblem { field: None, problem: "not a JSON object".into() }),
        Err(error) => return Err(MetadataProblem { field: None, problem: error.to_string() }),
    };
    let mut found = Vec::new();
    for (name, field_type) in spec.indexed_fields() {
        let values = match object.get(name) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(items)) => {
                items.iter().map(|item| typed(name, field_type, item)).collect::<Result<Vec<_>, _>>()?
            }
            Some(value) => vec![typed(name, field_type, value)?],
        };
        if !values.is_empty() {
            found.push((name, values));
        }
    }
    Ok(found)
}

fn typed(name: &str, field_type: FieldType, value: &Value) -> Result<FieldValue, MetadataProblem> {
    let typed = match field_type {
        FieldType::Bool => value.as_bool().map(FieldValue::Bool),
        FieldType::Integer => value.as_i64().map(FieldValue::Integer),
        FieldType::Float => value.as_f64().filter(|number| number.is_finite()).map(FieldValue::Float),
        FieldType::Keyword => value.as_str().map(|text| FieldValue::Keyword(text.to_owned())),
        FieldType::Datetime => {
            value.as_i64().or_else(|| value.as_str().and_then(datetime::unix_ms)).map(FieldValue::Integer)
        }
        FieldType::Scan => None,
    };
    typed.ok_or_else(|| MetadataProblem {
        field: Some(name.to_owned()),
        problem: format!("the value does not fit a field of type {}", field_type.expected()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> CollectionSpec {
        let mut spec = CollectionSpec::new("c", 2);
        let fields = [
            ("flag", FieldType::Bool),
            ("year", FieldType::Integer),
            ("price", FieldType::Float),
            ("tag", FieldType::Keyword),
            ("when", FieldType::Datetime),
        ];
        spec.fields = fields.into_iter().map(|(name, field_type)| (name.to_owned(), field_type)).collect();
        spec
    }

    #[test]
    fn values_are_typed_and_arrays_have_many() {
        let spec = spec();
        let json = r#"{"flag":true,"year":-3,"price":2,"tag":["a","b"],"when":["1970-01-02",7],"other":{"x":1}}"#;
        let expected = vec![
            ("flag", vec![FieldValue::Bool(true)]),
            ("price", vec![FieldValue::Float(2.0)]),
            ("tag", vec![FieldValue::Keyword("a".into()), FieldValue::Keyword("b".into())]),
            ("when", vec![FieldValue::Integer(86_400_000), FieldValue::Integer(7)]),
            ("year", vec![FieldValue::Integer(-3)]),
        ];
        assert_eq!(declared_fields(&spec, json), Ok(expected));
        assert_eq!(declared_fields(&spec, r#"{"flag":null,"tag":[]}"#), Ok(vec![]));
        assert_eq!(declared_fields(&spec, ""), Ok(vec![]));
    }

    #[test]
    fn problems_name_the_field() {
        let cases = [
            (r#"{"flag":1}"#, Some("flag")),
            (r#"{"year":1.5}"#, Some("year")),
            (r#"{"price":"1"}"#, Some("price")),
            (r#"{"tag":["a",1]}"#, Some("tag")),
            (r#"{"when":"soon"}"#, Some("when")),
            (r#"{"when":1.5}"#, Some("when")),
            ("[]", None),
            ("{", None),
        ];
        for (json, field) in cases {
            let problem = declared_fields(&spec(), json).expect_err(json);
            assert_eq!(problem.field.as_deref(), field, "{json}");
        }
    }
}
