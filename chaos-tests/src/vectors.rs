//! Seeded unit vectors.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The unit vector of dimension `dim` that belongs to `(seed, number)`.
pub fn unit_vector(seed: u64, number: u64, dim: usize) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let raw: Vec<f32> = (0..dim).map(|_| random.random_range(-1.0..1.0)).collect();
    let norm = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
    raw.into_iter().map(|x| x / norm).collect()
}
