//! Which effort buys which recall: the table that searches choose their effort from.
//!
//! A generation brings the table that was measured on its sample when it was trained. Once its index holds the shard's rows, a
//! finer one is measured on those ([`super::measure`]) and takes its place. The table is honest about what was measured, not about
//! the future: rows written later may lie elsewhere, which is why it is measured again as the shard grows.

use std::ops::RangeInclusive;

use cluster_config::search::EffortRung;

use super::cost::Costs;

/// Results that recall is measured over.
pub(super) const RECALL_AT: usize = 10;
/// Candidates re-scored per result, the steps that are measured.
pub(super) const OVERSAMPLES: [f32; 7] = [1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0];
/// Shares of the lists probed, the steps that are measured.
pub(super) const PROBE_SHARES: [f64; 13] =
    [0.0078, 0.0156, 0.0313, 0.0625, 0.0938, 0.125, 0.1875, 0.22, 0.25, 0.375, 0.5, 0.75, 1.0];
/// Recall that the default effort aims at: a margin above the 0.985 that is promised of the whole.
const RECALL_DEFAULT: f32 = 0.99;
/// Most of the codes that the default effort scans: a margin below the 30 % that is promised.
const CODES_SHARE_DEFAULT_MAX: f32 = 0.25;
/// Where the default effort cannot reach [`RECALL_DEFAULT`]: recall it forgoes below the best there is, since the last
/// thousandths cost several times what all before them did.
const RECALL_FORGONE: f32 = 0.003;

/// How many of a shard's best rows count when its recall is measured, of a collection with so many shards.
///
/// The best [`RECALL_AT`] of all shards are, on average, so many of each. Measuring the best 10 of one shard of four would ask it to
/// find what hardly ever comes into the merged answer, and that is what costs most.
pub(super) fn results_that_count(shard_count: u32) -> usize {
    RECALL_AT.div_ceil(shard_count.max(1) as usize)
}

/// Measured efforts: by oversample, then by lists probed, both ascending.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibration {
    rungs: Vec<EffortRung>,
}

impl Calibration {
    /// From rungs in any order; those that cannot be (no lists, values out of range) are left out.
    pub fn new(rungs: Vec<EffortRung>) -> Self {
        let share = |value: f32| (0.0..=1.0).contains(&value);
        let mut rungs: Vec<EffortRung> = rungs
            .into_iter()
            .filter(|rung| rung.nprobe > 0 && rung.oversample >= 1.0 && share(rung.recall) && share(rung.codes_share))
            .collect();
        rungs.sort_by(|a, b| a.oversample.total_cmp(&b.oversample).then(a.nprobe.cmp(&b.nprobe)));
        Self { rungs }
    }

    /// Empty where the sample was too small to measure on.
    pub fn rungs(&self) -> &[EffortRung] {
        &self.rungs
    }

    /// The cheapest effort that reaches the recall, by the table; `None` where none does, so that only exact search will.
    ///
    /// Between two measured numbers of lists recall and codes are taken as straight lines. Recall bends towards fewer lists, so
    /// the true one lies above the line.
    pub(super) fn effort_for(&self, recall: f32, costs: &Costs, rows: u64) -> Option<EffortRung> {
        cheapest(self.ladders(), recall, costs, rows)
    }

    /// The effort where none was asked for: the cheapest that reaches [`RECALL_DEFAULT`] within [`CODES_SHARE_DEFAULT_MAX`] of the
    /// codes, with an oversample in the range; where none does, the cheapest that comes within [`RECALL_FORGONE`] of the best.
    /// `None` where nothing was measured.
    ///
    /// More rows need deeper candidates, not only more lists: among a million rows more codes lie as near as the best rows' own.
    pub(super) fn effort_default(
        &self,
        oversamples: RangeInclusive<f32>,
        costs: &Costs,
        rows: u64,
    ) -> Option<EffortRung> {
        let best = best_recall(self.affordable(oversamples.clone()))?;
        let goal = if best >= RECALL_DEFAULT { RECALL_DEFAULT } else { best - RECALL_FORGONE };
        cheapest(self.affordable(oversamples), goal, costs, rows)
    }

