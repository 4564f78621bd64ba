//! `susui-node measure DIR`: measures the vector engine beside plain FAISS, in this process, on the vectors of a directory.
//!
//! For `susui bench vectors --compare-faiss`, which is not linked with FAISS. `DIR/order.json` is an [`Order`]; `DIR/vectors.f32` holds
//! its rows, then its queries, as little-endian floats. The [`Report`] goes to stdout as JSON. Nothing here is part of serving.

use std::path::Path;

use anyhow::{Context, ensure};
use cluster_config::collection::{CollectionSpec, IndexSpec};
use serde::{Deserialize, Serialize};

use crate::vector::compare::{self, Figures, Parts, Sample};

/// Neighbours that each query must bring.
const NEIGHBORS_MIN: usize = 10;

/// What to measure.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    dim: usize,
    rows: usize,
    queries: usize,
    /// Indexes to spread the rows over.
    shards: u32,
    pca_dim: Option<u32>,
    index: IndexSpec,
    /// `nprobe` and `oversample`.
    efforts: Vec<(u32, f32)>,
    /// Of each query, best first.
    neighbors: Vec<Vec<u32>>,
}

#[derive(Debug, Serialize)]
struct Report {
    index: String,
    shards: u32,
    train_seconds: f64,
    add_seconds: f64,
    bytes_per_vector: f64,
    efforts: Vec<Effort>,
    exact_us: f64,
    guide: Option<Guide>,
}

#[derive(Debug, Serialize)]
struct Effort {
    nprobe: u32,
    candidates: u32,
    faiss_us: f64,
    faiss_recall: f64,
    ours_us: f64,
    ours_recall: f64,
}

#[derive(Debug, Serialize)]
struct Guide {
    index: String,
    train_seconds: f64,
    scan_us: f64,
    recall: f64,
    reductions: Vec<Reduction>,
}

#[derive(Debug, Serialize)]
struct Reduction {
    dim: usize,
    reduced_dim: usize,
    speed_up: f64,
    loss: f64,
}

/// Measures and prints. Errors: files that are missing or do not fit each other, or an index that cannot be trained.
pub fn run(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join("order.json");
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let order: Order = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    let vectors = read_vectors(&dir.join("vectors.f32"), &order)?;
    let (base, queries) = vectors.split_at(order.rows * order.dim);
    let sample = Sample { dim: order.dim, base, queries, neighbors: &order.neighbors };
    let report = report(&sample, &order, dir)?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn read_vectors(path: &Path, order: &Order) -> anyhow::Result<Vec<f32>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let floats = order.rows.checked_add(order.queries).and_then(|rows| rows.checked_mul(order.dim));
    ensure!(
        order.dim > 0 && floats.and_then(|floats| floats.checked_mul(4)) == Some(bytes.len()),
        "{} has {} bytes, which is not what the order says",
        path.display(),
        bytes.len()
    );
    let is_known = |row: &u32| (*row as usize) < order.rows;
    ensure!(
        order.neighbors.len() == order.queries
            && order.neighbors.iter().all(|rows| rows.len() >= NEIGHBORS_MIN && rows.iter().all(is_known)),
        "each query needs at least {NEIGHBORS_MIN} neighbours among the rows"
    );
    let mut vectors: Vec<f32> =
        bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect();
    compare::as_stored(&mut vectors[..order.rows * order.dim]);
    Ok(vectors)
}

fn report(sample: &Sample<'_>, order: &Order, dir: &Path) -> anyhow::Result<Report> {
    let mut spec = CollectionSpec::new("measure", u32::try_from(order.dim)?);
    (spec.pca_dim, spec.index) = (order.pca_dim, order.index.clone());
    spec.validate()?;
    let parts = Parts::build(sample, &spec, order.shards, dir)?;
    let measure = |(nprobe, oversample): &(u32, f32)| {
        let Figures { faiss_us, faiss_recall, ours_us, ours_recall } = parts.measure(sample, *nprobe, *oversample)?;
        let candidates = (NEIGHBORS_MIN as f32 * oversample).ceil() as u32;
        Ok(Effort { nprobe: *nprobe, candidates, faiss_us, faiss_recall, ours_us, ours_recall })
    };
    let efforts = order.efforts.iter().map(measure).collect::<anyhow::Result<_>>()?;
    let (exact_us, _) = compare::exact(sample)?;
    let guide = compare::guide_dim(order.dim).map(|reduced_dim| guide(sample, reduced_dim, exact_us)).transpose()?;
    Ok(Report {
        index: parts.description(),
        shards: order.shards,
        train_seconds: parts.train_seconds,
        add_seconds: parts.add_seconds,
        bytes_per_vector: parts.memory_bytes() as f64 / order.rows as f64,
        efforts,
        exact_us,
        guide,
    })
}

