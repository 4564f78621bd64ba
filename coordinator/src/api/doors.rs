//! What the two front doors (`openai`, `ollama`) share: a conversation in, an answer's events out. A model named `rag/<collection>` is
//! answered from that collection's index, with citations; every other name is passed through the pool.
//!
//! Unlike the native API the doors tolerate fields they do not know: clients of both families send many.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use cluster_config::error::ErrorKind;
use cluster_config::limits::{self, MODEL_BYTES_MAX};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_64;

use super::auth::Caller;
use super::filter::FilterBody;
use super::search::{SearchBody, in_range, read_search};
use crate::answer::{self, AnswerEvent, TextOptions};
use crate::embed::{EmbedError, Purpose, head};
use crate::error::{Error, Result};
use crate::generate::{
    Affinity, Citation, FinishReason, GenerateEvent, GenerateOptions, GenerateRequest, Message, Role, Source, Usage,
};
use crate::services::Services;

/// Models with this prefix are collections.
const COLLECTION_PREFIX: &str = "rag/";
/// Ollama's clients put this behind names without a tag.
const DEFAULT_TAG: &str = ":latest";
/// Most messages of one conversation.
const MESSAGES_MAX: usize = 1024;
/// Most texts that end an answer; OpenAI takes four.
const STOPS_MAX: usize = 16;
/// A door's call of more texts to embed than this is somebody's ingestion.
const QUERY_TEXTS_MAX: usize = 8;
/// Bytes of a conversation's beginning that decide which backend probably has it in its prompt cache.
const PREFIX_BYTES: usize = 1024;

/// Retrieval's knobs in a front door's request, all optional: `"rag": {"top_k": 3}`. Known fields only: they are ours.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RagBody {
    top_k: Option<u32>,
    filters: Option<FilterBody>,
    consistency: Option<String>,
    session: Option<String>,
    min_coverage: Option<f64>,
}

/// A conversation as a door has read it.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    pub(super) model: String,
    pub(super) messages: Vec<Message>,
    /// The request's field that the messages came in.
    pub(super) asked_in: &'static str,
    pub(super) options: GenerateOptions,
    pub(super) rag: Option<RagBody>,
    pub(super) client: ClientKey,
}

/// An answer on its way out of a door.
pub(super) struct Reply {
    /// As the caller named it.
    pub(super) model: String,
    /// What the answer may cite, in the order of their numbers; empty for models that are passed through.
    pub(super) sources: Vec<Source>,
    /// Session token of the retrieval.
    pub(super) session: Option<String>,
    /// The text. Dropping it stops the backend.
    pub(super) events: BoxStream<'static, AnswerEvent>,
}

/// An answer that has ended.
pub(super) struct Whole {
    pub(super) text: String,
    pub(super) citations: Vec<Citation>,
    pub(super) usage: Usage,
    pub(super) finish_reason: FinishReason,
}

/// Starts the answer to a conversation; its first event is there when this returns. A streamed one takes a place of its tenant's.
///
/// Errors: bad fields by name; `RateLimited`; `NotFound` (no such collection or model); as `answer::run` and `Pool::generate`.
/// Cancel: dropping the future or the reply's events closes the backend's connection.
pub(super) async fn converse(
    services: &Services,
    caller: &Caller,
    conversation: Conversation,
    is_stream: bool,
) -> Result<Reply> {
    check(&conversation)?;
    let place = is_stream.then(|| services.tenants.open_stream(caller)).transpose()?;
    let reply = match collection_of(&conversation.model) {
        Some(collection) => {
            let collection = collection.to_owned();
            ask_collection(services, caller, conversation, collection, is_stream).await?
        }
        None => pass_through(services, caller, conversation).await?,
    };
    Ok(match place {
        Some(place) => Reply { events: place.hold(reply.events), ..reply },
        None => reply,
    })
}

/// The collection that a model's name stands for.
pub(super) fn collection_of(model: &str) -> Option<&str> {
    let collection = model.strip_prefix(COLLECTION_PREFIX)?;
    Some(collection.strip_suffix(DEFAULT_TAG).unwrap_or(collection))
}

