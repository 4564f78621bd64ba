//! The index as a whole: its bytes, its growth, its use by many threads, and the walk of one query.

use std::io;
use std::sync::Arc;

use cluster_config::collection::{CollectionSpec, IndexSpec, Metric};
use cluster_config::search::SearchKnobs;
use half::f16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use roaring::RoaringTreemap;

use super::generation::Generation;
use super::mapped::encode;
use super::pieces::tests::source_of;
use super::*;

const DIM: usize = 32;
const ROWS: usize = 2000;

/// Clustered vectors `[n, dim]`, so that lists differ in length and some queries find near and far rows.
fn vectors(seed: u64, count: usize) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    let centres: Vec<f32> = (0..20 * DIM).map(|_| random.random_range(-1.0..1.0)).collect();
    let mut all = Vec::new();
    for _ in 0..count {
        let centre = random.random_range(0..20) * DIM;
        all.extend(
            (0..DIM).map(|axis| f16::from_f32(centres[centre + axis] + random.random_range(-0.3..0.3)).to_f32()),
        );
    }
    all
}

/// Vectors from the same clusters as `vectors(1, ROWS)`, but none of them.
fn unseen(count: usize) -> Vec<f32> {
    vectors(1, ROWS + count).split_off(ROWS * DIM)
}

fn unit(vectors: &[f32]) -> Vec<f32> {
    let normalise = |vector: &[f32]| {
        let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.iter().map(|x| f16::from_f32(x / norm).to_f32()).collect::<Vec<_>>()
    };
    vectors.chunks(DIM).flat_map(normalise).collect()
}

fn spec(metric: Metric, nbits: u32) -> CollectionSpec {
    let mut spec = CollectionSpec::new("c", DIM as u32);
    spec.metric = metric;
    spec.pca_dim = Some(16);
    spec.index.nbits = nbits;
    spec
}

fn trained(metric: Metric, nbits: u32) -> Arc<Generation> {
    let sample = vectors(1, ROWS);
    Arc::new(Generation::train(7, &spec(metric, nbits), sample, ROWS as u64, &Cancel::never()).unwrap())
}

fn reduced(generation: &Generation, full: &[f32]) -> Vec<f32> {
    let mut out = Vec::new();
    generation.reduce(full, &mut out);
    out
}

fn grown(generation: &Arc<Generation>, full: &[f32]) -> IvfIndex {
    let labels: Vec<u64> = (0..(full.len() / DIM) as u64).collect();
    IvfIndex::empty(generation.clone()).unwrap().with_rows(&labels, &reduced(generation, full)).unwrap()
}

fn bytes_of(index: &IvfIndex) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut sink = |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    index.write_to(&mut sink).unwrap();
    bytes
}

fn answers(index: &IvfIndex) -> Vec<Candidates> {
    let params = ProbeParams { nprobe: 5, found_min: 0 };
    let everything = RowSet::all(u64::MAX);
    let queries = vectors(2, 30);
    queries.chunks(DIM).map(|q| index.search(q, 25, &params, &everything, &Cancel::never()).unwrap()).collect()
}

#[test]
fn a_generation_survives_its_bytes_and_no_damage_to_them() {
    for (metric, nbits) in [(Metric::Cosine, 4), (Metric::L2, 8), (Metric::Dot, 4)] {
        let generation = trained(metric, nbits);
        let bytes = generation.to_bytes().unwrap();
        let again = Arc::new(Generation::from_bytes(&bytes).unwrap());
        assert_eq!(again.to_bytes().unwrap(), bytes);
        assert_eq!(again.parameters(), generation.parameters());
        assert_eq!(again.calibration(), generation.calibration());
        assert_eq!(again.number(), 7);
        let full = vectors(1, ROWS);
        assert_eq!(reduced(&again, &full), reduced(&generation, &full));
        assert_eq!(answers(&grown(&again, &full)), answers(&grown(&generation, &full)));

        for cut in [0, 5, 23, 24, bytes.len() / 2, bytes.len() - 1] {
            assert!(matches!(Generation::from_bytes(&bytes[..cut]), Err(VectorError::Corrupt { .. })), "cut at {cut}");
        }
        for at in (0..24).chain((24..bytes.len()).step_by(bytes.len() / 50)) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x20;
            assert!(matches!(Generation::from_bytes(&damaged), Err(VectorError::Corrupt { .. })), "flipped at {at}");
        }
    }
}

