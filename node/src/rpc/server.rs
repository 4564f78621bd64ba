//! The gRPC services of a node on one port.

use std::future::Future;
use std::time::Duration;

use cluster_config::limits::{GRPC_MESSAGE_BYTES_MAX, GRPC_WINDOW_BYTES};
use proto::v1::admin_service_server::AdminServiceServer;
use proto::v1::metadata_service_server::MetadataServiceServer;
use proto::v1::raft_service_server::RaftServiceServer;
use proto::v1::replication_service_server::ReplicationServiceServer;
use proto::v1::search_service_server::SearchServiceServer;
use proto::v1::transfer_service_server::TransferServiceServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::admin_service::AdminEndpoint;
use super::client::{KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT};
use super::replication_service::ReplicationServer;
use super::search_service::SearchServer;
use super::transfer_service::TransferServer;
use crate::metadata::raft_service::RaftEndpoint;
use crate::metadata::service::MetadataEndpoint;

/// Most concurrent streams of one connection: a coordinator has one scatter stream per query in flight.
const STREAMS_PER_CONNECTION_MAX: u32 = 4096;
/// Open calls are cut this long after the stop.
const GRACE: Duration = Duration::from_secs(5);

/// Everything a node serves.
pub struct Services {
    /// Raft between voters; only on a voter.
    pub raft: Option<RaftEndpoint>,
    /// Registration, heartbeats, registers, the watch.
    pub metadata: MetadataEndpoint,
    /// Collections and status.
    pub admin: AdminEndpoint,
    /// Writes and the stream between copies.
    pub replication: ReplicationServer,
    /// Reads.
    pub search: SearchServer,
    /// Snapshots for other nodes.
    pub transfer: TransferServer,
}

/// Serves until `stop`, then finishes open calls for a while.
pub fn serve(
    listener: TcpListener,
    services: Services,
    stop: CancellationToken,
) -> impl Future<Output = Result<(), tonic::transport::Error>> + Send + 'static {
    macro_rules! sized {
        ($server:ident, $service:expr) => {
            $server::new($service)
                .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
                .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX)
        };
    }
    // Without it small replies wait for the peer's delayed acknowledgement, 40 ms.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let routes = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(GRPC_WINDOW_BYTES)
        .initial_connection_window_size(GRPC_WINDOW_BYTES)
        .add_service(sized!(MetadataServiceServer, services.metadata))
        .add_service(sized!(AdminServiceServer, services.admin))
        .add_service(sized!(ReplicationServiceServer, services.replication))
        .add_service(sized!(SearchServiceServer, services.search))
        .add_service(sized!(TransferServiceServer, services.transfer))
        .add_optional_service(services.raft.map(|raft| sized!(RaftServiceServer, raft)));
    async move {
        let cut = stop.clone();
        let serving = routes.serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
        // Watch streams never end by themselves, so a graceful shutdown needs an end.
        let grace = async {
            cut.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            served = serving => served,
            () = grace => {
                tracing::info!("open calls were cut after {GRACE:?}");
                Ok(())
            }
        }
    }
}
