//! The calls by which operators change the cluster, in the words of the wire; only the leader answers them.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use cluster_config::cluster_state::{ClusterState, NodeLifecycle};
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, NodeId, ShardId};
use cluster_config::limits;
use cluster_config::shard_group::{PrimaryGrant, ShardGroup};
use proto::convert::ids::shard_id;
use proto::v1;
use proto::v1::admin_service_client::AdminServiceClient;

use super::calls::{leader_call, refused, unexpected};
use super::command::{Command, ForcePromote, Response};
use super::forward::Route;
use super::group::{Metadata, MetadataError, NotHere};
use crate::control::outlook;

impl Metadata {
    leader_call!(
        /// Marks a node as draining or active.
        set_lifecycle(SetLifecycleRequest) -> SetLifecycleReply by set_lifecycle_here at AdminServiceClient
    );
    leader_call!(
        /// Makes a read replica a voter.
        promote_replica(PromoteReplicaRequest) -> PromoteReplicaReply by promote_replica_here at AdminServiceClient
    );
    leader_call!(
        /// Begins a new lineage of a shard with one copy, or says what that would cost.
        force_promote(ForcePromoteRequest) -> ForcePromoteReply by force_promote_here at AdminServiceClient, at_most_once
    );

    async fn set_lifecycle_here(&self, request: v1::SetLifecycleRequest) -> Result<v1::SetLifecycleReply, NotHere> {
        let lifecycle = NodeLifecycle::try_from(request.lifecycle())?;
        match self.submit_here(Command::SetLifecycle { node: NodeId(request.node), lifecycle }).await? {
            Response::Done { changed } => Ok(v1::SetLifecycleReply { changed, state_version: self.shown().version }),
            other => Err(unexpected(other)),
        }
    }

    async fn promote_replica_here(
        &self,
        request: v1::PromoteReplicaRequest,
    ) -> Result<v1::PromoteReplicaReply, NotHere> {
        let (shard, copy) = (shard_id("shard", request.shard)?, CopyId(request.copy_id));
        let expect_version = find(&*self.read_here().await?, shard)?.version;
        match self.submit_here(Command::PromoteReplica { shard, expect_version, copy }).await? {
            Response::Done { changed } => Ok(v1::PromoteReplicaReply { changed, state_version: self.shown().version }),
            other => Err(unexpected(other)),
        }
    }

    async fn force_promote_here(&self, request: v1::ForcePromoteRequest) -> Result<v1::ForcePromoteReply, NotHere> {
        let (shard, copy) = (shard_id("shard", request.shard)?, CopyId(request.copy_id));
        let state: Arc<ClusterState> = self.read_here().await?;
        let group = find(&state, shard)?;
        let record = group
            .copies
            .get(&copy)
            .ok_or_else(|| refused(ErrorKind::NotFound, format!("copy: shard {shard} has no copy {copy}")))?;
        let watching = self.watching().ok_or(NotHere::NotLeader)?;
        let outlooks = watching.with(|observed, _| outlook::outlook(&state, observed, group));
        let objection = outlook::objection(group, &outlooks, copy, request.override_live);
        let mut reply = v1::ForcePromoteReply {
            done: false,
            register: Some(group.clone().into()),
            copies: outlook::to_wire(group, outlooks.clone()),
            objection: objection.clone().unwrap_or_default(),
            state_version: state.version,
        };
        if !request.accept_data_loss {
            return Ok(reply);
        }
        if let Some(objection) = objection {
            return Err(refused(ErrorKind::Conflict, objection));
        }
        if request.by.is_empty() || request.by.len() > limits::WORD_BYTES_MAX {
            let message = format!("by: name yourself in 1 to {} bytes, for the audit", limits::WORD_BYTES_MAX);
            return Err(refused(ErrorKind::InvalidArgument, message));
        }
        let incarnation = state.nodes.get(&record.node).map(|node| node.incarnation).unwrap_or_default();
        let forced = ForcePromote {
            shard,
            expect_version: request.expect_version,
            grant: PrimaryGrant { copy, incarnation },
            at_unix_ms: unix_ms(),
            by: request.by,
            last_seen: outlooks.iter().filter_map(|(copy, look)| Some((*copy, look.last?))).collect(),
            overrode_live: outlook::objection(group, &outlooks, copy, false).is_some(),
        };
        tracing::warn!(%shard, %copy, by = forced.by, "an operator accepts the loss of data");
        match self.submit_here(Command::ForcePromote(forced)).await? {
            Response::Register { register, .. } => {
                reply.done = true;
                reply.register = register.map(|register| (*register).into());
                reply.state_version = self.shown().version;
                Ok(reply)
            }
            other => Err(unexpected(other)),
        }
    }
}

fn find(state: &ClusterState, shard: ShardId) -> Result<&ShardGroup, NotHere> {
    let group = state.shards.get(&shard);
    group.ok_or_else(|| refused(ErrorKind::NotFound, format!("shard {shard} does not exist")))
}

/// For people to read; nothing compares it.
#[expect(clippy::disallowed_methods, reason = "the only time of day that a node stores")]
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
