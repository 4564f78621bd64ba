//! Where sentences end. One linear pass: the Unicode rules look ahead over any run of full stops and spaces, which a text made of
//! those turns into quadratic time, and they see no end in "slipstream . an analysis", as older text collections write.

/// Words before a full stop that end no sentence.
const ABBREVIATIONS: [&str; 18] = [
    "e.g", "i.e", "cf", "fig", "figs", "eq", "eqs", "no", "nos", "vs", "dr", "mr", "mrs", "st", "al", "approx", "sec",
    "vol",
];

/// Byte offsets behind the last mark of each sentence of `text`, ascending; text after the last one has no end.
pub(crate) fn ends(text: &str) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut characters = text.char_indices().peekable();
    while let Some((start, character)) = characters.next() {
        let is_wide = matches!(character, '。' | '！' | '？');
        if !is_wide && !matches!(character, '.' | '!' | '?' | '…') {
            continue;
        }
        let mut end = start + character.len_utf8();
        let mut marks = 1;
        while let Some((offset, next)) = characters.next_if(|(_, next)| is_mark_or_closer(*next)) {
            marks += usize::from(matches!(next, '.' | '!' | '?'));
            end = offset + next.len_utf8();
        }
        let mut rest = text[end..].chars();
        let is_apart = rest.next().is_none_or(char::is_whitespace);
        let is_end =
            is_wide || is_apart && (character != '.' || marks > 1 || is_full_stop(&text[..start], &text[end..]));
        if is_end {
            ends.push(end);
        }
    }
    ends
}

fn is_mark_or_closer(character: char) -> bool {
    matches!(character, '.' | '!' | '?' | '…' | ')' | ']' | '"' | '\'' | '”' | '’' | '»' | '。' | '！' | '？')
}

/// Whether a single full stop between `before` and `after` ends a sentence.
fn is_full_stop(before: &str, after: &str) -> bool {
    if before.ends_with(char::is_whitespace) {
        return true;
    }
    // A bounded look: the next visible character stands within a few spaces, or the text pauses anyway.
    if after.chars().take(8).find(|c| !c.is_whitespace()).is_some_and(char::is_lowercase) {
        return false;
    }
    let tail = &before[before.ceil_char_boundary(before.len().saturating_sub(8))..];
    let word =
        tail.rsplit(|c: char| c.is_whitespace() || matches!(c, '(' | '[' | '"')).next().unwrap_or(tail).to_lowercase();
    let is_initial = word.chars().count() == 1 && word.chars().all(char::is_alphabetic);
    !is_initial && !ABBREVIATIONS.contains(&word.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<&str> {
        let mut start = 0;
        let mut sentences: Vec<&str> = Vec::new();
        for end in ends(text).into_iter().chain([text.len()]) {
            sentences.push(text[start..end].trim());
            start = end;
        }
        sentences.retain(|sentence| !sentence.is_empty());
        sentences
    }

    #[test]
    fn sentences_end_where_a_reader_stops() {
        let cases: [(&str, &[&str]); 8] = [
            ("One. Two! Three? Four", &["One.", "Two!", "Three?", "Four"]),
            ("in a slipstream .   an analysis . the end", &["in a slipstream .", "an analysis .", "the end"]),
            (
                "See e.g. Fig. 3 by J. Smith et al. (1950). Next.",
                &["See e.g. Fig. 3 by J. Smith et al. (1950).", "Next."],
            ),
            ("Pi is 3.14. Run a.b.c now. 5 is next.", &["Pi is 3.14.", "Run a.b.c now.", "5 is next."]),
            ("He said \"stop.\" She (too) left.) Then", &["He said \"stop.\"", "She (too) left.)", "Then"]),
            ("Wait... What?! Yes", &["Wait...", "What?!", "Yes"]),
            ("一。二！three", &["一。", "二！", "three"]),
            ("no end", &["no end"]),
        ];
        for (text, expected) in cases {
            assert_eq!(split(text), expected, "{text}");
        }
    }

    #[test]
    fn a_text_of_full_stops_is_read_in_one_pass() {
        let text = ". ".repeat(2_000_000);
        assert_eq!(ends(&text).len(), 2_000_000);
    }
}
