//! Measuring what each effort finds, against exact search: when a generation is trained, on its sample; and in idle time, on the
//! rows that its index holds.

use cluster_config::collection::CollectionSpec;
use cluster_config::limits::EFFORT_ROWS_COMPARED_MAX;
use cluster_config::search::EffortRung;

use super::calibration::{Calibration, OVERSAMPLES, PROBE_SHARES, RECALL_AT, results_that_count};
use super::flat::scan;
use super::top::Top;
use super::{Cancel, IvfIndex, MappedVectors, RowSet, VectorError, VectorIndex};

/// Queries that a table is measured with where rows are few: the standard error of a recall of 0.9 is then below 0.005.
const QUERIES_MAX: u64 = 1024;
/// And where they are many.
const QUERIES_MIN: u64 = 128;

/// Queries counted at every step of the ladder.
pub(super) struct Ladder<'a> {
    index: &'a IvfIndex,
    nprobes: Vec<u32>,
    /// By probe, by oversample: exact results found.
    found: Vec<[usize; OVERSAMPLES.len()]>,
    /// By probe.
    scanned: Vec<u64>,
    wanted: usize,
    queries: u64,
}

impl<'a> Ladder<'a> {
    pub(super) fn new(index: &'a IvfIndex) -> Self {
        let nlist = f64::from(index.generation().parameters().nlist);
        let mut nprobes: Vec<u32> = PROBE_SHARES.iter().map(|share| ((share * nlist).ceil() as u32).max(1)).collect();
        nprobes.dedup();
        let (found, scanned) = (vec![Default::default(); nprobes.len()], vec![0; nprobes.len()]);
        Self { index, nprobes, found, scanned, wanted: 0, queries: 0 }
    }

    /// Counts a query. `truth`: its exact best rows, as many as count; `itself`: a row that is the query and does not count.
    pub(super) fn add(
        &mut self,
        query: &[f32],
        truth: &[u64],
        itself: Option<u64>,
        allowed: &RowSet,
    ) -> Result<(), VectorError> {
        let deepest = OVERSAMPLES.map(candidates_at).into_iter().max().unwrap_or(RECALL_AT) + 1;
        for (step, nprobe) in self.nprobes.iter().enumerate() {
            let candidates = self.index.probe(query, deepest, *nprobe, allowed)?;
            self.scanned[step] += candidates.codes_scanned;
            let others = candidates.best.iter().filter(|candidate| Some(candidate.row) != itself);
            for (rank, _) in others.enumerate().filter(|(_, candidate)| truth.contains(&candidate.row)) {
                for (depth, oversample) in OVERSAMPLES.iter().enumerate() {
                    self.found[step][depth] += usize::from(rank < candidates_at(*oversample));
                }
            }
        }
        self.wanted += truth.len();
        self.queries += 1;
        Ok(())
    }

    /// The table; empty where nothing was counted.
    pub(super) fn finish(self) -> Calibration {
        if self.wanted == 0 {
            return Calibration::default();
        }
        let codes = (self.queries * self.index.len()) as f64;
        let mut rungs = Vec::with_capacity(self.nprobes.len() * OVERSAMPLES.len());
        for (step, nprobe) in self.nprobes.iter().enumerate() {
            for (depth, oversample) in OVERSAMPLES.iter().enumerate() {
                rungs.push(EffortRung {
                    nprobe: *nprobe,
                    oversample: *oversample,
                    recall: self.found[step][depth] as f32 / self.wanted as f32,
                    codes_share: (self.scanned[step] as f64 / codes) as f32,
                });
            }
        }
        Calibration::new(rungs)
    }
}

fn candidates_at(oversample: f32) -> usize {
    (oversample * RECALL_AT as f32).ceil() as usize
}

/// Measures on the rows of the index: some of them, evenly spread, are the queries, each looked for among all others.
///
/// `allowed`: rows that live. Cost: seconds of the calling thread; `EFFORT_ROWS_COMPARED_MAX` rows compared exactly at most, or
/// [`QUERIES_MIN`] times all rows where that is more.
/// Errors: `Cancelled`.
pub fn measure_effort(
    index: &IvfIndex,
    vectors: &MappedVectors,
    spec: &CollectionSpec,
    allowed: &RowSet,
    cancel: &Cancel,
) -> Result<Calibration, VectorError> {
    let row_end = index.row_end();
    let wanted = results_that_count(spec.shard_count);
    let rows = allowed.count_below(row_end);
    let queries = (EFFORT_ROWS_COMPARED_MAX / rows.max(1)).clamp(QUERIES_MIN, QUERIES_MAX).min(rows);
    let mut ladder = Ladder::new(index);
    for (position, row) in (0..).zip(allowed.iter(0..row_end)) {
        // Taken where the whole part of `position * queries / rows` grows.
        if (position + 1) * queries / rows == position * queries / rows {
            continue;
        }
        cancel.check()?;
        let query: Vec<f32> = vectors.get(row).iter().map(|value| value.to_f32()).collect();
        let mut tops = [Top::new(wanted + 1)];
        scan(vectors, spec.metric, &[&query], 0..row_end, allowed, cancel, &mut tops)?;
        let [top] = tops;
        let mut truth: Vec<u64> = top.into_sorted().into_iter().map(|candidate| candidate.row).collect();
        truth.retain(|other| *other != row);
        truth.truncate(wanted);
        ladder.add(&query, &truth, Some(row), allowed)?;
    }
    Ok(ladder.finish())
}
