//! Looks a result up and decides whether it may be served.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::ids::{CollectionId, ShardId};
use cluster_config::search::Consistency;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::key::CacheKey;
use super::metrics::Kind;
use super::positions::{Since, Verdict, Word};
use super::redis::Term;
use super::single_flight::half_way;
use super::turn::{self, Looked, Turn, Waiting};
use super::{CachedResult, RetrievalCache};
use crate::cluster::client::{CopyTarget, NodeClient};
use crate::cluster::view::ClusterView;
use crate::retrieve::plan::by_node;
use crate::retrieve::{RetrievalOptions, Retrieved};

/// A position that takes longer to learn than this is not worth the wait: the search itself is asked instead.
const POSITIONS_TIMEOUT: Duration = Duration::from_millis(200);

/// How long a lease holds if its owner dies: about what a search takes on a busy cluster.
const LEASE: Duration = Duration::from_millis(250);
/// How long another coordinator's search is waited for: what a dead owner of a lease costs. A search that takes longer is better asked
/// twice than waited for.
const LEASE_WAIT_MAX: Duration = Duration::from_millis(60);
/// Pauses between looks at it: the first, doubled up to the longest.
const LEASE_PAUSES: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(25));

/// What is looked up, and what a lookup may need to confirm it.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// The primaries are asked through it.
    pub client: &'a dyn NodeClient,
    /// Which shards there are, and who their primaries are.
    pub view: &'a ClusterView,
    /// Searched.
    pub collection: CollectionId,
    /// Of the search.
    pub key: &'a CacheKey,
    /// How old a result may be, and what the session has seen.
    pub options: &'a RetrievalOptions,
}

/// What one tier had.
enum FromTier {
    Fresh(Retrieved),
    Nothing,
    /// Something that nobody could confirm.
    Unconfirmed,
}

impl RetrievalCache {
    /// The stored result, if the shards still stand where it was computed, from the nearest tier that has one.
    ///
    /// Eventual reads accept a word of the primary that is at most `max_staleness` old; session reads ask now, and the session's own
    /// positions must have been reached. Strong reads never come here: a primary's word alone does not confirm that it still is one.
    /// Never fails: what cannot be confirmed is not served.
    pub async fn look_up(&self, asked: &Asked<'_>) -> Option<Retrieved> {
        for position in 0..self.tiers.len() {
            let found = self.ask_tier(position, asked).await;
            let is_hit = matches!(found, FromTier::Fresh(_));
            let tier = self.tiers[position].tier();
            self.metrics.looked_up(tier, Kind::Retrieval, u64::from(is_hit), u64::from(!is_hit));
            match found {
                FromTier::Fresh(retrieved) => return Some(retrieved),
                FromTier::Nothing => {}
                FromTier::Unconfirmed => return None,
            }
        }
        None
    }

    /// As [`look_up`](Self::look_up), and where nothing is found the turn to compute: after waiting for an equal search of this
    /// process, and briefly for one of another coordinator.
    ///
    /// Waiting never hands over a result: only a lookup, which checks positions, does.
    /// Cancel: dropping it gives every turn back.
    pub async fn look_up_or_begin(&self, asked: &Asked<'_>) -> Looked<Retrieved> {
        if let Some(found) = self.look_up(asked).await {
            return Looked::Found(found);
        }
        let until = half_way(Instant::now(), asked.options.deadline);
        let Some(flight) = self.flights.begin(asked.key, until).await else {
            let found = self.look_up(asked).await;
            return found.map_or_else(|| Looked::Missing(Turn::default()), Looked::Found);
        };
        let until = Instant::now() + LEASE_WAIT_MAX;
        let waiting = Waiting { term: Term::Fixed(LEASE), pauses: LEASE_PAUSES, until };
        let last = self.tiers.len() - 1;
        let look = || async {
            match self.ask_tier(last, asked).await {
                FromTier::Fresh(found) => Some(found),
                FromTier::Nothing | FromTier::Unconfirmed => None,
            }
        };
        turn::begin(flight, self.shared.as_ref(), (Kind::Retrieval, asked.key), waiting, &self.metrics, look).await
    }

