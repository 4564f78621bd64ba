//! An allowance that refills with time. Pure: time is passed in.
//!
//! It may go into debt, because what a model writes is known only afterwards: a tenant that overdrew waits until the debt is paid
//! back. `governor` has no debt, so that tokens would have needed a second mechanism beside it.

use std::time::{Duration, Instant};

/// So much in so long a time; never more at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub(super) bound: u32,
    pub(super) period: Duration,
}

impl Rate {
    fn per_second(self) -> f64 {
        self.level_max() / self.period.as_secs_f64()
    }

    fn level_max(self) -> f64 {
        f64::from(self.bound)
    }
}

/// Refills at a steady rate up to a bound.
#[derive(Clone, Debug)]
pub(super) struct Allowance {
    rate: Rate,
    level: f64,
    at: Instant,
}

impl Allowance {
    /// A full one.
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, level: rate.level_max(), at: now }
    }

    /// Changes the rate; the level stays, within the new bound.
    pub(super) fn set(&mut self, rate: Rate, now: Instant) {
        self.refill(now);
        self.rate = rate;
        self.level = self.level.min(rate.level_max());
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
        Err(Duration::from_secs_f64((1.0 - self.level) / self.rate.per_second()))
    }

    /// Takes what was used, whether it is there or not.
    pub(super) fn charge(&mut self, amount: f64, now: Instant) {
        self.refill(now);
        self.level -= amount;
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.rate.per_second()).min(self.rate.level_max());
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(bound: u32, period_ms: u64) -> Rate {
        Rate { bound, period: Duration::from_millis(period_ms) }
    }

    #[test]
    fn it_refills_and_debts_are_paid_back() {
        let start = Instant::now();
        let after = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut allowance = Allowance::new(rate(2, 1000), start);
        assert_eq!((allowance.take_one(start), allowance.take_one(start)), (Ok(()), Ok(())));
        assert_eq!(allowance.take_one(start), Err(Duration::from_millis(500)));
        assert_eq!(allowance.take_one(after(0.5)), Ok(()));
        allowance.charge(9.0, after(0.5));
        assert_eq!(allowance.check_one(after(0.5)), Err(Duration::from_secs(5)));
        assert_eq!(allowance.check_one(after(5.5)), Ok(()));
        allowance.set(rate(1, 1000), after(100.0));
        assert_eq!((allowance.take_one(after(100.0)), allowance.take_one(after(100.0)).is_err()), (Ok(()), true));
    }

    proptest! {
        /// Over any course of calls no more is given out than the bound and what has refilled since.
        #[test]
        fn it_never_gives_more_than_it_has(pauses_ms in proptest::collection::vec(0_u64..400, 1..200)) {
            let start = Instant::now();
            let mut now = start;
            let mut allowance = Allowance::new(rate(5, 500), start);
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
