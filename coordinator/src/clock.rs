//! This machine's wall clock, for what is told to callers and noted of a call. Deadlines use `Instant`; what coordinators compare with
//! each other is told by the database's clock (see [`catalog`](crate::catalog)): neither uses this.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Added by tests, milliseconds.
static SKEW_MS: AtomicI64 = AtomicI64::new(0);

/// Puts this process's wall clock wrong from now on.
pub(crate) fn skew_by(skew_ms: i64) {
    if skew_ms != 0 {
        tracing::warn!(skew_ms, "the wall clock is put wrong");
    }
    SKEW_MS.store(skew_ms, Ordering::Relaxed);
}

/// Now.
pub fn now() -> SystemTime {
    let skew_ms = SKEW_MS.load(Ordering::Relaxed);
    let skew = Duration::from_millis(skew_ms.unsigned_abs());
    #[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
    let now = SystemTime::now();
    if skew_ms < 0 { now - skew } else { now + skew }
}

/// Milliseconds since the Unix epoch. A clock set before 1970 reads as 0.
pub fn unix_ms() -> i64 {
    let since = now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
