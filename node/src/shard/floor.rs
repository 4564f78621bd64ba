//! How far this copy's log is known to have been committed, kept **beside** the database: whatever cuts RocksDB's write-ahead log short
//! would take a record inside of it along. A log that ends before the floor has lost acknowledged entries (reference, pitfall 9).
//!
//! Two slots are written in turn, in place and not synced. The value only has to be true, not fresh: entries up to it were durable here
//! before it was written. Of a slot torn by a loss of power the checksum does not hold, and the other one counts.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;

use cluster_config::seqno::SeqNo;
use parking_lot::Mutex;

use crate::replication::storage::StorageError;

/// Begins each slot; tells the format.
const MAGIC: [u8; 4] = *b"SFL1";
/// Magic, CRC-32C of the rest, seqno (big-endian).
const SLOT_BYTES: usize = 16;

/// The file `floor` of a copy.
pub(crate) struct Floor {
    file: File,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    seqno: SeqNo,
    /// Where the next value goes: not over the newest.
    next_slot: u64,
}

impl Floor {
    /// Opens or creates the file in the copy's directory.
    pub(crate) fn open(dir: &Path) -> Result<Self, StorageError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join("floor"));
        let file = file.map_err(classify)?;
        let mut state = State { seqno: SeqNo::ZERO, next_slot: 0 };
        for slot in 0..2u64 {
            let mut bytes = [0; SLOT_BYTES];
            match file.read_exact_at(&mut bytes, slot * SLOT_BYTES as u64) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
                read => read.map_err(classify)?,
            }
            if let Some(seqno) = decode(&bytes).filter(|seqno| *seqno > state.seqno) {
                state = State { seqno, next_slot: 1 - slot };
            }
        }
        Ok(Self { file, state: Mutex::new(state) })
    }

    pub(crate) fn get(&self) -> SeqNo {
        self.state.lock().seqno
    }

    /// Raises the floor; a lower one is ignored.
    pub(crate) fn raise(&self, seqno: SeqNo) -> Result<(), StorageError> {
        let mut state = self.state.lock();
        if seqno > state.seqno {
            self.file.write_all_at(&encode(seqno), state.next_slot * SLOT_BYTES as u64).map_err(classify)?;
            *state = State { seqno, next_slot: 1 - state.next_slot };
        }
        Ok(())
    }
}

fn encode(seqno: SeqNo) -> [u8; SLOT_BYTES] {
    let value = seqno.0.to_be_bytes();
    let mut slot = [0; SLOT_BYTES];
    slot[..4].copy_from_slice(&MAGIC);
    slot[4..8].copy_from_slice(&crc32c::crc32c(&value).to_be_bytes());
    slot[8..].copy_from_slice(&value);
    slot
}

fn decode(slot: &[u8; SLOT_BYTES]) -> Option<SeqNo> {
    let value: [u8; 8] = slot[8..].try_into().ok()?;
    (encode(SeqNo(u64::from_be_bytes(value))) == *slot).then(|| SeqNo(u64::from_be_bytes(value)))
}

fn classify(error: std::io::Error) -> StorageError {
    match error.kind() {
        ErrorKind::StorageFull => StorageError::Full,
        _ => StorageError::Io(format!("floor: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_value_is_found_again() {
        let dir = tempfile::tempdir().expect("temp dir");
        let open = || Floor::open(dir.path()).expect("opens");
        assert_eq!(open().get(), SeqNo(0));
        let floor = open();
        for seqno in [3, 9, 7] {
            floor.raise(SeqNo(seqno)).expect("writes");
        }
        assert_eq!((floor.get(), open().get()), (SeqNo(9), SeqNo(9)));
        // The write of 12 goes over 3, and is torn.
        let path = dir.path().join("floor");
        let mut bytes = std::fs::read(&path).expect("reads");
        bytes[..SLOT_BYTES].copy_from_slice(&encode(SeqNo(12)));
        bytes[15] ^= 1;
        std::fs::write(&path, &bytes).expect("writes");
        assert_eq!(open().get(), SeqNo(9));
        open().raise(SeqNo(13)).expect("writes");
        assert_eq!(open().get(), SeqNo(13));
    }

    #[test]
    fn the_bytes_are_these() {
        assert_eq!(encode(SeqNo(258)), [b'S', b'F', b'L', b'1', 0x7e, 0xb1, 0x5a, 0x0a, 0, 0, 0, 0, 0, 0, 1, 2]);
    }
}
