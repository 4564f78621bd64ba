//! What the primary computes for its shard, as operations to be logged: a generation, and what each effort finds in its index.

use std::sync::atomic::{AtomicBool, Ordering};

use cluster_config::limits;
use cluster_config::operation::Operation;

use super::view::View;
use super::{Shard, ShardError};
use crate::vector::{Cancel, Generation, MappedVectors, measure_effort};

impl Shard {
    /// Trains the next generation on a sample of the live rows and returns the `InstallGeneration` operations that install it, to
    /// be logged in this order, each small enough for an entry of its own.
    ///
    /// Cost: seconds of one core; runs beside searches and writes. Changes nothing by itself.
    /// Errors: `Conflict` (already training, no rows), `Cancelled`.
    pub fn train(&self, cancel: &Cancel) -> Result<Vec<Operation>, ShardError> {
        self.store.check()?;
        let _training = Claim::take(&self.is_training)
            .ok_or_else(|| ShardError::Conflict("the shard is training already".into()))?;
        let view = self.view();
        let rows_live = view.applied.rows_live;
        if rows_live == 0 {
            return Err(ShardError::Conflict("there are no rows to train on".into()));
        }
        let number = view.applied.newest_generation() + 1;
        let sample = sample(&view, &self.vectors, self.training_rows_max);
        let generation = Generation::train(number, &self.spec, sample, rows_live, cancel)?;
        let bytes = generation.to_bytes()?;
        // What no copy could install must not be logged.
        Generation::from_bytes(&bytes)?;
        if bytes.len() > limits::GENERATION_BYTES_MAX {
            return Err(ShardError::Conflict(format!("the trained generation has {} bytes", bytes.len())));
        }
        let pieces: Vec<&[u8]> = bytes.chunks(limits::GENERATION_PIECE_BYTES).collect();
        let piece_count = pieces.len() as u32;
        let install = |(piece, bytes): (u32, &[u8])| Operation::InstallGeneration {
            generation: number,
            piece,
            piece_count,
            bytes: bytes.to_vec(),
        };
        Ok((0..).zip(pieces).map(install).collect())
    }
}

impl Shard {
    /// Measures what each effort finds in the index that serves, as an operation to be logged; `None` where there is no index.
    ///
    /// Cost: seconds of one core; runs beside searches and writes. Changes nothing by itself. Errors: `Cancelled`.
    pub fn measure_effort(&self, cancel: &Cancel) -> Result<Option<Operation>, ShardError> {
        self.store.check()?;
        let view = self.view();
        let Some(index) = &view.indexes.serving else { return Ok(None) };
        let table = measure_effort(index, &self.vectors, &self.spec, view.live_rows(), cancel)?;
        let (generation, row_end) = (view.applied.generation, view.applied.row_end);
        let rungs = table.rungs().to_vec();
        Ok((!rungs.is_empty()).then_some(Operation::SetEffortCurve { generation, row_end, rungs }))
    }
}

/// At most `rows_max` live rows, evenly spread, as `[n, dim]`.
fn sample(view: &View, vectors: &MappedVectors, rows_max: usize) -> Vec<f32> {
    let live = view.applied.rows_live;
    let wanted = live.min(rows_max as u64);
    let mut sample = Vec::with_capacity(wanted as usize * vectors.dim());
    let rows = (0..view.applied.row_end).filter(|row| !view.tombstones.contains(*row));
    for (position, row) in (0..).zip(rows) {
        let is_taken = (position + 1) * wanted / live > position * wanted / live;
        if is_taken {
            sample.extend(vectors.get(row).iter().map(|value| value.to_f32()));
        }
    }
    sample
}

/// A flag that is set while held.
struct Claim<'a>(&'a AtomicBool);

impl<'a> Claim<'a> {
    fn take(flag: &'a AtomicBool) -> Option<Self> {
        (!flag.swap(true, Ordering::AcqRel)).then_some(Self(flag))
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
