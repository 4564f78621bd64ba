//! Fetches what the merged hits need: texts, metadata, vectors. One call per node, other copies where one fails.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use cluster_config::error::ErrorKind;
use cluster_config::ids::{NodeId, ShardId};
use cluster_config::limits;
use cluster_config::search::{Consistency, CopyPosition};
use cluster_config::seqno::SeqNo;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::gather::SILENCE;
use super::merge::MergedHit;
use super::plan::ShardPlan;
use crate::cluster::client::{CopyTarget, FetchTarget, Fetched, FetchedChunk, NodeClient, NodeError};

/// Rows of one call: with the longest texts and metadata and the widest vectors, a reply stays below the message limit.
const ROWS_PER_CALL_MAX: usize = 500;
const _: () = assert!(
    ROWS_PER_CALL_MAX
        * (limits::CHUNK_TEXT_BYTES_MAX + limits::METADATA_BYTES_MAX + 2 * limits::DIM_MAX as usize + 2048)
        < limits::GRPC_MESSAGE_BYTES_MAX
);

/// Where and how to fetch the chunks behind hits.
pub struct FetchHits<'a> {
    /// The nodes.
    pub client: &'a dyn NodeClient,
    /// The copy that found each shard's hits: asked first.
    pub answered_by: &'a BTreeMap<ShardId, (NodeId, CopyTarget)>,
    /// Where it stood: another copy must have applied as much.
    pub positions: &'a BTreeMap<ShardId, CopyPosition>,
    /// The copies to ask where the first does not answer.
    pub others: &'a (dyn Fn() -> Vec<ShardPlan> + Send + Sync),
    /// Whether vectors are wanted.
    pub with_vectors: bool,
    /// Everything ends here.
    pub deadline: Instant,
}

