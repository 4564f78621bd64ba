//! The vector engine of a shard copy: exact search, the FAISS index behind its PCA, and the full-precision vectors that
//! candidates are re-scored with.
//!
//! It promises that the same generation, the same rows in the same order and the same query give the same hits on every copy
//! (for one CPU level, see [`check_cpu`]). It knows rows, not documents: which rows are live is told by a [`RowSet`], what is
//! durable is RocksDB's. All calls block and belong on a pool.

pub mod calibration;
pub mod cancel;
pub mod compare;
mod cost;
pub mod error;
mod ffi;
pub mod filter;
pub mod flat;
pub mod generation;
pub mod ivf;
pub mod mapped;
mod measure;
mod pieces;
mod projection;
pub mod search;
mod sums;
#[cfg(test)]
mod tests;
mod top;
mod train;

pub use calibration::Calibration;
pub use cancel::Cancel;
pub use error::VectorError;
pub use filter::RowSet;
pub use flat::FlatIndex;
pub use generation::{Generation, GenerationParameters};
pub use ivf::IvfIndex;
pub use mapped::MappedVectors;
pub use measure::measure_effort;
pub use search::{Scored, SearchView, search_rows};
pub use train::lists_wanted;

/// A row that may be among the best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The row.
    pub row: u64,
    /// Larger is better. Exact from [`FlatIndex`]; from an approximate index an estimate on a scale of its own (an inner
    /// product, or a squared distance negated).
    pub score: f32,
}

/// What an index found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Candidates {
    /// Best first, ties by row.
    pub best: Vec<Candidate>,
    /// Codes compared with the query.
    pub codes_scanned: u64,
}

/// How much of an approximate index to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeParams {
    /// Lists probed.
    pub nprobe: u32,
    /// Probe more lists (twice as many each time) until so many allowed rows were found or all lists were probed.
    pub found_min: usize,
}

/// Something that finds the rows nearest to a query.
pub trait VectorIndex: Send + Sync {
    /// The `count` best candidates among `allowed`, best first, ties by row.
    ///
    /// Shapes: query `[dim]`, in the original dimension.
    /// Errors: `InvalidArgument` (dimension, values not finite), `Cancelled`, `DeadlineExceeded`.
    fn search(
        &self,
        query: &[f32],
        count: usize,
        params: &ProbeParams,
        allowed: &RowSet,
        cancel: &Cancel,
    ) -> Result<Candidates, VectorError>;

    /// Rows held.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that the rows take, allocation included.
    fn memory_bytes(&self) -> u64;
}

/// Keeps FAISS from starting threads on behalf of this one. Every pool thread calls it first.
pub fn init_thread() {
    ffi::init_thread();
}

/// Whether this CPU has what the C++ libraries were compiled for. Asked once at start, because without it the first vector
/// operation dies of an illegal instruction.
pub fn check_cpu() -> Result<(), String> {
    let wanted = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("bmi1", is_x86_feature_detected!("bmi1")),
        ("bmi2", is_x86_feature_detected!("bmi2")),
        ("lzcnt", is_x86_feature_detected!("lzcnt")),
        ("movbe", is_x86_feature_detected!("movbe")),
        ("pclmulqdq", is_x86_feature_detected!("pclmulqdq")),
    ];
    let missing: Vec<&str> = wanted.into_iter().filter(|(_, has)| !has).map(|(name, _)| name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "this CPU lacks {}: susui-node is built for x86-64-v3 (AVX2, about 2013 and later); \
         on a virtual machine choose a CPU type that passes these through",
        missing.join(", ")
    ))
}

fn check_query(query: &[f32], dim: usize) -> Result<(), VectorError> {
    if query.len() != dim {
        return Err(VectorError::InvalidArgument(format!(
            "query has {} dimensions, the collection {dim}",
            query.len()
        )));
    }
    if let Some(position) = query.iter().position(|value| !value.is_finite()) {
        return Err(VectorError::InvalidArgument(format!("query value {position} is not finite")));
    }
    Ok(())
}
