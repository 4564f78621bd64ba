//! `susui search`: the passages nearest to a text or a vector, without a language model.

use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use crate::cli::Global;
use crate::client::Client;
use crate::error::Error;
use crate::npy;
use crate::wire::search::{Hit, SearchRequest, SearchResponse};

/// Most characters of a hit's text that are shown.
const SNIPPET_CHARS_MAX: usize = 240;

/// Find the passages nearest to a text or a vector
///
/// Prints the best chunks with their scores (cosine similarity unless the collection says
/// otherwise; larger is better). Ends with exit code 3 where not all shards answered.
///
/// Examples:
///   susui search "how do I stop a node?" -c docs -k 3
///   susui search "budget" -c docs --filter '{"must":[{"field":"year","gte":2020}]}'
///   susui search --vector-npy queries.npy --row 7 -c glosses --json
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Arguments {
    /// What to look for.
    #[arg(value_name = "TEXT", required_unless_present = "vector_npy")]
    pub text: Option<String>,
    /// A two-dimensional .npy file with the query vector in one of its rows.
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    pub vector_npy: Option<PathBuf>,
    /// Row of --vector-npy.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub row: usize,
    /// Where to look.
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    pub collection: String,
    /// Results wanted.
    #[arg(long, short = 'k', value_name = "N", default_value_t = 5)]
    pub top_k: u32,
    /// Metadata filter, JSON.
    #[arg(long, value_name = "JSON", value_parser = parse_json)]
    pub filter: Option<Value>,
    /// How the shards search.
    #[command(flatten)]
    pub knobs: Knobs,
}

/// Speed against recall, and which copy answers.
#[derive(Clone, Debug, Default, Args)]
pub struct Knobs {
    /// Lists probed per shard.
    #[arg(long, value_name = "N")]
    pub nprobe: Option<u32>,
    /// Candidates re-scored exactly per result.
    #[arg(long, value_name = "X")]
    pub oversample: Option<f32>,
    /// Compare with every row instead of using the index.
    #[arg(long)]
    pub exact: bool,
    /// Copy of each shard asked first.
    #[arg(long, value_name = "primary|replica|node:ID", value_parser = parse_copy)]
    pub prefer_copy: Option<String>,
}

impl Knobs {
    /// A request for `top_k` results of `collection` with these knobs; the caller adds what to look for.
    pub fn request(&self, collection: &str, top_k: u32) -> SearchRequest {
        SearchRequest {
            collection: collection.to_owned(),
            top_k,
            nprobe: self.nprobe,
            oversample: self.oversample,
            exact: self.exact,
            prefer_copy: self.prefer_copy.clone(),
            ..SearchRequest::default()
        }
    }
}

/// Runs the verb.
pub async fn run(global: &Global, arguments: &Arguments) -> Result<(), Error> {
    let client = global.client()?;
    let request = SearchRequest {
        query: arguments.text.clone(),
        vector: arguments.vector_npy.as_ref().map(|file| read_row(file, arguments.row)).transpose()?,
        filters: arguments.filter.clone(),
        ..arguments.knobs.request(&arguments.collection, arguments.top_k)
    };
    let found = search(&client, &request).await?;
    global.output().result(&found, || text(&found));
    if !found.shards.is_complete() {
        return Err(Error::Partial(format!("{} of {} shards answered", found.shards.ok, found.shards.total)));
    }
    Ok(())
}

/// One search, repeated while the cluster is busy.
pub async fn search(client: &Client, request: &SearchRequest) -> Result<SearchResponse, Error> {
    client.send(reqwest::Method::POST, &["api", "v1", "search"], request).await
}

fn read_row(file: &std::path::Path, row: usize) -> Result<Vec<f32>, Error> {
    let mut array = npy::open(file)?;
    if row >= array.rows() {
        return Err(Error::usage(
            format!("{} has {} rows, there is no row {row}", file.display(), array.rows()),
            "rows count from 0",
        ));
    }
    for _ in 0..row {
        array.next_vectors(1)?;
    }
    Ok(array.next_vectors(1)?.remove(0))
}

fn text(found: &SearchResponse) -> String {
    if found.hits.is_empty() {
        return "nothing found".into();
    }
    let hits = found.hits.iter().enumerate().map(|(index, hit)| hit_text(index + 1, hit));
    hits.collect::<Vec<_>>().join("\n")
}

fn hit_text(place: usize, hit: &Hit) -> String {
    let title =
        hit.title.as_deref().filter(|title| !title.is_empty()).map(|title| format!("  {title}")).unwrap_or_default();
    let text = hit.text.as_deref().map(snippet).filter(|text| !text.is_empty());
    let text = text.map(|text| format!("\n      {text}")).unwrap_or_default();
    format!("{place:>3}.  {:.4}  {}{title}{text}", hit.score, hit.chunk_id)
}

/// A text in one line, cut to what a screen takes.
pub fn snippet(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SNIPPET_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

/// Reads an argument as JSON.
pub fn parse_json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn parse_copy(text: &str) -> Result<String, String> {
    let is_node = text.strip_prefix("node:").is_some_and(|id| id.parse::<u64>().is_ok());
    if is_node || matches!(text, "primary" | "replica") {
        return Ok(text.to_owned());
    }
    Err("expected primary, replica or node:ID".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_named_as_the_api_names_them() {
        assert!(["primary", "replica", "node:3"].into_iter().all(|text| parse_copy(text).is_ok()));
        assert!(["0", "node:", "node:x", "Primary"].into_iter().all(|text| parse_copy(text).is_err()));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let long = "ü ".repeat(SNIPPET_CHARS_MAX);
        let cut = snippet(&long);
        assert!(cut.ends_with("...") && cut.chars().count() == SNIPPET_CHARS_MAX + 3);
        assert_eq!(snippet(" a\n b "), "a b");
    }
}
