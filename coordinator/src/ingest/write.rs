//! Writes operations to the primaries of their shards: batches per shard in order, shards side by side, retries until the
//! deadline under an operation id that stays the same.
//!
//! Promises: an acknowledged operation is durable on every in-sync copy; a retried batch is applied once; operations on one
//! document are applied in the order given. A failure tells how many operations were acknowledged.
//!
//! A failover or hand-off costs a write time, not success: a refusal brings the new register along and is retried at once; a call to
//! a primary that the cluster state replaced meanwhile is not waited for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::cluster_state::ClusterState;
use cluster_config::collection::Collection;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{DocumentKey, OperationId, ShardId};
use cluster_config::limits;
use cluster_config::operation::Operation;
use cluster_config::routing;
use futures::{StreamExt, stream};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use crate::cache::RetrievalCache;
use crate::cache::positions::Word;
use crate::cluster::client::{NodeClient, NodeError, NodeWrite, WriteAck};
use crate::cluster::stats::NodeStats;
use crate::cluster::view::ClusterView;
use crate::retrieve::session::Session;
use crate::telemetry::Metrics;

/// Shards of one request written at the same time.
const SHARDS_AT_ONCE: usize = 32;
/// A primary silent for this long is asked again, by then perhaps another one; the operation id makes it safe.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// A primary silent for this long makes one ask another node who the primary is, again and again.
const SILENT_AFTER: Duration = Duration::from_secs(1);
/// First pause before a retry, doubled up to [`RETRY_PAUSE_MAX`]; chance shortens it by up to a half, so that writers that were
/// refused together do not come back together. A newer register of the shard ends it early.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// A hand-off takes well below a second, and the write waits for its end at most so long in vain.
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(100);
/// Bytes an operation takes beside its texts and vectors.
const OPERATION_OVERHEAD_BYTES: usize = 64;

/// A write that reached all its shards.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Operations acknowledged.
    pub acked: u64,
    /// Over all batches: fewest copies on which one is durable.
    pub copies_acked_min: u32,
    /// Positions that later reads must reach to see the write.
    pub session: Session,
}

impl Written {
    /// Adds a further write.
    pub fn add(&mut self, further: Self) {
        let is_first = self.acked == 0;
        self.copies_acked_min =
            if is_first { further.copies_acked_min } else { self.copies_acked_min.min(further.copies_acked_min) };
        self.acked += further.acked;
        self.session.merge(&further.session);
    }
}

/// A write that did not reach all its shards. What was acknowledged stays.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{acked} of {total} operations were acknowledged; the rest failed: {cause}")]
pub struct WriteFailure {
    /// Of the first failed batch.
    pub kind: ErrorKind,
    /// Operations acknowledged.
    pub acked: u64,
    /// Operations asked for.
    pub total: u64,
    /// Why, in words.
    pub cause: String,
    /// What the node that refused says to do; may be empty.
    pub node_hint: String,
}

impl WriteFailure {
    /// What the caller may do; empty where the kind says it all.
    pub fn hint(&self) -> &str {
        match self.kind {
            ErrorKind::NotEnoughCopies => {
                "too few copies are in sync for the collection's min_in_sync: wait until a node is back, then send the same request again"
            }
            // The node says what makes room: deletes, and from which share of its disk on it takes writes again.
            ErrorKind::StorageFull => &self.node_hint,
            kind if kind.is_retryable() => "send the same request again: what was acknowledged is not written twice",
            _ => "",
        }
    }
}

/// Writes to primaries. Shared by all requests.
pub struct Writer {
    client: Arc<dyn NodeClient>,
    view: Arc<ClusterView>,
    stats: Arc<NodeStats>,
    cache: Option<Arc<RetrievalCache>>,
    metrics: Arc<Metrics>,
}

/// Operations of one shard that travel together.
struct Batch {
    shard: ShardId,
    operation_id: OperationId,
    operations: Arc<Vec<Operation>>,
}

impl Writer {
    /// `cache` learns the positions of acknowledged writes.
    pub fn new(
        client: Arc<dyn NodeClient>,
        view: Arc<ClusterView>,
        stats: Arc<NodeStats>,
        cache: Option<Arc<RetrievalCache>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { client, view, stats, cache, metrics }
    }

