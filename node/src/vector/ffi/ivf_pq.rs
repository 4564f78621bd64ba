//! The index itself: an owned handle to FAISS' inverted file, and the parameters of its calls.

use std::ffi::{CString, c_int, c_void};
use std::io;
use std::ptr::{self, NonNull};

use faiss_sys as sys;

use super::transfer::{Direction, Transfer, WriteFailure, read_piece, write_piece};
use super::{check, init_thread};
use crate::vector::VectorError;

/// `search_preassigned` of FAISS' classes: a search of lists that are named. The C API's function of that name takes no parameters;
/// without it a search would have to look for its lists twice to say which they were. Throws for arguments that [`IvfPq::search`] does
/// not give it.
type SearchPreassigned = unsafe extern "C-unwind" fn(
    index: *const sys::FaissIndexIVF,
    count: sys::idx_t,
    queries: *const f32,
    k: sys::idx_t,
    lists: *const sys::idx_t,
    list_distances: *const f32,
    distances: *mut f32,
    labels: *mut sys::idx_t,
    store_pairs: bool,
    params: *const sys::FaissSearchParametersIVF,
    stats: *mut c_void,
);

unsafe extern "C-unwind" {
    /// Of `faiss::IndexIVFFastScan`: 4-bit codes.
    #[link_name = "_ZNK5faiss16IndexIVFFastScan18search_preassignedElPKflPKlS2_PfPlbPKNS_19SearchParametersIVFEPNS_13IndexIVFStatsE"]
    fn search_preassigned_fast_scan(
        index: *const sys::FaissIndexIVF,
        count: sys::idx_t,
        queries: *const f32,
        k: sys::idx_t,
        lists: *const sys::idx_t,
        list_distances: *const f32,
        distances: *mut f32,
        labels: *mut sys::idx_t,
        store_pairs: bool,
        params: *const sys::FaissSearchParametersIVF,
        stats: *mut c_void,
    );
    /// Of `faiss::IndexIVF`, from which that of 8-bit codes inherits it.
    #[link_name = "_ZNK5faiss8IndexIVF18search_preassignedElPKflPKlS2_PfPlbPKNS_19SearchParametersIVFEPNS_13IndexIVFStatsE"]
    fn search_preassigned_plain(
        index: *const sys::FaissIndexIVF,
        count: sys::idx_t,
        queries: *const f32,
        k: sys::idx_t,
        lists: *const sys::idx_t,
        list_distances: *const f32,
        distances: *mut f32,
        labels: *mut sys::idx_t,
        store_pairs: bool,
        params: *const sys::FaissSearchParametersIVF,
        stats: *mut c_void,
    );
    /// The virtual table of `faiss::IndexIVFPQFastScan`: offset to the top, type information, functions.
    #[link_name = "_ZTVN5faiss18IndexIVFPQFastScanE"]
    static FAST_SCAN_TABLE: [usize; 2];
}

/// Whether smaller or larger values of the index are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vector) enum Distance {
    /// Squared Euclidean distance, smaller is better.
    L2,
    /// Inner product, larger is better.
    InnerProduct,
}

/// An owned FAISS inverted-file index over product-quantised codes. Labels are rows.
pub(in crate::vector) struct IvfPq {
    index: NonNull<sys::FaissIndex>,
    ivf: NonNull<sys::FaissIndexIVF>,
    search_preassigned: SearchPreassigned,
    distance: Distance,
    dim: usize,
    nlist: usize,
}

/// What a search of one query found.
pub(in crate::vector) struct Found {
    /// Labels and distances, best first.
    pub(in crate::vector) best: Vec<(i64, f32)>,
    /// The lists that were read.
    pub(in crate::vector) lists: Vec<usize>,
}