fn guide(sample: &Sample<'_>, reduced_dim: usize, exact_us: f64) -> anyhow::Result<Guide> {
    let figures = compare::guide(sample, reduced_dim)?;
    // The guide's own share of dimensions is a third; where its 256 are another share, both are told.
    let mut reduced_dims = vec![reduced_dim, (sample.dim / 3).max(1)];
    reduced_dims.dedup();
    let reduction = |reduced_dim: usize| {
        let (speed_up, loss) = compare::reduction(sample, reduced_dim, exact_us)?;
        Ok(Reduction { dim: sample.dim, reduced_dim, speed_up, loss })
    };
    Ok(Guide {
        index: figures.index,
        train_seconds: figures.train_seconds,
        scan_us: figures.scan_us,
        recall: figures.recall,
        reductions: reduced_dims.into_iter().map(reduction).collect::<anyhow::Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const DIM: usize = 32;
    const ROWS: usize = 6000;
    const QUERIES: usize = 40;

    fn sample() -> Vec<f32> {
        let mut random = StdRng::seed_from_u64(5);
        let mut vectors: Vec<f32> = (0..(ROWS + QUERIES) * DIM).map(|_| random.random_range(-1.0..1.0)).collect();
        for vector in vectors.chunks_exact_mut(DIM) {
            let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            vector.iter_mut().for_each(|x| *x /= norm);
        }
        vectors
    }

    fn neighbors(vectors: &[f32]) -> Vec<Vec<u32>> {
        let (base, queries) = vectors.split_at(ROWS * DIM);
        let ranked = |query: &[f32]| {
            let score = |row: &u32| -> f32 {
                let row = &base[*row as usize * DIM..(*row as usize + 1) * DIM];
                row.iter().zip(query).map(|(a, b)| a * b).sum()
            };
            let mut rows: Vec<u32> = (0..ROWS as u32).collect();
            rows.sort_by(|a, b| score(b).total_cmp(&score(a)));
            rows.truncate(NEIGHBORS_MIN);
            rows
        };
        queries.chunks_exact(DIM).map(ranked).collect()
    }

    #[test]
    fn probing_everything_finds_what_exact_search_finds() {
        let vectors = sample();
        let dir = tempfile::tempdir().expect("a directory");
        let bytes: Vec<u8> = vectors.iter().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(dir.path().join("vectors.f32"), bytes).expect("writes");
        let order = Order {
            dim: DIM,
            rows: ROWS,
            queries: QUERIES,
            shards: 2,
            pca_dim: None,
            index: IndexSpec { nlist: Some(16), ..IndexSpec::default() },
            efforts: vec![(1, 1.0), (16, 60.0)],
            neighbors: neighbors(&vectors),
        };
        let read = read_vectors(&dir.path().join("vectors.f32"), &order).expect("reads");
        let (base, queries) = read.split_at(ROWS * DIM);
        let sample = Sample { dim: DIM, base, queries, neighbors: &order.neighbors };
        let report = report(&sample, &order, dir.path()).expect("measures");
        let [one, all] = report.efforts.as_slice() else { panic!("{report:?}") };
        assert!(one.faiss_recall < 0.6 && all.ours_recall > 0.97, "{report:?}");
        assert!(all.ours_recall > all.faiss_recall, "re-scoring must show: {report:?}");
        let guide = report.guide.expect("there are dimensions enough");
        assert_eq!(guide.index, "PCA8,IVF100,PQ8");
        assert!(guide.recall > 0.0 && guide.reductions.iter().all(|reduction| reduction.loss > 0.0), "{guide:?}");
    }

    #[test]
    fn files_that_do_not_fit_the_order_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("vectors.f32");
        std::fs::write(&path, [0; 40]).expect("writes");
        let order = |rows, neighbors: Vec<Vec<u32>>| Order {
            dim: 1,
            rows,
            queries: neighbors.len(),
            shards: 1,
            pca_dim: None,
            index: IndexSpec::default(),
            efforts: Vec::new(),
            neighbors,
        };
        assert!(read_vectors(&path, &order(10, vec![])).is_ok());
        assert!(read_vectors(&path, &order(11, vec![])).is_err());
        assert!(read_vectors(&path, &order(usize::MAX, vec![])).is_err());
        assert!(read_vectors(&path, &order(9, vec![vec![9; 10]])).is_err(), "row 9 of 9");
        assert!(read_vectors(&path, &order(9, vec![vec![0; 9]])).is_err(), "nine neighbours");
    }
}
