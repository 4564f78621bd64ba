//! The calls by which operators change the cluster, in the words of `cluster-config`. As [`super::client`], of which it is a part.

use std::time::Instant;

use cluster_config::cluster_state::NodeLifecycle;
use cluster_config::ids::{CopyId, NodeId, ShardId};
use cluster_config::seqno::LogPosition;
use cluster_config::shard_group::ShardGroup;
use futures::FutureExt;
use futures::future::BoxFuture;
use proto::convert::required;
use proto::v1;

use super::client::{NodeError, Peer};
use super::remote::{RemoteNodes, refuse, status_error, timed, wire_error};

/// A promotion that an operator may force. Unless the loss is accepted it is only looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForcePromotion {
    /// The shard.
    pub shard: ShardId,
    /// The copy that everything is to be recovered from.
    pub copy: CopyId,
    /// The register's version that the operator decided on; `None`: nothing is to be changed.
    pub accept_data_loss_at: Option<u64>,
    /// Proceed although a member of the in-sync set lives.
    pub override_live: bool,
    /// Who asks, for the audit.
    pub by: String,
}

/// What a forced promotion did, or would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromotionOutlook {
    /// Whether it was done.
    pub done: bool,
    /// The register now.
    pub register: ShardGroup,
    /// All copies as they were before.
    pub copies: Vec<CopyOutlook>,
    /// Why it would be refused; empty where it would not.
    pub objection: String,
    /// Version of the state in which it is done.
    pub state_version: u64,
}

/// A copy before a forced promotion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyOutlook {
    /// The copy.
    pub copy: CopyId,
    /// Its node.
    pub node: NodeId,
    /// Whether it holds every acknowledged write.
    pub in_sync: bool,
    /// End of its log, where the leader has seen it.
    pub last: Option<LogPosition>,
    /// open, poisoned, corrupt, closed or dead.
    pub condition: String,
    /// Why it is poisoned or corrupt.
    pub reason: String,
}

/// Operators' calls to any node; it asks the metadata leader. See [`super::client`] for deadlines and cancellation.
pub trait OperatorClient: Send + Sync + 'static {
    /// Marks a node as draining or active; gives whether that was news, and the state version in which it is so.
    fn set_lifecycle(
        &self,
        peer: Peer,
        node: NodeId,
        lifecycle: NodeLifecycle,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<(bool, u64), NodeError>>;

    /// Makes a read replica a voter; gives whether that was news, and the state version in which it is so.
    fn promote_replica(
        &self,
        peer: Peer,
        shard: ShardId,
        copy: CopyId,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<(bool, u64), NodeError>>;

    /// Begins a new lineage of a shard with one copy, or says what that would cost.
    fn force_promote(
        &self,
        peer: Peer,
        promotion: ForcePromotion,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<PromotionOutlook, NodeError>>;
}

impl OperatorClient for RemoteNodes {
    fn set_lifecycle(
        &self,
        peer: Peer,
        node: NodeId,
        lifecycle: NodeLifecycle,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<(bool, u64), NodeError>> {
        let (mut client, envelope) = match self.admin(&peer) {
            Ok(parts) => parts,
            Err(error) => return refuse(error),
        };
        let lifecycle = v1::NodeLifecycle::from(lifecycle).into();
        let request = timed(v1::SetLifecycleRequest { envelope: Some(envelope), node: node.0, lifecycle }, deadline);
        async move {
            let reply = client.set_lifecycle(request).await.map_err(status_error)?.into_inner();
            Ok((reply.changed, reply.state_version))
        }
        .boxed()
    }

    fn promote_replica(
        &self,
        peer: Peer,
        shard: ShardId,
        copy: CopyId,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<(bool, u64), NodeError>> {
        let (mut client, envelope) = match self.admin(&peer) {
            Ok(parts) => parts,
            Err(error) => return refuse(error),
        };
        let request =
            v1::PromoteReplicaRequest { envelope: Some(envelope), shard: Some(shard.into()), copy_id: copy.0 };
        let request = timed(request, deadline);
        async move {
            let reply = client.promote_replica(request).await.map_err(status_error)?.into_inner();
            Ok((reply.changed, reply.state_version))
        }
        .boxed()
    }

    fn force_promote(
        &self,
        peer: Peer,
        promotion: ForcePromotion,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<PromotionOutlook, NodeError>> {
        let (mut client, envelope) = match self.admin(&peer) {
            Ok(parts) => parts,
            Err(error) => return refuse(error),
        };
        let request = v1::ForcePromoteRequest {
            envelope: Some(envelope),
            shard: Some(promotion.shard.into()),
            copy_id: promotion.copy.0,
            accept_data_loss: promotion.accept_data_loss_at.is_some(),
            override_live: promotion.override_live,
            expect_version: promotion.accept_data_loss_at.unwrap_or_default(),
            by: promotion.by,
        };
        let request = timed(request, deadline);
        async move {
            let reply = client.force_promote(request).await.map_err(status_error)?.into_inner();
            Ok(PromotionOutlook {
                done: reply.done,
                register: required("register", reply.register).map_err(wire_error)?,
                copies: reply.copies.into_iter().map(read_outlook).collect(),
                objection: reply.objection,
                state_version: reply.state_version,
            })
        }
        .boxed()
    }
}

fn read_outlook(copy: v1::CopyOutlook) -> CopyOutlook {
    CopyOutlook {
        copy: CopyId(copy.copy_id),
        node: NodeId(copy.node),
        in_sync: copy.in_sync,
        last: copy.last.map(LogPosition::from),
        condition: copy.condition,
        reason: copy.reason,
    }
}
