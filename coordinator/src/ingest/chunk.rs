//! A parsed document to retrievable pieces: as large as the embedder takes in one go, cut where the text itself pauses.
//!
//! Sections are kept apart unless they are too short to stand alone on their page; a section that does not fit is cut at the best break that
//! leaves pieces of good size (paragraph, line, sentence, word, character). A document that fits is one chunk. Time is linear in
//! the text.
//!
//! Invariants of the result: spans ascend, do not overlap, lie on character boundaries, begin and end with a visible
//! character, and together cover all text but white space; what is embedded for a chunk ([`embedding_text`]) counts at
//! most `tokens_max` tokens.

use std::ops::Range;

use cluster_config::error::ErrorKind;
use cluster_config::limits;

use self::atoms::{Atom, atoms_of};
use super::parse::{Parsed, Section};

mod atoms;

/// Raised whenever the same text is cut, embedded or described otherwise: documents cut by an earlier version are indexed again when
/// they are sent again. 2: chunks name their headings.
pub const VERSION: u32 = 2;

/// One retrievable piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextChunk {
    /// Byte range in `Parsed::text`.
    pub span: Range<usize>,
    /// Headings the piece stands under, outermost first.
    pub heading_path: Vec<String>,
    /// Equal to `Parsed::text[span]`, byte by byte.
    pub text: String,
}

/// A section below this is joined to its neighbour where the two fit into one chunk: a heading with one line under it says
/// too little to be found by, and less to be cited for.
const SHORT_SECTION_TOKENS: usize = 64;
/// Most bytes of one chunk, whatever its tokens: a run of letters without a space counts as a single unknown token.
const CHUNK_BYTES_MAX: usize = 8 * 1024;
/// Most bytes of the title and headings put before a chunk for embedding. At one token a byte, the worst case, it leaves room.
const PREFIX_BYTES_MAX: usize = 160;
/// Least `tokens_max` with which every document can be cut: the longest prefix, and a character with its special tokens.
pub const TOKENS_MAX_LEAST: usize = PREFIX_BYTES_MAX + 16;

const _: () = assert!(CHUNK_BYTES_MAX <= limits::CHUNK_TEXT_BYTES_MAX);

/// Cuts a document into chunks whose [`embedding_text`] has at most `tokens_max` tokens by `count_tokens` (special tokens included).
///
/// A smaller `tokens_max` than [`TOKENS_MAX_LEAST`] counts as that. Blocking: the text is tokenized a few times over; call it
/// off the reactor. Errors: `TooManyChunks`.
pub fn chunk(
    parsed: &Parsed,
    tokens_max: usize,
    count_tokens: &dyn Fn(&str) -> usize,
) -> Result<Vec<TextChunk>, ChunkError> {
    let cutter = Cutter { parsed, count: Sizer { count_tokens }, tokens_max: tokens_max.max(TOKENS_MAX_LEAST) };
    let mut chunks = Vec::new();
    for section in cutter.joined_sections() {
        cutter.cut(&section, &mut chunks)?;
    }
    Ok(chunks)
}

/// What is embedded for a chunk: its text, after the document's title and the headings above it, as far as the chunk does
/// not itself begin with them. So a piece from the middle of a document is found by what the document is about, and a
/// short document that opens with its title is embedded as it is.
pub fn embedding_text(title: Option<&str>, chunk: &TextChunk) -> String {
    let prefix = prefix(title, &chunk.heading_path, &chunk.text);
    if prefix.is_empty() { chunk.text.clone() } else { format!("{prefix}\n{}", chunk.text) }
}

fn prefix(title: Option<&str>, heading_path: &[String], text: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in title.into_iter().chain(heading_path.iter().map(String::as_str)) {
        if !parts.contains(&part) && !begins_with(text, part) && !is_headed(text, part) {
            parts.push(part);
        }
    }
    let mut prefix = parts.join(" > ");
    if prefix.len() > PREFIX_BYTES_MAX {
        let end = prefix.floor_char_boundary(PREFIX_BYTES_MAX);
        // A whole last word, if there is a space to cut at.
        prefix.truncate(prefix[..end].rfind(char::is_whitespace).unwrap_or(end));
    }
    prefix
}

/// Whether `text` begins with the words of `part`, however they are spaced and whatever heading marks stand before them.
fn begins_with(text: &str, part: &str) -> bool {
    let mut words = text.trim_start_matches(|c: char| c == '#' || c.is_whitespace()).split_whitespace();
    let mut begun = false;
    for expected in part.split_whitespace() {
        if words.next() != Some(expected) {
            return false;
        }
        begun = true;
    }
    begun
}

/// More tokens than any limit.
const OVERSIZE: usize = 1 << 30;

/// Whether one of the lines that `text` opens with is `part`, as where a section begins with several headings.
fn is_headed(text: &str, part: &str) -> bool {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(limits::HEADING_DEPTH_MAX);
    lines.any(|line| {
        line.len() < limits::TITLE_BYTES_MAX
            && begins_with(line, part)
            && begins_with(part, line.trim_start_matches(['#', ' ']))
    })
}

struct Cutter<'a> {
    parsed: &'a Parsed,
    count: Sizer<'a>,
    tokens_max: usize,
}

/// Counts tokens, but not of text that is too long in bytes anyway.
struct Sizer<'a> {
    count_tokens: &'a dyn Fn(&str) -> usize,
}

impl Sizer<'_> {
    fn size(&self, text: &str) -> usize {
        if text.len() > CHUNK_BYTES_MAX { OVERSIZE } else { (self.count_tokens)(text) }
    }
}

