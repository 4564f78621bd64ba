//! Exact scoring: one kernel, in one fixed order of additions, for exact search, the tail and re-scoring alike.
//!
//! Every copy of a shard must give the same score for the same row, whatever its compiler flags: the sums run over a fixed
//! number of lanes, the lanes are folded in a fixed tree, and products are never fused with sums.

use std::ops::Range;

use cluster_config::collection::Metric;
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::top::Top;
use super::{Cancel, Candidates, MappedVectors, ProbeParams, RowSet, VectorError, VectorIndex, ffi};

/// Independent partial sums: enough to hide the latency of an addition.
pub(super) const LANES: usize = 16;
/// Rows between two looks at the cancel flag: below a millisecond even at the widest dimension.
const ROWS_PER_CHECK: usize = 1024;
/// Rows that lie all over the file are fetched ahead of the one being scored, because waiting for each in turn costs more than
/// scoring it. So far ahead its place is looked up, which waits for the page's address; a little later all of it is asked for, no more than the CPU can
/// have under way at once.
const LOCATE_AHEAD: usize = 16;
const FETCH_AHEAD: usize = 4;

/// The score of a row: larger is better, comparable across shards of a collection.
///
/// Cosine is the inner product of unit vectors, `l2` is `1 / (1 + squared distance)`. Shapes: query `[dim]`, row `[dim]`.
pub fn score(metric: Metric, query: &[f32], row: &[f16]) -> f32 {
    ffi::score_in_wide_lanes(metric, query, row)
}

/// What [`score`] is, on any CPU: the one definition of the order of additions.
pub(super) fn score_in_lanes(metric: Metric, query: &[f32], row: &[f16]) -> f32 {
    match metric {
        Metric::Cosine | Metric::Dot => sum_in_lanes(query, row, |q, x| q * x),
        Metric::L2 => score_of_distance(sum_in_lanes(query, row, |q, x| (q - x) * (q - x))),
    }
}

/// The `l2` score of a squared distance.
pub(super) fn score_of_distance(squared: f32) -> f32 {
    1.0 / (1.0 + squared)
}

