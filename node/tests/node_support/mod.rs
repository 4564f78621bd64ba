//! Whole nodes in this process over loopback: their metadata, copies and services as `startup` makes them, and a client for them.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use cluster_config::cluster_state::ClusterState;
use cluster_config::collection::CollectionSpec;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, DocumentKey, NodeId, ShardId};
use cluster_config::node_config::NodeConfig;
use cluster_config::operation::{Chunk, Operation};
use cluster_config::shard_group::ShardGroup;
use half::f16;
use node::rpc::client::{Lane, Peers};
use proto::convert::status::RemoteError;
use proto::v1;
use proto::v1::admin_service_client::AdminServiceClient;
use proto::v1::replication_service_client::ReplicationServiceClient;
use proto::v1::search_service_client::SearchServiceClient;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Longest that any awaited state may take; only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(30);

pub(crate) struct Cluster {
    dir: TempDir,
    addresses: BTreeMap<u64, String>,
    voters: u64,
    /// Further lines of `[storage]`.
    storage: &'static str,
    running: BTreeMap<u64, Running>,
    client: Peers,
}

/// A node that runs.
pub(crate) struct Running {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("joins").expect("stops well");
    }
}

/// Below the range from which the kernel gives ports to outgoing connections, so that nobody's connection takes the port before
/// its node has it, or while its node is down.
fn listen_below_ephemeral_ports() -> TcpListener {
    let listen = || TcpListener::bind(("127.0.0.1", rand::random_range(12_000..32_000_u16))).ok();
    std::iter::repeat_with(listen).take(10_000).flatten().next().expect("a port")
}

impl Cluster {
    /// Nodes 1 to `voters` that only vote, and `data` nodes after them that only hold shards.
    pub(crate) async fn start(voters: u64, data: u64) -> Self {
        Self::start_with(voters, data, "").await
    }

    /// As [`Cluster::start`], with further lines in the nodes' `[storage]`.
    pub(crate) async fn start_with(voters: u64, data: u64, storage: &'static str) -> Self {
        let nodes = voters + data;
        // Bound together, so that they differ; a stranger could take one before the node does, and the start would say so.
        let listeners: Vec<TcpListener> = (0..nodes).map(|_| listen_below_ephemeral_ports()).collect();
        let address = |listener: &TcpListener| listener.local_addr().expect("bound").to_string();
        let addresses: BTreeMap<u64, String> = (1..).zip(listeners.iter().map(address)).collect();
        drop(listeners);
        let seeds = addresses.iter().map(|(id, address)| (NodeId(*id), address.clone())).collect();
        let client = Peers::new("test", NodeId(0), BTreeMap::new(), seeds);
        let dir = TempDir::new().expect("a directory");
        let mut cluster = Self { dir, addresses, voters, storage, running: BTreeMap::new(), client };
        for id in 1..=nodes {
            cluster.start_node(id);
        }
        cluster.until("all nodes live", |state| state.nodes.len() as u64 == nodes).await;
        cluster
    }

    fn config(&self, id: u64) -> NodeConfig {
        let voter = |id: u64| format!("{{ node_id = {id}, address = \"{}\" }}", self.addresses[&id]);
        let voters: Vec<String> = (1..=self.voters).map(voter).collect();
        let role = if id <= self.voters { "metadata" } else { "data" };
        let text = format!(
            r#"
            cluster_id = "test"
            node_id = {id}
            roles = ["{role}"]
            data_dir = "{dir}"
            rpc_listen = "{address}"
            http_listen = "127.0.0.1:0"
            zone = "zone-{id}"
            test_hooks = true
            [metadata]
            voters = [{voters}]
            [storage]
            block_cache = "16MiB"
            write_buffer = "8MiB"
            {storage}
            [search]
            threads = 1
            [timing]
            heartbeat = "100ms"
            node_timeout = "2s"
            "#,
            dir = self.data_dir(id).display(),
            address = self.addresses[&id],
            voters = voters.join(", "),
            storage = self.storage,
        );
        NodeConfig::from_toml(&text, [("SUSUI_CHECK".to_owned(), "1".to_owned())]).expect("a valid configuration")
    }

    pub(crate) fn data_dir(&self, id: u64) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    pub(crate) fn copy_dir(&self, node: u64, copy: CopyId) -> PathBuf {
        self.data_dir(node).join("copies").join(format!("copy-{copy}"))
    }

    pub(crate) fn start_node(&mut self, id: u64) {
        let stop = CancellationToken::new();
        let task = tokio::spawn(node::startup::run_until(self.config(id), stop.clone().cancelled_owned()));
        self.running.insert(id, Running { stop, task });
    }

    pub(crate) async fn stop_node(&mut self, id: u64) {
        self.take(id).stop().await;
    }

    /// Takes a running node out of the cluster's hands.
    pub(crate) fn take(&mut self, id: u64) -> Running {
        self.running.remove(&id).expect("runs")
    }

    pub(crate) async fn stop(mut self) {
        let running = std::mem::take(&mut self.running);
        running.values().for_each(|node| node.stop.cancel());
        for node in running.into_values() {
            node.stop().await;
        }
    }

    /// An operator's client at some node that runs.
    pub(crate) fn admin(&self) -> (AdminServiceClient<Channel>, v1::Envelope) {
        self.admin_of(*self.running.keys().next().expect("a node runs"))
    }

    pub(crate) fn admin_of(&self, node: u64) -> (AdminServiceClient<Channel>, v1::Envelope) {
        let channel = self.client.channel(NodeId(node), Lane::Control).expect("known");
        (AdminServiceClient::new(channel), self.client.envelope(NodeId(node)))
    }

