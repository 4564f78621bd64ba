//! The MiniLM vectors that lie beside the project, where they do: for tests and benches.

#![allow(dead_code, reason = "each binary uses its part")]

use std::path::PathBuf;

/// Components of a row.
pub(crate) const DIM: usize = 384;
/// True neighbours of a query in the file.
const NEIGHBOURS: usize = 100;

/// `wordnet-minilm`: 50,000 rows, 1,000 queries that are none of them, and the rows nearest to each query.
pub(crate) struct WordNet {
    /// Little-endian half floats `[50000, DIM]`.
    pub(crate) base: Vec<u8>,
    /// `[1000][DIM]`.
    pub(crate) queries: Vec<Vec<f32>>,
    /// `[1000][100]`, best first.
    pub(crate) neighbours: Vec<Vec<u32>>,
}

impl WordNet {
    /// `None`, with a message, where the files are not: the project builds and tests without them.
    pub(crate) fn load() -> Option<Self> {
        let root = std::env::var_os("SUSUI_SHARED_DATA")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"), PathBuf::from);
        let dir = root.join("wordnet-minilm");
        if !dir.exists() {
            println!("SKIPPED: {} is not here (set SUSUI_SHARED_DATA to the directory that has it)", dir.display());
            return None;
        }
        let read = |name: &str| {
            let path = dir.join(name);
            let file = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            array_of(&file).to_vec()
        };
        let numbers = |row: &[u8]| row.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Some(Self {
            base: read("base.npy"),
            queries: read("queries.npy").chunks_exact(2 * DIM).map(floats).collect(),
            neighbours: read("neighbors.npy").chunks_exact(4 * NEIGHBOURS).map(numbers).collect(),
        })
    }
}

/// Little-endian half floats as floats.
pub(crate) fn floats(halves: &[u8]) -> Vec<f32> {
    halves.chunks_exact(2).map(|half| half::f16::from_le_bytes([half[0], half[1]]).to_f32()).collect()
}

/// The array of a NumPy file of format 1, whose shape the caller knows.
fn array_of(file: &[u8]) -> &[u8] {
    assert_eq!(&file[..8], b"\x93NUMPY\x01\x00");
    let header_bytes = u16::from_le_bytes([file[8], file[9]]) as usize;
    &file[10 + header_bytes..]
}
