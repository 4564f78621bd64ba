//! Every acknowledged point is found by its own vector, and nothing is found that was never sent.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::Client;
use crate::vectors::unit_vector;
use crate::workload::ingest::{Ledger, Plan, point_id};

const SEARCHES_PER_CALL: usize = 64;

/// Reads every acknowledged point back by an exact search for its vector. Errors: the first lost point, or a phantom.
pub async fn check(client: &Client, plan: &Plan, ledger: &Ledger) -> anyhow::Result<()> {
    let numbers: Vec<u64> = ledger.acknowledged.iter().copied().collect();
    for numbers in numbers.chunks(SEARCHES_PER_CALL) {
        let searches: Vec<Value> = numbers
            .iter()
            .map(|number| {
                json!({
                    "collection": plan.collection,
                    "vector": unit_vector(plan.seed, *number, plan.dim),
                    "top_k": 1,
                    "exact": true,
                })
            })
            .collect();
        let body =
            client.send(Method::POST, "/api/v1/search:batch", Some(&json!({ "searches": searches }))).await?.ok()?;
        let results = body["results"].as_array().context("no results")?;
        ensure!(results.len() == numbers.len(), "{} results for {} searches", results.len(), numbers.len());
        for (number, result) in numbers.iter().zip(results) {
            let found = result["hits"][0]["document_id"].as_str().unwrap_or("nothing");
            ensure!(found == point_id(*number), "acknowledged point {} is lost: found {found}", point_id(*number));
        }
    }
    Ok(())
}

/// Compares the number of chunks held by the shards with the lists: at least what was acknowledged, at most what was sent.
pub fn check_count(chunks: u64, ledger: &Ledger) -> anyhow::Result<()> {
    let sent: BTreeSet<u64> = ledger.acknowledged.union(&ledger.unknown).copied().collect();
    let (least, most) = (ledger.acknowledged.len() as u64, sent.len() as u64);
    ensure!((least..=most).contains(&chunks), "{chunks} chunks held, {least} acknowledged, {most} sent");
    Ok(())
}
