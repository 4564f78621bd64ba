//! How this process reaches its peers: one lazily connected HTTP/2 channel per peer and lane.
//!
//! Lanes keep heartbeats and Raft from queueing behind bulk data (reference, pitfall 18). A channel pings an idle peer, because
//! a black-holed connection would otherwise swallow calls until the process restarts.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::cluster_state::ClusterState;
use cluster_config::ids::{Incarnation, NodeId};
use parking_lot::{Mutex, RwLock};
use proto::v1;
use tokio::sync::Notify;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// A peer that answers the connect slower than this is treated as absent.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Between HTTP/2 pings; with the timeout below, a frozen or cut-off peer is noticed within three seconds.
pub(crate) const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// Without a pong for this long the connection and its calls fail.
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a refused connection counts as news. The metadata leader makes sure for itself.
const REFUSAL_LASTS: Duration = Duration::from_secs(1);

/// What a channel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Heartbeats, Raft, registration, proposals.
    Control,
    /// The stream of log entries between copies.
    Replication,
    /// Reads.
    Query,
    /// Snapshots.
    Transfer,
}

/// Why a peer cannot be called.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Neither the configuration nor the cluster state has an address for it.
    #[error("no address known for node {0}")]
    Unknown(NodeId),
    /// The address is not one.
    #[error("node {node} has an invalid address {address:?}")]
    InvalidAddress {
        /// The peer.
        node: NodeId,
        /// What is written for it.
        address: String,
    },
}

/// The peers of this process. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    cluster_id: String,
    self_node: NodeId,
    dial_overrides: BTreeMap<NodeId, String>,
    book: RwLock<Book>,
    refused: Mutex<BTreeMap<NodeId, Instant>>,
    newly_refused: Notify,
}

#[derive(Default)]
struct Book {
    addresses: BTreeMap<NodeId, String>,
    channels: HashMap<(NodeId, Lane), Channel>,
    incarnation: Incarnation,
}

impl Peers {
    /// `seeds` are the addresses known before the cluster state is (the voters of the configuration). `dial_overrides` win over
    /// every other source, so that a directed link can be led through a proxy.
    pub fn new(
        cluster_id: impl Into<String>,
        self_node: NodeId,
        dial_overrides: BTreeMap<NodeId, String>,
        seeds: BTreeMap<NodeId, String>,
    ) -> Self {
        let book = RwLock::new(Book { addresses: seeds, ..Book::default() });
        Self {
            inner: Arc::new(Inner {
                cluster_id: cluster_id.into(),
                self_node,
                dial_overrides,
                book,
                refused: Mutex::default(),
                newly_refused: Notify::new(),
            }),
        }
    }

    /// Takes the addresses of the cluster state; a changed address drops the old channels.
    pub fn learn(&self, state: &ClusterState) {
        let mut book = self.inner.book.write();
        for node in state.nodes.values() {
            let known = book.addresses.insert(node.id, node.rpc_address.clone());
            if known.as_ref().is_some_and(|address| *address != node.rpc_address) {
                book.channels.retain(|(id, _), _| *id != node.id);
            }
        }
    }

    /// Remembers the incarnation that later envelopes carry.
    pub fn set_incarnation(&self, incarnation: Incarnation) {
        self.inner.book.write().incarnation = incarnation;
    }

    /// The incarnation that envelopes carry.
    pub fn incarnation(&self) -> Incarnation {
        self.inner.book.read().incarnation
    }

    /// This process.
    pub fn self_node(&self) -> NodeId {
        self.inner.self_node
    }

    /// The cluster this process belongs to.
    pub fn cluster_id(&self) -> &str {
        &self.inner.cluster_id
    }

    /// Where `node` is dialled, overrides applied.
    pub fn address(&self, node: NodeId) -> Result<String, PeerError> {
        if let Some(address) = self.inner.dial_overrides.get(&node) {
            return Ok(address.clone());
        }
        self.inner.book.read().addresses.get(&node).cloned().ok_or(PeerError::Unknown(node))
    }