    /// A reader's client.
    pub(crate) fn reads_of(&self, node: u64) -> (SearchServiceClient<Channel>, v1::Envelope) {
        let channel = self.client.channel(NodeId(node), Lane::Query).expect("known");
        (SearchServiceClient::new(channel), self.client.envelope(NodeId(node)))
    }

    pub(crate) async fn try_status(&self) -> Result<(ClusterState, v1::StatusReply), RemoteError> {
        let (mut client, envelope) = self.admin();
        let mut request = tonic::Request::new(v1::StatusRequest { envelope: Some(envelope) });
        request.set_timeout(Duration::from_secs(5));
        let reply = client.status(request).await.map_err(RemoteError::from)?.into_inner();
        let state = ClusterState::try_from(reply.state.clone().expect("told")).expect("converts");
        state.check().expect("the invariants hold");
        Ok((state, reply))
    }

    /// The node that leads the metadata group.
    pub(crate) async fn leader(&self) -> u64 {
        self.try_status().await.expect("a leader").1.raft.expect("told").leader
    }

    /// Polls the metadata leader until state and reports fit.
    pub(crate) async fn until_status(
        &self,
        what: &str,
        fits: impl Fn(&ClusterState, &v1::StatusReply) -> bool,
    ) -> ClusterState {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let status = self.try_status().await;
            match &status {
                Ok((state, reply)) if fits(state, reply) => return state.clone(),
                _ => {}
            }
            assert!(tokio::time::Instant::now() < deadline, "{what}: never, last {status:#?}");
            tokio::time::sleep(POLL).await;
        }
    }

    pub(crate) async fn until(&self, what: &str, fits: impl Fn(&ClusterState) -> bool) -> ClusterState {
        self.until_status(what, |state, _| fits(state)).await
    }

    pub(crate) async fn create(&self, spec: CollectionSpec) {
        self.try_create(spec).await.expect("created");
    }

    pub(crate) async fn try_create(&self, spec: CollectionSpec) -> Result<(), RemoteError> {
        let (mut client, envelope) = self.admin();
        let request = v1::CreateCollectionRequest { envelope: Some(envelope), spec: Some(spec.into()) };
        Ok(client.create_collection(request).await.map(drop)?)
    }

    /// Writes one document to its shard's primary, again and again until it is acknowledged. Returns its position.
    pub(crate) async fn write(&self, shard: ShardId, id: &str) -> u64 {
        let operation = uuid::Uuid::new_v4();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let failed = match self.try_write(shard, id, operation).await {
                Ok(seqno) => return seqno,
                Err(failed) => failed,
            };
            assert!(tokio::time::Instant::now() < deadline, "{id} is not acknowledged: {failed}");
            tokio::time::sleep(POLL).await;
        }
    }

    async fn try_write(&self, shard: ShardId, id: &str, operation: uuid::Uuid) -> Result<u64, RemoteError> {
        let (state, _) = self.try_status().await?;
        self.send_write(&state.shards[&shard], id, operation).await
    }

    /// Writes one document to the primary of a register, once.
    pub(crate) async fn write_to(&self, group: &ShardGroup, id: &str) -> Result<u64, RemoteError> {
        self.send_write(group, id, uuid::Uuid::new_v4()).await
    }

    async fn send_write(&self, group: &ShardGroup, id: &str, operation: uuid::Uuid) -> Result<u64, RemoteError> {
        let no_primary = || RemoteError::new(ErrorKind::Unavailable, "no primary");
        let (copy, node) =
            group.primary_copy().and_then(|copy| Some((copy, group.node_of(copy)?))).ok_or_else(no_primary)?;
        let channel = self.client.channel(node, Lane::Replication).expect("known");
        let mut request = tonic::Request::new(v1::WriteRequest {
            envelope: Some(self.client.envelope(node)),
            target: Some(group.target(copy).into()),
            operation_id: operation.as_bytes().to_vec(),
            operations: vec![put(id).into()],
        });
        request.set_timeout(Duration::from_secs(3));
        let reply = ReplicationServiceClient::new(channel).write(request).await.map_err(RemoteError::from)?;
        Ok(reply.into_inner().seqno)
    }

    /// Documents on each copy of the shard that answers, all with the same contents or the test fails.
    pub(crate) async fn documents(&self, shard: ShardId) -> BTreeMap<CopyId, u64> {
        let (mut client, envelope) = self.admin();
        let request = v1::DigestShardRequest { envelope: Some(envelope), shard: Some(shard.into()) };
        let reply = client.digest_shard(request).await.expect("answered").into_inner();
        let answered: Vec<(CopyId, v1::DigestReply)> =
            reply.copies.into_iter().filter_map(|copy| Some((CopyId(copy.copy_id), copy.digest?))).collect();
        let first = answered.first().expect("one answers");
        for (copy, digest) in &answered {
            assert_eq!(digest.documents, first.1.documents, "copies {copy} and {} differ", first.0);
        }
        answered.into_iter().map(|(copy, digest)| (copy, digest.document_count)).collect()
    }
}

pub(crate) fn node_of(group: &ShardGroup, copy: CopyId) -> u64 {
    group.node_of(copy).expect("it is in the register").0
}

fn put(id: &str) -> Operation {
    let vector = [1.0f32, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    Operation::PutDocument {
        key: DocumentKey::new(id).expect("an id"),
        title: String::new(),
        chunks: vec![Chunk {
            ordinal: 0,
            text: id.to_owned(),
            metadata_json: "{}".into(),
            span: 0..id.len() as u64,
            vector: vector.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        }],
    }
}