    /// Writes `operations`, each a put or a delete of one document.
    ///
    /// `seed` names the write: the same seed with the same operations is the same write, however often it is sent.
    /// Errors: see [`WriteFailure`]. Cancel: batches already sent may still be applied.
    pub async fn write(
        &self,
        collection: &Collection,
        operations: Vec<Operation>,
        seed: Uuid,
        deadline: Instant,
    ) -> Result<Written, WriteFailure> {
        let total = operations.len() as u64;
        let batches = plan_batches(collection, operations, seed)?;
        let mut outcomes = stream::iter(batches)
            .map(|(shard, batches)| self.write_shard(shard, batches, deadline))
            .buffer_unordered(SHARDS_AT_ONCE);
        let mut written = Written { copies_acked_min: u32::MAX, ..Written::default() };
        let mut failed: Option<NodeError> = None;
        while let Some(outcome) = outcomes.next().await {
            written.acked += outcome.acked;
            if let Some(ack) = outcome.last_ack {
                written.copies_acked_min = written.copies_acked_min.min(outcome.copies_acked_min);
                written.session.raise(outcome.shard, ack.position.lineage, ack.seqno);
            }
            if let Some(error) = outcome.error {
                failed.get_or_insert(NodeError { message: format!("shard {}: {error}", outcome.shard), ..error });
            }
        }
        if written.copies_acked_min == u32::MAX {
            written.copies_acked_min = 0;
        }
        match failed {
            None => Ok(written),
            Some(error) => {
                let kind = match error.kind {
                    ErrorKind::NotPrimary | ErrorKind::StaleTerm | ErrorKind::Cancelled => ErrorKind::Unavailable,
                    kind => kind,
                };
                Err(WriteFailure { kind, acked: written.acked, total, cause: error.message, node_hint: error.hint })
            }
        }
    }

    /// One shard's batches, one after the other: the order of operations on a document is the caller's.
    async fn write_shard(&self, shard: ShardId, batches: Vec<Batch>, deadline: Instant) -> ShardOutcome {
        let mut outcome = ShardOutcome { shard, acked: 0, copies_acked_min: u32::MAX, last_ack: None, error: None };
        for batch in batches {
            match self.write_batch(&batch, deadline).await {
                Ok(ack) => {
                    outcome.acked += batch.operations.len() as u64;
                    outcome.copies_acked_min = outcome.copies_acked_min.min(ack.copies_acked);
                    outcome.last_ack = Some(ack);
                }
                Err(error) => {
                    outcome.error = Some(error);
                    break;
                }
            }
        }
        outcome
    }

    async fn write_batch(&self, batch: &Batch, deadline: Instant) -> Result<WriteAck, NodeError> {
        let mut pause = RETRY_PAUSE;
        let mut is_unknown = false;
        loop {
            let asked = Instant::now();
            let known_version = register_version(&self.view.state(), batch.shard);
            let error = match self.try_write(batch, deadline).await {
                Ok(ack) => {
                    if let Some(cache) = &self.cache {
                        cache.positions.note(batch.shard, &ack.position, Some(Word::proven(asked)));
                    }
                    return Ok(ack);
                }
                Err(error) => error,
            };
            is_unknown |= may_be_applied(&error);
            if let Some(register) = &error.register {
                self.view.learn(register);
            }
            if matches!(error.kind, ErrorKind::NotPrimary | ErrorKind::StaleTerm | ErrorKind::Unavailable) {
                self.view.request_refresh();
            }
            // A full disk stays full for longer than a request.
            let may_retry = error.kind.is_retryable() && error.kind != ErrorKind::StorageFull;
            if !may_retry || Instant::now() + pause >= deadline {
                return Err(if is_unknown { say_unknown(error) } else { error });
            }
            tracing::debug!(shard = %batch.shard, %error, "write is retried");
            self.metrics.retries.with_label_values(&["write"]).inc();
            let until = Instant::now() + pause.mul_f64(rand::random_range(0.5..=1.0));
            let is_newer = |state: &ClusterState| register_version(state, batch.shard) > known_version;
            if self.view.wait_for(until, is_newer).await.is_none() {
                pause = (pause * 2).min(RETRY_PAUSE_MAX);
            }
        }
    }

