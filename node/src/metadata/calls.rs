//! The calls that only the leader answers, in the words of the wire: each is served here if this node leads, else sent on.

use std::sync::Arc;

use cluster_config::cluster_state::{ClusterState, NodeRecord};
use cluster_config::collection::CollectionSpec;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, Incarnation};
use cluster_config::seqno::PrimaryTerm;
use proto::convert::ids::shard_id;
use proto::convert::required;
use proto::convert::status::RemoteError;
use proto::v1;
use proto::v1::admin_service_client::AdminServiceClient;
use proto::v1::metadata_service_client::MetadataServiceClient;

use super::command::{Command, Proposal, ProposedChange, RegisterNode, Response};
use super::forward::Route;
use super::group::{Metadata, MetadataError, NotHere};
use super::place::plan_collection;

impl From<MetadataError> for NotHere {
    fn from(error: MetadataError) -> Self {
        NotHere::Failed(error)
    }
}

impl From<proto::convert::WireError> for NotHere {
    fn from(error: proto::convert::WireError) -> Self {
        NotHere::Failed(RemoteError::from(error).into())
    }
}

pub(super) fn refused(kind: ErrorKind, message: impl Into<String>) -> NotHere {
    NotHere::Failed(RemoteError::new(kind, message).into())
}

/// A response that no command of the call gives.
pub(super) fn unexpected(response: Response) -> NotHere {
    match response {
        Response::Refused { kind, message } => refused(kind, message),
        other => refused(ErrorKind::Internal, format!("unexpected response {other:?}")),
    }
}

