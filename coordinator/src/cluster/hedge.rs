//! When and how often a slow shard is asked of a second copy: after the p95 of its own answers, for at most one sub-request in
//! twenty. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use cluster_config::limits;

use super::window::{WINDOW, Window};

/// No hedge earlier than this: below it the second request costs more than it saves.
const HEDGE_DELAY_MIN: Duration = Duration::from_millis(5);
/// Fewer answers say nothing about their slowest twentieth.
const ANSWERS_MIN: usize = 20;

/// How long a shard took to answer, lately: the latest answers of the last ten seconds.
///
/// A ring and a selection instead of a histogram: it holds exactly the answers asked about (a histogram forgets by halves or needs two to
/// rotate), takes 3 KiB a shard where an HDR histogram of this range takes tens, and a selection over 128 numbers costs less than
/// a microsecond.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    answers: VecDeque<(Instant, Duration)>,
}

impl Latencies {
    /// Notes one answer; the oldest gives way.
    pub fn note(&mut self, now: Instant, took: Duration) {
        if self.answers.len() == limits::LATENCY_SAMPLES_MAX {
            self.answers.pop_front();
        }
        self.answers.push_back((now, took));
    }

    /// How long to wait for this shard before it is asked of another copy; `None` while too little is known.
    pub fn hedge_delay(&self, now: Instant) -> Option<Duration> {
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < WINDOW;
        let mut recent: Vec<Duration> =
            self.answers.iter().rev().take_while(|(at, _)| is_recent(at)).map(|(_, took)| *took).collect();
        if recent.len() < ANSWERS_MIN {
            return None;
        }
        let p95 = recent.len() * 95 / 100;
        let (_, p95, _) = recent.select_nth_unstable(p95);
        Some((*p95).max(HEDGE_DELAY_MIN))
    }
}

/// Earned by each sub-request: a twentieth of a hedge.
const EARNED_THOUSANDTHS: u64 = 50;
/// Hedges saved up at most: what one scatter over ten shards may want at once.
pub const SAVED_MAX: u64 = 10;
/// Share of `Overloaded` among recent replies above which nothing is hedged: more requests would not make it faster.
const OVERLOADED_SHARE_MAX: f64 = 0.2;
const REPLIES_MIN: u64 = 20;

/// A token bucket filled by traffic, shut while nodes are overloaded.
#[derive(Clone, Debug)]
pub struct HedgeBudget {
    thousandths: u64,
    /// `Overloaded` among all replies.
    overloaded: Window,
}

impl HedgeBudget {
    /// A full bucket.
    pub fn new(now: Instant) -> Self {
        Self { thousandths: SAVED_MAX * 1000, overloaded: Window::new(now) }
    }

    /// A sub-request was sent that is no hedge.
    pub fn earn(&mut self) {
        self.thousandths = (self.thousandths + EARNED_THOUSANDTHS).min(SAVED_MAX * 1000);
    }

    /// A reply came.
    pub fn note_reply(&mut self, now: Instant, is_overloaded: bool) {
        self.overloaded.note(now, is_overloaded);
    }

    /// Takes one hedge, if there is one.
    pub fn spend(&mut self, now: Instant) -> bool {
        let may = self.thousandths >= 1000 && !self.overloaded.counts(now).exceed(OVERLOADED_SHARE_MAX, REPLIES_MIN);
        if may {
            self.thousandths -= 1000;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_delay_is_the_p95_of_the_last_ten_seconds() {
        let start = Instant::now();
        let mut latencies = Latencies::default();
        for number in 1..=100 {
            latencies.note(start, Duration::from_millis(number));
            let expected = (number >= 20).then(|| Duration::from_millis(number * 95 / 100 + 1));
            assert_eq!(latencies.hedge_delay(start), expected, "{number}");
        }
        assert_eq!(latencies.hedge_delay(start + WINDOW), None);
        for _ in 0..limits::LATENCY_SAMPLES_MAX {
            latencies.note(start, Duration::from_micros(10));
        }
        assert_eq!(latencies.hedge_delay(start), Some(HEDGE_DELAY_MIN), "the old ones gave way");
        assert_eq!(latencies.answers.len(), limits::LATENCY_SAMPLES_MAX);
    }

    proptest! {
        #[test]
        fn hedges_stay_a_twentieth_of_the_requests(wants in proptest::collection::vec(any::<bool>(), 0..3000)) {
            let now = Instant::now();
            let mut budget = HedgeBudget::new(now);
            let (mut requests, mut hedges) = (0_u64, 0);
            for wants in wants {
                requests += 1;
                budget.earn();
                hedges += u64::from(wants && budget.spend(now));
                prop_assert!(hedges <= SAVED_MAX + requests / 20);
            }
        }
    }

    #[test]
    fn nothing_is_hedged_while_nodes_are_overloaded() {
        let start = Instant::now();
        let mut budget = HedgeBudget::new(start);
        for number in 0..100 {
            budget.note_reply(start, number % 4 == 0);
        }
        assert!(!budget.spend(start));
        assert!(budget.spend(start + WINDOW), "ten seconds later it is forgotten");
    }
}
