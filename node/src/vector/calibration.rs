//! What recall each effort buys, measured when a generation is trained: on queries held out of the sample, against exact
//! search over the rest of it.
//!
//! The table is honest about the sample, not about the future: rows written later may lie elsewhere, and a shard much larger
//! than the sample needs somewhat more candidates for the same recall.

use serde::{Deserialize, Serialize};

use super::cost::Costs;

/// Results that recall is measured over.
pub(super) const RECALL_AT: usize = 10;
/// Candidates re-scored per result, the steps that are measured.
pub(super) const OVERSAMPLES: [f32; 7] = [1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0];
/// Shares of the lists probed, the steps that are measured.
pub(super) const PROBE_SHARES: [f64; 10] = [0.0156, 0.0313, 0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.75, 1.0];
/// Recall that the default effort aims at: a margin above the 0.97 that is promised of the whole.
const RECALL_DEFAULT: f32 = 0.985;
/// Most of the codes that the default effort scans: a margin below the 30 % that is promised.
const CODES_SHARE_DEFAULT_MAX: f32 = 0.25;

/// One measured effort.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rung {
    /// Lists probed.
    pub nprobe: u32,
    /// Candidates re-scored per result.
    pub oversample: f32,
    /// Share of the exact best [`RECALL_AT`] found, mean over the queries.
    pub recall: f32,
    /// Share of all codes scanned, mean over the queries.
    pub codes_share: f32,
}

/// The measured efforts of a generation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibration {
    rungs: Vec<Rung>,
}

impl Calibration {
    pub(super) fn new(rungs: Vec<Rung>) -> Self {
        Self { rungs }
    }

    /// As measured: by lists probed, then by oversample. Empty where the sample was too small to measure on.
    pub fn rungs(&self) -> &[Rung] {
        &self.rungs
    }

    /// The cheapest measured effort that reaches the recall; `None` where none does, so that only exact search will.
    pub(super) fn effort_for(&self, recall: f32, costs: &Costs, rows: u64) -> Option<Rung> {
        let cost = |rung: &Rung| {
            let codes = f64::from(rung.codes_share) * rows as f64;
            costs.index_ns(f64::from(rung.nprobe), codes, f64::from(rung.oversample) * RECALL_AT as f64)
        };
        self.rungs.iter().filter(|rung| rung.recall >= recall).min_by(|a, b| cost(a).total_cmp(&cost(b))).copied()
    }

    /// Lists to probe by default, with candidates re-scored at `oversample`: as few as reach [`RECALL_DEFAULT`], within
    /// [`CODES_SHARE_DEFAULT_MAX`] of the codes; a quarter of the lists where nothing was measured.
    pub(super) fn nprobe_default(&self, oversample: f32, nlist: u32) -> u32 {
        let step = OVERSAMPLES.iter().rev().find(|step| **step <= oversample).unwrap_or(&OVERSAMPLES[0]);
        let affordable =
            || self.rungs.iter().filter(|rung| rung.oversample == *step && rung.codes_share <= CODES_SHARE_DEFAULT_MAX);
        let enough = affordable().filter(|rung| rung.recall >= RECALL_DEFAULT).map(|rung| rung.nprobe).min();
        enough.or_else(|| affordable().map(|rung| rung.nprobe).max()).unwrap_or(nlist.div_ceil(4)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rung(nprobe: u32, oversample: f32, recall: f32, codes_share: f32) -> Rung {
        Rung { nprobe, oversample, recall, codes_share }
    }

    fn ladder() -> Calibration {
        Calibration::new(vec![
            rung(8, 5.0, 0.90, 0.05),
            rung(8, 10.0, 0.95, 0.05),
            rung(16, 5.0, 0.96, 0.10),
            rung(16, 10.0, 0.986, 0.10),
            rung(32, 5.0, 0.97, 0.20),
            rung(32, 10.0, 0.99, 0.20),
            rung(64, 10.0, 0.995, 0.40),
        ])
    }

    #[test]
    fn the_default_is_the_least_that_is_good_enough() {
        assert_eq!(ladder().nprobe_default(10.0, 100), 16);
        assert_eq!(ladder().nprobe_default(19.0, 100), 16, "the step below what is asked");
        assert_eq!(ladder().nprobe_default(5.0, 100), 32, "not good enough: the most that is affordable");
        assert_eq!(Calibration::default().nprobe_default(10.0, 100), 25);
        assert_eq!(Calibration::default().nprobe_default(10.0, 1), 1);
    }

    #[test]
    fn the_effort_for_a_recall_is_the_cheapest() {
        let costs = Costs { code_ns: 5.0, list_ns: 0.0, row_ns: 100.0 };
        assert_eq!(ladder().effort_for(0.96, &costs, 10_000), Some(rung(16, 5.0, 0.96, 0.10)));
        assert_eq!(ladder().effort_for(0.99, &costs, 10_000), Some(rung(32, 10.0, 0.99, 0.20)));
        assert_eq!(ladder().effort_for(0.999, &costs, 10_000), None);
        let dear_rows = Costs { code_ns: 0.1, list_ns: 0.0, row_ns: 1000.0 };
        assert_eq!(ladder().effort_for(0.965, &dear_rows, 10_000), Some(rung(32, 5.0, 0.97, 0.20)));
    }
}
