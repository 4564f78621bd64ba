//! Has `susui-node measure` put the node's own index beside plain FAISS, in one process and on the same vectors.
//!
//! A process of its own, because only the node's program is linked with FAISS, and a mode of that program rather than another one,
//! because it is where `susui` finds it already and is built with the flags that count. They meet in files of one directory.

use std::io::Write;
use std::path::Path;

use chaos_tests::process::bin_dir;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::K;
use super::dataset::{Dataset, Matrix};
use crate::error::Error;
use crate::output::{self, Output, table};
use crate::wire::collection::CollectionInfo;

/// The order, as `susui-node measure` reads it.
#[derive(Serialize)]
struct Order<'a> {
    dim: usize,
    rows: usize,
    queries: usize,
    shards: u32,
    pca_dim: Option<u32>,
    index: &'a cluster_config::collection::IndexSpec,
    /// `nprobe` and `oversample`.
    efforts: Vec<(u32, f32)>,
    /// Of each query, best first.
    neighbors: Vec<&'a [u32]>,
}

/// What it measured. Times are CPU time of one thread, microseconds per query, best of three rounds over all queries.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// In the words of FAISS' factory.
    pub index: String,
    /// Indexes that the rows were spread over.
    pub shards: u32,
    /// Training of all of them.
    pub train_seconds: f64,
    /// Encoding of all rows.
    pub add_seconds: f64,
    /// Of codes, row numbers and centroids, per vector.
    pub bytes_per_vector: f64,
    /// By effort.
    pub efforts: Vec<Effort>,
    /// The exact scan of all rows with FAISS' kernel.
    pub exact_us: f64,
    /// The guide's parameters; absent where there are too few dimensions.
    pub guide: Option<Guide>,
}

/// Plain FAISS and our search with the same index, `nprobe` and candidates.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Effort {
    /// Lists probed in each shard.
    pub nprobe: u32,
    /// Asked of each shard, and re-scored.
    pub candidates: u32,
    /// FAISS' scans of all shards alone.
    pub faiss_us: f64,
    /// Recall@10 of what they return.
    pub faiss_recall: f64,
    /// Our searches of all shards: reduction, scan, exact scores.
    pub ours_us: f64,
    /// Its recall@10.
    pub ours_recall: f64,
}

/// The tuning guide's rows 10 to 12 on the same vectors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Guide {
    /// `PCA256,IVF100,PQ8`.
    pub index: String,
    /// Training.
    pub train_seconds: f64,
    /// Its scan with `nprobe` 10, without re-scoring, as the guide has it.
    pub scan_us: f64,
    /// Its recall@10.
    pub recall: f64,
    /// Exact search of reduced vectors, for each reduced dimension.
    pub reductions: Vec<Reduction>,
}

/// Exact search before and after PCA.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reduction {
    /// Dimensions before.
    pub dim: usize,
    /// And after.
    pub reduced_dim: usize,
    /// Time before by time after.
    pub speed_up: f64,
    /// Recall@10 that is lost, 0 to 1.
    pub loss: f64,
}