// SAFETY: the object has no ties to the thread that made it.
unsafe impl Send for IvfPq {}
// SAFETY: `&self` methods call only FAISS functions that leave the index as it is (search with parameters per call, quantiser
// centroids, list sizes, writing, cloning). What they share beside it are FAISS' global statistics counters, which are plain
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
    pub(in crate::vector) fn new(description: &str, dim: usize, distance: Distance) -> Result<Self, VectorError> {
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
        let (dim, nlist, metric) = unsafe {
            let metric = sys::faiss_Index_metric_type(index.as_ptr());
            (sys::faiss_Index_d(index.as_ptr()), sys::faiss_IndexIVF_nlist(ivf.as_ptr()), metric)
        };
        let distance = match metric {
            sys::FaissMetricType_METRIC_INNER_PRODUCT => Distance::InnerProduct,
            _ => Distance::L2,
        };
        // SAFETY: a C++ object of a class with virtual functions begins with a pointer to the functions in its class' table, which stand
        // behind the table's first two words.
        let is_fast_scan = unsafe {
            let functions: *const usize = index.as_ptr().cast::<*const usize>().read();
            functions == (&raw const FAST_SCAN_TABLE).cast::<usize>().add(2)
        };
        let search_preassigned: SearchPreassigned =
            if is_fast_scan { search_preassigned_fast_scan } else { search_preassigned_plain };
        Ok(Self { index, ivf, search_preassigned, distance, dim: dim as usize, nlist })
    }

    pub(in crate::vector) fn dim(&self) -> usize {
        self.dim
    }

    pub(in crate::vector) fn nlist(&self) -> usize {
        self.nlist
    }

    pub(in crate::vector) fn is_trained(&self) -> bool {
        // SAFETY: getter on a live index.
        unsafe { sys::faiss_Index_is_trained(self.index.as_ptr()) != 0 }
    }

    /// Rows held, as FAISS counts them.
    pub(in crate::vector) fn len(&self) -> u64 {
        // SAFETY: getter on a live index.
        unsafe { sys::faiss_Index_ntotal(self.index.as_ptr()) as u64 }
    }

    /// Learns centroids and codebooks from vectors `[n, dim]`. Deterministic: FAISS seeds its k-means with a constant.
    pub(in crate::vector) fn train(&mut self, vectors: &[f32]) -> Result<(), VectorError> {
        init_thread();
        let count = self.count_vectors(vectors)?;
        // SAFETY: `vectors` holds `count * dim` floats; `&mut self` excludes any other use.
        check(unsafe { sys::faiss_Index_train(self.index.as_ptr(), count as sys::idx_t, vectors.as_ptr()) })
    }

    /// Adds vectors `[n, dim]` under the given labels, one call each.
    ///
    /// One at a time, because FAISS takes another path (matrix products, which round differently) from 20 vectors on: so a
    /// vector gets the same list and code however it arrives, and all copies agree.
    pub(in crate::vector) fn add(&mut self, labels: &[i64], vectors: &[f32]) -> Result<(), VectorError> {
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
    pub(in crate::vector) fn try_clone(&self) -> Result<Self, VectorError> {
        init_thread();
        let mut copy = ptr::null_mut();
        // SAFETY: reads a live index; `copy` receives a pointer on success only.
        check(unsafe { sys::faiss_clone_index(self.index.as_ptr(), &mut copy) })?;
        Self::adopt(copy)
    }

    /// The best `count` of the codes in the `nprobe` lists nearest to each of the queries `[n, dim]`, in one call of FAISS.
    ///
    /// `selector`: bit `label % 64` of word `label / 64` set where the label may be returned; labels beyond it may not.
    pub(in crate::vector) fn search(
        &self,
        queries: &[f32],
        count: usize,
        nprobe: usize,
        selector: Option<&[u64]>,
    ) -> Result<Vec<Found>, VectorError> {
        init_thread();
        let queries_count = self.count_vectors(queries)?;
        let nprobe = nprobe.clamp(1, self.nlist);
        let mut lists = Vec::with_capacity(queries_count * nprobe);
        let mut list_distances = Vec::with_capacity(queries_count * nprobe);
        for query in queries.chunks_exact(self.dim) {
            self.nearest_lists(query, nprobe, &mut lists, &mut list_distances)?;
        }
        // Never 1: FAISS' handler for a single result keeps its 16-bit distance in a signed integer.
        let asked = count.max(2);
        let selector = selector.map(Selector::new).transpose()?;
        let params = Params::new(nprobe, selector.as_ref())?;
        let mut distances = vec![0.0f32; queries_count * asked];
        let mut labels = vec![-1i64; queries_count * asked];
        // SAFETY: called on an object of its class; `queries_count` queries of `dim` floats, for each as many lists and distances as the
        // parameters say and `asked` places for results in both arrays; all of it, and the selector and bitmap in the parameters, alive
        // until after the call. The index is not changed: see `Sync`. No statistics of our own.
        unsafe {
            (self.search_preassigned)(
                self.ivf.as_ptr(),
                queries_count as sys::idx_t,
                queries.as_ptr(),
                asked as sys::idx_t,
                lists.as_ptr(),
                list_distances.as_ptr(),
                distances.as_mut_ptr(),
                labels.as_mut_ptr(),
                false,
                params.0.as_ptr(),
                ptr::null_mut(),
            );
        }
        let results = labels.chunks_exact(asked).zip(distances.chunks_exact(asked));
        let found = results.zip(lists.chunks_exact(nprobe)).map(|((labels, distances), lists)| {
            // Places without a result have label -1.
            let best = labels.iter().copied().zip(distances.iter().copied()).take_while(|(label, _)| *label >= 0);
            Found { best: best.take(count).collect(), lists: lists.iter().map(|list| *list as usize).collect() }
        });
        Ok(found.collect())
    }

    /// FAISS' own search of queries `[n, dim]` in one call, finding the lists included, without a selector. Gives the labels found, `count` a query (but at
    /// least two), best first, -1 in places without a result, and their distances.
    pub(in crate::vector) fn search_unaided(
        &self,
        queries: &[f32],
        count: usize,
        nprobe: usize,
    ) -> Result<(Vec<i64>, Vec<f32>), VectorError> {
        init_thread();
        let queries_count = self.count_vectors(queries)?;
        let asked = count.max(2);
        let params = Params::new(nprobe.clamp(1, self.nlist), None)?;
        let mut distances = vec![0.0f32; queries_count * asked];
        let mut labels = vec![-1i64; queries_count * asked];
        // SAFETY: `queries_count` queries of `dim` floats, `asked` places for the results of each in both arrays, parameters alive
        // until after the call. The index is not changed: see `Sync`.
        check(unsafe {
            sys::faiss_Index_search_with_params(
                self.index.as_ptr(),
                queries_count as sys::idx_t,
                queries.as_ptr(),
                asked as sys::idx_t,
                params.0.as_ptr().cast(),
                distances.as_mut_ptr(),
                labels.as_mut_ptr(),
            )
        })?;
        Ok((labels, distances))
    }

    /// Appends the `nprobe` lists nearest to a query, nearest first, equal ones by number, and their distances: what FAISS finds itself
    /// where it is not given them. Its heap of results takes as long as all the distances do where a fifth of the lists are probed.
    fn nearest_lists(
        &self,
        query: &[f32],
        nprobe: usize,
        lists: &mut Vec<i64>,
        list_distances: &mut Vec<f32>,
    ) -> Result<(), VectorError> {
        let distances = self.list_distances(query)?;
        // A list's number below what its distance is ordered by.
        let key = |(list, distance): (u64, &f32)| match self.distance {
            Distance::L2 => u64::from(ascending_bits(*distance)) << u32::BITS | list,
            Distance::InnerProduct => u64::from(ascending_bits(-*distance)) << u32::BITS | list,
        };
        let mut keys: Vec<u64> = (0..).zip(&distances).map(key).collect();
        if nprobe < keys.len() {
            keys.select_nth_unstable(nprobe);
            keys.truncate(nprobe);
        }
        keys.sort_unstable();
        let nearest = keys.into_iter().map(|key| i64::from(key as u32));
        lists.extend(nearest.clone());
        list_distances.extend(nearest.map(|list| distances[list as usize]));
        Ok(())
    }

    /// Distances (or inner products) of a query to the centroids of all lists, `[nlist]`.
    fn list_distances(&self, query: &[f32]) -> Result<Vec<f32>, VectorError> {
        let (mut centroids, mut floats) = (ptr::null_mut(), 0);
        // SAFETY: the quantiser lives in the index; the cast checks that it is a flat one, which tells where its vectors are.
        unsafe {
            let quantiser = sys::faiss_IndexFlat_cast(sys::faiss_IndexIVF_quantizer(self.ivf.as_ptr()));
            if !quantiser.is_null() {
                sys::faiss_IndexFlat_xb(quantiser, &mut centroids, &mut floats);
            }
        }
        if centroids.is_null() || floats != self.nlist * self.dim {
            return Err(VectorError::Faiss(format!("{floats} floats of centroids for {} lists", self.nlist)));
        }
        let mut distances = vec![0.0f32; self.nlist];
        let compute = match self.distance {
            Distance::L2 => sys::faiss_fvec_L2sqr_ny,
            Distance::InnerProduct => sys::faiss_fvec_inner_products_ny,
        };
        // SAFETY: a query of `dim` floats, `nlist` centroids of as many, which stay as they are while `self` is borrowed, and room for
        // `nlist` results.
        unsafe { compute(distances.as_mut_ptr(), query.as_ptr(), centroids, self.dim, self.nlist) };
        Ok(distances)
    }

    /// Codes in a list.
    pub(in crate::vector) fn list_len(&self, list: usize) -> usize {
        assert!(list < self.nlist, "list {list} of {}", self.nlist);
        // SAFETY: getter on a live index, list number checked.
        unsafe { sys::faiss_IndexIVF_get_list_size(self.ivf.as_ptr(), list) }
    }

    /// The index in FAISS' own format, in pieces of any size. Errors: the sink's own, or FAISS'.
    pub(in crate::vector) fn write(&self, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), WriteFailure> {
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
    pub(in crate::vector) fn read(
        source: &mut dyn FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Result<Self, WriteFailure> {
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
}

/// Bits that ascend as the numbers do.
fn ascending_bits(value: f32) -> u32 {
    const SIGN: u32 = 1 << 31;
    let bits = value.to_bits();
    if bits & SIGN == 0 { bits | SIGN } else { !bits }
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
