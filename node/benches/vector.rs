//! What the parts of a vector search cost, in CPU time of the one thread that does them: wall-clock time would measure
//! whatever else the machine is doing.
//!
//! Data: the first 12,500 vectors of `wordnet-minilm` (one shard of four), or as many seeded random ones of the
//! same shape where that is absent; the figures hardly depend on which. Baseline and machine: DESIGN.md, "Vectors".

#[path = "../tests/shared_data/mod.rs"]
mod shared_data;

use std::hint::black_box;
use std::sync::Arc;

use cluster_config::collection::{CollectionSpec, IndexSpec, Metric};
use cluster_config::search::SearchKnobs;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use node::vector::mapped::encode;
use node::vector::{
    Cancel, FlatIndex, Generation, IvfIndex, MappedVectors, ProbeParams, RowSet, SearchView, VectorIndex, flat,
    search_rows,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shared_data::{DIM, WordNet, floats};

const ROWS: usize = 12_500;

/// CPU nanoseconds of the calling thread, as the kernel counts them.
struct CpuTime;

impl CpuTime {
    fn now() -> u64 {
        // The kernel brings the figure up to date when it schedules.
        std::thread::yield_now();
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
        stat.split(' ').next().and_then(|first| first.parse().ok()).expect("a number comes first")
    }
}

impl Measurement for CpuTime {
    type Intermediate = u64;
    type Value = u64;

    fn start(&self) -> u64 {
        Self::now()
    }

    fn end(&self, started: u64) -> u64 {
        Self::now() - started
    }

    fn add(&self, left: &u64, right: &u64) -> u64 {
        left + right
    }

    fn zero(&self) -> u64 {
        0
    }

    fn to_f64(&self, value: &u64) -> f64 {
        *value as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        // Both are nanoseconds.
        static WALL: WallTime = WallTime;
        WALL.formatter()
    }
}

struct Fixture {
    vectors: MappedVectors,
    full: Vec<f32>,
    queries: Vec<Vec<f32>>,
    _dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let bytes = WordNet::load().map_or_else(random, |data| data.base);
        let (rows, queries) = bytes.split_at(ROWS * DIM * 2);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let vectors = MappedVectors::open(&dir.path().join("vectors"), DIM, 0, 1).expect("opens");
        vectors.append(rows).expect("appends");
        let full = floats(rows);
        let queries = queries.chunks_exact(2 * DIM).take(200).map(floats).collect();
        Self { vectors, full, queries, _dir: dir }
    }

    fn index(&self, nbits: u32, m: u32) -> IvfIndex {
        let full = self.full.clone();
        let generation =
            Arc::new(Generation::train(1, &spec(nbits, m), full, ROWS as u64, &Cancel::never()).expect("trains"));
        let mut reduced = Vec::new();
        generation.reduce(&self.full, &mut reduced);
        let labels: Vec<u64> = (0..ROWS as u64).collect();
        IvfIndex::empty(generation).expect("clones").with_rows(&labels, &reduced).expect("adds")
    }
}

fn spec(nbits: u32, m: u32) -> CollectionSpec {
    let mut spec = CollectionSpec::new("bench", DIM as u32);
    spec.index.nbits = nbits;
    spec.index.m = Some(m);
    spec
}

fn random() -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(1);
    (0..ROWS + 200)
        .flat_map(|_| {
            let vector: Vec<f32> = (0..DIM).map(|_| random.random_range(-1.0..1.0)).collect();
            let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            encode(&vector.iter().map(|x| x / norm).collect::<Vec<_>>())
        })
        .collect()
}