/// Measures. `efforts` are pairs of `nprobe` and `oversample`; the collection's own where there is none.
pub async fn compare(
    data: &Dataset,
    collection: &CollectionInfo,
    efforts: Vec<(u32, Option<f32>)>,
    output: Output,
) -> Result<Comparison, Error> {
    let dir = tempfile::Builder::new()
        .prefix("susui-bench-")
        .tempdir()
        .map_err(|error| Error::local(format!("no scratch directory: {error}"), ""))?;
    let truth = data.neighbors.as_deref().unwrap_or_default();
    let order = Order {
        dim: data.base.dim(),
        rows: data.base.rows(),
        queries: data.queries.rows(),
        shards: collection.shards,
        pca_dim: collection.pca_dim,
        index: &collection.index,
        efforts: efforts
            .into_iter()
            .map(|(nprobe, oversample)| (nprobe, oversample.unwrap_or(collection.index.oversample)))
            .collect(),
        neighbors: truth.iter().map(|row| &row[..K.min(row.len())]).collect(),
    };
    let order = serde_json::to_vec(&order).map_err(|error| Error::local(format!("the order: {error}"), ""))?;
    write(&dir.path().join("order.json"), |file| file.write_all(&order))?;
    write(&dir.path().join("vectors.f32"), |file| {
        write_floats(file, &data.base)?;
        write_floats(file, &data.queries)
    })?;
    let spinner = output.spinner();
    spinner.set_message("measuring FAISS and one shard in one process");
    let program = bin_dir().map_err(|error| Error::local(error.to_string(), ""))?.join("susui-node");
    let run = Command::new(&program)
        .arg("measure")
        .arg(dir.path())
        .env("RUST_LOG", "warn")
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| Error::file(&program, &error))?;
    spinner.finish_and_clear();
    if !run.status.success() {
        let log = String::from_utf8_lossy(&run.stderr);
        return Err(Error::local(format!("susui-node measure ended with {}: {}", run.status, log.trim_end()), ""));
    }
    serde_json::from_slice(&run.stdout).map_err(|error| {
        Error::local(format!("susui-node measure: {error}"), "is susui-node of the same version as this susui?")
    })
}

fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<(), Error> {
    let written = std::fs::File::create(path).and_then(|file| {
        let mut file = std::io::BufWriter::new(file);
        fill(&mut file)?;
        file.flush()
    });
    written.map_err(|error| Error::file(path, &error))
}

fn write_floats(file: &mut dyn Write, matrix: &Matrix) -> std::io::Result<()> {
    matrix.values().iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))
}

impl Comparison {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "in one process, one thread, CPU time: {} x {}\n  trained in {:.1} s, filled in {:.1} s, {:.0} bytes per vector; exact scan {:.0} us\n\n",
            self.shards, self.index, self.train_seconds, self.add_seconds, self.bytes_per_vector, self.exact_us
        );
        let mut rows =
            vec![output::row(["NPROBE", "CANDIDATES", "FAISS US", "RECALL@10", "OURS US", "RECALL@10", "RATIO"])];
        rows.extend(self.efforts.iter().map(|effort| {
            vec![
                effort.nprobe.to_string(),
                effort.candidates.to_string(),
                format!("{:.0}", effort.faiss_us),
                format!("{:.4}", effort.faiss_recall),
                format!("{:.0}", effort.ours_us),
                format!("{:.4}", effort.ours_recall),
                format!("{:.2}", effort.ours_us / effort.faiss_us.max(1e-9)),
            ]
        }));
        text.push_str(&table(&rows));
        if let Some(guide) = &self.guide {
            text.push('\n');
            text.push_str(&guide.text(self));
        }
        text
    }
}

impl Guide {
    fn text(&self, ours: &Comparison) -> String {
        let faster = |us: f64| ours.exact_us / us.max(1e-9);
        let mut text = format!(
            "the guide's rows 10 to 12 on these vectors\n  {}, nprobe 10: {:.0} us, recall@10 {:.3}, {:.0} times as fast as exact search (it expects 3 to 5), trained in {:.1} s\n",
            self.index,
            self.scan_us,
            self.recall,
            faster(self.scan_us),
            self.train_seconds,
        );
        if let Some(best) = ours.efforts.iter().max_by(|a, b| a.ours_recall.total_cmp(&b.ours_recall)) {
            text.push_str(&format!(
                "  ours, nprobe {}: {:.0} us, recall@10 {:.3}, {:.0} times as fast as exact search\n",
                best.nprobe,
                best.ours_us,
                best.ours_recall,
                faster(best.ours_us)
            ));
        }
        for reduction in &self.reductions {
            text.push_str(&format!(
                "  PCA {} to {}: {:.1}x faster (it says 3x), {:.1} % lost (it says 5 %)\n",
                reduction.dim,
                reduction.reduced_dim,
                reduction.speed_up,
                reduction.loss * 100.0
            ));
        }
        text
    }
}
