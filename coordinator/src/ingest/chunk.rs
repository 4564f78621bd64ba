//! A parsed document to retrievable pieces: as large as the embedder takes in one go, cut where the text itself pauses.

use std::ops::Range;

use cluster_config::error::ErrorKind;

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
