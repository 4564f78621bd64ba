//! The only place that calls FAISS, or anything else that is not Rust. Everything here is a thin, safe handle; decisions are
//! made elsewhere.
//!
//! FAISS reports failures as C++ exceptions, which its C API turns into codes and a thread-local text; here they become
//! [`VectorError::Faiss`]. Its global settings are made once, before the first call. Threads: every call runs on the caller's
//! thread alone (see [`init_thread`]).
//!
//! `faiss-sys` is used directly, because the safe `faiss` crate has no parameters per call, no custom readers and writers and
//! no bitmap selectors.

#![allow(unsafe_code, reason = "calls C; each block says why it is sound")]

mod ivf_pq;
mod score;
mod transfer;

use std::cell::Cell;
use std::ffi::{CStr, c_int};
use std::ptr;
use std::sync::Once;

use faiss_sys as sys;

pub(super) use self::ivf_pq::{Distance, IvfPq};
pub(super) use self::score::score_in_wide_lanes;
pub(super) use self::transfer::WriteFailure;
use super::VectorError;

unsafe extern "C" {
    /// OpenMP: per calling thread.
    fn omp_set_num_threads(count: c_int);
    /// OpenBLAS: for the whole process.
    fn openblas_set_num_threads(count: c_int);
    /// `faiss::precomputed_table_max_bytes`. The C API does not reach it, nor `use_precomputed_table`.
    #[link_name = "_ZN5faiss27precomputed_table_max_bytesE"]
    static mut FAISS_PRECOMPUTED_TABLE_BYTES_MAX: usize;
}

/// Runs before any constructor: those of RocksDB and FAISS are compiled for AVX2 already, and on a lesser CPU the process would die of
/// an illegal instruction before `main` could say why.
extern "C" fn check_cpu_first() {
    if let Err(problem) = super::check_cpu() {
        eprintln!("error: {problem}");
        std::process::exit(1);
    }
}

// SAFETY: the section holds pointers to functions without arguments, which the C runtime calls once, on the main thread, before
// the constructors; the function only asks the CPU and may write a line.
#[used]
#[unsafe(link_section = ".preinit_array")]
static CHECK_CPU_FIRST: extern "C" fn() = check_cpu_first;

/// Keeps OpenMP and OpenBLAS from starting threads of their own on behalf of this thread. Cheap to repeat; every function
/// here that reaches OpenMP or BLAS calls it, and a pool thread may call it early.
pub(super) fn init_thread() {
    static PROCESS: Once = Once::new();
    thread_local!(static DONE: Cell<bool> = const { Cell::new(false) });
    if DONE.get() {
        return;
    }
    PROCESS.call_once(|| {
        // SAFETY: both are set once, before any other call of FAISS (every function here comes through this one), so
        // nothing reads them meanwhile. The static is a plain `size_t` that FAISS defines for being set by its users.
        //
        // With a limit of 0 bytes FAISS never builds the table of 4 * nlist * m * 256 bytes that it otherwise makes for each
        // 8-bit L2 index behind its user's back, at training, loading and in every clone.
        unsafe {
            openblas_set_num_threads(1);
            FAISS_PRECOMPUTED_TABLE_BYTES_MAX = 0;
        }
    });
    // SAFETY: sets a per-thread OpenMP variable, nothing else.
    unsafe { omp_set_num_threads(1) };
    DONE.set(true);
}

/// Turns a return code into a result, with the exception's text.
fn check(code: c_int) -> Result<(), VectorError> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: no arguments; the text belongs to the thread's last exception, which lives until the next failing call.
    let text = unsafe { sys::faiss_get_last_error() };
    if text.is_null() {
        return Err(VectorError::Faiss(format!("error {code}")));
    }
    // SAFETY: not null, and `std::exception::what` gives a terminated string, copied before anything else is called.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    // FAISS says "Error in <function> at <file>:<line>: <reason>"; the reason says enough to a reader of our logs.
    Err(VectorError::Faiss(text.rsplit_once(": Error: ").map_or(text.as_ref(), |(_, reason)| reason).to_string()))
}
/// Principal axes of vectors `[n, dim]`, strongest first: `[dim_out, dim]`, rows of unit length.
///
/// FAISS subtracts the mean of what it is given; the caller decides what that mean is.
pub(super) fn principal_axes(vectors: &[f32], dim: usize, dim_out: usize) -> Result<Vec<f32>, VectorError> {
    struct Pca(*mut sys::FaissPCAMatrix);
    impl Drop for Pca {
        fn drop(&mut self) {
            // SAFETY: made below, owned by this handle alone, not used after.
            unsafe { sys::faiss_PCAMatrix_free(self.0) };
        }
    }

    init_thread();
    let count = vectors.len() / dim;
    let mut pca = ptr::null_mut();
    // SAFETY: `pca` receives a pointer on success only. No whitening, no rotation.
    check(unsafe { sys::faiss_PCAMatrix_new_with(&mut pca, dim as c_int, dim_out as c_int, 0.0, 0) })?;
    let pca = Pca(pca);
    // SAFETY: `vectors` holds `count * dim` floats.
    check(unsafe { sys::faiss_VectorTransform_train(pca.0, count as sys::idx_t, vectors.as_ptr()) })?;

    // The C API shows neither matrix nor bias. The transform is affine, so its values at 0 and at the unit vectors are both.
    let mut points = vec![0.0f32; (dim + 1) * dim];
    for axis in 0..dim {
        points[(axis + 1) * dim + axis] = 1.0;
    }
    let mut images = vec![0.0f32; (dim + 1) * dim_out];
    // SAFETY: trained just above; room for `dim + 1` points in both arrays.
    unsafe {
        sys::faiss_VectorTransform_apply_noalloc(pca.0, (dim + 1) as sys::idx_t, points.as_ptr(), images.as_mut_ptr())
    };
    let (origin, columns) = images.split_at(dim_out);
    let mut axes = vec![0.0f32; dim_out * dim];
    for (column, image) in columns.chunks_exact(dim_out).enumerate() {
        for (axis, value) in image.iter().enumerate() {
            axes[axis * dim + column] = value - origin[axis];
        }
    }
    Ok(axes)
}

/// Inner products of one vector `[dim]` with the rows of a matrix `[n, dim]`, into `out` `[n]`. Each is computed by itself,
/// in FAISS' AVX2 code, so it does not depend on what else is in the matrix.
pub(super) fn inner_products(vector: &[f32], matrix: &[f32], out: &mut [f32]) {
    assert_eq!(vector.len() * out.len(), matrix.len());
    // SAFETY: lengths checked above; `out` is not aliased.
    unsafe {
        sys::faiss_fvec_inner_products_ny(out.as_mut_ptr(), vector.as_ptr(), matrix.as_ptr(), vector.len(), out.len())
    };
}
