//! What searches read: an immutable picture of one applied position. `apply` makes the next one and swaps it in once its batch is
//! written, so a search sees all of an entry or nothing of it, and never waits for a write.

use std::sync::{Arc, OnceLock};

use roaring::RoaringTreemap;

use super::records::AppliedState;
use crate::vector::{Generation, IvfIndex, RowSet, VectorIndex};

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
/// Invariants: those of [`AppliedState`]; the index is there if and only if a generation is, and holds no row at or above
/// `indexed_row_end`; `tombstones` are below `row_end`; `rows_live + tombstones = row_end`.
pub(crate) struct View {
    pub(crate) applied: AppliedState,
    pub(crate) tombstones: Arc<RoaringTreemap>,
    pub(crate) generation: Option<Arc<Generation>>,
    pub(crate) index: Option<Arc<IvfIndex>>,
    pub(crate) tenants: Tenants,
    /// Made by the first search that needs it.
    live_rows: OnceLock<RowSet>,
}

impl View {
    pub(crate) fn new(
        applied: AppliedState,
        tombstones: Arc<RoaringTreemap>,
        generation: Option<Arc<Generation>>,
        index: Option<Arc<IvfIndex>>,
        tenants: Tenants,
    ) -> Self {
        Self { applied, tombstones, generation, index, tenants, live_rows: OnceLock::new() }
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

    /// Heap bytes that grow with the rows. Bitmaps count as serialised, which is how they lie in memory.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let index = self.index.as_ref().map_or(0, |index| index.memory_bytes());
        let live = self.live_rows.get().map_or(0, |rows| rows.row_end().div_ceil(8));
        index + live + self.tombstones.serialized_size() as u64
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
        if self.index.is_some() != (self.applied.generation != 0) || self.generation.is_some() != self.index.is_some() {
            return Err(format!("generation {} does not fit the index", self.applied.generation));
        }
        if let Some(index) = &self.index
            && index.len() > self.applied.indexed_row_end
        {
            return Err(format!("{} codes for {} indexed rows", index.len(), self.applied.indexed_row_end));
        }
        Ok(())
    }
}
