//! Searches as they are sent, and answers as they are read.

use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use serde::Serialize;

use super::K;
use super::dataset::Dataset;
use super::load::{Load, Outcome, address_of};
use super::patient::Patient;
use super::truth::recall;
use crate::error::Error;
use crate::wire::search::{SearchRequest, SearchResponse};

/// Searches sent before anything is measured: they warm connections, caches and mapped pages.
const WARM_UP_MAX: usize = 200;

/// One setting of the knobs; none set: the collection's defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Args, Serialize)]
pub struct Setting {
    /// Lists probed per shard.
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nprobe: Option<u32>,
    /// Candidates re-scored per result.
    #[arg(long, value_name = "X")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oversample: Option<f32>,
    /// Recall asked for.
    #[arg(long, value_name = "X")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_recall: Option<f32>,
    /// Compare with every row.
    #[arg(long)]
    pub exact: bool,
}

impl Setting {
    /// As the table and the plot name it.
    pub fn label(&self) -> String {
        let knobs = [
            self.nprobe.map(|nprobe| format!("nprobe {nprobe}")),
            self.oversample.map(|oversample| format!("oversample {oversample}")),
            self.target_recall.map(|recall| format!("target {recall}")),
            self.exact.then(|| "exact".to_owned()),
        ];
        let set: Vec<String> = knobs.into_iter().flatten().collect();
        if set.is_empty() { "defaults".to_owned() } else { set.join(", ") }
    }
}

/// A search as it is sent: ten results, ids and scores only.
pub fn search(patient: &Patient, vector: &[f32], setting: Setting, explain: bool) -> SearchRequest {
    SearchRequest {
        vector: Some(vector.to_vec()),
        collection: patient.collection.name.clone(),
        top_k: K as u32,
        include: Some(Vec::new()),
        nprobe: setting.nprobe,
        oversample: setting.oversample,
        target_recall: setting.target_recall,
        exact: setting.exact,
        explain,
        ..SearchRequest::default()
    }
}

/// Bodies of searches for the first `queries` queries.
pub fn bodies(
    patient: &Patient,
    data: &Dataset,
    setting: Setting,
    queries: usize,
    explain: bool,
) -> Result<Vec<Bytes>, Error> {
    (0..queries).map(|query| encode(&search(patient, data.queries.row(query), setting, explain))).collect()
}

/// Plain JSON.
pub fn encode(value: &impl Serialize) -> Result<Bytes, Error> {
    let json = serde_json::to_vec(value);
    json.map(Bytes::from).map_err(|error| Error::local(format!("cannot encode a request: {error}"), ""))
}

/// Searches over `connections` connections, `requests` in all.
pub fn searches(patient: &Patient, bodies: Vec<Bytes>, connections: usize, requests: usize) -> Result<Load, Error> {
    Ok(Load {
        address: address_of(&patient.url)?,
        path: "/api/v1/search",
        bodies: Arc::new(bodies),
        connections,
        requests,
        keep_answers: false,
    })
}

/// The first `queries` queries, one after another, with their answers.
pub async fn ask_all(patient: &Patient, data: &Dataset, setting: Setting, queries: usize) -> Result<Outcome, Error> {
    let load = searches(patient, bodies(patient, data, setting, queries, true)?, 1, queries)?;
    Load { requests: queries.min(WARM_UP_MAX), ..load.clone() }.run().await?;
    Load { keep_answers: true, ..load }.run().await
}

/// An answer. Errors: it does not rest on all shards, or on the cache.
pub fn parse(answer: &[u8]) -> Result<SearchResponse, Error> {
    let answer: SearchResponse =
        serde_json::from_slice(answer).map_err(|error| Error::local(format!("an answer: {error}"), ""))?;
    check(&answer)?;
    Ok(answer)
}

/// Errors: the answer does not rest on all shards, or on the cache.
pub fn check(answer: &SearchResponse) -> Result<(), Error> {
    if !answer.shards.is_complete() {
        let text = format!("only {} of {} shards answered: no figures", answer.shards.ok, answer.shards.total);
        return Err(Error::Partial(text));
    }
    if answer.explain.as_ref().is_some_and(|explain| explain.cached) {
        return Err(Error::local(
            "an answer came from the cache: no figures",
            "start the coordinator with cache.enabled = false",
        ));
    }
    Ok(())
}

/// Recall@10 of answers to the first queries, and the share of the codes that were scanned, where there is an index.
pub fn read_answers(answers: &[Bytes], data: &Dataset) -> Result<(f64, Option<f64>), Error> {
    let (mut scanned, mut total) = (0, 0);
    let mut found = Vec::with_capacity(answers.len());
    for answer in answers {
        let answer = parse(answer)?;
        if let Some(explain) = &answer.explain {
            scanned += explain.work.codes_scanned;
            total += explain.work.codes_total;
        }
        found.push(ids(answer));
    }
    Ok((recall_of(&found, data), (total > 0).then(|| scanned as f64 / total as f64)))
}

/// The ids found, best first.
pub fn ids(answer: SearchResponse) -> Vec<String> {
    answer.hits.into_iter().map(|hit| hit.document_id).collect()
}

/// Recall@10 of the ids found by the first queries.
pub fn recall_of(found: &[Vec<String>], data: &Dataset) -> f64 {
    recall(found, data.neighbors.as_deref().unwrap_or_default(), K)
}
