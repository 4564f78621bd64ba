//! What nodes say of themselves in `/metrics`, whatever is agreed: who takes itself for the primary of which shard in which term, and how
//! many snapshots it fetched.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::history::History;
use crate::metrics::{Sample, samples};

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

/// Looks at the nodes' metrics, whose clients are given in order, until `stop`.
pub async fn run(clients: Vec<Client>, history: Arc<History>, stop: CancellationToken) -> Seen {
    let mut nodes = JoinSet::new();
    for (node, client) in (1..).zip(clients) {
        nodes.spawn(follow(node, client, Arc::clone(&history), stop.clone()));
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

fn claims(node: u64, text: &str) -> Vec<Claim> {
    let terms: BTreeMap<&str, u64> =
        samples(text, "susui_shard_primary_term", &[]).map(|sample| (sample.labels, sample.value as u64)).collect();
    let primaries = samples(text, "susui_shard_is_primary", &[]).filter(|sample| sample.value == 1.0);
    let claim = |sample: Sample<'_>| {
        Some(Claim {
            collection: sample.label("collection")?.to_owned(),
            index: sample.label("shard")?.parse().ok()?,
            term: *terms.get(sample.labels)?,
            node,
        })
    };
    primaries.filter_map(claim).collect()
}

fn snapshots(text: &str) -> u64 {
    let fetched = samples(text, "susui_transfer_attempts_total", &[("outcome", "ok")]);
    fetched.map(|sample| sample.value as u64).sum()
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
