//! What a simulated disk really holds: a write-ahead log as bytes. Records are framed with their length and a CRC; what was not
//! synced may be lost from any byte on when the power goes, a full disk takes a part of a record, and any bit may turn.
//!
//! The rules are those of the shard's RocksDB: a broken end is what a crash leaves and is cut off, damage before the end is an
//! error. So a synced last record that rots is silently missing, and only the remembered floor can tell.

use bytes::Bytes;
use cluster_config::ids::OperationId;
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use node::replication::storage::{EncodedEntry, LogWrite, StorageError};

use super::Rng;

const HEADER_BYTES: usize = 8;

/// One atomic change of the disk.
pub(crate) enum Record {
    Write(LogWrite),
    Applied(SeqNo),
    Purged(SeqNo),
}

#[derive(Default)]
pub(crate) struct Platter {
    bytes: Vec<u8>,
    synced: usize,
    /// Bytes that still fit; no limit otherwise.
    room: Option<usize>,
}

impl Platter {
    /// Appends a record, unsynced. Errors: the disk is full; a part of the record is then at the end.
    pub(crate) fn append(&mut self, record: &Record) -> Result<(), StorageError> {
        let body = encode(record);
        let mut frame = Vec::with_capacity(HEADER_BYTES + body.len());
        frame.extend_from_slice(&(body.len() as u32).to_be_bytes());
        frame.extend_from_slice(&crc32c::crc32c(&body).to_be_bytes());
        frame.extend_from_slice(&body);
        let fits = self.room.map_or(frame.len(), |room| room.min(frame.len()));
        self.bytes.extend_from_slice(&frame[..fits]);
        if let Some(room) = &mut self.room {
            *room -= fits;
        }
        if fits < frame.len() { Err(StorageError::Full) } else { Ok(()) }
    }

    pub(crate) fn sync(&mut self) {
        self.synced = self.bytes.len();
    }

    /// Only so many bytes fit from now on, or any number again.
    pub(crate) fn limit(&mut self, room: Option<usize>) {
        self.room = room;
    }

    /// The power goes: of what was not synced, some bytes have reached the disk, in order. Says whether any were lost, and whether the
    /// cut went through a record.
    pub(crate) fn lose_power(&mut self, rng: &mut Rng) -> (bool, bool) {
        let kept = self.synced + rng.below(self.bytes.len() - self.synced + 1);
        let lost = kept < self.bytes.len();
        self.bytes.truncate(kept);
        (lost, self.ends().last().is_some_and(|end| *end < kept) || self.ends().is_empty() && kept > 0)
    }

    /// A bit turns somewhere in what was synced. Says whether there was one.
    pub(crate) fn flip(&mut self, rng: &mut Rng) -> bool {
        let is_there = self.synced > 0;
        if is_there {
            let at = rng.below(self.synced);
            self.bytes[at] ^= 1 << rng.below(8);
        }
        is_there
    }

    /// Where each whole frame ends, by the lengths alone.
    fn ends(&self) -> Vec<usize> {
        let mut ends = Vec::new();
        let mut at = 0;
        while let Some(length) = self.length_at(at)
            && at + HEADER_BYTES + length <= self.bytes.len()
        {
            at += HEADER_BYTES + length;
            ends.push(at);
        }
        ends
    }

    fn length_at(&self, at: usize) -> Option<usize> {
        let header = self.bytes.get(at..at + 4)?;
        Some(u32::from_be_bytes(header.try_into().ok()?) as usize)
    }

    /// Reads everything back and cuts a broken end off. Errors: damage with sound records behind it.
    pub(crate) fn replay(&mut self) -> Result<Vec<Record>, StorageError> {
        let mut records = Vec::new();
        let mut at = 0;
        for end in self.ends() {
            let Some(record) = self.record_in(at, end) else { break };
            records.push(record);
            at = end;
        }
        if self.has_sound_record_after(at) {
            return Err(StorageError::Corrupt(format!("the log is damaged at byte {at} of {}", self.bytes.len())));
        }
        self.bytes.truncate(at);
        self.synced = at;
        Ok(records)
    }

    fn record_in(&self, begin: usize, end: usize) -> Option<Record> {
        let (header, body) = self.bytes[begin..end].split_at_checked(HEADER_BYTES)?;
        let crc = u32::from_be_bytes(header[4..].try_into().ok()?);
        (crc32c::crc32c(body) == crc).then(|| decode(body))
    }

    fn has_sound_record_after(&self, at: usize) -> bool {
        (at + 1..self.bytes.len()).any(|begin| {
            let end = self.length_at(begin).and_then(|length| begin.checked_add(HEADER_BYTES + length));
            let end = end.filter(|end| *end > begin + HEADER_BYTES && *end <= self.bytes.len());
            end.is_some_and(|end| self.record_in(begin, end).is_some())
        })
    }
}

const TAG_WRITE: u8 = 1;
const TAG_APPLIED: u8 = 2;
const TAG_PURGED: u8 = 3;

fn encode(record: &Record) -> Vec<u8> {
    let mut out = Vec::new();
    match record {
        Record::Applied(seqno) => {
            out.push(TAG_APPLIED);
            out.extend_from_slice(&seqno.0.to_be_bytes());
        }
        Record::Purged(seqno) => {
            out.push(TAG_PURGED);
            out.extend_from_slice(&seqno.0.to_be_bytes());
        }
        Record::Write(write) => {
            out.push(TAG_WRITE);
            // Neither a term nor a cut is ever 0.
            out.extend_from_slice(&write.term.map_or(0, |term| term.0).to_be_bytes());
            out.extend_from_slice(&write.truncate_from.map_or(0, |cut| cut.0).to_be_bytes());
            for entry in &write.entries {
                out.extend_from_slice(&entry.seqno.0.to_be_bytes());
                out.extend_from_slice(&entry.term.0.to_be_bytes());
                out.extend_from_slice(&entry.operation_id.0.to_be_bytes());
                out.extend_from_slice(&entry.crc32c.to_be_bytes());
                out.extend_from_slice(&(entry.payload.len() as u32).to_be_bytes());
                out.extend_from_slice(&entry.payload);
            }
        }
    }
    out
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.0.split_first_chunk().expect("the CRC holds, so the record is whole");
        self.0 = rest;
        *taken
    }

    fn number(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }
}

/// The inverse of [`encode`], of a body whose CRC holds.
fn decode(body: &[u8]) -> Record {
    let mut reader = Reader(body);
    match reader.take::<1>()[0] {
        TAG_APPLIED => Record::Applied(SeqNo(reader.number())),
        TAG_PURGED => Record::Purged(SeqNo(reader.number())),
        TAG_WRITE => {
            let term = Some(reader.number()).filter(|term| *term > 0).map(PrimaryTerm);
            let truncate_from = Some(reader.number()).filter(|cut| *cut > 0).map(SeqNo);
            let mut entries = Vec::new();
            while !reader.0.is_empty() {
                let (seqno, term) = (SeqNo(reader.number()), PrimaryTerm(reader.number()));
                let operation_id = OperationId(u128::from_be_bytes(reader.take()));
                let crc32c = u32::from_be_bytes(reader.take());
                let length = u32::from_be_bytes(reader.take()) as usize;
                let (payload, rest) = reader.0.split_at(length);
                reader.0 = rest;
                let payload = Bytes::copy_from_slice(payload);
                entries.push(EncodedEntry { seqno, term, operation_id, payload, crc32c });
            }
            Record::Write(LogWrite { term, truncate_from, entries })
        }
        tag => unreachable!("unknown record {tag} under a CRC that holds"),
    }
}
