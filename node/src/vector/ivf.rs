//! The FAISS index of a shard copy: codes of its rows in inverted lists, under one model generation.
//!
//! Immutable. Growing gives a new index, so a search never sees a write and the old index lives as long as a search uses it.
//! A row's list and code depend on the row and the generation alone, and lists keep the order of arrival: growing in steps,
//! growing at once and reading from bytes give the same index.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use super::ffi::{Distance, IvfPq, WriteFailure};
use super::generation::Generation;
use super::pieces::{PieceReader, PieceWriter};
use super::top::better_first;
use super::{Cancel, Candidate, Candidates, ProbeParams, RowSet, VectorError, VectorIndex};

const WHAT: &str = "vector index";
const MAGIC: &[u8; 8] = b"SUSUIIVF";
const VERSION: u32 = 1;
/// magic, version, generation, rows, row_end.
const PREAMBLE_BYTES: usize = 8 + 4 + 8 + 8 + 8;
/// Codes that the fast-scan layout packs into one block.
const BLOCK_CODES: u64 = 32;
/// Queries in one call of FAISS: the results it holds for them, and how long it cannot be cancelled.
const QUERIES_PER_CALL_MAX: usize = 64;
/// From so many dimensions of a sub-vector on FAISS computes the tables of several queries as one matrix product, which rounds differently.
const TABLES_BY_PRODUCT_FROM: u32 = 16;

/// Codes in inverted lists.
///
/// Invariants: `rows` is the sum of the lists' lengths; rows are distinct and below `row_end`.
pub struct IvfIndex {
    generation: Arc<Generation>,
    index: IvfPq,
    list_lens: Vec<u32>,
    rows: u64,
    row_end: u64,
}

impl IvfIndex {
    /// An index of no rows.
    pub fn empty(generation: Arc<Generation>) -> Result<Self, VectorError> {
        let index = generation.empty_index.try_clone()?;
        Self::around(generation, index, 0)
    }

    fn around(generation: Arc<Generation>, index: IvfPq, row_end: u64) -> Result<Self, VectorError> {
        let list_lens: Vec<u32> = (0..index.nlist()).map(|list| index.list_len(list) as u32).collect();
        let rows = list_lens.iter().map(|len| u64::from(*len)).sum();
        // FAISS counts a vector that it could put into no list as added.
        if rows != index.len() {
            return Err(VectorError::Faiss(format!("the lists hold {rows} of {} rows", index.len())));
        }
        Ok(Self { generation, index, list_lens, rows, row_end })
    }

    /// The generation its codes belong to.
    pub fn generation(&self) -> &Arc<Generation> {
        &self.generation
    }

    /// One more than the highest row in the index; 0 where there is none.
    pub fn row_end(&self) -> u64 {
        self.row_end
    }

    /// This index and further rows; `self` stays as it is.
    ///
    /// Shapes: rows `[n]`, ascending, from [`IvfIndex::row_end`] on; reduced `[n, reduced_dim]`, as
    /// [`Generation::reduce`] gives them or as read back from half floats, but the same on every copy.
    /// Cost: a copy of the codes held, then about 10 us a row.
    /// Errors: `InvalidArgument` (order, shape, values not finite), `Faiss`.
    pub fn with_rows(&self, rows: &[u64], reduced: &[f32]) -> Result<IvfIndex, VectorError> {
        let reduced_dim = self.generation.parameters.reduced_dim as usize;
        if reduced.len() != rows.len() * reduced_dim {
            return Err(VectorError::InvalidArgument(format!(
                "{} floats for {} rows of {reduced_dim} dimensions",
                reduced.len(),
                rows.len()
            )));
        }
        if let Some(position) = reduced.iter().position(|value| !value.is_finite()) {
            return Err(VectorError::InvalidArgument(format!(
                "row {} has a value that is not finite",
                rows[position / reduced_dim]
            )));
        }
        let mut row_end = self.row_end;
        let mut labels = Vec::with_capacity(rows.len());
        for row in rows {
            let label = i64::try_from(*row).ok().filter(|_| *row >= row_end);
            let label = label.ok_or_else(|| VectorError::InvalidArgument(format!("row {row} after row {row_end}")))?;
            labels.push(label);
            row_end = row + 1;
        }
        let mut index = self.index.try_clone()?;
        index.add(&labels, reduced)?;
        Self::around(self.generation.clone(), index, row_end)
    }