/// Component `i` goes to lane `i % LANES`; then the second half of the lanes onto the first, and so on.
fn sum_in_lanes(query: &[f32], row: &[f16], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for (query, row) in query.chunks(LANES).zip(row.chunks(LANES)) {
        let (mut query_block, mut row_block) = ([0.0; LANES], [0.0; LANES]);
        query_block[..query.len()].copy_from_slice(query);
        row.convert_to_f32_slice(&mut row_block[..row.len()]);
        for lane in 0..LANES {
            lanes[lane] += term(query_block[lane], row_block[lane]);
        }
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

/// Offers these rows, each below `vectors.len()`, to `top`.
pub(super) fn score_rows(vectors: &MappedVectors, metric: Metric, query: &[f32], rows: &[u64], top: &mut Top) {
    rows.iter().take(LOCATE_AHEAD).for_each(|row| vectors.locate(*row));
    rows.iter().take(FETCH_AHEAD).for_each(|row| vectors.fetch(*row));
    for (position, row) in rows.iter().enumerate() {
        if let Some(later) = rows.get(position + LOCATE_AHEAD) {
            vectors.locate(*later);
        }
        if let Some(later) = rows.get(position + FETCH_AHEAD) {
            vectors.fetch(*later);
        }
        top.offer(*row, score(metric, query, vectors.get(*row)));
    }
}

/// Offers every allowed row of the range to the `tops` of the queries; gives the number of rows compared.
///
/// Errors: `Cancelled`, `DeadlineExceeded`.
pub(super) fn scan(
    vectors: &MappedVectors,
    metric: Metric,
    queries: &[&[f32]],
    rows: Range<u64>,
    allowed: &RowSet,
    cancel: &Cancel,
    tops: &mut [Top],
) -> Result<u64, VectorError> {
    let mut compared = 0;
    let mut rows = allowed.iter(rows.start..rows.end.min(vectors.len()));
    let mut block = Vec::new();
    loop {
        block.clear();
        block.extend(rows.by_ref().take(ROWS_PER_CHECK));
        if block.is_empty() {
            return Ok(compared);
        }
        for (query, top) in queries.iter().zip(&mut *tops) {
            cancel.check()?;
            score_rows(vectors, metric, query, &block, top);
        }
        compared += block.len() as u64;
    }
}

/// Exact search over mapped vectors: the oracle that the approximate index is measured against.
pub struct FlatIndex<'a> {
    vectors: &'a MappedVectors,
    metric: Metric,
}

impl<'a> FlatIndex<'a> {
    /// All rows that `vectors` has at the time of each search.
    pub fn new(vectors: &'a MappedVectors, metric: Metric) -> Self {
        Self { vectors, metric }
    }
}

impl VectorIndex for FlatIndex<'_> {
    fn search(
        &self,
        query: &[f32],
        count: usize,
        _params: &ProbeParams,
        allowed: &RowSet,
        cancel: &Cancel,
    ) -> Result<Candidates, VectorError> {
        super::check_query(query, self.vectors.dim())?;
        let mut tops = [Top::new(count)];
        scan(self.vectors, self.metric, &[query], 0..u64::MAX, allowed, cancel, &mut tops)?;
        let [top] = tops;
        Ok(Candidates { best: top.into_sorted(), codes_scanned: 0 })
    }

    fn len(&self) -> u64 {
        self.vectors.len()
    }

    fn memory_bytes(&self) -> u64 {
        self.vectors.len() * self.vectors.row_bytes() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Candidate;
    use proptest::prelude::*;

    fn halves(values: &[f32]) -> Vec<f16> {
        values.iter().map(|value| f16::from_f32(*value)).collect()
    }

    proptest! {
        #[test]
        fn agrees_with_double_precision(pairs in proptest::collection::vec((-1.0f32..1.0, -1.0f32..1.0), 1..700)) {
            let (query, row): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let row = halves(&row);
            let terms = || query.iter().zip(&row).map(|(q, x)| (f64::from(*q), x.to_f64()));
            let dot: f64 = terms().map(|(q, x)| q * x).sum();
            let distance: f64 = terms().map(|(q, x)| (q - x) * (q - x)).sum();
            prop_assert!((f64::from(score(Metric::Dot, &query, &row)) - dot).abs() < 1e-4);
            prop_assert!((f64::from(score(Metric::L2, &query, &row)) - 1.0 / (1.0 + distance)).abs() < 1e-5);
        }
    }

    /// Bit patterns written down once: a change here means that copies of different builds disagree.
    #[test]
    fn the_order_of_additions_is_fixed() {
        let query: Vec<f32> = (0..385).map(|i| (i as f32 * 0.37).sin()).map(|v| f16::from_f32(v).to_f32()).collect();
        let row = halves(&(0..385).map(|i| (i as f32 * 0.11).cos()).collect::<Vec<_>>());
        let lane_by_lane = |term: fn(f32, f32) -> f32| {
            let mut lanes = [0.0f32; 16];
            for (i, (q, x)) in query.iter().zip(&row).enumerate() {
                lanes[i % 16] += term(*q, x.to_f32());
            }
            for width in [8, 4, 2, 1] {
                for lane in 0..width {
                    lanes[lane] += lanes[lane + width];
                }
            }
            lanes[0]
        };
        assert_eq!(score(Metric::Cosine, &query, &row).to_bits(), lane_by_lane(|q, x| q * x).to_bits());
        let distance = lane_by_lane(|q, x| (q - x) * (q - x));
        assert_eq!(score(Metric::L2, &query, &row).to_bits(), (1.0 / (1.0 + distance)).to_bits());
    }

    #[test]
    fn finds_the_best_allowed_rows_and_stops_when_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let vectors = MappedVectors::open(&dir.path().join("v"), 2, 0, 1).unwrap();
        for (x, y) in [(1.0, 0.0), (0.0, 1.0), (0.6, 0.8), (1.0, 0.0), (-1.0, 0.0)] {
            vectors.append(&crate::vector::mapped::encode(&[x, y])).unwrap();
        }
        let flat = FlatIndex::new(&vectors, Metric::Cosine);
        let params = ProbeParams { nprobe: 1, found_min: 0 };
        let find = |allowed: &RowSet| flat.search(&[1.0, 0.0], 3, &params, allowed, &Cancel::never()).unwrap().best;
        let rows = |best: Vec<Candidate>| best.into_iter().map(|c| c.row).collect::<Vec<_>>();
        assert_eq!(rows(find(&RowSet::all(5))), [0, 3, 2], "equal scores by row");
        assert_eq!(rows(find(&RowSet::live(5, &[0u64].into_iter().collect()))), [3, 2, 1]);
        assert_eq!(rows(find(&RowSet::all(9))), [0, 3, 2], "rows not yet there are not looked for");

        let cancel = Cancel::never();
        cancel.cancel();
        assert!(matches!(flat.search(&[1.0, 0.0], 3, &params, &RowSet::all(5), &cancel), Err(VectorError::Cancelled)));
        assert!(matches!(
            flat.search(&[1.0], 3, &params, &RowSet::all(5), &Cancel::never()),
            Err(VectorError::InvalidArgument(_))
        ));
    }
}
