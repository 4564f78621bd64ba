//! Log entries as they are stored and sent: encoded once by the primary, then forwarded, stored and checked as bytes.
//!
//! The payload is an encoded `EntryPayload`. It is never re-encoded on the way, so the CRC that the primary computed is the
//! one every copy verifies, and equal logs have equal bytes.

use bytes::Bytes;
use cluster_config::ids::OperationId;
use cluster_config::operation::{LogEntry, Operation};
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use proto::convert::ids::{operation_id, operation_id_bytes};
use proto::convert::operation::{decode_payload, encode_payload, entry_crc32c};
use proto::v1;

/// First byte of a stored entry. A new layout takes a new number; old ones stay readable.
const STORED_FORMAT: u8 = 1;
/// Bytes before the payload of a stored entry: format, term, operation id, CRC.
const STORED_HEADER_BYTES: usize = 1 + 8 + 16 + 4;

/// An entry that is not what its CRC or its format says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("log entry {seqno}: {problem}")]
pub struct EntryError {
    /// Position the entry claims.
    pub seqno: SeqNo,
    /// What is wrong.
    pub problem: String,
}

/// One log entry as stored and as sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedEntry {
    /// Position.
    pub seqno: SeqNo,
    /// Term of the primary that wrote it.
    pub term: PrimaryTerm,
    /// The client operation; 0 for the shard's own entries.
    pub operation_id: OperationId,
    /// An encoded `EntryPayload`.
    pub payload: Bytes,
    /// See [`entry_crc32c`].
    pub crc32c: u32,
}

impl EncodedEntry {
    /// Encodes operations at a position of the log, with their CRC.
    pub fn encode(seqno: SeqNo, term: PrimaryTerm, operation_id: OperationId, operations: Vec<Operation>) -> Self {
        Self::seal(seqno, term, operation_id, encode_payload(operations))
    }

    /// Puts an encoded payload at a position of the log, under its CRC. The primary encodes before it knows the position.
    pub fn seal(seqno: SeqNo, term: PrimaryTerm, operation_id: OperationId, payload: Bytes) -> Self {
        let crc32c = entry_crc32c(seqno, term, operation_id, &payload);
        Self { seqno, term, operation_id, payload, crc32c }
    }

    /// Whether the bytes are those that were sealed. Every receiver and every read from disk asks.
    pub fn verify(&self) -> bool {
        entry_crc32c(self.seqno, self.term, self.operation_id, &self.payload) == self.crc32c
    }

    /// Decodes the operations. Errors: the payload is not an `EntryPayload`, or an operation lacks a part.
    pub fn decode(&self) -> Result<LogEntry, EntryError> {
        let operations = decode_payload(self.payload.clone()).map_err(|error| self.error(error.to_string()))?;
        Ok(LogEntry { seqno: self.seqno, term: self.term, operation_id: self.operation_id, operations })
    }

    /// Bytes this entry counts for against `APPEND_BYTES_MAX` and the like.
    pub fn size_bytes(&self) -> usize {
        self.payload.len() + STORED_HEADER_BYTES
    }

    /// The value stored under the entry's seqno.
    pub(crate) fn to_stored(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(self.size_bytes());
        value.push(STORED_FORMAT);
        value.extend_from_slice(&self.term.0.to_be_bytes());
        value.extend_from_slice(&self.operation_id.0.to_be_bytes());
        value.extend_from_slice(&self.crc32c.to_be_bytes());
        value.extend_from_slice(&self.payload);
        value
    }

    /// The inverse of [`EncodedEntry::to_stored`], CRC verified.
    pub(crate) fn from_stored(seqno: SeqNo, value: &[u8]) -> Result<Self, EntryError> {
        let error = |problem: String| EntryError { seqno, problem };
        let Some((header, payload)) = value.split_at_checked(STORED_HEADER_BYTES) else {
            return Err(error(format!("{} bytes are too few", value.len())));
        };
        if header[0] != STORED_FORMAT {
            return Err(error(format!("unknown format {}", header[0])));
        }
        let mut term = [0; 8];
        term.copy_from_slice(&header[1..9]);
        let mut operation_id = [0; 16];
        operation_id.copy_from_slice(&header[9..25]);
        let mut crc32c = [0; 4];
        crc32c.copy_from_slice(&header[25..29]);
        let entry = Self {
            seqno,
            term: PrimaryTerm(u64::from_be_bytes(term)),
            operation_id: OperationId(u128::from_be_bytes(operation_id)),
            payload: Bytes::copy_from_slice(payload),
            crc32c: u32::from_be_bytes(crc32c),
        };
        if !entry.verify() {
            return Err(error(format!("crc {:08x} does not match", entry.crc32c)));
        }
        Ok(entry)
    }

    fn error(&self, problem: String) -> EntryError {
        EntryError { seqno: self.seqno, problem }
    }
}

