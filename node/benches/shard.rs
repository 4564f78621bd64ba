//! What a shard's search costs beside what it is made of: FAISS' scan alone, exact search over what a filter leaves, and itself
//! without writers. Ratios within one run; CPU time of the searching thread, but for the part with writers, where waiting counts.
//!
//! `cargo bench -p node --bench shard`, or some parts of it: `-- faiss targets filters writers search`. `search` does nothing but search, for
//! a profiler. Data: `wordnet-minilm`; as many seeded random vectors where it is absent, on which no index finds much.

#[path = "../tests/shard_support/mod.rs"]
mod shard_support;
#[path = "../tests/shared_data/mod.rs"]
mod shared_data;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cluster_config::collection::{FieldType, UNDECLARED_FIELDS};
use cluster_config::filter::{Condition, FieldValue, Filter, Predicate};
use cluster_config::ids::OperationId;
use cluster_config::operation::Operation;
use cluster_config::search::{SearchKnobs, ShardAnswer, ShardQuery};
use node::shard::{Maintenance, Shard, StorageResources, decide_maintenance};
use node::vector::{Cancel, Generation, IvfIndex};
use shard_support::{LogWriter, Place, chunk, commit, key, query};
use shared_data::{DIM, WordNet, floats};

const QUERIES: usize = 1000;
const ROUNDS: usize = 3;
/// Recall at which a search may take half as long again as FAISS' scan.
const RECALL_BAR: f64 = 0.985;
/// Turns of the comparison with FAISS.
const RATIO_ROUNDS: usize = 5;
/// Of the part that is there to be watched: some ten seconds.
const SEARCH_ROUNDS: usize = 30;
const K: u32 = 10;
/// Rows given the tag, one in so many, and the share that is.
const TAGS: [(&str, usize, &str); 4] =
    [("a", 2, "50 %"), ("b", 20, "5 %"), ("c", 200, "0.5 %"), ("d", 10_000, "0.01 %")];

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_asked = |part: &str| asked.iter().any(|asked| asked == part) || (asked.is_empty() && part != "search");
    let (rows, queries) = vectors();
    for count in [12_500, 50_000] {
        let mut spec = shard_support::spec(DIM as u32);
        spec.fields.insert(UNDECLARED_FIELDS.into(), FieldType::Scan);
        let mut place = Place::new(spec);
        // As a node has it by default; the tests' small one makes names of hits come from the disk.
        place.resources = Arc::new(StorageResources::new(256 << 20, 128 << 20));
        let shard = place.open(1);
        let log = load(&shard, &rows[..count]);
        if is_asked("faiss") {
            against_faiss(&shard, &rows[..count], &queries);
        }
        if is_asked("targets") {
            targets(&shard, &queries);
        }
        if is_asked("filters") {
            filters(&shard, &queries);
        }
        if is_asked("search") {
            println!("  searching");
            let cost = (0..SEARCH_ROUNDS).map(|_| {
                cost_us(&queries, |query| {
                    ask(&shard, query, &SearchKnobs::default(), &Filter::default());
                })
            });
            println!("  default effort: {:.1} us", cost.fold(f64::INFINITY, f64::min));
        }
        if is_asked("writers") && count == 12_500 {
            beside_writers(&shard, log, &rows[count..], &queries);
        }
    }
}

/// CPU nanoseconds of this thread.
fn cpu_ns() -> u64 {
    // The kernel brings the figure up to date when it schedules.
    std::thread::yield_now();
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    stat.split(' ').next().and_then(|first| first.parse().ok()).expect("a number comes first")
}

