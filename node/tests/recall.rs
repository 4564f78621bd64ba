//! Recall of the approximate index against exact search, printed beside its floor, and the share of codes it scanned.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod shared_data;

use std::sync::Arc;
use std::time::Instant;

use cluster_config::collection::{CollectionSpec, Metric};
use cluster_config::search::SearchKnobs;
use node::vector::mapped::encode;
use node::vector::{
    Calibration, Cancel, FlatIndex, Generation, IvfIndex, MappedVectors, ProbeParams, RowSet, Scored, SearchView,
    VectorIndex, flat, measure_effort, search_rows,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use roaring::RoaringTreemap;
use shared_data::WordNet;

const K: usize = 10;

/// One shard as the node would hold it: vectors, a generation trained on them, and an index of all rows.
struct Shard {
    vectors: MappedVectors,
    index: IvfIndex,
    measured: Option<Calibration>,
    spec: CollectionSpec,
    _dir: tempfile::TempDir,
}

struct Measured {
    recall: f64,
    codes_share: f64,
}

impl Shard {
    /// From half floats `[n][dim]`, little-endian.
    fn build(spec: &CollectionSpec, rows: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vectors = MappedVectors::open(&dir.path().join("vectors"), spec.dim as usize, 0, 1).unwrap();
        vectors.append(rows).unwrap();
        let full: Vec<f32> = (0..vectors.len()).flat_map(|row| vectors.get(row).iter().map(|x| x.to_f32())).collect();
        let sample = full.clone();
        let started = Instant::now();
        let generation = Arc::new(Generation::train(1, spec, sample, vectors.len(), &Cancel::never()).unwrap());
        let trained = started.elapsed();
        let started = Instant::now();
        let mut reduced = Vec::new();
        generation.reduce(&full, &mut reduced);
        let reduced_in = started.elapsed();
        let labels: Vec<u64> = (0..vectors.len()).collect();
        let started = Instant::now();
        let index = IvfIndex::empty(generation.clone()).unwrap().with_rows(&labels, &reduced).unwrap();
        println!(
            "{:?}, trained in {trained:.1?}, reduced in {reduced_in:.1?}, indexed in {:.1?}, {} bytes a row",
            generation.parameters(),
            started.elapsed(),
            index.memory_bytes() / index.len()
        );
        Self { vectors, index, measured: None, spec: spec.clone(), _dir: dir }
    }

    /// With efforts measured on its rows, as in idle time.
    fn measured(mut self) -> Self {
        let all = RowSet::all(self.vectors.len());
        let started = Instant::now();
        self.measured = Some(measure_effort(&self.index, &self.vectors, &self.spec, &all, &Cancel::never()).unwrap());
        println!("efforts measured in {:.1?}", started.elapsed());
        self
    }

    fn search(&self, query: &[f32], knobs: &SearchKnobs, allowed: &RowSet) -> Scored {
        let view = SearchView {
            index: Some(&self.index),
            measured: self.measured.as_ref(),
            indexed_row_end: self.vectors.len(),
            vectors: &self.vectors,
            row_end: self.vectors.len(),
            allowed,
            metric: self.spec.metric,
        };
        search_rows(&view, &[query], K, knobs, &self.spec.index, &Cancel::never()).unwrap().remove(0)
    }

    fn exact(&self, query: &[f32], allowed: &RowSet) -> Vec<u64> {
        let params = ProbeParams { nprobe: 1, found_min: 0 };
        let flat = FlatIndex::new(&self.vectors, self.spec.metric);
        let found = flat.search(query, K, &params, allowed, &Cancel::never()).unwrap();
        found.best.into_iter().map(|candidate| candidate.row).collect()
    }

    /// Recall of one shard against exact search over it.
    fn measure(&self, queries: &[Vec<f32>], knobs: &SearchKnobs, allowed: &RowSet) -> Measured {
        let (mut found, mut wanted, mut scanned) = (0, 0, 0.0);
        for query in queries {
            let scored = self.search(query, knobs, allowed);
            let exact = self.exact(query, allowed);
            found += exact.iter().filter(|row| scored.rows.iter().any(|(hit, _)| hit == *row)).count();
            wanted += exact.len();
            scanned += scored.codes_scanned as f64 / self.index.len() as f64;
        }
        Measured { recall: found as f64 / wanted as f64, codes_share: scanned / queries.len() as f64 }
    }
}

/// Vectors with a few hidden causes: points of a 10-dimensional space bent into `dim` dimensions, so that neither PCA nor
/// lists have it too easy, and no download is needed.
fn latent_vectors(seed: u64, count: usize, dim: usize) -> Vec<Vec<f32>> {
    const CAUSES: usize = 10;
    let mut shape = StdRng::seed_from_u64(1);
    let mix: Vec<f32> = (0..dim * CAUSES).map(|_| shape.random_range(-1.0..1.0)).collect();
    let pitch: Vec<f32> = (0..dim).map(|_| shape.random_range(0.3..1.5)).collect();
    let mut random = StdRng::seed_from_u64(seed);
    let bend = |causes: &[f32], axis: usize| {
        let sum: f32 = causes.iter().zip(&mix[axis * CAUSES..]).map(|(cause, weight)| cause * weight).sum();
        (sum * pitch[axis]).sin()
    };
    (0..count)
        .map(|_| {
            let causes: Vec<f32> = (0..CAUSES).map(|_| random.random_range(-1.0..1.0)).collect();
            (0..dim).map(|axis| bend(&causes, axis)).collect()
        })
        .collect()
}

fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|x| *x /= norm);
    vector
}

