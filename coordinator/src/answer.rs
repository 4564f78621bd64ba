//! The query's straight line: embed > plan > cache > scatter > merge > fetch, and, if text is asked for, > prompt > generate.

use std::collections::BTreeMap;
use std::time::Instant;

use cluster_config::collection::Collection;
use cluster_config::filter::Filter;
use cluster_config::search::{SearchKnobs, ShardQuery};
use futures::future::try_join_all;

use crate::error::{Error, Result};
use crate::retrieve::session::Session;
use crate::retrieve::{RetrievalOptions, RetrievalTimings, Retrieved, millis};
use crate::services::Services;

/// A validated search.
#[derive(Clone, Debug)]
pub struct Question {
    /// Where to search.
    pub collection: Collection,
    /// Whose documents.
    pub tenant: String,
    /// What to embed; exactly one of `text` and `vector` is there.
    pub text: Option<String>,
    /// `[dim]`, prepared for the collection's metric.
    pub vector: Option<Vec<f32>>,
    /// Results wanted.
    pub top_k: u32,
    /// Checked against the collection.
    pub filter: Filter,
    /// Speed against recall.
    pub knobs: SearchKnobs,
    /// Freshness, coverage, deadline.
    pub options: RetrievalOptions,
}

/// A search's ranked chunks.
#[derive(Clone, Debug)]
pub struct Ranked {
    /// The chunks.
    pub retrieved: Retrieved,
    /// The caller's session, raised.
    pub session: Session,
    /// Stages of the retrieval.
    pub timings: RetrievalTimings,
    /// Time of the embedding.
    pub embed_ms: f64,
}

/// Ranks chunks for each question, in order. Questions that differ only in what they look for share one scatter.
///
/// Cancel: dropping it cancels embedding and searches down to the nodes.
pub async fn rank(services: &Services, mut questions: Vec<Question>) -> Result<Vec<Ranked>> {
    let began = Instant::now();
    embed(services, &mut questions).await?;
    let embed_ms = millis(began.elapsed());
    services.metrics.stage("embed", began.elapsed());

    let began = Instant::now();
    let groups = group(&questions);
    let runs = groups.iter().map(|positions| run_group(services, &questions, positions));
    let runs = try_join_all(runs).await?;
    services.metrics.stage("retrieve", began.elapsed());

    let mut ranked: BTreeMap<usize, Ranked> = BTreeMap::new();
    for (positions, run) in groups.into_iter().zip(runs) {
        for (position, retrieved) in positions.into_iter().zip(run.results) {
            let (session, timings) = (run.session.clone(), run.timings);
            ranked.insert(position, Ranked { retrieved, session, timings, embed_ms });
        }
    }
    Ok(ranked.into_values().collect())
}

/// Gives every question its vector: one call for all texts.
async fn embed(services: &Services, questions: &mut [Question]) -> Result<()> {
    let texts: Vec<String> = questions
        .iter()
        .filter(|question| question.vector.is_none())
        .map(|question| question.text.clone().unwrap_or_default())
        .collect();
    if texts.is_empty() {
        return Ok(());
    }
    let deadline = questions.iter().map(|question| question.options.deadline).min().unwrap_or_else(Instant::now);
    let vectors = services.embedder.embed(texts, deadline).await?;
    let without = questions.iter_mut().filter(|question| question.vector.is_none());
    for (question, vector) in without.zip(vectors) {
        let spec = &question.collection.spec;
        let prepared = crate::ingest::encode::prepare_query(spec.metric, spec.dim as usize, vector.to_vec());
        question.vector = Some(prepared.map_err(|error| Error::internal(format!("embedder: {error}")))?);
    }
    Ok(())
}

/// Positions of questions that may travel together: same collection, same options.
fn group(questions: &[Question]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (position, question) in questions.iter().enumerate() {
        let fits = |group: &&mut Vec<usize>| {
            group.first().is_some_and(|first| {
                let other = &questions[*first];
                let (a, b) = (&question.options, &other.options);
                question.collection.id == other.collection.id
                    && (a.consistency, a.prefer_copy, a.include) == (b.consistency, b.prefer_copy, b.include)
                    && a.min_coverage == b.min_coverage
                    && a.session == b.session
            })
        };
        match groups.iter_mut().find(fits) {
            Some(group) => group.push(position),
            None => groups.push(vec![position]),
        }
    }
    groups
}

async fn run_group(
    services: &Services,
    questions: &[Question],
    positions: &[usize],
) -> Result<crate::retrieve::RetrievedAll> {
    let Some(first) = positions.first().map(|position| &questions[*position]) else {
        return Err(Error::internal("an empty group of searches"));
    };
    let mut options = first.options.clone();
    options.deadline = positions.iter().map(|position| questions[*position].options.deadline).min().unwrap_or(options.deadline);
    let queries = positions.iter().map(|position| {
        let question = &questions[*position];
        ShardQuery {
            vector: question.vector.clone().unwrap_or_default(),
            fetch_k: question.top_k,
            filter: question.filter.clone(),
            tenant: question.tenant.clone(),
            knobs: question.knobs.clone(),
        }
    });
    services.retriever.run(&first.collection, queries.collect(), &options).await
}
