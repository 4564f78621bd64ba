//! `susui alias`: other names of collections.

use clap::Subcommand;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cli::Global;
use crate::error::Error;
use crate::output::{row, table};

/// The verbs of `susui alias`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Let an alias stand for a collection, from the next request on. Safe to repeat
    ///
    /// Build an index anew beside the old one, then let the alias that everybody uses stand for it:
    /// no reader sees anything in between.
    ///
    /// Example:
    ///   susui alias set docs docs-2026-11
    #[command(verbatim_doc_comment)]
    Set {
        /// The other name; not the name of a collection.
        alias: String,
        /// An existing collection.
        collection: String,
    },
    /// List all aliases
    ///
    /// Example:
    ///   susui alias list
    #[command(verbatim_doc_comment)]
    List,
    /// Remove an alias; the collection stays. Safe to repeat
    ///
    /// Example:
    ///   susui alias delete docs
    #[command(verbatim_doc_comment)]
    Delete {
        /// The alias.
        alias: String,
    },
}

/// Answer of `GET /api/v1/aliases`.
#[derive(Debug, Serialize, Deserialize)]
struct Aliases {
    aliases: Vec<Alias>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Alias {
    alias: String,
    collection: String,
}

/// Runs one verb.
pub async fn run(global: &Global, command: Command) -> Result<(), Error> {
    let (client, output) = (global.client()?, global.output());
    match command {
        Command::Set { alias, collection } => {
            let body = json!({ "collection": collection });
            let set: Alias = client.send(Method::PUT, &["api", "v1", "aliases", &alias], &body).await?;
            output.result(&set, || format!("{} stands for {}", set.alias, set.collection));
        }
        Command::List => {
            let all: Aliases = client.get(&["api", "v1", "aliases"]).await?;
            output.result(&all, || {
                let header = std::iter::once(row(["ALIAS", "COLLECTION"]));
                let rows = all.aliases.iter().map(|alias| row([&alias.alias, &alias.collection]));
                table(&header.chain(rows).collect::<Vec<_>>())
            });
        }
        Command::Delete { alias } => {
            let deleted: Value = client.delete(&["api", "v1", "aliases", &alias]).await?;
            output.result(&deleted, || match deleted["existed"] {
                Value::Bool(true) => format!("alias {alias} is gone"),
                _ => format!("there was no alias {alias}"),
            });
        }
    }
    Ok(())
}
