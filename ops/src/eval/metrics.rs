//! Retrieval metrics as pure functions over ranked lists: what `susui eval` prints is computed here and nowhere else.
//!
//! Relevance is binary. A ranking is best first and holds each document once. Queries without any relevant document have no
//! defined value; the caller leaves them out.

use std::collections::HashSet;
use std::time::Duration;

/// Normalised discounted cumulative gain of the first `cutoff` places, in 0..=1.
///
/// Gain is 1 for a relevant document, discounted by `log2(place + 1)` with places from 1; the ideal ranking holds
/// `min(relevant.len(), cutoff)` relevant documents first. 0 where nothing is relevant.
pub fn ndcg(ranking: &[String], relevant: &HashSet<String>, cutoff: usize) -> f64 {
    let discount = |index: usize| 1.0 / ((index + 2) as f64).log2();
    let ideal: f64 = (0..relevant.len().min(cutoff)).map(discount).sum();
    if ideal == 0.0 {
        return 0.0;
    }
    let gained: f64 = ranking
        .iter()
        .take(cutoff)
        .enumerate()
        .filter(|(_, document)| relevant.contains(*document))
        .map(|(index, _)| discount(index))
        .sum();
    gained / ideal
}

/// Share of the relevant documents among the first `cutoff` places, in 0..=1. 0 where nothing is relevant.
pub fn recall(ranking: &[String], relevant: &HashSet<String>, cutoff: usize) -> f64 {
    if relevant.is_empty() {
        return 0.0;
    }
    let found = ranking.iter().take(cutoff).filter(|document| relevant.contains(*document)).count();
    found as f64 / relevant.len() as f64
}

/// One over the place of the first relevant document among the first `cutoff`, else 0.
pub fn reciprocal_rank(ranking: &[String], relevant: &HashSet<String>, cutoff: usize) -> f64 {
    ranking
        .iter()
        .take(cutoff)
        .position(|document| relevant.contains(document))
        .map_or(0.0, |index| 1.0 / (index + 1) as f64)
}

/// Documents with their scores in the order of their best chunk: the first place of each document in a ranking of chunks.
pub fn rank_documents(chunks: impl IntoIterator<Item = (String, f64)>) -> Vec<(String, f64)> {
    let mut seen = HashSet::new();
    chunks.into_iter().filter(|(document, _)| seen.insert(document.clone())).collect()
}

/// Arithmetic mean; 0 for nothing.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// The nearest-rank percentile: the smallest measured value that at least `percent` of the values do not exceed.
/// `percent` in 0..=100; zero for no values. Always a value that was measured, never an interpolation.
pub fn percentile(values: &[Duration], percent: f64) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranking(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn set(text: &str) -> HashSet<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// Expected values worked out by hand: discounts are 1, 0.63093, 0.5, 0.43068, ...
    #[test]
    fn ranked_lists_against_hand_worked_values() {
        struct Case {
            ranking: &'static str,
            relevant: &'static str,
            cutoff: usize,
            ndcg: f64,
            recall: f64,
            reciprocal_rank: f64,
        }
        let cases = [
            Case { ranking: "a b c", relevant: "a b c", cutoff: 10, ndcg: 1.0, recall: 1.0, reciprocal_rank: 1.0 },
            Case { ranking: "x a", relevant: "a", cutoff: 10, ndcg: 0.630_930, recall: 1.0, reciprocal_rank: 0.5 },
            Case { ranking: "x y a", relevant: "a", cutoff: 2, ndcg: 0.0, recall: 0.0, reciprocal_rank: 0.0 },
            Case {
                ranking: "a x b",
                relevant: "a b",
                cutoff: 3,
                ndcg: 1.5 / 1.630_930,
                recall: 1.0,
                reciprocal_rank: 1.0,
            },
            // More relevant documents than places: the ideal is capped, recall is not.
            Case { ranking: "a b", relevant: "a b c d", cutoff: 2, ndcg: 1.0, recall: 0.5, reciprocal_rank: 1.0 },
            // Relevant documents that were never returned count against both.
            Case { ranking: "", relevant: "a", cutoff: 10, ndcg: 0.0, recall: 0.0, reciprocal_rank: 0.0 },
            Case { ranking: "a", relevant: "", cutoff: 10, ndcg: 0.0, recall: 0.0, reciprocal_rank: 0.0 },
        ];
        for case in cases {
            let (list, relevant) = (ranking(case.ranking), set(case.relevant));
            let name = format!("{:?} for {:?} at {}", case.ranking, case.relevant, case.cutoff);
            assert!((ndcg(&list, &relevant, case.cutoff) - case.ndcg).abs() < 1e-6, "ndcg of {name}");
            assert!((recall(&list, &relevant, case.cutoff) - case.recall).abs() < 1e-9, "recall of {name}");
            let found = reciprocal_rank(&list, &relevant, case.cutoff);
            assert!((found - case.reciprocal_rank).abs() < 1e-9, "reciprocal rank of {name}");
        }
    }

    #[test]
    fn swapping_a_relevant_document_downwards_never_helps() {
        let relevant = set("a b");
        let mut last = f64::INFINITY;
        for list in ["a b x y", "a x b y", "a x y b", "x a y b", "x y a b"] {
            let value = ndcg(&ranking(list), &relevant, 4);
            assert!(value < last, "{list}");
            last = value;
        }
    }

    #[test]
    fn a_document_takes_the_place_of_its_best_chunk() {
        let chunks = [("b", 5.0), ("a", 4.0), ("b", 3.0), ("c", 2.0), ("a", 1.0)];
        let ranked = rank_documents(chunks.map(|(document, score)| (document.to_owned(), score)));
        assert_eq!(ranked, [("b".to_owned(), 5.0), ("a".to_owned(), 4.0), ("c".to_owned(), 2.0)]);
    }

    #[test]
    fn percentiles_are_measured_values() {
        let ms = |values: &[u64]| values.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>();
        let hundred = ms(&(1..=100).rev().collect::<Vec<_>>());
        let cases = [
            (hundred.clone(), 50.0, 50),
            (hundred.clone(), 99.0, 99),
            (hundred.clone(), 0.0, 1),
            (hundred, 100.0, 100),
            (ms(&[7]), 50.0, 7),
            (ms(&[1, 9]), 50.0, 1),
            (ms(&[1, 9]), 99.0, 9),
            (ms(&[]), 50.0, 0),
        ];
        for (values, percent, expected) in cases {
            assert_eq!(percentile(&values, percent), Duration::from_millis(expected), "p{percent} of {values:?}");
        }
    }

    #[test]
    fn mean_of_nothing_is_zero() {
        assert_eq!(mean(&[]), 0.0);
        assert_eq!(mean(&[1.0, 2.0]), 1.5);
    }
}