fn synthetic(metric: Metric, nbits: u32, rows: usize) -> (Shard, Vec<Vec<f32>>) {
    let mut spec = CollectionSpec::new("synthetic", 96);
    spec.shard_count = 1;
    spec.metric = metric;
    spec.index.nbits = nbits;
    if nbits == 8 {
        spec.index.m = Some(16);
    }
    let shaped = |vectors: Vec<Vec<f32>>| -> Vec<Vec<f32>> {
        if metric == Metric::Cosine { vectors.into_iter().map(unit).collect() } else { vectors }
    };
    let bytes: Vec<u8> = shaped(latent_vectors(2, rows, 96)).iter().flat_map(|vector| encode(vector)).collect();
    (Shard::build(&spec, &bytes), shaped(latent_vectors(3, 200, 96)))
}

#[test]
fn synthetic_recall_of_every_metric_and_code_width() {
    // Tables of 8-bit codes are dear: fewer rows are compared exactly by default.
    let floors = [
        (Metric::Cosine, 4, 6000, 0.97),
        (Metric::L2, 4, 6000, 0.97),
        (Metric::Dot, 4, 6000, 0.97),
        (Metric::Cosine, 8, 12_000, 0.97),
        (Metric::Dot, 8, 12_000, 0.97),
    ];
    for (metric, nbits, rows, floor) in floors {
        let (shard, queries) = synthetic(metric, nbits, rows);
        let measured = shard.measure(&queries, &SearchKnobs::default(), &RowSet::all(rows as u64));
        println!(
            "synthetic {metric:?} {nbits}-bit: recall@10 {:.4} (floor {floor}), {:.1} % of codes scanned (at most 30 %)",
            measured.recall,
            100.0 * measured.codes_share
        );
        assert!(measured.recall >= floor);
        assert!(measured.codes_share <= 0.30 && measured.codes_share > 0.0);
    }
}

#[test]
fn recall_grows_with_effort_and_exact_is_exact() {
    let (shard, queries) = synthetic(Metric::Cosine, 4, 6000);
    let all = RowSet::all(6000);
    let knobs =
        |nprobe, oversample| SearchKnobs { nprobe: Some(nprobe), oversample: Some(oversample), ..Default::default() };
    let mut last = Measured { recall: 0.0, codes_share: 0.0 };
    for nprobe in [1, 2, 4, 16, 64] {
        let measured = shard.measure(&queries, &knobs(nprobe, 10.0), &all);
        println!("nprobe {nprobe}: recall {:.4}, codes {:.3}", measured.recall, measured.codes_share);
        assert!(measured.recall >= last.recall && measured.codes_share > last.codes_share, "nprobe {nprobe}");
        last = measured;
    }
    let mut recall = 0.0;
    for oversample in [1.0, 3.0, 10.0, 50.0] {
        let measured = shard.measure(&queries, &knobs(32, oversample), &all);
        println!("oversample {oversample}: recall {:.4}", measured.recall);
        assert!(measured.recall >= recall, "oversample {oversample}");
        recall = measured.recall;
    }
    let exact = SearchKnobs { exact: true, ..Default::default() };
    let measured = shard.measure(&queries, &exact, &all);
    assert_eq!((measured.recall, measured.codes_share), (1.0, 0.0));
}

