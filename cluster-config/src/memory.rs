//! What memory goes to: the ledger of a shard copy and of its process, as `susui status --memory` shows it.

use serde::{Deserialize, Serialize};

/// Bytes of one shard copy, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyMemory {
    /// Indexes: codes, row numbers, centroids; two indexes while one renews the other.
    pub codes: u64,
    /// Bitmaps of live and dead rows. The bitmaps of filters lie in RocksDB's cache.
    pub row_sets: u64,
    /// Newest log entries, and what else is kept for writing.
    pub log: u64,
    /// Vectors that candidates are re-scored with: pages of a mapped file, which the operating system may give up.
    pub rescoring: u64,
    /// Those of them that no index holds yet.
    pub tail: u64,
}

impl CopyMemory {
    /// Bytes that only the end of the copy gives back.
    pub fn anonymous(&self) -> u64 {
        self.codes + self.row_sets + self.log
    }

    /// All bytes, as if every page of the mapped file were resident.
    pub fn total(&self) -> u64 {
        self.anonymous() + self.rescoring
    }
}

/// Bytes of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeMemory {
    /// Resident and not of a file, as the kernel counts it.
    pub resident_anonymous: u64,
    /// Resident pages of files: the program, and mapped vectors.
    pub resident_file: u64,
    /// What the process took before it opened its first copy, without the allocator's part.
    pub base: u64,
    /// RocksDB's caches, memtables included.
    pub caches: u64,
    /// The anonymous parts of all copies.
    pub copies: u64,
    /// Resident pages of the allocator beyond what it was asked for: freed and not yet given back, rounded up, its own records.
    pub allocator: u64,
    /// New copies go elsewhere once `resident_anonymous` reaches this.
    pub budget: u64,
}

impl NodeMemory {
    /// What the ledger can name; to be compared with `resident_anonymous`.
    pub fn accounted(&self) -> u64 {
        self.base + self.caches + self.copies + self.allocator
    }

    /// Whether the node takes no new copies.
    pub fn is_full(&self) -> bool {
        self.budget > 0 && self.resident_anonymous >= self.budget
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_full_when_the_kernel_says_so_not_the_ledger() {
        let memory = NodeMemory { resident_anonymous: 100, budget: 101, base: 500, ..NodeMemory::default() };
        assert!(!memory.is_full());
        assert!(NodeMemory { budget: 100, ..memory }.is_full());
        assert!(!NodeMemory { budget: 0, ..memory }.is_full(), "nothing is known of it");
    }
}
