//! Operators' acts and the repair of copies, on whole nodes with real shards in this process.

mod node_support;

use std::time::Duration;

use cluster_config::cluster_state::{ClusterState, Liveness};
use cluster_config::collection::CollectionSpec;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CollectionId, CopyId, NodeId, ShardId};
use cluster_config::shard_group::{CopyPhase, CopyRole, ShardGroup};
use node_support::{Cluster, PATIENCE, node_of};
use proto::convert::status::RemoteError;
use proto::v1;
use tokio_util::sync::CancellationToken;

const SHARD: ShardId = ShardId { collection: CollectionId(1), index: 0 };

fn spec(copies: u32, read_replicas: u32) -> CollectionSpec {
    CollectionSpec { shard_count: 1, copies, read_replicas, min_in_sync: 1, ..CollectionSpec::new("docs", 8) }
}

fn group(state: &ClusterState) -> &ShardGroup {
    &state.shards[&SHARD]
}

fn in_sync(state: &ClusterState, copies: usize) -> bool {
    state.shards.get(&SHARD).is_some_and(|group| group.primary.is_some() && group.in_sync.len() == copies)
}

fn is_dead(state: &ClusterState, node: u64) -> bool {
    state.nodes[&NodeId(node)].liveness == Liveness::Dead
}

async fn force(cluster: &Cluster, copy: CopyId, accept_at: Option<u64>) -> Result<v1::ForcePromoteReply, RemoteError> {
    let (mut client, envelope) = cluster.admin();
    let request = v1::ForcePromoteRequest {
        envelope: Some(envelope),
        shard: Some(SHARD.into()),
        copy_id: copy.0,
        accept_data_loss: accept_at.is_some(),
        override_live: false,
        expect_version: accept_at.unwrap_or(0),
        by: "ada".into(),
    };
    Ok(client.force_promote(request).await.map_err(RemoteError::from)?.into_inner())
}

