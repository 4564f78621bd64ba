//! Checksums of the mapped vectors, in pieces, kept in a file beside them. The file also says how many rows are known to be on
//! disk: rows and sums can therefore never disagree about that.
//!
//! Layout, little-endian: magic, version u32, row bytes u32, stamp u128, rows u64, one CRC-32C per piece (the last one may be of
//! part of a piece), CRC-32C of all before.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

const MAGIC: &[u8; 8] = b"SUSUISUM";
/// 1: rows without labels.
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 8 + 4 + 4 + 16 + 8;
/// Aimed at; a piece is whole rows, at least one.
const PIECE_BYTES: usize = 1024 * 1024;

/// Checksums of rows `0..rows`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sums {
    row_bytes: usize,
    rows: u64,
    /// Of whole pieces.
    whole: Vec<u32>,
    /// Of the rows after them.
    partial: u32,
}

impl Sums {
    pub(super) fn new(row_bytes: usize) -> Self {
        Self { row_bytes, rows: 0, whole: Vec::new(), partial: 0 }
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Rows of one piece.
    pub(super) fn piece_rows(&self) -> u64 {
        (PIECE_BYTES / self.row_bytes).max(1) as u64
    }

    /// The checksum of a whole piece. `None`: there are not so many.
    pub(super) fn whole_piece(&self, piece: u64) -> Option<u32> {
        self.whole.get(usize::try_from(piece).ok()?).copied()
    }

    /// Takes in rows that follow.
    pub(super) fn append(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let left_rows = self.piece_rows() - self.rows % self.piece_rows();
            let taken = bytes.len().min(left_rows as usize * self.row_bytes);
            self.partial = crc32c::crc32c_append(self.partial, &bytes[..taken]);
            self.rows += (taken / self.row_bytes) as u64;
            if self.rows.is_multiple_of(self.piece_rows()) {
                self.whole.push(self.partial);
                self.partial = 0;
            }
            bytes = &bytes[taken..];
        }
    }

    /// Forgets all from the piece that begins at or before `rows`; gives the row to go on from.
    pub(super) fn cut_to_piece(&mut self, rows: u64) -> u64 {
        let pieces = rows.min(self.rows) / self.piece_rows();
        self.whole.truncate(pieces as usize);
        self.partial = 0;
        self.rows = pieces * self.piece_rows();
        self.rows
    }

    /// The longest beginning of these sums, in whole pieces, that others (of what was read) agree with, and all if they are equal.
    pub(super) fn agreed_rows(&self, read: &Sums) -> u64 {
        if self == read {
            return self.rows;
        }
        let agreed = self.whole.iter().zip(&read.whole).take_while(|(ours, theirs)| ours == theirs).count();
        agreed as u64 * self.piece_rows()
    }

    /// Replaces the file durably.
    pub(super) fn store(&self, path: &Path, stamp: u128) -> io::Result<()> {
        let temporary = path.with_extension("sums.new");
        let mut file = File::create(&temporary)?;
        file.write_all(&self.encode(stamp))?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    }

    /// `None`: missing, damaged, or of another stamp or row size.
    pub(super) fn load(path: &Path, row_bytes: usize, stamp: u128) -> io::Result<Option<Self>> {
        match fs::read(path) {
            Ok(bytes) => Ok(Self::decode(&bytes, row_bytes).filter(|sums| sums.encode(stamp) == bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn encode(&self, stamp: u128) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + 4 * self.whole.len() + 8);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(self.row_bytes as u32).to_le_bytes());
        bytes.extend_from_slice(&stamp.to_le_bytes());
        bytes.extend_from_slice(&self.rows.to_le_bytes());
        for sum in self.whole.iter().chain([&self.partial]) {
            bytes.extend_from_slice(&sum.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the numbers; whether all of it is right shows when it is encoded again.
    fn decode(bytes: &[u8], row_bytes: usize) -> Option<Self> {
        let rows = u64::from_le_bytes(bytes.get(HEADER_BYTES - 8..HEADER_BYTES)?.try_into().ok()?);
        let sums = bytes.get(HEADER_BYTES..bytes.len().checked_sub(4)?)?;
        let mut whole: Vec<u32> =
            sums.chunks_exact(4).map(|sum| u32::from_le_bytes(sum.try_into().expect("four bytes"))).collect();
        let partial = whole.pop()?;
        let decoded = Self { row_bytes, rows, whole, partial };
        (decoded.whole.len() as u64 == rows / decoded.piece_rows()).then_some(decoded)
    }
}
