//! Merges the shards' answers into the best k. Pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use cluster_config::ids::ShardId;
use cluster_config::search::{ShardAnswer, ShardHit};

/// A hit and the shard that holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct MergedHit {
    /// Its shard.
    pub shard: ShardId,
    /// The hit.
    pub hit: ShardHit,
}

/// Score descending, then document id and ordinal ascending: total, so that every copy gives the same ranking.
pub fn ranking(left: &ShardHit, right: &ShardHit) -> Ordering {
    right
        .score
        .total_cmp(&left.score)
        .then_with(|| left.document_id.cmp(&right.document_id))
        .then_with(|| left.ordinal.cmp(&right.ordinal))
}

/// The best `k` over all shards. Answers need not be sorted; a hit without a comparable score (NaN) is left out.
pub fn merge_top_k<'a>(answers: impl IntoIterator<Item = (&'a ShardId, &'a ShardAnswer)>, k: usize) -> Vec<MergedHit> {
    let mut merged: Vec<(ShardId, &ShardHit)> = answers
        .into_iter()
        .flat_map(|(shard, answer)| answer.hits.iter().map(|hit| (*shard, hit)))
        .filter(|(_, hit)| !hit.score.is_nan())
        .collect();
    let by_rank = |left: &(ShardId, &ShardHit), right: &(ShardId, &ShardHit)| {
        ranking(left.1, right.1).then_with(|| (left.0, left.1.row).cmp(&(right.0, right.1.row)))
    };
    if merged.len() > k {
        if k > 0 {
            merged.select_nth_unstable_by(k - 1, by_rank);
        }
        merged.truncate(k);
    }
    merged.sort_unstable_by(by_rank);
    merged.into_iter().map(|(shard, hit)| MergedHit { shard, hit: hit.clone() }).collect()
}

/// Codes scanned, codes held and rows compared exactly, over all shards.
pub fn sum_work<'a>(answers: impl IntoIterator<Item = &'a ShardAnswer>) -> (u64, u64, u64) {
    answers.into_iter().fold((0, 0, 0), |(scanned, total, exact), answer| {
        (scanned + answer.codes_scanned, total + answer.codes_total, exact + answer.rows_exact)
    })
}

/// The answers to query number `query`, by shard.
pub fn answers_to(
    answers: &BTreeMap<ShardId, Vec<ShardAnswer>>,
    query: usize,
) -> impl Iterator<Item = (&ShardId, &ShardAnswer)> {
    answers.iter().filter_map(move |(shard, answers)| answers.get(query).map(|answer| (shard, answer)))
}

#[cfg(test)]
mod tests {
    use cluster_config::ids::CollectionId;
    use proptest::prelude::*;

    use super::*;

    fn shard(index: u32) -> ShardId {
        ShardId { collection: CollectionId(1), index }
    }

    fn hits() -> impl Strategy<Value = Vec<(u32, i8, u8, u8)>> {
        proptest::collection::vec((0u32..4, -3i8..3, 0u8..6, 0u8..3), 0..60)
    }

    fn answers(hits: &[(u32, i8, u8, u8)]) -> BTreeMap<ShardId, ShardAnswer> {
        let mut answers: BTreeMap<ShardId, ShardAnswer> = BTreeMap::new();
        for (row, (index, score, document, ordinal)) in hits.iter().enumerate() {
            answers.entry(shard(*index)).or_default().hits.push(ShardHit {
                row: row as u64,
                score: f32::from(*score) / 4.0,
                document_id: format!("d{document}"),
                ordinal: u32::from(*ordinal),
            });
        }
        answers
    }

    proptest! {
        /// Model: sort everything, take k.
        #[test]
        fn equals_sorting_everything(hits in hits(), k in 0usize..70) {
            let answers = answers(&hits);
            let merged = merge_top_k(&answers, k);
            let mut everything: Vec<&ShardHit> = answers.values().flat_map(|answer| &answer.hits).collect();
            everything.sort_by(|left, right| ranking(left, right));
            prop_assert_eq!(merged.len(), k.min(everything.len()));
            for (got, expected) in merged.iter().zip(&everything) {
                prop_assert_eq!((got.hit.score, &got.hit.document_id, got.hit.ordinal),
                    (expected.score, &expected.document_id, expected.ordinal));
            }
        }

        /// Cutting each shard's answer to its own best k first changes nothing: that is why shards send k only.
        #[test]
        fn best_of_the_bests_is_best(hits in hits(), k in 1usize..20) {
            let whole = answers(&hits);
            let mut cut = whole.clone();
            for (shard, answer) in &mut cut {
                answer.hits = merge_top_k([(shard, &whole[shard])], k).into_iter().map(|merged| merged.hit).collect();
            }
            prop_assert_eq!(merge_top_k(&whole, k), merge_top_k(&cut, k));
        }
    }

    #[test]
    fn a_score_that_is_no_number_never_ranks() {
        let hit = |score| ShardHit { row: 0, score, document_id: "d".into(), ordinal: 0 };
        let answer = ShardAnswer { hits: vec![hit(f32::NAN), hit(0.5)], ..ShardAnswer::default() };
        let merged = merge_top_k([(&shard(0), &answer)], 10);
        assert_eq!(merged.len(), 1);
        assert_eq!(merged[0].hit.score, 0.5);
    }
}