impl Cutter<'_> {
    fn text(&self, span: &Range<usize>) -> &str {
        &self.parsed.text[span.clone()]
    }

    /// Sections with the short ones joined to what precedes or follows under a common heading.
    fn joined_sections(&self) -> Vec<Section> {
        let mut joined: Vec<(Section, usize)> = Vec::new();
        for section in &self.parsed.sections {
            let tokens = self.count.size(self.text(&section.span));
            if let Some((last, last_tokens)) = joined.last_mut()
                && self.is_bare_heading(last)
                && section.heading_path.starts_with(&last.heading_path)
            {
                *last = Section { span: last.span.start..section.span.end, ..section.clone() };
                *last_tokens = tokens;
                continue;
            }
            if let Some((last, last_tokens)) = joined.last_mut()
                && tokens.min(*last_tokens) < SHORT_SECTION_TOKENS
                && let Some(both) = self.join(last, section)
            {
                *last_tokens = self.count.size(self.text(&both.span));
                *last = both;
                continue;
            }
            joined.push((section.clone(), tokens));
        }
        joined.into_iter().map(|(section, _)| section).collect()
    }

    /// A heading without text of its own introduces the section below it.
    fn is_bare_heading(&self, section: &Section) -> bool {
        !section.heading_path.is_empty() && self.text(&section.span).trim().lines().count() == 1
    }

    fn join(&self, first: &Section, second: &Section) -> Option<Section> {
        let common = first.heading_path.iter().zip(&second.heading_path).take_while(|(a, b)| a == b).count();
        if common == 0 && !first.heading_path.is_empty() {
            return None;
        }
        if self.parsed.page_at(first.span.start) != self.parsed.page_at(second.span.start) {
            return None;
        }
        let both =
            Section { heading_path: first.heading_path[..common].to_vec(), span: first.span.start..second.span.end };
        self.fits(&both).then_some(both)
    }

    fn fits(&self, section: &Section) -> bool {
        let text = self.text(&section.span).trim();
        if text.len() > CHUNK_BYTES_MAX {
            return false;
        }
        let chunk =
            TextChunk { span: section.span.clone(), heading_path: section.heading_path.clone(), text: text.to_owned() };
        (self.count.count_tokens)(&embedding_text(self.parsed.title.as_deref(), &chunk)) <= self.tokens_max
    }

    fn cut(&self, section: &Section, chunks: &mut Vec<TextChunk>) -> Result<(), ChunkError> {
        if self.fits(section) {
            let text = self.text(&section.span);
            let start = section.span.start + (text.len() - text.trim_start().len());
            return self.push(section, start, text.trim(), chunks);
        }
        // Whatever a piece begins with, the whole prefix leaves it this much.
        let prefix_tokens = (self.count.count_tokens)(&prefix(self.parsed.title.as_deref(), &section.heading_path, ""));
        let tokens_max = self.tokens_max - prefix_tokens.min(PREFIX_BYTES_MAX);
        let atoms = atoms_of(self.text(&section.span), tokens_max / 2, self.count.count_tokens);
        let mut rest = &atoms[..];
        while let [first, ..] = rest {
            let taken = self.take(section, rest, tokens_max);
            let text =
                self.text(&(section.span.start + first.span.start..section.span.start + rest[taken - 1].span.end));
            self.push(section, section.span.start + first.span.start, text, chunks)?;
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// How many of `atoms` (at least one) make the next piece: as many as fit, given back to the best break in the second half.
    fn take(&self, section: &Section, atoms: &[Atom], tokens_max: usize) -> usize {
        let text = |count: usize| {
            let span = atoms[0].span.start..atoms[count - 1].span.end;
            self.text(&(section.span.start + span.start..section.span.start + span.end))
        };
        // Tokens of parts add up to those of the whole where parts are cut at spaces; elsewhere the check below decides.
        let mut tokens = self.count.size("");
        let mut fitting = 0;
        for atom in atoms {
            tokens += atom.tokens;
            if tokens > tokens_max || atom.span.end - atoms[0].span.start > CHUNK_BYTES_MAX {
                break;
            }
            fitting += 1;
        }
        let mut fitting = fitting.max(1);
        while fitting > 1 && self.count.size(text(fitting)) > tokens_max {
            fitting -= 1;
        }
        if fitting == atoms.len() {
            return fitting;
        }
        let half = text(fitting).len() / 2;
        let best = (1..=fitting)
            .filter(|count| text(*count).len() >= half)
            .max_by_key(|count| (atoms[count - 1].ends, *count));
        best.unwrap_or(fitting)
    }

    fn push(&self, section: &Section, start: usize, text: &str, chunks: &mut Vec<TextChunk>) -> Result<(), ChunkError> {
        if chunks.len() == limits::CHUNKS_PER_DOCUMENT_MAX {
            return Err(ChunkError::TooManyChunks { chunks_max: limits::CHUNKS_PER_DOCUMENT_MAX });
        }
        chunks.push(TextChunk {
            span: start..start + text.len(),
            heading_path: section.heading_path.clone(),
            text: text.to_owned(),
        });
        Ok(())
    }
}

/// Why a document was not cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// More pieces than a document may have.
    #[error("the document makes more than {chunks_max} chunks; split it")]
    TooManyChunks {
        /// `limits::CHUNKS_PER_DOCUMENT_MAX`.
        chunks_max: usize,
    },
}

impl ChunkError {
    /// The kind callers act on.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::TooLarge
    }
}

#[cfg(test)]
mod tests;