/// Looks until the copy could be promoted by force: it is open in the present life of its node.
async fn until_no_objection(cluster: &Cluster, copy: CopyId) -> v1::ForcePromoteReply {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let look = force(cluster, copy, None).await;
        match look {
            Ok(look) if look.objection.is_empty() => return look,
            look => assert!(tokio::time::Instant::now() < deadline, "never: {look:?}"),
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

fn in_sync_of(look: &v1::ForcePromoteReply) -> Vec<u64> {
    look.register.as_ref().expect("told").in_sync.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_whose_in_sync_copies_are_gone_is_recovered_from_another_copy_by_force() {
    let mut cluster = Cluster::start(1, 2).await;
    cluster.create(spec(2, 0)).await;
    let state = cluster.until("both copies are in sync", |state| in_sync(state, 2)).await;
    let copies: Vec<CopyId> = group(&state).copies.keys().copied().collect();
    let (lost, survivor) = (copies[0], copies[1]);
    let (lost_node, survivor_node) = (node_of(group(&state), lost), node_of(group(&state), survivor));
    cluster.write(SHARD, "both have this").await;
    let refused = force(&cluster, survivor, Some(group(&state).version)).await.expect_err("both live");
    assert_eq!(refused.kind, ErrorKind::Conflict, "{refused}");

    // One copy misses a write, and comes back after the other one went.
    cluster.stop_node(survivor_node).await;
    cluster.until("one copy is left", |state| in_sync(state, 1) && is_dead(state, survivor_node)).await;
    let seqno = cluster.write(SHARD, "one has this").await;
    let is_seen = |_: &ClusterState, status: &v1::StatusReply| {
        status
            .reports
            .iter()
            .any(|report| report.copy_id == lost.0 && report.last.is_some_and(|last| last.seqno >= seqno))
    };
    cluster.until_status("the leader has heard of it", is_seen).await;
    cluster.stop_node(lost_node).await;
    cluster.until("nobody is left", |state| is_dead(state, lost_node)).await;
    cluster.start_node(survivor_node);
    let look = until_no_objection(&cluster, survivor).await;
    assert_eq!(
        (look.done, in_sync_of(&look)),
        (false, vec![lost.0]),
        "it does not hold everything, and nobody pretends so"
    );
    let conditions: Vec<&str> = look.copies.iter().map(|copy| copy.condition.as_str()).collect();
    assert_eq!(conditions, ["dead", "open"]);
    let end = |at: usize| look.copies[at].last.expect("seen").seqno;
    assert!(end(0) > end(1), "the dead copy was seen to hold more: {look:?}");
    let refused = force(&cluster, lost, None).await.expect("looked at").objection;
    assert!(refused.contains("dead"), "{refused}");
    let version = look.register.expect("told").version;
    let stale = force(&cluster, survivor, Some(version - 1)).await.expect_err("decided on an older register");
    assert_eq!(stale.kind, ErrorKind::Conflict, "{stale}");
    assert!(force(&cluster, survivor, Some(version)).await.expect("done").done);

    cluster.write(SHARD, "the new lineage has this").await;
    assert_eq!(cluster.documents(SHARD).await, [(survivor, 2)].into());
    let state = cluster.until("the act is on record", |state| state.audit.len() == 1).await;
    assert_eq!((group(&state).lineage.0, state.audit[&1].by.as_str()), (2, "ada"));

    // What was lost stays lost: the copy is deleted and built anew from the survivor.
    cluster.start_node(lost_node);
    let state = cluster.until("a new copy is in sync", |state| in_sync(state, 2)).await;
    assert!(!group(&state).copies.contains_key(&lost), "{state:?}");
    assert_eq!(cluster.documents(SHARD).await.into_values().collect::<Vec<_>>(), [2, 2]);
    cluster.until("the lost copy is forgotten", |state| state.retired.is_empty()).await;
    assert!(!cluster.copy_dir(lost_node, lost).exists());

    // The lineage is the copy's own by now.
    cluster.stop_node(survivor_node).await;
    cluster.until("the other one takes over", |state| in_sync(state, 1)).await;
    cluster.start_node(survivor_node);
    cluster.until("the survivor is back", |state| in_sync(state, 2)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_between_a_forced_promotion_and_its_adoption_does_not_lose_the_shard() {
    let mut cluster = Cluster::start(1, 2).await;
    cluster.create(spec(2, 0)).await;
    let state = cluster.until("both copies are in sync", |state| in_sync(state, 2)).await;
    let (lost, survivor) = {
        let copies: Vec<CopyId> = group(&state).copies.keys().copied().collect();
        (copies[0], copies[1])
    };
    let (lost_node, survivor_node) = (node_of(group(&state), lost), node_of(group(&state), survivor));
    cluster.write(SHARD, "kept").await;
    cluster.stop_node(survivor_node).await;
    cluster.until("one copy is left", |state| in_sync(state, 1)).await;
    cluster.stop_node(lost_node).await;
    cluster.until("nobody is left", |state| is_dead(state, lost_node)).await;
    cluster.start_node(survivor_node);
    let version = until_no_objection(&cluster, survivor).await.register.expect("told").version;
    assert!(force(&cluster, survivor, Some(version)).await.expect("done").done);
    // Its grant is void with the life it was given to, wherever the adoption was by then.
    cluster.stop_node(survivor_node).await;
    cluster.start_node(survivor_node);
    cluster.write(SHARD, "after").await;
    assert_eq!(cluster.documents(SHARD).await, [(survivor, 2)].into());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_replica_keeps_up_and_can_be_made_a_voter() {
    let cluster = Cluster::start(1, 3).await;
    cluster.create(spec(2, 1)).await;
    let replica = |state: &ClusterState| {
        let found = group(state).copies.iter().find(|(_, record)| record.role == CopyRole::ReadReplica);
        found.map(|(copy, record)| (*copy, record.phase))
    };
    let serves =
        |state: &ClusterState| in_sync(state, 2) && replica(state).is_some_and(|(_, phase)| phase == CopyPhase::InSync);
    let state = cluster.until("the read replica serves", serves).await;
    let (copy, _) = replica(&state).expect("serves");
    cluster.write(SHARD, "a").await;
    assert_eq!(cluster.documents(SHARD).await.len(), 3, "it receives the stream");

    let (mut client, envelope) = cluster.admin();
    let request = v1::PromoteReplicaRequest { envelope: Some(envelope), shard: Some(SHARD.into()), copy_id: copy.0 };
    assert!(client.promote_replica(request.clone()).await.expect("answered").into_inner().changed);
    assert!(!client.promote_replica(request).await.expect("safe to repeat").into_inner().changed);
    let state = cluster.until("it is in sync", |state| in_sync(state, 3)).await;
    assert_eq!(group(&state).copies[&copy].role, CopyRole::Voter);
    cluster.write(SHARD, "b").await;
    assert!(cluster.documents(SHARD).await.into_values().all(|documents| documents == 2));
    cluster.stop().await;
}

/// Sends writes to the shard until `done`, each until it is acknowledged; gives their number.
async fn write_until(cluster: &Cluster, shard: ShardId, done: &CancellationToken) -> u64 {
    let mut written = 0;
    while !done.is_cancelled() {
        cluster.write(shard, &format!("during {written}")).await;
        written += 1;
    }
    written
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_hands_its_primaries_over_and_loses_nothing() {
    let mut cluster = Cluster::start(1, 2).await;
    cluster.create(CollectionSpec { shard_count: 4, ..spec(2, 0) }).await;
    let whole = |state: &ClusterState| {
        let is_whole = |group: &ShardGroup| group.primary.is_some() && group.in_sync.len() == 2;
        state.shards.len() == 4 && state.shards.values().all(is_whole)
    };
    let state = cluster.until("all copies are in sync", whole).await;
    let drained = group(&state).primary_node().expect("a primary");
    let holds_none =
        |state: &ClusterState| whole(state) && state.shards.values().all(|group| group.primary_node() != Some(drained));
    let set = |lifecycle: v1::NodeLifecycle| {
        let (mut client, envelope) = cluster.admin();
        let request =
            v1::SetLifecycleRequest { envelope: Some(envelope), node: drained.0, lifecycle: lifecycle.into() };
        async move { client.set_lifecycle(request).await.expect("answered").into_inner().changed }
    };
    let done = CancellationToken::new();
    let drain = async {
        assert!(set(v1::NodeLifecycle::Draining).await);
        let state = cluster.until("it holds no primary, and all copies are still in sync", holds_none).await;
        done.cancel();
        state
    };
    let (written, state) = tokio::join!(write_until(&cluster, SHARD, &done), drain);
    assert!(cluster.documents(SHARD).await.into_values().all(|documents| documents == written));
    assert_eq!(state.nodes[&drained].liveness, Liveness::Alive);

    cluster.stop_node(drained.0).await;
    cluster.start_node(drained.0);
    let back = |state: &ClusterState| whole(state) && state.nodes[&drained].incarnation.0 == 2;
    let state = cluster.until("it is back", back).await;
    assert!(state.is_draining(drained) && holds_none(&state), "a restart does not end it: {state:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_node_that_stops_in_good_order() {
    let mut cluster = Cluster::start(1, 2).await;
    cluster.create(spec(2, 0)).await;
    let state = cluster.until("both copies are in sync", |state| in_sync(state, 2)).await;
    let primary = group(&state).primary_copy().expect("one");
    let stopping = node_of(group(&state), primary);
    cluster.stop_node(stopping).await;
    let (state, _) = cluster.try_status().await.expect("answered");
    assert!(is_dead(&state, stopping), "it said so itself");
    assert!(in_sync(&state, 1) && group(&state).primary_copy() != Some(primary), "its copy is let go: {state:?}");
    cluster.write_to(group(&state), "after").await.expect("the next write finds the new primary alone");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_with_damaged_files_is_refused_and_built_anew_where_it_is() {
    let mut cluster = Cluster::start(1, 2).await;
    cluster.create(spec(2, 0)).await;
    let state = cluster.until("both copies are in sync", |state| in_sync(state, 2)).await;
    let damaged = *group(&state).copies.keys().next().expect("two copies");
    let node = node_of(group(&state), damaged);
    cluster.write(SHARD, "a").await;
    cluster.stop_node(node).await;
    let rocksdb = cluster.copy_dir(node, damaged).join("rocksdb");
    for file in std::fs::read_dir(&rocksdb).expect("lists").map(|entry| entry.expect("entry").path()) {
        if file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("MANIFEST")) {
            let mut bytes = std::fs::read(&file).expect("reads");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0xff;
            std::fs::write(&file, bytes).expect("writes");
        }
    }
    cluster.start_node(node);
    let refused = |_: &ClusterState, status: &v1::StatusReply| {
        let report = status.reports.iter().find(|report| report.copy_id == damaged.0);
        report.is_some_and(|report| report.index_state == "corrupt" && !report.reason.is_empty())
    };
    cluster.until_status("the damage is reported", refused).await;
    let is_replaced = |state: &ClusterState| in_sync(state, 2) && !group(state).copies.contains_key(&damaged);
    let state = cluster.until("a new copy is in sync", is_replaced).await;
    assert!(group(&state).copies.values().any(|record| record.node.0 == node), "on the same node: {state:?}");
    assert!(cluster.documents(SHARD).await.into_values().all(|documents| documents == 1));
    cluster.until("the damaged one is forgotten", |state| state.retired.is_empty()).await;
    assert!(!cluster.copy_dir(node, damaged).exists());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_without_the_metadata_quorum_and_an_election_disturbs_nobody() {
    let mut cluster = Cluster::start(3, 2).await;
    cluster.create(spec(2, 0)).await;
    let state = cluster.until("both copies are in sync", |state| in_sync(state, 2)).await;
    let register = group(&state).clone();
    cluster.write_to(&register, "before").await.expect("acknowledged");
    let leader = cluster.leader().await;
    cluster.stop_node(leader).await;
    for number in 0..20 {
        cluster.write_to(&register, &format!("election {number}")).await.expect("no election is on a write's way");
    }
    let other = (1..=3).find(|id| *id != leader).expect("three voters");
    cluster.stop_node(other).await;
    let began = tokio::time::Instant::now();
    let mut written = 0;
    // Longer than every timeout of node and metadata group.
    while began.elapsed() < Duration::from_secs(6) {
        cluster.write_to(&register, &format!("alone {written}")).await.expect("nobody asks metadata about a write");
        written += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    cluster.start_node(leader);
    cluster.start_node(other);
    let state = cluster.until("the group is back", |state| in_sync(state, 2)).await;
    assert_eq!(group(&state), &register, "nothing happened to the shard");
    assert!(cluster.documents(SHARD).await.into_values().all(|documents| documents == 21 + written));
    cluster.stop().await;
}

/// Any process holds more than the least budget that can be configured.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_finds_no_node_with_memory_left_is_refused() {
    let cluster = Cluster::start_with(1, 1, "memory_budget = \"1MiB\"").await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut created = 0;
    // Until the leader has heard of the node's memory, it may have room.
    let refused = loop {
        match cluster.try_create(CollectionSpec { name: format!("docs-{created}"), ..spec(1, 0) }).await {
            Ok(()) => created += 1,
            Err(refused) => break refused,
        }
        assert!(tokio::time::Instant::now() < deadline, "{created} collections were created");
    };
    assert_eq!(refused.kind, ErrorKind::StorageFull, "{refused}");
    assert!(refused.hint.contains("storage.memory_budget"), "{refused:?}");
    let (state, _) = cluster.try_status().await.expect("a full node goes on serving");
    assert_eq!(state.collections.len(), created);
    cluster.stop().await;
}