#[test]
fn codes_scanned_are_the_lengths_of_the_lists_probed() {
    let (shard, queries) = synthetic(Metric::Cosine, 4, 6000);
    let nlist = shard.index.generation().parameters().nlist;
    let scanned = |query: &[f32], nprobe: u32| {
        let params = ProbeParams { nprobe, found_min: 0 };
        shard.index.search(query, 20, &params, &RowSet::all(6000), &Cancel::never()).unwrap().codes_scanned
    };
    for query in &queries[..20] {
        assert_eq!(scanned(query, nlist), 6000, "all lists are all codes");
        assert_eq!(scanned(query, u32::MAX), 6000);
        let by_step: Vec<u64> = (1..=nlist).map(|nprobe| scanned(query, nprobe)).collect();
        assert!(by_step.is_sorted());
    }
}

#[test]
fn target_recall_is_reached_and_costs_no_more_than_it_must() {
    let (shard, queries) = synthetic(Metric::Cosine, 4, 6000);
    let shard = shard.measured();
    let all = RowSet::all(6000);
    let mut codes_share = 0.0;
    for target in [0.8, 0.9, 0.95, 0.99] {
        let knobs = SearchKnobs { target_recall: Some(target), ..Default::default() };
        let measured = shard.measure(&queries, &knobs, &all);
        println!("target {target}: recall {:.4}, codes {:.3}", measured.recall, measured.codes_share);
        // Measured on other queries than these: 0.02 is three standard errors of the 200 here.
        assert!(measured.recall >= f64::from(target) - 0.02);
        codes_share = measured.codes_share;
    }
    assert!(codes_share <= 0.6, "0.99 is reached without scanning nearly everything");
    let knobs = SearchKnobs { target_recall: Some(1.0), ..Default::default() };
    assert!(shard.measure(&queries, &knobs, &all).recall >= 0.99);
}

#[test]
fn filters_keep_the_recall_whatever_share_they_leave() {
    let rows = 6000;
    let (shard, queries) = synthetic(Metric::Cosine, 4, rows);
    let shard = shard.measured();
    let mut random = StdRng::seed_from_u64(9);
    let nothing = RoaringTreemap::new();
    for share in [0.001, 0.005, 0.05, 0.1, 0.3, 0.5, 0.7, 0.99] {
        let matching: RoaringTreemap = (0..rows as u64).filter(|_| random.random_bool(share)).collect();
        let allowed = RowSet::matching(rows as u64, &matching, &nothing);
        let measured = shard.measure(&queries, &SearchKnobs::default(), &allowed);
        println!("{share} of the rows allowed: recall {:.4}, codes {:.3}", measured.recall, measured.codes_share);
        assert!(measured.recall >= 0.97);
        for query in &queries {
            let scored = shard.search(query, &SearchKnobs::default(), &allowed);
            assert_eq!(scored.rows.len() as u64, allowed.count().min(K as u64), "as many as there are");
            assert!(scored.rows.iter().all(|(row, _)| matching.contains(*row)));
        }
    }
}