    /// One attempt at the primary of now; given up when it keeps silent or another copy becomes the primary.
    async fn try_write(&self, batch: &Batch, deadline: Instant) -> Result<WriteAck, NodeError> {
        let state = self.view.state();
        let gone = || NodeError::new(ErrorKind::NotFound, "the collection was deleted");
        let group = state.shards.get(&batch.shard).ok_or_else(gone)?;
        let none = || NodeError::new(ErrorKind::Unavailable, format!("shard {} has no primary now", batch.shard));
        let (node, copy) = group.primary_node().zip(group.primary_copy()).ok_or_else(none)?;
        let write = NodeWrite {
            target: group.target(copy),
            operation_id: batch.operation_id,
            operations: Arc::clone(&batch.operations),
        };
        let attempt_deadline = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
        let call = self.client.write(node, write, attempt_deadline);
        let is_replaced = |state: &ClusterState| {
            state.shards.get(&batch.shard).is_none_or(|group| group.primary_copy().is_some_and(|now| now != copy))
        };
        let replaced = async {
            loop {
                let look_again_at = attempt_deadline.min(Instant::now() + SILENT_AFTER);
                let state = self.view.wait_for(look_again_at, is_replaced).await;
                if state.is_some() || look_again_at == attempt_deadline {
                    return state;
                }
                // Whoever tells the state may be cut off together with this primary.
                self.view.request_refresh();
            }
        };
        tokio::select! {
            biased;
            outcome = call => {
                match &outcome {
                    Ok(_) => self.stats.note_success(node),
                    Err(error) if error.disconnected => self.stats.note_failure(node),
                    Err(_) => {}
                }
                outcome
            }
            replaced = replaced => match replaced {
                Some(_) => {
                    let text = format!("copy {copy} is not the primary any more, and has not answered");
                    Err(NodeError::new(ErrorKind::DeadlineExceeded, text))
                }
                None => {
                    self.stats.note_failure(node);
                    let text = "no acknowledgement in time";
                    Err(NodeError::new(ErrorKind::DeadlineExceeded, text))
                }
            }
        }
    }
}

fn register_version(state: &ClusterState, shard: ShardId) -> u64 {
    state.shards.get(&shard).map_or(0, |group| group.version)
}

/// Whether the write may have reached the primary's log although the attempt failed.
fn may_be_applied(error: &NodeError) -> bool {
    error.disconnected || matches!(error.kind, ErrorKind::DeadlineExceeded | ErrorKind::Cancelled)
}

/// A refusal after an attempt of unknown outcome does not tell that nothing was written.
fn say_unknown(error: NodeError) -> NodeError {
    let message = format!("{}; an earlier attempt may have been applied", error.message);
    NodeError { message, ..error }
}

struct ShardOutcome {
    shard: ShardId,
    acked: u64,
    copies_acked_min: u32,
    last_ack: Option<WriteAck>,
    error: Option<NodeError>,
}

/// The document an operation is about.
fn key_of(operation: &Operation) -> Option<&DocumentKey> {
    match operation {
        Operation::PutDocument { key, .. } | Operation::DeleteDocument { key } => Some(key),
        Operation::Barrier
        | Operation::InstallGeneration { .. }
        | Operation::IndexUpTo { .. }
        | Operation::SetEffortCurve { .. } => None,
    }
}

/// Estimate of an operation's encoded size.
fn encoded_bytes(operation: &Operation) -> usize {
    let key = key_of(operation).map_or(0, |key| key.tenant.len() + key.document_id.len());
    let body = match operation {
        Operation::PutDocument { title, chunks, .. } => {
            let chunk_bytes = |chunk: &cluster_config::operation::Chunk| {
                OPERATION_OVERHEAD_BYTES + chunk.text.len() + chunk.metadata_json.len() + chunk.vector.len()
            };
            title.len() + chunks.iter().map(chunk_bytes).sum::<usize>()
        }
        _ => 0,
    };
    OPERATION_OVERHEAD_BYTES + key + body
}

/// Groups by shard, in order, and cuts at the limits. An operation above `WRITE_BYTES_MAX` travels alone.
fn plan_batches(
    collection: &Collection,
    operations: Vec<Operation>,
    seed: Uuid,
) -> Result<BTreeMap<ShardId, Vec<Batch>>, WriteFailure> {
    let total = operations.len() as u64;
    let refuse = |kind, cause: String| WriteFailure { kind, acked: 0, total, cause, node_hint: String::new() };
    let mut by_shard: BTreeMap<ShardId, Vec<Vec<Operation>>> = BTreeMap::new();
    let mut open_bytes: BTreeMap<ShardId, usize> = BTreeMap::new();
    for operation in operations {
        let Some(key) = key_of(&operation) else {
            return Err(refuse(ErrorKind::InvalidArgument, "only documents are written by clients".into()));
        };
        let shard =
            routing::shard_of(collection, key).map_err(|error| refuse(ErrorKind::Internal, error.to_string()))?;
        let bytes = encoded_bytes(&operation);
        if bytes > limits::ENTRY_BYTES_MAX {
            let text =
                format!("document {:?} takes {bytes} bytes, at most {}", key.document_id, limits::ENTRY_BYTES_MAX);
            return Err(refuse(ErrorKind::TooLarge, text));
        }
        let batches = by_shard.entry(shard).or_default();
        let open = open_bytes.entry(shard).or_default();
        let fits = batches
            .last()
            .is_some_and(|batch| batch.len() < limits::OPS_PER_WRITE_MAX && *open + bytes <= limits::WRITE_BYTES_MAX);
        if !fits {
            batches.push(Vec::new());
            *open = 0;
        }
        *open += bytes;
        if let Some(batch) = batches.last_mut() {
            batch.push(operation);
        }
    }
    let named = by_shard.into_iter().map(|(shard, batches)| {
        let batches = batches.into_iter().enumerate().map(|(number, operations)| Batch {
            shard,
            operation_id: operation_id(seed, shard, number),
            operations: Arc::new(operations),
        });
        (shard, batches.collect())
    });
    Ok(named.collect())
}

