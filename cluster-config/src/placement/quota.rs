//! How many copies each node should hold: shares by weight, levelled where a zone or a node cannot take its share.
//!
//! Fractions are exact. Their order decides who gives and who takes, and that must come out the same on every machine.

use std::cmp::Ordering;

/// A non-negative number of copies. Numerators stay below 10^19 and denominators below 10^15 (1000 nodes of weight 10,000,
/// 15,000 copies), so that products of two fit an `i128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    numerator: i128,
    denominator: i128,
}

impl Share {
    pub(super) const fn whole(count: u64) -> Self {
        Self { numerator: count as i128, denominator: 1 }
    }

    pub(super) fn floor(self) -> u64 {
        (self.numerator / self.denominator) as u64
    }

    pub(super) fn ceil(self) -> u64 {
        (self.numerator + self.denominator - 1).div_euclid(self.denominator) as u64
    }

    /// The most a node takes before others are preferred: a tenth above its share, rounded up.
    pub(super) fn cap(self) -> u64 {
        Self { numerator: self.numerator * 11, denominator: self.denominator * 10 }.ceil()
    }

    fn scaled(self, weight: u64, weights: u64) -> Self {
        Self { numerator: self.numerator * i128::from(weight), denominator: self.denominator * i128::from(weights) }
    }

    fn less(self, count: u64) -> Self {
        Self { numerator: self.numerator - i128::from(count) * self.denominator, ..self }
    }

    fn exceeds(self, count: u64) -> bool {
        self.numerator > i128::from(count) * self.denominator
    }

    /// Load minus share, as a fraction.
    fn surplus(self, load: u64) -> (i128, i128) {
        (i128::from(load) * self.denominator - self.numerator, self.denominator)
    }

    /// Whether the load is more than half a copy above the share.
    pub(super) fn is_half_exceeded_by(self, load: u64) -> bool {
        let (numerator, denominator) = self.surplus(load);
        2 * numerator > denominator
    }

    /// Whether the load is more than one copy below the share.
    pub(super) fn lacks_more_than_one(self, load: u64) -> bool {
        let (numerator, denominator) = self.surplus(load);
        numerator < -denominator
    }
}

/// Orders two nodes by how far their load is above their share.
pub(super) fn compare_surplus(one: (Share, u64), other: (Share, u64)) -> Ordering {
    let (numerator, denominator) = one.0.surplus(one.1);
    let (other_numerator, other_denominator) = other.0.surplus(other.1);
    (numerator * other_denominator).cmp(&(other_numerator * denominator))
}

/// Shares `total` out by weight; an entry that would get more than its cap gets the cap, and the others share the rest.
/// Entries are (weight, cap). What exceeds all caps together is left over.
pub(super) fn water_fill(total: Share, entries: &[(u64, u64)]) -> Vec<Share> {
    let mut shares: Vec<Option<Share>> = vec![None; entries.len()];
    let mut left = total;
    loop {
        let open = || (0..entries.len()).filter(|position| shares[*position].is_none());
        let weights: u64 = open().map(|position| entries[position].0).sum();
        if weights == 0 {
            break;
        }
        let over: Vec<usize> = open()
            .filter(|position| left.scaled(entries[*position].0, weights).exceeds(entries[*position].1))
            .collect();
        if over.is_empty() {
            let rest: Vec<usize> = open().collect();
            for position in rest {
                shares[position] = Some(left.scaled(entries[position].0, weights));
            }
            break;
        }
        for position in over {
            shares[position] = Some(Share::whole(entries[position].1));
            left = left.less(entries[position].1);
        }
    }
    shares.into_iter().map(|share| share.unwrap_or(Share::whole(0))).collect()
}

/// The smallest number of copies of one shard per zone with which `wanted` copies find room; `nodes_per_zone` nodes each.
pub(super) fn copies_per_zone(wanted: u64, nodes_per_zone: &[u64]) -> u64 {
    let room = |level: u64| -> u64 { nodes_per_zone.iter().map(|nodes| level.min(*nodes)).sum() };
    let most = nodes_per_zone.iter().copied().max().unwrap_or(0);
    (0..=most).find(|level| room(*level) >= wanted).unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn as_f64(share: Share) -> f64 {
        share.numerator as f64 / share.denominator as f64
    }

    #[test]
    fn water_is_filled_up_to_the_caps() {
        type Case = (u64, &'static [(u64, u64)], &'static [f64]);
        let cases: [Case; 5] = [
            (12, &[(1, 9), (1, 9), (1, 9)], &[4.0, 4.0, 4.0]),
            (12, &[(1, 9), (2, 9)], &[4.0, 8.0]),
            (12, &[(1, 9), (9, 8)], &[4.0, 8.0]),
            (10, &[(1, 2), (1, 3), (2, 4)], &[2.0, 3.0, 4.0]),
            (7, &[(2, 9), (2, 9), (3, 1)], &[3.0, 3.0, 1.0]),
        ];
        for (total, entries, expected) in cases {
            let shares: Vec<f64> = water_fill(Share::whole(total), entries).into_iter().map(as_f64).collect();
            assert_eq!(shares, expected, "{total} over {entries:?}");
        }
    }

    #[test]
    fn copies_per_zone_is_the_flattest_that_fits() {
        for (wanted, zones, expected) in
            [(2, &[3, 3, 3][..], 1), (3, &[3], 3), (4, &[1, 3], 3), (3, &[2, 2], 2), (9, &[2, 2], 2), (1, &[], 0)]
        {
            assert_eq!(copies_per_zone(wanted, zones), expected, "{wanted} over {zones:?}");
        }
    }

    proptest! {
        #[test]
        fn all_that_fits_is_shared_out(total in 0u64..15_000, entries in prop::collection::vec((1u64..10_000, 0u64..1000), 1..40)) {
            let shares = water_fill(Share::whole(total), &entries);
            let capacity: u64 = entries.iter().map(|entry| entry.1).sum();
            let sum: f64 = shares.iter().copied().map(as_f64).sum();
            prop_assert!((sum - total.min(capacity) as f64).abs() < 1e-6, "{} of {}", sum, total);
            for (share, (_, cap)) in shares.iter().zip(&entries) {
                prop_assert!(!share.exceeds(*cap));
                prop_assert!(share.floor() <= share.ceil() && share.ceil() <= share.floor() + 1);
            }
        }
    }
}
