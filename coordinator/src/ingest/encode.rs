//! Vectors as callers give them to vectors as shards store and search them. Pure.

use cluster_config::collection::Metric;
use half::f16;

/// Why a vector is not taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum VectorError {
    /// Another length.
    #[error("the vector has {found} components, the collection has {expected}")]
    Dimension {
        /// As given.
        found: usize,
        /// As the collection says.
        expected: usize,
    },
    /// NaN or infinite.
    #[error("component {position} is not a finite number")]
    NotFinite {
        /// Which.
        position: usize,
    },
    /// Larger than a half float holds.
    #[error("component {position} is above 65504 in size, the largest that is stored")]
    TooLarge {
        /// Which.
        position: usize,
    },
    /// No direction to compare by cosine.
    #[error("the vector is zero and has no direction")]
    Zero,
}

/// Checks a query vector and gives it unit length where the metric is cosine.
pub fn prepare_query(metric: Metric, dim: usize, mut vector: Vec<f32>) -> Result<Vec<f32>, VectorError> {
    check(dim, &vector)?;
    if metric == Metric::Cosine {
        scale_to_unit(&mut vector)?;
    }
    Ok(vector)
}

/// As [`prepare_query`], then as little-endian half floats, `2 * dim` bytes.
pub fn encode_stored(metric: Metric, dim: usize, vector: &[f32]) -> Result<Vec<u8>, VectorError> {
    let vector = prepare_query(metric, dim, vector.to_vec())?;
    if let Some(position) = vector.iter().position(|component| component.abs() > f16::MAX.to_f32()) {
        return Err(VectorError::TooLarge { position });
    }
    Ok(vector.iter().flat_map(|component| f16::from_f32(*component).to_le_bytes()).collect())
}

fn check(dim: usize, vector: &[f32]) -> Result<(), VectorError> {
    if vector.len() != dim {
        return Err(VectorError::Dimension { found: vector.len(), expected: dim });
    }
    match vector.iter().position(|component| !component.is_finite()) {
        Some(position) => Err(VectorError::NotFinite { position }),
        None => Ok(()),
    }
}

/// In double precision: squares of large or tiny components stay within range.
fn scale_to_unit(vector: &mut [f32]) -> Result<(), VectorError> {
    let norm = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if norm == 0.0 {
        return Err(VectorError::Zero);
    }
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_fault_is_named() {
        let cosine = |vector: &[f32]| encode_stored(Metric::Cosine, 2, vector);
        assert_eq!(cosine(&[1.0]), Err(VectorError::Dimension { found: 1, expected: 2 }));
        assert_eq!(cosine(&[1.0, f32::NAN]), Err(VectorError::NotFinite { position: 1 }));
        assert_eq!(cosine(&[f32::INFINITY, 0.0]), Err(VectorError::NotFinite { position: 0 }));
        assert_eq!(cosine(&[0.0, 0.0]), Err(VectorError::Zero));
        assert_eq!(encode_stored(Metric::L2, 1, &[70_000.0]), Err(VectorError::TooLarge { position: 0 }));
        assert!(encode_stored(Metric::L2, 1, &[0.0]).is_ok());
    }

    proptest! {
        #[test]
        fn any_direction_gets_unit_length(vector in proptest::collection::vec(-1e30f32..1e30, 1..20)) {
            prop_assume!(vector.iter().any(|x| *x != 0.0));
            let unit = prepare_query(Metric::Cosine, vector.len(), vector).expect("finite and not zero");
            let norm: f32 = unit.iter().map(|x| x * x).sum::<f32>().sqrt();
            prop_assert!((norm - 1.0).abs() < 1e-3, "{}", norm);
        }
    }
}