    /// Best recall within what the default effort may scan; `None` where nothing was measured.
    pub(crate) fn recall_default(&self, oversample_min: f32) -> Option<f32> {
        best_recall(self.affordable(oversample_min..=f32::INFINITY))
    }

    /// The rungs of each oversample.
    fn ladders(&self) -> impl Iterator<Item = &[EffortRung]> {
        self.rungs.chunk_by(|a, b| a.oversample == b.oversample)
    }

    /// Of each ladder in the range what the default effort may scan. The range begins at the measured step below its start.
    fn affordable(&self, oversamples: RangeInclusive<f32>) -> impl Iterator<Item = &[EffortRung]> {
        let (least, most) = oversamples.into_inner();
        let least = *OVERSAMPLES.iter().rev().find(|step| **step <= least).unwrap_or(&OVERSAMPLES[0]);
        let is_in_range = move |oversample: f32| oversample == least || (least..=most).contains(&oversample);
        let ladders = self.ladders().filter(move |ladder| is_in_range(ladder[0].oversample));
        ladders.map(|ladder| &ladder[..ladder.partition_point(|rung| rung.codes_share <= CODES_SHARE_DEFAULT_MAX)])
    }
}

fn best_recall<'a>(ladders: impl Iterator<Item = &'a [EffortRung]>) -> Option<f32> {
    ladders.flatten().map(|rung| rung.recall).max_by(f32::total_cmp)
}

/// The cheapest of the ladders' efforts for a recall, in an index of so many rows.
fn cheapest<'a>(
    ladders: impl Iterator<Item = &'a [EffortRung]>,
    recall: f32,
    costs: &Costs,
    rows: u64,
) -> Option<EffortRung> {
    let cost = |rung: &EffortRung| {
        let codes = f64::from(rung.codes_share) * rows as f64;
        costs.index_ns(f64::from(rung.nprobe), codes, f64::from(rung.oversample) * RECALL_AT as f64)
    };
    ladders.filter_map(|ladder| climb(ladder, recall)).min_by(|a, b| cost(a).total_cmp(&cost(b)))
}

