//! openraft's messages from the other voters.

use cluster_config::error::ErrorKind;
use cluster_config::ids::NodeId;
use cluster_config::limits;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use proto::convert::status::RemoteError;
use proto::v1;
use proto::v1::raft_service_server::RaftService;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::{Request, Response, Status, Streaming};

use super::codec::{decode, encode};
use super::group::Metadata;
use super::network::SnapshotHeader;
use super::snapshot;
use super::types::{Raft, Snapshot, TypeConfig};

/// The service of every node; one that is no voter refuses.
#[derive(Clone)]
pub struct RaftEndpoint {
    metadata: Metadata,
}

impl RaftEndpoint {
    /// Serves the member that `metadata` runs.
    pub fn new(metadata: Metadata) -> Self {
        Self { metadata }
    }

    fn member(&self, envelope: Option<&v1::Envelope>) -> Result<&Raft, Status> {
        let peers = self.metadata.peers();
        let refuse = |kind, text: String| Status::from(RemoteError::new(kind, text));
        peers.check_envelope(envelope).map_err(|text| refuse(ErrorKind::InvalidArgument, text))?;
        // Between voters the addressee is always named.
        if envelope.is_none_or(|envelope| NodeId(envelope.to_node) != peers.self_node()) {
            return Err(refuse(ErrorKind::InvalidArgument, "a raft message without an addressee".into()));
        }
        self.metadata.raft().ok_or_else(|| refuse(ErrorKind::Unavailable, "this node is no metadata voter".into()))
    }
}

/// Who reads `message` gets what openraft sent.
fn read<T: DeserializeOwned>(message: &v1::RaftMessage) -> Result<T, Status> {
    decode(&message.body).map_err(|error| RemoteError::new(ErrorKind::InvalidArgument, error.to_string()).into())
}

fn answer<T: Serialize, E: std::fmt::Display>(result: Result<T, E>) -> Result<Response<v1::RaftReply>, Status> {
    let failed = |text: String| Status::from(RemoteError::new(ErrorKind::Unavailable, text));
    let reply = result.map_err(|error| failed(error.to_string()))?;
    let body = encode(&reply).map_err(|error| failed(error.to_string()))?;
    Ok(Response::new(v1::RaftReply { body }))
}

#[tonic::async_trait]
impl RaftService for RaftEndpoint {
    async fn append_entries(&self, request: Request<v1::RaftMessage>) -> Result<Response<v1::RaftReply>, Status> {
        let message = request.into_inner();
        let raft = self.member(message.envelope.as_ref())?;
        answer(raft.append_entries(read::<AppendEntriesRequest<TypeConfig>>(&message)?).await)
    }

    async fn vote(&self, request: Request<v1::RaftMessage>) -> Result<Response<v1::RaftReply>, Status> {
        let message = request.into_inner();
        let raft = self.member(message.envelope.as_ref())?;
        answer(raft.vote(read::<VoteRequest<TypeConfig>>(&message)?).await)
    }

    async fn pre_vote(&self, request: Request<v1::RaftMessage>) -> Result<Response<v1::RaftReply>, Status> {
        let message = request.into_inner();
        let raft = self.member(message.envelope.as_ref())?;
        answer(raft.pre_vote(read::<VoteRequest<TypeConfig>>(&message)?).await)
    }

    async fn transfer_leader(&self, request: Request<v1::RaftMessage>) -> Result<Response<v1::RaftReply>, Status> {
        let message = request.into_inner();
        let raft = self.member(message.envelope.as_ref())?;
        answer(raft.handle_transfer_leader(read::<TransferLeaderRequest<TypeConfig>>(&message)?).await)
    }

    /// The whole snapshot is checked before openraft sees it: a damaged one is the sender's problem, not a reason to stop.
    async fn full_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotPiece>>,
    ) -> Result<Response<v1::RaftReply>, Status> {
        let invalid = |text: String| Status::from(RemoteError::new(ErrorKind::InvalidArgument, text));
        let mut pieces = request.into_inner();
        let first = pieces.message().await?.ok_or_else(|| invalid("an empty snapshot stream".into()))?;
        let raft = self.member(first.envelope.as_ref())?;
        let header: SnapshotHeader = decode(&first.header).map_err(|error| invalid(error.to_string()))?;
        let mut bytes = first.data.to_vec();
        while let Some(piece) = pieces.message().await? {
            if bytes.len() + piece.data.len() > limits::METADATA_SNAPSHOT_BYTES_MAX {
                return Err(RemoteError::new(ErrorKind::TooLarge, "the metadata snapshot is too large").into());
            }
            bytes.extend_from_slice(&piece.data);
        }
        let (meta, _) =
            snapshot::unpack(&bytes, self.metadata.peers().cluster_id()).map_err(|error| invalid(error.to_string()))?;
        if meta.last_log_id != header.meta.last_log_id {
            return Err(invalid("the metadata snapshot is not the announced one".into()));
        }
        let snapshot = Snapshot { meta: header.meta, snapshot: bytes.into() };
        answer(raft.install_full_snapshot(header.vote, snapshot).await)
    }
}
