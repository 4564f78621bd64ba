//! Whether a node is worth asking first, as a pure state machine over the outcomes of calls.
//!
//! `Good` --(five failures in a row, or fewer successes than failures over ten seconds)--> `Ejected` --(time over)--> `Due`: one
//! trial --(success)--> `Good`, or --(failure)--> `Ejected` for twice as long. A node that says it is overloaded rests
//! for a moment without being called ill.
//!
//! An ejected node is asked last, never left out: it only orders choices, so the last copy of a shard is always asked.

use std::time::{Duration, Instant};

use super::window::Window;

/// Failures in a row after which a node is ejected.
pub const FAILURES_TO_EJECT: u32 = 5;
/// Share of failures over the window above which it is ejected, given at least so many outcomes.
const FAILURE_SHARE_MAX: f64 = 0.5;
const OUTCOMES_MIN: u64 = 10;
/// First time out; each further one in a row is twice as long, up to the most.
pub const EJECTION: Duration = Duration::from_secs(1);
/// Longest time out.
pub const EJECTION_MAX: Duration = Duration::from_secs(30);
/// How long a node rests that said `Overloaded`: about as long as the queue of a search pool takes.
const REST: Duration = Duration::from_millis(100);

/// Health of one node.
#[derive(Clone, Debug)]
pub struct Health {
    failures_in_row: u32,
    /// Failures among all outcomes.
    failures: Window,
    ejections_in_row: u32,
    ejected_until: Option<Instant>,
    trial_running: bool,
    resting_until: Option<Instant>,
}

/// How a node stands in the order of copies, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Asked as its rank says.
    Good,
    /// Ejected until now: the next call is its trial.
    Due,
    /// Overloaded a moment ago.
    Resting,
    /// Asked last.
    Ejected,
}

impl Health {
    /// A node of which nothing is known.
    pub fn new(now: Instant) -> Self {
        Self {
            failures_in_row: 0,
            failures: Window::new(now),
            ejections_in_row: 0,
            ejected_until: None,
            trial_running: false,
            resting_until: None,
        }
    }

    /// Where it stands now.
    pub fn standing(&self, now: Instant) -> Standing {
        match self.ejected_until {
            Some(until) if now < until || self.trial_running => Standing::Ejected,
            Some(_) => Standing::Due,
            None if self.resting_until.is_some_and(|until| now < until) => Standing::Resting,
            None => Standing::Good,
        }
    }

    /// A call is being sent. True if it is the node's trial.
    pub fn begin(&mut self, now: Instant) -> bool {
        let is_trial = self.standing(now) == Standing::Due;
        self.trial_running |= is_trial;
        is_trial
    }

    /// The trial ended without a verdict: its caller went away, or another copy was faster.
    pub fn abandon_trial(&mut self) {
        self.trial_running = false;
    }

    /// A good answer came. True if it ended an ejection.
    pub fn succeed(&mut self, now: Instant) -> bool {
        let was_ejected = self.ejected_until.is_some();
        if was_ejected {
            *self = Self::new(now);
        }
        self.failures_in_row = 0;
        self.failures.note(now, false);
        was_ejected
    }

    /// Silence, a broken connection, or an error that speaks against the node. True if this ejected it.
    ///
    /// Failures of calls that were under way when it was ejected change nothing.
    pub fn fail(&mut self, now: Instant, is_trial: bool) -> bool {
        self.failures_in_row += 1;
        self.failures.note(now, true);
        if is_trial {
            self.trial_running = false;
        }
        let is_ill = self.failures_in_row >= FAILURES_TO_EJECT
            || self.failures.counts(now).exceed(FAILURE_SHARE_MAX, OUTCOMES_MIN);
        let is_ejected = is_trial || self.ejected_until.is_none() && is_ill;
        if is_ejected {
            let pause = EJECTION.saturating_mul(1 << self.ejections_in_row.min(10)).min(EJECTION_MAX);
            self.ejected_until = Some(now + pause);
            self.ejections_in_row += 1;
        }
        is_ejected
    }

