//! Finds the damage in RocksDB's record files (MANIFEST and write-ahead logs) that RocksDB takes for a torn tail.
//!
//! Such a file is cut into blocks of 32 KiB, each a sequence of `[masked CRC-32C u32][length u16][type u8][payload]`. RocksDB checks
//! the CRC of every whole record, and refuses a record that overruns a full block. In the last, partial block it must let one
//! overrun, because a crash in the middle of a write leaves just that. A damaged length or type there looks the same, and whatever
//! follows would be silently forgotten: in a MANIFEST, which is rarely longer than one block, whole table files.
//!
//! The two can be told apart. A record whose tail was never written cannot match its CRC; one whose length is wrong matches it at
//! its true length.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::records::corrupt;
use crate::replication::storage::StorageError;

/// Source: RocksDB, `db/log_format.h`.
const BLOCK_BYTES: usize = 32 * 1024;
const HEADER_BYTES: usize = 4 + 2 + 1;
/// Whole, first, middle and last part; compression; timestamp size; predecessor. The others belong to recycled logs, which are off.
const TYPES: [u8; 7] = [1, 2, 3, 4, 9, 10, 130];

/// Checks MANIFEST and write-ahead logs of a database that is not open, or is appended to meanwhile. Errors: `Corrupt` naming file
/// and offset, `Io`.
pub(crate) fn verify_all(dir: &Path) -> Result<(), StorageError> {
    for path in record_files(dir)? {
        let file = match File::open(&path) {
            // A log that RocksDB has flushed and deleted since.
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_log(&path) => continue,
            file => file.map_err(|error| io_error(&path, &error))?,
        };
        if let Some(offset) = find_damage(file).map_err(|error| io_error(&path, &error))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            return Err(corrupt(&name, &format!("the record at byte {offset} is damaged")));
        }
    }
    Ok(())
}

/// The MANIFEST that CURRENT names, and every log.
fn record_files(dir: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let current = dir.join("CURRENT");
    let name = fs::read_to_string(&current).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => corrupt("CURRENT", "missing"),
        io::ErrorKind::InvalidData => corrupt("CURRENT", "not text"),
        _ => io_error(&current, &error),
    })?;
    let manifest = name.strip_suffix('\n').filter(|name| name.starts_with("MANIFEST-"));
    let manifest = dir.join(manifest.ok_or_else(|| corrupt("CURRENT", &format!("names {name:?}")))?);
    if !manifest.is_file() {
        return Err(corrupt("CURRENT", &format!("names {name:?}, which is not there")));
    }
    let mut files = vec![manifest];
    for entry in fs::read_dir(dir).map_err(|error| io_error(dir, &error))? {
        let path = entry.map_err(|error| io_error(dir, &error))?.path();
        if is_log(&path) {
            files.push(path);
        }
    }
    Ok(files)
}

fn is_log(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "log")
}

fn io_error(path: &Path, error: &io::Error) -> StorageError {
    StorageError::Io(format!("{}: {error}", path.display()))
}

/// Offset of the first damaged record.
fn find_damage(mut file: impl Read) -> io::Result<Option<u64>> {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    let mut offset = 0;
    loop {
        block.clear();
        file.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut block)?;
        if let Some(at) = find_damage_in(&block) {
            return Ok(Some(offset + at as u64));
        }
        if block.len() < BLOCK_BYTES {
            return Ok(None);
        }
        offset += BLOCK_BYTES as u64;
    }
}

/// Where the first damaged record of a block begins. Only a block that is cut short may end in a torn record.
fn find_damage_in(block: &[u8]) -> Option<usize> {
    let is_partial = block.len() < BLOCK_BYTES;
    let mut at = 0;
    while block.len() - at >= HEADER_BYTES {
        let rest = &block[at..];
        if rest.iter().all(|byte| *byte == 0) {
            return None;
        }
        match record(rest) {
            Record::Whole { bytes } => at += bytes,
            Record::Overruns if is_partial && !has_true_length(rest) => return None,
            Record::Overruns | Record::Damaged => return Some(at),
        }
    }
    None
}

enum Record {
    Whole { bytes: usize },
    Overruns,
    Damaged,
}

/// What the bytes begin with; at least a header.
fn record(bytes: &[u8]) -> Record {
    let length = usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
    if !TYPES.contains(&bytes[6]) {
        return Record::Damaged;
    }
    match bytes.get(HEADER_BYTES - 1..HEADER_BYTES + length) {
        None => Record::Overruns,
        Some(covered) if crc32c::crc32c(covered) == stored_crc(bytes) => Record::Whole { bytes: HEADER_BYTES + length },
        Some(_) => Record::Damaged,
    }
}

/// Whether an overrunning record matches its CRC at another length, after which the block ends or another record follows.
fn has_true_length(bytes: &[u8]) -> bool {
    let expected = stored_crc(bytes);
    let covered = &bytes[HEADER_BYTES - 1..];
    let mut crc = 0;
    (1..=covered.len()).any(|end| {
        crc = crc32c::crc32c_append(crc, &covered[end - 1..end]);
        let after = &covered[end..];
        let continues = || after.len() >= HEADER_BYTES && matches!(record(after), Record::Whole { .. });
        crc == expected && (after.is_empty() || continues())
    })
}

/// Undoes RocksDB's masking.
fn stored_crc(header: &[u8]) -> u32 {
    let masked = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    masked.wrapping_sub(0xa282_ead8).rotate_right(17)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(block: &mut Vec<u8>, kind: u8, payload: &[u8]) {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&[kind]), payload);
        block.extend_from_slice(&crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes());
        block.extend_from_slice(&(payload.len() as u16).to_le_bytes());
        block.push(kind);
        block.extend_from_slice(payload);
    }

    fn file() -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes, 1, b"first");
        write(&mut bytes, 1, b"");
        write(&mut bytes, 2, &[7; 300]);
        write(&mut bytes, 4, b"the last record");
        bytes
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let whole = file();
        assert_eq!(find_damage(whole.as_slice()).expect("reads"), None);
        for bit in 0..8 * whole.len() {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(find_damage(damaged.as_slice()).expect("reads").is_some(), "bit {bit}");
        }
    }

    #[test]
    fn every_torn_tail_passes() {
        let whole = file();
        for length in 0..whole.len() {
            assert_eq!(find_damage(&whole[..length]).expect("reads"), None, "cut to {length}");
        }
        let mut preallocated = whole;
        preallocated.extend_from_slice(&[0; 500]);
        assert_eq!(find_damage(preallocated.as_slice()).expect("reads"), None);
    }

    #[test]
    fn only_the_last_block_may_be_torn() {
        let mut bytes = Vec::new();
        write(&mut bytes, 1, &[1; BLOCK_BYTES - HEADER_BYTES - 3]);
        bytes.extend_from_slice(&[0; 3]);
        let second = bytes.len();
        write(&mut bytes, 1, b"in the second block");
        assert_eq!(find_damage(bytes.as_slice()).expect("reads"), None);
        bytes[second] ^= 1;
        assert_eq!(find_damage(bytes.as_slice()).expect("reads"), Some(second as u64));
        bytes[5] ^= 0x80;
        assert_eq!(find_damage(bytes.as_slice()).expect("reads"), Some(0));
    }
}
