//! Three voters in one process over loopback gRPC: what the group promises while members come and go.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cluster_config::cluster_state::{ClusterState, Liveness};
use cluster_config::collection::CollectionSpec;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, Incarnation, NodeId};
use cluster_config::node_config::NodeConfig;
use cluster_config::shard_group::ShardGroup;
use node::agent::{Agent, Report};
use node::metadata::Metadata;
use node::metadata::raft_service::RaftEndpoint;
use node::metadata::service::MetadataEndpoint;
use node::rpc::admin_service::AdminEndpoint;
use node::rpc::client::{Lane, Peers};
use proto::convert::status::RemoteError;
use proto::v1;
use proto::v1::admin_service_client::AdminServiceClient;
use proto::v1::admin_service_server::AdminServiceServer;
use proto::v1::metadata_service_client::MetadataServiceClient;
use proto::v1::metadata_service_server::MetadataServiceServer;
use proto::v1::raft_service_server::RaftServiceServer;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest that any awaited state may take; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

struct Cluster {
    dir: TempDir,
    addresses: BTreeMap<u64, SocketAddr>,
    nodes: BTreeMap<u64, Node>,
}

struct Node {
    metadata: Metadata,
    agent: Agent,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl Cluster {
    /// Voters 1, 2 and 3, all registered as data nodes.
    async fn start() -> Self {
        let mut listeners = BTreeMap::new();
        for id in 1..=4 {
            listeners.insert(id, TcpListener::bind("127.0.0.1:0").await.expect("a port"));
        }
        let addresses = listeners.iter().map(|(id, listener)| (*id, listener.local_addr().expect("bound"))).collect();
        let mut cluster = Self { dir: TempDir::new().expect("a directory"), addresses, nodes: BTreeMap::new() };
        let mut started = Vec::new();
        for (id, listener) in listeners.into_iter().filter(|(id, _)| *id <= 3) {
            started.push(Node::start(cluster.config(id), listener));
        }
        for (id, node) in (1..).zip(futures::future::join_all(started).await) {
            cluster.nodes.insert(id, node);
        }
        cluster
    }

    fn config(&self, id: u64) -> NodeConfig {
        let voters: Vec<String> =
            (1..=3).map(|voter| format!("{{ node_id = {voter}, address = \"{}\" }}", self.addresses[&voter])).collect();
        let roles = if id <= 3 { r#"["metadata", "data"]"# } else { r#"["data"]"# };
        let text = format!(
            r#"
            cluster_id = "test"
            node_id = {id}
            roles = {roles}
            data_dir = "{dir}"
            rpc_listen = "{address}"
            http_listen = "127.0.0.1:0"
            test_hooks = true
            [metadata]
            voters = [{voters}]
            [timing]
            heartbeat = "100ms"
            node_timeout = "2s"
            "#,
            dir = self.dir.path().join(id.to_string()).display(),
            address = self.addresses[&id],
            voters = voters.join(", "),
        );
        NodeConfig::from_toml(&text, [("SUSUI_CHECK".to_owned(), "1".to_owned())]).expect("a valid configuration")
    }

    async fn start_node(&mut self, id: u64) {
        let address = self.addresses[&id];
        let mut listener = TcpListener::bind(address).await;
        while listener.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            listener = TcpListener::bind(address).await;
        }
        let node = Node::start(self.config(id), listener.expect("bound")).await;
        self.nodes.insert(id, node);
    }

    /// Stops a node without a word to anybody.
    async fn kill(&mut self, id: u64) {
        let node = self.nodes.remove(&id).expect("running");
        node.agent.close().await;
        node.metadata.close().await;
        node.stop.cancel();
        // A watch that is being followed would hold the server open.
        let abort = node.server.abort_handle();
        if tokio::time::timeout(Duration::from_millis(300), node.server).await.is_err() {
            abort.abort();
        }
    }

    /// Some node that runs.
    fn any(&self) -> &Node {
        self.nodes.values().next().expect("a node runs")
    }

    async fn leader(&self) -> u64 {
        tokio::time::timeout(PATIENCE, async {
            loop {
                let leaders: Vec<u64> =
                    self.nodes.values().filter_map(|node| Some(node.metadata.leader()?.0)).collect();
                if leaders.len() == self.nodes.len() && leaders.iter().all(|leader| *leader == leaders[0]) {
                    return leaders[0];
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("a leader that all agree on")
    }
}

impl Node {
    async fn start(config: NodeConfig, listener: TcpListener) -> Self {
        let seeds = config.voters.clone();
        let peers = Peers::new(config.cluster_id.clone(), config.node_id, BTreeMap::new(), seeds);
        let metadata = Metadata::open(&config, peers).await.expect("opens");
        let stop = CancellationToken::new();
        let server = tonic::transport::Server::builder()
            .add_service(RaftServiceServer::new(RaftEndpoint::new(metadata.clone())))
            .add_service(MetadataServiceServer::new(MetadataEndpoint::new(metadata.clone())))
            .add_service(AdminServiceServer::new(AdminEndpoint::new(metadata.clone())))
            .serve_with_incoming_shutdown(
                tokio_stream::wrappers::TcpListenerStream::new(listener),
                stop.clone().cancelled_owned(),
            );
        let server = tokio::spawn(async move { server.await.expect("serves") });
        // This node's disk holds every copy that the state ever placed on it.
        let (state, id) = (metadata.state(), config.node_id);
        let placed = move || -> Vec<CopyId> {
            let state = state.borrow();
            let copies = state.shards.values().flat_map(|group| group.copies.iter());
            copies.filter(|(_, record)| record.node == id).map(|(copy, _)| *copy).collect()
        };
        let on_disk = placed.clone();
        let agent = Agent::register(
            metadata.clone(),
            &config,
            String::new(),
            Arc::new(move || Ok(on_disk().into_iter().collect())),
        )
        .await;
        agent.start_heartbeats(Arc::new(move || Report {
            copies: placed().iter().map(|copy| v1::CopyReport { copy_id: copy.0, ..Default::default() }).collect(),
            ..Report::default()
        }));
        Self { metadata, agent, stop, server }
    }

    /// Waits until the state as this node knows it fits.
    async fn until(&self, what: &str, fits: impl Fn(&ClusterState) -> bool) -> Arc<ClusterState> {
        let mut states = self.metadata.state();
        let found = tokio::time::timeout(PATIENCE, states.wait_for(|state| fits(state))).await;
        let seen = self.metadata.state().borrow().clone();
        found.unwrap_or_else(|_| panic!("{what}: never, last {seen:#?}")).expect("the state is watched").clone()
    }

    fn admin(&self, to: u64) -> (AdminServiceClient<tonic::transport::Channel>, v1::Envelope) {
        let peers = self.peers();
        let channel = peers.channel(NodeId(to), Lane::Control).expect("known");
        (AdminServiceClient::new(channel), peers.envelope(NodeId(to)))
    }

    fn peers(&self) -> Peers {
        self.metadata.peers().clone()
    }

    /// Creates a collection by asking node `to`.
    async fn create(&self, to: u64, name: &str, shards: u32) -> Result<v1::CollectionReply, RemoteError> {
        let (mut client, envelope) = self.admin(to);
        let spec = CollectionSpec { shard_count: shards, ..CollectionSpec::new(name, 8) };
        let request = v1::CreateCollectionRequest { envelope: Some(envelope), spec: Some(spec.into()) };
        Ok(client.create_collection(request).await.map_err(RemoteError::from)?.into_inner())
    }
}

fn primaries_live(state: &ClusterState, shards: usize) -> bool {
    let holds = |group: &ShardGroup| {
        group.primary.zip(group.primary_node()).is_some_and(|(grant, node)| state.is_alive_in(node, grant.incarnation))
    };
    state.shards.len() == shards && state.shards.values().all(holds)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collections_survive_the_death_and_return_of_the_leader() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    let follower = 1 + leader % 3;
    // Asked of a follower, decided by the leader.
    let created = cluster.any().create(follower, "docs", 6).await.expect("created");
    let again = cluster.any().create(leader, "docs", 6).await.expect("safe to repeat");
    assert_eq!(created.collection, again.collection);
    let other = cluster.any().create(leader, "docs", 7).await.expect_err("another spec");
    assert_eq!(other.kind, ErrorKind::AlreadyExists);
    let state = cluster.any().until("every shard has a primary", |state| primaries_live(state, 6)).await;
    let on_leader = state.shards.values().filter(|group| group.primary_node() == Some(NodeId(leader))).count();
    assert_eq!(on_leader, 2, "first primaries are spread over the nodes");

    // Every primary adds its second copy, as replication would.
    for group in state.shards.values() {
        let primary = group.primary.expect("granted");
        let (added, record) = group.copies.iter().find(|(copy, _)| **copy != primary.copy).expect("two copies");
        let node = cluster.any();
        node.until("the copy catches up", |state| {
            state.shards[&group.shard].copies[added].phase == cluster_config::shard_group::CopyPhase::CatchingUp
        })
        .await;
        let expect_version = node.metadata.state().borrow().shards[&group.shard].version;
        let peers = node.peers();
        let channel = peers.channel(NodeId(follower), Lane::Control).expect("known");
        let change = v1::propose_request::Change::Add(v1::AddInSync {
            copy_id: added.0,
            incarnation: state.nodes[&record.node].incarnation.0,
        });
        let reply = MetadataServiceClient::new(channel)
            .propose(v1::ProposeRequest {
                envelope: Some(peers.envelope(NodeId(follower))),
                shard: Some(group.shard.into()),
                expect_version,
                by_copy: primary.copy.0,
                term: group.primary_term.0,
                change: Some(change),
            })
            .await
            .expect("answered")
            .into_inner();
        assert!(reply.accepted, "{}", reply.reason);
        assert_eq!(reply.register.expect("always told").in_sync.len(), 2);
    }

    cluster.kill(leader).await;
    let state = cluster
        .any()
        .until("all shards are led by live nodes", |state| {
            primaries_live(state, 6) && state.nodes[&NodeId(leader)].liveness == Liveness::Dead
        })
        .await;
    for group in state.shards.values() {
        assert!(group.in_sync.iter().all(|copy| group.node_of(*copy) != Some(NodeId(leader))), "{group:?}");
    }
    let alive = cluster.leader().await;
    assert_ne!(alive, leader);
    cluster.any().create(alive, "more", 2).await.expect("two live nodes are enough for two copies");
    cluster.any().until("the new shards work", |state| primaries_live(state, 8)).await;

    cluster.start_node(leader).await;
    let state = cluster.nodes[&leader]
        .until("the node is back in a new life", |state| {
            state.nodes[&NodeId(leader)].liveness == Liveness::Alive
                && state.nodes[&NodeId(leader)].incarnation == Incarnation(2)
                && primaries_live(state, 8)
        })
        .await;
    assert_eq!(state.collections.len(), 2);
    assert_eq!(*cluster.nodes[&leader].agent.incarnation().borrow(), Incarnation(2));
    for id in 1..=3 {
        cluster.kill(id).await;
    }
}

/// What operators are promised (with the timeouts of the defaults): the control plane is back within three seconds of its leader's death.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_plane_is_back_within_three_seconds_of_its_leaders_death() {
    let mut cluster = Cluster::start().await;
    for round in 0..3 {
        let leader = cluster.leader().await;
        let follower = 1 + leader % 3;
        let began = tokio::time::Instant::now();
        cluster.kill(leader).await;
        cluster.nodes[&follower].create(follower, &format!("c{round}"), 1).await.expect("decided");
        let gap = began.elapsed();
        println!("round {round}: the next decision came after {gap:?}");
        assert!(gap <= Duration::from_secs(3), "{gap:?}");
        cluster.start_node(leader).await;
    }
    for id in 1..=3 {
        cluster.kill(id).await;
    }
}

/// A leader that stops in good order hands the lead over: nobody waits for an election timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_hands_the_lead_over() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    let term = |cluster: &Cluster| {
        let metrics = cluster.any().metadata.raft_metrics().expect("a voter");
        (metrics.current_leader, metrics.current_term)
    };
    let (_, before) = term(&cluster);
    cluster.nodes[&leader].metadata.hand_lead_over().await;
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    assert_eq!(term(&cluster), (Some(NodeId(next)), before + 1), "in the very next term");
    cluster.any().create(leader, "docs", 1).await.expect("the former leader sends on");
    for id in 1..=3 {
        cluster.kill(id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_node_follows_and_asks_through_the_voters() {
    let mut cluster = Cluster::start().await;
    cluster.start_node(4).await;
    let leader = cluster.leader().await;
    let node = &cluster.nodes[&4];
    assert!(!node.metadata.is_voter());
    node.until("it sees itself", |state| state.is_alive_in(NodeId(4), Incarnation(1))).await;
    // Its own services send on what only the leader can do.
    node.create(4, "docs", 4).await.expect("created");
    node.until("every shard has a primary", |state| primaries_live(state, 4)).await;
    let (mut client, envelope) = node.admin(4);
    let status = client.status(v1::StatusRequest { envelope: Some(envelope) }).await.expect("answered").into_inner();
    assert_eq!(status.raft.expect("told").leader, leader);
    assert_eq!(status.contacts.len(), 4);
    assert!(!status.reports.is_empty());

    // The watch moves to another voter when the one it follows dies.
    let followed: Vec<u64> = (1..=3).collect();
    let dying = followed.into_iter().find(|id| *id != leader).expect("three voters");
    cluster.kill(dying).await;
    let node = &cluster.nodes[&4];
    node.until("it hears of the death", |state| state.nodes[&NodeId(dying)].liveness == Liveness::Dead).await;

    for id in (1..=4).filter(|id| *id != dying) {
        cluster.kill(id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_missed_the_log_gets_the_snapshot() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    let late = 1 + leader % 3;
    cluster.kill(late).await;
    for round in 0..20 {
        cluster.any().create(leader, &format!("c{round}"), 1).await.expect("created");
    }
    for id in cluster.nodes.keys() {
        cluster.nodes[id].metadata.compact().await.expect("compacted");
    }
    cluster.start_node(late).await;
    cluster.nodes[&late].until("everything arrived", |state| primaries_live(state, 20)).await;
    // The state above may have come with the answer to its registration; what counts is what its own member has.
    let has_snapshot = async {
        while cluster.nodes[&late].metadata.raft_metrics().expect("a voter").snapshot.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, has_snapshot).await.expect("its member came by snapshot");
    for id in 1..=3 {
        cluster.kill(id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_decided_and_callers_are_told_in_time() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    for id in (1..=3).filter(|id| *id != leader) {
        cluster.kill(id).await;
    }
    let node = &cluster.nodes[&leader];
    let (mut client, envelope) = node.admin(leader);
    let spec = CollectionSpec::new("docs", 8);
    let mut request =
        tonic::Request::new(v1::CreateCollectionRequest { envelope: Some(envelope), spec: Some(spec.into()) });
    request.set_timeout(Duration::from_secs(2));
    let error = RemoteError::from(client.create_collection(request).await.expect_err("no majority"));
    assert!(matches!(error.kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded), "{error:?}");
    assert!(node.metadata.state().borrow().collections.is_empty());
    cluster.kill(leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_for_others_are_refused() {
    let mut cluster = Cluster::start().await;
    let node = &cluster.nodes[&1];
    let channel = node.peers().channel(NodeId(2), Lane::Control).expect("known");
    let right = node.peers().envelope(NodeId(2));
    for wrong in [
        v1::Envelope { cluster_id: "other".into(), ..right.clone() },
        v1::Envelope { to_node: 3, ..right.clone() },
        v1::Envelope { to_node: 0, ..right.clone() },
    ] {
        let mut client = proto::v1::raft_service_client::RaftServiceClient::new(channel.clone());
        let message = v1::RaftMessage { envelope: Some(wrong.clone()), body: Default::default() };
        let error = RemoteError::from(client.vote(message).await.expect_err("refused"));
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{wrong:?}: {error}");
    }
    for id in 1..=3 {
        cluster.kill(id).await;
    }
}