impl From<EncodedEntry> for v1::LogEntry {
    fn from(entry: EncodedEntry) -> Self {
        Self {
            seqno: entry.seqno.0,
            term: entry.term.0,
            operation_id: operation_id_bytes(entry.operation_id),
            payload: entry.payload,
            crc32c: entry.crc32c,
        }
    }
}

/// Takes an entry from the wire. The CRC is not verified here: the receiver does that on a pool thread.
impl TryFrom<v1::LogEntry> for EncodedEntry {
    type Error = EntryError;

    fn try_from(entry: v1::LogEntry) -> Result<Self, EntryError> {
        let seqno = SeqNo(entry.seqno);
        let operation_id =
            operation_id(&entry.operation_id).map_err(|error| EntryError { seqno, problem: error.to_string() })?;
        Ok(Self { seqno, term: PrimaryTerm(entry.term), operation_id, payload: entry.payload, crc32c: entry.crc32c })
    }
}

#[cfg(test)]
mod tests {
    use cluster_config::ids::DocumentKey;
    use cluster_config::operation::Chunk;
    use cluster_config::search::EffortRung;

    use super::*;

    fn entry() -> EncodedEntry {
        let operations = vec![
            Operation::Barrier,
            Operation::PutDocument {
                key: DocumentKey::new("d").expect("valid"),
                title: "t".into(),
                chunks: vec![Chunk {
                    ordinal: 0,
                    text: "x".into(),
                    metadata_json: "{}".into(),
                    span: 0..1,
                    vector: vec![0, 60],
                }],
            },
            Operation::DeleteDocument { key: DocumentKey::new("e").expect("valid") },
            Operation::InstallGeneration { generation: 1, piece: 0, piece_count: 1, bytes: vec![1, 2] },
            Operation::IndexUpTo { generation: 1, row_end: 9 },
            Operation::SetEffortCurve {
                generation: 1,
                row_end: 9,
                rungs: vec![EffortRung { nprobe: 3, oversample: 2.0, recall: 0.9, codes_share: 0.1 }],
            },
        ];
        EncodedEntry::encode(SeqNo(3), PrimaryTerm(2), OperationId(7), operations)
    }

    #[test]
    fn stored_and_wire_forms_give_the_entry_back() {
        let entry = entry();
        assert_eq!(EncodedEntry::from_stored(SeqNo(3), &entry.to_stored()).expect("reads"), entry);
        let wire = v1::LogEntry::from(entry.clone());
        assert_eq!(EncodedEntry::try_from(wire).expect("reads"), entry);
        let decoded = entry.decode().expect("decodes");
        assert_eq!(decoded.operations.len(), 6);
        assert_eq!(EncodedEntry::encode(decoded.seqno, decoded.term, decoded.operation_id, decoded.operations), entry);
    }

    #[test]
    fn every_flipped_bit_of_a_stored_entry_is_noticed() {
        let stored = entry().to_stored();
        for bit in 0..stored.len() * 8 {
            let mut damaged = stored.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(EncodedEntry::from_stored(SeqNo(3), &damaged).is_err(), "bit {bit}");
        }
        assert!(EncodedEntry::from_stored(SeqNo(4), &stored).is_err(), "an entry moved to another position");
        assert!(EncodedEntry::from_stored(SeqNo(3), &stored[..20]).is_err(), "a short value");
    }

    #[test]
    fn every_part_is_under_the_entry_crc32c() {
        let sealed = EncodedEntry::seal(SeqNo(7), PrimaryTerm(2), OperationId(9), Bytes::from_static(b"payload"));
        assert!(sealed.verify());
        let broken = [
            EncodedEntry { seqno: SeqNo(8), ..sealed.clone() },
            EncodedEntry { term: PrimaryTerm(3), ..sealed.clone() },
            EncodedEntry { operation_id: OperationId(0), ..sealed.clone() },
            EncodedEntry { payload: Bytes::from_static(b"paylaod"), ..sealed.clone() },
        ];
        assert!(broken.iter().all(|entry| !entry.verify()));
    }

    #[test]
    fn golden_bytes() {
        let entry = EncodedEntry::encode(SeqNo(1), PrimaryTerm(1), OperationId(0), vec![Operation::Barrier]);
        assert_eq!(&entry.payload[..], [0x0a, 0x02, 0x0a, 0x00]);
        let mut expected = vec![1, 0, 0, 0, 0, 0, 0, 0, 1];
        expected.extend_from_slice(&[0; 16]);
        expected.extend_from_slice(&entry.crc32c.to_be_bytes());
        expected.extend_from_slice(&[0x0a, 0x02, 0x0a, 0x00]);
        assert_eq!(entry.to_stored(), expected);
        assert_eq!(entry.crc32c, 3_169_480_998);
    }
}
