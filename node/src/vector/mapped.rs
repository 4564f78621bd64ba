//! Full-precision vectors where re-scoring can reach them in nanoseconds: a file of half floats, mapped for reading.
//!
//! The file is derived: RocksDB holds the truth, and whoever opens the file refills it from there, from `len()` on. It
//! promises that a row once visible never moves or changes while anyone can see it, and that rows counted after a crash are those
//! that were written: they are compared with their checksums ([`super::sums`]) when the file is opened. It knows nothing of
//! deletions.
//!
//! Layout: a slot per row, `[dim]` f16 little-endian and the row's *label*, a few bytes of its owner's that whoever found the row
//! reads next: they lie where the vector was just read from. The writer writes through the file and never through the mapping, so a full disk is an
//! error, not a signal. The mapping grows in extents that double, so that old ones stay where they are while readers use them.

#![allow(unsafe_code, reason = "reads mapped memory; each block says why it is sound")]

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use half::f16;
use memmap2::{Mmap, MmapOptions};
use parking_lot::Mutex;

use super::VectorError;
use super::error::IoContext;
use super::sums::Sums;

const CACHE_LINE_BYTES: usize = 64;
const WHAT: &str = "mapped vectors";
/// Bytes read at a time while the file is checked.
const READ_BYTES: usize = 1024 * 1024;
/// Rows of the first extent; the second is as large, and each further one twice the one before. A power of two of at least
/// 2048, so that every extent begins at a page whatever the dimension.
const EXTENT_ROWS_FIRST: u64 = 4096;
/// Enough for any number of rows that a file offset can reach.
const EXTENTS_MAX: usize = 40;

#[cfg(target_endian = "big")]
compile_error!("half floats are read in place, which needs a little-endian machine");

/// Vectors `[dim]` f16 with their labels, rows dense from 0. One writer at a time; readers never wait.
///
/// Invariants: every row below `len` is written and mapped, and the sums are of just these; rows below `len` change only under
/// `&mut self`.
pub struct MappedVectors {
    file: File,
    sums_path: PathBuf,
    dim: usize,
    label_bytes: usize,
    stamp: u128,
    len: AtomicU64,
    extents: [OnceLock<Mmap>; EXTENTS_MAX],
    /// Held by the writer.
    sums: Mutex<Sums>,
}

impl MappedVectors {
    /// Opens the file, creating it if absent, and keeps the rows that are as they were written. If it belongs to another stamp,
    /// dimension or size of labels, it begins anew, empty; its checksums lie beside it, in a file of the same name with the extension `sums`.
    ///
    /// The stamp is the owner's: whatever must change when old rows no longer mean the same. `label_bytes`: even.
    /// The caller holds the directory exclusively; nobody else may shrink the file while it is mapped.
    /// Cost: reads the file once. Errors: `InvalidArgument` (dim 0, odd labels), `Io`.
    pub fn open(path: &Path, dim: usize, label_bytes: usize, stamp: u128) -> Result<Self, VectorError> {
        if dim == 0 {
            return Err(VectorError::InvalidArgument("vectors have no dimensions".into()));
        }
        if !label_bytes.is_multiple_of(size_of::<f16>()) {
            return Err(VectorError::InvalidArgument(format!("labels of {label_bytes} bytes, an odd number")));
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).during(WHAT)?;
        let mut vectors = Self {
            file,
            sums_path: path.with_extension("sums"),
            dim,
            label_bytes,
            stamp,
            len: AtomicU64::new(0),
            extents: [const { OnceLock::new() }; EXTENTS_MAX],
            sums: Mutex::new(Sums::new(2 * dim + label_bytes)),
        };
        match vectors.find_rows()? {
            Some(sums) => {
                vectors.map_rows(sums.rows())?;
                *vectors.len.get_mut() = sums.rows();
                *vectors.sums.get_mut() = sums;
            }
            None => vectors.file.set_len(0).during(WHAT)?,
        }
        Ok(vectors)
    }

    /// Rows that readers can see.
    pub fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Dimension of the vectors.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Bytes of one row: its vector and its label.
    pub fn row_bytes(&self) -> usize {
        2 * self.dim + self.label_bytes
    }

