//! The forward pass of BERT for a batch of texts of any lengths, without padding: all tokens stand in one matrix for the dense
//! layers, and each text attends to its own rows. A text therefore costs its own tokens only, whoever shares the batch.
//!
//! Matrix products are candle's (`gemm`); everything between them is a few loops over slices. candle's own element-wise
//! operators would hand work to a process-wide pool of spinning threads behind a lock, from which a bounded pool of
//! single-threaded workers cannot keep apart; see DESIGN.md.

use candle_core::{D, DType, Device, Error, Tensor};
use candle_nn::VarBuilder;

use super::normalize;

type Result<T> = std::result::Result<T, Error>;

/// Sizes of a BERT encoder. Dimensions multiply out: `hidden = heads * head_dim`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BertShape {
    /// Rows of the word table.
    pub vocabulary: usize,
    /// Width of a token's state.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the feed-forward layer.
    pub intermediate: usize,
    /// Rows of the position table: the longest text.
    pub positions: usize,
    /// Added to variances before their root is taken.
    pub layer_norm_eps: f32,
}

impl BertShape {
    /// all-MiniLM-L6-v2, from its `config.json`.
    pub const MINILM_L6: Self = Self {
        vocabulary: 30_522,
        hidden: 384,
        layers: 6,
        heads: 12,
        intermediate: 1536,
        positions: 512,
        layer_norm_eps: 1e-12,
    };
}

/// Weights of the encoder, shared by all threads.
pub struct Bert {
    shape: BertShape,
    words: Vec<f32>,
    positions: Vec<f32>,
    /// Token type 0, the only one used for single texts.
    token_type: Vec<f32>,
    embedding_norm: LayerNorm,
    layers: Vec<Layer>,
}

struct Layer {
    query_key_value: Linear,
    attention_out: Linear,
    attention_norm: LayerNorm,
    expand: Linear,
    contract: Linear,
    output_norm: LayerNorm,
}

impl Bert {
    /// Takes the weights out of a safetensors file, by the names of the reference implementation.
    pub fn load(safetensors: &[u8], shape: BertShape) -> Result<Self> {
        let weights = VarBuilder::from_slice_safetensors(safetensors, DType::F32, &Device::Cpu)?;
        let hidden = shape.hidden;
        let table = |rows: usize, name: &str| -> Result<Vec<f32>> {
            weights.get((rows, hidden), &format!("embeddings.{name}.weight"))?.flatten_all()?.to_vec1()
        };
        let layers = (0..shape.layers)
            .map(|number| Layer::load(&weights.pp(format!("encoder.layer.{number}")), shape))
            .collect::<Result<Vec<_>>>()?;
        let mut token_type = table(2, "token_type_embeddings")?;
        token_type.truncate(hidden);
        Ok(Self {
            shape,
            words: table(shape.vocabulary, "word_embeddings")?,
            positions: table(shape.positions, "position_embeddings")?,
            token_type,
            embedding_norm: LayerNorm::load(&weights.pp("embeddings.LayerNorm"), shape)?,
            layers,
        })
    }

    /// Bytes of the weights in memory.
    pub fn memory_bytes(&self) -> usize {
        let shape = self.shape;
        let layer = 4 * shape.hidden * shape.hidden + 2 * shape.hidden * shape.intermediate;
        size_of::<f32>() * (self.words.len() + self.positions.len() + shape.layers * layer)
    }

    /// Embeds each text: mean of its last states, scaled to unit length.
    ///
    /// Shapes: `texts` are token ids, special tokens included, each 1 to `positions` long; result one `[hidden]` per text.
    /// Errors: an id or a length out of range.
    pub fn embed(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let spans = token_spans(texts);
        let mut states = self.embed_tokens(texts)?;
        for layer in &self.layers {
            states = layer.forward(states, &spans, self.shape)?;
        }
        let hidden = self.shape.hidden;
        Ok(spans.iter().map(|span| mean_of_rows(&states[span.start * hidden..span.end * hidden], hidden)).collect())
    }

