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

use std::any::Any;
use std::cell::Cell;
use std::ffi::{CStr, CString, c_int, c_void};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};
use std::sync::Once;

use cluster_config::collection::Metric;
use faiss_sys as sys;
use half::f16;

use super::{VectorError, flat};

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

/// Whether smaller or larger values of the index are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Distance {
    /// Squared Euclidean distance, smaller is better.
    L2,
    /// Inner product, larger is better.
    InnerProduct,
}

/// An owned FAISS inverted-file index over product-quantised codes. Labels are rows.
pub(super) struct IvfPq {
    index: NonNull<sys::FaissIndex>,
    ivf: NonNull<sys::FaissIndexIVF>,
    dim: usize,
    nlist: usize,
}

// SAFETY: the object has no ties to the thread that made it.
unsafe impl Send for IvfPq {}
// SAFETY: `&self` methods call only FAISS functions that leave the index as it is (search with parameters per call, quantiser
// search, list sizes, writing, cloning). What they share beside it are FAISS' global statistics counters, which are plain
// integers that nothing here reads.
unsafe impl Sync for IvfPq {}

impl Drop for IvfPq {
    fn drop(&mut self) {
        // SAFETY: made by FAISS, owned by this handle alone, not used after. Frees the quantiser and lists with it.
        unsafe { sys::faiss_Index_free(self.index.as_ptr()) };
    }
}

impl IvfPq {
    /// An untrained index as FAISS' index factory describes it, such as `IVF256,PQ96x4fs`.
    pub(super) fn new(description: &str, dim: usize, distance: Distance) -> Result<Self, VectorError> {
        init_thread();
        let text = CString::new(description).map_err(|_| VectorError::Faiss("NUL in an index description".into()))?;
        let metric = match distance {
            Distance::L2 => sys::FaissMetricType_METRIC_L2,
            Distance::InnerProduct => sys::FaissMetricType_METRIC_INNER_PRODUCT,
        };
        let mut index = ptr::null_mut();
        // SAFETY: `text` is terminated and outlives the call; `index` receives a pointer on success only.
        check(unsafe { sys::faiss_index_factory(&mut index, dim as c_int, text.as_ptr(), metric) })?;
        Self::adopt(index)
    }

    /// Takes ownership of an index that FAISS made.
    fn adopt(index: *mut sys::FaissIndex) -> Result<Self, VectorError> {
        let index = NonNull::new(index).ok_or_else(|| VectorError::Faiss("no index was made".into()))?;
        // SAFETY: a live index; the cast checks its type and gives null if it is no inverted file.
        let ivf = NonNull::new(unsafe { sys::faiss_IndexIVF_cast(index.as_ptr()) });
        let Some(ivf) = ivf else {
            // SAFETY: owned here, not used after.
            unsafe { sys::faiss_Index_free(index.as_ptr()) };
            return Err(VectorError::Faiss("not an inverted file".into()));
        };
        // SAFETY: getters on a live index.
        let (dim, nlist) = unsafe { (sys::faiss_Index_d(index.as_ptr()), sys::faiss_IndexIVF_nlist(ivf.as_ptr())) };
        Ok(Self { index, ivf, dim: dim as usize, nlist })
    }

    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    pub(super) fn nlist(&self) -> usize {
        self.nlist
    }

    pub(super) fn is_trained(&self) -> bool {
        // SAFETY: getter on a live index.
        unsafe { sys::faiss_Index_is_trained(self.index.as_ptr()) != 0 }
    }

    /// Rows held, as FAISS counts them.
    pub(super) fn len(&self) -> u64 {
        // SAFETY: getter on a live index.
        unsafe { sys::faiss_Index_ntotal(self.index.as_ptr()) as u64 }
    }

    /// Learns centroids and codebooks from vectors `[n, dim]`. Deterministic: FAISS seeds its k-means with a constant.
    pub(super) fn train(&mut self, vectors: &[f32]) -> Result<(), VectorError> {
        init_thread();
        let count = self.count_vectors(vectors)?;
        // SAFETY: `vectors` holds `count * dim` floats; `&mut self` excludes any other use.
        check(unsafe { sys::faiss_Index_train(self.index.as_ptr(), count as sys::idx_t, vectors.as_ptr()) })
    }