    /// It said that it is overloaded.
    pub fn rest(&mut self, now: Instant) {
        self.resting_until = Some(now + REST);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ejected(now: Instant) -> Health {
        let mut health = Health::new(now);
        assert_eq!((0..FAILURES_TO_EJECT).filter(|_| health.fail(now, false)).count(), 1);
        health
    }

    #[test]
    fn five_in_a_row_eject_a_trial_decides_and_a_success_forgets() {
        let start = Instant::now();
        let mut health = Health::new(start);
        for _ in 0..FAILURES_TO_EJECT - 1 {
            assert!(!health.fail(start, false));
        }
        assert_eq!(health.standing(start), Standing::Good);
        assert!(health.fail(start, false));
        assert_eq!(health.standing(start), Standing::Ejected);
        assert!(!health.begin(start), "asked as a last resort is no trial");

        let later = start + EJECTION;
        assert_eq!(health.standing(later), Standing::Due);
        assert!(health.begin(later));
        assert_eq!(health.standing(later), Standing::Ejected, "one trial at a time");
        health.abandon_trial();
        assert!(health.begin(later), "a trial without a verdict may be repeated");
        assert!(health.fail(later, true));
        assert_eq!(health.standing(later + EJECTION), Standing::Ejected);
        assert_eq!(health.standing(later + 2 * EJECTION), Standing::Due, "twice as long");

        assert!(health.begin(later + 2 * EJECTION));
        health.succeed(later + 2 * EJECTION);
        assert_eq!(health.standing(later), Standing::Good);
        assert!(!health.fail(later, false), "the count begins anew");
    }

    #[test]
    fn failures_of_calls_already_under_way_do_not_prolong_the_ejection() {
        let start = Instant::now();
        let mut health = ejected(start);
        assert!(!health.fail(start + EJECTION / 2, false));
        assert_eq!(health.standing(start + EJECTION), Standing::Due);
    }

    #[test]
    fn more_failures_than_successes_eject_even_if_never_five_in_a_row() {
        let start = Instant::now();
        let mut health = Health::new(start);
        let mut outcomes = 0;
        // Two failures, one success, and so on.
        let ejected = (0..30).any(|step| {
            outcomes += 1;
            if step % 3 == 2 {
                health.succeed(start);
                return false;
            }
            health.fail(start, false)
        });
        assert!(ejected && outcomes >= OUTCOMES_MIN, "after {outcomes}");
        let mut even = Health::new(start);
        for _ in 0..100 {
            even.succeed(start);
            assert!(!even.fail(start, false));
        }
    }

    #[test]
    fn overload_is_a_pause_and_no_illness() {
        let start = Instant::now();
        let mut health = Health::new(start);
        health.rest(start);
        assert_eq!(health.standing(start), Standing::Resting);
        assert_eq!(health.standing(start + REST), Standing::Good);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Wait(u64),
        Begin,
        Succeed,
        Fail,
        Abandon,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..40_000).prop_map(Step::Wait),
            Just(Step::Begin),
            Just(Step::Succeed),
            Just(Step::Fail),
            Just(Step::Fail),
            Just(Step::Abandon),
        ]
    }

    proptest! {
        /// However calls end: at most one trial at a time, and a node without a running trial is due within the longest ejection.
        #[test]
        fn a_node_always_gets_another_chance(steps in proptest::collection::vec(step(), 0..200)) {
            let start = Instant::now();
            let (mut health, mut now, mut trial) = (Health::new(start), start, false);
            for step in steps {
                match step {
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                    Step::Begin => {
                        let is_trial = health.begin(now);
                        prop_assert!(!(is_trial && trial), "a second trial");
                        trial |= is_trial;
                    }
                    Step::Succeed => {
                        health.succeed(now);
                        trial = false;
                        prop_assert_eq!(health.standing(now), Standing::Good);
                    }
                    Step::Fail => {
                        health.fail(now, trial);
                        trial = false;
                    }
                    Step::Abandon => {
                        if trial {
                            health.abandon_trial();
                            trial = false;
                        }
                    }
                }
                let later = health.standing(now + EJECTION_MAX);
                prop_assert!(trial || matches!(later, Standing::Good | Standing::Due), "{:?}", later);
            }
        }
    }
}
