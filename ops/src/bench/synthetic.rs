//! Synthetic vectors of any number and dimension, the same for the same seed on every machine.
//!
//! A row is the sum of a cluster's centre and of noise as long as the centre, both in a space of [`LATENT`] dimensions of falling
//! strength that is turned into the asked dimension, and a little noise of all dimensions. So clusters overlap: the neighbours of
//! a row lie in many cells of any partition, as those of embeddings do, while a projection and a product quantiser find something to
//! learn. Each row is drawn from its own number, so a set of more rows begins with the rows of a smaller one... as long as both have
//! as many clusters; the queries are the rows behind the last.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

use super::dataset::Matrix;

/// Dimensions that the rows really vary in: embeddings of text are estimated at 15 to 30.
const LATENT: usize = 24;
/// Length of the noise around a centre, relative to the centre's.
const NOISE: f32 = 1.0;
/// Length of the noise that no latent dimension explains, relative to a row.
const AMBIENT: f32 = 0.1;
/// Rows of a cluster.
const ROWS_PER_CLUSTER: usize = 500;

/// Draws rows.
pub struct Generator {
    seed: u64,
    dim: usize,
    /// `[clusters, LATENT]`.
    centres: Vec<f32>,
    /// `[LATENT, dim]`.
    turn: Vec<f32>,
}

impl Generator {
    /// A generator for a set of about `rows` rows of `dim` components.
    pub fn new(seed: u64, dim: usize, rows: usize) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let clusters = (rows / ROWS_PER_CLUSTER).max(2);
        let mut centres = vec![0.0; clusters * LATENT];
        centres.chunks_exact_mut(LATENT).for_each(|centre| latent_normal(&mut random, centre));
        let mut turn = vec![0.0; LATENT * dim];
        let scale = (dim as f32).sqrt().recip();
        turn.iter_mut().for_each(|x| *x = normal(&mut random) * scale);
        Self { seed, dim, centres, turn }
    }

    /// The rows of these numbers.
    pub fn rows(&self, rows: std::ops::Range<usize>) -> Matrix {
        let mut values = vec![0.0; rows.len() * self.dim];
        values
            .par_chunks_exact_mut(self.dim)
            .zip(rows.into_par_iter())
            .for_each(|(out, row)| self.fill(row as u64, out));
        Matrix::new(self.dim, values)
    }

    fn fill(&self, row: u64, out: &mut [f32]) {
        // Any odd constant keeps the streams of neighbouring rows apart.
        let mut random = StdRng::seed_from_u64(self.seed ^ (row + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let cluster = random.random_range(0..self.centres.len() / LATENT);
        let mut latent = [0.0; LATENT];
        latent_normal(&mut random, &mut latent);
        let centre = &self.centres[cluster * LATENT..(cluster + 1) * LATENT];
        latent.iter_mut().zip(centre).for_each(|(x, centre)| *x = centre + NOISE * *x);
        let ambient = AMBIENT * (self.dim as f32).sqrt().recip();
        out.iter_mut().for_each(|x| *x = ambient * normal(&mut random));
        for (strength, axis) in latent.iter().zip(self.turn.chunks_exact(self.dim)) {
            out.iter_mut().zip(axis).for_each(|(x, component)| *x += strength * component);
        }
    }
}

/// Normal in every latent dimension, weaker from one to the next, about unit length in all.
fn latent_normal(random: &mut StdRng, out: &mut [f32]) {
    let strength = |axis: usize| ((axis + 1) as f32).sqrt().recip();
    let scale = (0..out.len()).map(|axis| strength(axis).powi(2)).sum::<f32>().sqrt().recip();
    out.iter_mut().enumerate().for_each(|(axis, x)| *x = normal(random) * strength(axis) * scale);
}

/// A standard normal number, by Box and Muller.
fn normal(random: &mut StdRng) -> f32 {
    let (radius, angle): (f32, f32) = (random.random(), random.random());
    // `random` may give 0, whose logarithm does not exist.
    (-2.0 * (1.0 - radius).ln()).sqrt() * (std::f32::consts::TAU * angle).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::K;
    use crate::bench::truth::{dot, exact_neighbors};

    #[test]
    fn a_row_depends_on_seed_and_number_alone() {
        let generator = Generator::new(7, 16, 1000);
        let some = generator.rows(10..20);
        assert_eq!(generator.rows(0..20).row(12), some.row(2));
        assert_ne!(Generator::new(8, 16, 1000).rows(10..20), some);
        assert!(some.values().iter().all(|x| x.is_finite()));
    }

    /// The data must not be so easy that an index which looks at one cell finds half of the neighbours: here the cells of as many
    /// rows taken for centroids as an index of this size would have lists.
    #[test]
    fn the_neighbours_of_a_query_are_spread_over_cells() {
        let (rows, cells) = (10_000, 200);
        let generator = Generator::new(1, 128, rows);
        let (base, queries) = (generator.rows(0..rows), generator.rows(rows..rows + 50));
        let cell_of = |vector: &[f32]| {
            let distance = |centroid: usize| {
                let centroid = base.row(centroid * (rows / cells));
                dot(centroid, centroid) - 2.0 * dot(centroid, vector)
            };
            (0..cells).min_by(|a, b| distance(*a).total_cmp(&distance(*b))).expect("there are cells")
        };
        let truth = exact_neighbors(&base, &queries, K, &|_| ());
        let shared = truth.iter().enumerate().map(|(query, neighbors)| {
            let cell = cell_of(queries.row(query));
            neighbors.iter().filter(|row| cell_of(base.row(**row as usize)) == cell).count()
        });
        let recall = shared.sum::<usize>() as f64 / (K * queries.rows()) as f64;
        assert!((0.02..0.5).contains(&recall), "one cell holds {recall} of the neighbours");
    }
}