    /// Adds vectors `[n, dim]` under the given labels, one call each.
    ///
    /// One at a time, because FAISS takes another path (matrix products, which round differently) from 20 vectors on: so a
    /// vector gets the same list and code however it arrives, and all copies agree.
    pub(super) fn add(&mut self, labels: &[i64], vectors: &[f32]) -> Result<(), VectorError> {
        init_thread();
        if self.count_vectors(vectors)? != labels.len() {
            return Err(VectorError::InvalidArgument(format!("{} labels for other vectors", labels.len())));
        }
        for (label, vector) in labels.iter().zip(vectors.chunks_exact(self.dim)) {
            // SAFETY: one vector of `dim` floats and one label; `&mut self` excludes any other use.
            check(unsafe { sys::faiss_Index_add_with_ids(self.index.as_ptr(), 1, vector.as_ptr(), label) })?;
        }
        Ok(())
    }

    /// A deep copy.
    ///
    /// FAISS copies the fast-scan index memberwise, which leaves its `fine_quantizer` pointing into the original. Only
    /// `reconstruct` and `sa_decode` follow that pointer, and this module calls neither.
    pub(super) fn try_clone(&self) -> Result<Self, VectorError> {
        init_thread();
        let mut copy = ptr::null_mut();
        // SAFETY: reads a live index; `copy` receives a pointer on success only.
        check(unsafe { sys::faiss_clone_index(self.index.as_ptr(), &mut copy) })?;
        Self::adopt(copy)
    }

    /// The best `count` of the codes in the `nprobe` lists nearest to the query, best first: label and distance.
    ///
    /// `selector`: bit `label % 64` of word `label / 64` set where the label may be returned; labels beyond it may not.
    pub(super) fn search(
        &self,
        query: &[f32],
        count: usize,
        nprobe: usize,
        selector: Option<&[u64]>,
    ) -> Result<Vec<(i64, f32)>, VectorError> {
        init_thread();
        self.check_query(query)?;
        // Never 1: FAISS' handler for a single result keeps its 16-bit distance in a signed integer.
        let asked = count.max(2);
        let selector = selector.map(Selector::new).transpose()?;
        let params = Params::new(nprobe.clamp(1, self.nlist), selector.as_ref())?;
        let mut distances = vec![0.0f32; asked];
        let mut labels = vec![-1i64; asked];
        // SAFETY: one query of `dim` floats, `asked` places for results in both arrays, parameters (and the selector and
        // bitmap in them) alive until after the call. The index is not changed: see `Sync`.
        check(unsafe {
            sys::faiss_Index_search_with_params(
                self.index.as_ptr(),
                1,
                query.as_ptr(),
                asked as sys::idx_t,
                params.0.as_ptr().cast(),
                distances.as_mut_ptr(),
                labels.as_mut_ptr(),
            )
        })?;
        // Places without a result have label -1.
        let found = labels.into_iter().zip(distances).take_while(|(label, _)| *label >= 0);
        Ok(found.take(count).collect())
    }

    /// The lists that a search with `nprobe` reads: the same call that FAISS makes inside it.
    pub(super) fn probed_lists(&self, query: &[f32], nprobe: usize) -> Result<Vec<usize>, VectorError> {
        init_thread();
        self.check_query(query)?;
        let nprobe = nprobe.clamp(1, self.nlist);
        let mut distances = vec![0.0f32; nprobe];
        let mut lists = vec![-1i64; nprobe];
        // SAFETY: the quantiser lives in the index, has its dimension, and is only read; room for `nprobe` results.
        check(unsafe {
            let quantiser = sys::faiss_IndexIVF_quantizer(self.ivf.as_ptr());
            sys::faiss_Index_search(
                quantiser,
                1,
                query.as_ptr(),
                nprobe as sys::idx_t,
                distances.as_mut_ptr(),
                lists.as_mut_ptr(),
            )
        })?;
        Ok(lists.into_iter().filter_map(|list| usize::try_from(list).ok()).collect())
    }

    /// Codes in a list.
    pub(super) fn list_len(&self, list: usize) -> usize {
        assert!(list < self.nlist, "list {list} of {}", self.nlist);
        // SAFETY: getter on a live index, list number checked.
        unsafe { sys::faiss_IndexIVF_get_list_size(self.ivf.as_ptr(), list) }
    }

    /// The index in FAISS' own format, in pieces of any size. Errors: the sink's own, or FAISS'.
    pub(super) fn write(&self, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), WriteFailure> {
        init_thread();
        let mut writer = ptr::null_mut();
        // SAFETY: `write_piece` has the signature asked for; `writer` receives a pointer on success only.
        check(unsafe { sys::faiss_CustomIOWriter_new(&mut writer, Some(write_piece)) })?;
        let outcome = Transfer::run(Direction::Write(sink), || {
            // SAFETY: reads a live index; the writer is alive and calls `write_piece` on this thread only.
            check(unsafe { sys::faiss_write_index_custom(self.index.as_ptr(), writer.cast(), 0) })
        });
        // SAFETY: made above, not used after.
        unsafe { sys::faiss_CustomIOWriter_free(writer) };
        outcome
    }