/// The name under which a door lists a collection.
pub(super) fn model_of(collection: &str) -> String {
    format!("{COLLECTION_PREFIX}{collection}")
}

/// Collections that can be asked, by name, and the pool's models, each once: what a door lists.
pub(super) fn models(services: &Services) -> Vec<String> {
    let state = services.view.state();
    let askable = state.collections.values().filter(|collection| {
        collection.spec.embedder.as_deref().is_some_and(|embedder| embedder == services.embedder.name())
    });
    let mut names: Vec<String> = askable.map(|collection| model_of(&collection.spec.name)).collect();
    names.sort();
    let mut served: Vec<String> = services.llm.identities().into_iter().map(|backend| backend.model).collect();
    served.sort();
    served.dedup();
    names.extend(served);
    names
}

/// Errors: `NotFound` (neither a collection that can be asked, by whichever of its names, nor one of the pool's models).
pub(super) fn check_listed(services: &Services, model: &str) -> Result<()> {
    let of_collection = |name: &str| model_of(&services.aliases.resolve(name).unwrap_or_else(|| name.to_owned()));
    let wanted = collection_of(model).map_or_else(|| model.to_owned(), of_collection);
    if models(services).contains(&wanted) {
        return Ok(());
    }
    let hint = "GET /api/tags lists what there is";
    Err(Error::refused(ErrorKind::NotFound, format!("model {model:?} not found"), hint))
}

fn check(conversation: &Conversation) -> Result<()> {
    let model_bytes = conversation.model.len();
    if !(1..=MODEL_BYTES_MAX).contains(&model_bytes) {
        let hint = format!("use 1 to {MODEL_BYTES_MAX} bytes; rag/<collection> asks a collection");
        return Err(Error::field("model", format!("{model_bytes} bytes"), hint));
    }
    let count = conversation.messages.len();
    if !(1..=MESSAGES_MAX).contains(&count) {
        let hint = format!("send 1 to {MESSAGES_MAX}, the newest last");
        return Err(Error::field(conversation.asked_in, format!("{count} messages"), hint));
    }
    let bytes: usize = conversation.messages.iter().map(|message| message.content.len()).sum();
    if bytes > limits::LLM_CONVERSATION_BYTES_MAX {
        let most = limits::LLM_CONVERSATION_BYTES_MAX;
        let text = format!("{}: {bytes} bytes, at most {most} are passed on", conversation.asked_in);
        return Err(Error::refused(ErrorKind::TooLarge, text, "leave the oldest part out"));
    }
    let options = &conversation.options;
    if let Some(max_tokens) = options.max_tokens {
        in_range("max_tokens", f64::from(max_tokens), 1.0, f64::from(limits::LLM_TOKENS_MAX))?;
    }
    if let Some(temperature) = options.temperature {
        in_range("temperature", f64::from(temperature), 0.0, 2.0)?;
    }
    if let Some(top_p) = options.top_p {
        in_range("top_p", f64::from(top_p), 0.0, 1.0)?;
    }
    if options.stop.len() > STOPS_MAX {
        let hint = format!("use at most {STOPS_MAX}");
        return Err(Error::field("stop", format!("{} texts", options.stop.len()), hint));
    }
    Ok(())
}

async fn ask_collection(
    services: &Services,
    caller: &Caller,
    mut conversation: Conversation,
    collection: String,
    is_streamed: bool,
) -> Result<Reply> {
    let asked_in = conversation.asked_in;
    let asked = match conversation.messages.pop() {
        Some(message) if message.role == Role::User => message.content,
        _ => return Err(Error::field(asked_in, "the last one is not the user's", "end with the question")),
    };
    let rag = conversation.rag.unwrap_or_default();
    let search = SearchBody {
        query: Some(asked),
        collection: Some(collection),
        top_k: rag.top_k,
        filters: rag.filters,
        consistency: rag.consistency,
        session: rag.session,
        min_coverage: rag.min_coverage,
        ..SearchBody::default()
    };
    let question = read_search(services, caller, search, "").map_err(|error| match error {
        // The native API's name of the question.
        Error::Field(fault) if fault.key == "query" => Error::field(asked_in, fault.problem, fault.hint),
        other => other,
    })?;
    let text = TextOptions {
        model: None,
        options: conversation.options,
        history: conversation.messages,
        client: conversation.client.0,
        deadline: answer_deadline(),
        is_streamed,
    };
    let answer = answer::run(services, question, text).await?;
    Ok(Reply {
        model: conversation.model,
        sources: answer.sources,
        session: Some(answer.ranked.session.to_string()),
        events: answer.events,
    })
}

