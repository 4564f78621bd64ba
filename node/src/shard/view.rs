//! What searches read: an immutable picture of one applied position. `apply` makes the next one and swaps it in once its batch is
//! written, so a search sees all of an entry or nothing of it, and never waits for a write.

use std::sync::{Arc, OnceLock};

use roaring::RoaringTreemap;

use super::records::AppliedState;
use crate::vector::{Calibration, IvfIndex, RowSet, VectorIndex};

/// Which tenants own rows. Nearly every shard has one, and then no search needs the tenant's bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tenants {
    None,
    One(Arc<str>),
    Many,
}

impl Tenants {
    /// Takes in the owner of a new row.
    pub(crate) fn add(&mut self, tenant: &str) {
        match self {
            Tenants::None => *self = Tenants::One(tenant.into()),
            Tenants::One(known) if **known == *tenant => {}
            Tenants::One(_) => *self = Tenants::Many,
            Tenants::Many => {}
        }
    }
}

/// The applied state at one position. The mapped vectors and RocksDB hold at least what it names.
///
/// Invariants: those of [`AppliedState`]; the indexes are there if and only if their generations are, and hold no row at or above
/// their `indexed_row_end`; `tombstones` are below `row_end`; `rows_live + tombstones = row_end`.
pub(crate) struct View {
    pub(crate) applied: AppliedState,
    pub(crate) tombstones: Arc<RoaringTreemap>,
    pub(crate) indexes: Indexes,
    pub(crate) tenants: Tenants,
    /// Made by the first search that needs it.
    live_rows: OnceLock<RowSet>,
}

/// What is searched in place of comparing every row.
#[derive(Clone, Default)]
pub(crate) struct Indexes {
    /// The index of the installed generation.
    pub(crate) serving: Option<Arc<IvfIndex>>,
    /// That of the generation which will take its place.
    pub(crate) renewal: Option<Arc<IvfIndex>>,
    /// What each effort finds in the one that serves, once that was measured.
    pub(crate) efforts: Option<Arc<MeasuredEfforts>>,
}

/// What each effort finds, measured on the rows of the index.
pub(crate) struct MeasuredEfforts {
    /// Rows below this were there.
    pub(crate) row_end: u64,
    pub(crate) table: Calibration,
}

impl View {
    pub(crate) fn new(
        applied: AppliedState,
        tombstones: Arc<RoaringTreemap>,
        indexes: Indexes,
        tenants: Tenants,
    ) -> Self {
        Self { applied, tombstones, indexes, tenants, live_rows: OnceLock::new() }
    }

    /// Every live row.
    pub(crate) fn live_rows(&self) -> &RowSet {
        self.live_rows.get_or_init(|| RowSet::live(self.applied.row_end, &self.tombstones))
    }

    /// Live rows that are not in the index.
    pub(crate) fn rows_tail(&self) -> u64 {
        let (start, end) = (self.applied.indexed_row_end, self.applied.row_end);
        (end - start) - self.tombstones.range_cardinality(start..end)
    }

    /// Heap bytes of the indexes and their generations.
    pub(crate) fn index_bytes(&self) -> u64 {
        let indexes = [&self.indexes.serving, &self.indexes.renewal];
        indexes.into_iter().flatten().map(|index| index.memory_bytes() + index.generation().memory_bytes()).sum()
    }

    /// Heap bytes of the sets of live and dead rows. Roaring bitmaps count as serialised, which is how they lie in memory.
    pub(crate) fn row_set_bytes(&self) -> u64 {
        let live = self.live_rows.get().map_or(0, RowSet::memory_bytes);
        live + self.tombstones.serialized_size() as u64
    }

    /// Names the broken invariant.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.applied.check()?;
        let dead = self.tombstones.len();
        if self.applied.rows_live + dead != self.applied.row_end {
            return Err(format!(
                "{} live and {dead} dead rows are not {}",
                self.applied.rows_live, self.applied.row_end
            ));
        }
        if self.tombstones.max().is_some_and(|row| row >= self.applied.row_end) {
            return Err("a row that was never given out is dead".into());
        }
        let serves = (self.applied.generation != 0).then_some((self.applied.generation, self.applied.indexed_row_end));
        let renewal = self.applied.renewal.map(|renewal| (renewal.generation, renewal.indexed_row_end));
        for (expected, index) in [(serves, &self.indexes.serving), (renewal, &self.indexes.renewal)] {
            let found = index.as_ref().map(|index| index.generation().number());
            if expected.map(|(generation, _)| generation) != found {
                return Err(format!("an index of generation {found:?} where {expected:?} is applied"));
            }
            if let (Some(index), Some((_, row_end))) = (index, expected)
                && index.row_end() > row_end
            {
                return Err(format!("row {} in an index of rows below {row_end}", index.row_end() - 1));
            }
        }
        Ok(())
    }
}