    /// Writes the index, in pieces of at most `INDEX_PIECE_BYTES` and a few bytes, one call of the sink each.
    ///
    /// Errors: `Io` (the sink's), `Faiss`.
    pub fn write_to(&self, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), VectorError> {
        let mut pieces = PieceWriter::new(sink);
        let io_failed = |source| VectorError::Io { what: WHAT, source };
        pieces.write(&self.preamble()).map_err(io_failed)?;
        self.index.write(&mut |bytes| pieces.write(bytes)).map_err(|failure| match failure {
            WriteFailure::Io(error) => io_failed(error),
            WriteFailure::Vector(error) => error,
        })?;
        pieces.finish().map_err(io_failed)
    }

    /// Reads an index that [`IvfIndex::write_to`] wrote. The source fills some of its buffer a call, 0 at its end.
    ///
    /// Errors: `Corrupt` (also for another generation's index), `Io` (the source's).
    pub fn read_from(
        generation: Arc<Generation>,
        source: &mut dyn FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Result<IvfIndex, VectorError> {
        let mut pieces = PieceReader::new(source);
        let io_failed = |source: io::Error| match source.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => VectorError::corrupt(WHAT, source.to_string()),
            _ => VectorError::Io { what: WHAT, source },
        };
        let mut preamble = [0; PREAMBLE_BYTES];
        pieces.read_exact(&mut preamble).map_err(io_failed)?;
        let index = IvfPq::read(&mut |buffer| pieces.read(buffer)).map_err(|failure| match failure {
            WriteFailure::Io(error) => io_failed(error),
            WriteFailure::Vector(error) => VectorError::corrupt(WHAT, error.to_string()),
        })?;
        pieces.finish().map_err(io_failed)?;

        let row_end = u64::from_le_bytes(preamble[28..].try_into().expect("eight bytes"));
        let parameters = generation.parameters;
        if index.dim() != parameters.reduced_dim as usize || index.nlist() != parameters.nlist as usize {
            return Err(VectorError::corrupt(WHAT, "it has another shape than its generation"));
        }
        let read = Self::around(generation, index, row_end)?;
        if read.preamble() != preamble {
            return Err(VectorError::corrupt(WHAT, "it belongs to another generation or format"));
        }
        Ok(read)
    }

    /// FAISS' own search and nothing of ours, for reduced queries `[n, reduced_dim]` in one call: the yardstick of the benches.
    /// Gives the rows found, `count` a query (but at least two), best first, -1 in places without one.
    pub fn scan_alone(&self, reduced: &[f32], count: usize, nprobe: u32) -> Result<Vec<i64>, VectorError> {
        self.index.search_unaided(reduced, count, nprobe as usize).map(|(labels, _)| labels)
    }

    fn preamble(&self) -> [u8; PREAMBLE_BYTES] {
        let mut preamble = [0; PREAMBLE_BYTES];
        preamble[..8].copy_from_slice(MAGIC);
        preamble[8..12].copy_from_slice(&VERSION.to_le_bytes());
        preamble[12..20].copy_from_slice(&self.generation.number.to_le_bytes());
        preamble[20..28].copy_from_slice(&self.rows.to_le_bytes());
        preamble[28..].copy_from_slice(&self.row_end.to_le_bytes());
        preamble
    }

    /// One search of `nprobe` lists. `query`: `[dim]`, finite.
    pub(super) fn probe(
        &self,
        query: &[f32],
        count: usize,
        nprobe: u32,
        allowed: &RowSet,
    ) -> Result<Candidates, VectorError> {
        let mut reduced = Vec::with_capacity(self.index.dim());
        self.generation.reduce(query, &mut reduced);
        let mut found = self.probe_reduced(&reduced, count, nprobe, self.selector(allowed).as_deref())?;
        let mut found = found.pop().unwrap_or_default();
        found.best.sort_unstable_by(better_first);
        Ok(found)
    }

