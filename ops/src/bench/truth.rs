//! Exact nearest neighbours, and the recall of what was found against them.

use std::collections::HashSet;

use rayon::prelude::*;

use super::dataset::Matrix;

/// Queries compared with a row while it is in the processor's cache.
const QUERIES_PER_BLOCK: usize = 16;
/// Independent sums of a product, so that the compiler can keep them in vector registers.
const LANES: usize = 16;

/// The inner product of two vectors of one length.
pub fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (left_blocks, right_blocks) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let rest: f32 = left_blocks.remainder().iter().zip(right_blocks.remainder()).map(|(a, b)| a * b).sum();
    for (left, right) in left_blocks.zip(right_blocks) {
        for lane in 0..LANES {
            sums[lane] += left[lane] * right[lane];
        }
    }
    rest + sums.iter().sum::<f32>()
}

/// For each query the `k` rows of `base` with the largest inner product, best first, ties by row.
///
/// Cost: every row against every query, on all cores. Memory: `k` candidates per query. `done` hears of each block of queries.
pub fn exact_neighbors(base: &Matrix, queries: &Matrix, k: usize, done: &(dyn Fn(u64) + Sync)) -> Vec<Vec<u32>> {
    let numbers: Vec<usize> = (0..queries.rows()).collect();
    let blocks: Vec<Vec<Vec<u32>>> = numbers
        .par_chunks(QUERIES_PER_BLOCK)
        .map(|block| {
            let mut best: Vec<Vec<(f32, u32)>> = vec![Vec::with_capacity(k + 1); block.len()];
            for row in 0..base.rows() {
                let vector = base.row(row);
                for (query, best) in block.iter().zip(&mut best) {
                    offer(best, k, (dot(vector, queries.row(*query)), row as u32));
                }
            }
            done(block.len() as u64);
            best.into_iter().map(|best| best.into_iter().map(|(_, row)| row).collect()).collect()
        })
        .collect();
    blocks.into_iter().flatten().collect()
}

/// Keeps the `k` best in order. Rows come in ascending order, so an equal one goes behind.
fn offer(best: &mut Vec<(f32, u32)>, k: usize, candidate: (f32, u32)) {
    if best.len() == k && best.last().is_none_or(|last| last.0 >= candidate.0) {
        return;
    }
    let place = best.partition_point(|other| other.0 >= candidate.0);
    best.insert(place, candidate);
    best.truncate(k);
}

/// Share of the neighbours in `given` that `other` has, too, over the queries that both have.
pub fn shared(other: &[Vec<u32>], given: &[Vec<u32>]) -> f64 {
    let pairs = || other.iter().zip(given);
    let found = pairs().map(|(other, given)| given.iter().filter(|row| other.contains(row)).count());
    found.sum::<usize>() as f64 / pairs().map(|(_, given)| given.len()).sum::<usize>().max(1) as f64
}

/// Share of the first `k` true neighbours among the first `k` found, mean over the queries. Found are ids, as loaded.
pub fn recall(found: &[Vec<String>], truth: &[Vec<u32>], k: usize) -> f64 {
    let hits = found.iter().zip(truth).map(|(found, truth)| {
        let expected: HashSet<String> = truth.iter().take(k).map(u32::to_string).collect();
        found.iter().take(k).filter(|id| expected.contains(*id)).count()
    });
    hits.sum::<usize>() as f64 / (k * found.len()).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_those_of_sorting_everything() {
        let generator = crate::bench::synthetic::Generator::new(3, 20, 500);
        let (base, queries) = (generator.rows(0..500), generator.rows(500..540));
        let found = exact_neighbors(&base, &queries, 10, &|_| ());
        assert_eq!(found.len(), 40);
        for (query, found) in found.iter().enumerate() {
            let mut all: Vec<u32> = (0..500).collect();
            let score = |row: u32| dot(base.row(row as usize), queries.row(query));
            all.sort_by(|a, b| score(*b).total_cmp(&score(*a)).then(a.cmp(b)));
            assert_eq!(found[..], all[..10], "query {query}");
        }
    }

    #[test]
    fn equal_rows_go_by_number_and_recall_counts_the_first_k() {
        let base = Matrix::new(1, vec![1.0, 2.0, 2.0, 1.0]);
        let truth = exact_neighbors(&base, &Matrix::new(1, vec![1.0]), 3, &|_| ());
        assert_eq!(truth, [[1, 2, 0]]);
        let found = |ids: &[&str]| vec![ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>()];
        assert_eq!(recall(&found(&["2", "1", "0"]), &truth, 2), 1.0);
        assert_eq!(recall(&found(&["2", "3"]), &truth, 2), 0.5);
        assert_eq!(recall(&[], &truth, 2), 0.0);
        assert_eq!(shared(&[vec![1, 2], vec![3, 4]], &[vec![2, 1], vec![4, 5]]), 0.75);
        assert_eq!(shared(&[vec![1], vec![9]], &[vec![1]]), 1.0, "the second was asked of one only");
    }
}
