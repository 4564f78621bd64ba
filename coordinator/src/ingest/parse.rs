//! Uploaded bytes to text. The text that comes out is the document from here on: it is stored, chunked, cited, and every
//! span anywhere in the product is a byte range of it.
//!
//! Plain text and Markdown stay as they were sent (Markdown without its front matter); everything else becomes the text a reader
//! sees. For text formats the cost is linear in the bytes sent, and nothing recurses. Of the libraries that read PDF and Office
//! files neither holds, nor that they do not panic: whatever needs a parser is parsed in a child process (`sandbox`, `child`).

mod builder;
pub mod child;
mod docx;
mod encoding;
mod epub;
mod format;
mod html;
mod markdown;
mod package;
mod pdf;
mod pptx;
mod records;
mod sheet;
mod table;
mod xml;

use std::borrow::Cow;
use std::ops::Range;

use cluster_config::error::ErrorKind;
use cluster_config::limits;
use serde::{Deserialize, Serialize};

pub use self::format::Format;
use self::package::Package;

/// Raised whenever the same bytes come out as another text: texts of an earlier version are made anew.
pub const VERSION: u32 = 1;

/// A document as text with its structure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parsed {
    /// From the document itself (`<title>`, first top heading); `None` where it names none.
    pub title: Option<String>,
    /// The whole text.
    pub text: String,
    /// In order, not overlapping, ranges of `text` on character boundaries; together they cover all of it but white space.
    pub sections: Vec<Section>,
    /// Where in `text` each page or slide begins, ascending; empty where the format has none.
    pub pages: Vec<usize>,
}

/// A stretch of text under one heading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
        Self { title: title.filter(|title| !title.trim().is_empty()), text, sections, pages: Vec::new() }
    }

    /// Number of the page that the byte at `offset` stands on, from 1; `None` where the format has no pages.
    pub fn page_at(&self, offset: usize) -> Option<u32> {
        Some(self.pages.partition_point(|start| *start <= offset) as u32).filter(|page| *page > 0)
    }
}

/// Reads an uploaded document; what is declared may be empty. Blocking; for what this process may read by itself see [`Format::is_plain`].
///
/// Errors: every `ParseError` but `Expensive`.
pub fn parse(bytes: &[u8], media_type: &str, file_name: &str) -> Result<Parsed, ParseError> {
    if bytes.len() > limits::DOCUMENT_BYTES_MAX {
        return Err(ParseError::TooLarge { bytes: bytes.len(), bytes_max: limits::DOCUMENT_BYTES_MAX });
    }
    let text = || encoding::decode(bytes, media_type);
    let parsed = match Format::detect(bytes, media_type, file_name)? {
        Format::Plain => Parsed::plain(None, text()?),
        Format::Markdown => markdown::parse(text()?),
        Format::Html => html::parse(&text()?),
        Format::Csv => records::csv(&text()?)?,
        Format::JsonLines => records::json_lines(&text()?)?,
        Format::Pdf => pdf::parse(bytes)?,
        Format::Package => parse_package(bytes)?,
    };
    if parsed.sections.is_empty() {
        return Err(ParseError::Empty);
    }
    Ok(parsed)
}

/// A package is what its main part says, whatever its name.
fn parse_package(bytes: &[u8]) -> Result<Parsed, ParseError> {
    let package = Package::open(bytes)?;
    if package.has("word/document.xml") {
        docx::parse(package)
    } else if package.has("xl/workbook.xml") {
        sheet::parse(bytes, package)
    } else if package.has("ppt/presentation.xml") {
        pptx::parse(package)
    } else if package.has("META-INF/container.xml") {
        epub::parse(package)
    } else {
        Err(ParseError::UnsupportedMedia { found: "a zip archive that is no DOCX, XLSX, PPTX or EPUB".into() })
    }
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

/// Why bytes are not a document. Travels from the child process to its parent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ParseError {
    /// Neither the media type, the file name nor the bytes say a format we read.
    #[error("unsupported media type {found:?}: send {READABLE}")]
    UnsupportedMedia {
        /// What was declared or recognised.
        found: String,
    },
    /// Declared as text, but no text in an encoding we read.
    #[error("the text is not valid {encoding}: first bad byte at offset {offset}; convert it to UTF-8")]
    Encoding {
        /// What it was read as.
        encoding: Cow<'static, str>,
        /// Byte offset of the first fault.
        offset: usize,
    },
    /// Not what its format allows, or more than its reader can take.
    #[error("the {format} cannot be read: {reason}")]
    Malformed {
        /// Name of the format.
        format: Cow<'static, str>,
        /// What the reader says.
        reason: String,
    },
    /// Needs a password.
    #[error("the {format} is encrypted; send it without a password")]
    Encrypted {
        /// Name of the format.
        format: Cow<'static, str>,
    },
    /// Nothing but white space.
    #[error("the document has no text; scanned pages have to be recognised (OCR) first")]
    Empty,
    /// Above `limits::DOCUMENT_BYTES_MAX`.
    #[error("the document has {bytes} bytes, at most {bytes_max}")]
    TooLarge {
        /// As sent.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// Holds more than it shows from outside: a bound on what is unpacked was met.
    #[error("the document unpacks to more than {most} {what}")]
    Unpacked {
        /// What was counted.
        what: Cow<'static, str>,
        /// The bound.
        most: usize,
    },
    /// Reading it takes more time or memory than a document gets.
    #[error("reading the document takes more than {most}; split it or save it as another format")]
    Expensive {
        /// The bound that was met.
        most: String,
    },
}

/// What can be sent, in words.
const READABLE: &str = "text, Markdown, HTML, CSV, JSON lines, PDF, DOCX, XLSX, PPTX or EPUB";

impl ParseError {
    /// The kind callers act on; all are deterministic.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::UnsupportedMedia { .. } | Self::Encoding { .. } => ErrorKind::UnsupportedMedia,
            Self::Empty | Self::Malformed { .. } | Self::Encrypted { .. } => ErrorKind::InvalidArgument,
            Self::TooLarge { .. } | Self::Unpacked { .. } | Self::Expensive { .. } => ErrorKind::TooLarge,
        }
    }
}

#[cfg(test)]
mod tests;