    /// An index from bytes that `write` gave. The source fills as much of the buffer as it can, 0 at its end.
    ///
    /// Trust: FAISS takes lengths in the stream at face value. The caller checks the bytes before they come here.
    pub(super) fn read(source: &mut dyn FnMut(&mut [u8]) -> io::Result<usize>) -> Result<Self, WriteFailure> {
        init_thread();
        let mut reader = ptr::null_mut();
        // SAFETY: `read_piece` has the signature asked for; `reader` receives a pointer on success only.
        check(unsafe { sys::faiss_CustomIOReader_new(&mut reader, Some(read_piece)) })?;
        let mut index = ptr::null_mut();
        let outcome = Transfer::run(Direction::Read(source), || {
            // SAFETY: the reader is alive and calls `read_piece` on this thread only; `index` is set on success only.
            check(unsafe { sys::faiss_read_index_custom(reader.cast(), 0, &mut index) })
        });
        // SAFETY: made above, not used after.
        unsafe { sys::faiss_CustomIOReader_free(reader) };
        outcome?;
        Ok(Self::adopt(index)?)
    }

    fn count_vectors(&self, vectors: &[f32]) -> Result<usize, VectorError> {
        if !vectors.len().is_multiple_of(self.dim) {
            return Err(VectorError::InvalidArgument(format!(
                "{} floats are not vectors of {}",
                vectors.len(),
                self.dim
            )));
        }
        Ok(vectors.len() / self.dim)
    }

    fn check_query(&self, query: &[f32]) -> Result<(), VectorError> {
        if query.len() != self.dim {
            return Err(VectorError::InvalidArgument(format!("{} dimensions instead of {}", query.len(), self.dim)));
        }
        Ok(())
    }
}

/// FAISS' bitmap selector; borrows the bitmap.
struct Selector<'a> {
    selector: NonNull<sys::FaissIDSelectorBitmap>,
    _bitmap: &'a [u64],
}

impl<'a> Selector<'a> {
    fn new(words: &'a [u64]) -> Result<Self, VectorError> {
        let mut selector = ptr::null_mut();
        // SAFETY: the bitmap is `8 * words` bytes long, borrowed for as long as the selector lives, and only read.
        check(unsafe { sys::faiss_IDSelectorBitmap_new(&mut selector, size_of_val(words), words.as_ptr().cast()) })?;
        let selector = NonNull::new(selector).ok_or_else(|| VectorError::Faiss("no selector was made".into()))?;
        Ok(Self { selector, _bitmap: words })
    }
}

impl Drop for Selector<'_> {
    fn drop(&mut self) {
        // SAFETY: made by FAISS, owned by this handle alone, not used after.
        unsafe { sys::faiss_IDSelectorBitmap_free(self.selector.as_ptr()) };
    }
}

/// Parameters of one search. Per call, because `nprobe` as a field of the shared index would be a data race.
struct Params(NonNull<sys::FaissSearchParametersIVF>);

impl Params {
    fn new(nprobe: usize, selector: Option<&Selector<'_>>) -> Result<Self, VectorError> {
        let selector = selector.map_or(ptr::null_mut(), |selector| selector.selector.as_ptr().cast());
        let mut params = ptr::null_mut();
        // SAFETY: the selector (or null) outlives the parameters, which borrow it; `IDSelectorBitmap` is an `IDSelector`
        // by single inheritance, so the cast keeps the address. 0 codes: no limit.
        check(unsafe { sys::faiss_SearchParametersIVF_new_with(&mut params, selector, nprobe, 0) })?;
        NonNull::new(params).map(Self).ok_or_else(|| VectorError::Faiss("no parameters were made".into()))
    }
}

impl Drop for Params {
    fn drop(&mut self) {
        // SAFETY: made by FAISS, owned by this handle alone, not used after. Does not free the selector.
        unsafe { sys::faiss_SearchParametersIVF_free(self.0.as_ptr()) };
    }
}

/// Why a transfer of index bytes ended early.
#[derive(Debug)]
pub(super) enum WriteFailure {
    /// The caller's sink or source failed.
    Io(io::Error),
    /// FAISS failed.
    Vector(VectorError),
}