async fn pass_through(services: &Services, caller: &Caller, conversation: Conversation) -> Result<Reply> {
    let model = conversation.model;
    if services.llm.is_empty() {
        let hint = "no language model backend is configured; models named rag/<collection> are answered without one";
        return Err(Error::refused(ErrorKind::NotFound, format!("no model {model:?}"), hint));
    }
    let affinity = Affinity { client: conversation.client.0, prefix: Some(prefix_key(&conversation.messages)) };
    let request = GenerateRequest {
        messages: conversation.messages,
        model: Some(model.clone()),
        options: conversation.options,
        affinity,
        tenant: caller.tenant.to_string(),
    };
    services.tenants.check_tokens(caller).await?;
    let generation = answer::ask_model(services, caller, request, answer_deadline()).await?;
    let events = generation.events.map(|event| match event {
        Ok(GenerateEvent::Delta(text)) => AnswerEvent::Delta(text),
        Ok(GenerateEvent::Usage(usage)) => AnswerEvent::Usage(usage),
        Ok(GenerateEvent::Done { finish_reason }) => AnswerEvent::Done(finish_reason),
        Err(error) => AnswerEvent::Failed(error.into()),
    });
    Ok(Reply { model, sources: Vec::new(), session: None, events: events.boxed() })
}

fn answer_deadline() -> Instant {
    Instant::now() + Duration::from_millis(limits::TIMEOUT_MS_MAX)
}

/// The beginning of a conversation: what a backend that served it before still has in its cache.
fn prefix_key(messages: &[Message]) -> u64 {
    let mut beginning = Vec::with_capacity(PREFIX_BYTES);
    for byte in messages.iter().flat_map(|message| message.content.bytes().chain([0])).take(PREFIX_BYTES) {
        beginning.push(byte);
    }
    xxh3_64(&beginning)
}

impl Reply {
    /// Reads the answer to its end. Errors: what ended it early.
    pub(super) async fn collect(mut self) -> Result<Whole> {
        let mut whole = Whole {
            text: String::new(),
            citations: Vec::new(),
            usage: Usage::default(),
            finish_reason: FinishReason::Stop,
        };
        while let Some(event) = self.events.next().await {
            match event {
                AnswerEvent::Delta(piece) => whole.text.push_str(&piece),
                AnswerEvent::Citation(citation) => whole.citations.push(citation),
                AnswerEvent::Usage(usage) => whole.usage = usage,
                AnswerEvent::Done(reason) => whole.finish_reason = reason,
                AnswerEvent::Failed(error) => return Err(error),
            }
        }
        Ok(whole)
    }
}

/// Whatever tells one client from another, for backends chosen by affinity: the first address a proxy in front noted, else the peer's.
/// Only a hint: a client that lies about it moves nobody but itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientKey(pub Option<u64>);

impl<S: Send + Sync> FromRequestParts<S> for ClientKey {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> std::result::Result<Self, Self::Rejection> {
        let forwarded = forwarded_for(&parts.headers).map(|address| xxh3_64(address.as_bytes()));
        let peer =
            || parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| xxh3_64(peer.ip().to_string().as_bytes()));
        Ok(Self(forwarded.or_else(peer)))
    }
}

impl ClientKey {
    /// The session or user that a request names counts for more than its address.
    pub(super) fn or_named(self, name: Option<&str>) -> Self {
        Self(name.map(|name| xxh3_64(name.as_bytes())).or(self.0))
    }
}

fn forwarded_for(headers: &HeaderMap) -> Option<&str> {
    let addresses = headers.get("x-forwarded-for")?.to_str().ok()?;
    addresses.split(',').next().map(str::trim).filter(|address| !address.is_empty())
}

