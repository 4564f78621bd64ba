//! From original to reduced vectors: an affine map along the principal axes of a sample.
//!
//! FAISS finds the axes; applying them is done here, one vector at a time, so that a vector's image does not depend on which
//! others are reduced with it (a matrix product of FAISS' BLAS may round differently by batch size).

use cluster_config::collection::Metric;
use half::f16;

use super::{VectorError, ffi};

/// `matrix * vector + bias`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Projection {
    /// `[reduced_dim, dim]`, rows orthonormal.
    pub(super) matrix: Vec<f32>,
    /// `[reduced_dim]`.
    pub(super) bias: Vec<f32>,
}

impl Projection {
    /// Learns the map from a sample `[n, dim]`.
    ///
    /// For cosine and `l2` it is centred: distances do not notice, and the axes are better. For `dot` it is not, because
    /// moving the origin changes inner products: the axes are then those of the second moments about 0.
    pub(super) fn train(sample: &[f32], dim: usize, reduced_dim: usize, metric: Metric) -> Result<Self, VectorError> {
        match metric {
            Metric::Cosine | Metric::L2 => {
                let mean = mean(sample, dim);
                // Centred here in double precision, because FAISS forms x'x - n m'm in single precision, which cancels badly
                // where the mean is far from 0.
                let mut centred = Vec::with_capacity(sample.len());
                for vector in sample.chunks_exact(dim) {
                    centred.extend(vector.iter().zip(&mean).map(|(x, m)| x - m));
                }
                let matrix = ffi::principal_axes(&centred, dim, reduced_dim)?;
                let mut bias = vec![0.0; reduced_dim];
                ffi::inner_products(&mean, &matrix, &mut bias);
                bias.iter_mut().for_each(|value| *value = -*value);
                Ok(Self { matrix, bias })
            }
            Metric::Dot => {
                // FAISS insists on subtracting the mean. Each vector followed by its negative makes the mean exactly 0, as
                // long as FAISS does not sample from them, which it does beyond 1000 vectors a dimension.
                let rows = super::train::thin(sample, dim, (sample.len() / dim / 2).clamp(1, 500 * dim));
                let mut mirrored = Vec::with_capacity(2 * rows.len());
                for vector in rows.chunks_exact(dim) {
                    mirrored.extend_from_slice(vector);
                    mirrored.extend(vector.iter().map(|x| -x));
                }
                let matrix = ffi::principal_axes(&mirrored, dim, reduced_dim)?;
                Ok(Self { matrix, bias: vec![0.0; reduced_dim] })
            }
        }
    }

    /// Appends the image of one vector.
    pub(super) fn apply(&self, vector: &[f32], out: &mut Vec<f32>) {
        let begin = out.len();
        out.resize(begin + self.bias.len(), 0.0);
        let image = &mut out[begin..];
        ffi::inner_products(vector, &self.matrix, image);
        for (value, bias) in image.iter_mut().zip(&self.bias) {
            *value = clamp(*value + bias);
        }
    }
}

/// Keeps a reduced value within what a half float can hold: an infinite one would drop its row from the index silently.
pub(super) fn clamp(value: f32) -> f32 {
    const MAX: f32 = f16::MAX.to_f32_const();
    value.clamp(-MAX, MAX)
}

fn mean(sample: &[f32], dim: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; dim];
    for vector in sample.chunks_exact(dim) {
        for (sum, value) in sums.iter_mut().zip(vector) {
            *sum += f64::from(*value);
        }
    }
    let count = (sample.len() / dim).max(1) as f64;
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    const DIM: usize = 6;

    /// Vectors that vary in the plane of two directions only, around `offset`.
    fn flat_sample(offset: f32) -> Vec<f32> {
        let mut random = StdRng::seed_from_u64(3);
        let mut sample = Vec::new();
        for _ in 0..500 {
            let (a, b): (f32, f32) = (random.random_range(-3.0..3.0), random.random_range(-1.0..1.0));
            sample.extend([a, b, a + b, a - b, -b, 0.5 * a].map(|x| x + offset));
        }
        sample
    }

    fn image(projection: &Projection, vector: &[f32]) -> Vec<f32> {
        let mut out = Vec::new();
        projection.apply(vector, &mut out);
        out
    }

    #[test]
    fn keeps_distances_within_the_plane_wherever_it_lies() {
        for offset in [0.0, 1000.0] {
            let sample = flat_sample(offset);
            let projection = Projection::train(&sample, DIM, 2, Metric::L2).unwrap();
            let squared = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f32>();
            let first = &sample[..DIM];
            for other in sample.chunks_exact(DIM).skip(1).take(50) {
                let (full, reduced) =
                    (squared(first, other), squared(&image(&projection, first), &image(&projection, other)));
                assert!((full - reduced).abs() <= 0.01 * full + 0.01, "offset {offset}: {full} became {reduced}");
            }
        }
    }

    #[test]
    fn dot_keeps_inner_products_because_the_origin_stays() {
        let sample = flat_sample(0.0);
        let projection = Projection::train(&sample, DIM, 2, Metric::Dot).unwrap();
        assert_eq!(projection.bias, [0.0, 0.0]);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
        let first = &sample[..DIM];
        for other in sample.chunks_exact(DIM).take(50) {
            let (full, reduced) = (dot(first, other), dot(&image(&projection, first), &image(&projection, other)));
            assert!((full - reduced).abs() < 1e-2, "{full} became {reduced}");
        }
        // Away from 0 the strongest uncentred axis must carry the offset; centred axes would drop it.
        let sample = flat_sample(10.0);
        let projection = Projection::train(&sample, DIM, 3, Metric::Dot).unwrap();
        let first = &sample[..DIM];
        let (full, reduced) = (dot(first, first), dot(&image(&projection, first), &image(&projection, first)));
        assert!((full - reduced).abs() < 0.001 * full, "{full} became {reduced}");
    }

    #[test]
    fn huge_values_stay_finite() {
        let projection = Projection { matrix: vec![1.0; DIM], bias: vec![0.0] };
        assert_eq!(image(&projection, &[65_504.0; DIM]), [65_504.0]);
        assert_eq!(image(&projection, &[-65_504.0; DIM]), [-65_504.0]);
    }
}
