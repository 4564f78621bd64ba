//! Whether a backend is worth asking, as a pure state machine over the outcomes of requests.
//!
//! `Up` --(`FAILURES_TO_EJECT` in a row)--> `Ejected` --(time over)--> one trial --(success)--> `Up`, or --(failure)--> `Ejected`
//! for twice as long. A probe that is not answered ejects at once, one that is answered takes back. A backend that says it is busy is left alone for as long as it asks, without being called ill.

use std::time::{Duration, Instant};

/// Failures in a row after which a backend is left out.
const FAILURES_TO_EJECT: u32 = 3;
/// First time out; each further one in a row is twice as long, up to the most.
const EJECTION: Duration = Duration::from_secs(5);
const EJECTION_MAX: Duration = Duration::from_secs(60);
/// Pause after "busy" without a `Retry-After`, and the longest one honoured.
const BUSY_PAUSE: Duration = Duration::from_secs(1);
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Health of one backend.
#[derive(Clone, Debug, Default)]
pub(super) struct Health {
    failures_in_row: u32,
    ejections_in_row: u32,
    ejected_until: Option<Instant>,
    trial_running: bool,
    busy_until: Option<Instant>,
    succeeded_at: Option<Instant>,
}

impl Health {
    /// Whether a request may be sent now.
    pub(super) fn admits(&self, now: Instant) -> bool {
        let is_resting = self.busy_until.is_some_and(|until| now < until);
        !is_resting && self.ejected_until.is_none_or(|until| now >= until && !self.trial_running)
    }

    /// A request is being sent. True if the backend is ejected and this is its one trial.
    pub(super) fn begin(&mut self) -> bool {
        let is_trial = self.ejected_until.is_some();
        self.trial_running |= is_trial;
        is_trial
    }

    /// The trial ended without a verdict (its caller went away).
    pub(super) fn abandon_trial(&mut self) {
        self.trial_running = false;
    }

    /// A first token came.
    pub(super) fn succeed(&mut self, now: Instant) {
        *self = Self { succeeded_at: Some(now), ..Self::default() };
    }

    /// No answer, or a broken one. True if this failure ejected the backend.
    pub(super) fn fail(&mut self, now: Instant, is_trial: bool) -> bool {
        self.failures_in_row += 1;
        if is_trial {
            self.trial_running = false;
        }
        let is_ejected = is_trial || self.ejected_until.is_none() && self.failures_in_row >= FAILURES_TO_EJECT;
        if is_ejected {
            let pause = EJECTION.saturating_mul(1 << self.ejections_in_row.min(10)).min(EJECTION_MAX);
            self.ejected_until = Some(now + pause);
            self.ejections_in_row += 1;
        }
        is_ejected
    }

    /// It answered that it is busy. Returns how long it is left alone.
    pub(super) fn busy(&mut self, now: Instant, retry_after: Option<Duration>) -> Duration {
        let pause = retry_after.unwrap_or(BUSY_PAUSE).clamp(BUSY_PAUSE, BUSY_PAUSE_MAX);
        self.busy_until = Some(now + pause);
        pause
    }

    /// A probe was answered: an ejected backend is used again. That it answers does not mean that it generates, so after failed requests
    /// one more of them is enough to eject it again, for longer.
    pub(super) fn answer_probe(&mut self) {
        if self.ejected_until.take().is_some() {
            self.failures_in_row = FAILURES_TO_EJECT - 1;
            self.trial_running = false;
        }
    }

    /// A probe sent at `asked` was not answered: the backend is left out until one is. Unless a first token came meanwhile: then it is
    /// only too busy to answer questions.
    pub(super) fn miss_probe(&mut self, asked: Instant, now: Instant) {
        if self.succeeded_at.is_none_or(|at| at < asked) {
            self.ejected_until = Some(now + EJECTION_MAX);
        }
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.ejected_until.is_some()
    }

    /// For how long the backend has asked to be left alone.
    pub(super) fn busy_for(&self, now: Instant) -> Option<Duration> {
        self.busy_until.and_then(|until| until.checked_duration_since(now)).filter(|pause| !pause.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_eject_a_trial_decides_and_a_success_forgets() {
        let start = Instant::now();
        let mut health = Health::default();
        assert!(!health.fail(start, false) && !health.fail(start, false) && health.admits(start));
        assert!(health.fail(start, false));
        assert!(!health.admits(start) && health.is_ejected());

        let later = start + EJECTION;
        assert!(health.admits(later));
        assert!(health.begin());
        assert!(!health.admits(later), "one trial at a time");
        health.abandon_trial();
        assert!(health.admits(later), "a trial without a verdict may be repeated");
        assert!(health.begin());
        assert!(health.fail(later, true));
        assert!(!health.admits(later + EJECTION) && health.admits(later + 2 * EJECTION), "twice as long");

        assert!(health.begin());
        health.succeed(start);
        assert!(!health.begin(), "an ordinary request again");
        assert!(health.admits(later) && !health.is_ejected());
        assert!(!health.fail(later, false) && !health.fail(later, false), "the count begins anew");
    }

    #[test]
    fn failures_of_requests_already_under_way_do_not_prolong_the_ejection() {
        let start = Instant::now();
        let mut health = Health::default();
        assert!((0..3).any(|_| health.fail(start, false)));
        assert!(!health.fail(start + EJECTION / 2, false));
        assert!(health.admits(start + EJECTION));
    }

    #[test]
    fn probes_eject_and_take_back_and_a_liar_is_given_one_chance() {
        let start = Instant::now();
        let mut health = Health::default();
        health.miss_probe(start, start);
        assert!(health.is_ejected() && !health.admits(start + EJECTION));
        health.answer_probe();
        assert!(!health.is_ejected() && health.admits(start));
        assert!(health.fail(start, false), "one failure after the probe's word is enough");
        health.answer_probe();
        health.succeed(start);
        assert!(!health.fail(start, false), "forgotten");
        health.answer_probe();
        assert!(!health.fail(start, false), "a probe of a sound backend says nothing about failures");

        let later = start + EJECTION;
        health.succeed(later);
        health.miss_probe(start, later);
        assert!(!health.is_ejected(), "it wrote a token while it was asked");
        health.miss_probe(later + EJECTION, later + 2 * EJECTION);
        assert!(health.is_ejected());
    }

    #[test]
    fn busy_is_a_pause_and_no_illness() {
        let start = Instant::now();
        let mut health = Health::default();
        assert_eq!(health.busy(start, Some(Duration::from_secs(5))), Duration::from_secs(5));
        assert!(!health.admits(start + Duration::from_secs(4)) && health.admits(start + Duration::from_secs(5)));
        assert_eq!(health.busy(start, Some(Duration::from_secs(100_000))), BUSY_PAUSE_MAX);
        assert!(!health.is_ejected());
    }
}