    /// The vector `[dim]` of a row.
    ///
    /// Panics if `row >= len()`, as indexing a slice does: rows come from a `RowSet` or an index bounded by `len`.
    pub fn get(&self, row: u64) -> &[f16] {
        let bytes = &self.bytes(row)[..2 * self.dim];
        // SAFETY: any two bytes are a valid f16; the slice is `2 * dim` bytes long and lives as long as `self`, which keeps
        // the mapping. It is aligned: the mapping begins at a page and rows are an even number of bytes. The bytes do not change
        // while borrowed: rows below `len` were written before `len` was released (acquired above), and only `truncate`, which
        // takes `&mut self`, lets them be written again.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<f16>(), self.dim) }
    }

    /// The label of a row, `[label_bytes]`. Panics as [`MappedVectors::get`] does.
    pub fn label(&self, row: u64) -> &[u8] {
        &self.bytes(row)[2 * self.dim..]
    }

    fn bytes(&self, row: u64) -> &[u8] {
        assert!(row < self.len(), "row {row} of {}", self.len());
        let (extent, first) = extent_of(row);
        let map = self.extents[extent].get().expect("rows below len are mapped");
        let offset = (row - first) as usize * self.row_bytes();
        &map[offset..offset + self.row_bytes()]
    }

    /// Compares a piece of rows with its checksum; gives its bytes, or `None` if there is no such whole piece.
    /// Errors: `Corrupt`.
    pub fn verify_piece(&self, piece: u64) -> Result<Option<u64>, VectorError> {
        let (sum, piece_rows) = {
            let sums = self.sums.lock();
            let Some(sum) = sums.whole_piece(piece) else { return Ok(None) };
            (sum, sums.piece_rows())
        };
        let first = piece * piece_rows;
        let found = (first..first + piece_rows).fold(0, |crc, row| crc32c::crc32c_append(crc, self.bytes(row)));
        if found != sum {
            let rows = format!("rows {first} to {} fail their checksum", first + piece_rows - 1);
            return Err(VectorError::corrupt(WHAT, rows));
        }
        Ok(Some(piece_rows * self.row_bytes() as u64))
    }

    /// Asks the CPU for the beginning of a row, and so for the address of its page. Panics as [`MappedVectors::get`] does.
    pub(super) fn locate(&self, row: u64) {
        prefetch(self.get(row).first());
    }

    /// Asks the CPU for a vector that will be read soon. Panics as [`MappedVectors::get`] does.
    pub(super) fn fetch(&self, row: u64) {
        self.get(row).chunks(CACHE_LINE_BYTES / size_of::<f16>()).for_each(|line| prefetch(line.first()));
    }

    /// Asks the CPU for a label that will be read soon. Panics as [`MappedVectors::get`] does.
    pub(crate) fn fetch_label(&self, row: u64) {
        prefetch(self.label(row).first());
    }

    /// Appends whole rows, each a vector `[dim]` f16 little-endian and its label, and shows them to readers all at once. Gives the new length.
    ///
    /// Errors: `InvalidArgument` (not whole rows), `Io` (nothing is shown then, and appending may be tried again).
    pub fn append(&self, rows: &[u8]) -> Result<u64, VectorError> {
        if !rows.len().is_multiple_of(self.row_bytes()) {
            return Err(VectorError::InvalidArgument(format!(
                "{} bytes are not rows of {} bytes",
                rows.len(),
                self.row_bytes()
            )));
        }
        let mut sums = self.sums.lock();
        let old = self.len();
        let new = old + (rows.len() / self.row_bytes()) as u64;
        self.map_rows(new)?;
        self.file.write_all_at(rows, old * self.row_bytes() as u64).during(WHAT)?;
        sums.append(rows);
        self.len.store(new, Ordering::Release);
        Ok(new)
    }

    /// Forgets the rows from `rows` on; does nothing if there are fewer. Exclusive, because a later append writes over them.
    ///
    /// Errors: `Io`.
    pub fn truncate(&mut self, rows: u64) -> Result<(), VectorError> {
        if rows >= self.len() {
            return Ok(());
        }
        let mut sums = self.sums.get_mut().clone();
        let from = sums.cut_to_piece(rows);
        self.read_into(&mut sums, from, rows)?;
        // The count on disk goes down before the rows can be overwritten, so that a crash never counts half-written ones.
        sums.store(&self.sums_path, self.stamp).during(WHAT)?;
        *self.sums.get_mut() = sums;
        *self.len.get_mut() = rows;
        Ok(())
    }

