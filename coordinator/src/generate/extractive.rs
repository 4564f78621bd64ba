//! An answer made of the sources' own sentences, while no language model is configured. Honest by construction: every word of
//! it is a quotation, each followed by its number.
//!
//! A sentence's worth: the rare words it shares with the question (over the sentences at hand), a little for the source's
//! own rank and for standing early. No embedding: the answer costs microseconds per source.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

use super::{Citation, Source};
use crate::sentences;

/// Label of such answers in the API.
pub const GENERATOR: &str = "extractive";

/// Sentences shorter than this many words are headings and fragments.
const SENTENCE_WORDS_MIN: usize = 4;
/// A longer one is cut off at a word; prose has none, tables do.
const SENTENCE_BYTES_MAX: usize = 600;
/// Share of its words that a sentence may have in common with one already chosen.
const REDUNDANT: f64 = 0.6;
/// Weight of the source's rank and of the sentence's place against the words shared with the question.
const RANK_WEIGHT: f64 = 0.35;
const PLACE_WEIGHT: f64 = 0.1;

/// A quotation with its number.
#[derive(Clone, Debug, PartialEq)]
pub struct Quote {
    /// Equal to the source's text at the citation's span.
    pub text: String,
    /// Where it stands.
    pub citation: Citation,
}

/// An extractive answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ExtractiveAnswer {
    /// The sentences, each followed by ` [n]`. Empty if the sources have no sentence.
    pub text: String,
    /// The same, one by one.
    pub quotes: Vec<Quote>,
}

/// The at most `sentences_max` best sentences of `sources` for `question`, best first.
///
/// `sources` in the order of [`super::prompt::number`]: the number of each is its position, from 1.
pub fn answer(question: &str, sources: &[Source], sentences_max: usize) -> ExtractiveAnswer {
    let asked = terms(question);
    let sentences: Vec<Sentence<'_>> =
        sources.iter().enumerate().flat_map(|(position, source)| sentences_of(position, source)).collect();
    let rarity = rarity_of(&sentences);
    let best_source_score = sources.iter().map(|source| source.score).fold(f32::MIN_POSITIVE, f32::max);
    let asked_weight: f64 = asked.iter().filter_map(|term| rarity.get(term)).sum();

    let mut ranked: Vec<(f64, &Sentence<'_>)> = sentences
        .iter()
        .map(|sentence| {
            let shared: f64 = sentence.terms.intersection(&asked).filter_map(|term| rarity.get(term)).sum();
            let overlap = if asked_weight > 0.0 { shared / asked_weight } else { 0.0 };
            let rank = f64::from(sources[sentence.source].score.max(0.0) / best_source_score);
            let place = 1.0 / (1.0 + sentence.number as f64);
            (overlap + RANK_WEIGHT * rank + PLACE_WEIGHT * place, sentence)
        })
        .collect();
    ranked
        .sort_by(|(a, x), (b, y)| b.total_cmp(a).then_with(|| (x.source, x.span.start).cmp(&(y.source, y.span.start))));

    let mut chosen: Vec<&Sentence<'_>> = Vec::new();
    for (_, sentence) in ranked {
        // The first is the best there is; further ones must answer something.
        let is_relevant = chosen.is_empty() || !sentence.terms.is_disjoint(&asked);
        if chosen.len() < sentences_max && is_relevant && chosen.iter().all(|other| !sentence.repeats(other)) {
            chosen.push(sentence);
        }
    }
    let quotes: Vec<Quote> = chosen.into_iter().map(|sentence| sentence.quote(&sources[sentence.source])).collect();
    let text =
        quotes.iter().map(|quote| format!("{} [{}]", quote.text, quote.citation.marker)).collect::<Vec<_>>().join(" ");
    ExtractiveAnswer { text, quotes }
}

struct Sentence<'a> {
    /// Position of its source.
    source: usize,
    /// Position among the source's sentences.
    number: usize,
    /// Byte range in the source's text.
    span: Range<usize>,
    text: &'a str,
    terms: BTreeSet<String>,
}

impl Sentence<'_> {
    fn repeats(&self, other: &Sentence<'_>) -> bool {
        let shared = self.terms.intersection(&other.terms).count() as f64;
        shared >= REDUNDANT * self.terms.len().min(other.terms.len()).max(1) as f64
    }

    fn quote(&self, source: &Source) -> Quote {
        let offset = source.span.start;
        let span = offset + self.span.start as u64..offset + self.span.end as u64;
        Quote { text: self.text.to_owned(), citation: Citation::of(source, self.source as u32 + 1, span) }
    }
}

