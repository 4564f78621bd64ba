//! The memory ledger of the process: what the kernel says it holds, beside what its parts say they do.

use std::path::Path;

use cluster_config::memory::NodeMemory;
use cluster_config::units::ByteSize;
use tikv_jemalloc_ctl::{epoch, stats};

use crate::copies::Copies;
use crate::shard::StorageResources;

/// Share of the machine's memory (or of the container's) that a node may fill with anonymous pages, unless configured: the rest is for
/// the mapped vectors, whose pages make searches fast.
const BUDGET_PERCENT: u64 = 60;

/// Where the process stood before its first copy, and where it may go.
pub struct MemoryLedger {
    base: u64,
    budget: u64,
}

/// Resident bytes, as the kernel counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Resident {
    anonymous: u64,
    file: u64,
}

impl MemoryLedger {
    /// Begins with what the process holds now; a budget that is not configured is taken from the machine.
    pub fn begin(configured: Option<ByteSize>) -> Self {
        let budget = configured.map_or_else(|| machine_bytes() / 100 * BUDGET_PERCENT, |budget| budget.0);
        Self { base: resident().anonymous.saturating_sub(allocator_overhead()), budget }
    }

    /// The ledger now. Cheap enough for every heartbeat.
    pub fn read(&self, copies: &Copies, resources: &StorageResources) -> NodeMemory {
        let Resident { anonymous, file } = resident();
        NodeMemory {
            resident_anonymous: anonymous,
            resident_file: file,
            base: self.base,
            caches: resources.cache_usage_bytes() as u64,
            copies: copies.all().iter().map(|copy| copy.memory().anonymous()).sum(),
            allocator: allocator_overhead(),
            budget: self.budget,
        }
    }
}

fn resident() -> Resident {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    Resident { anonymous: kib(&status, "RssAnon:"), file: kib(&status, "RssFile:") }
}

/// Bytes that the allocator has resident beyond those it was asked for. 0: it keeps no statistics.
pub fn allocator_overhead() -> u64 {
    // Statistics are as of the last epoch.
    let read = || epoch::advance().and_then(|_| Ok(stats::resident::read()?.saturating_sub(stats::allocated::read()?)));
    read().unwrap_or(0) as u64
}

/// Memory of the machine, or of the control group where that has less. 0: unknown, and then nothing is refused.
fn machine_bytes() -> u64 {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
    let machine = kib(&read("/proc/meminfo"), "MemTotal:");
    // "max" where there is no limit.
    let group = read("/sys/fs/cgroup/memory.max").trim().parse().unwrap_or(u64::MAX);
    machine.min(group)
}

/// A value of a `/proc` file in bytes; it is written as `Name:   123 kB`. 0: there is none.
fn kib(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_proc_files_are_read() {
        let text = "VmRSS:\t   300 kB\nRssAnon:\t     200 kB\nRssFile:\t100 kB\nThreads:\t7\n";
        assert_eq!((kib(text, "RssAnon:"), kib(text, "RssFile:"), kib(text, "RssShmem:")), (204_800, 102_400, 0));
    }

    #[test]
    fn this_process_and_machine_have_memory() {
        let resident = resident();
        assert!(resident.anonymous > 0 && resident.file > 0, "{resident:?}");
        assert!(machine_bytes() > resident.anonymous);
        assert!(allocator_overhead() > 0);
    }
}