    /// Makes the rows visible now survive a power loss. Until then only a crash of the process is survived: see `open`.
    ///
    /// Errors: `Io`; the caller should then begin the file anew.
    pub fn flush(&self) -> Result<(), VectorError> {
        let sums = self.sums.lock();
        self.file.sync_data().during(WHAT)?;
        sums.store(&self.sums_path, self.stamp).during(WHAT)
    }

    /// The sums of the rows that are there and right. `None`: the file is not ours, or is cut.
    fn find_rows(&self) -> Result<Option<Sums>, VectorError> {
        let Some(mut sums) = Sums::load(&self.sums_path, self.row_bytes(), self.stamp).during(WHAT)? else {
            return Ok(None);
        };
        let needed = sums.rows().checked_mul(self.row_bytes() as u64);
        let file_bytes = self.file.metadata().during(WHAT)?.len();
        if needed.is_none_or(|needed| needed > file_bytes) {
            return Ok(None);
        }
        let mut read = Sums::new(self.row_bytes());
        self.read_into(&mut read, 0, sums.rows())?;
        let agreed = sums.agreed_rows(&read);
        if agreed < sums.rows() {
            tracing::warn!(file = %self.sums_path.display(), rows = sums.rows(), right = agreed, "mapped vectors are damaged and made anew");
            sums.cut_to_piece(agreed);
        }
        Ok(Some(sums))
    }

    /// Adds up rows of the file.
    fn read_into(&self, sums: &mut Sums, from: u64, to: u64) -> Result<(), VectorError> {
        let rows_at_once = (READ_BYTES / self.row_bytes()).max(1) as u64;
        let mut buffer = Vec::new();
        let mut row = from;
        while row < to {
            let count = rows_at_once.min(to - row);
            buffer.resize(count as usize * self.row_bytes(), 0);
            self.file.read_exact_at(&mut buffer, row * self.row_bytes() as u64).during(WHAT)?;
            sums.append(&buffer);
            row += count;
        }
        Ok(())
    }

    /// Maps every extent that rows below `rows` lie in, lengthening the file (with holes) to the extents' ends.
    fn map_rows(&self, rows: u64) -> Result<(), VectorError> {
        let Some(last) = rows.checked_sub(1) else { return Ok(()) };
        let (extent_last, _) = extent_of(last);
        if extent_last >= EXTENTS_MAX {
            return Err(VectorError::InvalidArgument(format!("{rows} rows do not fit a file")));
        }
        for extent in 0..=extent_last {
            if self.extents[extent].get().is_some() {
                continue;
            }
            let (first, count) = extent_rows(extent);
            let begin = first * self.row_bytes() as u64;
            let bytes = count * self.row_bytes() as u64;
            if self.file.metadata().during(WHAT)?.len() < begin + bytes {
                self.file.set_len(begin + bytes).during(WHAT)?;
            }
            // SAFETY: the mapping is shared and read-only, and the file covers it: lengthened just above, never shortened
            // while mapped (`open` sets the length to 0 only before the first mapping, and the caller of `open` holds the
            // directory exclusively). Bytes that the writer changes later lie at or above `len`, where nobody reads.
            let map = unsafe { MmapOptions::new().offset(begin).len(bytes as usize).map(&self.file) }.during(WHAT)?;
            // Only one thread gets here: `open` has `self` alone, `append` holds the writer lock.
            let _ = self.extents[extent].set(map);
        }
        Ok(())
    }
}

fn prefetch<T>(place: Option<&T>) {
    let Some(place) = place else { return };
    // SAFETY: a hint without effect on the program, whatever the address; this one is valid.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast()) };
}

/// The extent a row lies in, and the extent's first row.
fn extent_of(row: u64) -> (usize, u64) {
    let extent = (row / EXTENT_ROWS_FIRST).checked_ilog2().map_or(0, |power| power as usize + 1);
    (extent, extent_rows(extent).0)
}