/// One text, or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// Embeds a door's texts, on the caller's account. Returns the vectors and the tokens read.
///
/// Errors: `NotFound` (another model than the one embedder), a field, `RateLimited`, as `Embedder::embed`.
pub(super) async fn embed(
    services: &Services,
    caller: &Caller,
    model: &str,
    texts: Vec<String>,
    dimensions: Option<usize>,
) -> Result<(Vec<crate::embed::Embedding>, u64)> {
    let embedder = &services.embedder;
    if model.strip_suffix(DEFAULT_TAG).unwrap_or(model) != embedder.name() {
        let hint = format!("this coordinator embeds with {:?}", embedder.name());
        return Err(Error::refused(ErrorKind::NotFound, format!("no embedding model {model:?}"), hint));
    }
    if let Some(dimensions) = dimensions.filter(|dimensions| *dimensions != embedder.dim()) {
        let hint = format!("{} gives {}; leave it out", embedder.name(), embedder.dim());
        return Err(Error::field("dimensions", format!("{dimensions}"), hint));
    }
    if texts.is_empty() {
        return Err(Error::field("input", "no texts", "give at least one"));
    }
    if texts.len() > limits::EMBED_TEXTS_MAX {
        return Err(EmbedError::TooLarge { texts: texts.len(), texts_max: limits::EMBED_TEXTS_MAX }.into());
    }
    if let Some(position) = texts.iter().position(|text| text.trim().is_empty()) {
        return Err(Error::field(format!("input[{position}]"), "empty", "give a text"));
    }
    services.tenants.check_tokens(caller).await?;
    let deadline = Instant::now() + services.default_timeout;
    let (texts, tokens) = count_tokens(services, texts, deadline).await?;
    let purpose = if texts.len() > QUERY_TEXTS_MAX { Purpose::Ingest } else { Purpose::Query };
    let vectors = embedder.embed(texts, purpose, deadline).await?;
    services.tenants.record_tokens(caller, embedder.name(), tokens, 0);
    Ok((vectors, tokens))
}

/// The tokens of the texts that reach the model. Counts few calls' texts at a time, and of each text what the embedder reads of it.
/// Errors: `Overloaded` (the turn did not come before the deadline).
async fn count_tokens(services: &Services, texts: Vec<String>, deadline: Instant) -> Result<(Vec<String>, u64)> {
    let turn = tokio::time::timeout_at(deadline.into(), Arc::clone(&services.token_counts).acquire_owned()).await;
    let turn = turn.map_err(|_| {
        let text = "too many texts wait to be counted and embedded";
        Error::refused(ErrorKind::Overloaded, text, "retry with a pause")
    })?;
    let embedder = Arc::clone(&services.embedder);
    crate::ingest::blocking(move || {
        let _turn = turn;
        let count = |text: &String| embedder.count_tokens(head(text)).min(embedder.tokens_max());
        let tokens: usize = texts.iter().map(count).sum();
        Ok((texts, tokens as u64))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_collections_with_and_without_a_tag() {
        assert_eq!(collection_of("rag/docs"), Some("docs"));
        assert_eq!(collection_of("rag/docs:latest"), Some("docs"));
        assert_eq!(collection_of("llama3.2:3b"), None);
        assert_eq!(collection_of(&model_of("a-b")), Some("a-b"));
    }

    #[test]
    fn a_conversation_that_goes_on_keeps_its_prefix() {
        let message = |role, content: &str| Message { role, content: content.to_owned() };
        let long = "x".repeat(PREFIX_BYTES);
        let mut talk = vec![message(Role::System, &long), message(Role::User, "a")];
        let before = prefix_key(&talk);
        talk.push(message(Role::Assistant, "b"));
        assert_eq!(prefix_key(&talk), before);
        assert_ne!(
            prefix_key(&[message(Role::User, "ab")]),
            prefix_key(&[message(Role::User, "a"), message(Role::User, "b")])
        );
    }

    #[test]
    fn the_first_forwarded_address_names_the_client() {
        let mut headers = HeaderMap::new();
        assert_eq!(forwarded_for(&headers), None);
        headers.insert("x-forwarded-for", "10.0.0.7, 10.0.0.1".parse().expect("header"));
        assert_eq!(forwarded_for(&headers), Some("10.0.0.7"));
    }
}