    fn embed_tokens(&self, texts: &[Vec<u32>]) -> Result<Vec<f32>> {
        let hidden = self.shape.hidden;
        let mut states = Vec::with_capacity(texts.iter().map(Vec::len).sum::<usize>() * hidden);
        for text in texts {
            if text.is_empty() || text.len() > self.shape.positions {
                return Err(Error::Msg(format!(
                    "a text of {} tokens, 1 to {} are taken",
                    text.len(),
                    self.shape.positions
                )));
            }
            for (position, id) in text.iter().enumerate() {
                let word = row(&self.words, *id as usize, hidden)
                    .ok_or_else(|| Error::Msg(format!("token id {id} is outside the vocabulary")))?;
                let place = &self.positions[position * hidden..(position + 1) * hidden];
                states.extend(word.iter().zip(place).zip(&self.token_type).map(|((w, p), t)| w + p + t));
            }
        }
        self.embedding_norm.apply(&mut states);
        Ok(states)
    }
}

impl Layer {
    fn load(weights: &VarBuilder<'_>, shape: BertShape) -> Result<Self> {
        let (hidden, wide) = (shape.hidden, shape.intermediate);
        let attention = weights.pp("attention");
        Ok(Self {
            query_key_value: Linear::load_stacked(&attention.pp("self"), ["query", "key", "value"], hidden)?,
            attention_out: Linear::load(&attention.pp("output.dense"), hidden, hidden)?,
            attention_norm: LayerNorm::load(&attention.pp("output.LayerNorm"), shape)?,
            expand: Linear::load(&weights.pp("intermediate.dense"), hidden, wide)?,
            contract: Linear::load(&weights.pp("output.dense"), wide, hidden)?,
            output_norm: LayerNorm::load(&weights.pp("output.LayerNorm"), shape)?,
        })
    }

    /// `states` `[tokens, hidden]` in, the same shape out.
    fn forward(&self, states: Vec<f32>, spans: &[Span], shape: BertShape) -> Result<Vec<f32>> {
        let tokens = states.len() / shape.hidden;
        let input = Tensor::from_vec(states, (tokens, shape.hidden), &Device::Cpu)?;
        let context = self.attend(&input, spans, shape)?;
        let mut attended = self.attention_out.apply(&context)?;
        add(&mut attended, &to_vec(&input)?);
        self.attention_norm.apply(&mut attended);

        let attended = Tensor::from_vec(attended, (tokens, shape.hidden), &Device::Cpu)?;
        let mut wide = self.expand.apply(&attended)?;
        wide.iter_mut().for_each(|x| *x = gelu(*x));
        let mut output = self.contract.apply(&Tensor::from_vec(wide, (tokens, shape.intermediate), &Device::Cpu)?)?;
        add(&mut output, &to_vec(&attended)?);
        self.output_norm.apply(&mut output);
        Ok(output)
    }

    /// Scaled dot-product attention of each text within itself. Result `[tokens, hidden]`.
    fn attend(&self, input: &Tensor, spans: &[Span], shape: BertShape) -> Result<Tensor> {
        let (hidden, heads) = (shape.hidden, shape.heads);
        let head_dim = hidden / heads;
        let stacked = Tensor::from_vec(self.query_key_value.apply(input)?, (input.dim(0)?, 3 * hidden), &Device::Cpu)?;
        let mut contexts = Vec::with_capacity(spans.len());
        for span in spans {
            let length = span.len();
            // [length, 3, heads, head_dim] to [3, heads, length, head_dim]
            let by_head =
                stacked.narrow(0, span.start, length)?.reshape((length, 3, heads, head_dim))?.permute((1, 2, 0, 3))?;
            let part = |number: usize| by_head.get(number)?.contiguous();
            let (query, key, value) = (part(0)?, part(1)?, part(2)?);
            let mut scores = to_vec(&query.matmul(&key.transpose(D::Minus2, D::Minus1)?)?)?;
            let scale = 1.0 / (head_dim as f32).sqrt();
            scores.chunks_exact_mut(length).for_each(|scores| softmax(scores, scale));
            let weights = Tensor::from_vec(scores, (heads, length, length), &Device::Cpu)?;
            contexts.push(weights.matmul(&value)?.transpose(0, 1)?.reshape((length, hidden))?);
        }
        Tensor::cat(&contexts, 0)
    }
}

