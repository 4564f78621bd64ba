//! The best few of many scored rows.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::Candidate;

/// Order of results: score descending, then row ascending, so that equal scores come out alike on every copy.
pub(super) fn better_first(left: &Candidate, right: &Candidate) -> Ordering {
    right.score.total_cmp(&left.score).then(left.row.cmp(&right.row))
}

#[derive(Clone, Copy)]
struct Ranked(Candidate);

impl Ord for Ranked {
    /// Greater is better.
    fn cmp(&self, other: &Self) -> Ordering {
        better_first(&other.0, &self.0)
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked {}

/// Keeps the `count` best candidates offered; holds at most that many.
pub(super) struct Top {
    count: usize,
    worst_on_top: BinaryHeap<Reverse<Ranked>>,
}

impl Top {
    pub(super) fn new(count: usize) -> Self {
        Self { count, worst_on_top: BinaryHeap::with_capacity(count.min(1024)) }
    }

    pub(super) fn offer(&mut self, row: u64, score: f32) {
        let ranked = Ranked(Candidate { row, score });
        if self.worst_on_top.len() < self.count {
            self.worst_on_top.push(Reverse(ranked));
        } else if let Some(mut worst) = self.worst_on_top.peek_mut()
            && ranked > worst.0
        {
            *worst = Reverse(ranked);
        }
    }

    /// Best first.
    pub(super) fn into_sorted(self) -> Vec<Candidate> {
        let mut best: Vec<Candidate> = self.worst_on_top.into_iter().map(|Reverse(ranked)| ranked.0).collect();
        best.sort_unstable_by(better_first);
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keeps_what_sorting_everything_would_put_first(
            scores in proptest::collection::vec(-3i8..3, 0..60),
            count in 0usize..70,
        ) {
            let mut all: Vec<Candidate> =
                scores.iter().enumerate().map(|(row, score)| Candidate { row: row as u64, score: f32::from(*score) }).collect();
            let mut top = Top::new(count);
            for candidate in all.iter().rev() {
                top.offer(candidate.row, candidate.score);
            }
            all.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap().then(a.row.cmp(&b.row)));
            all.truncate(count);
            prop_assert_eq!(top.into_sorted(), all);
        }
    }
}