/// First row and number of rows of an extent.
fn extent_rows(extent: usize) -> (u64, u64) {
    match extent {
        0 => (0, EXTENT_ROWS_FIRST),
        _ => (EXTENT_ROWS_FIRST << (extent - 1), EXTENT_ROWS_FIRST << (extent - 1)),
    }
}

/// Half floats, little-endian, as [`MappedVectors::append`] takes them and the log carries them.
pub fn encode(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    const DIM: usize = 3;
    const LABEL_BYTES: usize = 4;
    const ROW_BYTES: usize = 2 * DIM + LABEL_BYTES;

    fn row(number: u64) -> Vec<u8> {
        let mut row = encode(&[(number % 2000) as f32, (number / 2000) as f32, -1.0]);
        row.extend_from_slice(&(number as u32).to_le_bytes());
        row
    }

    fn fill(vectors: &MappedVectors, rows: std::ops::Range<u64>) {
        let bytes: Vec<u8> = rows.flat_map(row).collect();
        vectors.append(&bytes).unwrap();
    }

    fn assert_rows(vectors: &MappedVectors, rows: std::ops::Range<u64>) {
        for number in rows {
            let row = row(number);
            let (vector, label) = row.split_at(2 * DIM);
            let expected: Vec<f16> = vector.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
            assert_eq!((vectors.get(number), vectors.label(number)), (&expected[..], label), "row {number}");
        }
    }

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vectors");
        (dir, path)
    }

    #[test]
    fn rows_keep_their_place_while_the_file_grows() {
        let (_dir, path) = scratch();
        let vectors = MappedVectors::open(&path, DIM, LABEL_BYTES, 7).unwrap();
        fill(&vectors, 0..10);
        let early = vectors.get(3);
        let early_at = early.as_ptr();
        fill(&vectors, 10..EXTENT_ROWS_FIRST * 9);
        assert_eq!(vectors.get(3).as_ptr(), early_at);
        assert_rows(&vectors, 0..EXTENT_ROWS_FIRST * 9);
        assert!(matches!(vectors.append(&[0; 5]), Err(VectorError::InvalidArgument(_))));
        assert_eq!(vectors.len(), EXTENT_ROWS_FIRST * 9);
    }

    #[test]
    fn reopening_shows_what_was_flushed_and_appending_goes_on_there() {
        let (_dir, path) = scratch();
        let vectors = MappedVectors::open(&path, DIM, LABEL_BYTES, 7).unwrap();
        fill(&vectors, 0..5000);
        vectors.flush().unwrap();
        fill(&vectors, 5000..6000);
        drop(vectors);
        let vectors = MappedVectors::open(&path, DIM, LABEL_BYTES, 7).unwrap();
        assert_eq!(vectors.len(), 5000);
        fill(&vectors, 5000..5001);
        assert_rows(&vectors, 0..5001);
    }

    #[test]
    fn another_stamp_dimension_or_damage_begins_anew() {
        let (_dir, path) = scratch();
        let flushed = || {
            let vectors = MappedVectors::open(&path, DIM, LABEL_BYTES, 7).unwrap();
            fill(&vectors, vectors.len()..10);
            vectors.flush().unwrap();
        };
        type Change = (&'static str, fn(&Path), usize, usize, u128);
        let cases: [Change; 8] = [
            ("stamp", |_| (), DIM, LABEL_BYTES, 8),
            ("dimension", |_| (), DIM + 1, LABEL_BYTES, 7),
            ("size of labels", |_| (), DIM, LABEL_BYTES + 2, 7),
            ("bit of the sums' header", |path| flip(&path.with_extension("sums"), 33), DIM, LABEL_BYTES, 7),
            ("bit of a sum", |path| flip(&path.with_extension("sums"), 41), DIM, LABEL_BYTES, 7),
            ("bit of a row", |path| flip(path, 7), DIM, LABEL_BYTES, 7),
            ("cut", |path| set_len(path, 10 * ROW_BYTES as u64 - 1), DIM, LABEL_BYTES, 7),
            ("emptied", |path| set_len(path, 0), DIM, LABEL_BYTES, 7),
        ];
        for (what, change, dim, label_bytes, stamp) in cases {
            flushed();
            change(&path);
            assert_eq!(MappedVectors::open(&path, dim, label_bytes, stamp).unwrap().len(), 0, "{what}");
        }
        flushed();
        assert_eq!(MappedVectors::open(&path, DIM, LABEL_BYTES, 7).unwrap().len(), 10, "nothing changed");
    }

    fn set_len(path: &Path, bytes: u64) {
        OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
    }

    fn flip(path: &Path, at: u64) {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    }

    #[test]
    fn only_the_damaged_piece_and_what_follows_is_made_anew() {
        let (_dir, path) = scratch();
        let piece_rows = Sums::new(ROW_BYTES).piece_rows();
        let vectors = MappedVectors::open(&path, DIM, LABEL_BYTES, 7).unwrap();
        fill(&vectors, 0..3 * piece_rows + 10);
        vectors.flush().unwrap();
        assert_eq!(vectors.verify_piece(2).unwrap(), Some(piece_rows * ROW_BYTES as u64));
        assert_eq!(vectors.verify_piece(3).unwrap(), None, "the last piece is not whole");
        flip(&path, (piece_rows + 5) * ROW_BYTES as u64);
        assert!(vectors.verify_piece(0).unwrap().is_some());
        assert_eq!(vectors.verify_piece(1).unwrap_err().kind(), cluster_config::error::ErrorKind::Corrupt);
        drop(vectors);
        let vectors = MappedVectors::open(&path, DIM, LABEL_BYTES, 7).unwrap();
        assert_eq!(vectors.len(), piece_rows);
        fill(&vectors, piece_rows..3 * piece_rows);
        assert_rows(&vectors, 0..3 * piece_rows);
        vectors.flush().unwrap();
        drop(vectors);
        assert_eq!(MappedVectors::open(&path, DIM, LABEL_BYTES, 7).unwrap().len(), 3 * piece_rows);
    }

    #[test]
    fn truncated_rows_are_gone_at_once_and_after_a_crash() {
        let (_dir, path) = scratch();
        let mut vectors = MappedVectors::open(&path, DIM, LABEL_BYTES, 7).unwrap();
        fill(&vectors, 0..9000);
        vectors.flush().unwrap();
        vectors.truncate(9001).unwrap();
        assert_eq!(vectors.len(), 9000);
        vectors.truncate(100).unwrap();
        assert_eq!(vectors.len(), 100);
        let beyond = std::panic::AssertUnwindSafe(|| vectors.get(100).len());
        assert!(std::panic::catch_unwind(beyond).is_err());
        fill(&vectors, 100..101);
        drop(vectors);
        let vectors = MappedVectors::open(&path, DIM, LABEL_BYTES, 7).unwrap();
        assert_eq!(vectors.len(), 100, "never more than the last flush or truncation counted");
        assert_rows(&vectors, 0..100);
    }

    #[test]
    fn readers_see_whole_rows_while_a_writer_appends() {
        let (_dir, path) = scratch();
        let vectors = MappedVectors::open(&path, DIM, LABEL_BYTES, 7).unwrap();
        let rows_end = EXTENT_ROWS_FIRST * 5;
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut seen = 0;
                    while seen < rows_end {
                        let len = vectors.len();
                        assert!(len >= seen);
                        assert_rows(&vectors, seen..len);
                        assert_rows(&vectors, 0..len.min(5));
                        seen = len;
                    }
                });
            }
            scope.spawn(|| {
                let mut next = 0;
                while next < rows_end {
                    let end = (next + 1 + next % 97).min(rows_end);
                    fill(&vectors, next..end);
                    next = end;
                }
            });
        });
    }

    #[test]
    fn extents_tile_the_rows() {
        let mut expected = 0;
        for extent in 0..EXTENTS_MAX {
            let (first, count) = extent_rows(extent);
            assert_eq!(first, expected);
            assert_eq!((extent_of(first).0, extent_of(first + count - 1).0), (extent, extent));
            assert_eq!(first * 2 % 4096, 0, "begins at a page for any even row size");
            expected = first + count;
        }
    }
}
