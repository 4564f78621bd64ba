//! The vectors of a run: one block of memory, from `.npy` files or made from a seed.

use std::path::Path;

use half::f16;

use super::DataArguments;
use super::synthetic::Generator;
use crate::error::Error;
use crate::npy;

/// Rows read from a file at a time.
const ROWS_PER_READ: usize = 4096;

/// Vectors `[rows, dim]`, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    dim: usize,
    values: Vec<f32>,
}

impl Matrix {
    /// Takes whole rows. Panics if `values` are none.
    pub fn new(dim: usize, values: Vec<f32>) -> Self {
        assert!(dim > 0 && values.len().is_multiple_of(dim), "{} values are no rows of {dim}", values.len());
        Self { dim, values }
    }

    /// Components of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.dim
    }

    /// One row, `[dim]`.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.dim..(row + 1) * self.dim]
    }

    /// All rows, one after another.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The rows as a collection keeps them: half floats.
    pub fn as_stored(&self) -> Self {
        Self { dim: self.dim, values: self.values.iter().map(|value| f16::from_f32(*value).to_f32()).collect() }
    }

    /// Copies the first rows, as many as there are up to `rows`.
    pub fn first(&self, rows: usize) -> Self {
        Self { dim: self.dim, values: self.values[..rows.min(self.rows()) * self.dim].to_vec() }
    }

    /// Cuts the last `rows` rows off.
    fn split_off(&mut self, rows: usize) -> Self {
        let at = (self.rows() - rows) * self.dim;
        Self { dim: self.dim, values: self.values.split_off(at) }
    }

    /// Gives every row unit length, as a collection with the cosine metric does. Zero rows stay.
    fn scale_to_unit(&mut self) {
        for row in self.values.chunks_exact_mut(self.dim) {
            let norm = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
            if norm > 0.0 {
                row.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
            }
        }
    }
}

/// What is loaded and what is asked. All rows have unit length.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Where it comes from, for the report.
    pub name: String,
    /// Loaded; a row's number is its id.
    pub base: Matrix,
    /// Asked; none of them is loaded.
    pub queries: Matrix,
    /// Rows of `base` nearest to each query, best first, where a file says so.
    pub neighbors: Option<Vec<Vec<u32>>>,
    /// Where the neighbours are those among the rows as they are stored: how many of those among the rows as given they are, 0 to 1.
    pub stored_share: Option<f64>,
}

impl Dataset {
    /// The data that the command line names. Errors: a file that cannot be read, or files that do not fit each other.
    pub fn open(arguments: &DataArguments) -> Result<Self, Error> {
        let mut data = match &arguments.base {
            Some(base) => Self::read(arguments, base)?,
            None => {
                let generator = Generator::new(arguments.seed, arguments.dim as usize, arguments.n);
                Self {
                    name: format!("synthetic, {} x {}, seed {}", arguments.n, arguments.dim, arguments.seed),
                    base: generator.rows(0..arguments.n),
                    // Rows behind the last one loaded are drawn from the same distribution and are not in the collection.
                    queries: generator.rows(arguments.n..arguments.n + arguments.query_count),
                    neighbors: None,
                    stored_share: None,
                }
            }
        };
        data.base.scale_to_unit();
        data.queries.scale_to_unit();
        Ok(data)
    }

    fn read(arguments: &DataArguments, file: &Path) -> Result<Self, Error> {
        let mut base = read_matrix(file)?;
        let asked = arguments.query_count;
        let queries = match &arguments.queries {
            Some(queries) => {
                let mut queries = read_matrix(queries)?;
                if queries.rows() > asked {
                    queries.values.truncate(asked * queries.dim);
                }
                queries
            }
            None if base.rows() > asked => base.split_off(asked),
            None => {
                return Err(Error::usage(
                    format!("{} has {} rows, {asked} queries cannot be held out of it", file.display(), base.rows()),
                    "name --queries, or ask for fewer with --query-count",
                ));
            }
        };
        if queries.dim != base.dim {
            return Err(Error::usage(
                format!("queries have {} dimensions, the base {}", queries.dim, base.dim),
                "name files of one set",
            ));
        }
        let neighbors = arguments.neighbors.as_deref().map(|path| read_neighbors(path, &base, &queries)).transpose()?;
        let name = file.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        Ok(Self {
            name: format!("{name}, {} x {}", base.rows(), base.dim),
            base,
            queries,
            neighbors,
            stored_share: None,
        })
    }
}

fn read_matrix(file: &Path) -> Result<Matrix, Error> {
    let mut array = npy::open(file)?;
    let mut values = Vec::with_capacity(array.rows() * array.columns());
    loop {
        let rows = array.next_vectors(ROWS_PER_READ)?;
        if rows.is_empty() {
            return Ok(Matrix::new(array.columns(), values));
        }
        rows.iter().for_each(|row| values.extend_from_slice(row));
    }
}

fn read_neighbors(file: &Path, base: &Matrix, queries: &Matrix) -> Result<Vec<Vec<u32>>, Error> {
    let mut array = npy::open(file)?;
    let rows = array.next_numbers(queries.rows())?;
    if rows.len() < queries.rows() || array.columns() < super::K {
        return Err(Error::usage(
            format!("{} holds {} x {} neighbours", file.display(), rows.len(), array.columns()),
            format!("it must have {} for each of {} queries", super::K, queries.rows()),
        ));
    }
    let to_row = |number: &i64| u32::try_from(*number).ok().filter(|row| (*row as usize) < base.rows());
    let converted: Option<Vec<Vec<u32>>> = rows.iter().map(|row| row.iter().map(to_row).collect()).collect();
    converted.ok_or_else(|| Error::usage(format!("{} names rows that the base does not have", file.display()), ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_off_and_scaled() {
        let mut matrix = Matrix::new(2, vec![3.0, 4.0, 0.0, 0.0, 0.0, 5.0]);
        let last = matrix.split_off(1);
        assert_eq!((matrix.rows(), last.row(0)), (2, &[0.0, 5.0][..]));
        matrix.scale_to_unit();
        assert_eq!(matrix.values(), [0.6, 0.8, 0.0, 0.0]);
        assert_eq!(matrix.as_stored().values(), [0.600_097_66, 0.799_804_7, 0.0, 0.0], "eleven bits are kept");
        assert_eq!((matrix.first(1).rows(), matrix.first(9)), (1, matrix));
    }
}
