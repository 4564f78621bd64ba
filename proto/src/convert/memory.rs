//! The memory ledgers.

use cluster_config::memory::{CopyMemory, NodeMemory};

use crate::v1;

impl From<CopyMemory> for v1::CopyMemory {
    fn from(memory: CopyMemory) -> Self {
        let CopyMemory { codes, row_sets, log, rescoring, tail } = memory;
        Self { codes, row_sets, log, rescoring, tail }
    }
}

impl From<v1::CopyMemory> for CopyMemory {
    fn from(wire: v1::CopyMemory) -> Self {
        let v1::CopyMemory { codes, row_sets, log, rescoring, tail } = wire;
        Self { codes, row_sets, log, rescoring, tail }
    }
}

impl From<NodeMemory> for v1::NodeMemory {
    fn from(memory: NodeMemory) -> Self {
        let NodeMemory { resident_anonymous, resident_file, base, caches, copies, allocator, budget } = memory;
        Self { resident_anonymous, resident_file, base, caches, copies, allocator, budget }
    }
}

impl From<v1::NodeMemory> for NodeMemory {
    fn from(wire: v1::NodeMemory) -> Self {
        let v1::NodeMemory { resident_anonymous, resident_file, base, caches, copies, allocator, budget } = wire;
        Self { resident_anonymous, resident_file, base, caches, copies, allocator, budget }
    }
}
