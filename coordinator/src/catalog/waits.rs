//! How long the catalog's callers wait before they can begin, and how many connections they hold meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, Registry};

/// From a free connection (tens of microseconds) to the default pool timeout.
const WAIT_BUCKETS: [f64; 12] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0];

/// Waits for connections and turns. Clones share it.
#[derive(Clone)]
pub(super) struct Waits {
    seconds: Histogram,
    timeouts: Arc<AtomicU64>,
    held: Arc<AtomicU32>,
}

/// A connection counts as held until this is dropped. The pool's own size counts those that it tries in vain to open, too.
pub(super) struct Held(Arc<AtomicU32>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Waits {
    pub(super) fn new() -> Self {
        let options = HistogramOpts::new(
            "catalog_pool_wait_seconds",
            "time until a call of the catalog had its connection and, to write into SQLite, its turn",
        );
        // Fails only on names and buckets that are no constants.
        #[expect(clippy::unwrap_used, reason = "constants, made by every test")]
        let seconds = Histogram::with_opts(options.buckets(WAIT_BUCKETS.to_vec())).unwrap();
        Self { seconds, timeouts: Arc::default(), held: Arc::default() }
    }

    pub(super) fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.seconds.clone()))
    }

    /// A wait that is over, in vain or not.
    pub(super) fn observe(&self, waited: Duration) {
        self.seconds.observe(waited.as_secs_f64());
    }

    /// A wait that was in vain.
    pub(super) fn timed_out(&self) {
        self.timeouts.fetch_add(1, Ordering::Relaxed);
    }

    /// A caller has got its connection.
    pub(super) fn hold(&self) -> Held {
        self.held.fetch_add(1, Ordering::Relaxed);
        Held(Arc::clone(&self.held))
    }

    /// Connections that callers hold now.
    pub(super) fn held(&self) -> u32 {
        self.held.load(Ordering::Relaxed)
    }

    /// Waits in vain so far.
    pub(super) fn timeouts(&self) -> u64 {
        self.timeouts.load(Ordering::Relaxed)
    }
}
