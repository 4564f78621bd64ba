//! Notices a disk that does not finish its syncs. It is asked from outside, because whoever syncs is stuck in the kernel.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The synced writes under way of all copies of the process.
#[derive(Debug, Default)]
pub(crate) struct SyncWatch {
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    /// By beginning; the number tells writes of the same instant apart.
    begun: BTreeSet<(Instant, u64)>,
    next: u64,
}

impl SyncWatch {
    /// A synced write begins; it ends when the guard is dropped.
    pub(crate) fn begin(&self) -> Syncing<'_> {
        let mut running = self.running.lock();
        running.next += 1;
        let write = (Instant::now(), running.next);
        running.begun.insert(write);
        Syncing { watch: self, write }
    }

    /// For how long the oldest write has been under way.
    pub(crate) fn oldest(&self) -> Duration {
        self.running.lock().begun.first().map_or(Duration::ZERO, |(begun, _)| begun.elapsed())
    }
}

/// One write under way.
pub(crate) struct Syncing<'a> {
    watch: &'a SyncWatch,
    write: (Instant, u64),
}

impl Drop for Syncing<'_> {
    fn drop(&mut self) {
        self.watch.running.lock().begun.remove(&self.write);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_write_under_way_counts() {
        let watch = SyncWatch::default();
        assert_eq!(watch.oldest(), Duration::ZERO);
        let first = watch.begin();
        let second = watch.begin();
        while watch.oldest() < Duration::from_millis(2) {}
        drop(first);
        assert!(watch.oldest() > Duration::ZERO, "the second is still under way");
        drop(second);
        assert_eq!(watch.oldest(), Duration::ZERO);
    }
}
