//! A search ends on the node when its caller leaves.

mod node_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cluster_config::collection::CollectionSpec;
use cluster_config::ids::{CollectionId, DEFAULT_TENANT, ShardId};
use cluster_config::search::{Consistency, NodeSearch, SearchKnobs, ShardQuery, ShardTarget};
use cluster_config::seqno::SeqNo;
use node_support::{Cluster, node_of};
use parking_lot::Mutex;
use proto::convert::search::search_request;
use proto::v1;
use tokio::sync::mpsc;

const SHARD: ShardId = ShardId { collection: CollectionId(1), index: 0 };
/// A search is let go on once its caller has left; whether the node has heard of that by then is not certain the first time.
const TRIES: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_whose_caller_leaves_is_cancelled_on_the_node() {
    let scenario = fail::FailScenario::setup();
    let cluster = Cluster::start(1, 1).await;
    let spec = CollectionSpec { shard_count: 1, copies: 1, min_in_sync: 1, ..CollectionSpec::new("docs", 8) };
    cluster.create(spec).await;
    cluster.write(SHARD, "only").await;
    let state = cluster.until("it has a primary", |state| state.shards[&SHARD].primary.is_some()).await;
    let group = &state.shards[&SHARD];
    let copy = group.primary_copy().expect("has one");
    let node = node_of(group, copy);

    let cancelled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&cancelled);
    let note = move || {
        count.fetch_add(1, Ordering::Relaxed);
    };
    fail::cfg_callback("search-cancelled", note).expect("fail point");
    let (begun, mut begins) = mpsc::channel(1);
    let (go_on, may_go_on) = std::sync::mpsc::sync_channel::<()>(1);
    let may_go_on = Mutex::new(may_go_on);
    let wait = move || {
        begun.blocking_send(()).expect("the test waits for it");
        may_go_on.lock().recv().expect("the test lets it go on");
    };
    fail::cfg_callback("search-begins", wait).expect("fail point");

    let query = ShardQuery {
        vector: vec![1.0; 8],
        fetch_k: 1,
        filter: Default::default(),
        tenant: DEFAULT_TENANT.into(),
        knobs: SearchKnobs::default(),
    };
    let search = NodeSearch {
        queries: vec![query],
        targets: vec![ShardTarget { target: group.target(copy), min_seqno: SeqNo::ZERO }],
        consistency: Consistency::Eventual,
        max_staleness_ms: 10_000,
    };
    for _ in 0..TRIES {
        let (mut client, envelope) = cluster.reads_of(node);
        let request = search_request(envelope, search.clone());
        let caller = tokio::spawn(async move { client.search(request).await.map(drop) });
        begins.recv().await.expect("begins");
        caller.abort();
        assert!(caller.await.expect_err("left").is_cancelled());
        // On the same connection, so that the node reads of the leaving first.
        let (mut client, envelope) = cluster.reads_of(node);
        let targets = vec![group.target(copy).into()];
        client.positions(v1::PositionsRequest { envelope: Some(envelope), targets }).await.expect("answers");
        go_on.send(()).expect("the search waits for it");
        // The one search thread has ended that search when it begins the next.
        if cancelled.load(Ordering::Relaxed) > 0 {
            break;
        }
    }
    fail::remove("search-begins");
    assert!(cancelled.load(Ordering::Relaxed) > 0, "none of {TRIES} searches heard that its caller had left");
    cluster.stop().await;
    scenario.teardown();
}
