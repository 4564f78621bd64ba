use proptest::prelude::*;

use super::super::parse;
use super::*;

/// Words and punctuation marks, and the two special tokens: what the real tokenizer does without its vocabulary.
fn count(text: &str) -> usize {
    let mut tokens = 2;
    let mut in_word = false;
    for character in text.chars() {
        let is_word = character.is_alphanumeric();
        let goes_on = is_word && in_word;
        if !goes_on && !character.is_whitespace() {
            tokens += 1;
        }
        in_word = is_word;
    }
    tokens
}

fn sentences(words: usize) -> String {
    let word = |n: usize| match n % 12 {
        0 => format!("W{n} "),
        11 => format!("w{n}. "),
        _ => format!("w{n} "),
    };
    (0..words).map(word).collect()
}

fn cut(parsed: &Parsed, tokens_max: usize) -> Vec<TextChunk> {
    let chunks = chunk(parsed, tokens_max, &count).expect("within bounds");
    check(parsed, &chunks, tokens_max);
    chunks
}

fn check(parsed: &Parsed, chunks: &[TextChunk], tokens_max: usize) {
    let mut end = 0;
    let mut uncovered = String::new();
    for chunk in chunks {
        assert!(chunk.span.start >= end, "spans ascend and do not overlap");
        assert_eq!(parsed.text.get(chunk.span.clone()), Some(chunk.text.as_str()), "the text is the slice");
        assert_eq!(chunk.text.trim(), chunk.text);
        assert!(!chunk.text.is_empty() && chunk.text.len() <= CHUNK_BYTES_MAX);
        let tokens = count(&embedding_text(parsed.title.as_deref(), chunk));
        assert!(tokens <= tokens_max, "{tokens} tokens, at most {tokens_max}");
        uncovered.push_str(&parsed.text[end..chunk.span.start]);
        end = chunk.span.end;
    }
    uncovered.push_str(&parsed.text[end..]);
    assert!(uncovered.trim().is_empty(), "{uncovered:?} is in no chunk");
}

#[test]
fn a_document_that_fits_is_one_chunk_and_is_embedded_as_it_is() {
    let text = format!("  wing in a slipstream .  {}\n", sentences(200));
    let parsed = Parsed::plain(Some("wing in a\nslipstream .".into()), text);
    let chunks = cut(&parsed, 256);
    assert_eq!(chunks.len(), 1);
    assert_eq!(embedding_text(parsed.title.as_deref(), &chunks[0]), parsed.text.trim());
}

#[test]
fn a_piece_from_the_middle_carries_title_and_headings_within_the_limit() {
    let source = format!("# Manual\n\n## Wings\n\n{}", sentences(900));
    let parsed = parse::parse(source.as_bytes(), "text/markdown", "").expect("parses");
    let chunks = cut(&parsed, 256);
    assert!(chunks.len() >= 4, "{}", chunks.len());
    let texts: Vec<String> = chunks.iter().map(|chunk| embedding_text(parsed.title.as_deref(), chunk)).collect();
    assert!(texts[0].starts_with("# Manual"), "{}", texts[0]);
    assert!(texts[0].contains("w100 "), "a heading does not stand alone: {}", texts[0]);
    assert!(texts.iter().skip(1).all(|text| text.starts_with("Manual > Wings\nW")), "{texts:?}");
    assert!(chunks.iter().all(|chunk| chunk.text.ends_with('.')), "cut after a sentence");
}

#[test]
fn the_title_is_put_before_a_body_that_does_not_begin_with_it() {
    let parsed = Parsed::plain(Some("Heat transfer".into()), "Heat is moved.".into());
    assert_eq!(embedding_text(parsed.title.as_deref(), &cut(&parsed, 256)[0]), "Heat transfer\nHeat is moved.");
    assert!(begins_with("## Heat\n transfer now", "Heat transfer"));
    assert!(!begins_with("Heat", "Heat transfer") && !begins_with("Heat", ""));
}

#[test]
fn short_sections_are_joined_under_their_common_heading_and_long_ones_kept_apart() {
    let long = sentences(100);
    let source = format!("# A\nx\n## B\ny\n## C\n{long}\n## D\n{long}\n# E\nz\n");
    let parsed = parse::parse(source.as_bytes(), "text/markdown", "").expect("parses");
    let chunks = cut(&parsed, 256);
    let heads: Vec<(String, &str)> =
        chunks.iter().map(|c| (c.heading_path.join(" > "), c.text.lines().next().expect("a line"))).collect();
    assert_eq!(heads, [("A".into(), "# A"), ("A > D".into(), "## D"), ("E".into(), "# E")]);
}

#[test]
fn text_without_a_break_is_cut_all_the_same() {
    let parsed = Parsed::plain(None, "é".repeat(3 * CHUNK_BYTES_MAX));
    assert!(cut(&parsed, 256).len() >= 6);
    let commas = Parsed::plain(Some("t,".repeat(400)), ",".repeat(2000));
    assert!(cut(&commas, 256).len() >= 20);
}

#[test]
fn too_many_chunks_are_an_error() {
    let parsed = Parsed::plain(None, "a, ".repeat(limits::CHUNKS_PER_DOCUMENT_MAX * TOKENS_MAX_LEAST));
    assert_eq!(chunk(&parsed, 1, &count).expect_err("too long").kind(), ErrorKind::TooLarge);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_document_is_cut_within_the_rules(
        source in "(# |## |### |\n|\n\n|word |sentence\\. |é|,|!\\?|\u{4e2d}\u{6587}|a\u{301}|\t|`code`|x{40}){0,400}",
        title in proptest::option::of("[a-z ,é]{0,300}"),
        tokens_max in TOKENS_MAX_LEAST..400_usize,
    ) {
        if let Ok(mut parsed) = parse::parse(source.as_bytes(), "text/markdown", "") {
            if let Some(title) = title {
                parsed.title = Some(title);
            }
            cut(&parsed, tokens_max);
        }
    }
}
