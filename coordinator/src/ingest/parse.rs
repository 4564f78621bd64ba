//! Uploaded bytes to text. The text that comes out is the document from here on: it is stored, chunked, cited, and every
//! span anywhere in the product is a byte range of it.
//!
//! Plain text and Markdown stay as they were sent (Markdown without its front matter); HTML becomes the text a reader sees.
//! Cost is linear in the bytes sent for every input; nothing here recurses.

mod encoding;
mod html;
mod markdown;

use std::ops::Range;

use cluster_config::error::ErrorKind;
use cluster_config::limits;

/// A document as text with its structure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// From the document itself (`<title>`, first top heading); `None` where it names none.
    pub title: Option<String>,
    /// The whole text.
    pub text: String,
    /// In order, not overlapping, ranges of `text` on character boundaries; together they cover all of it but white space.
    pub sections: Vec<Section>,
}

/// A stretch of text under one heading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Headings from the outermost to the section's own; empty before the first heading.
    pub heading_path: Vec<String>,
    /// Byte range in `Parsed::text`, the heading's own line included.
    pub span: Range<usize>,
}

impl Parsed {
    /// Text that was given as text: one section, no headings.
    pub fn plain(title: Option<String>, text: String) -> Self {
        let sections = if text.trim().is_empty() {
            Vec::new()
        } else {
            vec![Section { heading_path: Vec::new(), span: 0..text.len() }]
        };
        Self { title: title.filter(|title| !title.trim().is_empty()), text, sections }
    }
}

/// A format we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `text/plain`
    Plain,
    /// `text/markdown`
    Markdown,
    /// `text/html`
    Html,
}

impl Format {
    /// By media type, where it says something; else by the file name's ending; else by the first bytes (`<!doctype`, `<html`),
    /// plain text being what is left.
    ///
    /// Errors: `UnsupportedMedia` for a declared type or a file ending that we know not to read.
    pub fn detect(bytes: &[u8], media_type: Option<&str>, file_name: Option<&str>) -> Result<Self, ParseError> {
        let unsupported = |found: &str| ParseError::UnsupportedMedia { found: found.chars().take(80).collect() };
        let essence = media_type.map(|text| text.split(';').next().unwrap_or("").trim().to_ascii_lowercase());
        match essence.as_deref() {
            Some("text/markdown" | "text/x-markdown") => return Ok(Self::Markdown),
            Some("text/html" | "application/xhtml+xml") => return Ok(Self::Html),
            // What clients send for files whose type they do not know: the name decides.
            None | Some("" | "text/plain" | "application/octet-stream" | "multipart/form-data") => {}
            Some(other) => return Err(unsupported(other)),
        }
        let ending = file_name.and_then(|name| name.rsplit_once('.')).map(|(_, ending)| ending.to_ascii_lowercase());
        match ending.as_deref() {
            Some("md" | "markdown" | "mdown") => return Ok(Self::Markdown),
            Some("html" | "htm" | "xhtml") => return Ok(Self::Html),
            Some("txt" | "text" | "log" | "rst" | "adoc") => return Ok(Self::Plain),
            Some(other) if UNREADABLE_ENDINGS.contains(&other) => return Err(unsupported(other)),
            _ => {}
        }
        if essence.as_deref() == Some("text/plain") {
            return Ok(Self::Plain);
        }
        let start = bytes.trim_ascii_start();
        let begins_with = |word: &[u8]| start.get(..word.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(word));
        Ok(if begins_with(b"<!doctype html") || begins_with(b"<html") { Self::Html } else { Self::Plain })
    }
}

/// Endings of formats people try. Naming them beats calling their bytes bad text.
const UNREADABLE_ENDINGS: [&str; 16] = [
    "pdf", "doc", "docx", "odt", "ppt", "pptx", "xls", "xlsx", "epub", "zip", "gz", "png", "jpg", "jpeg", "gif", "mp3",
];

/// Reads an uploaded document. Blocking: about a second for the largest; call it off the reactor.
///
/// Errors: `TooLarge`, `UnsupportedMedia`, `Encoding`, `Empty`.
pub fn parse(bytes: &[u8], media_type: Option<&str>, file_name: Option<&str>) -> Result<Parsed, ParseError> {
    if bytes.len() > limits::DOCUMENT_BYTES_MAX {
        return Err(ParseError::TooLarge { bytes: bytes.len(), bytes_max: limits::DOCUMENT_BYTES_MAX });
    }
    let format = Format::detect(bytes, media_type, file_name)?;
    let text = encoding::decode(bytes, media_type)?;
    let parsed = match format {
        Format::Plain => Parsed::plain(None, text),
        Format::Markdown => markdown::parse(text),
        Format::Html => html::parse(&text),
    };
    if parsed.sections.is_empty() {
        return Err(ParseError::Empty);
    }
    Ok(parsed)
}

/// Headings open at a place of the text, by level.
#[derive(Default)]
struct HeadingPath {
    open: Vec<(u8, String)>,
}

impl HeadingPath {
    /// A heading closes those of its own level and below.
    fn enter(&mut self, level: u8, text: &str) {
        self.open.retain(|(open, _)| *open < level);
        let text = tidy(text);
        if !text.is_empty() && self.open.len() < limits::HEADING_DEPTH_MAX {
            self.open.push((level, text));
        }
    }

    fn path(&self) -> Vec<String> {
        self.open.iter().map(|(_, text)| text.clone()).collect()
    }
}

/// One line without runs of white space, at most `limits::TITLE_BYTES_MAX` long.
fn tidy(text: &str) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.truncate(line.floor_char_boundary(limits::TITLE_BYTES_MAX));
    line
}

/// Sections from the places where headings begin: `starts` holds (offset, path of what follows), ascending. Stretches of nothing
/// but white space make no section.
fn sections_between(text: &str, starts: Vec<(usize, Vec<String>)>) -> Vec<Section> {
    let ends: Vec<usize> = starts.iter().skip(1).map(|(start, _)| *start).chain([text.len()]).collect();
    starts
        .into_iter()
        .zip(ends)
        .filter(|((start, _), end)| !text[*start..*end].trim().is_empty())
        .map(|((start, heading_path), end)| Section { heading_path, span: start..end })
        .collect()
}

/// Why bytes are not a document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Neither the media type, the file name nor the bytes say a format we read.
    #[error("unsupported media type {found:?}: send text/plain, text/markdown or text/html")]
    UnsupportedMedia {
        /// What was declared or recognised.
        found: String,
    },
    /// Declared as text, but no text in an encoding we read.
    #[error("the text is not valid {encoding}: first bad byte at offset {offset}; convert it to UTF-8")]
    Encoding {
        /// What it was read as.
        encoding: &'static str,
        /// Byte offset of the first fault.
        offset: usize,
    },
    /// Nothing but white space.
    #[error("the document has no text")]
    Empty,
    /// Above `limits::DOCUMENT_BYTES_MAX`.
    #[error("the document has {bytes} bytes, at most {bytes_max}")]
    TooLarge {
        /// As sent.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
}

impl ParseError {
    /// The kind callers act on; all are deterministic.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::UnsupportedMedia { .. } | Self::Encoding { .. } => ErrorKind::UnsupportedMedia,
            Self::Empty => ErrorKind::InvalidArgument,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
        }
    }
}

#[cfg(test)]
mod tests;