#[test]
fn training_is_deterministic_and_refuses_what_it_cannot_learn_from() {
    let sample = vectors(1, ROWS);
    let train =
        |sample: &[f32], spec: &CollectionSpec| Generation::train(1, spec, sample.to_vec(), 2000, &Cancel::never());
    let spec4 = spec(Metric::Cosine, 4);
    assert_eq!(
        train(&sample, &spec4).unwrap().to_bytes().unwrap(),
        train(&sample, &spec4).unwrap().to_bytes().unwrap()
    );

    let refused = |outcome: Result<Generation, VectorError>| matches!(outcome, Err(VectorError::InvalidArgument(_)));
    assert!(refused(train(&sample[..DIM * 10], &spec4)), "too few");
    assert!(refused(train(&sample[..DIM * 200], &spec(Metric::Cosine, 8))), "too few for 256 codes");
    assert!(refused(train(&sample[..DIM * 100 + 1], &spec4)), "not whole vectors");
    let mut broken = sample.clone();
    broken[77] = f32::NAN;
    assert!(refused(train(&broken, &spec4)));
    let mut odd = spec4.clone();
    odd.index.m = Some(7);
    assert!(refused(train(&sample, &odd)));
    let cancel = Cancel::never();
    cancel.cancel();
    assert!(matches!(Generation::train(1, &spec4, sample, 2000, &cancel), Err(VectorError::Cancelled)));
}

#[test]
fn narrow_and_constant_vectors_can_be_indexed() {
    for dim in [1u32, 2, 3, 5] {
        let mut spec = CollectionSpec::new("c", dim);
        spec.metric = Metric::L2;
        let sample: Vec<f32> = (0..1000 * dim).map(|i| ((i * 7919) % 1000) as f32 / 100.0).collect();
        let generation = Arc::new(Generation::train(1, &spec, sample.clone(), 1000, &Cancel::never()).unwrap());
        let labels: Vec<u64> = (0..1000).collect();
        let index =
            IvfIndex::empty(generation.clone()).unwrap().with_rows(&labels, &reduced(&generation, &sample)).unwrap();
        let params = ProbeParams { nprobe: generation.parameters().nlist, found_min: 0 };
        let query = &sample[..dim as usize];
        let found = index.search(query, 50, &params, &RowSet::all(1000), &Cancel::never()).unwrap();
        assert_eq!(found.best.len(), 50, "dim {dim}");
    }
    // All rows alike: every list but one is empty, and everything ties.
    let spec = spec(Metric::Cosine, 4);
    let sample = vec![0.125f32; 500 * DIM];
    let generation = Arc::new(Generation::train(1, &spec, sample.clone(), 500, &Cancel::never()).unwrap());
    let labels: Vec<u64> = (0..500).collect();
    let index =
        IvfIndex::empty(generation.clone()).unwrap().with_rows(&labels, &reduced(&generation, &sample)).unwrap();
    let params = ProbeParams { nprobe: 1, found_min: 10 };
    let found = index.search(&sample[..DIM], 10, &params, &RowSet::all(500), &Cancel::never()).unwrap();
    assert_eq!(found.best.len(), 10);
}

#[test]
fn growing_in_steps_at_once_or_from_bytes_gives_the_same_index() {
    for nbits in [4, 8] {
        let generation = trained(Metric::Cosine, nbits);
        let full = vectors(1, ROWS);
        let at_once = grown(&generation, &full);
        let rows = reduced(&generation, &full);
        let mut in_steps = IvfIndex::empty(generation.clone()).unwrap();
        let mut next = 0;
        for step in [1usize, 19, 20, 21, 300, 1, 1000].into_iter().cycle() {
            let end = (next + step).min(ROWS);
            let labels: Vec<u64> = (next as u64..end as u64).collect();
            let before = answers(&in_steps);
            let larger = in_steps.with_rows(&labels, &rows[next * 16..end * 16]).unwrap();
            assert_eq!(answers(&in_steps), before, "the old index stays as it was");
            if next == 341 {
                // As a restart in the middle of growing does.
                let bytes = bytes_of(&larger);
                in_steps = IvfIndex::read_from(generation.clone(), &mut source_of(&bytes, 1 << 16)).unwrap();
            } else {
                in_steps = larger;
            }
            next = end;
            if next == ROWS {
                break;
            }
        }
        assert_eq!(in_steps.len(), ROWS as u64);
        assert_eq!(answers(&in_steps), answers(&at_once));
        assert_eq!(bytes_of(&in_steps), bytes_of(&at_once));
        let again = IvfIndex::read_from(generation, &mut source_of(&bytes_of(&at_once), 1000)).unwrap();
        assert_eq!(
            (again.len(), again.row_end(), again.memory_bytes()),
            (ROWS as u64, ROWS as u64, at_once.memory_bytes())
        );
        assert_eq!(answers(&again), answers(&at_once));
    }
}

