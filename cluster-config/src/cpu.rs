//! What this CPU offers to the loops that compare vectors.

/// The instruction sets of interest that this CPU has, joined by `+`, for the line a process logs at its start. Susui is built
/// for `avx2+fma+f16c`; `avx512f` is named because FAISS and OpenBLAS choose their kernels by it.
pub fn simd_level() -> String {
    let sets: [(&str, bool); 5] = [
        ("sse4.2", is_x86_feature_detected!("sse4.2")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
    ];
    let present: Vec<&str> = sets.iter().filter(|(_, present)| *present).map(|(name, _)| *name).collect();
    if present.is_empty() { "none".to_owned() } else { present.join("+") }
}

#[cfg(test)]
mod tests {
    /// A machine without them cannot run FAISS as `.cargo/config.toml` has it built, and `ops/lib.sh` refuses it.
    #[test]
    fn names_what_the_build_needs() {
        let level = super::simd_level();
        for needed in ["avx2", "fma", "f16c"] {
            assert!(level.split('+').any(|set| set == needed), "{level}");
        }
    }
}
