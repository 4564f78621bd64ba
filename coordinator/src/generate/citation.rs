//! Citation marks in generated text: `[2]`, `[1, 3]`, `[1][2]`, found while the text streams by, however its pieces are cut.
//!
//! A mark whose number no source has is the model's invention: it is taken out, unless it stands right behind a word, where it may be
//! an index in code.

use std::collections::BTreeSet;

use super::{Citation, Source};

/// Longest inside of a mark; a bracket that is still open after that is prose.
const MARK_BYTES_MAX: usize = 24;

/// Largest number that a mark may hold; a larger one is a year or the like.
const MARK_NUMBER_MAX: u32 = 999;

/// Turns marks into citations of a prompt's sources, each source once, and takes marks of sources that there are not out of the text. Keeps at
/// most one open bracket back.
#[derive(Clone, Debug)]
pub struct CitationTracker {
    sources: Vec<Source>,
    cited: BTreeSet<u32>,
    /// Since the last `[`, if everything since could be a mark.
    open: Option<String>,
    /// A letter, digit or `_` stands right before the bracket: it may be an index in code.
    is_glued: bool,
    /// The last character that was passed on.
    last: Option<char>,
}

impl CitationTracker {
    /// `sources` in the order in which the prompt numbered them, from 1.
    pub fn new(sources: Vec<Source>) -> Self {
        Self { sources, cited: BTreeSet::new(), open: None, is_glued: false, last: None }
    }

    /// The text to show now, and the citations that `piece` adds.
    pub fn push(&mut self, piece: &str) -> (String, Vec<Citation>) {
        let (mut shown, mut citations) = (String::with_capacity(piece.len()), Vec::new());
        for character in piece.chars() {
            match (character, &mut self.open) {
                ('[', open) => {
                    let held_back = open.take();
                    self.show(&mut shown, held_back.map(|inside| format!("[{inside}")).as_deref());
                    self.open = Some(String::new());
                    self.is_glued = self.last.is_some_and(|last| last.is_alphanumeric() || last == '_');
                }
                (']', open @ Some(_)) => {
                    let inside = open.take().unwrap_or_default();
                    let mark = self.close(&inside, &mut citations);
                    self.show(&mut shown, mark.as_deref());
                }
                (character, Some(inside))
                    if inside.len() < MARK_BYTES_MAX
                        && (character.is_ascii_digit() || matches!(character, ',' | ' ')) =>
                {
                    inside.push(character);
                }
                (character, open) => {
                    let held_back = open.take();
                    self.show(&mut shown, held_back.map(|inside| format!("[{inside}")).as_deref());
                    self.show(&mut shown, Some(character.encode_utf8(&mut [0; 4])));
                }
            }
        }
        (shown, citations)
    }

    /// What is still held back: a bracket that was never closed.
    pub fn finish(&mut self) -> String {
        self.open.take().map_or_else(String::new, |inside| format!("[{inside}"))
    }

    fn show(&mut self, shown: &mut String, text: Option<&str>) {
        let Some(text) = text else { return };
        shown.push_str(text);
        self.last = text.chars().next_back().or(self.last);
    }

    /// What stands in the text for the mark `[inside]`; `None`: nothing.
    fn close(&mut self, inside: &str, citations: &mut Vec<Citation>) -> Option<String> {
        let written = format!("[{inside}]");
        let numbers = numbers(inside);
        if numbers.is_empty() || numbers.iter().any(|number| *number > MARK_NUMBER_MAX) {
            return Some(written);
        }
        let mut supported = Vec::with_capacity(numbers.len());
        for number in &numbers {
            let Some(source) = (*number as usize).checked_sub(1).and_then(|place| self.sources.get(place)) else {
                continue;
            };
            if self.cited.insert(*number) {
                citations.push(Citation::of(source, *number, source.span.clone()));
            }
            supported.push(number.to_string());
        }
        match supported.len() {
            count if count == numbers.len() => Some(written),
            0 => self.is_glued.then_some(written),
            _ => Some(format!("[{}]", supported.join(", "))),
        }
    }
}

fn numbers(inside: &str) -> Vec<u32> {
    let parsed: Result<Vec<u32>, _> = inside.split(',').map(|number| number.trim().parse()).collect();
    parsed.unwrap_or_default()
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
            headings: source.headings.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source(n: u64) -> Source {
        Source {
            chunk_id: format!("d#{n}"),
            document_id: "d".into(),
            title: None,
            text: "text".into(),
            span: n * 10..n * 10 + 4,
            score: 0.5,
            page: None,
            headings: Vec::new(),
        }
    }

    /// Shown text and cited numbers of an answer from three sources.
    fn shown(pieces: &[&str]) -> (String, Vec<u32>) {
        let mut tracker = CitationTracker::new((0..3).map(source).collect());
        let (mut text, mut cited) = (String::new(), Vec::new());
        for piece in pieces {
            let (shown, citations) = tracker.push(piece);
            text.push_str(&shown);
            cited.extend(citations.iter().map(|citation| citation.marker));
        }
        text.push_str(&tracker.finish());
        (text, cited)
    }

    #[test]
    fn marks_are_found_and_prose_is_not() {
        let cases: [(&str, &[u32]); 10] = [
            ("a [1]. b [2][3] c", &[1, 2, 3]),
            ("[1, 2,3]", &[1, 2, 3]),
            ("[[2]]", &[2]),
            ("[a1] [1a] [] [ ] [1,] [-1] x]", &[]),
            ("see [1\n2]", &[]),
            ("[99999999999] [2024]", &[]),
            ("values[0] and x_[7]", &[]),
            ("[1 of [2]", &[2]),
            ("[1, 2, 3, 1, 2, 3, 1, 2, 3, 1]", &[]),
            ("ends open [1", &[]),
        ];
        for (text, expected) in cases {
            assert_eq!(shown(&[text]), (text.to_owned(), expected.to_vec()), "{text}");
        }
        assert_eq!(shown(&["the [", "1", "] end [", "3", "]"]), ("the [1] end [3]".to_owned(), vec![1, 3]));
    }

    #[test]
    fn marks_without_a_source_leave_the_text() {
        let cases: [(&str, &str, &[u32]); 4] = [
            ("Lift [9]. Drag [1].", "Lift . Drag [1].", &[1]),
            ("Both [1, 7].", "Both [1].", &[1]),
            ("None [0][4] at all", "None  at all", &[]),
            ("Twice [2] and [2]", "Twice [2] and [2]", &[2]),
        ];
        for (text, expected, cited) in cases {
            assert_eq!(shown(&[text]), (expected.to_owned(), cited.to_vec()), "{text}");
        }
    }

    #[test]
    fn each_source_is_cited_once_with_its_place() {
        let mut tracker = CitationTracker::new(vec![source(0), source(1)]);
        assert_eq!(tracker.push("x ["), ("x ".to_owned(), vec![]));
        let (_, cited) = tracker.push("2] y [2] [1]");
        assert_eq!(cited.iter().map(|c| (c.marker, c.span.clone())).collect::<Vec<_>>(), [(2, 10..14), (1, 0..4)]);
        assert!(tracker.push("[1, 2]").1.is_empty());
    }

    proptest! {
        #[test]
        fn cutting_changes_nothing(pieces in proptest::collection::vec("[\\[\\]0-9, éa]{0,6}", 0..12)) {
            let whole = pieces.concat();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(shown(&pieces), shown(&[&whole]));
        }
    }
}