#[test]
fn damaged_foreign_and_cut_index_bytes_are_refused() {
    let generation = trained(Metric::Cosine, 4);
    let index = grown(&generation, &vectors(1, ROWS));
    let bytes = bytes_of(&index);
    let read = |bytes: &[u8]| IvfIndex::read_from(generation.clone(), &mut source_of(bytes, 1 << 20));
    let corrupt = |outcome: Result<IvfIndex, VectorError>| matches!(outcome, Err(VectorError::Corrupt { .. }));
    assert!(read(&bytes).is_ok());
    for at in (0..60).chain((60..bytes.len()).step_by(bytes.len() / 97)) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert!(corrupt(read(&damaged)), "flipped at {at}");
        assert!(corrupt(read(&bytes[..at])), "cut at {at}");
    }
    let other = Generation::train(8, &spec(Metric::Cosine, 4), vectors(1, ROWS), 2000, &Cancel::never()).unwrap();
    assert!(corrupt(IvfIndex::read_from(Arc::new(other), &mut source_of(&bytes, 1000))), "another generation's");

    let mut full = |_: &[u8]| Err(io::ErrorKind::StorageFull.into());
    assert_eq!(index.write_to(&mut full).unwrap_err().kind(), cluster_config::error::ErrorKind::StorageFull);
    let mut broken = |_: &mut [u8]| Err(io::Error::other("broken"));
    assert!(matches!(IvfIndex::read_from(generation.clone(), &mut broken), Err(VectorError::Io { .. })));
}

#[test]
fn a_panic_in_a_sink_reaches_its_owner_and_leaves_the_thread_usable() {
    let generation = trained(Metric::Cosine, 4);
    let index = grown(&generation, &vectors(1, 100));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        generation.empty_index.write(&mut |_| panic!("sink")).map_err(|_| ()).unwrap();
    }));
    assert_eq!(panicked.unwrap_err().downcast_ref::<&str>(), Some(&"sink"));
    assert!(!bytes_of(&index).is_empty());
}

#[test]
fn rows_come_in_order_once_and_finite() {
    let generation = trained(Metric::Cosine, 4);
    let empty = IvfIndex::empty(generation).unwrap();
    let row = [0.5f32; 16];
    let index = empty.with_rows(&[3], &row).unwrap();
    assert_eq!((index.len(), index.row_end()), (1, 4));
    let refused =
        |rows: &[u64], values: &[f32]| matches!(index.with_rows(rows, values), Err(VectorError::InvalidArgument(_)));
    assert!(refused(&[3], &row), "twice");
    assert!(refused(&[2], &row), "before");
    assert!(refused(&[5, 4], &[0.5; 32]), "out of order");
    assert!(refused(&[u64::MAX], &row), "beyond FAISS' labels");
    assert!(refused(&[9], &[0.5; 15]), "another shape");
    let mut broken = row;
    broken[3] = f32::INFINITY;
    assert!(refused(&[9], &broken));
    assert_eq!(index.with_rows(&[9, 11], &[0.5; 32]).unwrap().row_end(), 12);
    assert_eq!(index.with_rows(&[], &[]).unwrap().len(), 1);
}

