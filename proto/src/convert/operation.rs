//! A shard's operations and log entries: the same bytes on the wire and on disk.
//!
//! The payload of an entry is encoded once, by the primary. Copies check its CRC, store it and forward it unread; only
//! applying decodes it. Re-encoding would not be guaranteed to give the same bytes, and the CRC is over bytes.

use cluster_config::ids::OperationId;
use cluster_config::operation::{Chunk, LogEntry, Operation};
use cluster_config::search::EffortRung;
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use prost::Message;
use prost::bytes::Bytes;

use super::ids::{half_vector, operation_id, operation_id_bytes};
use super::{WireError, each, required, to_wire};
use crate::v1;

impl From<Chunk> for v1::Chunk {
    fn from(chunk: Chunk) -> Self {
        Self {
            ordinal: chunk.ordinal,
            text: chunk.text,
            metadata_json: chunk.metadata_json,
            span_start: chunk.span.start,
            span_end: chunk.span.end,
            vector: chunk.vector.into(),
        }
    }
}

impl TryFrom<v1::Chunk> for Chunk {
    type Error = WireError;

    fn try_from(wire: v1::Chunk) -> Result<Self, WireError> {
        if wire.span_start > wire.span_end {
            return Err(WireError::new(
                "span_end",
                format!("{} is before span_start {}", wire.span_end, wire.span_start),
            ));
        }
        Ok(Self {
            ordinal: wire.ordinal,
            text: wire.text,
            metadata_json: wire.metadata_json,
            span: wire.span_start..wire.span_end,
            vector: half_vector("vector", wire.vector)?,
        })
    }
}

impl From<EffortRung> for v1::EffortRung {
    fn from(rung: EffortRung) -> Self {
        let EffortRung { nprobe, oversample, recall, codes_share } = rung;
        Self { nprobe, oversample, recall, codes_share }
    }
}

impl From<v1::EffortRung> for EffortRung {
    fn from(wire: v1::EffortRung) -> Self {
        let v1::EffortRung { nprobe, oversample, recall, codes_share } = wire;
        Self { nprobe, oversample, recall, codes_share }
    }
}

impl From<Operation> for v1::Operation {
    fn from(operation: Operation) -> Self {
        use v1::operation::Kind;
        let kind = match operation {
            Operation::Barrier => Kind::Barrier(v1::Barrier {}),
            Operation::PutDocument { key, title, chunks } => {
                Kind::PutDocument(v1::PutDocument { key: Some(key.into()), title, chunks: to_wire(chunks) })
            }
            Operation::DeleteDocument { key } => Kind::DeleteDocument(key.into()),
            Operation::InstallGeneration { generation, piece, piece_count, bytes } => {
                Kind::InstallGeneration(v1::InstallGeneration { generation, piece, piece_count, bytes })
            }
            Operation::IndexUpTo { generation, row_end } => Kind::IndexUpTo(v1::IndexUpTo { generation, row_end }),
            Operation::SetEffortCurve { generation, row_end, rungs } => {
                Kind::SetEffortCurve(v1::SetEffortCurve { generation, row_end, rungs: to_wire(rungs) })
            }
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::Operation> for Operation {
    type Error = WireError;

    fn try_from(wire: v1::Operation) -> Result<Self, WireError> {
        use v1::operation::Kind;
        match wire.kind.ok_or_else(|| WireError::new("kind", "missing, or of a newer sender"))? {
            Kind::Barrier(v1::Barrier {}) => Ok(Self::Barrier),
            Kind::PutDocument(put) => put_document(put).map_err(|error| error.within("put_document")),
            Kind::DeleteDocument(key) => {
                let key = key.try_into().map_err(|error: WireError| error.within("delete_document"))?;
                Ok(Self::DeleteDocument { key })
            }
            Kind::InstallGeneration(v1::InstallGeneration { generation, piece, piece_count, bytes }) => {
                if piece >= piece_count {
                    let problem = format!("{piece} of {piece_count} pieces");
                    return Err(WireError::new("install_generation.piece", problem));
                }
                Ok(Self::InstallGeneration { generation, piece, piece_count, bytes })
            }
            Kind::IndexUpTo(v1::IndexUpTo { generation, row_end }) => Ok(Self::IndexUpTo { generation, row_end }),
            Kind::SetEffortCurve(v1::SetEffortCurve { generation, row_end, rungs }) => {
                let rungs = rungs.into_iter().map(EffortRung::from).collect();
                Ok(Self::SetEffortCurve { generation, row_end, rungs })
            }
        }
    }
}

fn put_document(wire: v1::PutDocument) -> Result<Operation, WireError> {
    if wire.chunks.is_empty() {
        return Err(WireError::new("chunks", "empty; a document has at least one"));
    }
    Ok(Operation::PutDocument {
        key: required("key", wire.key)?,
        title: wire.title,
        chunks: each("chunks", wire.chunks)?,
    })
}

/// The payload of an entry: an encoded `EntryPayload`.
pub fn encode_payload(operations: Vec<Operation>) -> Bytes {
    v1::EntryPayload { operations: to_wire(operations) }.encode_to_vec().into()
}

/// Reads the payload of an entry. Errors: no `EntryPayload`, or an operation of wrong shape.
pub fn decode_payload(payload: Bytes) -> Result<Vec<Operation>, WireError> {
    let wire = v1::EntryPayload::decode(payload).map_err(|error| WireError::new("payload", error.to_string()))?;
    each("operations", wire.operations).map_err(|error| error.within("payload"))
}

/// CRC-32C over seqno and term (big-endian u64), operation id (big-endian u128) and payload, so that an entry put at another
/// position or under another term fails as surely as a flipped bit in its text.
pub fn entry_crc32c(seqno: SeqNo, term: PrimaryTerm, operation_id: OperationId, payload: &[u8]) -> u32 {
    let mut head = [0u8; 32];
    head[..8].copy_from_slice(&seqno.0.to_be_bytes());
    head[8..16].copy_from_slice(&term.0.to_be_bytes());
    head[16..].copy_from_slice(&operation_id.0.to_be_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&head), payload)
}

impl From<LogEntry> for v1::LogEntry {
    fn from(entry: LogEntry) -> Self {
        let payload = encode_payload(entry.operations);
        Self {
            seqno: entry.seqno.0,
            term: entry.term.0,
            operation_id: operation_id_bytes(entry.operation_id),
            crc32c: entry_crc32c(entry.seqno, entry.term, entry.operation_id, &payload),
            payload,
        }
    }
}

impl TryFrom<v1::LogEntry> for LogEntry {
    type Error = WireError;

    /// Errors: `Corrupt` if the CRC does not match, before anything is decoded.
    fn try_from(wire: v1::LogEntry) -> Result<Self, WireError> {
        let id = operation_id(&wire.operation_id)?;
        let (seqno, term) = (SeqNo(wire.seqno), PrimaryTerm(wire.term));
        let computed = entry_crc32c(seqno, term, id, &wire.payload);
        if computed != wire.crc32c {
            let problem =
                format!("entry {seqno} of term {term} has {:08x}, its bytes have {computed:08x}", wire.crc32c);
            return Err(WireError::corrupt("crc32c", problem));
        }
        Ok(Self { seqno, term, operation_id: id, operations: decode_payload(wire.payload)? })
    }
}
