//! An allowance that refills with time. Pure: time is passed in.
//!
//! It may go into debt, because what a model writes is known only afterwards: a tenant that overdrew waits until the debt is paid
//! back. `governor` has no debt, so that tokens would have needed a second mechanism beside it.

use std::time::{Duration, Instant};

/// Refills at a steady rate up to a bound.
#[derive(Clone, Debug)]
pub(super) struct Allowance {
    per_second: f64,
    level_max: f64,
    level: f64,
    at: Instant,
}

impl Allowance {
    /// A full one.
    pub(super) fn new(per_second: f64, level_max: f64, now: Instant) -> Self {
        Self { per_second, level_max, level: level_max, at: now }
    }

    /// Changes the rate; the level stays, within the new bound.
    pub(super) fn set(&mut self, per_second: f64, level_max: f64, now: Instant) {
        self.refill(now);
        (self.per_second, self.level_max) = (per_second, level_max);
        self.level = self.level.min(level_max);
    }

    /// Takes one, or says when there will be one.
    pub(super) fn take_one(&mut self, now: Instant) -> Result<(), Duration> {
        self.check_one(now)?;
        self.level -= 1.0;
        Ok(())
    }

    /// Whether there is one; otherwise when there will be.
    pub(super) fn check_one(&mut self, now: Instant) -> Result<(), Duration> {
        self.refill(now);
        if self.level >= 1.0 {
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.level) / self.per_second))
    }

    /// Takes what was used, whether it is there or not.
    pub(super) fn charge(&mut self, amount: f64, now: Instant) {
        self.refill(now);
        self.level -= amount;
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.per_second).min(self.level_max);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_refills_and_debts_are_paid_back() {
        let start = Instant::now();
        let after = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut allowance = Allowance::new(2.0, 2.0, start);
        assert_eq!((allowance.take_one(start), allowance.take_one(start)), (Ok(()), Ok(())));
        assert_eq!(allowance.take_one(start), Err(Duration::from_millis(500)));
        assert_eq!(allowance.take_one(after(0.5)), Ok(()));
        allowance.charge(9.0, after(0.5));
        assert_eq!(allowance.check_one(after(0.5)), Err(Duration::from_secs(5)));
        assert_eq!(allowance.check_one(after(5.5)), Ok(()));
        allowance.set(1.0, 1.0, after(100.0));
        assert_eq!((allowance.take_one(after(100.0)), allowance.take_one(after(100.0)).is_err()), (Ok(()), true));
    }

    proptest! {
        /// Over any course of calls no more is given out than the bound and what has refilled since.
        #[test]
        fn it_never_gives_more_than_it_has(pauses_ms in proptest::collection::vec(0_u64..400, 1..200)) {
            let start = Instant::now();
            let mut now = start;
            let mut allowance = Allowance::new(10.0, 5.0, start);
            let mut taken = 0.0;
            for pause_ms in pauses_ms {
                now += Duration::from_millis(pause_ms);
                if allowance.take_one(now).is_ok() {
                    taken += 1.0;
                }
                prop_assert!(taken <= 5.0 + (now - start).as_secs_f64() * 10.0 + 1e-6);
            }
        }
    }
}
