//! Snapshots for other nodes, and the calls that fetch theirs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, Lineage, NodeId};
use cluster_config::limits::GRPC_MESSAGE_BYTES_MAX;
use futures::future::BoxFuture;
use proto::convert::ids::{copy_target, shard_id};
use proto::v1;
use proto::v1::transfer_service_client::TransferServiceClient;
use proto::v1::transfer_service_server::TransferService;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::client::{Lane, Peers};
use super::deadline::with_timeout;
use crate::copies::Copies;
use crate::error::Error;
use crate::pace::Pace;
use crate::telemetry::Metrics;
use crate::transfer::decide::FetchFrom;
use crate::transfer::{Manifest, SnapshotFile, SnapshotId, SnapshotSource, Snapshots};

/// Taking a checkpoint reads all of the copy once, to add it up: 100 GB from a slow disk. A source that has died is noticed by the
/// channel's pings, and whoever asked anew before the answer came would have it begin again.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// A piece waits for its turn in the source's budget.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves the snapshots of the open copies.
#[derive(Clone)]
pub struct TransferServer {
    /// Whose envelopes are accepted.
    pub peers: Peers,
    /// The open copies.
    pub copies: Arc<Copies>,
    /// The open snapshots.
    pub snapshots: Arc<Snapshots>,
    /// Shared by all that is sent.
    pub pace: Arc<Pace>,
    /// Counted here.
    pub metrics: Arc<Metrics>,
}

impl TransferServer {
    fn check(&self, envelope: Option<&v1::Envelope>) -> Result<(), Error> {
        self.peers.check_envelope(envelope).map_err(|message| Error::new(ErrorKind::InvalidArgument, message))
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Snapshots) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let snapshots = Arc::clone(&self.snapshots);
        let done = tokio::task::spawn_blocking(move || job(&snapshots)).await;
        done.map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?
    }
}

#[tonic::async_trait]
impl TransferService for TransferServer {
    async fn open_snapshot(
        &self,
        request: Request<v1::OpenSnapshotRequest>,
    ) -> Result<Response<v1::OpenSnapshotReply>, Status> {
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        let copy = self.copies.find(&copy_target("source", request.source)?)?;
        let (shard_id, lineage) = (copy.shard_id, copy.lineage);
        let started = Instant::now();
        let for_copy = CopyId(request.for_copy);
        let manifest = self.run(move |snapshots| snapshots.open(&copy.shard, shard_id, lineage, for_copy)).await?;
        tracing::info!(
            shard = %shard_id, %for_copy, base = %manifest.base.seqno, bytes = manifest.bytes(),
            seconds = started.elapsed().as_secs_f32(), "snapshot opened"
        );
        Ok(Response::new(v1::OpenSnapshotReply { manifest: Some(to_wire(&manifest)) }))
    }

    async fn read_piece(&self, request: Request<v1::ReadPieceRequest>) -> Result<Response<v1::ReadPieceReply>, Status> {
        let v1::ReadPieceRequest { envelope, snapshot_id, file, piece } = request.into_inner();
        self.check(envelope.as_ref())?;
        let data = self.run(move |snapshots| snapshots.read(SnapshotId(snapshot_id), &file, piece)).await?;
        self.pace.wait(data.len() as u64).await;
        self.metrics.transfer_bytes.with_label_values(&["out"]).inc_by(data.len() as u64);
        Ok(Response::new(v1::ReadPieceReply { crc32c: crc32c::crc32c(&data), data }))
    }

    async fn close_snapshot(
        &self,
        request: Request<v1::CloseSnapshotRequest>,
    ) -> Result<Response<v1::CloseSnapshotReply>, Status> {
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        self.run(move |snapshots| {
            snapshots.close(SnapshotId(request.snapshot_id));
            Ok(())
        })
        .await?;
        Ok(Response::new(v1::CloseSnapshotReply {}))
    }
}

/// Fetches snapshots over a lane of their own.
pub struct GrpcSnapshotSource {
    peers: Peers,
}

impl GrpcSnapshotSource {
    /// Calls these peers.
    pub fn new(peers: Peers) -> Self {
        Self { peers }
    }

    fn client(&self, node: NodeId) -> Result<TransferServiceClient<Channel>, Error> {
        let channel = self.peers.channel(node, Lane::Transfer)?;
        Ok(TransferServiceClient::new(channel).max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX))
    }
}

impl SnapshotSource for GrpcSnapshotSource {
    fn open(&self, from: FetchFrom, for_copy: CopyId) -> BoxFuture<'_, Result<Manifest, Error>> {
        Box::pin(async move {
            let message = v1::OpenSnapshotRequest {
                envelope: Some(self.peers.envelope(from.node)),
                source: Some(from.copy.into()),
                for_copy: for_copy.0,
            };
            let reply = self.client(from.node)?.open_snapshot(with_timeout(message, OPEN_TIMEOUT)).await?;
            from_wire(reply.into_inner().manifest)
        })
    }

    fn read<'a>(
        &'a self,
        node: NodeId,
        snapshot: SnapshotId,
        file: &'a str,
        piece: u32,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            let message = v1::ReadPieceRequest {
                envelope: Some(self.peers.envelope(node)),
                snapshot_id: snapshot.0,
                file: file.to_owned(),
                piece,
            };
            let reply = self.client(node)?.read_piece(with_timeout(message, PIECE_TIMEOUT)).await?.into_inner();
            if crc32c::crc32c(&reply.data) != reply.crc32c {
                return Err(Error::new(ErrorKind::Corrupt, format!("piece {piece} of {file} arrived damaged")));
            }
            Ok(reply.data)
        })
    }

    fn close(&self, node: NodeId, snapshot: SnapshotId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let envelope = Some(self.peers.envelope(node));
            let message = v1::CloseSnapshotRequest { envelope, snapshot_id: snapshot.0 };
            self.client(node)?.close_snapshot(with_timeout(message, PIECE_TIMEOUT)).await?;
            Ok(())
        })
    }
}

fn to_wire(manifest: &Manifest) -> v1::SnapshotManifest {
    let file = |file: &SnapshotFile| v1::SnapshotFile {
        name: file.name.clone(),
        size: file.size,
        piece_crc32c: file.pieces.clone(),
    };
    v1::SnapshotManifest {
        snapshot_id: manifest.snapshot.0,
        shard: Some(manifest.shard.into()),
        lineage: manifest.lineage.0,
        base: Some(manifest.base.into()),
        generation: manifest.generation,
        files: manifest.files.iter().map(file).collect(),
    }
}

fn from_wire(wire: Option<v1::SnapshotManifest>) -> Result<Manifest, Error> {
    let wire = wire.ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "manifest: missing"))?;
    let file = |file: v1::SnapshotFile| SnapshotFile { name: file.name, size: file.size, pieces: file.piece_crc32c };
    Ok(Manifest {
        snapshot: SnapshotId(wire.snapshot_id),
        shard: shard_id("manifest.shard", wire.shard)?,
        lineage: Lineage(wire.lineage),
        base: wire.base.map(Into::into).unwrap_or_default(),
        generation: wire.generation,
        files: wire.files.into_iter().map(file).collect(),
    })
}
