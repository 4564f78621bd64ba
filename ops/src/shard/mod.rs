//! `susui shard`: a look into one shard, and an operator's hand on it.

mod digest;
mod explain;
mod promote;

use std::fmt;
use std::str::FromStr;

use clap::Subcommand;
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cli::Global;
use crate::client::Client;
use crate::error::Error;

/// The verbs of `susui shard`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say why a shard is as it is: register, copies, positions, and what each copy waits for
    ///
    /// HEALTH, term, lineage and in-sync set as agreed by the metadata group; BEHIND counts the
    /// entries that a copy has not applied of those its primary knows to be committed. Forced
    /// recoveries of the shard are listed.
    ///
    /// Example:
    ///   susui shard explain docs/0
    #[command(verbatim_doc_comment)]
    Explain {
        /// The shard.
        #[arg(value_name = "COLLECTION/INDEX")]
        shard: ShardName,
    },
    /// Compare the contents of a shard's copies by digest
    ///
    /// Each copy hashes its documents, vectors and index membership at one position. Equal
    /// positions with different digests mean that the copies diverged: that must never be, keep
    /// the data and report it. Copies at different positions (writes are under way, or one is
    /// catching up) cannot be compared: repeat when they are level. Ends with exit code 7 unless
    /// all are equal.
    ///
    /// Example:
    ///   susui shard digest docs/0
    #[command(verbatim_doc_comment)]
    Digest {
        /// The shard.
        #[arg(value_name = "COLLECTION/INDEX")]
        shard: ShardName,
    },
    /// Make a read replica a voter: it enters the in-sync set once it has caught up, and can become primary
    ///
    /// The cluster builds another read replica in its place where it has a node for it. Safe to
    /// repeat. There is no way back but to remove the copy.
    ///
    /// Example:
    ///   susui shard promote-replica docs/0 --copy 7
    #[command(verbatim_doc_comment)]
    PromoteReplica {
        /// The shard.
        #[arg(value_name = "COLLECTION/INDEX")]
        shard: ShardName,
        /// The read replica; `susui shard explain` lists the copies.
        #[arg(long, value_name = "N")]
        copy: u64,
    },
    /// Recover a shard from one copy when all its in-sync copies are lost. Only says what that costs, unless --accept-data-loss is given
    ///
    /// Whatever only other copies hold is LOST, acknowledged or not. The copy becomes the
    /// beginning of a new lineage: the other copies are deleted and built anew from it, session
    /// tokens of the shard become void, and the act is recorded (`susui status` shows it).
    ///
    /// Think first: an in-sync copy on a dead node or an unmounted disk brings everything back if
    /// the node does. Refused while a member of the in-sync set lives, unless --override-live
    /// is given too. Without --accept-data-loss it ends with exit code 7 if it would be refused.
    ///
    /// Examples:
    ///   susui shard force-promote docs/0 --copy 7
    ///   susui shard force-promote docs/0 --copy 7 --accept-data-loss
    #[command(verbatim_doc_comment)]
    ForcePromote(promote::ForceArguments),
}

/// Runs one verb.
pub async fn run(global: &Global, command: Command) -> Result<(), Error> {
    match command {
        Command::Explain { shard } => explain::run(global, &shard).await,
        Command::Digest { shard } => digest::run(global, &shard).await,
        Command::PromoteReplica { shard, copy } => promote::replica(global, &shard, copy).await,
        Command::ForcePromote(arguments) => promote::force(global, &arguments).await,
    }
}

/// A shard as people name it: `docs/0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardName {
    /// Name of the collection.
    pub collection: String,
    /// Position in it.
    pub index: u32,
}

impl ShardName {
    /// Asks for an action on the shard. Every one of them is safe to repeat.
    async fn post<B: Serialize, T: DeserializeOwned>(&self, client: &Client, verb: &str, body: &B) -> Result<T, Error> {
        let action = format!("{}:{verb}", self.index);
        client.send(Method::POST, &["api", "v1", "shards", &self.collection, &action], body).await
    }
}

impl fmt::Display for ShardName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.collection, self.index)
    }
}

impl FromStr for ShardName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (collection, index) = text.split_once('/').ok_or("expected COLLECTION/INDEX, for example docs/0")?;
        cluster_config::ids::check_collection_name(collection).map_err(|error| error.to_string())?;
        let index = index.parse().map_err(|_| format!("{index:?} is not a shard index"))?;
        Ok(Self { collection: collection.to_owned(), index })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_named_by_collection_and_index() {
        assert_eq!("docs/3".parse(), Ok(ShardName { collection: "docs".into(), index: 3 }));
        for bad in ["docs", "docs/x", "DOCS/1", "/1"] {
            assert!(bad.parse::<ShardName>().is_err(), "{bad}");
        }
    }
}
