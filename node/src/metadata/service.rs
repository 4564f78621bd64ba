//! What nodes and coordinators ask of the metadata group. Every node serves it; what only the leader knows is asked of the leader.

use std::pin::Pin;

use cluster_config::cluster_state::{ClusterState, Liveness};
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, Incarnation, NodeId};
use cluster_config::memory::NodeMemory;
use futures::{Stream, StreamExt};
use proto::convert::status::RemoteError;
use proto::v1;
use proto::v1::metadata_service_server::MetadataService;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use super::forward::Route;
use super::group::Metadata;
use crate::control::observe::Heartbeat;

/// The service of every node.
#[derive(Clone)]
pub struct MetadataEndpoint {
    metadata: Metadata,
}

impl MetadataEndpoint {
    /// Serves `metadata`.
    pub fn new(metadata: Metadata) -> Self {
        Self { metadata }
    }

    fn check(&self, envelope: Option<&v1::Envelope>) -> Result<(), Status> {
        self.metadata
            .peers()
            .check_envelope(envelope)
            .map_err(|text| RemoteError::new(ErrorKind::InvalidArgument, text).into())
    }
}

type WatchReplies = Pin<Box<dyn Stream<Item = Result<v1::WatchReply, Status>> + Send>>;

#[tonic::async_trait]
impl MetadataService for MetadataEndpoint {
    async fn register(&self, request: Request<v1::RegisterRequest>) -> Result<Response<v1::RegisterReply>, Status> {
        let route = Route::of(request.metadata());
        let message = request.into_inner();
        self.check(message.envelope.as_ref())?;
        let reply = self.metadata.register(message, route).await.map_err(|error| self.metadata.refusal(error))?;
        Ok(Response::new(reply))
    }

    /// Soft state of the voter that is asked; never sent on, because the node tells every voter itself.
    async fn heartbeat(&self, request: Request<v1::HeartbeatRequest>) -> Result<Response<v1::HeartbeatReply>, Status> {
        let message = request.into_inner();
        self.check(message.envelope.as_ref())?;
        self.metadata
            .hear(message)
            .map(Response::new)
            .ok_or_else(|| RemoteError::new(ErrorKind::Unavailable, "this node is no metadata voter").into())
    }

    async fn propose(&self, request: Request<v1::ProposeRequest>) -> Result<Response<v1::ProposeReply>, Status> {
        let route = Route::of(request.metadata());
        let message = request.into_inner();
        self.check(message.envelope.as_ref())?;
        let reply = self.metadata.propose(message, route).await.map_err(|error| self.metadata.refusal(error))?;
        Ok(Response::new(reply))
    }

    async fn read_register(
        &self,
        request: Request<v1::ReadRegisterRequest>,
    ) -> Result<Response<v1::ReadRegisterReply>, Status> {
        let route = Route::of(request.metadata());
        let message = request.into_inner();
        self.check(message.envelope.as_ref())?;
        let reply = self.metadata.read_register(message, route).await.map_err(|error| self.metadata.refusal(error))?;
        Ok(Response::new(reply))
    }

    type WatchStream = WatchReplies;

    /// States that follow one another quickly are left out; the last one never is.
    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<WatchReplies>, Status> {
        let message = request.into_inner();
        self.check(message.envelope.as_ref())?;
        let metadata = self.metadata.clone();
        let known = message.known_version;
        let states = WatchStream::new(metadata.state());
        let replies = states
            // A watcher that comes back knows the current version already; version 0 is the state before the first command.
            .filter(move |state| futures::future::ready(state.version > known || known == 0))
            .take_until(self.metadata.stopped())
            .map(move |state| {
                let leader = metadata.leader().map_or(0, |leader| leader.0);
                Ok(v1::WatchReply { state: Some((*state).clone().into()), leader })
            });
        Ok(Response::new(Box::pin(replies)))
    }
}

impl Metadata {
    /// Takes a heartbeat in, on a voter.
    pub(crate) fn hear(&self, message: v1::HeartbeatRequest) -> Option<v1::HeartbeatReply> {
        let watching = self.watching()?;
        let node = NodeId(message.envelope.as_ref().map_or(0, |envelope| envelope.from_node));
        let incarnation = Incarnation(message.incarnation);
        let state = self.state().borrow().clone();
        let heartbeat = Heartbeat {
            node,
            incarnation,
            copies: message.copies,
            deleted: message.deleted_copies.into_iter().map(CopyId).collect(),
            refused_peers: message.refused_peers.into_iter().map(NodeId).collect(),
            is_disk_stalled: message.disk_stalled,
            is_stopping: message.stopping,
            unanswered_ms: message.unanswered_ms,
            memory: message.memory.map(NodeMemory::from).unwrap_or_default(),
        };
        watching.with(|observed, now_ms| observed.hear(heartbeat, now_ms));
        let leader = self.leader();
        let leads = leader == Some(self.peers().self_node());
        Some(v1::HeartbeatReply {
            state_version: state.version,
            leader: leader.map_or(0, |leader| leader.0),
            must_register: must_register(&state, node, incarnation, leads),
        })
    }
}

/// Whether that life of the process is over in the eyes of this voter. Lives only end, so a voter that lags may miss it but never
/// invents it; that a node was never registered is for the leader to say.
fn must_register(state: &ClusterState, node: NodeId, incarnation: Incarnation, leads: bool) -> bool {
    match state.nodes.get(&node) {
        Some(record) if record.incarnation == incarnation => record.liveness == Liveness::Dead,
        Some(record) => record.incarnation > incarnation,
        None => leads,
    }
}
