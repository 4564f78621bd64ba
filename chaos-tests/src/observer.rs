//! Looks at `GET /api/v1/cluster` all the time, and keeps what it saw of the metadata for the checkers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::history::History;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(150);

/// One shard's register as agreed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// `collection_id/index`.
    pub shard: String,
    /// Name of the collection.
    pub collection: String,
    /// Position in it.
    pub index: u64,
    /// Raised by every change.
    pub version: u64,
    /// Raised by every grant.
    pub term: u64,
    /// The primary copy and its node.
    pub primary: Option<(u64, u64)>,
    /// The in-sync set.
    pub in_sync: Vec<u64>,
    /// Changes only by recovery with data loss.
    pub lineage: u64,
    /// Copies and their nodes.
    pub copies: Vec<(u64, u64)>,
}

/// One look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// When it was asked for.
    pub called_us: u64,
    /// When the answer came.
    pub answered_us: u64,
    /// Of the whole state.
    pub state_version: u64,
    /// The metadata leader.
    pub leader: Option<u64>,
    /// Its term.
    pub raft_term: u64,
    /// Names of all collections.
    pub collections: BTreeSet<String>,
    /// All shards.
    pub registers: Vec<Register>,
}

impl Look {
    /// The register of a shard, by its collection's name.
    pub fn register(&self, collection: &str, index: u64) -> Option<&Register> {
        self.registers.iter().find(|register| register.collection == collection && register.index == index)
    }
}

/// Reads a reply of `GET /api/v1/cluster`.
pub fn read(reply: &Value, called_us: u64, answered_us: u64) -> anyhow::Result<Look> {
    let number = |value: &Value, field: &str| value[field].as_u64().with_context(|| format!("no {field} in {value}"));
    let register = |shard: &Value| {
        let copies = shard["copies"].as_array().context("no copies")?;
        let copies: Vec<(u64, u64)> = copies
            .iter()
            .map(|copy| Ok((number(copy, "copy")?, number(copy, "node")?)))
            .collect::<anyhow::Result<_>>()?;
        let primary = shard["primary"].as_u64();
        anyhow::Ok(Register {
            shard: shard["shard"].as_str().context("no shard")?.to_owned(),
            collection: shard["collection"].as_str().context("no collection")?.to_owned(),
            index: number(shard, "index")?,
            version: number(shard, "version")?,
            term: number(shard, "primary_term")?,
            primary: primary.and_then(|primary| copies.iter().find(|(copy, _)| *copy == primary).copied()),
            in_sync: shard["in_sync"].as_array().context("no in_sync")?.iter().filter_map(Value::as_u64).collect(),
            lineage: number(shard, "lineage")?,
            copies,
        })
    };
    Ok(Look {
        called_us,
        answered_us,
        state_version: number(reply, "state_version")?,
        leader: reply["metadata"]["leader"].as_u64(),
        raft_term: number(&reply["metadata"], "raft_term")?,
        collections: reply["collections"]
            .as_array()
            .context("no collections")?
            .iter()
            .filter_map(|collection| collection["name"].as_str().map(str::to_owned))
            .collect(),
        registers: reply["shards"]
            .as_array()
            .context("no shards")?
            .iter()
            .map(register)
            .collect::<anyhow::Result<_>>()?,
    })
}

/// One look now.
pub async fn look(client: &Client, history: &History) -> anyhow::Result<Look> {
    let called_us = history.now_us();
    let reply = client.cluster().await?;
    read(&reply, called_us, history.now_us())
}

/// Looks until `stop`. Looks that fail are left out: while no metadata leader can be reached there is nothing to see.
pub async fn run(client: Client, history: Arc<History>, stop: CancellationToken) -> Vec<Look> {
    let mut looks = Vec::new();
    while !stop.is_cancelled() {
        if let Ok(seen) = look(&client, &history).await {
            looks.push(seen);
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
    looks
}

/// How often the primary of a shard of that collection moved to another copy.
pub fn failovers(looks: &[Look], collection: &str) -> u64 {
    let mut in_order: Vec<&Look> = looks.iter().collect();
    in_order.sort_by_key(|look| look.state_version);
    let moved = |pair: &[&Look]| {
        let (before, after) = (pair[0], pair[1]);
        let ours = before.registers.iter().filter(|before| before.collection == collection);
        ours.filter(|before| {
            let later = after.registers.iter().find(|later| later.shard == before.shard);
            later.is_some_and(|later| {
                later.term > before.term && later.primary != before.primary && later.primary.is_some()
            })
        })
        .count() as u64
    };
    in_order.windows(2).map(moved).sum()
}

#[cfg(test)]
pub(crate) mod by_hand {
    use super::*;

    /// A register of shard `1/0`.
    pub(crate) fn register(version: u64, term: u64, primary: u64, in_sync: &[u64]) -> Register {
        Register {
            shard: "1/0".into(),
            collection: "c".into(),
            index: 0,
            version,
            term,
            primary: Some((primary, primary)),
            in_sync: in_sync.to_vec(),
            lineage: 0,
            copies: vec![(1, 1), (2, 2)],
        }
    }

    /// A look at that register, the `number`th.
    pub(crate) fn look(number: u64, state_version: u64, register: Register) -> Look {
        Look {
            called_us: number * 10,
            answered_us: number * 10 + 5,
            state_version,
            leader: Some(1),
            raft_term: 1,
            collections: BTreeSet::from(["c".to_owned()]),
            registers: vec![register],
        }
    }

    #[test]
    fn a_primary_elsewhere_in_a_higher_term_is_a_failover() {
        let looks = [
            look(1, 1, register(1, 1, 1, &[1, 2])),
            look(2, 2, register(2, 2, 2, &[2])),
            look(3, 3, register(3, 2, 2, &[1, 2])),
            look(4, 4, register(4, 3, 2, &[1, 2])),
        ];
        assert_eq!(failovers(&looks, "c"), 1);
        let mut as_two_saw_them = looks.clone();
        as_two_saw_them.swap(0, 2);
        assert_eq!(failovers(&as_two_saw_them, "c"), 1);
        assert_eq!(failovers(&looks, "d"), 0);
    }
}
