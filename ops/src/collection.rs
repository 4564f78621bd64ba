//! `susui collection`: create, list, show, delete, and wait until indexed.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args, Subcommand};
use cluster_config::collection::{FieldType, Metric};
use cluster_config::limits;
use reqwest::Method;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::client::Client;
use crate::error::Error;
use crate::output::{Output, row, table};
use crate::settled;
use crate::wire::collection::{CollectionInfo, CollectionList, CollectionRequest, Deleted, IndexRequest};

/// The model that embeds texts unless another one, or none, is asked for.
pub const EMBEDDER_DEFAULT: &str = "all-MiniLM-L6-v2";

/// The verbs of `susui collection`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a collection. Safe to repeat with the same settings; refused with others
    ///
    /// Without --dim it is for texts: an embedding model turns them into vectors. With --dim N it
    /// is for vectors of your own. Settings are fixed for the life of the collection.
    ///
    /// Examples:
    ///   susui collection create docs
    ///   susui collection create docs --shards 4 --copies 2 --field year=integer --field author=keyword
    ///   susui collection create glosses --dim 384 --pca-dim 192
    #[command(verbatim_doc_comment)]
    Create(Box<CreateArguments>),
    /// List all collections
    ///
    /// Example:
    ///   susui collection list
    #[command(verbatim_doc_comment)]
    List,
    /// Show one collection with all its settings
    ///
    /// Example:
    ///   susui collection show docs --json
    #[command(verbatim_doc_comment)]
    Show {
        /// Name.
        name: String,
    },
    /// Delete a collection with all its documents. Only says what it would do, unless --yes is given
    ///
    /// An alias is refused: its collection has a name of its own.
    ///
    /// Examples:
    ///   susui collection delete docs
    ///   susui collection delete docs --yes
    #[command(verbatim_doc_comment)]
    Delete {
        /// Name.
        name: String,
        /// Really delete.
        #[arg(long)]
        yes: bool,
    },
    /// Wait until every shard has moved its rows into a trained index, or is too small to need one
    ///
    /// Example:
    ///   susui collection wait-indexed glosses --for 10m
    #[command(verbatim_doc_comment)]
    WaitIndexed {
        /// Name.
        name: String,
        /// Longest wait.
        #[arg(long = "for", value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
        wait: Duration,
    },
}

/// Arguments of `susui collection create`. What is not given is chosen by the cluster.
#[derive(Debug, Args)]
pub struct CreateArguments {
    /// Name: 1 to 64 of a-z, 0-9, _ and -.
    pub name: String,
    /// Dimension of your own vectors; leaves the embedding model out unless --embedder names one.
    #[arg(long, value_name = "N")]
    pub dim: Option<u32>,
    /// Embedding model.
    #[arg(long, value_name = "NAME")]
    pub embedder: Option<String>,
    /// How vectors are compared.
    #[arg(long, value_name = "cosine|l2|dot", value_parser = parse_word::<Metric>)]
    pub metric: Option<Metric>,
    /// Shards; fixed for the life of the collection [default: 4].
    #[arg(long, value_name = "N")]
    pub shards: Option<u32>,
    /// Copies of each shard that can become primary [default: 2].
    #[arg(long, value_name = "N")]
    pub copies: Option<u32>,
    /// Further copies of each shard that only serve reads and never become primary [default: 0].
    #[arg(long, value_name = "N")]
    pub read_replicas: Option<u32>,
    /// Fewest in-sync copies with which writes are accepted [default: 1 for up to two copies, else 2].
    #[arg(long, value_name = "N")]
    pub min_in_sync: Option<u32>,
    /// A metadata field that filters may name; repeat for several. `*=scan` lets them name any other, too, without an index.
    #[arg(long = "field", value_name = "NAME=keyword|integer|float|bool|datetime", value_parser = parse_field)]
    pub fields: Vec<(String, FieldType)>,
    /// Dimension after PCA [default: half the dimension, at most 192].
    #[arg(long, value_name = "N")]
    pub pca_dim: Option<u32>,
    /// Lists of the inverted file [default: chosen from the shard's size].
    #[arg(long, value_name = "N")]
    pub nlist: Option<u32>,
    /// Sub-quantisers; must divide the reduced dimension [default: half of it].
    #[arg(long, value_name = "N")]
    pub m: Option<u32>,
    /// Bits per sub-quantiser, 4 or 8 [default: 4].
    #[arg(long, value_name = "N")]
    pub nbits: Option<u32>,
    /// Lists probed per query [default: chosen from the shard's size].
    #[arg(long, value_name = "N")]
    pub nprobe: Option<u32>,
    /// Candidates re-scored per result [default: 10].
    #[arg(long, value_name = "X")]
    pub oversample: Option<f32>,
    /// Rows of a shard below which it searches exactly [default: 10000].
    #[arg(long, value_name = "N")]
    pub training_floor: Option<u32>,
}

