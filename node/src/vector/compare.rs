//! The shard's search beside plain FAISS on the same vectors, on one thread: what [`crate::measure`] reports.
//!
//! Times are CPU time of the calling thread, the best of [`ROUNDS`] rounds over all queries: other work on the machine does not count.
//! "Plain FAISS" is the same trained index filled by FAISS and searched through its C API with the same `nprobe` and as many results
//! as our search takes candidates, without filter, re-scoring, or reducing the query.

use std::path::Path;
use std::sync::Arc;

use cluster_config::collection::{CollectionSpec, IndexSpec, Metric};
use cluster_config::search::SearchKnobs;
use half::f16;

use super::ffi::{self, Distance, IvfPq};
use super::mapped::encode;
use super::projection::Projection;
use super::top::Top;
use super::{
    Cancel, Generation, IvfIndex, MappedVectors, RowSet, SearchView, VectorError, VectorIndex, init_thread, search_rows,
};

/// Neighbours that recall counts.
const K: usize = 10;
/// The best of so many rounds is taken.
const ROUNDS: usize = 3;
/// The tuning guide's: lists, lists probed, sub-quantisers of 8 bits, dimensions after PCA.
const GUIDE: (usize, usize, usize, usize) = (100, 10, 8, 256);

/// Vectors of unit length, row by row.
pub struct Sample<'a> {
    /// Components.
    pub dim: usize,
    /// `[n, dim]`.
    pub base: &'a [f32],
    /// `[q, dim]`.
    pub queries: &'a [f32],
    /// Of each query, at least ten, best first.
    pub neighbors: &'a [Vec<u32>],
}

impl Sample<'_> {
    fn rows(&self) -> usize {
        self.base.len() / self.dim
    }

    fn queries(&self) -> impl Iterator<Item = &[f32]> {
        self.queries.chunks_exact(self.dim)
    }

    /// Microseconds per query of the best round of `ask`, and the recall@10 of what it found.
    fn time(&self, mut ask: impl FnMut(usize) -> Result<Vec<u64>, VectorError>) -> Result<(f64, f64), VectorError> {
        let count = self.neighbors.len();
        let mut best = u64::MAX;
        let mut hits = 0;
        for _ in 0..ROUNDS {
            let mut found = Vec::with_capacity(count);
            let begun = cpu_ns();
            for query in 0..count {
                found.push(ask(query)?);
            }
            best = best.min(cpu_ns() - begun);
            hits = found
                .iter()
                .zip(self.neighbors)
                .map(|(found, truth)| {
                    let is_true = |row: &&u64| truth[..K].iter().any(|other| u64::from(*other) == **row);
                    found.iter().take(K).filter(is_true).count()
                })
                .sum();
        }
        Ok((best as f64 / 1000.0 / count as f64, hits as f64 / (K * count) as f64))
    }
}

/// CPU nanoseconds of the calling thread; 0 where the kernel does not tell.
pub fn cpu_ns() -> u64 {
    // The kernel brings the figure up to date when it schedules.
    std::thread::yield_now();
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0)
}

/// One of the indexes that the rows are spread over: every `shards`-th row.
struct Part {
    shard: u64,
    shards: u64,
    ours: IvfIndex,
    plain: IvfPq,
    vectors: MappedVectors,
}

/// The rows in as many indexes as a collection has shards.
pub struct Parts {
    spec: IndexSpec,
    parts: Vec<Part>,
    /// CPU seconds of training.
    pub train_seconds: f64,
    /// CPU seconds of reducing and adding.
    pub add_seconds: f64,
}

/// What one effort costs and finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Microseconds of FAISS' scans per query, all parts.
    pub faiss_us: f64,
    /// Its recall@10.
    pub faiss_recall: f64,
    /// Microseconds of our searches per query, all parts.
    pub ours_us: f64,
    /// Its recall@10.
    pub ours_recall: f64,
}