impl FetchHits<'_> {
    /// The chunks behind `hits`, keyed by shard and row, from the copy that found them where it still answers: rows are numbered
    /// alike on all copies of a shard.
    ///
    /// A row that does not exist any more, or now holds another chunk, is missing from the result: it was deleted meanwhile.
    /// Errors: the last one of a shard none of whose copies answered.
    pub async fn run(&self, hits: &[MergedHit]) -> Result<HashMap<(ShardId, u64), FetchedChunk>, NodeError> {
        let mut rows: BTreeMap<ShardId, BTreeSet<u64>> = BTreeMap::new();
        for merged in hits {
            rows.entry(merged.shard).or_default().insert(merged.hit.row);
        }
        let wanted = rows.into_iter().map(|(shard, rows)| {
            let copies = self.answered_by.get(&shard).copied().into_iter().collect();
            let min_seqno = self.positions.get(&shard).map_or(SeqNo::ZERO, |position| position.applied);
            Wanted { copies, shard, rows: rows.into_iter().collect(), min_seqno, tried: 0 }
        });
        let mut chunks = HashMap::new();
        for chunk in self.fetch(wanted.collect()).await? {
            chunks.insert((chunk.shard, chunk.row), chunk);
        }
        for merged in hits {
            let place = (merged.shard, merged.hit.row);
            let is_other = chunks.get(&place).is_some_and(|chunk: &FetchedChunk| {
                chunk.key.document_id != merged.hit.document_id || chunk.ordinal != merged.hit.ordinal
            });
            if is_other {
                chunks.remove(&place);
            }
        }
        Ok(chunks)
    }

    async fn fetch(&self, mut wanted: Vec<Wanted>) -> Result<Vec<FetchedChunk>, NodeError> {
        let mut chunks = Vec::new();
        while !wanted.is_empty() {
            let failures = self.ask(&wanted, &mut chunks).await?;
            wanted.retain_mut(|want| {
                want.tried += 1;
                failures.contains_key(&want.shard)
            });
            if let Some(error) = failures.values().find(|error| is_final(error))
                && !wanted.is_empty()
            {
                return Err(error.clone());
            }
            if wanted.iter().any(|want| want.tried == 1) {
                let plans = (self.others)();
                wanted.iter_mut().filter(|want| want.tried == 1).for_each(|want| want.add_others(&plans));
            }
            if let Some(lost) = wanted.iter().find(|want| want.tried >= want.copies.len()) {
                return Err(failures[&lost.shard].clone());
            }
        }
        Ok(chunks)
    }

    /// One call per node to the next copy of each shard; gives the failures by shard.
    async fn ask(
        &self,
        wanted: &[Wanted],
        chunks: &mut Vec<FetchedChunk>,
    ) -> Result<BTreeMap<ShardId, NodeError>, NodeError> {
        // The copy that found the hits may have been cut off since: it is not waited for any longer than in a search.
        let is_first = wanted.iter().all(|want| want.tried == 0);
        let until = if is_first { self.deadline.min(Instant::now() + SILENCE) } else { self.deadline };
        let late = if until < self.deadline { ErrorKind::Unavailable } else { ErrorKind::DeadlineExceeded };
        let mut calls: Vec<(NodeId, Vec<FetchTarget>)> = Vec::new();
        for want in wanted {
            let Some((node, target)) = want.copies.get(want.tried).copied() else {
                let text = format!("shard {} has no copy that may answer", want.shard);
                return Err(NodeError::new(ErrorKind::Unavailable, text));
            };
            for rows in want.rows.chunks(ROWS_PER_CALL_MAX) {
                let rows = rows.to_vec();
                let has_room = |call: &&mut (NodeId, Vec<FetchTarget>)| {
                    let taken: usize = call.1.iter().map(|target| target.rows.len()).sum();
                    call.0 == node && taken + rows.len() <= ROWS_PER_CALL_MAX
                };
                let found = calls.iter_mut().find(has_room);
                let target = FetchTarget { target, rows, keys: Vec::new(), min_seqno: want.min_seqno };
                match found {
                    Some((_, targets)) => targets.push(target),
                    None => calls.push((node, vec![target])),
                }
            }
        }
        let mut replies: FuturesUnordered<_> = calls
            .into_iter()
            .map(|(node, targets)| {
                let shards: Vec<ShardId> = targets.iter().map(|target| target.target.shard).collect();
                let call = self.client.fetch(node, targets, self.with_vectors, Consistency::Session, self.deadline);
                async move {
                    let reply = match tokio::time::timeout_at(until.into(), call).await {
                        Ok(reply) => reply,
                        Err(_) => Err(NodeError::new(late, "texts did not arrive in time")),
                    };
                    (shards, reply)
                }
            })
            .collect();
        let mut failures = BTreeMap::new();
        while let Some((shards, reply)) = replies.next().await {
            match reply {
                Ok(Fetched { chunks: fetched, failures: failed, .. }) => {
                    chunks.extend(fetched);
                    failures.extend(failed);
                }
                Err(error) => failures.extend(shards.into_iter().map(|shard| (shard, error.clone()))),
            }
        }
        Ok(failures)
    }
}

/// Whether no other copy will do better.
fn is_final(error: &NodeError) -> bool {
    error.kind == ErrorKind::DeadlineExceeded || (error.kind.is_deterministic() && error.kind != ErrorKind::TokenVoid)
}

struct Wanted {
    shard: ShardId,
    rows: Vec<u64>,
    /// In the order of asking.
    copies: Vec<(NodeId, CopyTarget)>,
    min_seqno: SeqNo,
    tried: usize,
}

impl Wanted {
    fn add_others(&mut self, plans: &[ShardPlan]) {
        let planned = plans.iter().filter(|plan| plan.shard == self.shard).flat_map(|plan| &plan.candidates);
        for candidate in planned {
            if self.copies.iter().all(|(node, _)| *node != candidate.node) {
                self.copies.push((candidate.node, candidate.target));
            }
        }
        // The copy that found the hits may only have been slow. When no other has them it gets the rest of the time.
        self.copies.extend(self.copies.first().copied());
    }
}
