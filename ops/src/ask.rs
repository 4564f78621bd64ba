//! `susui ask`: a question, its answer, and the sources of the answer.

use std::time::Duration;

use clap::Args;
use cluster_config::limits;
use futures::StreamExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cli::Global;
use crate::client::{ApiError, Client, DEADLINE_EXCEEDED, ErrorBody};
use crate::error::Error;
use crate::output::{print_line, print_piece};
use crate::search::parse_json;
use crate::sse::{Event, Parser};
use crate::wire::search::{Citation, Coverage, QueryRequest, QueryResponse, Span};

/// Most time between the coordinator's giving up and ours.
const MARGIN_MAX: Duration = Duration::from_secs(1);

/// Ask a question and print the answer with its sources
///
/// Every marker `[n]` in the answer is a source below it: title, document, and the bytes of its
/// text the passage spans. While no language model is configured the answer is `extractive`:
/// the best sentences as they stand in the sources.
///
/// A model that needs longer than --timeout for the whole answer is stopped, and not asked again;
/// with --stream it may take as long as pieces of the answer keep coming.
///
/// Examples:
///   susui ask "What happens when a node dies?" -c manual
///   susui ask "Summarise the incident." -c docs --stream --max-tokens 400
///   susui ask "Who approved it?" -c docs --json | jq .citations
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Arguments {
    /// The question.
    #[arg(value_name = "QUESTION")]
    pub question: String,
    /// Where to look.
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    pub collection: String,
    /// Passages to answer from.
    #[arg(long, short = 'k', value_name = "N", default_value_t = 5)]
    pub top_k: u32,
    /// Print the answer while it is being written.
    #[arg(long)]
    pub stream: bool,
    /// Language model, where several are configured.
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Longest answer, in tokens.
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// Metadata filter, JSON.
    #[arg(long, value_name = "JSON", value_parser = parse_json)]
    pub filter: Option<Value>,
}

/// Runs the verb.
pub async fn run(global: &Global, arguments: &Arguments) -> Result<(), Error> {
    let client = global.client()?;
    // Pieces of an answer are no single JSON value.
    let is_streamed = arguments.stream && !global.json;
    let request = QueryRequest {
        query: arguments.question.clone(),
        collection: arguments.collection.clone(),
        top_k: arguments.top_k,
        filters: arguments.filter.clone(),
        stream: is_streamed,
        model: arguments.model.clone(),
        max_tokens: arguments.max_tokens,
        timeout_ms: (!is_streamed).then(|| timeout_ms(global.timeout)),
    };
    let answered = if request.stream {
        let streamed = stream(&client, &request).await?;
        print_line(&format!("\n\n{}", sources_text(&streamed)));
        streamed
    } else {
        let answered = client.send(reqwest::Method::POST, &["api", "v1", "query"], &request).await;
        let answered: QueryResponse = answered.map_err(advise)?;
        global.output().result(&answered, || format!("{}\n\n{}", answered.answer, sources_text(&answered)));
        answered
    };
    if !answered.shards.is_complete() {
        return Err(Error::Partial(format!("{} of {} shards answered", answered.shards.ok, answered.shards.total)));
    }
    Ok(())
}

/// The time that the coordinator is given: a little less than we wait ourselves, so that it is the one to say what took so long.
fn timeout_ms(timeout: Duration) -> u64 {
    let margin = (timeout / 10).min(MARGIN_MAX);
    u64::try_from((timeout - margin).as_millis()).unwrap_or(u64::MAX).clamp(1, limits::TIMEOUT_MS_MAX)
}

/// The coordinator speaks of the request's fields; here they are options.
fn advise(error: Error) -> Error {
    match error {
        Error::Api(error) if error.kind == DEADLINE_EXCEEDED => {
            let hint = "raise --timeout, or watch the answer being written with --stream".into();
            Error::Api(ApiError { hint, ..error })
        }
        other => other,
    }
}

/// Prints the answer's pieces as they arrive and returns the whole. Errors: the stream ends with an error, or without `done`.
/// Cancel: closing the connection makes the coordinator stop the language model.
async fn stream(client: &Client, request: &QueryRequest) -> Result<QueryResponse, Error> {
    let broken = |detail: String| {
        Error::local(format!("the stream broke: {detail}"), "ask again; `susui status` shows the cluster")
    };
    let response = client.post_stream(&["api", "v1", "query"], request).await?;
    let mut pieces = response.bytes_stream();
    let mut parser = Parser::default();
    let mut answer = Streamed::default();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| match error.is_timeout() {
            true => client.transport_error(&error),
            false => broken(error.to_string()),
        })?;
        for event in parser.feed(&piece).map_err(broken)? {
            if let Some(text) = answer.take(&event)? {
                print_piece(&text);
            }
        }
        if answer.done {
            return Ok(answer.response);
        }
    }
    Err(broken("it ended before the answer did".into()))
}

/// An answer as far as it has arrived.
#[derive(Debug, Default)]
struct Streamed {
    response: QueryResponse,
    done: bool,
}