impl From<VectorError> for WriteFailure {
    fn from(error: VectorError) -> Self {
        Self::Vector(error)
    }
}

enum Direction<'a> {
    Write(&'a mut dyn FnMut(&[u8]) -> io::Result<()>),
    Read(&'a mut dyn FnMut(&mut [u8]) -> io::Result<usize>),
}

/// What the callbacks of the current thread work on: FAISS gives them no context pointer.
struct Transfer<'a> {
    direction: Direction<'a>,
    error: Option<io::Error>,
    panic: Option<Box<dyn Any + Send>>,
}

thread_local! {
    /// The transfer under way on this thread; null while there is none.
    static TRANSFER: Cell<*mut c_void> = const { Cell::new(ptr::null_mut()) };
}

impl Transfer<'_> {
    /// Runs a FAISS call whose callbacks use `direction`.
    fn run(direction: Direction<'_>, call: impl FnOnce() -> Result<(), VectorError>) -> Result<(), WriteFailure> {
        let mut transfer = Transfer { direction, error: None, panic: None };
        // Restored rather than cleared, so that a sink may itself write an index.
        let outer = TRANSFER.replace((&raw mut transfer).cast());
        let outcome = call();
        TRANSFER.set(outer);
        if let Some(panic) = transfer.panic {
            resume_unwind(panic);
        }
        match transfer.error {
            Some(error) => Err(WriteFailure::Io(error)),
            None => Ok(outcome?),
        }
    }

    /// Runs `step` on the transfer of this thread; whether it went well. Panics do not cross into C++.
    fn step(step: impl FnOnce(&mut Transfer<'_>) -> io::Result<()>) -> bool {
        let transfer = TRANSFER.get().cast::<Transfer<'_>>();
        // SAFETY: either null, or set by `run` on this thread to a `Transfer` that is alive until `run` has cleared it and
        // that nothing else touches while the FAISS call in `run` (and so this callback) is under way.
        let Some(transfer) = (unsafe { transfer.as_mut() }) else { return false };
        if transfer.error.is_some() || transfer.panic.is_some() {
            return false;
        }
        match catch_unwind(AssertUnwindSafe(|| step(transfer))) {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                transfer.error = Some(error);
                false
            }
            Err(panic) => {
                transfer.panic = Some(panic);
                false
            }
        }
    }
}

/// FAISS' `fwrite`: gives the number of items written; fewer than asked is an error to FAISS.
unsafe extern "C" fn write_piece(bytes: *const c_void, size: usize, items: usize) -> usize {
    let Some(total) = size.checked_mul(items) else { return 0 };
    if total == 0 {
        return items;
    }
    // SAFETY: FAISS passes `size * items` readable bytes, which live until this returns.
    let piece = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), total) };
    let written = Transfer::step(|transfer| match &mut transfer.direction {
        Direction::Write(sink) => sink(piece),
        Direction::Read(_) => Err(io::Error::other("a write during a read")),
    });
    if written { items } else { 0 }
}

/// FAISS' `fread`: gives the number of items read; fewer than asked is an error to FAISS.
unsafe extern "C" fn read_piece(bytes: *mut c_void, size: usize, items: usize) -> usize {
    let Some(total) = size.checked_mul(items) else { return 0 };
    if total == 0 {
        return items;
    }
    // SAFETY: FAISS passes `size * items` writable bytes of its own (vectors resized, so initialised), not read elsewhere.
    let mut rest = unsafe { std::slice::from_raw_parts_mut(bytes.cast::<u8>(), total) };
    let filled = Transfer::step(|transfer| {
        let Direction::Read(source) = &mut transfer.direction else {
            return Err(io::Error::other("a read during a write"));
        };
        while !rest.is_empty() {
            match source(rest)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => rest = &mut rest[count..],
            }
        }
        Ok(())
    });
    if filled { items } else { 0 }
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

/// [`flat::score_in_lanes`] as compiled for AVX2 and F16C where the CPU has them: Rust code is otherwise compiled for any
/// x86-64. The result is the same to the bit, because nothing is fused or reordered; only the registers are wider.
#[inline]
pub(super) fn score_in_wide_lanes(metric: Metric, query: &[f32], row: &[f16]) -> f32 {
    #[target_feature(enable = "avx2,f16c")]
    fn wide(metric: Metric, query: &[f32], row: &[f16]) -> f32 {
        flat::score_in_lanes(metric, query, row)
    }

    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        // SAFETY: the CPU has what the function is compiled for.
        unsafe { wide(metric, query, row) }
    } else {
        flat::score_in_lanes(metric, query, row)
    }
}