/// Microseconds of one of what is asked, the best of some rounds over all of it.
fn cost_us<T>(asked: &[T], mut ask: impl FnMut(&T)) -> f64 {
    let round = |_| {
        let started = cpu_ns();
        asked.iter().for_each(&mut ask);
        (cpu_ns() - started) as f64 / 1000.0 / asked.len() as f64
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}

fn ask(shard: &Shard, vector: &[f32], knobs: &SearchKnobs, filter: &Filter) -> ShardAnswer {
    let asked = ShardQuery { knobs: knobs.clone(), filter: filter.clone(), ..query(vector, K) };
    shard.search(&asked, &Cancel::never()).expect("searches")
}

/// Recall against exact search, and the share of codes scanned.
fn quality(shard: &Shard, queries: &[Vec<f32>], knobs: &SearchKnobs, filter: &Filter) -> (f64, f64) {
    let exact = SearchKnobs { exact: true, ..SearchKnobs::default() };
    let (mut found, mut wanted, mut share) = (0, 0, 0.0);
    for vector in queries {
        let (got, best) = (ask(shard, vector, knobs, filter), ask(shard, vector, &exact, filter));
        found += best.hits.iter().filter(|hit| got.hits.iter().any(|other| other.row == hit.row)).count();
        wanted += best.hits.len();
        share += got.codes_scanned as f64 / got.codes_total.max(1) as f64;
    }
    (found as f64 / wanted as f64, share / queries.len() as f64)
}

/// The whole shard search beside FAISS' search of the same index with the same parameters.
fn against_faiss(shard: &Shard, rows: &[Vec<f32>], queries: &[Vec<f32>]) {
    // The shard trains on the same sample, so this is its index again.
    let flat: Vec<f32> = rows.concat();
    let spec = shard.spec();
    let generation = Generation::train(1, spec, flat.clone(), rows.len() as u64, &Cancel::never()).expect("trains");
    let generation = Arc::new(generation);
    let mut reduced = Vec::new();
    generation.reduce(&flat, &mut reduced);
    let labels: Vec<u64> = (0..rows.len() as u64).collect();
    let index = IvfIndex::empty(generation.clone()).expect("clones").with_rows(&labels, &reduced).expect("adds");
    let parameters = generation.parameters();
    println!(
        "{} rows, IVF{},PQ{}x{}fs behind PCA{}, {} bytes a row",
        rows.len(),
        parameters.nlist,
        parameters.m,
        parameters.nbits,
        parameters.reduced_dim,
        index_bytes(&index) / rows.len() as u64,
    );
    let mut reduced_queries = Vec::new();
    queries.iter().for_each(|query| {
        let mut out = Vec::new();
        generation.reduce(query, &mut out);
        reduced_queries.push(out);
    });
    let oversample = spec.index.oversample;
    let candidates = (K as f32 * oversample) as usize;
    let knobs = |nprobe| SearchKnobs { nprobe: Some(nprobe), oversample: Some(oversample), ..Default::default() };
    let recall_of = |nprobe| quality(shard, queries, &knobs(nprobe), &Filter::default());
    let by_rule = parameters.nprobe;
    let enough = (by_rule..parameters.nlist).step_by(4).find(|nprobe| recall_of(*nprobe).0 >= RECALL_BAR);
    for nprobe in [Some(by_rule), enough.filter(|enough| *enough > by_rule)].into_iter().flatten() {
        // By turns, so that what else the machine does meets both.
        let (mut faiss, mut whole) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..RATIO_ROUNDS {
            faiss = faiss.min(cost_us(&reduced_queries, |query| {
                index.scan_alone(query, candidates, nprobe).expect("scans");
            }));
            whole = whole.min(cost_us(queries, |query| {
                ask(shard, query, &knobs(nprobe), &Filter::default());
            }));
        }
        let (recall, share) = recall_of(nprobe);
        println!(
            "  nprobe {nprobe}, {candidates} candidates: recall@10 {recall:.4} at {:.1} % of the codes; faiss alone {faiss:.1} us, shard \
             search {whole:.1} us, ratio {:.2} (bar 1.5 at {RECALL_BAR})",
            100.0 * share,
            whole / faiss,
        );
    }
    let together = [2, 4, 8, 16, 64].map(|size| {
        let asked = queries.iter().map(|vector| ShardQuery { knobs: knobs(by_rule), ..query(vector, K) });
        let asked: Vec<ShardQuery> = asked.collect();
        let portions: Vec<&[ShardQuery]> = asked.chunks_exact(size).collect();
        let cost = cost_us(&portions, |portion| {
            shard.search_all(portion, &Cancel::never()).expect("searches");
        });
        format!("{size}: {:.1} us", cost / size as f64)
    });
    println!("  shard search at nprobe {by_rule}, by queries in one call, each: {}", together.join(", "));
}

fn index_bytes(index: &IvfIndex) -> u64 {
    use node::vector::VectorIndex;
    index.memory_bytes()
}

fn targets(shard: &Shard, queries: &[Vec<f32>]) {
    let (recall, share) = quality(shard, queries, &SearchKnobs::default(), &Filter::default());
    println!("  default effort, as measured on the rows: recall@10 {recall:.4}, {:.1} % of the codes", 100.0 * share);
    for target in [0.90, 0.95, 0.99] {
        let knobs = SearchKnobs { target_recall: Some(target), ..SearchKnobs::default() };
        let (recall, share) = quality(shard, queries, &knobs, &Filter::default());
        let cost = cost_us(queries, |query| {
            ask(shard, query, &knobs, &Filter::default());
        });
        println!("  target_recall {target}: recall@10 {recall:.4}, {:.1} % of the codes, {cost:.1} us", 100.0 * share);
    }
}

fn filters(shard: &Shard, queries: &[Vec<f32>]) {
    let exact = SearchKnobs { exact: true, ..SearchKnobs::default() };
    for (tag, _, share) in TAGS {
        let value = FieldValue::Keyword(tag.into());
        let condition = Condition { field: "tag".into(), predicate: Predicate::Eq(value) };
        let filter = Filter { must: vec![condition], ..Filter::default() };
        let (recall, codes) = quality(shard, queries, &SearchKnobs::default(), &filter);
        let cost = |knobs: &SearchKnobs| {
            cost_us(queries, |query| {
                ask(shard, query, knobs, &filter);
            })
        };
        let (exactly, planned) = (cost(&exact), cost(&SearchKnobs::default()));
        println!(
            "  filter of {share}: recall@10 {recall:.4}, {:.1} % of the codes; exact {exactly:.1} us, planned {planned:.1} us, ratio \
             {:.2} (bar 1.2)",
            100.0 * codes,
            planned / exactly
        );
    }
    let below = Predicate::Range { lower: None, upper: Some((FieldValue::Integer(100), false)) };
    let condition = Condition { field: "number".into(), predicate: below };
    let filter = Filter { must: vec![condition], ..Filter::default() };
    let cost = cost_us(&queries[..10], |query| {
        ask(shard, query, &exact, &filter);
    });
    println!("  condition on an undeclared field: {:.2} us a row", cost / shard.stats().rows_live as f64);
}

/// Latency while another thread writes as a primary would, in portions of 50 rows at 2,500 rows a second, beside latency without.
fn beside_writers(shard: &Shard, mut log: LogWriter, rows: &[Vec<f32>], queries: &[Vec<f32>]) {
    const PORTION: usize = 50;
    const PAUSE: Duration = Duration::from_millis(20);
    let percentiles = || {
        let mut searches: Vec<(u128, u64)> = Vec::new();
        for _ in 0..5 {
            for vector in queries {
                let started = Instant::now();
                let answer = ask(shard, vector, &SearchKnobs::default(), &Filter::default());
                searches.push((started.elapsed().as_micros(), answer.rows_exact));
            }
        }
        searches.sort_unstable();
        let slowest = &searches[searches.len() * 99 / 100..];
        let tail_mean = |some: &[(u128, u64)]| some.iter().map(|(_, tail)| tail).sum::<u64>() / some.len() as u64;
        (searches[searches.len() / 2].0, slowest[0].0, tail_mean(&searches), tail_mean(slowest))
    };
    let idle = percentiles();
    let done = AtomicBool::new(false);
    let mut written = 0;
    let beside = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            node::vector::init_thread();
            while !done.load(Ordering::Relaxed) && written + PORTION <= rows.len() {
                let portion = rows[written..written + PORTION].iter().enumerate();
                let puts = portion.map(|(n, vector)| put(&format!("w{}", written + n), written + n, vector)).collect();
                commit(shard, &[log.entry(puts)]);
                written += PORTION;
                while let Some(work) = decide_maintenance(&shard.maintenance_input(Duration::ZERO)) {
                    maintain(shard, &mut log, work);
                }
                std::thread::sleep(PAUSE);
            }
        });
        let beside = percentiles();
        done.store(true, Ordering::Relaxed);
        writer.join().expect("writes");
        beside
    });
    println!(
        "  {written} rows written meanwhile: p50 {} us became {} us, p99 {} us became {} us, ratio {:.2} (bar 2)",
        idle.0,
        beside.0,
        idle.1,
        beside.1,
        beside.1 as f64 / idle.1 as f64
    );
    println!("  rows compared in the tail, on average {}, by the slowest hundredth {}", beside.2, beside.3);
}

