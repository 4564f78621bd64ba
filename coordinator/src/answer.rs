//! The query's straight line: embed > plan > cache > scatter > merge > fetch, and, if text is asked for, > prompt > generate.

mod cached;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use cluster_config::collection::Collection;
use cluster_config::filter::Filter;
use cluster_config::search::{SearchKnobs, ShardQuery};
use futures::future::try_join_all;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};

use crate::embed::Purpose;
use crate::error::{Error, Result};
use crate::generate::citation::CitationTracker;
use crate::generate::pool::Generation;
use crate::generate::{
    Affinity, Citation, EventStream, FinishReason, GenerateError, GenerateEvent, GenerateOptions, GenerateRequest,
    Message, Source, Usage, extractive, meter, prompt,
};
use crate::retrieve::session::Session;
use crate::retrieve::{Hit, RetrievalOptions, RetrievalTimings, Retrieved, millis};
use crate::services::Services;
use crate::tenants::Caller;

/// A validated search.
#[derive(Clone, Debug)]
pub struct Question {
    /// Where to search.
    pub collection: Collection,
    /// Who asks: only documents of that tenant are found.
    pub caller: Caller,
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
    let vectors = services.embedder.embed(texts, Purpose::Query, deadline).await?;
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
                    && (a.min_coverage, a.max_staleness) == (b.min_coverage, b.max_staleness)
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
    options.deadline =
        positions.iter().map(|position| questions[*position].options.deadline).min().unwrap_or(options.deadline);
    let queries = positions.iter().map(|position| {
        let question = &questions[*position];
        ShardQuery {
            vector: question.vector.clone().unwrap_or_default(),
            fetch_k: question.top_k,
            filter: question.filter.clone(),
            tenant: question.caller.tenant.to_string(),
            knobs: question.knobs.clone(),
        }
    });
    services.retriever.run(&first.collection, queries.collect(), &options).await
}

/// Sentences of an extractive answer: about what a reader takes in at a glance.
const EXTRACTIVE_SENTENCES_MAX: usize = 3;
/// Shown where nothing was found; it is true, and no model is asked to invent something better.
const NOTHING_FOUND: &str = "Nothing in the collection answers this.";

/// How text is to be generated.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// Overrides the backends' model.
    pub model: Option<String>,
    /// Overrides the configured sampling.
    pub options: GenerateOptions,
    /// What was said before the question, oldest first.
    pub history: Vec<Message>,
    /// Hash of whoever asks, for backends chosen by affinity.
    pub client: Option<u64>,
    /// The answer ends here.
    pub deadline: Instant,
    /// Whether the text is passed on as it is written.
    pub is_streamed: bool,
}

/// A ranked answer with its text on the way.
pub struct Answer {
    /// What the answer rests on.
    pub ranked: Ranked,
    /// The sources in the order of their numbers, from 1.
    pub sources: Vec<Source>,
    /// `extractive`, or the name of the backend.
    pub generator: String,
    /// The model, where there is one.
    pub model: Option<String>,
    /// Why the text is extractive although language models are configured.
    pub degraded: Option<String>,
    /// The text. Dropping it stops the backend.
    pub events: BoxStream<'static, AnswerEvent>,
}

/// What an answer's stream yields: deltas and citations, at most one usage, then `Done` or `Failed` as the last.
#[derive(Debug)]
pub enum AnswerEvent {
    /// The next piece of text.
    Delta(String),
    /// A source that the text so far rests on.
    Citation(Citation),
    /// Tokens spent.
    Usage(Usage),
    /// The end.
    Done(FinishReason),
    /// There is no more.
    Failed(Error),
}

/// Answers a question: rank, then text from the sources.
///
/// Errors: as [`rank`], and `Generate` where no text could be begun; failures after that are in the stream.
/// Cancel: dropping the future or the answer's stream closes the backend's connection.
pub async fn run(services: &Services, question: Question, text: TextOptions) -> Result<Answer> {
    let (asked, caller) = (question.text.clone().unwrap_or_default(), question.caller.clone());
    if !services.llm.is_empty() {
        services.tenants.check_tokens(&caller).await?;
    }
    let ranked = rank(services, vec![question]).await?.into_iter().next();
    let ranked = ranked.ok_or_else(|| Error::internal("one question has one ranking"))?;
    let found: Vec<Source> = ranked.retrieved.hits.iter().filter_map(to_source).collect();
    let began = Instant::now();
    let answer = if found.is_empty() {
        fixed(ranked, Vec::new(), vec![AnswerEvent::Delta(NOTHING_FOUND.to_owned())])
    } else if services.llm.is_empty() {
        extract(ranked, asked, found).await?
    } else {
        match generate(services, &caller, &asked, found.clone(), text).await {
            Ok((generation, sources)) => written(ranked, generation, sources),
            // Every backend is down: the sources' own sentences are better than an error, and are marked.
            Err(GenerateError::Unavailable { reason }) => {
                let extracted = extract(ranked, asked, found).await?;
                Answer { degraded: Some(format!("no language model is available: {reason}")), ..extracted }
            }
            Err(error) => return Err(error.into()),
        }
    };
    services.metrics.stage("begin_text", began.elapsed());
    Ok(answer)
}

