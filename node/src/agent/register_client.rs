//! Replication's questions about registers, asked of the metadata group.

use std::time::Duration;

use cluster_config::ids::ShardId;
use cluster_config::shard_group::ShardGroup;
use futures::future::BoxFuture;
use proto::convert::required;
use proto::v1;
use proto::v1::propose_request;

use super::Agent;
use crate::metadata::Route;
use crate::replication::messages::{Change, Proposal, ProposalOutcome};
use crate::replication::transport::{RegisterClient, TransportError};

/// Longest wait for a decision; an election fits in.
const DECISION_TIMEOUT: Duration = Duration::from_secs(5);

fn no_answer(error: impl std::fmt::Display) -> TransportError {
    TransportError(error.to_string())
}

impl RegisterClient for Agent {
    fn propose(&self, proposal: Proposal) -> BoxFuture<'_, Result<ProposalOutcome, TransportError>> {
        Box::pin(async move {
            let change = match proposal.change {
                Change::Add { copy, incarnation } => {
                    propose_request::Change::Add(v1::AddInSync { copy_id: copy.0, incarnation: incarnation.0 })
                }
                Change::Remove(copy) => propose_request::Change::Remove(copy.0),
                Change::HandOff(copy) => propose_request::Change::HandOff(copy.0),
                Change::FailSelf => propose_request::Change::FailSelf(true),
            };
            let request = v1::ProposeRequest {
                envelope: None,
                shard: Some(proposal.shard.into()),
                expect_version: proposal.expect_version,
                by_copy: proposal.by_copy.0,
                term: proposal.term.0,
                change: Some(change),
            };
            let route = Route::within(DECISION_TIMEOUT);
            let reply = self.inner.metadata.propose(request, route).await.map_err(no_answer)?;
            let register = required("register", reply.register).map_err(no_answer)?;
            Ok(ProposalOutcome { accepted: reply.accepted, reason: reply.reason, register })
        })
    }

    fn read_register(&self, shard: ShardId) -> BoxFuture<'_, Result<ShardGroup, TransportError>> {
        Box::pin(async move {
            let request = v1::ReadRegisterRequest { envelope: None, shard: Some(shard.into()) };
            let route = Route::within(DECISION_TIMEOUT);
            let reply = self.inner.metadata.read_register(request, route).await.map_err(no_answer)?;
            required("register", reply.register).map_err(no_answer)
        })
    }
}
