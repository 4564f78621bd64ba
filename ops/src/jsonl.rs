//! Reads files of JSON lines: documents `{_id|id, title?, text, metadata?}` and queries `{_id|id, text}`.
//!
//! One bad line is reported by its number and does not stop the rest. Lines are bounded, so a file without line ends
//! cannot fill the memory.

use std::io::{BufRead, Read};

use cluster_config::limits;
use serde::Deserialize;

/// Most bytes of one line: the largest document, escaped, with room for its title and metadata.
pub const LINE_BYTES_MAX: usize = 2 * limits::DOCUMENT_BYTES_MAX;

/// One line that names a text.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Record {
    /// `_id` as the retrieval test collections spell it, or `id`. Numbers are taken as their decimal text.
    #[serde(alias = "_id", deserialize_with = "text_or_number")]
    pub id: String,
    /// Title, where there is one.
    #[serde(default)]
    pub title: Option<String>,
    /// The text.
    pub text: String,
    /// Metadata as a JSON object; passed on as it is.
    #[serde(default)]
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

/// A line that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedLine {
    /// Number of the line, from 1.
    pub line: usize,
    /// Why, lower-case.
    pub reason: String,
}

/// The records of a file in order, each with its line number from 1. Blank lines are skipped. An I/O error ends the
/// iteration as a refused line.
pub fn records<R: BufRead>(input: R) -> impl Iterator<Item = Result<(usize, Record), RefusedLine>> {
    let mut lines = Lines { input, line: 0, ended: false };
    std::iter::from_fn(move || lines.next_record())
}

struct Lines<R> {
    input: R,
    line: usize,
    ended: bool,
}

impl<R: BufRead> Lines<R> {
    fn next_record(&mut self) -> Option<Result<(usize, Record), RefusedLine>> {
        loop {
            if self.ended {
                return None;
            }
            self.line += 1;
            match self.next_line() {
                Ok(None) => return None,
                Ok(Some(bytes)) if bytes.trim_ascii().is_empty() => continue,
                Ok(Some(bytes)) => return Some(self.parse(&bytes)),
                Err(reason) => {
                    self.ended = true;
                    return Some(Err(RefusedLine { line: self.line, reason }));
                }
            }
        }
    }

    fn next_line(&mut self) -> Result<Option<Vec<u8>>, String> {
        let mut bytes = Vec::new();
        let taken = self.input.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut bytes);
        match taken {
            Err(error) => Err(format!("cannot be read: {error}")),
            Ok(0) => Ok(None),
            Ok(_) if bytes.len() > LINE_BYTES_MAX => {
                Err(format!("line is longer than {LINE_BYTES_MAX} bytes; the rest of the file is not read"))
            }
            Ok(_) => Ok(Some(bytes)),
        }
    }

    fn parse(&self, bytes: &[u8]) -> Result<(usize, Record), RefusedLine> {
        let refuse = |reason: String| RefusedLine { line: self.line, reason };
        let record: Record = serde_json::from_slice(bytes).map_err(|error| refuse(explain(&error)))?;
        if record.id.is_empty() {
            return Err(refuse("the id is empty".into()));
        }
        Ok((self.line, record))
    }
}

/// serde's text without its "at line 1", which would contradict the line number in front.
fn explain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or(&text);
    if error.is_data() { text.to_owned() } else { format!("not JSON: {text} (column {})", error.column()) }
}

fn text_or_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "an id must be text or a whole number")]
    enum Id {
        Text(String),
        Unsigned(u64),
        Signed(i64),
    }
    Ok(match Id::deserialize(deserializer)? {
        Id::Text(text) => text,
        Id::Unsigned(number) => number.to_string(),
        Id::Signed(number) => number.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_the_id_and_numbers_are_taken() {
        let text = r#"{"_id":"a","title":"T","text":"x"}
{"id":7,"text":"y","metadata":{"year":2020},"other":true}

{"id":-3,"text":""}"#;
        let found: Vec<_> = records(text.as_bytes()).map(|record| record.expect("good")).collect();
        let ids: Vec<_> = found.iter().map(|(line, record)| (*line, record.id.as_str())).collect();
        assert_eq!(ids, [(1, "a"), (2, "7"), (4, "-3")]);
        assert_eq!(found[0].1.title.as_deref(), Some("T"));
        assert_eq!(found[1].1.metadata.as_ref().expect("metadata")["year"], 2020);
    }

    #[test]
    fn a_bad_line_is_named_and_the_rest_goes_on() {
        let text = "{\"_id\":\"1\",\"text\":\"x\"}\nnot json\n{\"text\":\"no id\"}\n{\"_id\":\"\",\"text\":\"x\"}\n{\"_id\":true,\"text\":\"x\"}\n{\"_id\":\"2\",\"text\":\"y\"}";
        let found: Vec<_> = records(text.as_bytes()).collect();
        let refused: Vec<_> = found.iter().filter_map(|record| record.as_ref().err()).collect();
        assert_eq!(refused.iter().map(|refused| refused.line).collect::<Vec<_>>(), [2, 3, 4, 5]);
        assert!(refused[0].reason.starts_with("not JSON"), "{}", refused[0].reason);
        assert!(refused[1].reason.contains("missing field `id`"), "{}", refused[1].reason);
        assert!(refused[2].reason.contains("id is empty"), "{}", refused[2].reason);
        assert!(refused[3].reason.contains("text or a whole number"), "{}", refused[3].reason);
        assert!(refused.iter().all(|refused| !refused.reason.contains("line 1")));
        assert_eq!(found.len() - refused.len(), 2);
    }

    #[test]
    fn an_endless_line_ends_the_file() {
        let endless = std::io::repeat(b'x').take(LINE_BYTES_MAX as u64 * 2);
        let found: Vec<_> = records(std::io::BufReader::new(endless)).collect();
        assert_eq!(found.len(), 1);
        assert!(found[0].as_ref().expect_err("refused").reason.contains("longer than"));
    }
}
