//! What a shard's log says: the operations that every copy applies in the same order to the same effect.

use crate::ids::{DocumentKey, OperationId};
use crate::search::EffortRung;
use crate::seqno::{PrimaryTerm, SeqNo};

/// One retrievable piece of a document.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// Position within the document, from 0.
    pub ordinal: u32,
    /// The piece's text; empty for a bare vector.
    pub text: String,
    /// Metadata as a JSON object; `{}` where there is none.
    pub metadata_json: String,
    /// Offsets of `text` in the document's extracted text, bytes, end excluded.
    pub span: std::ops::Range<u64>,
    /// Embedding as little-endian IEEE half floats, `2 * dim` bytes; unit length where the metric is cosine.
    pub vector: Vec<u8>,
}

/// One change of a shard.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// First entry of a new primary's term; changes nothing.
    Barrier,
    /// Puts a document in place of any earlier one of the same key, all chunks at once.
    PutDocument {
        /// Whose document.
        key: DocumentKey,
        /// Title shown in citations.
        title: String,
        /// At least one.
        chunks: Vec<Chunk>,
    },
    /// Removes a document; removing what is not there is fine.
    DeleteDocument {
        /// Whose document.
        key: DocumentKey,
    },
    /// One piece of a trained model (PCA, centroids, codebooks); the last piece installs it.
    InstallGeneration {
        /// Number of the generation, from 1.
        generation: u64,
        /// Position of this piece.
        piece: u32,
        /// How many there are.
        piece_count: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Moves the rows below `row_end` that are live at this point into the index of `generation`.
    IndexUpTo {
        /// Which generation.
        generation: u64,
        /// Rows below this are in the index from now on.
        row_end: u64,
    },
    /// What each effort buys in the index of `generation`, as its primary measured on the shard's own rows. Logged, so that every
    /// copy chooses the same effort for the same query.
    SetEffortCurve {
        /// Which generation.
        generation: u64,
        /// Rows below this were there to be measured on.
        row_end: u64,
        /// At least one, at most `limits::EFFORT_RUNGS_MAX`.
        rungs: Vec<EffortRung>,
    },
}

/// One entry of a shard's log. An entry carries all operations of one write, so they become visible together.
#[derive(Clone, Debug, PartialEq)]
pub struct LogEntry {
    /// Position.
    pub seqno: SeqNo,
    /// Term of the primary that wrote it.
    pub term: PrimaryTerm,
    /// The client operation, so that a retry is recognised; 0 for the shard's own entries.
    pub operation_id: OperationId,
    /// Applied in order.
    pub operations: Vec<Operation>,
}