fn exact(c: &mut Criterion<CpuTime>) {
    let fixture = Fixture::new();
    let query = &fixture.queries[0];
    let mut group = c.benchmark_group("exact");
    for metric in [Metric::Cosine, Metric::L2] {
        let mut row = 0;
        group.bench_function(format!("score one row of {DIM}, {metric:?}"), |b| {
            b.iter(|| {
                row = (row + 7) % ROWS as u64;
                black_box(flat::score(metric, query, fixture.vectors.get(row)))
            });
        });
    }
    let flat = FlatIndex::new(&fixture.vectors, Metric::Cosine);
    let params = ProbeParams { nprobe: 1, found_min: 0 };
    group.throughput(Throughput::Elements(ROWS as u64));
    group.bench_function(format!("scan {ROWS} rows"), |b| {
        b.iter(|| black_box(flat.search(query, 10, &params, &RowSet::all(ROWS as u64), &Cancel::never())));
    });
    group.finish();
}

fn index(c: &mut Criterion<CpuTime>) {
    let fixture = Fixture::new();
    let all = RowSet::all(ROWS as u64);
    let tombstones = (0..ROWS as u64).step_by(10).collect();
    let live = RowSet::live(ROWS as u64, &tombstones);
    let mut group = c.benchmark_group("index");
    for (nbits, m) in [(4, 96), (8, 32)] {
        let index = fixture.index(nbits, m);
        let name = format!("IVF{},PQ{m}x{nbits}", index.generation().parameters().nlist);
        println!(
            "{name}: nprobe {}, {} bytes a row",
            index.generation().parameters().nprobe,
            index.memory_bytes() / ROWS as u64
        );
        for nprobe in [1, 56] {
            let params = ProbeParams { nprobe, found_min: 0 };
            let mut queries = fixture.queries.iter().cycle();
            let scanned: u64 = (fixture.queries.iter())
                .map(|query| index.search(query, 100, &params, &all, &Cancel::never()).expect("finds").codes_scanned)
                .sum();
            group.bench_function(format!("{name} probe {nprobe} lists ({} codes)", scanned / 200), |b| {
                b.iter(|| {
                    let query = queries.next().expect("cycles");
                    black_box(index.search(query, 100, &params, &all, &Cancel::never()))
                });
            });
        }
        for (allowed, what) in [(&all, "all rows"), (&live, "a tenth deleted")] {
            let view = SearchView {
                index: Some(&index),
                measured: None,
                indexed_row_end: ROWS as u64,
                vectors: &fixture.vectors,
                row_end: ROWS as u64,
                allowed,
                metric: Metric::Cosine,
            };
            let mut queries = fixture.queries.iter().cycle();
            group.bench_function(format!("{name} whole query, 10 of {what}"), |b| {
                b.iter(|| {
                    let query = queries.next().expect("cycles");
                    let knobs = SearchKnobs::default();
                    black_box(search_rows(&view, &[query], 10, &knobs, &IndexSpec::default(), &Cancel::never()))
                });
            });
        }
        let generation = index.generation().clone();
        let mut reduced = Vec::new();
        generation.reduce(&fixture.full, &mut reduced);
        group.bench_function(format!("{name} reduce one query"), |b| {
            let mut out = Vec::with_capacity(DIM);
            b.iter(|| {
                out.clear();
                generation.reduce(&fixture.queries[0], &mut out);
                black_box(out.len())
            });
        });
        group.sample_size(10);
        let labels: Vec<u64> = (0..ROWS as u64).collect();
        let empty = IvfIndex::empty(generation).expect("clones");
        group.bench_function(format!("{name} with_rows {ROWS}"), |b| {
            b.iter(|| black_box(empty.with_rows(&labels, &reduced)));
        });
        group.bench_function(format!("{name} with_rows 1 more"), |b| {
            b.iter(|| black_box(index.with_rows(&[ROWS as u64], &reduced[..192])));
        });
        group.bench_function(format!("{name} train on {ROWS}"), |b| {
            let spec = spec(nbits, m);
            b.iter(|| black_box(Generation::train(1, &spec, fixture.full.clone(), ROWS as u64, &Cancel::never())));
        });
        group.sample_size(50);
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime).sample_size(50).warm_up_time(std::time::Duration::from_millis(300)).measurement_time(std::time::Duration::from_secs(1));
    targets = exact, index
}
criterion_main!(benches);
