//! openraft's messages to the other voters, over tonic. Bodies are openraft's own types in our codec; each message carries the
//! envelope, and its receiver refuses one for another cluster or node, because addresses are reused.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use cluster_config::ids::NodeId;
use cluster_config::limits;
use futures::stream;
use openraft::RPCTypes;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use proto::v1;
use proto::v1::raft_service_client::RaftServiceClient;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::transport::Channel;

use super::codec::{CodecError, decode, encode};
use super::types::{Snapshot, SnapshotData, SnapshotMeta, TypeConfig, Vote};
use crate::rpc::client::{Lane, PeerError, Peers};

/// Makes a [`Connection`] per voter.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) peers: Peers,
}

/// The way to one voter.
pub(crate) struct Connection {
    peers: Peers,
    target: NodeId,
}

/// Why a message got no answer.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("{0}")]
    Status(#[from] Box<tonic::Status>),
    #[error("no answer in {0:?}")]
    Timeout(Duration),
}

impl CallError {
    /// As openraft tells apart: a voter that is not there is left alone for a while, other failures are tried again at once.
    fn into_rpc(self, connection: &Connection, action: RPCTypes) -> RPCError<TypeConfig> {
        match self {
            CallError::Timeout(timeout) => RPCError::Timeout(Timeout {
                action,
                id: connection.peers.self_node(),
                target: connection.target,
                timeout,
            }),
            CallError::Codec(error) => RPCError::Network(NetworkError::new(&error)),
            error => RPCError::Unreachable(Unreachable::new(&error)),
        }
    }
}

impl From<CallError> for StreamingError<TypeConfig> {
    fn from(error: CallError) -> Self {
        StreamingError::Unreachable(Unreachable::new(&error))
    }
}

/// The first piece of a snapshot stream.
#[derive(Serialize, serde::Deserialize)]
pub(crate) struct SnapshotHeader {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    /// The address in the Raft membership is for people; where a voter is dialled is [`Peers`]' knowledge.
    async fn new_client(&mut self, target: NodeId, _node: &BasicNode) -> Connection {
        Connection { peers: self.peers.clone(), target }
    }
}

impl Connection {
    fn client(&self) -> Result<RaftServiceClient<Channel>, CallError> {
        let channel = self.peers.channel(self.target, Lane::Control)?;
        Ok(RaftServiceClient::new(channel)
            .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX))
    }

    /// One message, one answer, within openraft's time for it.
    async fn call<Req, Rep, F, Fut>(&self, request: &Req, option: &RPCOption, send: F) -> Result<Rep, CallError>
    where
        Req: Serialize,
        Rep: DeserializeOwned,
        F: FnOnce(RaftServiceClient<Channel>, tonic::Request<v1::RaftMessage>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<v1::RaftReply>, tonic::Status>>,
    {
        let timeout = option.soft_ttl();
        let body = Bytes::from(encode(request)?);
        let mut message =
            tonic::Request::new(v1::RaftMessage { envelope: Some(self.peers.envelope(self.target)), body });
        message.set_timeout(timeout);
        let reply = tokio::time::timeout(timeout, send(self.client()?, message))
            .await
            .map_err(|_| CallError::Timeout(timeout))?
            .map_err(Box::new)?;
        Ok(decode(&reply.into_inner().body)?)
    }

    async fn send_snapshot(&self, vote: Vote, snapshot: Snapshot) -> Result<SnapshotResponse<TypeConfig>, CallError> {
        let header = encode(&SnapshotHeader { vote, meta: snapshot.meta })?;
        let envelope = self.peers.envelope(self.target);
        let first = v1::SnapshotPiece { envelope: Some(envelope.clone()), header, data: Bytes::new() };
        let data = snapshot.snapshot;
        let starts = (0..data.len()).step_by(limits::METADATA_SNAPSHOT_PIECE_BYTES);
        let pieces = starts.map(move |start| {
            let end = data.len().min(start + limits::METADATA_SNAPSHOT_PIECE_BYTES);
            v1::SnapshotPiece { envelope: Some(envelope.clone()), header: Vec::new(), data: data.slice(start..end) }
        });
        let reply =
            self.client()?.full_snapshot(stream::iter(std::iter::once(first).chain(pieces))).await.map_err(Box::new)?;
        Ok(decode(&reply.into_inner().body)?)
    }
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(&request, &option, |mut client, message| async move { client.append_entries(message).await })
            .await
            .map_err(|error| error.into_rpc(self, RPCTypes::AppendEntries))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(&request, &option, |mut client, message| async move { client.vote(message).await })
            .await
            .map_err(|error| error.into_rpc(self, RPCTypes::Vote))
    }

    /// The trait's default would grant every pre-vote, and so switch it off.
    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(&request, &option, |mut client, message| async move { client.pre_vote(message).await })
            .await
            .map_err(|error| error.into_rpc(self, RPCTypes::Vote))
    }

    /// Cancel: dropping the call resets the stream, and the receiver throws away what it has.
    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let timeout = option.soft_ttl();
        tokio::select! {
            sent = tokio::time::timeout(timeout, self.send_snapshot(vote, snapshot)) => {
                Ok(sent.map_err(|_| CallError::Timeout(timeout))??)
            }
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(&request, &option, |mut client, message| async move { client.transfer_leader(message).await })
            .await
            .map_err(|error| error.into_rpc(self, RPCTypes::TransferLeader))
    }
}
