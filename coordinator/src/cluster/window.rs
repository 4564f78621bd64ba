//! How often something was so over the last ten seconds, in ten counters. Pure: time is passed in.

use std::time::{Duration, Instant};

/// Seconds looked back.
const SECONDS: usize = 10;

/// Outcomes of the last ten seconds, in buckets of one second.
#[derive(Clone, Debug)]
pub struct Window {
    start: Instant,
    buckets: [Bucket; SECONDS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    second: u64,
    hits: u64,
    total: u64,
}

/// Outcomes counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of these so many were so.
    pub hits: u64,
    /// All.
    pub total: u64,
}

impl Counts {
    /// Whether there are at least `total_min` outcomes and more than `share` of them were so.
    pub fn exceed(self, share: f64, total_min: u64) -> bool {
        self.total >= total_min && self.hits as f64 > share * self.total as f64
    }
}

impl Window {
    /// Nothing counted; no later call may be given a time before `start`.
    pub fn new(start: Instant) -> Self {
        Self { start, buckets: [Bucket::default(); SECONDS] }
    }

    /// Counts one outcome.
    pub fn note(&mut self, now: Instant, is_hit: bool) {
        let second = self.second(now);
        let bucket = &mut self.buckets[second as usize % SECONDS];
        if bucket.second != second {
            *bucket = Bucket { second, ..Bucket::default() };
        }
        bucket.hits += u64::from(is_hit);
        bucket.total += 1;
    }

    /// What was counted in the last ten seconds.
    pub fn counts(&self, now: Instant) -> Counts {
        let second = self.second(now);
        let recent = self.buckets.iter().filter(|bucket| bucket.second + SECONDS as u64 > second);
        recent.fold(Counts::default(), |sum, bucket| Counts {
            hits: sum.hits + bucket.hits,
            total: sum.total + bucket.total,
        })
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs()
    }
}

/// The length of every window.
pub const WINDOW: Duration = Duration::from_secs(SECONDS as u64);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Model: keep every outcome with its second.
        #[test]
        fn counts_what_is_at_most_ten_seconds_old(outcomes in proptest::collection::vec((0u64..4000, any::<bool>()), 0..200)) {
            let start = Instant::now();
            let (mut window, mut kept, mut now_ms) = (Window::new(start), Vec::new(), 0);
            for (pause_ms, is_hit) in outcomes {
                now_ms += pause_ms;
                let now = start + Duration::from_millis(now_ms);
                window.note(now, is_hit);
                kept.push((now_ms / 1000, is_hit));
                let recent: Vec<_> = kept.iter().filter(|(second, _)| second + 10 > now_ms / 1000).collect();
                let hits = recent.iter().filter(|(_, is_hit)| *is_hit).count() as u64;
                prop_assert_eq!(window.counts(now), Counts { hits, total: recent.len() as u64 });
            }
            prop_assert_eq!(window.counts(start + Duration::from_millis(now_ms) + WINDOW), Counts::default());
        }
    }

    #[test]
    fn few_outcomes_prove_nothing() {
        assert!(!Counts { hits: 3, total: 3 }.exceed(0.5, 10));
        assert!(!Counts { hits: 5, total: 10 }.exceed(0.5, 10));
        assert!(Counts { hits: 6, total: 10 }.exceed(0.5, 10));
    }
}