impl Parts {
    /// Trains and fills the indexes. `dir` takes the files of the full vectors. Errors: as [`Generation::train`].
    pub fn build(sample: &Sample<'_>, spec: &CollectionSpec, shards: u32, dir: &Path) -> Result<Self, VectorError> {
        init_thread();
        let mut built = Self { spec: spec.index.clone(), parts: Vec::new(), train_seconds: 0.0, add_seconds: 0.0 };
        let stride = shards.max(1) as usize;
        for shard in 0..stride {
            let own = sample.base.chunks_exact(sample.dim).skip(shard).step_by(stride);
            let own: Vec<f32> = own.flatten().copied().collect();
            let rows = (own.len() / sample.dim) as u64;
            let learnt = own.clone();
            let begun = cpu_ns();
            let generation = Arc::new(Generation::train(1, spec, learnt, rows, &Cancel::never())?);
            built.train_seconds += (cpu_ns() - begun) as f64 / 1e9;
            let vectors = MappedVectors::open(&dir.join(format!("vectors-{shard}")), sample.dim, 0, 1)?;
            vectors.append(&encode(&own))?;
            let begun = cpu_ns();
            let mut reduced = Vec::new();
            generation.reduce(&own, &mut reduced);
            let numbers: Vec<u64> = (0..rows).collect();
            let ours = IvfIndex::empty(Arc::clone(&generation))?.with_rows(&numbers, &reduced)?;
            built.add_seconds += (cpu_ns() - begun) as f64 / 1e9;
            let mut plain = generation.empty_index.try_clone()?;
            let labels: Vec<i64> = (0..rows as i64).collect();
            plain.add(&labels, &reduced)?;
            built.parts.push(Part { shard: shard as u64, shards: stride as u64, ours, plain, vectors });
        }
        Ok(built)
    }

    /// In the words of FAISS' factory.
    pub fn description(&self) -> String {
        let parameters = self.parts.first().map(|part| part.ours.generation().parameters());
        parameters.map_or_else(String::new, |parameters| {
            let pca = (parameters.reduced_dim < parameters.dim).then(|| format!("PCA{},", parameters.reduced_dim));
            format!("{}{}", pca.unwrap_or_default(), parameters.description())
        })
    }

    /// Bytes of memory of all indexes.
    pub fn memory_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.ours.memory_bytes()).sum()
    }

    /// Measures one effort. `candidates` of each part.
    pub fn measure(&self, sample: &Sample<'_>, nprobe: u32, oversample: f32) -> Result<Figures, VectorError> {
        let candidates = (K as f32 * oversample).ceil() as usize;
        let reduced: Vec<Vec<Vec<f32>>> = self
            .parts
            .iter()
            .map(|part| {
                let reduce = |query: &[f32]| {
                    let mut reduced = Vec::new();
                    part.ours.generation().reduce(query, &mut reduced);
                    reduced
                };
                sample.queries().map(reduce).collect()
            })
            .collect();
        let (faiss_us, faiss_recall) = sample.time(|query| {
            let mut top = Top::new(K);
            for (part, reduced) in self.parts.iter().zip(&reduced) {
                let (labels, distances) = part.plain.search_unaided(&reduced[query], candidates, nprobe as usize)?;
                for (label, distance) in labels.into_iter().zip(distances).take_while(|(label, _)| *label >= 0) {
                    top.offer(part.row_of(label as u64), -distance);
                }
            }
            Ok(rows_of(top))
        })?;
        let knobs = SearchKnobs { nprobe: Some(nprobe), oversample: Some(oversample), ..SearchKnobs::default() };
        let everything: Vec<RowSet> = self.parts.iter().map(|part| RowSet::all(part.vectors.len())).collect();
        let (ours_us, ours_recall) = sample.time(|query| {
            let vector = &sample.queries[query * sample.dim..(query + 1) * sample.dim];
            let mut top = Top::new(K);
            for (part, allowed) in self.parts.iter().zip(&everything) {
                let view = SearchView {
                    index: Some(&part.ours),
                    measured: None,
                    indexed_row_end: part.vectors.len(),
                    vectors: &part.vectors,
                    row_end: part.vectors.len(),
                    allowed,
                    metric: Metric::Cosine,
                };
                let found = search_rows(&view, &[vector], K, &knobs, &self.spec, &Cancel::never())?;
                found[0].rows.iter().for_each(|(row, score)| top.offer(part.row_of(*row), *score));
            }
            Ok(rows_of(top))
        })?;
        Ok(Figures { faiss_us, faiss_recall, ours_us, ours_recall })
    }
}

impl Part {
    fn row_of(&self, own: u64) -> u64 {
        own * self.shards + self.shard
    }
}

fn rows_of(top: Top) -> Vec<u64> {
    top.into_sorted().into_iter().map(|candidate| candidate.row).collect()
}

