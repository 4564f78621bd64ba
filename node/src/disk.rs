//! Watches how full the file system of the data directory is. Client writes are refused while there is still room for what must go on:
//! entries of other primaries, deletes, flushes and compactions. A disk that is full to the last byte poisons copies instead.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cluster_config::error::ErrorKind;
use cluster_config::operation::Operation;
use prometheus::IntGauge;
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// Between two looks. At a gigabyte of writes per second, a disk of a terabyte is a tenth of a percent fuller by then.
const INTERVAL: Duration = Duration::from_secs(1);

/// The watched file system.
pub struct DiskWatch {
    dir: PathBuf,
    full_percent: u8,
    used_percent: AtomicU64,
    gauge: IntGauge,
}

impl DiskWatch {
    /// Watches the file system of `dir`; from `full_percent` on it counts as full. Not looked at yet.
    pub fn new(dir: PathBuf, full_percent: u8, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self { dir, full_percent, used_percent: AtomicU64::new(0), gauge })
    }

    /// Looks again and again until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let watch = Arc::clone(&self);
            // Only a panic could fail it. A stalled disk must not stall the reactor.
            let _ = tokio::task::spawn_blocking(move || watch.look()).await;
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Looks once. Blocks.
    pub fn look(&self) {
        let stat = match rustix::fs::statvfs(&self.dir) {
            Ok(stat) => stat,
            Err(error) => {
                tracing::warn!(dir = %self.dir.display(), %error, "cannot tell how full the disk is");
                return;
            }
        };
        let was_full = self.is_full();
        let used = used_percent(stat.f_blocks, stat.f_bavail);
        self.used_percent.store(used, Ordering::Relaxed);
        self.gauge.set(used as i64);
        match (was_full, self.is_full()) {
            (false, true) => {
                tracing::error!(used, dir = %self.dir.display(), "disk is full, client writes are refused")
            }
            (true, false) => tracing::info!(used, "disk has room again, client writes are taken"),
            _ => {}
        }
    }

    /// Whether the watermark is reached.
    pub fn is_full(&self) -> bool {
        self.used_percent.load(Ordering::Relaxed) >= u64::from(self.full_percent)
    }

    /// Errors: `StorageFull` where the disk is full and the write would add to it. Deletes are how it gets emptier.
    pub fn admit(&self, operations: &[Operation]) -> Result<(), Error> {
        let only_deletes = || operations.iter().all(|operation| matches!(operation, Operation::DeleteDocument { .. }));
        if !self.is_full() || only_deletes() {
            return Ok(());
        }
        let used = self.used_percent.load(Ordering::Relaxed);
        Err(Error::new(ErrorKind::StorageFull, format!("the disk of the shard's primary is {used} % full")).with_hint(
            format!(
                "delete documents, or free space on that disk; writes are taken again below {} %",
                self.full_percent
            ),
        ))
    }
}

/// What unprivileged processes cannot use counts as used.
fn used_percent(blocks: u64, available: u64) -> u64 {
    100 - (u128::from(available.min(blocks)) * 100).div_ceil(u128::from(blocks.max(1))).min(100) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_are_rounded_down() {
        for (blocks, available, expected) in [
            (100, 100, 0),
            (100, 0, 100),
            (1000, 51, 94),
            (1000, 50, 95),
            (0, 0, 100),
            (100, 200, 0),
            (u64::MAX, 1, 99),
        ] {
            assert_eq!(used_percent(blocks, available), expected, "{available} of {blocks}");
        }
    }
}
