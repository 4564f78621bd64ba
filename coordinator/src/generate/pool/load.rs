//! How much a backend costs right now, as numbers that a choice can compare. Pure; time is passed in.

use std::time::{Duration, Instant};

use super::super::backend::Report;

/// Time in which an old sample's weight falls to a third. Also how fast a backend that gets no requests is forgiven.
const DECAY: Duration = Duration::from_secs(10);
/// A KV cache counts as this full at most, so that the cost stays finite.
const KV_USED_MAX: f32 = 0.95;
/// A model that is not on the GPU costs this much more: it must be loaded first, or computes on the CPU.
const OFF_GPU_COST: f64 = 2.0;

/// Seconds to the first token: jumps up to a slower sample at once, sinks slowly. After Finagle's "peak EWMA".
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PeakEwma {
    seconds: f64,
    at: Option<Instant>,
}

impl PeakEwma {
    /// Notes one wait.
    pub(super) fn observe(&mut self, now: Instant, wait: Duration) {
        let sample = wait.as_secs_f64();
        let kept = self.kept(now);
        self.seconds = if sample > self.seconds { sample } else { self.seconds * kept + sample * (1.0 - kept) };
        self.at = Some(now);
    }

    /// Seconds; a backend that was not asked for long looks faster and faster, until it is tried again. `None`: nothing is known.
    pub(super) fn seconds(&self, now: Instant) -> Option<f64> {
        self.at.map(|_| self.seconds * self.kept(now))
    }

    fn kept(&self, now: Instant) -> f64 {
        let age = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        (-age.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

/// Mean of a duration, newer ones counting more.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mean(Option<f64>);

impl Mean {
    /// Notes one.
    pub(super) fn observe(&mut self, took: Duration) {
        let sample = took.as_secs_f64();
        self.0 = Some(self.0.map_or(sample, |mean| mean + (sample - mean) / 8.0));
    }

    /// Seconds; `None` before the first.
    pub(super) fn seconds(&self) -> Option<f64> {
        self.0
    }
}

/// What a server says of itself, beside what we have there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Told {
    /// Requests there that are not ours: of other coordinators, or of other users.
    pub(super) foreign: usize,
    /// Factor of the cost, at least 1.
    pub(super) penalty: f64,
}

impl Default for Told {
    fn default() -> Self {
        Self { foreign: 0, penalty: 1.0 }
    }
}

/// Weighs a report that came while `in_flight` requests of ours were there.
pub(super) fn told(report: &Report, in_flight: usize) -> Told {
    let foreign = report.requests.map_or(0, |requests| (requests as usize).saturating_sub(in_flight));
    // Convex: a full cache makes the server throw out and compute anew, a half-empty one costs nothing.
    let kv = report.kv_used.map_or(0.0, |used| f64::from(used.clamp(0.0, KV_USED_MAX)));
    let off_gpu = report.on_gpu.map_or(0.0, |share| 1.0 - f64::from(share.clamp(0.0, 1.0)));
    Told { foreign, penalty: (1.0 + kv * kv / (1.0 - kv)) * (1.0 + OFF_GPU_COST * off_gpu) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_sample_counts_at_once_and_is_forgiven_slowly() {
        let start = Instant::now();
        let mut cost = PeakEwma::default();
        assert_eq!(cost.seconds(start), None);
        cost.observe(start, Duration::from_millis(100));
        cost.observe(start, Duration::from_secs(1));
        assert_eq!(cost.seconds(start), Some(1.0));
        cost.observe(start + Duration::from_secs(1), Duration::from_millis(100));
        let after_one = cost.seconds(start + Duration::from_secs(1)).expect("known");
        assert!((0.9..1.0).contains(&after_one), "{after_one}");
        let after_minute = cost.seconds(start + Duration::from_secs(61)).expect("known");
        assert!(after_minute < 0.01, "{after_minute}");
    }

    #[test]
    fn reports_are_weighed() {
        assert_eq!(told(&Report::default(), 3), Told::default());
        let busy = told(&Report { requests: Some(7), kv_used: Some(0.9), on_gpu: None }, 3);
        assert_eq!(busy.foreign, 4);
        assert!((9.0..9.2).contains(&busy.penalty), "{}", busy.penalty);
        let half = told(&Report { kv_used: Some(0.3), ..Report::default() }, 0);
        assert!(half.penalty < 1.2, "{}", half.penalty);
        assert!(told(&Report { kv_used: Some(9.0), ..Report::default() }, 0).penalty.is_finite());
        assert_eq!(told(&Report { on_gpu: Some(0.0), ..Report::default() }, 0).penalty, 3.0);
        assert_eq!(told(&Report { on_gpu: Some(1.0), ..Report::default() }, 0).penalty, 1.0);
    }
}
