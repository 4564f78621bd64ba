//! Log entries as stored and as sent. A payload is encoded once, by the primary; the copies forward and store the bytes unread.

use bytes::Bytes;
use cluster_config::ids::OperationId;
use cluster_config::seqno::{PrimaryTerm, SeqNo};

/// One log entry: its position, whose operation it is, and an encoded `EntryPayload` that is never re-encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedEntry {
    /// Position in the log.
    pub seqno: SeqNo,
    /// Term of the primary that wrote it.
    pub term: PrimaryTerm,
    /// The client operation; 0 for the shard's own entries.
    pub operation_id: OperationId,
    /// Encoded proto `EntryPayload`.
    pub payload: Bytes,
    /// CRC-32C over seqno and term (big-endian u64), operation id (16 bytes big-endian, left out when 0) and payload.
    pub crc32c: u32,
}

impl EncodedEntry {
    /// An entry with its checksum.
    pub fn seal(seqno: SeqNo, term: PrimaryTerm, operation_id: OperationId, payload: Bytes) -> Self {
        let crc32c = checksum(seqno, term, operation_id, &payload);
        Self { seqno, term, operation_id, payload, crc32c }
    }

    /// Whether the bytes are those that were sealed.
    pub fn verify(&self) -> bool {
        checksum(self.seqno, self.term, self.operation_id, &self.payload) == self.crc32c
    }
}

fn checksum(seqno: SeqNo, term: PrimaryTerm, operation_id: OperationId, payload: &[u8]) -> u32 {
    let mut header = [0; 32];
    header[..8].copy_from_slice(&seqno.0.to_be_bytes());
    header[8..16].copy_from_slice(&term.0.to_be_bytes());
    header[16..].copy_from_slice(&operation_id.0.to_be_bytes());
    let header_bytes = if operation_id.0 == 0 { 16 } else { 32 };
    crc32c::crc32c_append(crc32c::crc32c(&header[..header_bytes]), payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_under_the_checksum() {
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
}
