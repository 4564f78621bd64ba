//! Opening a copy: RocksDB is the truth; everything in memory and in the mapped file is made to agree with it.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use cluster_config::collection::CollectionSpec;

use super::filter::tenants_on_disk;
use super::floor::Floor;
use super::identity::Identity;
use super::keys::{self, Family, MetaKey};
use super::label::{self, LABEL_BYTES};
use super::log::Log;
use super::reclaim::{self, Reclaimer};
use super::records::{AppliedState, EffortCurve, corrupt, decode, decode_u64};
use super::store::Store;
use super::view::{Indexes, MeasuredEfforts, View};
use super::{index_blob, storage_error};
use crate::replication::storage::StorageError;
use crate::vector::{Calibration, Generation, IvfIndex, MappedVectors};

/// Bytes handed to the mapped file at a time while it is refilled.
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
    let path = dir.join("vectors.f16");
    let mut vectors = MappedVectors::open(&path, spec.dim as usize, LABEL_BYTES, stamp).map_err(storage_error)?;
    if vectors.len() > row_end {
        // Appended by a batch that was never written.
        vectors.truncate(row_end).map_err(storage_error)?;
    }
    if vectors.len() < row_end {
        tracing::info!(rows = row_end - vectors.len(), "refilling the mapped vectors from the database");
    }
    let rows_at_once = (REFILL_BYTES / vectors.row_bytes()).max(1) as u64;
    while vectors.len() < row_end {
        let from = vectors.len();
        let bytes = read_rows(store, spec.dim as usize, from..row_end.min(from + rows_at_once))?;
        vectors.append(&bytes).map_err(storage_error)?;
    }
    Ok(vectors)
}

/// Vectors and labels as the mapped file has them. Dead rows have no vector any more; their places are kept, and never read.
fn read_rows(store: &Store, dim: usize, rows: Range<u64>) -> Result<Vec<u8>, StorageError> {
    let vector_bytes = 2 * dim;
    let row_bytes = vector_bytes + LABEL_BYTES;
    let mut bytes = vec![0; (rows.end - rows.start) as usize * row_bytes];
    let mut found = Vec::new();
    store.scan(Family::Vectors, &keys::row(rows.start), Some(keys::row(rows.end).to_vec()), |key, vector| {
        let row = decode_u64("vector key", key)?;
        if vector.len() != vector_bytes {
            return Err(corrupt("vector", &format!("row {row} has {} bytes, expected {vector_bytes}", vector.len())));
        }
        let place = (row - rows.start) as usize * row_bytes;
        bytes[place..place + vector_bytes].copy_from_slice(vector);
        found.push(row);
        Ok(true)
    })?;
    let heads = store.get_many(Family::Docs, &found.iter().map(|row| keys::row_head(*row)).collect::<Vec<_>>())?;
    for (row, head) in found.into_iter().zip(heads) {
        let head = head.ok_or_else(|| corrupt("row head", &format!("row {row} has none")))?;
        let place = (row - rows.start) as usize * row_bytes + vector_bytes;
        bytes[place..place + LABEL_BYTES].copy_from_slice(&label::encode(&decode("row head", &head)?));
    }
    Ok(bytes)
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
