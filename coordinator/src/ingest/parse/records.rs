//! CSV and JSON lines.

use serde_json::Value;

use super::builder::Builder;
use super::table::Table;
use super::{ParseError, Parsed};

/// Comma, semicolon or tab, whichever the first line has most of. Errors: a row that is no CSV.
pub(super) fn csv(text: &str) -> Result<Parsed, ParseError> {
    let first = text.lines().next().unwrap_or_default();
    let count = |delimiter: u8| first.bytes().filter(|byte| *byte == delimiter).count();
    // The last of equals wins: the comma.
    let delimiter = [b'\t', b';', b','].into_iter().max_by_key(|delimiter| count(*delimiter)).unwrap_or(b',');
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).flexible(true).delimiter(delimiter).from_reader(text.as_bytes());
    let (mut table, mut builder) = (Table::default(), Builder::default());
    for record in reader.records() {
        let record =
            record.map_err(|error| ParseError::Malformed { format: "CSV".into(), reason: error.to_string() })?;
        table.row(record.iter().map(str::to_owned).collect(), &mut builder)?;
    }
    table.finish(&mut builder)?;
    Ok(builder.finish())
}

/// One paragraph per line: a record's `title` as its heading and its `text`, or all its fields by name. Errors: a line that is no JSON.
pub(super) fn json_lines(text: &str) -> Result<Parsed, ParseError> {
    let mut builder = Builder::default();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let value: Value = serde_json::from_str(line).map_err(|error| {
            let reason = format!("line {}: {error}", number + 1);
            ParseError::Malformed { format: "JSON lines".into(), reason }
        })?;
        let field = |name: &str| value.get(name).and_then(Value::as_str);
        if let Some(text) = field("text") {
            builder.heading(1, field("title").unwrap_or_default())?;
            builder.paragraph(text)?;
        } else {
            builder.paragraph(&words(&value))?;
        }
    }
    Ok(builder.finish())
}

/// `name: value; name: value`, with nested names joined by dots.
fn words(value: &Value) -> String {
    let mut parts = Vec::new();
    // A work list instead of recursion; serde_json bounds the depth at 128.
    let mut open = vec![(String::new(), value)];
    while let Some((name, value)) = open.pop() {
        match value {
            Value::Object(fields) => {
                let dotted = |key: &String| if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                open.extend(fields.iter().rev().map(|(key, value)| (dotted(key), value)));
            }
            Value::Array(items) => open.extend(items.iter().rev().map(|item| (name.clone(), item))),
            Value::Null => {}
            Value::String(text) if name.is_empty() => parts.push(text.clone()),
            Value::String(text) => parts.push(format!("{name}: {text}")),
            other => parts.push(if name.is_empty() { other.to_string() } else { format!("{name}: {other}") }),
        }
    }
    parts.join("; ")
}