impl CreateArguments {
    fn request(&self) -> CollectionRequest {
        let index = IndexRequest {
            nlist: self.nlist,
            m: self.m,
            nbits: self.nbits,
            nprobe: self.nprobe,
            oversample: self.oversample,
            training_floor: self.training_floor,
        };
        let embedder = match (&self.embedder, self.dim) {
            (Some(name), _) => Some(name.clone()),
            (None, None) => Some(EMBEDDER_DEFAULT.to_owned()),
            (None, Some(_)) => None,
        };
        CollectionRequest {
            dim: self.dim,
            metric: self.metric,
            shards: self.shards,
            copies: self.copies,
            read_replicas: self.read_replicas,
            min_in_sync: self.min_in_sync,
            embedder,
            fields: self.fields.iter().cloned().collect::<BTreeMap<_, _>>(),
            pca_dim: self.pca_dim,
            index: (index != IndexRequest::default()).then_some(index),
        }
    }
}

/// Runs one verb.
pub async fn run(global: &Global, command: Command) -> Result<(), Error> {
    let client = global.client()?;
    let output = global.output();
    match command {
        Command::Create(arguments) => {
            let created = create(&client, &arguments.name, &arguments.request()).await?;
            output.result(&created, || format!("collection {} is there", created.summary()));
        }
        Command::List => {
            let list: CollectionList = client.get(&["api", "v1", "collections"]).await?;
            output.result(&list, || list_text(&list));
        }
        Command::Show { name } => {
            let found = show(&client, &name).await?;
            output.result(&found, || show_text(&found));
        }
        Command::Delete { name, yes } => delete(&client, output, &name, yes).await?,
        Command::WaitIndexed { name, wait } => wait_indexed(&client, output, &name, wait).await?,
    }
    Ok(())
}

/// Creates a collection and returns it as the cluster holds it.
pub async fn create(client: &Client, name: &str, request: &CollectionRequest) -> Result<CollectionInfo, Error> {
    let _: Value = client.send(Method::PUT, &["api", "v1", "collections", name], request).await?;
    show(client, name).await
}

/// A request for a collection of texts with the default model.
pub fn text_collection() -> CollectionRequest {
    CollectionRequest { embedder: Some(EMBEDDER_DEFAULT.to_owned()), ..CollectionRequest::default() }
}

/// One collection by name.
pub async fn show(client: &Client, name: &str) -> Result<CollectionInfo, Error> {
    client.get(&["api", "v1", "collections", name]).await
}

async fn delete(client: &Client, output: Output, name: &str, yes: bool) -> Result<(), Error> {
    let found = show(client, name).await?;
    if found.name != name {
        return Err(Error::usage(
            format!("{name} is an alias of {}", found.name),
            format!("`susui alias delete {name}` removes the alias; to delete the collection, name it"),
        ));
    }
    if !yes {
        output.result(&json!({"collection": name, "deleted": false, "dry_run": true}), || {
            format!(
                "would delete collection {} with all its documents; nothing was done: repeat with --yes",
                found.summary()
            )
        });
        return Ok(());
    }
    let Deleted { existed } = client.delete(&["api", "v1", "collections", name]).await?;
    output.result(&json!({"collection": name, "deleted": existed, "dry_run": false}), || match existed {
        true => format!("collection {name} is deleted"),
        false => format!("collection {name} was gone already"),
    });
    Ok(())
}

async fn wait_indexed(client: &Client, output: Output, name: &str, wait: Duration) -> Result<(), Error> {
    let collection = show(client, name).await?;
    let (_, shards) = settled::wait(client, output, &collection, None, wait).await?;
    output.result(&shards, || format!("all {} shards of {name} are indexed or exact", shards.len()));
    Ok(())
}