    /// [`VectorIndex::search`] for each of the queries, but in no order: whoever gives exact scores to the candidates needs none.
    /// What a query finds does not depend on the others.
    pub(super) fn search_unordered(
        &self,
        queries: &[&[f32]],
        count: usize,
        params: &ProbeParams,
        allowed: &RowSet,
        cancel: &Cancel,
    ) -> Result<Vec<Candidates>, VectorError> {
        let parameters = &self.generation.parameters;
        let selector = self.selector(allowed);
        let wanted = params.found_min.min(count).min(usize::try_from(allowed.count()).unwrap_or(usize::MAX));
        let mut all_found = Vec::with_capacity(queries.len());
        let mut reduced = Vec::with_capacity(self.index.dim() * queries.len().min(QUERIES_PER_CALL_MAX));
        for queries in queries.chunks(self.queries_per_call()) {
            reduced.clear();
            for query in queries {
                super::check_query(query, parameters.dim as usize)?;
                self.generation.reduce(query, &mut reduced);
            }
            cancel.check()?;
            let nprobe = params.nprobe.clamp(1, parameters.nlist);
            let found = self.probe_reduced(&reduced, count, nprobe, selector.as_deref())?;
            for (mut found, reduced) in found.into_iter().zip(reduced.chunks_exact(self.index.dim())) {
                let mut nprobe = nprobe;
                while found.best.len() < wanted && nprobe < parameters.nlist {
                    cancel.check()?;
                    nprobe = nprobe.saturating_mul(2).min(parameters.nlist);
                    let codes_scanned = found.codes_scanned;
                    found = self.probe_reduced(reduced, count, nprobe, selector.as_deref())?.pop().unwrap_or_default();
                    found.codes_scanned += codes_scanned;
                }
                all_found.push(found);
            }
        }
        Ok(all_found)
    }

    /// Of 4-bit codes FAISS reads a list once for all queries that probe it. With 8 bits it takes one query after another anyhow.
    fn queries_per_call(&self) -> usize {
        let parameters = &self.generation.parameters;
        let tables_one_by_one = parameters.reduced_dim / parameters.m < TABLES_BY_PRODUCT_FROM;
        if parameters.nbits == 4 && tables_one_by_one { QUERIES_PER_CALL_MAX } else { 1 }
    }

    /// For each query of `[n, reduced_dim]`, in no order.
    fn probe_reduced(
        &self,
        reduced: &[f32],
        count: usize,
        nprobe: u32,
        selector: Option<&[u64]>,
    ) -> Result<Vec<Candidates>, VectorError> {
        let count = count.min(usize::try_from(self.rows).unwrap_or(usize::MAX));
        if count == 0 {
            return Ok(vec![Candidates::default(); reduced.len() / self.index.dim()]);
        }
        let smaller_is_better = self.generation.parameters.distance() == Distance::L2;
        let score = |value: f32| if smaller_is_better { -value } else { value };
        let found = self.index.search(reduced, count, nprobe as usize, selector)?.into_iter().map(|found| {
            let codes_scanned = found.lists.iter().map(|list| u64::from(self.list_lens[*list])).sum();
            let best = found.best.into_iter();
            let best = best.map(|(label, value)| Candidate { row: label as u64, score: score(value) }).collect();
            Candidates { best, codes_scanned }
        });
        Ok(found.collect())
    }

    /// The bitmap to search with; none where every row of the index may be returned.
    fn selector<'a>(&self, allowed: &'a RowSet) -> Option<Cow<'a, [u64]>> {
        match allowed.words() {
            Some(words) => Some(Cow::Borrowed(words)),
            None if allowed.row_end() >= self.row_end => None,
            None => Some(Cow::Owned(allowed.to_words())),
        }
    }
}

impl VectorIndex for IvfIndex {
    fn search(
        &self,
        query: &[f32],
        count: usize,
        params: &ProbeParams,
        allowed: &RowSet,
        cancel: &Cancel,
    ) -> Result<Candidates, VectorError> {
        let mut found = self.search_unordered(&[query], count, params, allowed, cancel)?.pop().unwrap_or_default();
        found.best.sort_unstable_by(better_first);
        Ok(found)
    }

    fn len(&self) -> u64 {
        self.rows
    }

    /// Codes and row numbers as FAISS allocates them (blocks of codes rounded up to a power of two, row numbers up to twice
    /// what is used), centroids and codebooks.
    fn memory_bytes(&self) -> u64 {
        let p = &self.generation.parameters;
        let code_bytes = |codes: u64| match p.nbits {
            _ if codes == 0 => 0,
            4 => (codes.div_ceil(BLOCK_CODES) * BLOCK_CODES * p.code_bytes()).next_power_of_two().max(256),
            _ => codes.next_power_of_two() * p.code_bytes(),
        };
        let lists: u64 = self
            .list_lens
            .iter()
            .map(|len| u64::from(*len))
            .map(|len| code_bytes(len) + 8 * len.next_power_of_two())
            .sum();
        lists + p.centroid_bytes() + u64::from(p.nlist) * 72
    }
}