fn sentences_of(position: usize, source: &Source) -> Vec<Sentence<'_>> {
    sentence_spans(&source.text)
        .into_iter()
        .map(|span| (span.clone(), &source.text[span]))
        .filter(|(_, text)| text.unicode_words().nth(SENTENCE_WORDS_MIN - 1).is_some())
        .enumerate()
        .map(|(number, (span, text))| Sentence { source: position, number, span, text, terms: terms(text) })
        .collect()
}

/// Sentences of a text, trimmed. Blocks (paragraphs, list items, table rows) are kept apart; headings, rules and code are none.
fn sentence_spans(text: &str) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    for block in blocks(text) {
        let mut start = block.start;
        for end in sentences::ends(&text[block.clone()]).into_iter().map(|end| block.start + end).chain([block.end]) {
            spans.push(start..end);
            start = end;
        }
    }
    spans.into_iter().filter_map(|span| trimmed(text, span)).collect()
}

fn trimmed(text: &str, span: Range<usize>) -> Option<Range<usize>> {
    let raw = &text[span.clone()];
    let start = span.start + (raw.len() - raw.trim_start().len());
    let mut end = start + raw.trim().len();
    if end - start > SENTENCE_BYTES_MAX {
        let limit = text.floor_char_boundary(start + SENTENCE_BYTES_MAX);
        end = text[start..limit].rfind(char::is_whitespace).map_or(limit, |space| start + space);
        end = start + text[start..end].trim_end().len();
    }
    (start < end).then_some(start..end)
}

/// Byte ranges of runs of lines that read on: ended by an empty line, and each list item, table row and heading by itself.
fn blocks(text: &str) -> Vec<Range<usize>> {
    let mut blocks: Vec<Range<usize>> = Vec::new();
    let mut open: Option<Range<usize>> = None;
    let mut in_code = false;
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let span = offset..offset + line.len();
        offset = span.end;
        let trimmed = line.trim();
        let is_fence = trimmed.starts_with("```") || trimmed.starts_with("~~~");
        if is_fence {
            in_code = !in_code;
        }
        let is_rule =
            !trimmed.is_empty() && trimmed.chars().all(|c| matches!(c, '-' | '=' | '*' | '_' | '|' | ':' | ' '));
        if trimmed.is_empty() || is_fence || in_code || is_rule || trimmed.starts_with('#') {
            blocks.extend(open.take());
        } else if item_mark(trimmed) > 0 {
            blocks.extend(open.take());
            let start = span.start + (line.len() - line.trim_start().len()) + item_mark(trimmed);
            open = Some(start..span.end);
        } else {
            match &mut open {
                Some(block) => block.end = span.end,
                None => open = Some(span),
            }
        }
    }
    blocks.extend(open);
    blocks
}

/// Bytes of the mark that begins a list item or table row: `- `, `* `, `+ `, `1. `, `| `, `> `. 0 without one.
fn item_mark(line: &str) -> usize {
    let digits = line.bytes().take_while(u8::is_ascii_digit).count();
    if digits > 0 && digits < 4 && (line[digits..].starts_with(". ") || line[digits..].starts_with(") ")) {
        return digits + 2;
    }
    ["- ", "* ", "+ ", "| ", "> "].iter().find(|mark| line.starts_with(**mark)).map_or(0, |mark| mark.len())
}

