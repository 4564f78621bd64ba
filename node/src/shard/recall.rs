//! How much of what exact search would find live queries do find: sampled, checked later, exported.
//!
//! A search hands over what it found, if it used the index at the default effort and the copy has had no sample for a
//! while; whoever has time compares it with exact search over the same rows. Nothing waits for it, and one sample is held at most.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cluster_config::search::SearchKnobs;
use parking_lot::Mutex;

use super::{Shard, ShardError};
use crate::vector::{Cancel, FlatIndex, ProbeParams, RowSet, VectorIndex};

/// Results of a query that are compared.
const RECALL_AT: usize = 10;
/// Between two samples of a copy, at least.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// A copy spends at most one part in so many of a thread's time on comparing.
const SHARE_OF_TIME: u32 = 50;
/// Samples that the exported recall is the mean of.
const WINDOW: usize = 200;
/// Fewer say nothing yet.
const WINDOW_MIN: usize = 20;

/// A search as it was answered.
pub(crate) struct Sample {
    pub(crate) generation: u64,
    pub(crate) allowed: RowSet,
    pub(crate) query: Vec<f32>,
    /// Best first.
    pub(crate) rows: Vec<u64>,
    pub(crate) fetch_k: usize,
}

/// Samples and what they showed.
pub(crate) struct RecallWatch {
    opened_at: Instant,
    /// Milliseconds after `opened_at` before which no sample is taken.
    next_at_ms: AtomicU64,
    waiting: Mutex<Option<Sample>>,
    seen: Mutex<Seen>,
}

/// Of the newest samples of one generation: exact results found, and wanted.
#[derive(Default)]
struct Seen {
    generation: u64,
    samples: VecDeque<(usize, usize)>,
}

impl RecallWatch {
    pub(crate) fn new() -> Self {
        Self {
            opened_at: Instant::now(),
            next_at_ms: AtomicU64::new(0),
            waiting: Mutex::default(),
            seen: Mutex::default(),
        }
    }

    /// Takes a sample, if one is due. Costs a look at the clock otherwise.
    pub(crate) fn offer(&self, sample: impl FnOnce() -> Sample) {
        let now = self.now_ms();
        let due = self.next_at_ms.load(Ordering::Relaxed);
        let next = now + INTERVAL_MIN.as_millis() as u64;
        if now < due || self.next_at_ms.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        *self.waiting.lock() = Some(sample());
    }

    /// Mean recall of the newest samples; `None` while they are too few.
    pub(crate) fn recall(&self) -> Option<f64> {
        let seen = self.seen.lock();
        let (found, wanted) = seen.samples.iter().fold((0, 0), |sum, sample| (sum.0 + sample.0, sum.1 + sample.1));
        (seen.samples.len() >= WINDOW_MIN).then(|| found as f64 / wanted as f64)
    }

    fn note(&self, generation: u64, found: usize, wanted: usize, took: Duration) {
        let pause = (took * SHARE_OF_TIME).max(INTERVAL_MIN).as_millis() as u64;
        self.next_at_ms.store(self.now_ms() + pause, Ordering::Relaxed);
        let mut seen = self.seen.lock();
        if seen.generation != generation {
            *seen = Seen { generation, samples: VecDeque::new() };
        }
        if seen.samples.len() == WINDOW {
            seen.samples.pop_front();
        }
        seen.samples.push_back((found, wanted));
    }

    fn now_ms(&self) -> u64 {
        self.opened_at.elapsed().as_millis() as u64
    }
}

/// Whether the query leaves the effort to the shard: those that ask for more or less say nothing about the default.
pub(crate) fn is_default_effort(knobs: &SearchKnobs) -> bool {
    *knobs == SearchKnobs::default()
}

impl Shard {
    /// Recall@10 of live queries at the default effort, over the newest samples of the generation that serves; `None` while they are
    /// too few.
    pub fn recall_at_10(&self) -> Option<f64> {
        self.recall_watch.recall()
    }

    /// Whether a sampled query waits for [`Shard::check_sample`].
    pub fn has_sample(&self) -> bool {
        self.recall_watch.waiting.lock().is_some()
    }

    /// Compares the sampled query that waits with exact search; does nothing where there is none.
    ///
    /// Cost: one exact search. Errors: `Cancelled`, `Unavailable` (poisoned).
    pub fn check_sample(&self, cancel: &Cancel) -> Result<(), ShardError> {
        self.store.check()?;
        let Some(sample) = self.recall_watch.waiting.lock().take() else { return Ok(()) };
        let started = Instant::now();
        let wanted = RECALL_AT.min(sample.fetch_k);
        // The index is not asked, so the parameters are not either.
        let params = ProbeParams { nprobe: 1, found_min: 0 };
        let flat = FlatIndex::new(&self.vectors, self.spec.metric);
        let exact = flat.search(&sample.query, wanted, &params, &sample.allowed, cancel)?.best;
        let found =
            exact.iter().filter(|best| sample.rows[..wanted.min(sample.rows.len())].contains(&best.row)).count();
        if !exact.is_empty() {
            self.recall_watch.note(sample.generation, found, exact.len(), started.elapsed());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Sample {
        Sample { generation: 1, allowed: RowSet::all(1), query: vec![1.0], rows: vec![0], fetch_k: 1 }
    }

    #[test]
    fn recall_is_the_mean_of_the_newest_samples_of_one_generation() {
        let watch = RecallWatch::new();
        (0..WINDOW_MIN - 1).for_each(|_| watch.note(1, 5, 10, Duration::ZERO));
        assert_eq!(watch.recall(), None, "too few");
        watch.note(1, 5, 10, Duration::ZERO);
        assert_eq!(watch.recall(), Some(0.5));
        (0..WINDOW).for_each(|_| watch.note(1, 2, 2, Duration::ZERO));
        assert_eq!(watch.recall(), Some(1.0), "old samples have left");
        watch.note(2, 0, 10, Duration::ZERO);
        assert_eq!(watch.recall(), None, "another generation");
    }

    #[test]
    fn samples_are_taken_one_at_a_time_and_seldom() {
        let watch = RecallWatch::new();
        watch.offer(sample);
        assert!(watch.waiting.lock().take().is_some());
        watch.offer(|| unreachable!("the next one is not due"));
        watch.note(1, 1, 1, Duration::from_secs(3600));
        watch.offer(|| unreachable!("comparing took long, so the next one is far off"));
    }
}
