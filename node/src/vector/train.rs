//! Training a model generation: projection, coarse centroids, codebooks, and the recall that each effort buys.

use std::borrow::Cow;
use std::sync::Arc;

use cluster_config::collection::{CollectionSpec, Metric};
use cluster_config::limits::{TRAINING_BYTES_MAX, TRAINING_ROWS_MAX};
use cluster_config::units::ByteSize;

use super::calibration::{Calibration, results_that_count};
use super::cost::Costs;
use super::ffi::{self, IvfPq};
use super::generation::{Generation, GenerationParameters};
use super::ivf::IvfIndex;
use super::measure::Ladder;
use super::projection::Projection;
use super::{Cancel, RowSet, VectorError};

/// A training holds its sample, and at most twice as much made of it: the centred one while axes are looked for; then the reduced one,
/// and from that what 8-bit codebooks learn from.
const SAMPLES_HELD: usize = 3;
/// Vectors that FAISS wants for each centroid it is to find.
const ROWS_PER_CENTROID_MIN: usize = 39;
/// Queries held out for measuring recall: 1,280 neighbours, enough to tell 0.97 from 0.985.
const QUERIES_HELD_OUT: usize = 128;
/// Sample rows for each query held out; a smaller sample gives up fewer queries.
const ROWS_PER_QUERY_MIN: usize = 16;

impl Generation {
    /// Most vectors worth passing to [`Generation::train`]: bounded in number and in bytes.
    pub fn training_rows_max(dim: usize) -> usize {
        TRAINING_ROWS_MAX.min(TRAINING_BYTES_MAX / (dim.max(1) * size_of::<f32>())).max(1)
    }

    /// Most vectors to pass to [`Generation::train`] for a training within `memory`.
    pub fn training_rows_within(dim: usize, memory: ByteSize) -> usize {
        let rows = memory.as_usize() / SAMPLES_HELD / (dim.max(1) * size_of::<f32>());
        rows.clamp(1, Self::training_rows_max(dim))
    }

    /// Trains on a sample `[n, dim]`. Deterministic for a given input; runs on one thread; takes seconds.
    ///
    /// Of a sample larger than [`Generation::training_rows_max`], evenly spaced rows are taken. `rows_expected`: rows the
    /// shard will hold, which the number of lists is chosen from. `cancel` is asked between the stages.
    /// Errors: `InvalidArgument` (too few rows, values not finite), `Cancelled`, `DeadlineExceeded`, `Faiss`.
    pub fn train(
        number: u64,
        spec: &CollectionSpec,
        sample: Vec<f32>,
        rows_expected: u64,
        cancel: &Cancel,
    ) -> Result<Generation, VectorError> {
        let (dim, reduced_dim) = (spec.dim as usize, spec.reduced_dim() as usize);
        let sample = thinned(sample, dim, Self::training_rows_max(dim));
        check_sample(spec, &sample)?;
        let projection = match spec.pca_dim {
            Some(_) => Some(Projection::train(&sample, dim, reduced_dim, spec.metric)?),
            None => None,
        };
        cancel.check()?;

        let split = Split::new(sample, dim);
        let rows_trained = split.rows.len() / dim;
        let mut parameters = GenerationParameters {
            metric: spec.metric,
            dim: spec.dim,
            reduced_dim: spec.reduced_dim(),
            nlist: choose_nlist(spec.index.nlist, rows_expected, rows_trained),
            m: spec.sub_quantisers(),
            nbits: spec.index.nbits,
            nprobe: 0,
            rows_trained: rows_trained as u32,
        };
        let index = IvfPq::new(&parameters.description(), reduced_dim, parameters.distance())?;
        let mut generation =
            Generation { number, parameters, projection, calibration: Calibration::default(), empty_index: index };
        let mut reduced = Vec::with_capacity(rows_trained * reduced_dim);
        generation.reduce(&split.rows, &mut reduced);
        cancel.check()?;
        generation.empty_index.train(&reduced)?;
        cancel.check()?;

        let generation = Arc::new(generation);
        let wanted = results_that_count(spec.shard_count);
        let calibration = measure(&generation, &split, &reduced, wanted, cancel)?;
        // The index built for measuring is gone by now, and with it the other owner.
        let mut generation = Arc::into_inner(generation)
            .ok_or_else(|| VectorError::Faiss("a generation in training is shared".into()))?;
        parameters.nprobe = match spec.index.nprobe {
            Some(nprobe) => nprobe.clamp(1, parameters.nlist),
            None => {
                let oversamples = spec.index.oversample..=spec.index.oversample;
                let effort = calibration.effort_default(oversamples, &Costs::of(&parameters), rows_expected);
                // A quarter of the lists where the sample was too small to measure on.
                effort.map_or(parameters.nlist.div_ceil(4), |rung| rung.nprobe)
            }
        };
        generation.parameters = parameters;
        generation.calibration = calibration;
        Ok(generation)
    }
}

