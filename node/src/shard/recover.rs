//! Opening a copy: RocksDB is the truth; everything in memory and in the mapped file is made to agree with it.

use std::path::Path;
use std::sync::Arc;

use cluster_config::collection::CollectionSpec;
use half::f16;

use super::filter::tenants_on_disk;
use super::floor::Floor;
use super::identity::Identity;
use super::keys::{self, Family, MetaKey};
use super::log::Log;
use super::reclaim::{self, Reclaimer};
use super::records::{AppliedState, EffortCurve, corrupt, decode, decode_u64};
use super::store::Store;
use super::view::{Indexes, MeasuredEfforts, View};
use super::{index_blob, storage_error};
use crate::replication::storage::StorageError;
use crate::vector::{Calibration, Generation, IvfIndex, MappedVectors};

/// Bytes of vectors handed to the mapped file at a time while it is refilled.
const REFILL_BYTES: usize = 4 * 1024 * 1024;

/// A copy as it was found.
pub(crate) struct Recovered {
    pub(crate) log: Log,
    pub(crate) floor: Floor,
    pub(crate) vectors: MappedVectors,
    pub(crate) view: View,
    pub(crate) reclaimer: Reclaimer,
}

/// Reads what is applied and makes the derived parts agree with it.
pub(crate) fn recover(
    store: &Store,
    dir: &Path,
    identity: &Identity,
    spec: &CollectionSpec,
) -> Result<Recovered, StorageError> {
    let log = Log::open(store)?;
    let applied: AppliedState = match store.get(Family::Meta, &MetaKey::Applied.encode())? {
        Some(value) => AppliedState::decode(&value)?,
        None => AppliedState::default(),
    };
    let state = log.state();
    if applied.position > state.last || applied.position < state.purged {
        let (first, last) = (state.purged, state.last);
        return Err(corrupt(
            "log",
            &format!("applied {:?} lies outside of it, {first:?} to {last:?}", applied.position),
        ));
    }
    let floor = Floor::open(dir)?;
    if state.last.seqno < floor.get() {
        let (last, floor) = (state.last.seqno, floor.get());
        return Err(corrupt("log", &format!("it ends at {last}, but entries up to {floor} were committed here")));
    }
    let (tombstones, reclaimer) = reclaim::read_tombstones(store)?;
    let vectors = recover_vectors(store, dir, identity, spec, applied.row_end)?;
    let indexes = recover_indexes(store, &applied)?;
    let view = View::new(applied, Arc::new(tombstones), indexes, tenants_on_disk(store)?);
    view.check().map_err(StorageError::Corrupt)?;
    Ok(Recovered { log, floor, vectors, view, reclaimer })
}

fn recover_indexes(store: &Store, applied: &AppliedState) -> Result<Indexes, StorageError> {
    let load = |number, row_end| -> Result<Arc<IvfIndex>, StorageError> {
        let generation = Arc::new(read_generation(store, number)?);
        Ok(Arc::new(index_blob::load(store, &generation, row_end)?))
    };
    let mut indexes = Indexes::default();
    if applied.generation > 0 {
        indexes.serving = Some(load(applied.generation, applied.indexed_row_end)?);
    }
    if let Some(renewal) = applied.renewal {
        indexes.renewal = Some(load(renewal.generation, renewal.indexed_row_end)?);
    }
    if let Some(value) = store.get(Family::Meta, &MetaKey::EffortCurve.encode())? {
        let EffortCurve { row_end, rungs, .. } = decode("effort curve", &value)?;
        indexes.efforts = Some(Arc::new(MeasuredEfforts { row_end, table: Calibration::new(rungs) }));
    }
    Ok(indexes)
}

fn recover_vectors(
    store: &Store,
    dir: &Path,
    identity: &Identity,
    spec: &CollectionSpec,
    row_end: u64,
) -> Result<MappedVectors, StorageError> {
    let stamp = (u128::from(identity.copy.0) << 64) | u128::from(identity.lineage.0);
    let mut vectors = MappedVectors::open(&dir.join("vectors.f16"), spec.dim as usize, stamp).map_err(storage_error)?;
    if vectors.len() > row_end {
        // Appended by a batch that was never written.
        vectors.truncate(row_end).map_err(storage_error)?;
    }
    let mut next = vectors.len();
    if next < row_end {
        tracing::info!(rows = row_end - next, "refilling the mapped vectors from the database");
    }
    let row_bytes = 2 * spec.dim as usize;
    let mut buffer: Vec<u8> = Vec::with_capacity(REFILL_BYTES);
    let flush_at = REFILL_BYTES.saturating_sub(row_bytes).max(row_bytes);
    let start = next;
    store.scan(Family::Vectors, &keys::row(start), Some(keys::row(row_end).to_vec()), |key, value| {
        let row = decode_u64("vector key", key)?;
        if value.len() != row_bytes {
            return Err(corrupt("vector", &format!("row {row} has {} bytes, expected {row_bytes}", value.len())));
        }
        append_zeros(&vectors, &mut buffer, row - next, row_bytes)?;
        buffer.extend_from_slice(value);
        next = row + 1;
        if buffer.len() >= flush_at {
            vectors.append(&buffer).map_err(storage_error)?;
            buffer.clear();
        }
        Ok(true)
    })?;
    append_zeros(&vectors, &mut buffer, row_end - next, row_bytes)?;
    if !buffer.is_empty() {
        vectors.append(&buffer).map_err(storage_error)?;
    }
    Ok(vectors)
}

/// Dead rows have no vector any more; their places are kept, and never read.
fn append_zeros(
    vectors: &MappedVectors,
    buffer: &mut Vec<u8>,
    rows: u64,
    row_bytes: usize,
) -> Result<(), StorageError> {
    for _ in 0..rows {
        buffer.resize(buffer.len() + row_bytes, 0);
        if buffer.len() >= REFILL_BYTES {
            vectors.append(buffer).map_err(storage_error)?;
            buffer.clear();
        }
    }
    Ok(())
}

fn read_generation(store: &Store, number: u64) -> Result<Generation, StorageError> {
    let mut bytes = Vec::new();
    let (start, end) = keys::generation_pieces(number);
    store.scan(Family::Index, &start, Some(end), |_, piece| {
        bytes.extend_from_slice(piece);
        Ok(true)
    })?;
    Generation::from_bytes(&bytes).map_err(storage_error)
}

const _: () = assert!(size_of::<f16>() == 2);
