//! What a copy tells of itself: to heartbeats, `susui status` and the metrics.

use std::fmt;
use std::sync::atomic::Ordering;

use cluster_config::memory::CopyMemory;

use super::Shard;
use crate::vector::VectorIndex;

/// How a copy searches now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexState {
    /// Every live row is compared.
    Exact,
    /// Exact, and this copy is training a generation.
    Training,
    /// A generation is installed; most rows are still in the exact tail.
    Building,
    /// Most rows are in the index.
    Indexed,
    /// As `Indexed`, and the index of the next generation grows beside it.
    Renewing,
    /// The disk failed; nothing is answered until the copy is reopened.
    Poisoned,
}

impl IndexState {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            IndexState::Exact => "exact",
            IndexState::Training => "training",
            IndexState::Building => "building",
            IndexState::Indexed => "indexed",
            IndexState::Renewing => "renewing",
            IndexState::Poisoned => "poisoned",
        }
    }
}

impl fmt::Display for IndexState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Counts of one copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardStats {
    /// Live documents.
    pub document_count: u64,
    /// Rows that are neither replaced nor deleted.
    pub rows_live: u64,
    /// Live rows in the index.
    pub rows_indexed: u64,
    /// Live rows that are compared exactly.
    pub rows_tail: u64,
    /// Rows ever given out, with the dead ones.
    pub row_end: u64,
    /// Rows that the index has reached.
    pub indexed_row_end: u64,
    /// Installed generation; 0: none.
    pub generation: u64,
    /// How the copy searches.
    pub index_state: IndexState,
    /// Codes in the index, with those of dead rows.
    pub codes: u64,
    /// Bytes of table files, write-ahead logs and mapped vectors.
    pub disk_bytes: u64,
    /// Bytes of memory, by part.
    pub memory: CopyMemory,
}

impl Shard {
    /// Counts of this copy now.
    pub fn stats(&self) -> ShardStats {
        let view = self.view();
        let rows_live = view.applied.rows_live;
        let rows_tail = view.rows_tail();
        let rows_indexed = rows_live - rows_tail;
        let index_state = if self.store.check().is_err() {
            IndexState::Poisoned
        } else if self.is_training.load(Ordering::Relaxed) {
            IndexState::Training
        } else if view.applied.generation == 0 {
            IndexState::Exact
        } else if rows_tail > rows_indexed {
            IndexState::Building
        } else if view.applied.renewal.is_some() {
            IndexState::Renewing
        } else {
            IndexState::Indexed
        };
        let memory = self.memory();
        ShardStats {
            document_count: view.applied.document_count,
            rows_live,
            rows_indexed,
            rows_tail,
            row_end: view.applied.row_end,
            indexed_row_end: view.applied.indexed_row_end,
            generation: view.applied.generation,
            index_state,
            codes: view.indexes.serving.as_ref().map_or(0, |index| index.len()),
            disk_bytes: self.store.disk_bytes() + memory.rescoring,
            memory,
        }
    }

    /// Bytes of memory, by part; without the entries that replication keeps.
    pub fn memory(&self) -> CopyMemory {
        let view = self.view();
        let row_bytes = self.vectors.row_bytes() as u64;
        let reclaimer_bytes = self.applier.try_lock().map_or(0, |reclaimer| reclaimer.memory_bytes());
        CopyMemory {
            codes: view.index_bytes(),
            row_sets: view.row_set_bytes(),
            log: self.log.memory_bytes() + reclaimer_bytes,
            rescoring: self.vectors.len() * row_bytes,
            tail: (view.applied.row_end - view.applied.indexed_row_end) * row_bytes,
        }
    }
}
