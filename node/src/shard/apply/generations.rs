//! Generations arrive in pieces, their indexes grow in logged steps, and a later one takes the place of an earlier one once it
//! holds as much: until then searches use the earlier one, so that no search ever has to do without an index it had.

use std::sync::Arc;

use cluster_config::limits;

use super::Group;
use crate::replication::storage::StorageError;
use crate::shard::keys::{self, Family, MetaKey};
use crate::shard::records::{EffortCurve, PendingGeneration, Renewal, corrupt, decode, encode, encode_u64};
use crate::shard::view::MeasuredEfforts;
use crate::shard::{index_steps, storage_error};
use crate::vector::{Calibration, Generation, IvfIndex};

impl Group<'_> {
    /// Pieces come in order; piece 0 begins anew (a primary may have died between two of its pieces), anything else out of order
    /// is left over from such a start and is ignored.
    pub(super) fn take_piece(
        &mut self,
        generation: u64,
        piece: u32,
        piece_count: u32,
        bytes: Vec<u8>,
    ) -> Result<(), StorageError> {
        let store = self.parts.store;
        let is_newer = generation > self.applied.newest_generation();
        let expected = PendingGeneration { generation, next_piece: piece, piece_count };
        if !is_newer || (piece > 0 && self.pending_generation()? != Some(expected)) {
            return Ok(());
        }
        if piece == 0 {
            let (start, end) = keys::generation_pieces(generation);
            self.batch.delete_range_cf(store.family(Family::Index), start, end);
            self.pieces.clear();
        }
        self.batch.put_cf(store.family(Family::Index), keys::generation_piece(generation, piece), &bytes);
        self.pieces.insert(piece, bytes);
        let meta = store.family(Family::Meta);
        if piece + 1 < piece_count {
            let next = PendingGeneration { next_piece: piece + 1, ..expected };
            self.batch.put_cf(meta, MetaKey::PendingGeneration.encode(), encode(&next));
            self.pending = Some(Some(next));
            return Ok(());
        }
        self.batch.delete_cf(meta, MetaKey::PendingGeneration.encode());
        self.pending = Some(None);
        self.install(generation, piece_count)
    }

    fn pending_generation(&mut self) -> Result<Option<PendingGeneration>, StorageError> {
        if self.pending.is_none() {
            self.pending = Some(match self.parts.store.get(Family::Meta, &MetaKey::PendingGeneration.encode())? {
                Some(value) => Some(decode("pending generation", &value)?),
                None => None,
            });
        }
        Ok(self.pending.flatten())
    }

    /// The generation is complete. The first one serves at once, with an empty index; a later one renews the one that serves.
    fn install(&mut self, number: u64, piece_count: u32) -> Result<(), StorageError> {
        let store = self.parts.store;
        let mut bytes = Vec::new();
        for piece in 0..piece_count {
            match self.pieces.get(&piece) {
                Some(piece) => bytes.extend_from_slice(piece),
                None => match store.get(Family::Index, &keys::generation_piece(number, piece))? {
                    Some(piece) => bytes.extend_from_slice(&piece),
                    None => return Err(corrupt("generation", &format!("piece {piece} of {number} is missing"))),
                },
            }
        }
        self.pieces.clear();
        let generation = Arc::new(Generation::from_bytes(&bytes).map_err(storage_error)?);
        let index = Arc::new(IvfIndex::empty(generation).map_err(storage_error)?);
        if let Some(abandoned) = self.applied.renewal.take() {
            self.drop_generation(abandoned.generation);
        }
        let installed_row_end = self.applied.row_end;
        if self.applied.indexed_row_end > 0 {
            self.applied.renewal = Some(Renewal { generation: number, indexed_row_end: 0, installed_row_end });
            self.indexes.renewal = Some(index);
        } else {
            self.serve(Renewal { generation: number, indexed_row_end: 0, installed_row_end }, index);
        }
        Ok(())
    }

    /// Searches use the generation from now on; the earlier one goes, and with it what was measured of it.
    fn serve(&mut self, renewed: Renewal, index: Arc<IvfIndex>) {
        if self.applied.generation > 0 {
            self.drop_generation(self.applied.generation);
        }
        self.batch.delete_cf(self.parts.store.family(Family::Meta), MetaKey::EffortCurve.encode());
        self.applied.generation = renewed.generation;
        self.applied.indexed_row_end = renewed.indexed_row_end;
        self.applied.installed_row_end = renewed.installed_row_end;
        self.applied.renewal = None;
        self.indexes.serving = Some(index);
        self.indexes.renewal = None;
        self.indexes.efforts = None;
    }

    fn drop_generation(&mut self, number: u64) {
        let ranges = [
            (Family::Reduced, keys::reduced_of(number)),
            (Family::Meta, keys::index_steps(number)),
            (Family::Index, keys::generation_pieces(number)),
        ];
        for (family, (start, end)) in ranges {
            self.batch.delete_range_cf(self.parts.store.family(family), start, end);
        }
    }

    /// Grows the index of the generation, if it is the one that serves or the one that renews it.
    pub(super) fn index_up_to(&mut self, generation: u64, row_end: u64) -> Result<(), StorageError> {
        if let Some(renewal) = self.applied.renewal.filter(|renewal| renewal.generation == generation)
            && let Some(index) = self.indexes.renewal.clone()
        {
            let Some((indexed_row_end, index)) = self.grow(&index, renewal.indexed_row_end, row_end)? else {
                return Ok(());
            };
            let renewal = Renewal { indexed_row_end, ..renewal };
            if indexed_row_end >= self.applied.indexed_row_end {
                self.serve(renewal, index);
            } else {
                self.applied.renewal = Some(renewal);
                self.indexes.renewal = Some(index);
            }
        } else if generation == self.applied.generation
            && let Some(index) = self.indexes.serving.clone()
            && let Some((indexed_row_end, index)) = self.grow(&index, self.applied.indexed_row_end, row_end)?
        {
            self.applied.indexed_row_end = indexed_row_end;
            self.indexes.serving = Some(index);
        }
        Ok(())
    }

    /// The index with the live rows from `row_start` on, up to `row_end` or the largest step, as one recorded step. `None`: there
    /// are no such rows.
    fn grow(
        &mut self,
        index: &Arc<IvfIndex>,
        row_start: u64,
        row_end: u64,
    ) -> Result<Option<(u64, Arc<IvfIndex>)>, StorageError> {
        let row_end = row_end.min(self.applied.row_end).min(row_start + limits::INDEX_STEP_ROWS_MAX);
        if row_end <= row_start {
            return Ok(None);
        }
        let (store, generation) = (self.parts.store, index.generation().number());
        let live: Vec<u64> = (row_start..row_end).filter(|row| !self.tombstones.contains(*row)).collect();
        let step = index_steps::reduce(index.generation(), self.parts.vectors, &live);
        for (row, reduced) in live.iter().zip(step.stored_rows()) {
            self.batch.put_cf(store.family(Family::Reduced), keys::reduced(generation, *row), reduced);
        }
        let key = MetaKey::IndexStep { generation, row_start }.encode();
        self.batch.put_cf(store.family(Family::Meta), key, encode_u64(row_end));
        if live.is_empty() {
            return Ok(Some((row_end, Arc::clone(index))));
        }
        Ok(Some((row_end, Arc::new(index.with_rows(&live, &step.values).map_err(storage_error)?))))
    }

    /// Searches choose their effort from these measurements from now on, if they are of the generation that serves.
    pub(super) fn set_efforts(&mut self, curve: EffortCurve) {
        if curve.generation != self.applied.generation || curve.generation == 0 {
            return;
        }
        self.batch.put_cf(self.parts.store.family(Family::Meta), MetaKey::EffortCurve.encode(), encode(&curve));
        let EffortCurve { row_end, rungs, .. } = curve;
        self.indexes.efforts = Some(Arc::new(MeasuredEfforts { row_end, table: Calibration::new(rungs) }));
    }
}