    /// A channel to `node`; connects on first use and again after a failure. Errors: no or bad address.
    pub fn channel(&self, node: NodeId, lane: Lane) -> Result<Channel, PeerError> {
        if let Some(channel) = self.inner.book.read().channels.get(&(node, lane)) {
            return Ok(channel.clone());
        }
        let address = self.address(node)?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| PeerError::InvalidAddress { node, address })?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let mut book = self.inner.book.write();
        Ok(book.channels.entry((node, lane)).or_insert_with(|| endpoint.connect_lazy()).clone())
    }

    /// Takes in that a call to `node` failed. Only a refused connection is remembered: it says that nobody listens there.
    pub fn note_failure(&self, node: NodeId, status: &Status) {
        if !is_refused(status) {
            return;
        }
        let now = Instant::now();
        let before = self.inner.refused.lock().insert(node, now);
        if before.is_none_or(|before| now - before > REFUSAL_LASTS) {
            self.inner.newly_refused.notify_waiters();
        }
    }

    /// Peers whose port refused a connection within the last second.
    pub fn refused_lately(&self) -> Vec<NodeId> {
        let mut refused = self.inner.refused.lock();
        refused.retain(|_, at| at.elapsed() <= REFUSAL_LASTS);
        refused.keys().copied().collect()
    }

    /// Returns when a peer begins to refuse.
    pub async fn newly_refused(&self) {
        self.inner.newly_refused.notified().await;
    }

    /// The envelope of a message to `to`.
    pub fn envelope(&self, to: NodeId) -> v1::Envelope {
        v1::Envelope {
            cluster_id: self.inner.cluster_id.clone(),
            to_node: to.0,
            from_incarnation: self.inner.book.read().incarnation.0,
            from_node: self.inner.self_node.0,
        }
    }

    /// Checks that a received message is meant for this process. Errors: text for an `InvalidArgument`. A missing node (0) is
    /// accepted: clients that only know an address send it.
    pub fn check_envelope(&self, envelope: Option<&v1::Envelope>) -> Result<(), String> {
        let Some(envelope) = envelope else {
            return Err("the message has no envelope".into());
        };
        if envelope.cluster_id != self.inner.cluster_id {
            return Err(format!("message for cluster {:?}, this is {:?}", envelope.cluster_id, self.inner.cluster_id));
        }
        if envelope.to_node != 0 && envelope.to_node != self.inner.self_node.0 {
            return Err(format!("message for node {}, this is node {}", envelope.to_node, self.inner.self_node));
        }
        Ok(())
    }
}

/// Whether the failure's innermost cause is a refused connection.
fn is_refused(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use proto::v1::metadata_service_client::MetadataServiceClient;

    use super::*;

    #[tokio::test]
    async fn a_refused_connection_is_remembered_and_other_failures_are_not() {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = free.local_addr().expect("bound").to_string();
        drop(free);
        let peers = Peers::new("c", NodeId(1), BTreeMap::new(), BTreeMap::from([(NodeId(2), address)]));
        let told = peers.clone();
        let news = tokio::spawn(async move { told.newly_refused().await });
        tokio::task::yield_now().await;
        peers.note_failure(NodeId(3), &Status::unavailable("busy"));
        assert!(peers.refused_lately().is_empty());
        let channel = peers.channel(NodeId(2), Lane::Control).expect("known");
        let failed = MetadataServiceClient::new(channel).watch(v1::WatchRequest::default()).await.expect_err("nobody");
        peers.note_failure(NodeId(2), &failed);
        assert_eq!(peers.refused_lately(), [NodeId(2)], "{failed:?}");
        news.await.expect("told");
    }

    fn peers() -> Peers {
        Peers::new(
            "c",
            NodeId(1),
            BTreeMap::from([(NodeId(2), "127.0.0.1:9".into())]),
            BTreeMap::from([(NodeId(2), "127.0.0.1:2".into()), (NodeId(3), "127.0.0.1:3".into())]),
        )
    }

    #[test]
    fn overrides_win_and_unknown_peers_are_errors() {
        let peers = peers();
        assert_eq!(peers.address(NodeId(2)).expect("known"), "127.0.0.1:9");
        assert_eq!(peers.address(NodeId(3)).expect("known"), "127.0.0.1:3");
        assert!(matches!(peers.address(NodeId(4)), Err(PeerError::Unknown(NodeId(4)))));
    }

    #[test]
    fn envelopes_for_others_are_refused() {
        let peers = peers();
        let mine = v1::Envelope { cluster_id: "c".into(), to_node: 1, ..Default::default() };
        assert!(peers.check_envelope(Some(&mine)).is_ok());
        assert!(peers.check_envelope(Some(&v1::Envelope { to_node: 0, ..mine.clone() })).is_ok());
        assert!(peers.check_envelope(Some(&v1::Envelope { to_node: 2, ..mine.clone() })).is_err());
        assert!(peers.check_envelope(Some(&v1::Envelope { cluster_id: "d".into(), ..mine })).is_err());
        assert!(peers.check_envelope(None).is_err());
    }
}
