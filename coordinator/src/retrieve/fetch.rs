//! Fetches what the merged hits need: texts, metadata, vectors. One call per node, other copies where one fails.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use cluster_config::error::ErrorKind;
use cluster_config::ids::{NodeId, ShardId};
use cluster_config::limits;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::merge::MergedHit;
use super::plan::{Candidate, ShardPlan};
use crate::cluster::client::{CopyTarget, FetchTarget, Fetched, FetchedChunk, NodeClient, NodeError};

/// Rows of one call: with the longest texts and metadata and the widest vectors, a reply stays below the message limit.
const ROWS_PER_CALL_MAX: usize = 500;
const _: () = assert!(
    ROWS_PER_CALL_MAX
        * (limits::CHUNK_TEXT_BYTES_MAX + limits::METADATA_BYTES_MAX + 2 * limits::DIM_MAX as usize + 2048)
        < limits::GRPC_MESSAGE_BYTES_MAX
);

/// The chunks behind `hits`, keyed by shard and row, from the copy that found them where it still answers: rows are numbered
/// alike on all copies of a shard.
///
/// A row that does not exist any more, or now holds another chunk, is missing from the result: it was deleted meanwhile.
/// Errors: the last one of a shard none of whose copies answered.
pub async fn fetch_hits(
    client: &dyn NodeClient,
    hits: &[MergedHit],
    answered_by: &BTreeMap<ShardId, (NodeId, CopyTarget)>,
    plan: &[ShardPlan],
    with_vectors: bool,
    deadline: Instant,
) -> Result<HashMap<(ShardId, u64), FetchedChunk>, NodeError> {
    let mut rows: BTreeMap<ShardId, BTreeSet<u64>> = BTreeMap::new();
    for merged in hits {
        rows.entry(merged.shard).or_default().insert(merged.hit.row);
    }
    let wanted = rows
        .into_iter()
        .map(|(shard, rows)| {
            let rows = rows.into_iter().collect();
            Wanted { candidates: candidates(shard, answered_by, plan), shard, rows, tried: 0 }
        })
        .collect();
    let mut chunks = HashMap::new();
    for chunk in fetch(client, wanted, with_vectors, deadline).await? {
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

struct Wanted {
    shard: ShardId,
    rows: Vec<u64>,
    candidates: Vec<Candidate>,
    tried: usize,
}

/// The copy that answered first, then the others in the plan's order.
fn candidates(
    shard: ShardId,
    answered_by: &BTreeMap<ShardId, (NodeId, CopyTarget)>,
    plan: &[ShardPlan],
) -> Vec<Candidate> {
    let first = answered_by.get(&shard).map(|(node, target)| Candidate { node: *node, target: *target });
    let planned = plan.iter().filter(|plan| plan.shard == shard).flat_map(|plan| plan.candidates.iter().copied());
    let mut candidates: Vec<Candidate> = first.into_iter().collect();
    candidates.extend(planned.filter(|candidate| Some(*candidate) != first));
    candidates
}

async fn fetch(
    client: &dyn NodeClient,
    mut wanted: Vec<Wanted>,
    with_vectors: bool,
    deadline: Instant,
) -> Result<Vec<FetchedChunk>, NodeError> {
    let mut chunks = Vec::new();
    while !wanted.is_empty() {
        let mut calls: Vec<(NodeId, Vec<FetchTarget>)> = Vec::new();
        for want in &wanted {
            let Some(candidate) = want.candidates.get(want.tried) else {
                let text = format!("shard {} has no copy that may answer", want.shard);
                return Err(NodeError::new(ErrorKind::Unavailable, text));
            };
            for rows in want.rows.chunks(ROWS_PER_CALL_MAX) {
                let target = FetchTarget { target: candidate.target, rows: rows.to_vec(), keys: Vec::new() };
                let has_room = |call: &&mut (NodeId, Vec<FetchTarget>)| {
                    let taken: usize = call.1.iter().map(|target| target.rows.len()).sum();
                    call.0 == candidate.node && taken + rows.len() <= ROWS_PER_CALL_MAX
                };
                match calls.iter_mut().find(has_room) {
                    Some((_, targets)) => targets.push(target),
                    None => calls.push((candidate.node, vec![target])),
                }
            }
        }
        let mut replies: FuturesUnordered<_> = calls
            .into_iter()
            .map(|(node, targets)| {
                let shards: Vec<ShardId> = targets.iter().map(|target| target.target.shard).collect();
                let call = client.fetch(node, targets, with_vectors, deadline);
                async move {
                    let reply = match tokio::time::timeout_at(deadline.into(), call).await {
                        Ok(reply) => reply,
                        Err(_) => Err(NodeError::new(ErrorKind::DeadlineExceeded, "texts did not arrive in time")),
                    };
                    (shards, reply)
                }
            })
            .collect();
        let mut failures: BTreeMap<ShardId, NodeError> = BTreeMap::new();
        while let Some((shards, reply)) = replies.next().await {
            match reply {
                Ok(Fetched { chunks: fetched, failures: failed }) => {
                    chunks.extend(fetched);
                    failures.extend(failed);
                }
                Err(error) => failures.extend(shards.into_iter().map(|shard| (shard, error.clone()))),
            }
        }
        drop(replies);
        wanted.retain_mut(|want| {
            want.tried += 1;
            failures.contains_key(&want.shard)
        });
        for want in &wanted {
            let error = &failures[&want.shard];
            let is_final = want.tried >= want.candidates.len() || error.kind.is_deterministic();
            if is_final || Instant::now() >= deadline {
                return Err(error.clone());
            }
        }
    }
    Ok(chunks)
}
