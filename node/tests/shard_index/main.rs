//! Training and indexing as logged operations, end to end: the same index on every copy, however often it was reopened.

#[path = "../shard_support/mod.rs"]
mod shard_support;

mod building;
mod figures;
mod memory;
mod renewal;

use std::ops::Range;

use cluster_config::filter::{Condition, DOCUMENT_ID_FIELD, FieldValue, Filter, Predicate};
use cluster_config::search::{SearchKnobs, ShardAnswer, ShardHit, ShardQuery};
use node::shard::{Shard, ShardDigest};
use node::vector::Cancel;
use shard_support::*;

const DIM: usize = 32;
const ROWS: usize = 3000;

/// Points around 40 centres, so that lists mean something.
fn clustered(seed: u64, count: usize) -> Vec<Vec<f32>> {
    clustered_in(0..DIM, seed, count)
}

/// Points around 40 centres that differ in these dimensions only.
fn clustered_in(dimensions: Range<usize>, seed: u64, count: usize) -> Vec<Vec<f32>> {
    let mut rng = rng(seed);
    let centres: Vec<Vec<f32>> = {
        let mut fixed = shard_support::rng(99);
        (0..40).map(|_| unit_vector(&mut fixed, DIM)).collect()
    };
    let centre = |number: usize, dimension| match dimensions.contains(&dimension) {
        true => centres[number % 40][dimension],
        false => 0.0,
    };
    (0..count)
        .map(|number| {
            let noise = unit_vector(&mut rng, DIM);
            let mixed: Vec<f32> = (0..DIM).map(|at| centre(number, at) + 0.6 * noise[at]).collect();
            let length = mixed.iter().map(|value| value * value).sum::<f32>().sqrt();
            mixed.into_iter().map(|value| value / length).collect()
        })
        .collect()
}

fn place() -> Place {
    let mut spec = spec(DIM as u32);
    spec.pca_dim = Some(16);
    spec.index.training_floor = 1000;
    Place::new(spec)
}

fn answers(shard: &Shard, queries: &[Vec<f32>], exact: bool) -> Vec<ShardAnswer> {
    let knobs = SearchKnobs { exact, ..SearchKnobs::default() };
    let ask = |vector: &Vec<f32>| ShardQuery { knobs: knobs.clone(), ..query(vector, 10) };
    queries.iter().map(|vector| shard.search(&ask(vector), &Cancel::never()).expect("searches")).collect()
}

/// Of the documents from some id on, too many to be compared exactly.
fn filtered_answers(shard: &Shard, queries: &[Vec<f32>]) -> Vec<ShardAnswer> {
    let predicate = Predicate::Range { lower: Some((FieldValue::Keyword("a12".into()), true)), upper: None };
    let condition = Condition { field: DOCUMENT_ID_FIELD.into(), predicate };
    let filter = Filter { must: vec![condition], ..Filter::default() };
    let ask = |vector: &Vec<f32>| ShardQuery { filter: filter.clone(), ..query(vector, 10) };
    queries.iter().map(|vector| shard.search(&ask(vector), &Cancel::never()).expect("searches")).collect()
}

/// What must be the same on all copies: everything but who answered. Compared with [`assert_same`], which shows one difference.
fn comparable(answers: Vec<ShardAnswer>) -> Vec<ShardAnswer> {
    answers.into_iter().map(|answer| ShardAnswer { position: Default::default(), ..answer }).collect()
}

fn hits(answers: Vec<ShardAnswer>) -> Vec<Vec<ShardHit>> {
    answers.into_iter().map(|answer| answer.hits).collect()
}

fn assert_same<T: PartialEq + std::fmt::Debug>(left: Vec<T>, right: &[T], what: &str) {
    assert_eq!(left.len(), right.len());
    for (number, (left, right)) in left.iter().zip(right).enumerate() {
        assert_eq!(left, right, "{what}: query {number}");
    }
}

fn digest(shard: &Shard) -> ShardDigest {
    ShardDigest { position: Default::default(), ..shard.digest().expect("digest") }
}

fn recall(found: &[ShardAnswer], exact: &[ShardAnswer]) -> f64 {
    let mut hits = 0;
    let mut wanted = 0;
    for (found, exact) in found.iter().zip(exact) {
        wanted += exact.hits.len();
        hits += exact.hits.iter().filter(|hit| found.hits.iter().any(|other| other.row == hit.row)).count();
    }
    hits as f64 / wanted as f64
}