/// Exact search of all rows with FAISS' kernel: microseconds per query and recall@10.
pub fn exact(sample: &Sample<'_>) -> Result<(f64, f64), VectorError> {
    init_thread();
    scan_all(sample, sample.base, sample.queries, sample.dim)
}

/// Exact search by Euclidean distance in any dimension.
fn scan_all(sample: &Sample<'_>, base: &[f32], queries: &[f32], dim: usize) -> Result<(f64, f64), VectorError> {
    let norms: Vec<f32> = base.chunks_exact(dim).map(|row| row.iter().map(|x| x * x).sum()).collect();
    let mut products = vec![0.0f32; norms.len()];
    sample.time(|query| {
        ffi::inner_products(&queries[query * dim..(query + 1) * dim], base, &mut products);
        let mut top = Top::new(K);
        products.iter().zip(&norms).enumerate().for_each(|(row, (ip, norm))| top.offer(row as u64, 2.0 * ip - norm));
        Ok(rows_of(top))
    })
}

/// What exact search gains and loses by PCA to `reduced_dim`: time before by time after, and recall lost.
pub fn reduction(sample: &Sample<'_>, reduced_dim: usize, full_us: f64) -> Result<(f64, f64), VectorError> {
    let (base, queries) = reduce(sample, reduced_dim)?;
    let (us, recall) = scan_all(sample, &base, &queries, reduced_dim)?;
    Ok((full_us / us, 1.0 - recall))
}

fn reduce(sample: &Sample<'_>, reduced_dim: usize) -> Result<(Vec<f32>, Vec<f32>), VectorError> {
    let learnt = super::train::thin(sample.base, sample.dim, Generation::training_rows_max(sample.dim));
    let projection = Projection::train(&learnt, sample.dim, reduced_dim, Metric::Cosine)?;
    let apply = |vectors: &[f32]| {
        let mut out = Vec::with_capacity(vectors.len() / sample.dim * reduced_dim);
        vectors.chunks_exact(sample.dim).for_each(|vector| projection.apply(vector, &mut out));
        out
    };
    Ok((apply(sample.base), apply(sample.queries)))
}

/// The guide's index on the same vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct GuideFigures {
    /// In the words of FAISS' factory.
    pub index: String,
    /// CPU seconds.
    pub train_seconds: f64,
    /// Microseconds per query, reducing it included.
    pub scan_us: f64,
    /// Recall@10, without re-scoring, as the guide has it.
    pub recall: f64,
}

/// The guide's dimension after PCA: 256 of 768, or a third of fewer, in steps that its sub-quantisers divide. `None` if that is none.
pub fn guide_dim(dim: usize) -> Option<usize> {
    let (_, _, m, reduced_dim) = GUIDE;
    let reduced = if dim > reduced_dim { reduced_dim } else { dim / 3 / m * m };
    (reduced > 0).then_some(reduced)
}

/// Measures the guide's parameters. Errors: too few rows to train it.
pub fn guide(sample: &Sample<'_>, reduced_dim: usize) -> Result<GuideFigures, VectorError> {
    init_thread();
    let (nlist, nprobe, m, _) = GUIDE;
    let begun = cpu_ns();
    let (base, queries) = reduce(sample, reduced_dim)?;
    let mut index = IvfPq::new(&format!("IVF{nlist},PQ{m}x8np"), reduced_dim, Distance::L2)?;
    index.train(&super::train::thin(&base, reduced_dim, Generation::training_rows_max(reduced_dim)))?;
    let train_seconds = (cpu_ns() - begun) as f64 / 1e9;
    let labels: Vec<i64> = (0..sample.rows() as i64).collect();
    index.add(&labels, &base)?;
    let (scan_us, recall) = sample.time(|query| {
        let query = &queries[query * reduced_dim..(query + 1) * reduced_dim];
        let (labels, _) = index.search_unaided(query, K, nprobe)?;
        Ok(labels.into_iter().filter_map(|label| u64::try_from(label).ok()).collect())
    })?;
    Ok(GuideFigures { index: format!("PCA{reduced_dim},IVF{nlist},PQ{m}"), train_seconds, scan_us, recall })
}

/// Half floats and back, as a shard stores its vectors.
pub fn as_stored(vectors: &mut [f32]) {
    vectors.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32());
}
