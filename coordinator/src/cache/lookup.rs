//! Looks a result up and decides whether it may be served.

use std::time::{Duration, Instant};

use cluster_config::ids::{CollectionId, ShardId};
use cluster_config::search::Consistency;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::key::CacheKey;
use super::positions::Verdict;
use super::{CachedResult, RetrievalCache};
use crate::cluster::client::{CopyTarget, NodeClient};
use crate::cluster::view::ClusterView;
use crate::retrieve::plan::by_node;
use crate::retrieve::{RetrievalOptions, Retrieved};

/// A position that takes longer to learn than this is not worth the wait: the search itself is asked instead.
const POSITIONS_TIMEOUT: Duration = Duration::from_millis(200);

impl RetrievalCache {
    /// The stored result, if the shards still stand where it was computed.
    ///
    /// Eventual reads accept a word of the primary that is at most `max_staleness` old; session reads ask now, and the session's own
    /// positions must have been reached. Strong reads never come here: a primary's word alone does not confirm that it still is one.
    /// Never fails: what cannot be confirmed is not served.
    pub async fn look_up(
        &self,
        client: &dyn NodeClient,
        view: &ClusterView,
        collection: CollectionId,
        key: &CacheKey,
        options: &RetrievalOptions,
    ) -> Option<Retrieved> {
        let (nearest, result) = self.find(key).await?;
        let now = Instant::now();
        let since = match options.consistency {
            Consistency::Eventual => now.checked_sub(options.max_staleness).unwrap_or(now),
            Consistency::Session | Consistency::Strong => now,
        };
        if !self.covers(view, collection, &result) || !reaches(&result, options) {
            self.forget(key).await;
            return None;
        }
        let unknown = match self.judge(&result, since) {
            Ok(unknown) => unknown,
            Err(Outdated) => {
                self.forget(key).await;
                return None;
            }
        };
        if !unknown.is_empty() {
            self.ask_primaries(client, view, &unknown, options.deadline).await;
            match self.judge(&result, since) {
                Ok(still_unknown) if still_unknown.is_empty() => {}
                Ok(_) => return None,
                Err(Outdated) => {
                    self.forget(key).await;
                    return None;
                }
            }
        }
        for tier in &self.tiers[..nearest] {
            tier.put(key, std::sync::Arc::clone(&result)).await;
        }
        Some(CachedResult::clone(&result).into_retrieved())
    }

    /// The first tier that has it, by position.
    async fn find(&self, key: &CacheKey) -> Option<(usize, std::sync::Arc<CachedResult>)> {
        for (position, tier) in self.tiers.iter().enumerate() {
            if let Some(result) = tier.get(key).await {
                return Some((position, result));
            }
        }
        None
    }

    async fn forget(&self, key: &CacheKey) {
        for tier in &self.tiers {
            tier.remove(key).await;
        }
    }

    /// Whether the result rests on exactly the shards that the collection has now, in their present lineage.
    fn covers(&self, view: &ClusterView, collection: CollectionId, result: &CachedResult) -> bool {
        let state = view.state();
        let mut shards = 0;
        let all_known = state.shards_of(collection).all(|group| {
            shards += 1;
            result.positions.get(&group.shard).is_some_and(|position| position.lineage == group.lineage)
        });
        all_known && shards == result.positions.len()
    }

    /// Shards whose position must be asked for.
    fn judge(&self, result: &CachedResult, since: Instant) -> Result<Vec<ShardId>, Outdated> {
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
                    self.positions.note(target.shard, &position, Some(asked));
                }
            }
        }
    }
}

/// The shards have moved on.
struct Outdated;

/// Whether the result contains what the session has seen.
fn reaches(result: &CachedResult, options: &RetrievalOptions) -> bool {
    options.consistency == Consistency::Eventual
        || result.positions.iter().all(|(shard, position)| match options.session.token(*shard) {
            Some(token) => token.lineage == position.lineage && position.applied >= token.seqno,
            None => true,
        })
}
