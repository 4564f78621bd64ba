//! A text as the smallest parts that chunks are packed from: sentences, and words or runs of characters where a sentence is too long.

use std::ops::Range;

use crate::sentences;

/// Longest word kept whole. A longer run without a space is no word.
const WORD_BYTES_MAX: usize = 64;

/// A part that is not cut further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Atom {
    /// Byte range, without white space at either end.
    pub(super) span: Range<usize>,
    /// Tokens it adds to a text.
    pub(super) tokens: usize,
    /// The pause behind it.
    pub(super) ends: Break,
}

/// How good a place to cut is, the best last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Break {
    /// Within a word.
    Character,
    Word,
    Line,
    Sentence,
    Paragraph,
}

/// The atoms of `text`, in order; together they cover all of it but white space. Each has at most `tokens_max` tokens by
/// `count_tokens` (special tokens included there, not here), unless a single word has more.
pub(super) fn atoms_of(text: &str, tokens_max: usize, count_tokens: &dyn Fn(&str) -> usize) -> Vec<Atom> {
    let special = count_tokens("");
    let count = |span: &Range<usize>| count_tokens(&text[span.clone()]).saturating_sub(special);
    let mut atoms = Vec::new();
    for paragraph in paragraphs(text) {
        for (span, ends) in sentences_and_lines(text, paragraph) {
            // Counting a sentence of any length would cost more than cutting it.
            if span.len() <= WORD_BYTES_MAX * tokens_max {
                let tokens = count(&span);
                if tokens <= tokens_max {
                    atoms.push(Atom { span, tokens, ends });
                    continue;
                }
            }
            for (word, inner) in words(text, span) {
                atoms.push(Atom { tokens: count(&word), span: word, ends: inner });
            }
            if let Some(last) = atoms.last_mut() {
                last.ends = ends;
            }
        }
    }
    atoms
}

/// Runs of lines between empty lines.
fn paragraphs(text: &str) -> Vec<Range<usize>> {
    let mut paragraphs: Vec<Range<usize>> = Vec::new();
    let mut offset = 0;
    let mut is_open = false;
    for line in text.split_inclusive('\n') {
        let span = offset..offset + line.len();
        offset = span.end;
        match paragraphs.last_mut() {
            _ if line.trim().is_empty() => is_open = false,
            Some(last) if is_open => last.end = span.end,
            _ => {
                paragraphs.push(span);
                is_open = true;
            }
        }
    }
    paragraphs
}

/// The sentences and lines of a paragraph, trimmed. The last one's pause is the paragraph's.
fn sentences_and_lines(text: &str, paragraph: Range<usize>) -> Vec<(Range<usize>, Break)> {
    let part = &text[paragraph.clone()];
    let mut cuts: Vec<(usize, Break)> = sentences::ends(part).into_iter().map(|end| (end, Break::Sentence)).collect();
    cuts.extend(part.match_indices('\n').map(|(newline, _)| (newline, Break::Line)));
    cuts.push((part.len(), Break::Paragraph));
    cuts.sort_unstable();
    let mut pieces: Vec<(Range<usize>, Break)> = Vec::with_capacity(cuts.len());
    let mut start = 0;
    for (end, ends) in cuts {
        match (trimmed(text, paragraph.start + start..paragraph.start + end), pieces.last_mut()) {
            (Some(span), _) => pieces.push((span, ends)),
            // Nothing visible in between: one place, as good as its better name.
            (None, Some((_, before))) => *before = (*before).max(ends),
            (None, None) => {}
        }
        start = end;
    }
    pieces
}

fn words(text: &str, span: Range<usize>) -> Vec<(Range<usize>, Break)> {
    let mut words = Vec::new();
    let offset = span.start;
    let mut start = 0;
    let part = &text[span];
    for word in part.split_inclusive(char::is_whitespace) {
        if let Some(visible) = trimmed(text, offset + start..offset + start + word.len()) {
            let mut from = visible.start;
            while visible.end - from > WORD_BYTES_MAX {
                let to = text.floor_char_boundary(from + WORD_BYTES_MAX);
                words.push((from..to, Break::Character));
                from = to;
            }
            words.push((from..visible.end, Break::Word));
        }
        start += word.len();
    }
    words
}

fn trimmed(text: &str, span: Range<usize>) -> Option<Range<usize>> {
    let part = &text[span.clone()];
    let start = span.start + (part.len() - part.trim_start().len());
    let end = start + part.trim().len();
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atoms_carry_the_pause_behind_them() {
        let count = |text: &str| text.split_whitespace().count() + 2;
        let text = "# Head\n\nOne two. Three\nfour.\n \n a b c d e f ";
        let atoms = atoms_of(text, 4, &count);
        let found: Vec<(&str, usize, Break)> =
            atoms.iter().map(|a| (&text[a.span.clone()], a.tokens, a.ends)).collect();
        assert_eq!(
            found,
            [
                ("# Head", 2, Break::Paragraph),
                ("One two.", 2, Break::Sentence),
                ("Three", 1, Break::Line),
                ("four.", 1, Break::Paragraph),
                ("a", 1, Break::Word),
                ("b", 1, Break::Word),
                ("c", 1, Break::Word),
                ("d", 1, Break::Word),
                ("e", 1, Break::Word),
                ("f", 1, Break::Paragraph),
            ]
        );
        let long = "é".repeat(100);
        let lengths: Vec<usize> = atoms_of(&long, 1, &|text| text.len()).iter().map(|atom| atom.span.len()).collect();
        assert_eq!(lengths, [64, 64, 64, 8]);
    }
}
