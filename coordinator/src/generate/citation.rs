//! Citation marks in generated text: `[2]`, `[1, 3]`, `[1][2]`, found while the text streams by, however its pieces are cut.

use std::collections::BTreeSet;

use super::{Citation, Source};

/// Longest inside of a mark; a bracket that is still open after that is prose.
const MARK_BYTES_MAX: usize = 24;

/// Finds marks in a text that comes in pieces. Keeps at most the inside of one open bracket.
#[derive(Clone, Debug, Default)]
pub struct MarkParser {
    /// Since the last `[`, if everything since could be a mark.
    open: Option<String>,
}

impl MarkParser {
    /// Numbers of the marks that `piece` completes, in order.
    pub fn push(&mut self, piece: &str) -> Vec<u32> {
        let mut found = Vec::new();
        for character in piece.chars() {
            match (character, &mut self.open) {
                ('[', open) => *open = Some(String::new()),
                (']', open) => found.extend(open.take().iter().flat_map(|inside| numbers(inside))),
                (character, Some(inside))
                    if inside.len() < MARK_BYTES_MAX
                        && (character.is_ascii_digit() || matches!(character, ',' | ' ')) =>
                {
                    inside.push(character);
                }
                (_, open) => *open = None,
            }
        }
        found
    }
}

fn numbers(inside: &str) -> Vec<u32> {
    let parsed: Result<Vec<u32>, _> = inside.split(',').map(|number| number.trim().parse()).collect();
    parsed.unwrap_or_default()
}

/// Turns marks into citations of a prompt's sources, each source once.
#[derive(Clone, Debug)]
pub struct CitationTracker {
    parser: MarkParser,
    sources: Vec<Source>,
    cited: BTreeSet<u32>,
}

impl CitationTracker {
    /// `sources` in the order in which the prompt numbered them, from 1.
    pub fn new(sources: Vec<Source>) -> Self {
        Self { parser: MarkParser::default(), sources, cited: BTreeSet::new() }
    }

    /// Citations that `piece` adds. A number without a source is the model's invention and no citation.
    pub fn push(&mut self, piece: &str) -> Vec<Citation> {
        let marks = self.parser.push(piece);
        marks.into_iter().filter_map(|marker| self.cite(marker)).collect()
    }

    fn cite(&mut self, marker: u32) -> Option<Citation> {
        let source = self.sources.get((marker as usize).checked_sub(1)?)?;
        self.cited.insert(marker).then(|| Citation::of(source, marker, source.span.clone()))
    }
}

impl Citation {
    /// `span` of `source` under the number `marker`.
    pub(super) fn of(source: &Source, marker: u32, span: std::ops::Range<u64>) -> Self {
        Self {
            marker,
            chunk_id: source.chunk_id.clone(),
            document_id: source.document_id.clone(),
            title: source.title.clone(),
            span,
            score: source.score,
            page: source.page,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn marks(pieces: &[&str]) -> Vec<u32> {
        let mut parser = MarkParser::default();
        pieces.iter().flat_map(|piece| parser.push(piece)).collect()
    }

    #[test]
    fn marks_are_found_and_prose_is_not() {
        let cases: [(&str, &[u32]); 9] = [
            ("a [1]. b [12][3] c", &[1, 12, 3]),
            ("[1, 2,3]", &[1, 2, 3]),
            ("[[4]]", &[4]),
            ("[a1] [1a] [] [ ] [1,] [-1] x]", &[]),
            ("see [1\n2]", &[]),
            ("[99999999999]", &[]),
            ("[0]", &[0]),
            ("[1 of [2]", &[2]),
            ("[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]", &[]),
        ];
        for (text, expected) in cases {
            assert_eq!(marks(&[text]), expected, "{text}");
        }
        assert_eq!(marks(&["the [", "1", "2", "] end [", "3", "]"]), [12, 3]);
    }

    #[test]
    fn each_source_is_cited_once_and_inventions_never() {
        let source = |n: u64| Source {
            chunk_id: format!("d#{n}"),
            document_id: "d".into(),
            title: None,
            text: "text".into(),
            span: n * 10..n * 10 + 4,
            score: 0.5,
            page: None,
        };
        let mut tracker = CitationTracker::new(vec![source(0), source(1)]);
        assert!(tracker.push("x [").is_empty());
        let cited = tracker.push("2] y [2] [0] [3] [1]");
        assert_eq!(cited.iter().map(|c| (c.marker, c.span.clone())).collect::<Vec<_>>(), [(2, 10..14), (1, 0..4)]);
        assert!(tracker.push("[1, 2]").is_empty());
    }

    proptest! {
        #[test]
        fn cutting_changes_nothing(pieces in proptest::collection::vec("[\\[\\]0-9, é]{0,6}", 0..12)) {
            let whole = pieces.concat();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(marks(&pieces), marks(&[&whole]));
        }
    }
}
