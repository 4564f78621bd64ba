//! How loaded a node is, as C3 ranks it: smaller is better. Pure.
//!
//! `rank = R - S + (1 + outstanding * clients + q)^3 * S`, all times smoothed: `R` the response time seen here, `S` the service time
//! and `q` the queue that the node's replies tell. The cube makes a queue of two cost far more than twice a queue of one, which
//! spreads load before queues grow. Source: Suresh and others, "C3: Cutting Tail Latency in Cloud Data Stores via Adaptive
//! Replica Selection", NSDI 2015; Elasticsearch's adaptive replica selection.

use std::time::Duration;

/// Weight of a new sample.
const ALPHA: f64 = 0.3;
/// Coordinators that are assumed to ask as much as this one does. Coordinators do not know of each other; what the others ask shows in `q`.
const CLIENTS: f64 = 1.0;
/// Service time assumed of a node that has never answered, microseconds: it goes first, but a handful of calls without an answer
/// already rank it behind nodes that are known.
const UNKNOWN_SERVICE_US: f64 = 1.0;
/// Floor of a service time, so that a queue is a finite number.
const SERVICE_US_MIN: f64 = 1.0;
/// What a node was like loses half its weight in so long while nobody asks it.
const FORGETTING: Duration = Duration::from_secs(1);

/// What one reply told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// From sending to the reply.
    pub response: Duration,
    /// In the node's search queue.
    pub queued_us: u64,
    /// Computing.
    pub service_us: u64,
}

/// Smoothed times of one node, microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    response_us: f64,
    queued_us: f64,
    service_us: f64,
}

impl Load {
    /// After the first reply.
    pub fn first(sample: Sample) -> Self {
        let Sample { response, queued_us, service_us } = sample;
        let service_us = (service_us as f64).max(SERVICE_US_MIN);
        Self { response_us: micros(response).max(service_us), queued_us: queued_us as f64, service_us }
    }

    /// After another reply.
    pub fn observe(&mut self, sample: Sample) {
        self.blend(&Self::first(sample), ALPHA);
    }

    /// A call that was not waited for any longer took at least `waited`.
    pub fn observe_at_least(&mut self, waited: Duration) {
        let waited_us = micros(waited).max(self.response_us);
        self.response_us += ALPHA * (waited_us - self.response_us);
    }

    /// Moves toward `winner`, the longer nobody asked the farther: a node that was slow once is tried again.
    pub fn drift(&mut self, winner: &Load, unasked: Duration) {
        let kept = 0.5_f64.powf(unasked.as_secs_f64() / FORGETTING.as_secs_f64());
        self.blend(winner, 1.0 - kept);
    }

    fn blend(&mut self, other: &Load, weight: f64) {
        let toward = |value: &mut f64, target: f64| *value += weight * (target - *value);
        toward(&mut self.response_us, other.response_us);
        toward(&mut self.queued_us, other.queued_us);
        toward(&mut self.service_us, other.service_us);
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// The rank, microseconds; `load` is `None` for a node that has never answered, `outstanding` counts calls without an answer.
pub fn rank(load: Option<&Load>, outstanding: u32) -> f64 {
    let unknown = Load { response_us: UNKNOWN_SERVICE_US, queued_us: 0.0, service_us: UNKNOWN_SERVICE_US };
    let Load { response_us, queued_us, service_us } = *load.unwrap_or(&unknown);
    // The wait in the queue, counted in searches.
    let queue = queued_us / service_us;
    response_us - service_us + (1.0 + f64::from(outstanding) * CLIENTS + queue).powi(3) * service_us
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(response_us: u64, queued_us: u64, service_us: u64) -> Sample {
        Sample { response: Duration::from_micros(response_us), queued_us, service_us }
    }

    #[test]
    fn the_formula_by_hand() {
        let load = Load::first(sample(900, 200, 100));
        let close = |left: f64, right: f64| (left - right).abs() < 1e-6;
        assert!(close(rank(Some(&load), 0), 900.0 - 100.0 + 27.0 * 100.0));
        assert!(close(rank(Some(&load), 2), 900.0 - 100.0 + 125.0 * 100.0));
        assert!(close(rank(None, 0), 1.0));
        assert!(close(rank(None, 9), 1000.0));
    }

    #[test]
    fn samples_are_smoothed_and_a_beaten_call_only_raises() {
        let mut load = Load::first(sample(1000, 0, 100));
        load.observe(sample(2000, 0, 100));
        assert!((load.response_us - 1300.0).abs() < 1e-6);
        load.observe_at_least(Duration::from_micros(10));
        assert!((load.response_us - 1300.0).abs() < 1e-6);
        load.observe_at_least(Duration::from_micros(2300));
        assert!((load.response_us - 1600.0).abs() < 1e-6);
    }

    #[test]
    fn a_slow_node_that_nobody_asks_is_as_good_as_the_best_after_some_seconds() {
        let (fast, mut slow) = (Load::first(sample(1000, 0, 500)), Load::first(sample(100_000, 50_000, 20_000)));
        slow.drift(&fast, Duration::ZERO);
        assert!(rank(Some(&slow), 0) > 50.0 * rank(Some(&fast), 0));
        for _ in 0..1000 {
            slow.drift(&fast, Duration::from_millis(10));
        }
        assert!(rank(Some(&slow), 0) < 1.5 * rank(Some(&fast), 0));
    }

    proptest! {
        #[test]
        fn more_of_anything_ranks_no_better(
            response in 0u64..1_000_000, queued in 0u64..1_000_000, service in 0u64..100_000,
            outstanding in 0u32..1000, more in 1u64..100_000,
        ) {
            let load = Load::first(sample(response + service, queued, service));
            let base = rank(Some(&load), outstanding);
            prop_assert!(base.is_finite() && base > 0.0);
            prop_assert!(rank(Some(&load), outstanding + 1) > base);
            prop_assert!(rank(Some(&Load::first(sample(response + service + more, queued, service))), outstanding) > base);
            prop_assert!(rank(Some(&Load::first(sample(response + service, queued + more, service))), outstanding) > base);
        }
    }
}