/// 50,000 MiniLM vectors in four shards, merged as the coordinator would, against the exact neighbours over all of them.
#[test]
fn wordnet_merged_recall_with_defaults_and_targets() {
    let Some(data) = WordNet::load() else { return };
    const SHARDS: usize = 4;
    let mut spec = CollectionSpec::new("wordnet", 384);
    spec.shard_count = SHARDS as u32;
    assert_eq!(
        (spec.pca_dim, spec.sub_quantisers(), spec.index.nbits, spec.index.oversample),
        (Some(192), 96, 4, 10.0)
    );
    let shards: Vec<Shard> = (0..SHARDS)
        .map(|shard| {
            let rows = data.base.chunks_exact(2 * 384).skip(shard).step_by(SHARDS);
            Shard::build(&spec, &rows.flatten().copied().collect::<Vec<u8>>()).measured()
        })
        .collect();
    // The best of all shards, as (shard, row), and the codes scanned for them.
    let merged = |query: &[f32], knobs: &SearchKnobs, allowed: &[RowSet]| {
        let (mut best, mut scanned) = (Vec::new(), 0);
        for (number, (shard, allowed)) in shards.iter().zip(allowed).enumerate() {
            let scored = shard.search(query, knobs, allowed);
            best.extend(scored.rows.iter().map(|(row, score)| (*score, *row as usize * SHARDS + number)));
            scanned += scored.codes_scanned;
        }
        best.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        best.truncate(K);
        (best.into_iter().map(|(_, row)| row).collect::<Vec<usize>>(), scanned)
    };
    let everything: Vec<RowSet> = shards.iter().map(|shard| RowSet::all(shard.vectors.len())).collect();
    let codes: u64 = shards.iter().map(|shard| shard.index.len()).sum();
    let measure = |knobs: &SearchKnobs| {
        let (mut found, mut scanned) = (0, 0);
        for (query, neighbours) in data.queries.iter().zip(&data.neighbours) {
            let (hits, codes) = merged(query, knobs, &everything);
            found += neighbours[..K].iter().filter(|row| hits.contains(&(**row as usize))).count();
            scanned += codes;
        }
        let wanted = data.queries.len() * K;
        Measured {
            recall: found as f64 / wanted as f64,
            codes_share: scanned as f64 / (data.queries.len() as u64 * codes) as f64,
        }
    };
    let defaults = measure(&SearchKnobs::default());
    println!(
        "wordnet: recall@10 {:.4} (floor 0.985), {:.1} % of codes scanned (at most 30 %)",
        defaults.recall,
        100.0 * defaults.codes_share
    );
    assert!(defaults.recall >= 0.985);
    assert!(defaults.codes_share <= 0.30);

    let targets = [0.90, 0.95, 0.99].map(|target| {
        let measured = measure(&SearchKnobs { target_recall: Some(target), ..SearchKnobs::default() });
        println!("wordnet, target {target}: recall@10 {:.4}, codes {:.3}", measured.recall, measured.codes_share);
        assert!(measured.recall >= f64::from(target) - 0.01);
        measured.codes_share
    });
    assert!(targets[0] <= 0.6 * targets[2], "less recall must cost less: {targets:?}");

    let exact = SearchKnobs { exact: true, ..SearchKnobs::default() };
    // The file's order is that of another sum of the same products: rows whose scores differ by less than its rounding are ties.
    const TIE: f32 = 1e-6;
    let score_of = |query: &[f32], row: usize| {
        flat::score(spec.metric, query, shards[row % SHARDS].vectors.get((row / SHARDS) as u64))
    };
    let mut ties = 0;
    for (query, neighbours) in data.queries.iter().zip(&data.neighbours) {
        let hits = merged(query, &exact, &everything).0;
        let worst = score_of(query, hits[K - 1]);
        for row in neighbours[..K].iter().map(|row| *row as usize).filter(|row| !hits.contains(row)) {
            assert!(score_of(query, row) <= worst + TIE, "exact search missed row {row}");
            ties += 1;
        }
    }
    println!("wordnet, exact: recall@10 1.0000, {ties} of {} neighbours are ties of others", data.queries.len() * K);
    assert!(ties * 1000 <= data.queries.len() * K, "too many for ties");

    let mut random = StdRng::seed_from_u64(4);
    for share in [0.5, 0.05, 0.005, 0.0001] {
        let mut allowed = |shard: &Shard| {
            let rows = shard.vectors.len();
            let matching: RoaringTreemap = (0..rows).filter(|_| random.random_bool(share)).collect();
            RowSet::matching(rows, &matching, &RoaringTreemap::new())
        };
        let allowed: Vec<RowSet> = shards.iter().map(&mut allowed).collect();
        let (mut found, mut wanted) = (0, 0);
        for query in &data.queries[..200] {
            let best = merged(query, &exact, &allowed).0;
            let hits = merged(query, &SearchKnobs::default(), &allowed).0;
            found += best.iter().filter(|row| hits.contains(row)).count();
            wanted += best.len();
        }
        let recall = found as f64 / wanted as f64;
        println!("wordnet, {share} of the rows allowed: recall@10 {recall:.4} (floor 0.98)");
        assert!(recall >= 0.98);
    }
}