/// The least effort on a ladder of one oversample that reaches the recall.
fn climb(ladder: &[EffortRung], recall: f32) -> Option<EffortRung> {
    let reached = ladder.iter().position(|rung| rung.recall >= recall)?;
    let upper = ladder[reached];
    let Some(lower) = reached.checked_sub(1).map(|below| ladder[below]) else { return Some(upper) };
    let part = (recall - lower.recall) / (upper.recall - lower.recall);
    let between = |low: f32, high: f32| low + part * (high - low);
    let nprobe = between(lower.nprobe as f32, upper.nprobe as f32).ceil() as u32;
    let codes_share = between(lower.codes_share, upper.codes_share);
    Some(EffortRung { nprobe: nprobe.clamp(lower.nprobe, upper.nprobe), recall, codes_share, ..upper })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rung(nprobe: u32, oversample: f32, recall: f32, codes_share: f32) -> EffortRung {
        EffortRung { nprobe, oversample, recall, codes_share }
    }

    fn ladder() -> Calibration {
        Calibration::new(vec![
            rung(8, 5.0, 0.90, 0.05),
            rung(8, 10.0, 0.95, 0.05),
            rung(16, 5.0, 0.96, 0.10),
            rung(16, 10.0, 0.991, 0.10),
            rung(32, 5.0, 0.97, 0.20),
            rung(32, 10.0, 0.994, 0.20),
            rung(64, 10.0, 0.995, 0.40),
        ])
    }

    #[test]
    fn the_default_is_the_cheapest_that_is_good_enough() {
        let costs = Costs { code_ns: 5.0, list_ns: 0.0, row_ns: 100.0 };
        let chosen = |calibration: &Calibration, oversamples| {
            let rung = calibration.effort_default(oversamples, &costs, 10_000);
            rung.map(|rung| (rung.nprobe, rung.oversample))
        };
        for (oversamples, expected, why) in [
            (10.0..=10.0, (16, 10.0), "the least that reaches 0.99"),
            (10.0..=1000.0, (16, 10.0), "nothing deeper was measured"),
            (19.0..=19.0, (16, 10.0), "the step below what is asked"),
            (5.0..=5.0, (28, 5.0), "not good enough: nearly the most that is affordable"),
            (5.0..=1000.0, (16, 10.0), "deeper candidates reach what more lists do not"),
        ] {
            assert_eq!(chosen(&ladder(), oversamples), Some(expected), "{why}");
        }
        assert_eq!(chosen(&Calibration::default(), 10.0..=10.0), None);
        // A shard of 250,000 rows: at ten candidates a result no affordable number of lists is enough.
        let large = Calibration::new(vec![
            rung(50, 10.0, 0.93, 0.05),
            rung(200, 10.0, 0.947, 0.22),
            rung(50, 20.0, 0.97, 0.05),
            rung(200, 20.0, 0.98, 0.22),
            rung(50, 50.0, 0.991, 0.05),
            rung(200, 50.0, 0.998, 0.22),
        ]);
        assert_eq!(chosen(&large, 10.0..=10.0), Some((174, 10.0)), "who names the depth gets no other");
        assert_eq!(chosen(&large, 10.0..=20.0), Some((155, 20.0)));
        assert_eq!(chosen(&large, 10.0..=1000.0), Some((50, 50.0)));
        let flat = Calibration::new(vec![rung(4, 10.0, 0.9, 0.1), rung(8, 10.0, 0.902, 0.2), rung(4, 20.0, 0.9, 0.1)]);
        assert_eq!(chosen(&flat, 10.0..=1000.0), Some((4, 10.0)), "of nearly equals the least");
        assert_eq!(ladder().recall_default(10.0), Some(0.994), "the rung above scans too much");
        assert_eq!(Calibration::default().recall_default(10.0), None);
    }

    #[test]
    fn the_effort_for_a_recall_is_the_cheapest() {
        let costs = Costs { code_ns: 5.0, list_ns: 0.0, row_ns: 100.0 };
        let chosen =
            |recall, costs| ladder().effort_for(recall, costs, 10_000).map(|rung| (rung.nprobe, rung.oversample));
        assert_eq!(chosen(0.96, &costs), Some((16, 5.0)));
        assert_eq!(chosen(0.90, &costs), Some((8, 5.0)), "the least that was measured");
        assert_eq!(chosen(0.975, &costs), Some((13, 10.0)), "between 8 lists and 16, more than half of the way");
        assert_eq!(chosen(0.999, &costs), None);
        let dear_rows = Costs { code_ns: 0.1, list_ns: 0.0, row_ns: 1000.0 };
        assert_eq!(chosen(0.965, &dear_rows), Some((24, 5.0)));
    }

    #[test]
    fn more_recall_never_asks_for_fewer_codes() {
        let costs = Costs { code_ns: 5.0, list_ns: 10.0, row_ns: 1.0 };
        let codes: Vec<f32> = (900..=995)
            .map(|thousandths| ladder().effort_for(thousandths as f32 / 1000.0, &costs, 10_000).unwrap().codes_share)
            .collect();
        assert!(codes.is_sorted(), "{codes:?}");
    }

    #[test]
    fn rungs_that_cannot_be_are_left_out() {
        let broken =
            [rung(0, 1.0, 0.5, 0.5), rung(1, 0.5, 0.5, 0.5), rung(1, 1.0, f32::NAN, 0.5), rung(1, 1.0, 0.5, 1.5)];
        assert_eq!(Calibration::new(broken.to_vec()), Calibration::default());
    }
}
