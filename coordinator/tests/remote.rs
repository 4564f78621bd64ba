//! The gRPC client against a server in this process: what it sends, how it reads errors, when it gives up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::cluster_state::ClusterState;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CollectionId, DocumentKey, NodeId, OperationId, ShardId};
use cluster_config::operation::Operation;
use cluster_config::search::{Consistency, ShardTarget};
use cluster_config::seqno::SeqNo;
use cluster_config::shard_group::ShardGroup;
use coordinator::cluster::client::{NodeClient, NodeSearch, NodeWrite, Peer};
use coordinator::cluster::remote::{HOP, RemoteNodes};
use coordinator::cluster::twin::test_state;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use proto::convert::status::RemoteError;
use proto::v1;
use proto::v1::metadata_service_server::{MetadataService, MetadataServiceServer};
use proto::v1::replication_service_server::{ReplicationService, ReplicationServiceServer};
use proto::v1::search_service_server::{SearchService, SearchServiceServer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// Answers writes with `NotPrimary` and a register, searches with one reply per target, and a watch with one state.
#[derive(Clone)]
struct Node {
    state: ClusterState,
    register: ShardGroup,
    writes: Arc<Mutex<Vec<(v1::WriteRequest, Duration)>>>,
}

fn timeout_of<T>(request: &Request<T>) -> Duration {
    let text = request.metadata().get("grpc-timeout").expect("deadline travels").to_str().expect("ascii").to_owned();
    let (number, unit) = text.split_at(text.len() - 1);
    let number: u64 = number.parse().expect("number");
    match unit {
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        unit => panic!("unit {unit}"),
    }
}

#[tonic::async_trait]
impl ReplicationService for Node {
    async fn write(&self, request: Request<v1::WriteRequest>) -> Result<Response<v1::WriteReply>, Status> {
        let timeout = timeout_of(&request);
        self.writes.lock().push((request.into_inner(), timeout));
        let error =
            RemoteError::new(ErrorKind::NotPrimary, "copy 1 is not the primary").with_register(self.register.clone());
        Err(error.into())
    }

    async fn append(&self, _: Request<v1::AppendRequest>) -> Result<Response<v1::AppendReply>, Status> {
        Err(Status::unimplemented("not asked by coordinators"))
    }

    async fn confirm(&self, _: Request<v1::ConfirmRequest>) -> Result<Response<v1::ConfirmReply>, Status> {
        Err(Status::unimplemented("not asked by coordinators"))
    }

    async fn digest(&self, _: Request<v1::DigestRequest>) -> Result<Response<v1::DigestReply>, Status> {
        Err(Status::unimplemented("not asked by coordinators"))
    }
}

#[tonic::async_trait]
impl SearchService for Node {
    type SearchStream = BoxStream<'static, Result<v1::ShardResult, Status>>;

    async fn search(&self, request: Request<v1::SearchRequest>) -> Result<Response<Self::SearchStream>, Status> {
        let targets = request.into_inner().targets;
        let replies = targets.into_iter().map(|target| {
            let error = RemoteError::new(ErrorKind::Overloaded, "the search queue is full");
            let shard = target.target.and_then(|target| target.shard);
            Ok(v1::ShardResult { shard, error: Some(error.into()), ..v1::ShardResult::default() })
        });
        Ok(Response::new(futures::stream::iter(replies.collect::<Vec<_>>()).boxed()))
    }

    async fn fetch(&self, _: Request<v1::FetchRequest>) -> Result<Response<v1::FetchReply>, Status> {
        // Never answers: for deadlines.
        std::future::pending().await
    }

    async fn positions(&self, _: Request<v1::PositionsRequest>) -> Result<Response<v1::PositionsReply>, Status> {
        Ok(Response::new(v1::PositionsReply::default()))
    }

    async fn list_documents(
        &self,
        _: Request<v1::ListDocumentsRequest>,
    ) -> Result<Response<v1::ListDocumentsReply>, Status> {
        Ok(Response::new(v1::ListDocumentsReply::default()))
    }
}

#[tonic::async_trait]
impl MetadataService for Node {
    type WatchStream = BoxStream<'static, Result<v1::WatchReply, Status>>;

    async fn register(&self, _: Request<v1::RegisterRequest>) -> Result<Response<v1::RegisterReply>, Status> {
        Err(Status::unimplemented("not asked by coordinators"))
    }

    async fn heartbeat(&self, _: Request<v1::HeartbeatRequest>) -> Result<Response<v1::HeartbeatReply>, Status> {
        Err(Status::unimplemented("not asked by coordinators"))
    }

    async fn propose(&self, _: Request<v1::ProposeRequest>) -> Result<Response<v1::ProposeReply>, Status> {
        Err(Status::unimplemented("not asked by coordinators"))
    }

    async fn read_register(
        &self,
        _: Request<v1::ReadRegisterRequest>,
    ) -> Result<Response<v1::ReadRegisterReply>, Status> {
        Err(Status::unimplemented("not asked by coordinators"))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let envelope = request.into_inner().envelope.expect("has an envelope");
        assert_eq!((envelope.cluster_id.as_str(), envelope.to_node), ("twin", 0), "a seed's node is not known yet");
        let reply = v1::WatchReply { state: Some(self.state.clone().into()), leader: 2 };
        Ok(Response::new(futures::stream::iter([Ok(reply)]).chain(futures::stream::pending()).boxed()))
    }
}

/// The node as number 1 of its own state; node 2 of the state has a port that refuses.
async fn start() -> (RemoteNodes, Node, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound").to_string();
    let refusing = {
        let closed = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        closed.local_addr().expect("bound").to_string()
    };
    let (mut state, collection) = test_state(3, 1, 2);
    state.nodes.get_mut(&NodeId(1)).expect("there").rpc_address = "192.0.2.1:1".into();
    state.nodes.get_mut(&NodeId(2)).expect("there").rpc_address = refusing;
    let register = state.shards[&ShardId { collection, index: 0 }].clone();
    let node = Node { state, register, writes: Arc::default() };
    let server = tonic::transport::Server::builder()
        .add_service(ReplicationServiceServer::new(node.clone()))
        .add_service(SearchServiceServer::new(node.clone()))
        .add_service(MetadataServiceServer::new(node.clone()))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    // The state's address of node 1 leads nowhere: the override must win.
    let overrides = BTreeMap::from([(NodeId(1), address.clone())]);
    let client = RemoteNodes::new("twin".into(), overrides);
    client.learn(&node.state);
    (client, node, address)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[tokio::test]
async fn a_write_carries_everything_and_a_refusal_brings_the_register() {
    let (client, node, _) = start().await;
    let copy = node.register.primary_copy().expect("has one");
    let operation = Operation::DeleteDocument { key: DocumentKey::new("d").expect("valid") };
    let write = NodeWrite {
        target: node.register.target(copy),
        operation_id: OperationId(7),
        operations: Arc::new(vec![operation]),
    };
    let error = client.write(NodeId(1), write, soon()).await.expect_err("is refused");
    assert_eq!((error.kind, error.disconnected), (ErrorKind::NotPrimary, false));
    assert_eq!(error.register.as_deref(), Some(&node.register));
    let (sent, timeout) = node.writes.lock().pop().expect("arrived");
    assert_eq!(sent.operation_id, 7u128.to_be_bytes());
    assert_eq!(sent.envelope.expect("has one").to_node, 1);
    assert_eq!(sent.target.expect("has one").cfg_version, node.register.version);
    assert!(timeout <= Duration::from_secs(20) && timeout > Duration::ZERO);
}

#[tokio::test]
async fn a_refused_connection_is_told_from_a_refusal() {
    let (client, node, _) = start().await;
    let target = node.register.target(node.register.primary_copy().expect("has one"));
    let error = client.positions(NodeId(2), vec![target], soon()).await.expect_err("nobody listens");
    assert_eq!((error.kind, error.disconnected), (ErrorKind::Unavailable, true), "{error}");
    let error = client.positions(NodeId(9), vec![target], soon()).await.expect_err("unknown node");
    assert_eq!((error.kind, error.disconnected), (ErrorKind::Unavailable, false), "{error}");

    let search = NodeSearch {
        queries: Arc::new(Vec::new()),
        targets: vec![ShardTarget { target, min_seqno: SeqNo::ZERO }],
        consistency: Consistency::Eventual,
        max_staleness_ms: 1,
    };
    let mut replies = client.search(NodeId(1), search.clone(), soon());
    let reply = replies.next().await.expect("one reply").expect("of the node");
    assert_eq!(reply.outcome.expect_err("of the shard").kind, ErrorKind::Overloaded);
    assert!(replies.next().await.is_none());
    let broken = client.search(NodeId(2), search, soon()).next().await.expect("an item");
    assert!(broken.expect_err("nobody listens").disconnected);
}

#[tokio::test]
async fn a_deadline_ends_a_call_that_is_never_answered() {
    let (client, _, _) = start().await;
    let deadline = Instant::now() + Duration::from_millis(100);
    let error =
        client.fetch(NodeId(1), Vec::new(), false, Consistency::Session, deadline).await.expect_err("no answer");
    assert_eq!((error.kind, error.disconnected), (ErrorKind::DeadlineExceeded, false), "{error}");
    // The node is given a little less, so that its refusal arrives in time.
    assert!(Instant::now() >= deadline - HOP);
}

#[tokio::test]
async fn a_seed_gives_the_state() {
    let (client, node, address) = start().await;
    let update = client.watch(Peer::Seed(address), 0).next().await.expect("an update").expect("good");
    assert_eq!((&update.state, update.leader), (&node.state, Some(NodeId(2))));
    assert_eq!(update.state.collections[&CollectionId(node.register.shard.collection.0)].spec.dim, 8);
}
