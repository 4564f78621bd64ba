//! A token bucket filled by traffic: so many extra requests per hundred, a few saved up. Pure.

/// Extra requests saved up at most: what a lone failure on an idle system may need.
const SAVED_MAX: u64 = 10;
/// A bucket's unit: a hundredth of an extra request.
const UNITS: u64 = 100;

/// How many further requests may still be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    percent: u64,
    units: u64,
}

impl Budget {
    /// A full bucket of `percent` extra requests per hundred; 0 allows none at all.
    pub(super) fn new(percent: u32) -> Self {
        let units = if percent == 0 { 0 } else { SAVED_MAX * UNITS };
        Self { percent: u64::from(percent), units }
    }

    /// A request came.
    pub(super) fn earn(&mut self) {
        self.units = (self.units + self.percent).min(SAVED_MAX * UNITS);
    }

    /// Whether one more may be sent; then it is paid for.
    pub(super) fn spend(&mut self) -> bool {
        let is_enough = self.units >= UNITS;
        if is_enough {
            self.units -= UNITS;
        }
        is_enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_and_then_its_share() {
        let mut budget = Budget::new(5);
        assert_eq!((0..100).filter(|_| budget.spend()).count(), 10);
        let spent = (0..1000).filter(|_| {
            budget.earn();
            budget.spend()
        });
        assert_eq!(spent.count(), 50);
        let mut none = Budget::new(0);
        none.earn();
        assert!(!none.spend());
    }
}