/// `y = x W^T + b`.
struct Linear {
    /// `[in, out]`, a transposed view of the stored `[out, in]`.
    weight: Tensor,
    bias: Vec<f32>,
}

impl Linear {
    fn load(weights: &VarBuilder<'_>, wide_in: usize, wide_out: usize) -> Result<Self> {
        let weight = weights.get((wide_out, wide_in), "weight")?;
        Ok(Self { weight: weight.t()?, bias: weights.get(wide_out, "bias")?.to_vec1()? })
    }

    /// Several square layers over the same input as one product.
    fn load_stacked(weights: &VarBuilder<'_>, names: [&str; 3], hidden: usize) -> Result<Self> {
        let mut stacked = Vec::with_capacity(names.len());
        let mut bias = Vec::with_capacity(names.len() * hidden);
        for name in names {
            let one = weights.pp(name);
            stacked.push(one.get((hidden, hidden), "weight")?);
            bias.extend(one.get(hidden, "bias")?.to_vec1::<f32>()?);
        }
        Ok(Self { weight: Tensor::cat(&stacked, 0)?.t()?, bias })
    }

    fn apply(&self, input: &Tensor) -> Result<Vec<f32>> {
        let mut output = to_vec(&input.matmul(&self.weight)?)?;
        output.chunks_exact_mut(self.bias.len()).for_each(|row| add(row, &self.bias));
        Ok(output)
    }
}

struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl LayerNorm {
    fn load(weights: &VarBuilder<'_>, shape: BertShape) -> Result<Self> {
        let part = |name: &str| weights.get(shape.hidden, name)?.to_vec1();
        Ok(Self { weight: part("weight")?, bias: part("bias")?, eps: shape.layer_norm_eps })
    }

    fn apply(&self, states: &mut [f32]) {
        let width = self.weight.len();
        for row in states.chunks_exact_mut(width) {
            let mean = row.iter().sum::<f32>() / width as f32;
            let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / width as f32;
            let scale = 1.0 / (variance + self.eps).sqrt();
            for ((x, weight), bias) in row.iter_mut().zip(&self.weight).zip(&self.bias) {
                *x = (*x - mean) * scale * weight + bias;
            }
        }
    }
}

type Span = std::ops::Range<usize>;

/// Rows of each text in the matrix of all tokens.
fn token_spans(texts: &[Vec<u32>]) -> Vec<Span> {
    let mut end = 0;
    texts
        .iter()
        .map(|text| {
            let start = end;
            end += text.len();
            start..end
        })
        .collect()
}

fn row(table: &[f32], number: usize, width: usize) -> Option<&[f32]> {
    table.get(number.checked_mul(width)?..)?.get(..width)
}

fn to_vec(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

fn add(to: &mut [f32], what: &[f32]) {
    to.iter_mut().zip(what).for_each(|(x, y)| *x += y);
}

fn mean_of_rows(rows: &[f32], width: usize) -> Vec<f32> {
    let mut mean = vec![0.0; width];
    rows.chunks_exact(width).for_each(|row| add(&mut mean, row));
    // The division of the mean is a factor like any other, gone with the normalisation.
    normalize(&mut mean);
    mean
}

fn softmax(scores: &mut [f32], scale: f32) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = ((*score - largest) * scale).exp();
        sum += *score;
    }
    scores.iter_mut().for_each(|score| *score /= sum);
}

/// `x * Phi(x)`.
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The error function as a rational minimax approximation, absolute error below 1e-6 (tested). Branch-free, so that the
/// compiler vectorises it: the model calls it some nine thousand times a token.
/// Source of the coefficients: the float `erf` of Eigen and XLA.
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let y = x * x;
    let mut numerator = -2.726_142e-10_f32;
    for coefficient in [2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906e-4, -2.954_6e-3, -1.609_603_3e-2] {
        numerator = numerator * y + coefficient;
    }
    let mut denominator = -1.456_607_2e-5_f32;
    for coefficient in [-2.133_740_5e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2] {
        denominator = denominator * y + coefficient;
    }
    x * numerator / denominator
}

#[cfg(test)]
mod tests;