    /// What the tier has, if it may be served; then the nearer tiers have it, too. What is outdated is dropped.
    async fn ask_tier(&self, position: usize, asked: &Asked<'_>) -> FromTier {
        let tier = &self.tiers[position];
        let Some(result) = tier.get(asked.key).await else { return FromTier::Nothing };
        match self.check(&result, asked).await {
            Verdict::Holds => {}
            Verdict::Unknown => return FromTier::Unconfirmed,
            Verdict::Outdated => {
                tier.remove(asked.key).await;
                return FromTier::Nothing;
            }
        }
        for nearer in &self.tiers[..position] {
            nearer.put(asked.key, Arc::clone(&result)).await;
        }
        FromTier::Fresh(CachedResult::clone(&result).into_retrieved())
    }

    /// Whether the result may be served, the primaries asked where that is not known.
    async fn check(&self, result: &CachedResult, asked: &Asked<'_>) -> Verdict {
        let options = asked.options;
        let now = Instant::now();
        let since = match options.consistency {
            Consistency::Eventual => Since::Held(now.checked_sub(options.max_staleness).unwrap_or(now)),
            Consistency::Session | Consistency::Strong => Since::Asked(now),
        };
        if !covers(asked.view, asked.collection, result) || !reaches(result, options) {
            return Verdict::Outdated;
        }
        let unknown = match self.judge(result, since) {
            Ok(unknown) if unknown.is_empty() => return Verdict::Holds,
            Ok(unknown) => unknown,
            Err(Outdated) => return Verdict::Outdated,
        };
        self.ask_primaries(asked.client, asked.view, &unknown, options.deadline).await;
        match self.judge(result, since) {
            Ok(unknown) if unknown.is_empty() => Verdict::Holds,
            Ok(_) => Verdict::Unknown,
            Err(Outdated) => Verdict::Outdated,
        }
    }

    /// Shards whose position must be asked for.
    fn judge(&self, result: &CachedResult, since: Since) -> Result<Vec<ShardId>, Outdated> {
        let mut unknown = Vec::new();
        for (shard, position) in result.positions.iter() {
            match self.positions.judge(*shard, position, since) {
                Verdict::Holds => {}
                Verdict::Unknown => unknown.push(*shard),
                Verdict::Outdated => return Err(Outdated),
            }
        }
        Ok(unknown)
    }

    /// Asks the primaries of `shards` where they stand, one call per node, and notes what they say.
    async fn ask_primaries(&self, client: &dyn NodeClient, view: &ClusterView, shards: &[ShardId], deadline: Instant) {
        let state = view.state();
        let primaries = shards.iter().filter_map(|shard| {
            let group = state.shards.get(shard)?;
            let target = group.target(group.primary_copy()?);
            Some((group.primary_node()?, target))
        });
        let asked = Instant::now();
        let deadline = deadline.min(asked + POSITIONS_TIMEOUT);
        let mut replies: FuturesUnordered<_> = by_node(primaries)
            .into_iter()
            .map(|(node, targets)| {
                let call = client.positions(node, targets.clone(), deadline);
                async move { (targets, tokio::time::timeout_at(deadline.into(), call).await) }
            })
            .collect();
        while let Some((targets, reply)) = replies.next().await {
            let Ok(Ok(positions)) = reply else { continue };
            for position in positions {
                let is_asked =
                    |target: &&CopyTarget| Some(target.shard) == position.shard && target.copy == position.copy;
                if let Some(target) = targets.iter().find(is_asked) {
                    self.positions.note(target.shard, &position, Word::of(&position, asked));
                }
            }
        }
    }
}

/// The shards have moved on.
struct Outdated;

/// Whether the result rests on exactly the shards that the collection has now, in their present lineage.
fn covers(view: &ClusterView, collection: CollectionId, result: &CachedResult) -> bool {
    let state = view.state();
    let mut shards = 0;
    let all_known = state.shards_of(collection).all(|group| {
        shards += 1;
        result.positions.get(&group.shard).is_some_and(|position| position.lineage == group.lineage)
    });
    all_known && shards == result.positions.len()
}

/// Whether the result contains what the session has seen.
fn reaches(result: &CachedResult, options: &RetrievalOptions) -> bool {
    options.consistency == Consistency::Eventual
        || result.positions.iter().all(|(shard, position)| match options.session.token(*shard) {
            Some(token) => token.lineage == position.lineage && position.applied >= token.seqno,
            None => true,
        })
}