impl Streamed {
    /// Takes one event and returns what is to be printed at once.
    fn take(&mut self, event: &Event) -> Result<Option<String>, Error> {
        match event.name.as_str() {
            "meta" => {
                let meta: Meta = read(event)?;
                self.response.generator = meta.generator;
                self.response.degraded = meta.degraded;
                self.response.shards = meta.shards;
                self.response.request_id = meta.request_id;
            }
            "delta" => {
                let delta: Delta = read(event)?;
                self.response.answer.push_str(&delta.text);
                return Ok(Some(delta.text));
            }
            "citation" => self.response.citations.push(read(event)?),
            "done" => self.done = true,
            "error" => return Err(Error::Api(read::<ErrorBody>(event)?.error)),
            // `sources` (all that was retrieved, cited or not), `usage`, and whatever a later version adds.
            _ => {}
        }
        Ok(None)
    }
}

#[derive(Deserialize)]
struct Meta {
    generator: String,
    degraded: Option<String>,
    shards: Coverage,
    request_id: String,
}

#[derive(Deserialize)]
struct Delta {
    text: String,
}

fn read<T: DeserializeOwned>(event: &Event) -> Result<T, Error> {
    serde_json::from_str(&event.data).map_err(|error| {
        Error::local(
            format!("event {:?} is not as expected: {error}", event.name),
            "is the coordinator of the same version as this susui?",
        )
    })
}

fn sources_text(answered: &QueryResponse) -> String {
    if answered.citations.is_empty() {
        return "no sources".into();
    }
    let mut text = match answered.generator.as_str() {
        "extractive" => {
            let why = answered.degraded.as_deref().unwrap_or("no language model is configured");
            format!("sources (extractive answer: {why})")
        }
        "" => "sources".to_owned(),
        generator => format!("sources (answer by {generator})"),
    };
    let mut citations: Vec<&Citation> = answered.citations.iter().collect();
    citations.sort_by_key(|citation| (citation.marker, citation.span.start, citation.span.end));
    citations.dedup();
    for citation in citations {
        let title = citation.title.as_deref().filter(|title| !title.is_empty()).unwrap_or(&citation.document_id);
        let Span { start, end } = citation.span;
        let page = citation.page.map(|page| format!(", page {page}")).unwrap_or_default();
        let headings = citation.headings.iter().filter(|heading| *heading != title);
        let headings = headings.map(|heading| format!(" > {heading}")).collect::<String>();
        text.push_str(&format!(
            "\n  [{}] {title}{page}{headings} ({}, bytes {start}..{end}), score {:.3}",
            citation.marker, citation.chunk_id, citation.score
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, data: &str) -> Event {
        Event { name: name.into(), data: data.into() }
    }

    #[test]
    fn an_answer_grows_by_its_events() {
        let mut answer = Streamed::default();
        let citation =
            r#"{"marker":1,"chunk_id":"d#0","document_id":"d","title":"D","span":{"start":0,"end":5},"score":0.5}"#;
        let shards = r#"{"total":4,"ok":4,"failed":0,"timed_out":0}"#;
        let events = [
            ("meta", format!(r#"{{"generator":"extractive","request_id":"r","shards":{shards}}}"#)),
            ("sources", format!("[{citation}]")),
            ("delta", r#"{"text":"It is "}"#.to_owned()),
            ("delta", r#"{"text":"so [1]."}"#.to_owned()),
            ("citation", citation.to_owned()),
            ("citation", citation.to_owned()),
            ("usage", "{}".to_owned()),
        ];
        for (name, data) in events {
            answer.take(&event(name, &data)).expect("no error");
            assert!(!answer.done);
        }
        answer.take(&event("done", "{}")).expect("no error");
        assert!(answer.done && answer.response.shards.is_complete());
        assert_eq!(answer.response.answer, "It is so [1].");
        let sources = sources_text(&answer.response);
        assert!(sources.contains("no language model is configured"), "{sources}");
        let degraded = Some("no language model is available: all are down".to_owned());
        let degraded = sources_text(&QueryResponse { degraded, ..answer.response.clone() });
        assert!(degraded.contains("all are down") && !degraded.contains("configured"), "{degraded}");
        let mut placed = answer.response.clone();
        placed.citations[1].page = Some(3);
        placed.citations[1].headings = vec!["Limits".into(), "Wind".into()];
        let placed = sources_text(&placed);
        assert!(placed.contains("[1] D, page 3 > Limits > Wind (d#0, bytes 0..5), score 0.500"), "{placed}");
        assert_eq!(
            sources.matches("[1] D (d#0, bytes 0..5), score 0.500").count(),
            1,
            "a place cited twice is listed once: {sources}"
        );
    }

    #[test]
    fn the_coordinator_gives_up_before_we_do() {
        let seconds = Duration::from_secs;
        assert_eq!([seconds(2), seconds(30), seconds(600)].map(timeout_ms), [1800, 29_000, limits::TIMEOUT_MS_MAX]);
        assert_eq!([Duration::ZERO, Duration::MAX].map(timeout_ms), [1, limits::TIMEOUT_MS_MAX]);
    }

    #[test]
    fn an_error_in_the_stream_ends_it_with_its_kind() {
        let data =
            r#"{"error":{"type":"deadline_exceeded","message":"too slow","hint":"ask for less","retryable":true}}"#;
        let error = Streamed::default().take(&event("error", data)).expect_err("an error");
        assert_eq!(error.exit(), crate::error::Exit::Busy);
        assert!(Streamed::default().take(&event("delta", "not JSON")).is_err());
    }
}
