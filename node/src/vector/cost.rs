//! Whether to use the index for a query, and how much of it: pure arithmetic over rows, codes and measured unit costs.

use cluster_config::collection::Metric;

use super::generation::GenerationParameters;

/// What the pieces of a search cost, in nanoseconds as `benches/vector.rs` last measured them (see DESIGN.md). Only their
/// ratios matter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Costs {
    /// One code against the query's tables.
    pub(super) code_ns: f64,
    /// Beginning a list: packing tables, or, for 8-bit codes of residuals, computing them for that list.
    pub(super) list_ns: f64,
    /// One full-precision row, decoded and scored.
    pub(super) row_ns: f64,
}

impl Costs {
    pub(super) fn of(parameters: &GenerationParameters) -> Self {
        let sub_quantisers = f64::from(parameters.m);
        let (code_ns, list_ns) = match (parameters.nbits, parameters.metric) {
            (4, _) => (2.0 + 0.06 * sub_quantisers, 500.0),
            (_, Metric::Dot) => (2.0 + 0.4 * sub_quantisers, 500.0),
            (_, Metric::Cosine | Metric::L2) => {
                (2.0 + 0.4 * sub_quantisers, 500.0 + 0.45 * 256.0 * f64::from(parameters.reduced_dim))
            }
        };
        Self { code_ns, list_ns, row_ns: 10.0 + 0.1 * f64::from(parameters.dim) }
    }

    /// A search of the index that scans `codes` in `lists` and re-scores `candidates`.
    pub(super) fn index_ns(&self, lists: f64, codes: f64, candidates: f64) -> f64 {
        lists * self.list_ns + codes * self.code_ns + candidates * self.row_ns
    }
}

/// How the indexed rows are searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Compare with every allowed row.
    Exact,
    /// Scan codes, then re-score.
    Index,
}

/// Chooses the cheaper way; exact where it is no dearer, because it is also right.
///
/// `allowed`: indexed rows that may be returned, of `indexed`; `nprobe` of `nlist` lists would be probed and `candidates`
/// re-scored.
///
/// Where a filter leaves few rows, the probed lists hold few of them, and the search would have to go on into further lists
/// until it has found enough: that is what the expected share is raised for.
pub(super) fn plan_search(allowed: u64, indexed: u64, nprobe: u32, nlist: u32, candidates: u64, costs: &Costs) -> Plan {
    if allowed == 0 || indexed == 0 {
        return Plan::Exact;
    }
    let share_for_candidates = (candidates as f64 / allowed as f64).min(1.0);
    let share = (f64::from(nprobe) / f64::from(nlist.max(1))).max(share_for_candidates);
    let rescored = candidates.min(allowed) as f64;
    let with_index = costs.index_ns(share * f64::from(nlist), share * indexed as f64, rescored);
    if allowed as f64 * costs.row_ns <= with_index { Plan::Exact } else { Plan::Index }
}

/// Lists to probe where a filter leaves `allowed` of `indexed` rows, for about the recall that `nprobe` gives without one.
///
/// The nearest allowed rows lie further out than the nearest rows, and so in more lists. How many more depends on the data;
/// the inverse root of the share kept recall on MiniLM and on synthetic vectors (`tests/recall.rs`), at shares where the
/// index is used at all: at small ones, comparing the allowed rows exactly is cheaper.
pub(super) fn widen_nprobe(nprobe: u32, allowed: u64, indexed: u64, nlist: u32) -> u32 {
    let share = (allowed.max(1) as f64 / indexed.max(1) as f64).min(1.0);
    ((f64::from(nprobe) / share.sqrt()).ceil() as u32).clamp(1, nlist)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: Costs = Costs { code_ns: 5.0, list_ns: 1000.0, row_ns: 100.0 };

    #[test]
    fn few_allowed_rows_are_compared_exactly() {
        let plan = |allowed, indexed| plan_search(allowed, indexed, 50, 200, 100, &COSTS);
        assert_eq!(plan(0, 100_000), Plan::Exact);
        assert_eq!(plan(100, 100_000), Plan::Exact, "no more than would be re-scored");
        assert_eq!(plan(1_800, 100_000), Plan::Exact, "180 us against 50 us + 125 us + 10 us");
        assert_eq!(plan(1_900, 100_000), Plan::Index, "190 us against the same");
        assert_eq!(plan(100_000, 100_000), Plan::Index);
        assert_eq!(plan(50, 50), Plan::Exact);
    }

    #[test]
    fn the_choice_changes_once_as_more_rows_are_allowed() {
        for indexed in [2_000u64, 12_500, 1_000_000] {
            let mut seen_index = false;
            for allowed in (0..=indexed).step_by(indexed as usize / 500) {
                match plan_search(allowed, indexed, 40, 200, 100, &COSTS) {
                    Plan::Index => seen_index = true,
                    Plan::Exact => assert!(!seen_index, "{allowed} of {indexed}"),
                }
            }
            assert!(seen_index, "{indexed}");
        }
    }

    #[test]
    fn filters_widen_the_probe_up_to_all_lists() {
        assert_eq!(widen_nprobe(20, 1000, 1000, 200), 20);
        assert_eq!(widen_nprobe(20, 250, 1000, 200), 40);
        assert_eq!(widen_nprobe(20, 1, 1000, 200), 200);
        assert_eq!(widen_nprobe(20, 0, 0, 200), 20, "an empty index");
    }
}