/// How rare each term is over the sentences, as in BM25.
fn rarity_of(sentences: &[Sentence<'_>]) -> BTreeMap<String, f64> {
    let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
    for term in sentences.iter().flat_map(|sentence| &sentence.terms) {
        *counts.entry(term).or_default() += 1;
    }
    let total = sentences.len() as f64;
    let rarity = |count: usize| (1.0 + (total - count as f64 + 0.5) / (count as f64 + 0.5)).ln();
    counts.into_iter().map(|(term, count)| (term.clone(), rarity(count))).collect()
}

/// Words that carry meaning, in lower case, without the endings that vary most.
fn terms(text: &str) -> BTreeSet<String> {
    text.unicode_words().map(str::to_lowercase).filter(|word| !STOP_WORDS.contains(&word.as_str())).map(stem).collect()
}

fn stem(mut word: String) -> String {
    const ENDINGS: [(&str, &str); 6] = [("ies", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")];
    for (ending, replacement) in ENDINGS {
        let is_word_left = word.len() >= ending.len() + 3 && word.is_ascii();
        if is_word_left && word.ends_with(ending) && !word.ends_with("ss") {
            word.truncate(word.len() - ending.len());
            word.push_str(replacement);
            break;
        }
    }
    // "starting" and "starts" meet "started", "stored" meets "store".
    if word.len() > 4 && word.ends_with('e') {
        word.pop();
    }
    word
}

const STOP_WORDS: [&str; 64] = [
    "a", "about", "an", "and", "any", "are", "as", "at", "be", "been", "but", "by", "can", "could", "did", "do",
    "does", "for", "from", "had", "has", "have", "how", "i", "if", "in", "into", "is", "it", "its", "may", "me", "my",
    "not", "of", "on", "or", "should", "so", "such", "than", "that", "the", "their", "them", "then", "there", "these",
    "they", "this", "to", "was", "we", "were", "what", "when", "where", "which", "who", "why", "will", "with", "would",
    "you",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source(document: &str, start: u64, score: f32, text: &str) -> Source {
        Source {
            chunk_id: format!("{document}#0"),
            document_id: document.into(),
            title: None,
            text: text.into(),
            span: start..start + text.len() as u64,
            score,
            page: None,
            headings: Vec::new(),
        }
    }

    #[test]
    fn the_sentence_that_answers_is_quoted_with_its_place() {
        let text = "# Nodes\n\nA cluster has several nodes. To add a node, run `susui node add` on any machine. It joins at once.\n";
        let sources =
            [source("a", 0, 0.6, "Backups are described elsewhere in this manual."), source("b", 100, 0.5, text)];
        let answer = answer("How do I add a node?", &sources, 1);
        let quote = &answer.quotes[0];
        assert_eq!(quote.text, "To add a node, run `susui node add` on any machine.");
        assert_eq!(answer.text, format!("{} [2]", quote.text));
        let start = quote.citation.span.start as usize - 100;
        assert_eq!(&text[start..start + quote.text.len()], quote.text);
    }

    #[test]
    fn repetition_and_irrelevance_are_left_out() {
        let sources = [
            source("a", 0, 0.9, "The wing stalls at high angles of attack. Lunch is served at noon in the hall."),
            source("b", 0, 0.8, "At high angles of attack the wing stalls. A stall on the wing reduces lift a lot."),
        ];
        let answer = answer("When does a wing stall?", &sources, 5);
        let texts: Vec<&str> = answer.quotes.iter().map(|quote| quote.text.as_str()).collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts.contains(&"A stall on the wing reduces lift a lot."), "{texts:?}");
    }

    #[test]
    fn sentences_of_markdown_and_of_spaced_full_stops() {
        let spans = |text: &'static str| sentence_spans(text).into_iter().map(|span| &text[span]).collect::<Vec<_>>();
        assert_eq!(spans("one two .   three four .\nfive six"), ["one two .", "three four .", "five six"]);
        assert_eq!(
            spans(
                "# Head\nlead text\n\n- item one\n  goes on\n- item two\n\n```\ncode here\n```\n1. first. Second!\n| a | b |\n|---|---|\n"
            ),
            ["lead text", "item one\n  goes on", "item two", "first.", "Second!", "a | b |"]
        );
    }

    #[test]
    fn nothing_to_quote_is_an_empty_answer() {
        for text in ["", "# Heading only", "too short", "```\nlet a = code that goes on;\n```"] {
            assert_eq!(answer("q", &[source("a", 0, 1.0, text)], 3).text, "", "{text:?}");
        }
        let unrelated = answer("", &[source("a", 0, 0.0, "Four words are enough here.")], 3);
        assert_eq!(unrelated.text, "Four words are enough here. [1]");
    }

    #[test]
    fn words_meet_over_their_endings() {
        for (a, b) in [("starting", "started"), ("replicas", "replica"), ("queries", "query"), ("stored", "store")] {
            assert_eq!(stem(a.into()), stem(b.into()), "{a} {b}");
        }
        assert_ne!(stem("class".into()), stem("clas".into()));
    }

    proptest! {
        #[test]
        fn every_quotation_is_byte_equal_to_its_source(
            texts in proptest::collection::vec("(word |other |É |\\. |! |\n|\n\n|# |- |```|\\| | \\. |x{30}){0,80}", 1..5),
            question in "(word |other |É ){0,3}",
            start in 0_u64..1000,
        ) {
            let sources: Vec<Source> = texts.iter().map(|text| source("d", start, 0.5, text)).collect();
            let answer = answer(&question, &sources, 4);
            prop_assert!(answer.quotes.len() <= 4);
            for quote in &answer.quotes {
                let text = &texts[quote.citation.marker as usize - 1];
                let span = (quote.citation.span.start - start) as usize..(quote.citation.span.end - start) as usize;
                prop_assert_eq!(text.get(span), Some(quote.text.as_str()));
                prop_assert!(quote.text.len() <= SENTENCE_BYTES_MAX && quote.text.trim() == quote.text);
            }
        }
    }
}