fn load(shard: &Shard, rows: &[Vec<f32>]) -> LogWriter {
    let mut log = LogWriter::new();
    for (portion, vectors) in rows.chunks(250).enumerate() {
        let first = portion * 250;
        let puts = vectors.iter().enumerate();
        let puts = puts.map(|(n, vector)| put(&format!("d{}", first + n), first + n, vector)).collect();
        commit(shard, &[log.entry(puts)]);
    }
    while let Some(work) = decide_maintenance(&shard.maintenance_input(Duration::from_secs(3600))) {
        let started = Instant::now();
        maintain(shard, &mut log, work);
        println!("  {work:?} took {:.2} s", started.elapsed().as_secs_f64());
    }
    log
}

fn maintain(shard: &Shard, log: &mut LogWriter, work: Maintenance) {
    let operations = match work {
        Maintenance::Train => shard.train(&Cancel::never()).expect("trains"),
        Maintenance::IndexUpTo { generation, row_end } => vec![Operation::IndexUpTo { generation, row_end }],
        Maintenance::MeasureEffort => shard.measure_effort(&Cancel::never()).expect("measures").into_iter().collect(),
    };
    for operation in operations {
        commit(shard, &[log.entry_of(OperationId(0), vec![operation])]);
    }
}

fn put(id: &str, number: usize, vector: &[f32]) -> Operation {
    let tags = TAGS.iter().filter(|(_, every, _)| number.is_multiple_of(*every)).map(|(tag, ..)| format!("{tag:?}"));
    let metadata = format!(r#"{{"tag":[{}],"number":{number}}}"#, tags.collect::<Vec<_>>().join(","));
    let chunks = vec![chunk(0, "a gloss of some sixty characters, as WordNet has", &metadata, vector)];
    Operation::PutDocument { key: key(id), title: String::new(), chunks }
}

/// Rows and queries.
fn vectors() -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    if let Some(data) = WordNet::load() {
        return (data.base.chunks_exact(2 * DIM).map(floats).collect(), data.queries);
    }
    println!("random vectors in their place");
    let random = |seed, count| {
        let mut rng = shard_support::rng(seed);
        (0..count).map(|_| shard_support::unit_vector(&mut rng, DIM)).collect()
    };
    (random(1, 50_000), random(2, QUERIES))
}