impl CollectionInfo {
    fn summary(&self) -> String {
        let source = self
            .embedder
            .as_deref()
            .map_or_else(|| "vectors of your own".to_owned(), |name| format!("texts by {name}"));
        format!("{} ({source}, {} dimensions, {} shards x {} copies)", self.name, self.dim, self.shards, self.copies)
    }
}

fn list_text(list: &CollectionList) -> String {
    if list.collections.is_empty() {
        return "no collections: create one with `susui collection create NAME`".into();
    }
    let mut rows = vec![row(["NAME", "DIM", "METRIC", "SHARDS", "COPIES", "EMBEDDER"])];
    for collection in &list.collections {
        rows.push(vec![
            collection.name.clone(),
            collection.dim.to_string(),
            word(&collection.metric),
            collection.shards.to_string(),
            collection.copies.to_string(),
            collection.embedder.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    table(&rows)
}

fn show_text(collection: &CollectionInfo) -> String {
    let automatic = |value: Option<u32>| value.map_or_else(|| "automatic".to_owned(), |value| value.to_string());
    let fields: Vec<String> = collection.fields.iter().map(|(name, kind)| format!("{name}={}", word(kind))).collect();
    let index = &collection.index;
    let rows = [
        ("name", collection.name.clone()),
        ("dimension", format!("{} (index sees {})", collection.dim, collection.pca_dim.unwrap_or(collection.dim))),
        ("metric", word(&collection.metric)),
        ("shards x copies", format!("{} x {}", collection.shards, collection.copies)),
        ("read replicas", format!("{} of each shard", collection.read_replicas)),
        ("min in-sync", collection.min_in_sync.to_string()),
        ("embedder", collection.embedder.clone().unwrap_or_else(|| "none: bring your own vectors".into())),
        ("fields", if fields.is_empty() { "none".into() } else { fields.join(", ") }),
        (
            "index",
            format!(
                "nlist {}, m {}, nbits {}, nprobe {}, oversample {}",
                automatic(index.nlist),
                automatic(index.m),
                index.nbits,
                automatic(index.nprobe),
                index.oversample
            ),
        ),
        ("exact below", format!("{} rows per shard", index.training_floor)),
    ];
    table(&rows.map(|(key, value)| vec![key.to_owned(), value]))
}

/// The word an enum travels as.
fn word<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn parse_word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(Value::String(text.to_owned())).map_err(|error| error.to_string())
}

fn parse_field(text: &str) -> Result<(String, FieldType), String> {
    let (name, kind) = text.split_once('=').ok_or("expected NAME=TYPE")?;
    if name.is_empty() || name.len() > limits::FIELD_NAME_BYTES_MAX {
        return Err(format!("the name must have 1 to {} bytes", limits::FIELD_NAME_BYTES_MAX));
    }
    Ok((name.to_owned(), parse_word(kind)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Harness {
        #[command(flatten)]
        arguments: CreateArguments,
    }

    fn request(line: &str) -> Value {
        let arguments = Harness::try_parse_from(["x"].into_iter().chain(line.split(' '))).expect("parses").arguments;
        serde_json::to_value(arguments.request()).expect("plain")
    }

    #[test]
    fn only_what_was_asked_for_is_sent() {
        assert_eq!(request("docs"), json!({"embedder": EMBEDDER_DEFAULT}));
        assert_eq!(request("v --dim 8 --metric l2"), json!({"dim": 8, "metric": "l2"}));
        assert_eq!(request("v --dim 8 --read-replicas 1"), json!({"dim": 8, "read_replicas": 1}));
        assert_eq!(request("v --dim 8 --field *=scan"), json!({"dim": 8, "fields": {"*": "scan"}}));
        assert_eq!(
            request("v --dim 8 --embedder e --shards 2 --field year=integer --nprobe 3"),
            json!({"dim": 8, "embedder": "e", "shards": 2, "fields": {"year": "integer"}, "index": {"nprobe": 3}})
        );
    }

    #[test]
    fn wrong_words_are_refused_before_anything_is_sent() {
        for line in ["docs --metric hamming", "docs --field year", "docs --field year=date", "docs --field =bool"] {
            assert!(Harness::try_parse_from(["x"].into_iter().chain(line.split(' '))).is_err(), "{line}");
        }
    }
}
