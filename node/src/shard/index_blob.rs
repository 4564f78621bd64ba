//! The index as it lies in RocksDB: in the checksummed pieces that the vector engine writes (`limits::INDEX_PIECE_BYTES`), stamped
//! with the generation and the rows it holds.
//!
//! It is derived: lost or damaged, it is rebuilt from the stored reduced vectors. Two slots alternate and the stamp is written
//! last, so a crash while writing leaves the earlier index whole.

use std::io;
use std::sync::Arc;

use rocksdb::WriteBatch;

use super::index_steps;
use super::keys::{self, Family};
use super::records::{AppliedState, IndexStamp, corrupt, decode, encode};
use super::store::{Durability, Store};
use super::view::View;
use crate::replication::storage::StorageError;
use crate::vector::{Generation, IvfIndex, VectorIndex};

/// Writes the index that serves, unless what is stored is as good. Concurrent calls are the caller's to prevent.
pub(crate) fn save(store: &Store, view: &View) -> Result<(), StorageError> {
    let Some(index) = &view.indexes.serving else { return Ok(()) };
    let stored = read_stamp(store)?;
    let is_stored = stored.as_ref().is_some_and(|stamp| {
        stamp.generation == view.applied.generation && stamp.indexed_row_end == view.applied.indexed_row_end
    });
    if is_stored || index.is_empty() {
        return Ok(());
    }
    let slot = stored.as_ref().map_or(0, |stamp| 1 - stamp.slot.min(1));
    let piece_count = write_pieces(store, index, slot)?;
    let AppliedState { generation, indexed_row_end, .. } = view.applied;
    let stamp = IndexStamp { slot, generation, indexed_row_end, piece_count };
    let mut batch = WriteBatch::default();
    batch.put_cf(store.family(Family::Index), keys::index_stamp(), encode(&stamp));
    if let Some(old) = stored {
        let (start, end) = keys::index_slot(old.slot);
        batch.delete_range_cf(store.family(Family::Index), start, end);
    }
    store.write(batch, Durability::Buffered)
}

/// Writes each piece by itself: the whole may be much larger than a batch should be.
fn write_pieces(store: &Store, index: &IvfIndex, slot: u8) -> Result<u32, StorageError> {
    let mut piece_count = 0;
    let mut failed = None;
    let written = index.write_to(&mut |piece| {
        let mut batch = WriteBatch::default();
        batch.put_cf(store.family(Family::Index), keys::index_piece(slot, piece_count), piece);
        piece_count += 1;
        store.write(batch, Durability::Buffered).map_err(|error| {
            let text = error.to_string();
            failed = Some(error);
            io::Error::other(text)
        })
    });
    match (failed, written) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(super::storage_error(error)),
        (None, Ok(())) => Ok(piece_count),
    }
}

/// The index of the generation with all recorded steps: the stored one extended by the steps it lacks, or all steps anew.
pub(crate) fn load(store: &Store, generation: &Arc<Generation>, row_end: u64) -> Result<IvfIndex, StorageError> {
    let steps = index_steps::read_steps(store, generation.number())?;
    let recorded_end = steps.last().map_or(0, |(_, end)| *end);
    if recorded_end != row_end {
        return Err(corrupt("index steps", &format!("end at row {recorded_end}, expected {row_end}")));
    }
    match load_stored(store, generation) {
        Ok(Some((index, stored_end))) => match steps.iter().position(|(_, end)| *end == stored_end) {
            Some(last_held) => index_steps::replay(store, generation, index, &steps[last_held + 1..]),
            None => rebuild(store, generation, &steps),
        },
        Ok(None) => rebuild(store, generation, &steps),
        Err(error) => {
            store.check()?;
            tracing::warn!(generation = generation.number(), %error, "stored index is unusable, rebuilding it");
            rebuild(store, generation, &steps)
        }
    }
}

/// The index from its steps alone.
pub(crate) fn rebuild(
    store: &Store,
    generation: &Arc<Generation>,
    steps: &[(u64, u64)],
) -> Result<IvfIndex, StorageError> {
    let empty = IvfIndex::empty(generation.clone()).map_err(super::storage_error)?;
    index_steps::replay(store, generation, empty, steps)
}

fn load_stored(store: &Store, generation: &Arc<Generation>) -> Result<Option<(IvfIndex, u64)>, StorageError> {
    let Some(stamp) = read_stamp(store)?.filter(|stamp| stamp.generation == generation.number()) else {
        return Ok(None);
    };
    let mut reader = PieceReader { store, stamp: &stamp, next: 0, piece: Vec::new(), used: 0 };
    let index =
        IvfIndex::read_from(generation.clone(), &mut |buffer| reader.read(buffer)).map_err(super::storage_error)?;
    Ok(Some((index, stamp.indexed_row_end)))
}

fn read_stamp(store: &Store) -> Result<Option<IndexStamp>, StorageError> {
    store.get(Family::Index, &keys::index_stamp())?.map(|value| decode("index stamp", &value)).transpose()
}

/// Hands out the pieces as one stream.
struct PieceReader<'a> {
    store: &'a Store,
    stamp: &'a IndexStamp,
    next: u32,
    piece: Vec<u8>,
    used: usize,
}

impl PieceReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.used == self.piece.len() && !self.fetch()? {
            return Ok(0);
        }
        let count = buffer.len().min(self.piece.len() - self.used);
        buffer[..count].copy_from_slice(&self.piece[self.used..self.used + count]);
        self.used += count;
        Ok(count)
    }

    fn fetch(&mut self) -> io::Result<bool> {
        if self.next == self.stamp.piece_count {
            return Ok(false);
        }
        let key = keys::index_piece(self.stamp.slot, self.next);
        let piece = self.store.get(Family::Index, &key).map_err(|error| io::Error::other(error.to_string()))?;
        let piece = piece.ok_or_else(|| io::Error::other(format!("piece {} of the index is missing", self.next)))?;
        self.piece.clear();
        self.piece.extend_from_slice(&piece);
        self.used = 0;
        self.next += 1;
        Ok(true)
    }
}