fn check_sample(spec: &CollectionSpec, sample: &[f32]) -> Result<(), VectorError> {
    let dim = spec.dim as usize;
    if dim == 0 || !sample.len().is_multiple_of(dim) {
        return Err(VectorError::InvalidArgument(format!("{} floats are not vectors of {dim}", sample.len())));
    }
    if !sample.iter().all(|value| value.is_finite()) {
        return Err(VectorError::InvalidArgument("a value of the sample is not finite".into()));
    }
    let (m, reduced_dim) = (spec.sub_quantisers(), spec.reduced_dim());
    if m == 0 || reduced_dim == 0 || reduced_dim % m != 0 || !matches!(spec.index.nbits, 4 | 8) {
        return Err(VectorError::InvalidArgument(format!(
            "{m} sub-quantisers of {} bits do not fit {reduced_dim} dimensions",
            spec.index.nbits
        )));
    }
    // FAISS needs a vector per code of a sub-quantiser, and a plane through as many points as it has dimensions.
    let codes = 1usize << spec.index.nbits;
    let rows_min = (codes + codes / 8).max(reduced_dim as usize + 1);
    if sample.len() / dim < rows_min {
        return Err(VectorError::InvalidArgument(format!(
            "{} vectors are too few to train on: at least {rows_min}",
            sample.len() / dim
        )));
    }
    Ok(())
}

/// The sample itself where it is small enough, else as [`thin`].
fn thinned(sample: Vec<f32>, dim: usize, rows_max: usize) -> Vec<f32> {
    let is_small = sample.len() / dim.max(1) <= rows_max;
    if is_small { sample } else { thin(&sample, dim, rows_max).into_owned() }
}

/// Evenly spaced rows of `[n, dim]`, at most `rows_max`.
pub(super) fn thin(vectors: &[f32], dim: usize, rows_max: usize) -> Cow<'_, [f32]> {
    let rows = vectors.len() / dim.max(1);
    if rows <= rows_max {
        return Cow::Borrowed(vectors);
    }
    let mut thinned = Vec::with_capacity(rows_max * dim);
    for position in 0..rows_max {
        let row = position * rows / rows_max;
        thinned.extend_from_slice(&vectors[row * dim..(row + 1) * dim]);
    }
    Cow::Owned(thinned)
}

/// Lists that a generation trained now on `rows` rows, or on a sample of `sample_rows_max` of them, would have.
pub fn lists_wanted(spec: &CollectionSpec, rows: u64, sample_rows_max: usize) -> u32 {
    let sampled = usize::try_from(rows).unwrap_or(usize::MAX).min(sample_rows_max);
    let held_out = QUERIES_HELD_OUT.min(sampled / ROWS_PER_QUERY_MIN);
    choose_nlist(spec.index.nlist, rows, sampled - held_out)
}

/// Lists: as asked, else twice the root of the rows, so that probing costs about as much as finding what to probe; in any case
/// no more than the sample can teach.
fn choose_nlist(asked: Option<u32>, rows_expected: u64, rows_trained: usize) -> u32 {
    let wanted = asked.unwrap_or_else(|| (2.0 * (rows_expected as f64).sqrt()) as u32);
    wanted.min((rows_trained / ROWS_PER_CENTROID_MIN) as u32).max(1)
}

/// A sample cut into rows to train on and queries to measure with.
struct Split {
    /// `[n, dim]`.
    rows: Vec<f32>,
    /// `[q, dim]`.
    queries: Vec<f32>,
}

impl Split {
    /// In the place of the sample, which may be large.
    fn new(mut sample: Vec<f32>, dim: usize) -> Self {
        let count = sample.len() / dim;
        let wanted = QUERIES_HELD_OUT.min(count / ROWS_PER_QUERY_MIN);
        let every = count.checked_div(wanted).unwrap_or(usize::MAX);
        let mut queries = Vec::new();
        let mut kept = 0;
        for position in 0..count {
            let vector = position * dim..(position + 1) * dim;
            // From the middle of each stretch; a remainder at the end may add one query more.
            if position % every == every / 2 {
                queries.extend_from_slice(&sample[vector]);
            } else {
                sample.copy_within(vector, kept);
                kept += dim;
            }
        }
        sample.truncate(kept);
        Self { rows: sample, queries }
    }
}