/// The same for the same seed, shard and batch.
fn operation_id(seed: Uuid, shard: ShardId, batch: usize) -> OperationId {
    let mut bytes = Vec::with_capacity(40);
    bytes.extend_from_slice(seed.as_bytes());
    bytes.extend_from_slice(&shard.collection.0.to_be_bytes());
    bytes.extend_from_slice(&shard.index.to_be_bytes());
    bytes.extend_from_slice(&(batch as u64).to_be_bytes());
    OperationId(xxh3_128(&bytes))
}

#[cfg(test)]
mod tests {
    use cluster_config::collection::CollectionSpec;
    use cluster_config::ids::CollectionId;
    use cluster_config::operation::Chunk;
    use proptest::prelude::*;

    use super::*;

    fn put(id: u32, text_bytes: usize) -> Operation {
        let chunk =
            Chunk { ordinal: 0, text: "x".repeat(text_bytes), metadata_json: "{}".into(), span: 0..0, vector: vec![] };
        let key = DocumentKey::new(format!("d{id}")).expect("valid");
        Operation::PutDocument { key, title: String::new(), chunks: vec![chunk] }
    }

    fn collection() -> Collection {
        Collection { id: CollectionId(1), spec: CollectionSpec::new("c", 8), epoch: 1 }
    }

    proptest! {
        #[test]
        fn batches_keep_everything_in_order_and_within_limits(ids in proptest::collection::vec(0u32..500, 0..3000)) {
            let operations: Vec<Operation> = ids.iter().map(|id| put(*id, 4)).collect();
            let seed = Uuid::from_u128(7);
            let planned = plan_batches(&collection(), operations.clone(), seed).expect("plans");
            let again = plan_batches(&collection(), operations.clone(), seed).expect("plans");
            let mut operation_ids = std::collections::BTreeSet::new();
            let mut seen = 0;
            for (shard, batches) in &planned {
                let in_shard: Vec<&Operation> = operations.iter()
                    .filter(|op| routing::shard_of(&collection(), key_of(op).expect("put")).expect("known scheme") == *shard).collect();
                let flat: Vec<&Operation> = batches.iter().flat_map(|batch| batch.operations.iter()).collect();
                prop_assert_eq!(&flat, &in_shard);
                seen += flat.len();
                for (batch, repeated) in batches.iter().zip(&again[shard]) {
                    prop_assert!(batch.operations.len() <= limits::OPS_PER_WRITE_MAX);
                    prop_assert!(operation_ids.insert(batch.operation_id));
                    prop_assert_eq!(batch.operation_id, repeated.operation_id);
                }
            }
            prop_assert_eq!(seen, operations.len());
        }
    }

    #[test]
    fn a_large_document_travels_alone_and_a_huge_one_is_refused() {
        let mut one_shard = collection();
        one_shard.spec.shard_count = 1;
        let large = limits::WRITE_BYTES_MAX + 1;
        let planned = plan_batches(&one_shard, vec![put(1, 1), put(2, large), put(3, 1)], Uuid::nil()).expect("plans");
        let sizes: Vec<usize> = planned.values().flatten().map(|batch| batch.operations.len()).collect();
        assert_eq!(sizes, vec![1, 1, 1]);
        let huge = plan_batches(&one_shard, vec![put(1, limits::ENTRY_BYTES_MAX)], Uuid::nil()).map(|_| ());
        assert_eq!(huge.expect_err("is refused").kind, ErrorKind::TooLarge);
    }
}
