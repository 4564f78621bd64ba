//! What nodes say of themselves in `/metrics`, whatever is agreed: who takes itself for the primary of which shard in which term, and how
//! many snapshots it fetched.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::history::History;

/// Between two looks at a node.
const PAUSE: Duration = Duration::from_millis(200);
/// A node that is stopped does not answer.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A node's word that it is the primary.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// Name of the collection.
    pub collection: String,
    /// Position of the shard in it.
    pub index: u64,
    /// The highest term that the copy has on disk. A copy that was made primary a moment ago may still show the term before.
    pub term: u64,
    /// Who says so, from 1.
    pub node: u64,
}

/// Everything that was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Each claim with the instant at which it had been read for the first time.
    pub claims: BTreeMap<Claim, u64>,
    /// Snapshots fetched, by all nodes over all their lives, as far as was seen.
    pub snapshots: u64,
}

impl Seen {
    fn merge(mut self, other: Self) -> Self {
        for (claim, seen_us) in other.claims {
            let first = self.claims.entry(claim).or_insert(seen_us);
            *first = seen_us.min(*first);
        }
        self.snapshots += other.snapshots;
        self
    }
}

/// Looks at the nodes, whose ports of metrics are given in order, until `stop`.
pub async fn run(ports: &[u16], history: Arc<History>, stop: CancellationToken) -> Seen {
    let mut nodes = JoinSet::new();
    for (node, port) in (1..).zip(ports) {
        nodes.spawn(follow(node, Client::new(*port), Arc::clone(&history), stop.clone()));
    }
    nodes.join_all().await.into_iter().fold(Seen::default(), Seen::merge)
}

async fn follow(node: u64, client: Client, history: Arc<History>, stop: CancellationToken) -> Seen {
    let (mut seen, mut fetched_before) = (Seen::default(), 0);
    while !stop.is_cancelled() {
        if let Ok(Ok(text)) = tokio::time::timeout(TIMEOUT, client.text("/metrics")).await {
            let now_us = history.now_us();
            for claim in claims(node, &text) {
                seen.claims.entry(claim).or_insert(now_us);
            }
            let fetched = snapshots(&text);
            // A process that was started again counts from zero.
            seen.snapshots += if fetched < fetched_before { fetched } else { fetched - fetched_before };
            fetched_before = fetched;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
    seen
}

/// Labels and values of a series.
fn series<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, u64)> {
    text.lines().filter_map(move |line| {
        let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} ")?;
        Some((labels, value.parse().ok()?))
    })
}

/// The value of a label; names of collections and numbers need no escapes.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
}

fn claims(node: u64, text: &str) -> Vec<Claim> {
    let terms: BTreeMap<&str, u64> = series(text, "susui_shard_primary_term").collect();
    let primaries = series(text, "susui_shard_is_primary").filter(|(_, is_primary)| *is_primary == 1);
    let claim = |(labels, _): (&str, u64)| {
        Some(Claim {
            collection: label(labels, "collection")?.to_owned(),
            index: label(labels, "shard")?.parse().ok()?,
            term: *terms.get(labels)?,
            node,
        })
    };
    primaries.filter_map(claim).collect()
}

fn snapshots(text: &str) -> u64 {
    let fetched = series(text, "susui_transfer_attempts_total");
    fetched.filter(|(labels, _)| label(labels, "outcome") == Some("ok")).map(|(_, count)| count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a node writes it.
    const METRICS: &str = r#"# HELP susui_shard_is_primary 1 where the copy is the primary
# TYPE susui_shard_is_primary gauge
susui_shard_is_primary{collection="chaos",shard="0"} 1
susui_shard_is_primary{collection="chaos",shard="1"} 0
# TYPE susui_shard_primary_term gauge
susui_shard_primary_term{collection="chaos",shard="0"} 7
susui_shard_primary_term{collection="chaos",shard="1"} 3
# TYPE susui_transfer_attempts_total counter
susui_transfer_attempts_total{outcome="ok"} 2
susui_transfer_attempts_total{outcome="unavailable"} 5
"#;

    #[test]
    fn only_primaries_claim() {
        let claim = Claim { collection: "chaos".into(), index: 0, term: 7, node: 2 };
        assert_eq!(claims(2, METRICS), [claim]);
        assert_eq!(snapshots(METRICS), 2);
    }

    #[test]
    fn the_first_sight_of_a_claim_counts() {
        let claim = Claim { collection: "c".into(), index: 0, term: 1, node: 1 };
        let seen = |at_us| Seen { claims: BTreeMap::from([(claim.clone(), at_us)]), snapshots: 1 };
        let merged = seen(20).merge(seen(10)).merge(seen(30));
        assert_eq!((merged.claims[&claim], merged.snapshots), (10, 3));
    }
}
