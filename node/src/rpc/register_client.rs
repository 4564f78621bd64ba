//! How a copy's replication reaches its register: through whichever voter leads.

use std::time::Duration;

use cluster_config::ids::ShardId;
use cluster_config::shard_group::ShardGroup;
use futures::future::BoxFuture;
use proto::v1;
use proto::v1::propose_request::Change as WireChange;

use crate::metadata::{Metadata, Route};
use crate::replication::messages::{Change, Proposal, ProposalOutcome};
use crate::replication::{RegisterClient, TransportError};

/// An election fits in.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The register of any shard.
pub struct MetadataRegister {
    metadata: Metadata,
}

impl MetadataRegister {
    /// Asks through this process' part in the metadata group.
    pub fn new(metadata: Metadata) -> Self {
        Self { metadata }
    }
}

impl RegisterClient for MetadataRegister {
    fn propose(&self, proposal: Proposal) -> BoxFuture<'_, Result<ProposalOutcome, TransportError>> {
        Box::pin(async move {
            let reply = self.metadata.propose(to_wire(proposal), Route::within(TIMEOUT)).await.map_err(failed)?;
            let register = reply.register.ok_or_else(|| TransportError("the reply has no register".into()))?;
            Ok(ProposalOutcome {
                accepted: reply.accepted,
                reason: reply.reason,
                register: ShardGroup::try_from(register).map_err(failed)?,
            })
        })
    }

    fn read_register(&self, shard: ShardId) -> BoxFuture<'_, Result<ShardGroup, TransportError>> {
        Box::pin(async move {
            let request = v1::ReadRegisterRequest { envelope: None, shard: Some(shard.into()) };
            let reply = self.metadata.read_register(request, Route::within(TIMEOUT)).await.map_err(failed)?;
            let register = reply.register.ok_or_else(|| TransportError("the reply has no register".into()))?;
            ShardGroup::try_from(register).map_err(failed)
        })
    }
}

fn failed(error: impl std::fmt::Display) -> TransportError {
    TransportError(error.to_string())
}

fn to_wire(proposal: Proposal) -> v1::ProposeRequest {
    let change = match proposal.change {
        Change::Add { copy, incarnation } => {
            WireChange::Add(v1::AddInSync { copy_id: copy.0, incarnation: incarnation.0 })
        }
        Change::Remove(copy) => WireChange::Remove(copy.0),
        Change::FailSelf => WireChange::FailSelf(true),
    };
    v1::ProposeRequest {
        envelope: None,
        shard: Some(proposal.shard.into()),
        expect_version: proposal.expect_version,
        by_copy: proposal.by_copy.0,
        term: proposal.term.0,
        change: Some(change),
    }
}
