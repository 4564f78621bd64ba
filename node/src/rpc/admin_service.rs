//! What operators ask. Runs on every node; what only the metadata leader knows is asked of it.

use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, NodeId};
use cluster_config::shard_group::ShardGroup;
use futures::future::join_all;
use proto::convert::ids::shard_id;
use proto::convert::status::RemoteError;
use proto::v1;
use proto::v1::admin_service_server::AdminService;
use proto::v1::replication_service_client::ReplicationServiceClient;
use tonic::{Request, Response, Status};

use crate::metadata::forward::Route;
use crate::metadata::group::Metadata;
use crate::rpc::client::{Lane, Peers};

/// The service of every node.
#[derive(Clone)]
pub struct AdminEndpoint {
    metadata: Metadata,
}

impl AdminEndpoint {
    /// Serves what `metadata` knows and can reach.
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

/// A call that the metadata leader answers.
macro_rules! forward {
    ($self:ident, $request:ident, $call:ident) => {{
        let route = Route::of($request.metadata());
        let message = $request.into_inner();
        $self.check(message.envelope.as_ref())?;
        let reply = $self.metadata.$call(message, route).await;
        reply.map(Response::new).map_err(|error| $self.metadata.refusal(error))
    }};
}

#[tonic::async_trait]
impl AdminService for AdminEndpoint {
    async fn create_collection(
        &self,
        request: Request<v1::CreateCollectionRequest>,
    ) -> Result<Response<v1::CollectionReply>, Status> {
        forward!(self, request, create_collection)
    }

    async fn delete_collection(
        &self,
        request: Request<v1::DeleteCollectionRequest>,
    ) -> Result<Response<v1::DeleteCollectionReply>, Status> {
        forward!(self, request, delete_collection)
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        forward!(self, request, status)
    }

    async fn set_lifecycle(
        &self,
        request: Request<v1::SetLifecycleRequest>,
    ) -> Result<Response<v1::SetLifecycleReply>, Status> {
        forward!(self, request, set_lifecycle)
    }

    async fn promote_replica(
        &self,
        request: Request<v1::PromoteReplicaRequest>,
    ) -> Result<Response<v1::PromoteReplicaReply>, Status> {
        forward!(self, request, promote_replica)
    }

    async fn force_promote(
        &self,
        request: Request<v1::ForcePromoteRequest>,
    ) -> Result<Response<v1::ForcePromoteReply>, Status> {
        forward!(self, request, force_promote)
    }

    /// The primary's digest is taken first; the other copies answer once they have applied as much, so that without writes in
    /// between equal copies give equal digests.
    async fn digest_shard(
        &self,
        request: Request<v1::DigestShardRequest>,
    ) -> Result<Response<v1::DigestShardReply>, Status> {
        let route = Route::of(request.metadata());
        let message = request.into_inner();
        self.check(message.envelope.as_ref())?;
        let shard = shard_id("shard", message.shard)?;
        let state = self.metadata.state().borrow().clone();
        let group = state
            .shards
            .get(&shard)
            .ok_or_else(|| RemoteError::new(ErrorKind::NotFound, format!("shard {shard} does not exist")))?;
        let peers = self.metadata.peers();
        let primary = group.primary_copy();
        let mut copies = Vec::with_capacity(group.copies.len());
        let mut at_least = 0;
        if let Some((copy, node)) = primary.and_then(|copy| Some((copy, group.node_of(copy)?))) {
            let taken = digest(peers, group, copy, node, 0, route).await;
            at_least = taken.digest.as_ref().and_then(|digest| digest.position.as_ref()).map_or(0, |at| at.applied);
            copies.push(taken);
        }
        let others = group.copies.iter().filter(|(copy, _)| Some(**copy) != primary);
        copies.extend(
            join_all(others.map(|(copy, record)| digest(peers, group, *copy, record.node, at_least, route))).await,
        );
        Ok(Response::new(v1::DigestShardReply { copies }))
    }
}

/// One copy's digest, or why there is none.
async fn digest(
    peers: &Peers,
    group: &ShardGroup,
    copy: CopyId,
    node: NodeId,
    at_least: u64,
    route: Route,
) -> v1::CopyDigest {
    let taken = async {
        let channel = peers
            .channel(node, Lane::Query)
            .map_err(|error| RemoteError::new(ErrorKind::Unavailable, error.to_string()))?;
        let mut request = Request::new(v1::DigestRequest {
            envelope: Some(peers.envelope(node)),
            target: Some(group.target(copy).into()),
            at_least,
        });
        request.set_timeout(route.remaining());
        let reply = ReplicationServiceClient::new(channel).digest(request).await.map_err(RemoteError::from)?;
        Ok(reply.into_inner())
    };
    let bounded = tokio::time::timeout(route.remaining(), taken).await;
    let result = bounded
        .unwrap_or_else(|_| Err(RemoteError::new(ErrorKind::DeadlineExceeded, format!("no answer from node {node}"))));
    let (digest, error) = match result {
        Ok(digest) => (Some(digest), None),
        Err(error) => (None, Some(error.into())),
    };
    v1::CopyDigest { copy_id: copy.0, node: node.0, digest, error }
}