fn to_source(hit: &Hit) -> Option<Source> {
    Some(Source {
        chunk_id: hit.chunk_id.clone(),
        document_id: hit.document_id.clone(),
        title: hit.title.clone(),
        text: hit.text.clone().filter(|text| !text.is_empty())?,
        span: hit.span.clone()?,
        score: hit.score,
        page: hit.page(),
        headings: hit.headings(),
    })
}

/// The best sentences of the sources, with their citations.
async fn extract(ranked: Ranked, asked: String, found: Vec<Source>) -> Result<Answer> {
    let extracted = crate::ingest::blocking(move || {
        let sources = prompt::number(found);
        let answer = extractive::answer(&asked, &sources, EXTRACTIVE_SENTENCES_MAX);
        Ok((sources, answer))
    });
    let (sources, answer) = extracted.await?;
    let mut events = Vec::new();
    for (position, quote) in answer.quotes.into_iter().enumerate() {
        let space = if position == 0 { "" } else { " " };
        events.push(AnswerEvent::Delta(format!("{space}{} [{}]", quote.text, quote.citation.marker)));
        events.push(AnswerEvent::Citation(quote.citation));
    }
    if events.is_empty() {
        events.push(AnswerEvent::Delta(NOTHING_FOUND.to_owned()));
    }
    Ok(fixed(ranked, sources, events))
}

/// An answer that is whole already.
fn fixed(ranked: Ranked, sources: Vec<Source>, mut events: Vec<AnswerEvent>) -> Answer {
    events.push(AnswerEvent::Done(FinishReason::Stop));
    Answer {
        ranked,
        sources,
        generator: extractive::GENERATOR.to_owned(),
        model: None,
        degraded: None,
        events: stream::iter(events).boxed(),
    }
}

/// Asks the pool; the sources are those that fit the prompt, as it numbers them.
async fn generate(
    services: &Services,
    caller: &Caller,
    asked: &str,
    found: Vec<Source>,
    text: TextOptions,
) -> Result<(Generation, Vec<Source>), GenerateError> {
    let tokens_max = services.llm.prompt_tokens_max(text.model.as_deref(), text.options.max_tokens);
    let prompt = prompt::build(asked, &text.history, found, tokens_max, &prompt::estimate_tokens);
    let affinity = Affinity { client: text.client, prefix: Some(prompt::retrieved_key(&prompt.sources)) };
    let tenant = caller.tenant.to_string();
    let request =
        GenerateRequest { messages: prompt.messages, model: text.model, options: text.options, affinity, tenant };
    Ok((cached::generate(services, caller, request, text.deadline, text.is_streamed).await?, prompt.sources))
}

/// Asks the pool for a caller, whose account is charged with what the answer took, however it ends.
pub(crate) async fn ask_model(
    services: &Services,
    caller: &Caller,
    request: GenerateRequest,
    deadline: Instant,
) -> Result<Generation, GenerateError> {
    let read = meter::prompt_tokens(&request.messages);
    let generation = services.llm.generate(request, deadline).await?;
    let (tenants, caller, model) = (Arc::clone(&services.tenants), caller.clone(), generation.model.clone());
    let events = meter::metered(generation.events, read, move |usage| {
        tenants.record_tokens(&caller, &model, usage.prompt_tokens, usage.completion_tokens);
    });
    Ok(Generation { events, ..generation })
}

fn written(ranked: Ranked, generation: Generation, sources: Vec<Source>) -> Answer {
    let events = with_citations(generation.events, sources.clone());
    Answer {
        ranked,
        sources,
        generator: generation.backend,
        model: Some(generation.model),
        degraded: None,
        events: events.boxed(),
    }
}

/// Puts each citation behind the piece of text that completes its mark, and leaves out marks of sources that there are not. Of the text
/// only an open mark is held back, until it is closed or turns out to be none.
fn with_citations(events: EventStream, sources: Vec<Source>) -> impl Stream<Item = AnswerEvent> {
    let mut tracker = CitationTracker::new(sources);
    let cited = |(text, citations): (String, Vec<Citation>)| {
        let delta = (!text.is_empty()).then_some(AnswerEvent::Delta(text));
        delta.into_iter().chain(citations.into_iter().map(AnswerEvent::Citation)).collect::<Vec<_>>()
    };
    events.flat_map(move |event| {
        let events = match event {
            Ok(GenerateEvent::Delta(piece)) => cited(tracker.push(&piece)),
            Ok(GenerateEvent::Usage(usage)) => vec![AnswerEvent::Usage(usage)],
            Ok(GenerateEvent::Done { finish_reason }) => {
                let held_back = cited((tracker.finish(), Vec::new()));
                held_back.into_iter().chain([AnswerEvent::Done(finish_reason)]).collect()
            }
            Err(error) => vec![AnswerEvent::Failed(error.into())],
        };
        stream::iter(events)
    })
}
