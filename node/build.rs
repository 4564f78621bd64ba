//! Links OpenBLAS by name: `libblas` alone would do for FAISS, but only OpenBLAS has `openblas_set_num_threads`, which
//! keeps its own threads from competing with ours.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-lib=openblas");
}
