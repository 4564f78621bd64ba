//! A trained model generation: what turns vectors into codes and lists. Every copy of a shard gets the same bytes.

use cluster_config::collection::Metric;
use cluster_config::limits::GENERATION_BYTES_MAX;
use cluster_config::search::EffortRung;
use serde::{Deserialize, Serialize};

use super::calibration::Calibration;
use super::ffi::{Distance, IvfPq, WriteFailure};
use super::projection::{Projection, clamp};
use super::{VectorError, ffi};

const WHAT: &str = "model generation";
const MAGIC: &[u8; 8] = b"SUSUIGEN";
/// Raised with each change of [`Body`]; a build reads its own and earlier versions.
const VERSION: u32 = 1;
/// magic, version, body length, crc32c of the body.
const HEAD_BYTES: usize = 8 + 4 + 8 + 4;

/// What was chosen at training, for `susui status` and for searching.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GenerationParameters {
    /// How vectors are compared.
    pub metric: Metric,
    /// Dimension of the original vectors.
    pub dim: u32,
    /// Dimension of the vectors in the index.
    pub reduced_dim: u32,
    /// Lists of the inverted file.
    pub nlist: u32,
    /// Sub-quantisers.
    pub m: u32,
    /// Bits per sub-quantiser.
    pub nbits: u32,
    /// Lists probed where the query names no number.
    pub nprobe: u32,
    /// Vectors it was trained on.
    pub rows_trained: u32,
}

impl GenerationParameters {
    /// Bytes of one code.
    pub fn code_bytes(&self) -> u64 {
        // The fast-scan layout pairs sub-quantisers.
        if self.nbits == 4 { u64::from(self.m).div_ceil(2) } else { u64::from(self.m) }
    }

    /// Bytes of the centroids, those of the lists and those of the codebooks.
    pub(super) fn centroid_bytes(&self) -> u64 {
        (u64::from(self.nlist) + (1 << self.nbits)) * u64::from(self.reduced_dim) * size_of::<f32>() as u64
    }

    pub(super) fn distance(&self) -> Distance {
        match self.metric {
            Metric::Cosine | Metric::L2 => Distance::L2,
            Metric::Dot => Distance::InnerProduct,
        }
    }

    /// The index in the words of FAISS' factory.
    pub(super) fn description(&self) -> String {
        let Self { nlist, m, nbits, .. } = self;
        match nbits {
            4 => format!("IVF{nlist},PQ{m}x4fs"),
            // np: no polysemous training, which costs most of the time and serves a search mode we never use.
            _ => format!("IVF{nlist},PQ{m}x{nbits}np"),
        }
    }
}

/// A trained model. Immutable, shared by `Arc`.
///
/// Invariants: the index is trained, empty, and has the dimension and lists that the parameters say; there is a projection
/// unless both dimensions are equal.
pub struct Generation {
    pub(super) number: u64,
    pub(super) parameters: GenerationParameters,
    pub(super) projection: Option<Projection>,
    pub(super) calibration: Calibration,
    pub(super) empty_index: IvfPq,
}

impl Generation {
    /// Number of the generation, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What was chosen at training.
    pub fn parameters(&self) -> GenerationParameters {
        self.parameters
    }

    /// Recall measured at training, by effort.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// Heap bytes: projection, centroids, codebooks.
    pub fn memory_bytes(&self) -> u64 {
        let p = &self.parameters;
        let projection =
            self.projection.as_ref().map_or(0, |projection| projection.matrix.len() + projection.bias.len());
        projection as u64 * size_of::<f32>() as u64 + p.centroid_bytes()
    }

    /// Appends the reduced vectors `[n, reduced_dim]` of `vectors` `[n, dim]` to `out`, within the range of half floats.
    pub fn reduce(&self, vectors: &[f32], out: &mut Vec<f32>) {
        match &self.projection {
            None => out.extend(vectors.iter().map(|value| clamp(*value))),
            Some(projection) => {
                for vector in vectors.chunks_exact(self.parameters.dim as usize) {
                    projection.apply(vector, out);
                }
            }
        }
    }

    /// The generation as bytes, for the log.
    ///
    /// Errors: `InvalidArgument` if they exceed `GENERATION_BYTES_MAX`.
    pub fn to_bytes(&self) -> Result<Vec<u8>, VectorError> {
        let body = postcard::to_stdvec(&Body::of(self)?).map_err(|error| VectorError::Faiss(error.to_string()))?;
        if HEAD_BYTES + body.len() > GENERATION_BYTES_MAX {
            return Err(VectorError::InvalidArgument(format!(
                "a model generation of {} bytes exceeds {GENERATION_BYTES_MAX}: choose a smaller nlist",
                body.len()
            )));
        }
        let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        Ok(bytes)
    }

    /// The inverse of [`Generation::to_bytes`]. Errors: `Corrupt`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, VectorError> {
        let body = checked_body(bytes).map_err(|problem| VectorError::corrupt(WHAT, problem))?;
        let body: Body = postcard::from_bytes(body).map_err(|error| VectorError::corrupt(WHAT, error.to_string()))?;
        body.into_generation()
    }
}

