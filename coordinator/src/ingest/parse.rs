//! Uploaded bytes to text. The text that comes out is the document from here on: it is stored, chunked, cited, and every
//! span anywhere in the product is a byte range of it.

use std::ops::Range;

use cluster_config::error::ErrorKind;

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
