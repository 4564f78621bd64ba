//! Spreads bulk work over time, so that searches and writes keep most of the disk and the wire.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::vector::{Cancel, VectorError};

/// A burst may be as long as the budget of this, so that short pauses of the caller cost nothing.
const BURST: Duration = Duration::from_millis(100);
/// A blocked caller looks this often whether it is cancelled.
const CANCEL_INTERVAL: Duration = Duration::from_millis(50);

/// A budget of bytes per second, shared by all who hold it.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: u64,
    /// When everything booked so far will have been paid for.
    paid_at: Mutex<Instant>,
}

impl Pace {
    /// At most that many bytes per second; at least one.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid_at: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` more are within the budget.
    ///
    /// Cancel: what was booked stays booked.
    pub async fn wait(&self, bytes: u64) {
        tokio::time::sleep(self.book(bytes, Instant::now())).await;
    }

    /// The same on a thread that may block. Errors: as `cancel` says.
    pub fn wait_blocking(&self, bytes: u64, cancel: &Cancel) -> Result<(), VectorError> {
        let until = Instant::now() + self.book(bytes, Instant::now());
        loop {
            cancel.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(CANCEL_INTERVAL));
        }
    }

    fn book(&self, bytes: u64, now: Instant) -> Duration {
        let mut paid_at = self.paid_at.lock();
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let wait = paid_at.max(earliest).saturating_duration_since(now);
        *paid_at = paid_at.max(earliest) + cost;
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bookings_queue_behind_each_other_and_idle_time_is_not_saved_up() {
        let pace = Pace::new(1000);
        let start = Instant::now() + Duration::from_secs(60);
        assert_eq!(pace.book(600, start), Duration::ZERO, "the first may go at once");
        assert_eq!(pace.book(400, start), Duration::from_millis(500), "0.6 s for the first, less the burst");
        assert_eq!(pace.book(1, start), Duration::from_millis(900));
        let later = start + Duration::from_secs(3600);
        assert_eq!(pace.book(1000, later), Duration::ZERO);
        assert_eq!(pace.book(1, later), Duration::from_millis(900), "an hour of silence bought no more than a burst");
    }
}
