//! Reads of documents by name: one shard's chunks of a document, and pages over all shards.
//!
//! Unlike a search these are few and small, so they go without hedges: the primary first (for what was acknowledged must be there), the next
//! copy where one fails or keeps silent.

use std::time::{Duration, Instant};

use cluster_config::collection::Collection;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{DocumentKey, NodeId, ShardId};
use cluster_config::routing;
use cluster_config::search::{Consistency, ShardTarget};
use cluster_config::seqno::SeqNo;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt, stream};

use super::Retriever;
use super::plan::{PlanOptions, Planned, PreferCopy, ShardPlan, plan_shard};
use super::session::Session;
use crate::cluster::client::{FetchTarget, FetchedChunk, ListedDocument, NodeError, PageRequest};
use crate::error::{Error, Result};

/// Shards listed at the same time.
const SHARDS_LISTED_AT_ONCE: usize = 16;
/// A copy that takes longer is left for the next one.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause before all copies are asked again, for session and strong reads; a changed cluster state ends it early.
const ROUND_PAUSE: Duration = Duration::from_millis(50);

/// How a document is to be read.
#[derive(Clone, Debug)]
pub struct DocumentRead {
    /// How fresh.
    pub consistency: Consistency,
    /// Positions the caller has seen.
    pub session: Session,
    /// Everything ends here.
    pub deadline: Instant,
}

/// One page over all shards.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// In id order.
    pub documents: Vec<ListedDocument>,
    /// Whether there are more behind the last.
    pub more: bool,
    /// The caller's session, raised by what was read.
    pub session: Session,
}

impl Retriever {
    /// A document's chunks in order, none if it does not exist, and the caller's session raised by what was read.
    pub async fn fetch_document(
        &self,
        collection: &Collection,
        key: &DocumentKey,
        read: &DocumentRead,
    ) -> Result<(Vec<FetchedChunk>, Session)> {
        let shard = routing::shard_of(collection, key).map_err(|error| Error::internal(error.to_string()))?;
        let fetched = self.ask_shard(shard, read, |node, ShardTarget { target, min_seqno }, until| {
            let wanted = FetchTarget { target, rows: Vec::new(), keys: vec![key.clone()], min_seqno };
            self.client.fetch(node, vec![wanted], false, read.consistency, until)
        });
        let fetched = fetched.await?;
        let mut chunks = fetched.chunks;
        chunks.sort_by_key(|chunk| chunk.ordinal);
        let mut session = read.session.clone();
        fetched.positions.iter().for_each(|position| session.observe(shard, position));
        Ok((chunks, session))
    }

    /// At most `limit` documents of the tenant with ids after `after`, over all shards.
    pub async fn list_documents(
        &self,
        collection: &Collection,
        tenant: &str,
        after: &str,
        limit: u32,
        read: &DocumentRead,
    ) -> Result<Listing> {
        let shards: Vec<ShardId> = self.view.state().shards_of(collection.id).map(|group| group.shard).collect();
        let pages: Vec<_> = stream::iter(shards)
            .map(|shard| async move {
                let page = self.ask_shard(shard, read, |node, target, until| {
                    let page = PageRequest {
                        target,
                        consistency: read.consistency,
                        tenant: tenant.to_owned(),
                        after: after.to_owned(),
                        limit,
                    };
                    self.client.list_documents(node, page, until)
                });
                Ok::<_, Error>((shard, page.await?))
            })
            .buffer_unordered(SHARDS_LISTED_AT_ONCE)
            .try_collect()
            .await?;
        let mut listing = Listing { session: read.session.clone(), ..Listing::default() };
        for (shard, page) in pages {
            listing.session.observe(shard, &page.position);
            listing.more |= page.more;
            listing.documents.extend(page.documents);
        }
        listing.documents.sort_by(|left, right| left.key.document_id.cmp(&right.key.document_id));
        if listing.documents.len() > limit as usize {
            listing.documents.truncate(limit as usize);
            listing.more = true;
        }
        Ok(listing)
    }

    /// Asks the copies of one shard until one answers: once each for eventual reads, until the deadline for the others.
    async fn ask_shard<T: Answer>(
        &self,
        shard: ShardId,
        read: &DocumentRead,
        call: impl Fn(NodeId, ShardTarget, Instant) -> BoxFuture<'static, Result<T, NodeError>>,
    ) -> Result<T> {
        let token = if read.consistency == Consistency::Eventual { None } else { read.session.token(shard) };
        let mut last = NodeError::new(ErrorKind::Unavailable, format!("shard {shard} has no copy that may answer"));
        loop {
            let plan = self.plan_document(shard, read.consistency)?;
            if token.is_some_and(|token| token.lineage < plan.lineage) {
                return Err(super::gather::token_void(shard).into());
            }
            let min_seqno = token.map_or(SeqNo::ZERO, |token| token.seqno);
            for candidate in plan.candidates {
                let until = read.deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
                let asked = call(candidate.node, ShardTarget { target: candidate.target, min_seqno }, until);
                let error = match tokio::time::timeout_at(until.into(), asked).await {
                    Ok(answer) => match answer.and_then(T::check) {
                        Ok(answer) => return Ok(answer),
                        Err(error) => error,
                    },
                    Err(_) if until == read.deadline => {
                        let text = "the document did not arrive in time";
                        return Err(NodeError::new(ErrorKind::DeadlineExceeded, text).into());
                    }
                    Err(_) => NodeError::new(ErrorKind::Unavailable, format!("node {} is silent", candidate.node)),
                };
                if error.disconnected {
                    self.stats.note_failure(candidate.node);
                }
                if let Some(register) = &error.register {
                    self.view.learn(register);
                }
                if error.kind.is_deterministic() && error.kind != ErrorKind::TokenVoid {
                    return Err(error.into());
                }
                last = error;
            }
            let is_over = Instant::now() + ROUND_PAUSE >= read.deadline;
            if read.consistency == Consistency::Eventual || plan.is_red || is_over {
                return Err(last.into());
            }
            self.view.wait_change(Instant::now() + ROUND_PAUSE).await;
        }
    }

    fn plan_document(&self, shard: ShardId, consistency: Consistency) -> Result<ShardPlan> {
        let state = self.view.state();
        let group = state.shards.get(&shard);
        let group = group.ok_or_else(|| NodeError::new(ErrorKind::NotFound, "the collection was deleted"))?;
        let options = PlanOptions {
            consistency,
            prefer_copy: Some(PreferCopy::Primary),
            zone: self.zone.as_deref(),
            random: rand::random(),
            now: Instant::now(),
        };
        Ok(plan_shard(&state, group, &options, &self.stats.lock(), &Planned::default()))
    }
}

/// What one copy answers about one shard.
trait Answer: Sized {
    /// The answer, or the failure that it carries.
    fn check(self) -> Result<Self, NodeError>;
}

impl Answer for crate::cluster::client::Fetched {
    fn check(mut self) -> Result<Self, NodeError> {
        match self.failures.pop() {
            Some((_, error)) => Err(error),
            None => Ok(self),
        }
    }
}

impl Answer for crate::cluster::client::DocumentPage {
    fn check(self) -> Result<Self, NodeError> {
        Ok(self)
    }
}