/// Lists are looked for first and then named to FAISS, which must find what it finds by itself.
#[test]
fn naming_the_lists_changes_nothing() {
    for (metric, nbits) in [(Metric::Cosine, 4), (Metric::Dot, 4), (Metric::L2, 8), (Metric::Dot, 8)] {
        let generation = trained(metric, nbits);
        let index = grown(&generation, &vectors(1, ROWS));
        for (query, nprobe) in vectors(2, 12).chunks(DIM).zip([1, 2, 3, 7].into_iter().cycle()) {
            let params = ProbeParams { nprobe, found_min: 0 };
            let ours = index.search(query, 30, &params, &RowSet::all(u64::MAX), &Cancel::never()).unwrap();
            let mut ours: Vec<i64> = ours.best.iter().map(|candidate| candidate.row as i64).collect();
            let mut faiss = index.scan_alone(&reduced(&generation, query), 30, nprobe).unwrap();
            faiss.retain(|label| *label >= 0);
            ours.sort_unstable();
            faiss.sort_unstable();
            assert!(!faiss.is_empty());
            assert_eq!(ours, faiss, "{metric:?}, {nbits} bits, nprobe {nprobe}");
        }
    }
}

/// FAISS reads a list once for several queries; which of equal codes comes first must not depend on the company. Few
/// centroids make many equal codes.
#[test]
fn a_query_finds_the_same_in_any_company() {
    let queries = vectors(2, 70);
    let queries: Vec<&[f32]> = queries.chunks(DIM).collect();
    let nothing = RoaringTreemap::new();
    let third: RoaringTreemap = (0..ROWS as u64).step_by(3).collect();
    for (metric, nbits, m) in [
        (Metric::Cosine, 4, None),
        (Metric::L2, 4, Some(2)),
        (Metric::L2, 4, Some(1)),
        (Metric::Dot, 4, Some(1)),
        (Metric::Dot, 4, None),
        (Metric::L2, 8, None),
    ] {
        let mut spec = spec(metric, nbits);
        spec.index.m = m;
        let generation = Generation::train(1, &spec, vectors(1, ROWS), ROWS as u64, &Cancel::never()).unwrap();
        let index = grown(&Arc::new(generation), &vectors(1, ROWS));
        for allowed in [RowSet::all(ROWS as u64), RowSet::matching(ROWS as u64, &third, &nothing)] {
            for (count, found_min) in [(3, 0), (30, 0), (400, 400)] {
                let params = ProbeParams { nprobe: 3, found_min };
                let find = |queries: &[&[f32]]| {
                    index.search_unordered(queries, count, &params, &allowed, &Cancel::never()).unwrap()
                };
                let alone: Vec<Candidates> = queries.iter().flat_map(|query| find(&[*query])).collect();
                assert_eq!(find(&queries), alone, "{metric:?}, {nbits} bits, m {m:?}, {count}");
            }
        }
    }

    let copy = Copy::new(Metric::Cosine);
    let everything = RowSet::all(ROWS as u64);
    for exact in [false, true] {
        let knobs = SearchKnobs { exact, ..SearchKnobs::default() };
        let search = |queries: &[&[f32]]| copy.search_all(Metric::Cosine, queries, &everything, &knobs);
        let alone: Vec<Scored> = queries.iter().flat_map(|query| search(&[*query])).collect();
        assert_eq!(search(&queries), alone, "exact: {exact}");
    }
    assert_eq!(copy.search_all(Metric::Cosine, &[], &everything, &SearchKnobs::default()), []);
}

#[test]
fn only_allowed_rows_are_found_and_scarce_ones_are_looked_for_further() {
    for nbits in [4, 8] {
        let generation = trained(Metric::Cosine, nbits);
        let index = grown(&generation, &vectors(1, ROWS));
        let nothing = RoaringTreemap::new();
        let few: RoaringTreemap = (0..ROWS as u64).step_by(190).collect();
        let allowed = RowSet::matching(ROWS as u64, &few, &nothing);
        let query = &vectors(2, 1);
        let search = |found_min| {
            let params = ProbeParams { nprobe: 1, found_min };
            index.search(query, 20, &params, &allowed, &Cancel::never()).unwrap()
        };
        let shallow = search(0);
        assert!(shallow.best.len() < few.len() as usize);
        let deep = search(20);
        let mut rows: Vec<u64> = deep.best.iter().map(|candidate| candidate.row).collect();
        rows.sort_unstable();
        assert_eq!(rows, few.iter().collect::<Vec<_>>(), "all there are");
        assert!(deep.codes_scanned > ROWS as u64, "each widening is counted");

        let params = ProbeParams { nprobe: u32::MAX, found_min: 0 };
        let found = |allowed: &RowSet| index.search(query, ROWS, &params, allowed, &Cancel::never()).unwrap().best;
        assert_eq!(found(&RowSet::all(ROWS as u64)).len(), ROWS);
        let first_half = found(&RowSet::all(1000));
        assert_eq!(first_half.len(), 1000, "rows of the index beyond the set are left out");
        assert!(first_half.iter().all(|candidate| candidate.row < 1000));
        assert_eq!(found(&RowSet::matching(ROWS as u64, &nothing, &nothing)), []);
        assert_eq!(found(&RowSet::all(0)), []);
    }
}