fn checked_body(bytes: &[u8]) -> Result<&[u8], String> {
    if bytes.len() > GENERATION_BYTES_MAX {
        return Err(format!("{} bytes are more than any generation has", bytes.len()));
    }
    let (head, body) = bytes.split_at_checked(HEAD_BYTES).ok_or("it is too short")?;
    if &head[..8] != MAGIC {
        return Err("it is something else".into());
    }
    let version = u32::from_le_bytes(head[8..12].try_into().expect("four bytes"));
    if version != VERSION {
        return Err(format!("format {version} is not known to this build, which knows {VERSION}"));
    }
    if head[12..20] != (body.len() as u64).to_le_bytes() {
        return Err("its length is wrong".into());
    }
    if head[20..] != crc32c::crc32c(body).to_le_bytes() {
        return Err("its checksum does not match".into());
    }
    Ok(body)
}

/// Format 1, as postcard writes it: fields in this order, never changed.
#[derive(Serialize, Deserialize)]
struct Body {
    number: u64,
    /// 0 cosine, 1 l2, 2 dot.
    metric: u8,
    dim: u32,
    reduced_dim: u32,
    nlist: u32,
    m: u32,
    nbits: u32,
    nprobe: u32,
    rows_trained: u32,
    /// Empty where there is no projection.
    matrix: Vec<f32>,
    bias: Vec<f32>,
    rungs: Vec<EffortRung>,
    /// The empty trained index in FAISS' format.
    index: Vec<u8>,
}

impl Body {
    fn of(generation: &Generation) -> Result<Self, VectorError> {
        let p = generation.parameters;
        let (matrix, bias) = match &generation.projection {
            Some(projection) => (projection.matrix.clone(), projection.bias.clone()),
            None => (Vec::new(), Vec::new()),
        };
        Ok(Self {
            number: generation.number,
            metric: match p.metric {
                Metric::Cosine => 0,
                Metric::L2 => 1,
                Metric::Dot => 2,
            },
            dim: p.dim,
            reduced_dim: p.reduced_dim,
            nlist: p.nlist,
            m: p.m,
            nbits: p.nbits,
            nprobe: p.nprobe,
            rows_trained: p.rows_trained,
            matrix,
            bias,
            rungs: generation.calibration.rungs().to_vec(),
            index: index_bytes(&generation.empty_index)?,
        })
    }

    fn into_generation(self) -> Result<Generation, VectorError> {
        let corrupt = |problem: String| VectorError::corrupt(WHAT, problem);
        let metric = match self.metric {
            0 => Metric::Cosine,
            1 => Metric::L2,
            2 => Metric::Dot,
            other => return Err(corrupt(format!("metric {other} is not known"))),
        };
        let parameters = GenerationParameters {
            metric,
            dim: self.dim,
            reduced_dim: self.reduced_dim,
            nlist: self.nlist,
            m: self.m,
            nbits: self.nbits,
            nprobe: self.nprobe,
            rows_trained: self.rows_trained,
        };
        let (dim, reduced_dim) = (self.dim as usize, self.reduced_dim as usize);
        let projection = match (self.matrix.is_empty(), dim == reduced_dim) {
            (true, true) => None,
            (true, false) => return Err(corrupt("there is no projection".into())),
            (false, _) if self.matrix.len() != dim * reduced_dim || self.bias.len() != reduced_dim => {
                return Err(corrupt("the projection has another shape".into()));
            }
            (false, _) => Some(Projection { matrix: self.matrix, bias: self.bias }),
        };
        let empty_index = index_from(&self.index)?;
        if !empty_index.is_trained()
            || empty_index.len() != 0
            || empty_index.dim() != reduced_dim
            || empty_index.nlist() != self.nlist as usize
        {
            return Err(corrupt("the index does not fit the parameters".into()));
        }
        let calibration = Calibration::new(self.rungs);
        Ok(Generation { number: self.number, parameters, projection, calibration, empty_index })
    }
}

fn index_bytes(index: &IvfPq) -> Result<Vec<u8>, VectorError> {
    let mut bytes = Vec::new();
    let mut sink = |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    index.write(&mut sink).map_err(|failure| match failure {
        WriteFailure::Vector(error) => error,
        WriteFailure::Io(source) => VectorError::Io { what: WHAT, source },
    })?;
    Ok(bytes)
}

fn index_from(mut bytes: &[u8]) -> Result<ffi::IvfPq, VectorError> {
    let mut source = |buffer: &mut [u8]| std::io::Read::read(&mut bytes, buffer);
    IvfPq::read(&mut source).map_err(|failure| match failure {
        WriteFailure::Vector(error) => VectorError::corrupt(WHAT, error.to_string()),
        WriteFailure::Io(error) => VectorError::corrupt(WHAT, error.to_string()),
    })
}
