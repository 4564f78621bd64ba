//! Writes to primaries here, and the stream from primaries elsewhere.

use std::sync::Arc;
use std::time::Instant;

use cluster_config::error::ErrorKind;
use cluster_config::ids::NodeId;
use cluster_config::operation::Operation;
use cluster_config::search::CopyPosition;
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use cluster_config::shard_group::CopyTarget;
use futures::future::BoxFuture;
use proto::convert::each;
use proto::convert::ids::{copy_target, operation_id};
use proto::v1;
use proto::v1::replication_service_client::ReplicationServiceClient;
use proto::v1::replication_service_server::ReplicationService;
use tonic::{Request, Response, Status};

use super::append::{append_from_wire, append_to_wire, result_from_wire, result_to_wire};
use super::client::{Lane, Peers};
use super::deadline::{deadline_of, with_timeout};
use crate::copies::{Copies, Copy};
use crate::disk::DiskWatch;
use crate::error::Error;
use crate::pool::Pool;
use crate::replication::{
    Append, AppendOutcome, AppendRefusal, AppendResult, Confirm, ReplicationTransport, TransportError,
};
use crate::shard::validate_operations;
use crate::telemetry::Metrics;

/// Serves the replication messages of the open copies.
#[derive(Clone)]
pub struct ReplicationServer {
    /// Whose envelopes are accepted.
    pub peers: Peers,
    /// The open copies.
    pub copies: Arc<Copies>,
    /// Where digests are computed.
    pub pool: Pool,
    /// Refuses client writes while the disk is full.
    pub disk: Arc<DiskWatch>,
    /// Counted here.
    pub metrics: Arc<Metrics>,
}

impl ReplicationServer {
    fn find(
        &self,
        envelope: Option<&v1::Envelope>,
        target: Option<v1::CopyTarget>,
    ) -> Result<(CopyTarget, Arc<Copy>), Error> {
        self.peers.check_envelope(envelope).map_err(|message| Error::new(ErrorKind::InvalidArgument, message))?;
        let target = copy_target("target", target)?;
        Ok((target, self.copies.find(&target)?))
    }

    async fn write_at(&self, request: v1::WriteRequest, deadline: Instant) -> Result<v1::WriteReply, Error> {
        let (_, copy) = self.find(request.envelope.as_ref(), request.target)?;
        let id = operation_id(&request.operation_id)?;
        let operations: Vec<Operation> = each("operations", request.operations)?;
        validate_operations(&copy.spec, &operations)
            .map_err(|error| Error::new(ErrorKind::InvalidArgument, error.to_string()).with_hint(error.hint.clone()))?;
        self.disk.admit(&operations)?;
        let count = operations.len() as u64;
        let outcome = copy.handle.write(id, operations, deadline.into()).await?;
        self.metrics.operations.inc_by(count);
        Ok(v1::WriteReply {
            position: Some(outcome.position.into()),
            seqno: outcome.seqno.0,
            copies_acked: outcome.copies_acked,
            deduplicated: outcome.deduplicated,
        })
    }
}

#[tonic::async_trait]
impl ReplicationService for ReplicationServer {
    async fn write(&self, request: Request<v1::WriteRequest>) -> Result<Response<v1::WriteReply>, Status> {
        let started = Instant::now();
        let deadline = deadline_of(&request);
        let outcome = self.write_at(request.into_inner(), deadline).await;
        let label = outcome.as_ref().map_or_else(|error| error.kind.as_str(), |_| "ok");
        self.metrics.writes.with_label_values(&[label]).inc();
        self.metrics.write_seconds.observe(started.elapsed().as_secs_f64());
        Ok(Response::new(outcome?))
    }

    async fn append(&self, request: Request<v1::AppendRequest>) -> Result<Response<v1::AppendReply>, Status> {
        let mut request = request.into_inner();
        let (target, copy) = match self.find(request.envelope.take().as_ref(), request.target) {
            Ok(found) => found,
            // Another lineage is an answer of the protocol, not a failure of the call; a copy that is not open yet is a failure.
            Err(error) if error.kind == ErrorKind::TokenVoid => {
                let result = AppendResult {
                    copy: copy_target("target", request.target)?.copy,
                    incarnation: self.peers.incarnation(),
                    term: PrimaryTerm(0),
                    applied: SeqNo::ZERO,
                    pinned: None,
                    outcome: AppendOutcome::Refused(AppendRefusal::Lineage),
                };
                return Ok(Response::new(result_to_wire(result, CopyPosition::default())));
            }
            Err(error) => return Err(error.into()),
        };
        let result = copy.handle.append(append_from_wire(request)?).await;
        let position = CopyPosition { shard: Some(target.shard), lineage: target.lineage, ..CopyPosition::default() };
        Ok(Response::new(result_to_wire(result, position)))
    }