macro_rules! leader_call {
    ($(#[$doc:meta])* $name:ident($request:ident) -> $reply:ident by $here:ident at $client:ident $(, $limit:ident)?) => {
        $(#[$doc])*
        pub async fn $name(&self, request: v1::$request, route: Route) -> Result<v1::$reply, MetadataError> {
            self.at_leader(
                route$(.$limit())?,
                || Box::pin(self.$here(request.clone())),
                |hop| {
                    let mut message = request.clone();
                    message.envelope = Some(hop.envelope.clone());
                    Box::pin(async move { $client::new(hop.channel.clone()).$name(hop.request(message)).await })
                },
            )
            .await
        }
    };
}
pub(super) use leader_call;

impl Metadata {
    leader_call!(
        /// Registers a process; a retry with the same `process_id` gets the same incarnation.
        register(RegisterRequest) -> RegisterReply by register_here at MetadataServiceClient
    );
    leader_call!(
        /// Proposes a change to a register, at most once. The reply carries the register as it is afterwards, accepted or not; an
        /// error leaves the outcome unknown.
        propose(ProposeRequest) -> ProposeReply by propose_here at MetadataServiceClient, at_most_once
    );
    leader_call!(
        /// Reads one register with everything in it that was decided before the call (W11).
        read_register(ReadRegisterRequest) -> ReadRegisterReply by read_register_here at MetadataServiceClient
    );
    leader_call!(
        /// Creates a collection and places its copies.
        create_collection(CreateCollectionRequest) -> CollectionReply by create_collection_here at AdminServiceClient
    );
    leader_call!(
        /// Drops a collection.
        delete_collection(DeleteCollectionRequest) -> DeleteCollectionReply by delete_collection_here at AdminServiceClient
    );
    leader_call!(
        /// The state with what the leader has seen of the nodes.
        status(StatusRequest) -> StatusReply by status_here at AdminServiceClient
    );

    pub(super) fn shown(&self) -> Arc<ClusterState> {
        self.state().borrow().clone()
    }

    async fn register_here(&self, request: v1::RegisterRequest) -> Result<v1::RegisterReply, NotHere> {
        let node: NodeRecord = required("node", request.node)?;
        if request.process_id.is_empty() {
            return Err(refused(ErrorKind::InvalidArgument, "process_id: missing"));
        }
        let command = Command::RegisterNode(RegisterNode {
            node: node.id,
            rpc_address: node.rpc_address,
            http_address: node.http_address,
            zone: node.zone,
            weight: node.weight,
            is_data: node.is_data,
            registration: request.process_id,
            copies_on_disk: request.copies_on_disk.into_iter().map(CopyId).collect(),
            feature_level: request.feature_level,
        });
        match self.submit_here(command).await? {
            Response::Registered { incarnation } => {
                let state = (*self.shown()).clone();
                Ok(v1::RegisterReply { incarnation: incarnation.0, state: Some(state.into()) })
            }
            other => Err(unexpected(other)),
        }
    }

    async fn propose_here(&self, request: v1::ProposeRequest) -> Result<v1::ProposeReply, NotHere> {
        let proposal = proposal(request)?;
        if self.is_of_the_deaf(&proposal) {
            let register = self.shown().shards.get(&proposal.shard).cloned().map(Into::into);
            let reason = "its node does not hear this voter either, so the copy need not be what is silent".into();
            return Ok(v1::ProposeReply { accepted: false, reason, register });
        }
        match self.submit_here(Command::Propose(proposal)).await? {
            Response::Register { accepted, reason, register } => {
                Ok(v1::ProposeReply { accepted, reason, register: register.map(|register| (*register).into()) })
            }
            other => Err(unexpected(other)),
        }
    }

    /// Whether the proposal drops a copy as silent for a primary that hears nobody: it would leave itself, whom nobody can ask, as the
    /// last copy in sync, and no heir.
    fn is_of_the_deaf(&self, proposal: &Proposal) -> bool {
        let state = self.shown();
        let by = state.shards.get(&proposal.shard).and_then(|group| group.node_of(proposal.by_copy));
        let Some((watching, by)) = self.watching().zip(by.and_then(|node| state.nodes.get(&node))) else {
            return false;
        };
        let after_ms = watching.deaf_after_ms;
        matches!(proposal.change, ProposedChange::Remove(_))
            && watching.with(|observed, now_ms| observed.is_deaf(by.id, by.incarnation, now_ms, after_ms))
    }

    async fn read_register_here(&self, request: v1::ReadRegisterRequest) -> Result<v1::ReadRegisterReply, NotHere> {
        let shard = shard_id("shard", request.shard)?;
        let state = self.read_here().await?;
        let group = state
            .shards
            .get(&shard)
            .ok_or_else(|| refused(ErrorKind::NotFound, format!("shard {shard} does not exist")))?;
        Ok(v1::ReadRegisterReply { register: Some(group.clone().into()) })
    }

    async fn create_collection_here(
        &self,
        request: v1::CreateCollectionRequest,
    ) -> Result<v1::CollectionReply, NotHere> {
        let spec: CollectionSpec = required("spec", request.spec)?;
        spec.validate().map_err(|error| {
            let error = RemoteError::new(ErrorKind::InvalidArgument, format!("{}: {}", error.key, error.problem))
                .with_hint(error.hint);
            NotHere::Failed(error.into())
        })?;
        let state = self.read_here().await?;
        let assignment = if state.collection_named(&spec.name).is_some() {
            // Apply says whether it is the same one.
            Vec::new()
        } else {
            let planned_for = spec.clone();
            let watching = self.watching().ok_or(NotHere::NotLeader)?;
            let full = watching.with(|observed, _| observed.full_nodes());
            tokio::task::spawn_blocking(move || plan_collection(&state, &planned_for, &full))
                .await
                .map_err(|error| refused(ErrorKind::Internal, error.to_string()))?
                .map_err(|error| NotHere::Failed(error.into()))?
        };
        match self.submit_here(Command::CreateCollection { spec: Box::new(spec), assignment }).await? {
            Response::Collection(collection) => {
                let state_version = self.shown().version;
                Ok(v1::CollectionReply { collection: Some((*collection).into()), state_version })
            }
            other => Err(unexpected(other)),
        }
    }

    async fn delete_collection_here(
        &self,
        request: v1::DeleteCollectionRequest,
    ) -> Result<v1::DeleteCollectionReply, NotHere> {
        match self.submit_here(Command::DeleteCollection { name: request.name }).await? {
            Response::Done { changed } => {
                Ok(v1::DeleteCollectionReply { existed: changed, state_version: self.shown().version })
            }
            other => Err(unexpected(other)),
        }
    }

    async fn status_here(&self, _request: v1::StatusRequest) -> Result<v1::StatusReply, NotHere> {
        let state = self.read_here().await?;
        let (metrics, watching) = self.raft_metrics().zip(self.watching()).ok_or(NotHere::NotLeader)?;
        let (reports, contacts) = watching.with(|observed, now_ms| {
            let reports = observed.nodes().flat_map(|(_, seen)| seen.copies.values().map(|copy| copy.report.clone()));
            let contacts = observed.nodes().map(|(node, seen)| v1::NodeContact {
                node: node.0,
                heard_ms_ago: now_ms.saturating_sub(seen.heard_ms),
                memory: Some(seen.memory.into()),
            });
            (reports.collect(), contacts.collect())
        });
        let raft = v1::RaftStatus {
            leader: metrics.current_leader.map_or(0, |leader| leader.0),
            raft_term: metrics.current_term,
            last_log_index: metrics.last_log_index.unwrap_or(0),
            last_applied_index: metrics.last_applied.map_or(0, |applied| applied.index),
            voters: metrics.membership_config.voter_ids().map(|voter| voter.0).collect(),
        };
        Ok(v1::StatusReply { state: Some((*state).clone().into()), raft: Some(raft), reports, contacts })
    }
}

/// A proposal from the wire.
fn proposal(request: v1::ProposeRequest) -> Result<Proposal, NotHere> {
    use v1::propose_request::Change;
    let change = match request.change {
        Some(Change::Add(add)) => {
            ProposedChange::Add { copy: CopyId(add.copy_id), incarnation: Incarnation(add.incarnation) }
        }
        Some(Change::Remove(copy)) => ProposedChange::Remove(CopyId(copy)),
        Some(Change::HandOff(copy)) => ProposedChange::HandOff(CopyId(copy)),
        Some(Change::FailSelf(true)) => ProposedChange::FailSelf,
        Some(Change::FailSelf(false)) | None => {
            return Err(refused(ErrorKind::InvalidArgument, "change: missing"));
        }
    };
    Ok(Proposal {
        shard: shard_id("shard", request.shard)?,
        expect_version: request.expect_version,
        by_copy: CopyId(request.by_copy),
        term: PrimaryTerm(request.term),
        change,
    })
}