/// Measures the recall of the `wanted` best, and codes scanned, at every step of the ladder.
fn measure(
    generation: &Arc<Generation>,
    split: &Split,
    reduced: &[f32],
    wanted: usize,
    cancel: &Cancel,
) -> Result<Calibration, VectorError> {
    let parameters = generation.parameters;
    let dim = parameters.dim as usize;
    let rows = (split.rows.len() / dim) as u64;
    if rows <= wanted as u64 {
        return Ok(Calibration::default());
    }
    let labels: Vec<u64> = (0..rows).collect();
    let index = IvfIndex::empty(generation.clone())?.with_rows(&labels, reduced)?;
    let everything = RowSet::all(rows);
    let norms: Vec<f32> = split.rows.chunks_exact(dim).map(|row| row.iter().map(|x| x * x).sum()).collect();
    let mut products = vec![0.0f32; rows as usize];
    let mut ladder = Ladder::new(&index);
    for query in split.queries.chunks_exact(dim) {
        cancel.check()?;
        ffi::inner_products(query, &split.rows, &mut products);
        ladder.add(query, &best_rows(&products, &norms, parameters.metric, wanted), None, &everything)?;
    }
    Ok(ladder.finish())
}

/// The exact best `wanted` rows, from inner products with the query and squared norms.
fn best_rows(products: &[f32], norms: &[f32], metric: Metric, wanted: usize) -> Vec<u64> {
    let mut top = super::top::Top::new(wanted);
    for (row, (product, norm)) in products.iter().zip(norms).enumerate() {
        let score = match metric {
            Metric::Cosine | Metric::Dot => *product,
            // The query's own norm is the same for all.
            Metric::L2 => 2.0 * product - norm,
        };
        top.offer(row as u64, score);
    }
    top.into_sorted().into_iter().map(|candidate| candidate.row).collect()
}

#[cfg(test)]
mod tests {
    use cluster_config::limits::{DIM_MAX, TRAINING_MEMORY_DEFAULT, TRAINING_MEMORY_MIN};

    use super::*;

    #[test]
    fn lists_follow_the_rows_within_what_the_sample_can_teach() {
        assert_eq!(choose_nlist(None, 12_500, 12_500), 223);
        assert_eq!(choose_nlist(None, 1_000_000, 65_536), 1_680);
        assert_eq!(choose_nlist(None, 1_000_000, 10_000), 256);
        assert_eq!(choose_nlist(Some(100), 12_500, 12_500), 100);
        assert_eq!(choose_nlist(Some(65_536), 12_500, 12_500), 320);
        assert_eq!(choose_nlist(None, 0, 20), 1);
        let spec = CollectionSpec::new("c", 384);
        assert_eq!(lists_wanted(&spec, 12_500, TRAINING_ROWS_MAX), 223);
        assert_eq!(lists_wanted(&spec, 1_000_000, TRAINING_ROWS_MAX), 1_677);
        assert_eq!(lists_wanted(&spec, 0, TRAINING_ROWS_MAX), 1);
    }

    #[test]
    fn a_sample_is_bounded_in_rows_and_bytes() {
        assert_eq!(Generation::training_rows_max(384), TRAINING_ROWS_MAX);
        assert!(Generation::training_rows_max(4096) * 4096 * 4 <= TRAINING_BYTES_MAX);
        assert_eq!(Generation::training_rows_within(384, ByteSize::mib(9)), 2048);
        assert_eq!(Generation::training_rows_within(384, TRAINING_MEMORY_DEFAULT), TRAINING_ROWS_MAX);
        assert!(Generation::training_rows_within(DIM_MAX as usize, TRAINING_MEMORY_MIN) >= 1000);
        let vectors: Vec<f32> = (0..20).map(|v| v as f32).collect();
        assert_eq!(*thin(&vectors, 2, 3), [0.0, 1.0, 6.0, 7.0, 12.0, 13.0]);
        assert_eq!(*thin(&vectors, 2, 10), vectors);
    }

    #[test]
    fn queries_are_held_out_of_the_rows() {
        let sample: Vec<f32> = (0..1000).map(|v| v as f32).collect();
        let split = Split::new(sample.clone(), 1);
        assert!((62..=64).contains(&split.queries.len()), "{}", split.queries.len());
        assert_eq!(split.queries.len() + split.rows.len(), 1000);
        assert!(split.queries.iter().all(|query| !split.rows.contains(query)));
        assert!(split.rows.is_sorted() && split.queries.is_sorted(), "each as it was");
        assert!(Split::new(sample[..10].to_vec(), 1).queries.is_empty());
    }
}