    async fn confirm(&self, request: Request<v1::ConfirmRequest>) -> Result<Response<v1::ConfirmReply>, Status> {
        let request = request.into_inner();
        let (_, copy) = self.find(request.envelope.as_ref(), request.target)?;
        let current = copy.handle.confirm(PrimaryTerm(request.term)).await;
        Ok(Response::new(v1::ConfirmReply { position: Some(copy.position().into()), current_term: current.0 }))
    }

    async fn digest(&self, request: Request<v1::DigestRequest>) -> Result<Response<v1::DigestReply>, Status> {
        let deadline = deadline_of(&request);
        let request = request.into_inner();
        let (_, copy) = self.find(request.envelope.as_ref(), request.target)?;
        copy.handle.wait_applied(SeqNo(request.at_least), deadline.into()).await.map_err(Error::from)?;
        let digested = self
            .pool
            .run(move || -> Result<v1::DigestReply, Error> {
                let digest = copy.shard.digest()?;
                let position = CopyPosition { applied: digest.position.applied, ..copy.position() };
                Ok(v1::DigestReply {
                    position: Some(position.into()),
                    documents: digest.documents,
                    index_membership: digest.index_membership,
                    log: digest.log,
                    log_from: digest.log_from.0,
                    document_count: digest.document_count,
                    chunk_count: digest.chunk_count,
                })
            })
            .await
            .map_err(Error::from)?;
        Ok(Response::new(digested?))
    }
}

/// Carries what a primary says to other copies.
pub struct GrpcTransport {
    peers: Peers,
    timeout: std::time::Duration,
}

impl GrpcTransport {
    /// Each call is given up after `timeout`.
    pub fn new(peers: Peers, timeout: std::time::Duration) -> Self {
        Self { peers, timeout }
    }
}

impl ReplicationTransport for GrpcTransport {
    fn append(&self, node: NodeId, append: Append) -> BoxFuture<'_, Result<AppendResult, TransportError>> {
        let (peers, timeout) = (self.peers.clone(), self.timeout);
        Box::pin(async move {
            let call = async {
                let channel = peers.channel(node, Lane::Replication)?;
                let mut client = ReplicationServiceClient::new(channel)
                    .max_decoding_message_size(cluster_config::limits::GRPC_MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(cluster_config::limits::GRPC_MESSAGE_BYTES_MAX);
                let request = with_timeout(append_to_wire(peers.envelope(node), append), timeout);
                let reply = client.append(request).await.map_err(|status| {
                    peers.note_failure(node, &status);
                    Error::from(status)
                })?;
                result_from_wire(node, reply.into_inner())
            };
            call.await.map_err(|error: Error| TransportError(error.to_string()))
        })
    }

    /// On the lane of reads: a strong read must not wait behind log entries.
    fn confirm(&self, node: NodeId, confirm: Confirm) -> BoxFuture<'_, Result<PrimaryTerm, TransportError>> {
        let (peers, timeout) = (self.peers.clone(), self.timeout);
        Box::pin(async move {
            let Confirm { shard, to_copy: copy, lineage, cfg_version, term } = confirm;
            let target = CopyTarget { shard, copy, lineage, cfg_version };
            let call = async {
                let mut client = ReplicationServiceClient::new(peers.channel(node, Lane::Query)?);
                let envelope = Some(peers.envelope(node));
                let request = v1::ConfirmRequest { envelope, target: Some(target.into()), term: term.0 };
                let reply = client.confirm(with_timeout(request, timeout)).await.map_err(Error::from)?;
                Ok(PrimaryTerm(reply.into_inner().current_term))
            };
            call.await.map_err(|error: Error| TransportError(error.to_string()))
        })
    }
}
