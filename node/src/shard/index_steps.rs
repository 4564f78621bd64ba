//! The index grows by logged steps, and is rebuilt from what they recorded.
//!
//! A copy that rebuilds its index must come to the one that the others grew. Hence it is recorded how far the steps have come, and the
//! reduced vectors are stored as they were when they were first added. Where one step ends and the next begins makes no difference
//! to the index (see [`IvfIndex`]), so a rebuild takes many small steps together.

use cluster_config::limits::INDEX_STEP_ROWS_MAX;
use half::f16;

use super::keys;
use super::records::{corrupt, decode_u64};
use super::store::Store;
use crate::replication::storage::StorageError;
use crate::vector::{Generation, IvfIndex, MappedVectors};

use super::keys::Family;

/// Rows reduced by one matrix product: bounds the f32 copy of the original vectors (16 MiB at 4096 dimensions).
const ROWS_PER_PRODUCT: usize = 1024;

/// Reduced vectors of the rows of one step.
pub(crate) struct ReducedRows {
    /// `[n, reduced_dim]`, exactly the values that half precision can hold.
    pub(crate) values: Vec<f32>,
    reduced_dim: usize,
}

impl ReducedRows {
    /// Each row as it is stored: little-endian half floats.
    pub(crate) fn stored_rows(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        self.values
            .chunks_exact(self.reduced_dim.max(1))
            .map(|row| row.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect())
    }
}

/// Reduces rows for the index and rounds them to half precision.
pub(crate) fn reduce(generation: &Generation, vectors: &MappedVectors, rows: &[u64]) -> ReducedRows {
    let reduced_dim = generation.parameters().reduced_dim as usize;
    let mut values = Vec::with_capacity(rows.len() * reduced_dim);
    let mut originals = Vec::new();
    for block in rows.chunks(ROWS_PER_PRODUCT) {
        originals.clear();
        for row in block {
            originals.extend(vectors.get(*row).iter().map(|value| value.to_f32()));
        }
        generation.reduce(&originals, &mut values);
    }
    for value in &mut values {
        *value = f16::from_f32(*value).to_f32();
    }
    ReducedRows { values, reduced_dim }
}

/// Recorded steps of a generation: first row and end of each, dense from 0.
pub(crate) fn read_steps(store: &Store, generation: u64) -> Result<Vec<(u64, u64)>, StorageError> {
    let mut steps: Vec<(u64, u64)> = Vec::new();
    let (start, end) = keys::index_steps(generation);
    store.scan(Family::Meta, &start, Some(end), |key, value| {
        let row_start = keys::parse_last_number(key).ok_or_else(|| corrupt("index step", "short key"))?;
        let row_end = decode_u64("index step", value)?;
        if row_start != steps.last().map_or(0, |(_, end)| *end) || row_end <= row_start {
            return Err(corrupt("index step", &format!("{row_start}..{row_end} does not continue")));
        }
        steps.push((row_start, row_end));
        Ok(true)
    })?;
    Ok(steps)
}

/// Adds the rows of recorded steps to an index, from the stored reduced vectors.
pub(crate) fn replay(
    store: &Store,
    generation: &Generation,
    mut index: IvfIndex,
    steps: &[(u64, u64)],
) -> Result<IvfIndex, StorageError> {
    let number = generation.number();
    let value_bytes = 2 * generation.parameters().reduced_dim as usize;
    for (row_start, row_end) in together(steps) {
        let mut rows = Vec::new();
        let mut values = Vec::new();
        let (start, end) = (keys::reduced(number, row_start), keys::reduced(number, row_end));
        store.scan(Family::Reduced, &start, Some(end.to_vec()), |key, value| {
            if value.len() != value_bytes {
                return Err(corrupt("reduced vector", &format!("{} bytes, expected {value_bytes}", value.len())));
            }
            rows.push(keys::parse_last_number(key).ok_or_else(|| corrupt("reduced vector", "short key"))?);
            values.extend(value.chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]]).to_f32()));
            Ok(true)
        })?;
        if !rows.is_empty() {
            index = index.with_rows(&rows, &values).map_err(super::storage_error)?;
        }
    }
    Ok(index)
}

/// The same rows in as few steps as [`INDEX_STEP_ROWS_MAX`] allows: each copies the index once.
fn together(steps: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (row_start, row_end) in steps {
        match joined.last_mut() {
            Some((first, end)) if row_end - *first <= INDEX_STEP_ROWS_MAX => *end = *row_end,
            _ => joined.push((*row_start, *row_end)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_steps_are_taken_together_and_none_grows_too_large() {
        assert_eq!(together(&[]), []);
        assert_eq!(together(&[(300, 556), (556, 900)]), [(300, 900)]);
        let half = INDEX_STEP_ROWS_MAX / 2;
        let steps = [(0, half), (half, 2 * half), (2 * half, 2 * half + 1)];
        assert_eq!(together(&steps), [(0, 2 * half), (2 * half, 2 * half + 1)]);
    }
}
