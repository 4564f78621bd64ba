//! How a copy reaches the others and the metadata group: two small traits, implemented over gRPC and, in tests, in memory.

use cluster_config::ids::{NodeId, ShardId};
use cluster_config::seqno::PrimaryTerm;
use cluster_config::shard_group::ShardGroup;
use futures::future::BoxFuture;

use super::messages::{Append, AppendResult, Confirm, Proposal, ProposalOutcome};

/// Why a message brought no answer. Whether it arrived is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no answer: {0}")]
pub struct TransportError(pub String);

/// Carries a primary's messages to other nodes.
pub trait ReplicationTransport: Send + Sync + 'static {
    /// Sends entries and waits for the answer. The caller bounds the wait, by the size of the entries, and drops the future; a bound of
    /// the transport's own must be longer. A copy that the node knows of but
    /// has not opened yet is an error, not `UnknownCopy`.
    fn append(&self, to: NodeId, append: Append) -> BoxFuture<'_, Result<AppendResult, TransportError>>;

    /// Asks a copy which term it follows, for a strong read. The caller bounds the wait.
    fn confirm(&self, to: NodeId, confirm: Confirm) -> BoxFuture<'_, Result<PrimaryTerm, TransportError>>;
}

/// Asks the metadata group about one shard's register.
pub trait RegisterClient: Send + Sync + 'static {
    /// Submits the proposal **at most once** and returns the group's decision on it. An error means that the outcome is unknown: it
    /// may have been decided, or may still be. A refusal must therefore be an answer to this very submission.
    fn propose(&self, proposal: Proposal) -> BoxFuture<'_, Result<ProposalOutcome, TransportError>>;

    /// Reads the register linearizably: through the metadata leader, confirmed by its quorum (W11).
    fn read_register(&self, shard: ShardId) -> BoxFuture<'_, Result<ShardGroup, TransportError>>;
}
