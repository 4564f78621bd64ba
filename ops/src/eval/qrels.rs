//! Reads relevance judgements: tab-separated `query-id corpus-id score` with a header line, as BEIR spells them.

use std::collections::{HashMap, HashSet};

/// Relevant documents by query. A pair with a score of 0 or less is judged irrelevant and left out.
pub type Qrels = HashMap<String, HashSet<String>>;

/// Parses the whole text. Errors name the line.
pub fn parse(text: &str) -> Result<Qrels, String> {
    let mut qrels = Qrels::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_end_matches('\r');
        if line.trim().is_empty() || (index == 0 && line.starts_with("query-id")) {
            continue;
        }
        let fields: Vec<&str> = line.split('\t').collect();
        let &[query, document, score] = fields.as_slice() else {
            return Err(format!(
                "line {}: {} tab-separated fields, expected query-id, corpus-id, score",
                index + 1,
                fields.len()
            ));
        };
        let score: f64 =
            score.trim().parse().map_err(|_| format!("line {}: the score {score:?} is not a number", index + 1))?;
        let relevant = qrels.entry(query.to_owned()).or_default();
        if score > 0.0 {
            relevant.insert(document.to_owned());
        }
    }
    qrels.retain(|_, relevant| !relevant.is_empty());
    Ok(qrels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judged_irrelevant_is_not_relevant() {
        let qrels = parse("query-id\tcorpus-id\tscore\n1\ta\t1\n1\tb\t0\r\n1\tc\t2\n2\ta\t0\n").expect("parses");
        assert_eq!(qrels.len(), 1);
        assert_eq!(qrels["1"], HashSet::from(["a".to_owned(), "c".to_owned()]));
    }

    #[test]
    fn the_bad_line_is_named() {
        assert!(parse("1 a 1\n").expect_err("spaces").starts_with("line 1: 1 tab"));
        assert!(parse("1\ta\t1\n2\ta\tmany\n").expect_err("score").starts_with("line 2: the score"));
    }
}
