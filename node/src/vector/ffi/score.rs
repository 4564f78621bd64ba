//! [`flat::score_in_lanes`] in wide registers: its sixteen lanes are two of them.

use std::arch::x86_64::{
    __m256, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadu_si128, _mm_movehdup_ps, _mm_movehl_ps, _mm256_add_ps,
    _mm256_castps256_ps128, _mm256_cvtph_ps, _mm256_extractf128_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_setzero_ps,
    _mm256_sub_ps,
};

use cluster_config::collection::Metric;
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::vector::flat::{LANES, score_in_lanes, score_of_distance};

/// Values of a register.
const WIDTH: usize = LANES / 2;

/// [`score_in_lanes`] where the CPU has AVX2 and F16C, as every CPU that may run this program has. The result is the same to the
/// bit: the same products go to the same lanes in the same order, and none is fused with its sum.
///
/// Written out because the compiler does not keep a decoded row in registers: `half`'s conversion goes through memory, which takes
/// longer than the arithmetic.
#[inline]
pub(in crate::vector) fn score_in_wide_lanes(metric: Metric, query: &[f32], row: &[f16]) -> f32 {
    if !is_x86_feature_detected!("avx2") || !is_x86_feature_detected!("f16c") {
        return score_in_lanes(metric, query, row);
    }
    // SAFETY: the CPU has what the function is compiled for.
    unsafe {
        match metric {
            Metric::Cosine | Metric::Dot => sum::<false>(query, row),
            Metric::L2 => score_of_distance(sum::<true>(query, row)),
        }
    }
}

/// The sum of `query * row`, or of `(query - row)²` where `OF_SQUARES`. Shapes: both `[dim]`.
#[target_feature(enable = "avx2,f16c")]
fn sum<const OF_SQUARES: bool>(query: &[f32], row: &[f16]) -> f32 {
    debug_assert_eq!(query.len(), row.len());
    let (query_blocks, query_rest) = query.as_chunks::<LANES>();
    let (row_blocks, row_rest) = row.reinterpret_cast().as_chunks::<LANES>();
    let mut lanes = [_mm256_setzero_ps(); 2];
    for (query, row) in query_blocks.iter().zip(row_blocks) {
        lanes = add_block::<OF_SQUARES>(lanes, query, row);
    }
    if !query_rest.is_empty() {
        let (mut query, mut row) = ([0.0; LANES], [0; LANES]);
        query[..query_rest.len()].copy_from_slice(query_rest);
        row[..row_rest.len()].copy_from_slice(row_rest);
        lanes = add_block::<OF_SQUARES>(lanes, &query, &row);
    }
    fold(lanes)
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn add_block<const OF_SQUARES: bool>(lanes: [__m256; 2], query: &[f32; LANES], row: &[u16; LANES]) -> [__m256; 2] {
    let term = |half: usize| {
        // SAFETY: `half` is 0 or 1, so eight values of each array are there to be read; unaligned loads.
        let (query, row) = unsafe {
            let row = _mm_loadu_si128(row.as_ptr().add(half * WIDTH).cast());
            (_mm256_loadu_ps(query.as_ptr().add(half * WIDTH)), _mm256_cvtph_ps(row))
        };
        if OF_SQUARES {
            let difference = _mm256_sub_ps(query, row);
            _mm256_mul_ps(difference, difference)
        } else {
            _mm256_mul_ps(query, row)
        }
    };
    [_mm256_add_ps(lanes[0], term(0)), _mm256_add_ps(lanes[1], term(1))]
}

/// The second half of the lanes onto the first, and so on until one is left.
#[target_feature(enable = "avx2")]
#[inline]
fn fold([low, high]: [__m256; 2]) -> f32 {
    let eight = _mm256_add_ps(low, high);
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn wide_registers_change_no_bit(pairs in proptest::collection::vec((-9.0f32..9.0, -9.0f32..9.0), 1..300)) {
            let (query, row): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let row: Vec<f16> = row.into_iter().map(f16::from_f32).collect();
            for metric in [Metric::Cosine, Metric::Dot, Metric::L2] {
                let (wide, plain) = (score_in_wide_lanes(metric, &query, &row), score_in_lanes(metric, &query, &row));
                prop_assert_eq!(wide.to_bits(), plain.to_bits(), "{:?}: {} and {}", metric, wide, plain);
            }
        }
    }
}