#[test]
fn searches_on_many_threads_agree_with_one() {
    let generation = trained(Metric::Cosine, 4);
    let index = grown(&generation, &vectors(1, ROWS));
    let alone = answers(&index);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                init_thread();
                for _ in 0..10 {
                    assert_eq!(answers(&index), alone);
                }
            });
        }
        // Meanwhile the index grows, as a copy's does under load.
        scope.spawn(|| {
            let more = index.with_rows(&[5000, 5001], &[0.25; 32]).unwrap();
            assert_eq!(more.len(), ROWS as u64 + 2);
        });
    });
}

#[test]
fn an_eight_bit_index_has_no_hidden_table() {
    // With FAISS' table, the bytes would be the same but each index would hold nlist * m * 1 KiB more. Its absence shows in
    // what FAISS adds up for a clone: allocation before and after, far below one table's 4 MiB.
    let mut spec = spec(Metric::L2, 8);
    spec.index.nlist = Some(256);
    spec.index.m = Some(16);
    spec.index.nprobe = Some(4);
    let sample = vectors(3, 10_800);
    let generation = Arc::new(Generation::train(1, &spec, sample.clone(), 10_800, &Cancel::never()).unwrap());
    assert_eq!(generation.parameters().nlist, 256);
    let table = 256 * 16 * 256 * 4;
    let before = resident_bytes();
    let copies: Vec<IvfIndex> = (0..8).map(|_| IvfIndex::empty(generation.clone()).unwrap()).collect();
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < table, "{} indexes took {grown} bytes, one table is {table}", copies.len());
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// A copy with 1500 indexed rows and a tail of 500.
struct Copy {
    vectors: MappedVectors,
    index: IvfIndex,
    full: Vec<f32>,
    _dir: tempfile::TempDir,
}

impl Copy {
    fn new(metric: Metric) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let full = if metric == Metric::Cosine { unit(&vectors(1, ROWS)) } else { vectors(1, ROWS) };
        let mapped = MappedVectors::open(&dir.path().join("v"), DIM, 0, 1).unwrap();
        mapped.append(&encode(&full)).unwrap();
        let generation = Generation::train(1, &spec(metric, 4), full.clone(), ROWS as u64, &Cancel::never()).unwrap();
        let index = grown(&Arc::new(generation), &full[..1500 * DIM]);
        Self { vectors: mapped, index, full, _dir: dir }
    }

    fn search(&self, metric: Metric, query: &[f32], allowed: &RowSet, knobs: &SearchKnobs) -> Scored {
        self.search_all(metric, &[query], allowed, knobs).remove(0)
    }

    fn search_all(&self, metric: Metric, queries: &[&[f32]], allowed: &RowSet, knobs: &SearchKnobs) -> Vec<Scored> {
        let view = SearchView {
            index: Some(&self.index),
            measured: None,
            indexed_row_end: 1500,
            vectors: &self.vectors,
            row_end: ROWS as u64,
            allowed,
            metric,
        };
        search_rows(&view, queries, 10, knobs, &IndexSpec::default(), &Cancel::never()).unwrap()
    }
}

