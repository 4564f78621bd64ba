//! Queries over one copy: the index or an exact scan below `indexed_row_end`, an exact scan of the tail above it, and exact
//! scores for all that is returned. Several that ask alike go together: a list's codes and an exact row are read once for them.

use cluster_config::collection::{IndexSpec, Metric};
use cluster_config::limits::{OVERSAMPLE_MAX, RESCORE_MAX};
use cluster_config::search::{EffortRung, SearchKnobs};

use super::cost::{Costs, Plan, plan_search, widen_nprobe};
use super::flat::{scan, score_rows};
use super::top::Top;
use super::{Calibration, Cancel, IvfIndex, MappedVectors, ProbeParams, RowSet, VectorError, VectorIndex, check_query};

/// What queries are run on: one consistent picture of a copy, taken by the shard.
pub struct SearchView<'a> {
    /// `None` below the training floor.
    pub index: Option<&'a IvfIndex>,
    /// What each effort finds, measured on the rows of the index; where it was not yet, the generation's own table is used.
    pub measured: Option<&'a Calibration>,
    /// Every allowed row below this is in the index; 0 where there is none.
    pub indexed_row_end: u64,
    /// Full-precision vectors of all rows below `row_end`.
    pub vectors: &'a MappedVectors,
    /// Rows visible to this query.
    pub row_end: u64,
    /// Rows that may be returned.
    pub allowed: &'a RowSet,
    /// How vectors are compared.
    pub metric: Metric,
}

/// The best rows, with exact scores.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    /// Row and score, best first, ties by row.
    pub rows: Vec<(u64, f32)>,
    /// Codes compared with the query.
    pub codes_scanned: u64,
    /// Codes the index holds.
    pub codes_total: u64,
    /// Rows compared exactly in place of the index (the tail, or all allowed rows); re-scored candidates not counted.
    pub rows_exact: u64,
}

/// Lists to probe and rows to re-score.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Effort {
    nprobe: u32,
    candidates: usize,
}

/// The `fetch_k` best allowed rows of the view, for each of the queries. What one finds does not depend on the others.
///
/// Shapes: queries `[dim]`, unit length where the metric is cosine. `fetch_k` and the rows re-scored are at most `RESCORE_MAX`.
/// Errors: `InvalidArgument` (dimension, values not finite), `Cancelled`, `DeadlineExceeded`.
pub fn search_rows(
    view: &SearchView<'_>,
    queries: &[&[f32]],
    fetch_k: usize,
    knobs: &SearchKnobs,
    spec: &IndexSpec,
    cancel: &Cancel,
) -> Result<Vec<Scored>, VectorError> {
    queries.iter().try_for_each(|query| check_query(query, view.vectors.dim()))?;
    cancel.check()?;
    let fetch_k = fetch_k.min(RESCORE_MAX as usize);
    let codes_total = view.index.map_or(0, VectorIndex::len);

    let indexed_row_end = view.indexed_row_end.min(view.row_end);
    let way = view.index.and_then(|index| {
        let allowed = view.allowed.count_below(indexed_row_end);
        let effort = choose_effort(index, view.measured, allowed, fetch_k, knobs, spec)?;
        let parameters = index.generation().parameters();
        let costs = Costs::of(&parameters);
        let (nprobe, candidates) = (effort.nprobe, effort.candidates as u64);
        let plan = plan_search(allowed, index.len(), nprobe, parameters.nlist, candidates, &costs);
        (plan == Plan::Index).then_some((index, effort))
    });
    let mut tops: Vec<Top> = queries.iter().map(|_| Top::new(fetch_k)).collect();
    let mut codes_scanned = vec![0; queries.len()];
    let exact_from = match way {
        None => 0,
        Some((index, effort)) => {
            let params = ProbeParams { nprobe: effort.nprobe, found_min: fetch_k };
            let found = index.search_unordered(queries, effort.candidates, &params, view.allowed, cancel)?;
            for (at, found) in found.iter().enumerate() {
                cancel.check()?;
                codes_scanned[at] = found.codes_scanned;
                let rows = found.best.iter().map(|candidate| candidate.row).filter(|row| *row < indexed_row_end);
                score_rows(view.vectors, view.metric, queries[at], &rows.collect::<Vec<u64>>(), &mut tops[at]);
            }
            indexed_row_end
        }
    };
    let tail = exact_from..view.row_end;
    let rows_exact = scan(view.vectors, view.metric, queries, tail, view.allowed, cancel, &mut tops)?;
    let scored = tops.into_iter().zip(codes_scanned).map(|(top, codes_scanned)| {
        let rows = top.into_sorted().into_iter().map(|candidate| (candidate.row, candidate.score)).collect();
        Scored { rows, codes_scanned, codes_total, rows_exact }
    });
    Ok(scored.collect())
}

/// What the knobs ask of the index; `None` for exact search.
///
/// A named `nprobe` or `oversample` wins over `target_recall`, which wins over the collection's setting, which wins over what was
/// measured; a collection that names its `nprobe` also means its `oversample`, any other deepens it where that finds more. A filter,
/// which leaves `allowed` rows of the index, widens the probe, but not one that the caller named.
fn choose_effort(
    index: &IvfIndex,
    measured: Option<&Calibration>,
    allowed: u64,
    fetch_k: usize,
    knobs: &SearchKnobs,
    spec: &IndexSpec,
) -> Option<Effort> {
    if knobs.exact {
        return None;
    }
    let parameters = index.generation().parameters();
    let costs = Costs::of(&parameters);
    let efforts = measured.unwrap_or_else(|| index.generation().calibration());
    let oversample_named = knobs.oversample.filter(|asked| !asked.is_nan());
    let mut effort = None;
    if let Some(recall) = knobs.target_recall {
        effort = efforts.effort_for(recall, &costs, index.len());
        if effort.is_none() && knobs.nprobe.is_none() && knobs.oversample.is_none() {
            return None;
        }
    }
    if effort.is_none() && spec.nprobe.is_none() && knobs.nprobe.is_none() {
        let oversamples = oversample_named.map_or(spec.oversample..=OVERSAMPLE_MAX, |named| named..=named);
        effort = efforts
            .effort_default(oversamples, &costs, index.len())
            .map(|rung| EffortRung { oversample: rung.oversample.max(spec.oversample), ..rung });
    }
    let (nprobe, oversample) =
        effort.map_or((parameters.nprobe, spec.oversample), |rung| (rung.nprobe, rung.oversample));
    let nprobe = match knobs.nprobe {
        Some(nprobe) => nprobe.clamp(1, parameters.nlist),
        None => widen_nprobe(nprobe, allowed, index.len(), parameters.nlist),
    };
    let oversample = oversample_named.unwrap_or(oversample).clamp(1.0, OVERSAMPLE_MAX);
    let candidates = (fetch_k as f64 * f64::from(oversample)).ceil() as usize;
    Some(Effort { nprobe, candidates: candidates.clamp(fetch_k, RESCORE_MAX as usize) })
}