#[test]
fn a_query_sees_index_and_tail_with_exact_scores() {
    for metric in [Metric::Cosine, Metric::L2, Metric::Dot] {
        let copy = Copy::new(metric);
        let everything = RowSet::all(ROWS as u64);
        let exact = SearchKnobs { exact: true, ..SearchKnobs::default() };
        let (mut from_tail, mut found) = (0, 0);
        let queries = if metric == Metric::Cosine { unit(&unseen(20)) } else { unseen(20) };
        for query in queries.chunks(DIM) {
            let scored = copy.search(metric, query, &everything, &SearchKnobs::default());
            assert!(scored.codes_scanned > 0 && scored.codes_scanned < 1500);
            assert_eq!((scored.codes_total, scored.rows_exact), (1500, 500));
            for (row, score) in &scored.rows {
                assert_eq!(*score, flat::score(metric, query, copy.vectors.get(*row)));
            }
            let reference = copy.search(metric, query, &everything, &exact);
            assert_eq!((reference.codes_scanned, reference.codes_total, reference.rows_exact), (0, 1500, 2000));
            found += reference.rows.iter().filter(|hit| scored.rows.contains(hit)).count();
            from_tail += scored.rows.iter().filter(|(row, _)| *row >= 1500).count();
        }
        assert!(found >= 190, "{metric:?}: {found} of 200");
        assert!(from_tail > 0 && from_tail < 200);
        let itself = &copy.full[1700 * DIM..1701 * DIM];
        if metric == Metric::L2 {
            assert_eq!(copy.search(metric, itself, &everything, &SearchKnobs::default()).rows[0], (1700, 1.0));
        }
    }
}

#[test]
fn the_walk_obeys_filters_bounds_and_cancellation() {
    let copy = Copy::new(Metric::Cosine);
    let query = vectors(5, 1);
    let nothing = RoaringTreemap::new();
    let knobs = SearchKnobs::default();

    let few: RoaringTreemap = [3u64, 70, 1400, 1600].into_iter().collect();
    let scored = copy.search(Metric::Cosine, &query, &RowSet::matching(ROWS as u64, &few, &nothing), &knobs);
    assert_eq!((scored.codes_scanned, scored.rows_exact), (0, 4), "few rows are compared exactly");
    assert_eq!(scored.rows.len(), 4);

    let tombstones: RoaringTreemap = (0..ROWS as u64).filter(|row| row % 3 == 0).collect();
    let scored = copy.search(Metric::Cosine, &query, &RowSet::live(ROWS as u64, &tombstones), &knobs);
    assert!(scored.codes_scanned > 0 && scored.rows.len() == 10);
    assert!(scored.rows.iter().all(|(row, _)| row % 3 != 0));

    let none = copy.search(Metric::Cosine, &query, &RowSet::all(0), &knobs);
    assert_eq!((none.rows, none.rows_exact, none.codes_scanned), (vec![], 0, 0));

    let odd = SearchKnobs { oversample: Some(f32::NAN), target_recall: Some(f32::NAN), nprobe: Some(0), exact: false };
    assert_eq!(copy.search(Metric::Cosine, &query, &RowSet::all(ROWS as u64), &odd).rows.len(), 10);

    let view = SearchView {
        index: Some(&copy.index),
        measured: None,
        indexed_row_end: 1500,
        vectors: &copy.vectors,
        row_end: ROWS as u64,
        allowed: &RowSet::all(ROWS as u64),
        metric: Metric::Cosine,
    };
    let run = |query: &[f32], k, cancel: &Cancel| {
        search_rows(&view, &[query], k, &knobs, &IndexSpec::default(), cancel).map(|mut scored| scored.remove(0))
    };
    assert_eq!(run(&query, 0, &Cancel::never()).unwrap().rows, []);
    assert_eq!(run(&query, usize::MAX, &Cancel::never()).unwrap().rows.len(), ROWS);
    assert!(matches!(run(&query[1..], 10, &Cancel::never()), Err(VectorError::InvalidArgument(_))));
    assert!(matches!(run(&[f32::NAN; DIM], 10, &Cancel::never()), Err(VectorError::InvalidArgument(_))));
    let cancel = Cancel::never();
    cancel.cancel();
    assert!(matches!(run(&query, 10, &cancel), Err(VectorError::Cancelled)));
    let late = Cancel::new(Some(std::time::Instant::now()));
    assert!(matches!(run(&query, 10, &late), Err(VectorError::DeadlineExceeded)));
}

#[test]
fn this_machine_can_run_us() {
    assert_eq!(check_cpu(), Ok(()));
}
