//! `GET /api/v1/cluster`: the cluster as operators see it; and how operators' calls find a node that answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use cluster_config::audit::AuditRecord;
use cluster_config::cluster_state::{ClusterState, Liveness, NodeLifecycle};
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, NodeId};
use cluster_config::memory::{CopyMemory, NodeMemory};
use cluster_config::quorum::{self, Health};
use cluster_config::seqno::LogPosition;
use cluster_config::shard_group::{CopyPhase, CopyRole, ShardGroup};
use futures::future::BoxFuture;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::{ApiResult, ErrorBody};
use super::json::json;
use crate::cluster::client::{ClusterStatus, CopyReport, NodeError, Peer};
use crate::error::Result;
use crate::services::Services;

/// Pause between rounds over all nodes while the metadata group elects a leader.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// One node's time to answer an operator's call before another one is asked.
pub(super) const NODE_TIMEOUT: Duration = Duration::from_secs(3);

/// The whole cluster.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ClusterReply {
    /// From the configuration.
    pub cluster_id: String,
    /// Version of the agreed state.
    pub state_version: u64,
    /// The metadata group.
    pub metadata: MetadataBody,
    /// All nodes.
    pub nodes: Vec<NodeBody>,
    /// All collections, by name.
    pub collections: Vec<CollectionSummary>,
    /// All shards.
    pub shards: Vec<ShardBody>,
    /// Moves under way; none yet.
    #[schema(value_type = Vec<Object>)]
    pub moves: Vec<serde_json::Value>,
    /// Forced recoveries with data loss, oldest first.
    pub audit: Vec<AuditBody>,
}

/// A forced recovery with data loss.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AuditBody {
    /// Counted from 1.
    pub number: u64,
    /// When, in milliseconds since 1970, by the clock of the node that then led the metadata group.
    pub at_unix_ms: u64,
    /// Who, as they called themselves.
    pub by: String,
    /// `collection_id/index`.
    pub shard: String,
    /// The copy that everything was recovered from.
    pub copy: u64,
    /// The lineage that began with it.
    pub lineage: u64,
    /// Copies that held every acknowledged write before.
    pub former_in_sync: Vec<u64>,
    /// Where the copies' logs ended, as far as it was known.
    pub last_seen: Vec<LastSeenBody>,
    /// A member of the in-sync set lived, and the operator knew.
    pub overrode_live: bool,
}

/// Where a copy's log ended when it was last heard of.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LastSeenBody {
    /// The copy.
    pub copy: u64,
    /// Term of its last entry.
    pub last_term: u64,
    /// Position of its last entry.
    pub last_seqno: u64,
}

/// The metadata group as one member sees it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct MetadataBody {
    /// Leader's node; absent while unknown.
    pub leader: Option<u64>,
    /// Raft term.
    pub raft_term: u64,
    /// Last log index.
    pub last_log_index: u64,
    /// Last applied index.
    pub last_applied_index: u64,
    /// Voters.
    pub voters: Vec<u64>,
}

/// A node.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct NodeBody {
    /// Its id.
    pub id: u64,
    /// gRPC address.
    pub rpc_address: String,
    /// Health and metrics address.
    pub http_address: String,
    /// Failure domain.
    pub zone: String,
    /// Share of data relative to others.
    pub weight: u32,
    /// Whether it holds shards.
    pub is_data: bool,
    /// Life of its process.
    pub incarnation: u64,
    /// `alive` or `dead`, as the metadata leader believes.
    #[schema(value_type = String)]
    pub liveness: Liveness,
    /// `active` or `draining`.
    #[schema(value_type = String)]
    pub lifecycle: NodeLifecycle,
    /// Milliseconds since the leader heard it; absent while unknown.
    pub heard_ms_ago: Option<u64>,
    /// Copies on it.
    pub copies: u32,
    /// Bytes of its copies on disk.
    pub disk_bytes: u64,
    /// Bytes of its copies in memory.
    pub memory_bytes: u64,
    /// What the memory of its process goes to; absent until it has told.
    #[schema(value_type = Object)]
    pub memory: Option<NodeMemory>,
}

/// A collection in short.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CollectionSummary {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u64,
    /// Shards.
    pub shards: u32,
    /// Live rows, as the primaries reported.
    pub rows_live: u64,
}

/// A shard with its copies.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ShardBody {
    /// `collection_id/index`.
    pub shard: String,
    /// Collection's name.
    pub collection: String,
    /// Position in the collection.
    pub index: u32,
    /// Version of its register.
    pub version: u64,
    /// Term of the primary.
    pub primary_term: u64,
    /// The primary copy, where there is one.
    pub primary: Option<u64>,
    /// Copies holding every acknowledged operation.
    pub in_sync: Vec<u64>,
    /// Fewest of them with which writes are accepted.
    pub min_in_sync: u32,
    /// Changes only by recovery with data loss.
    pub lineage: u64,
    /// `green` (all copies in sync on live nodes), `yellow` (some are not), `red` (nobody alive orders writes, or fewer copies than
    /// `min_in_sync`).
    #[schema(value_type = String)]
    pub health: Health,
    /// All copies.
    pub copies: Vec<CopyBody>,
}

/// A copy with what it last reported.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CopyBody {
    /// Its id.
    pub copy: u64,
    /// Its node.
    pub node: u64,
    /// `primary`, `in_sync`, `read_replica`, `new`, `catching_up` or `retiring`.
    pub role: &'static str,
    /// Its last report; absent until it has sent one.
    pub report: Option<ReportBody>,
}

/// What a copy reported of itself.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ReportBody {
    /// End of its log.
    pub last_seqno: u64,
    /// Applied up to here.
    pub applied: u64,
    /// Commit point it knows.
    pub global_checkpoint: u64,
    /// Model generation; 0 while exact.
    pub generation: u64,
    /// exact, training, building, indexed, renewing; poisoned (its disk failed) or corrupt (not open: its files are damaged or gone).
    pub index_state: String,
    /// Why it is poisoned or corrupt.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Live rows.
    pub rows_live: u64,
    /// Rows in the index.
    pub rows_indexed: u64,
    /// Rows searched exactly.
    pub rows_tail: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// The same by part.
    #[schema(value_type = Object)]
    pub memory: CopyMemory,
    /// Share of the exact best 10 that sampled live queries at the default effort found; absent while they are too few.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recall_at_10: Option<f32>,
}

/// The cluster with all soft reports.
#[utoipa::path(get, path = "/api/v1/cluster", tag = "cluster",
    responses((status = 200, body = ClusterReply), (status = "5XX", body = ErrorBody)))]
pub async fn get_cluster(State(services): State<Arc<Services>>) -> ApiResult<Response> {
    let deadline = Instant::now() + services.default_timeout;
    let status = any_node(&services, deadline, NODE_TIMEOUT, |peer, until| services.client.status(peer, until)).await?;
    Ok(json(StatusCode::OK, &cluster_reply(&status)))
}

/// Asks nodes until one answers: the metadata leader first, then whoever is alive, round by round until the deadline.
///
/// Only calls that are safe to repeat go through here. Errors that another node would repeat end it at once.
pub(super) async fn any_node<T>(
    services: &Services,
    deadline: Instant,
    node_timeout: Duration,
    mut call: impl FnMut(Peer, Instant) -> BoxFuture<'static, std::result::Result<T, NodeError>>,
) -> Result<T> {
    let mut last = NodeError::new(ErrorKind::Unavailable, "no node of the cluster is known yet");
    loop {
        for node in nodes_to_ask(services) {
            let until = deadline.min(Instant::now() + node_timeout);
            match tokio::time::timeout_at(until.into(), call(Peer::Node(node), until)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) if error.kind.is_deterministic() || error.kind == ErrorKind::Conflict => {
                    return Err(error.into());
                }
                Ok(Err(error)) => {
                    if error.disconnected {
                        services.stats.note_failure(node);
                    }
                    last = error;
                }
                Err(_) => {
                    services.stats.note_failure(node);
                    last = NodeError::new(ErrorKind::DeadlineExceeded, "no node answered in time");
                }
            }
        }
        if Instant::now() + ROUND_PAUSE >= deadline {
            return Err(last.into());
        }
        services.view.wait_change(Instant::now() + ROUND_PAUSE).await;
    }
}

fn nodes_to_ask(services: &Services) -> Vec<NodeId> {
    let state = services.view.state();
    let leader = services.view.leader();
    let ejected = services.stats.ejected();
    let mut nodes: Vec<_> = state
        .nodes
        .values()
        .map(|node| (node.liveness == Liveness::Dead, ejected.contains(&node.id), Some(node.id) != leader, node.id))
        .collect();
    nodes.sort();
    nodes.into_iter().map(|(.., node)| node).collect()
}

fn cluster_reply(status: &ClusterStatus) -> ClusterReply {
    let state = &status.state;
    let reports: BTreeMap<CopyId, &CopyReport> = status.reports.iter().map(|report| (report.copy, report)).collect();
    let contacts: BTreeMap<NodeId, u64> = status.contacts.iter().copied().collect();
    let nodes = state.nodes.values().map(|node| {
        let copies = state.shards.values().flat_map(|group| group.copies.iter());
        let here: Vec<CopyId> = copies.filter(|(_, record)| record.node == node.id).map(|(copy, _)| *copy).collect();
        let sum = |part: fn(&CopyReport) -> u64| {
            here.iter().filter_map(|copy| reports.get(copy)).map(|report| part(report)).sum()
        };
        NodeBody {
            id: node.id.0,
            rpc_address: node.rpc_address.clone(),
            http_address: node.http_address.clone(),
            zone: node.zone.clone(),
            weight: node.weight,
            is_data: node.is_data,
            incarnation: node.incarnation.0,
            liveness: node.liveness,
            lifecycle: node.lifecycle,
            heard_ms_ago: contacts.get(&node.id).copied(),
            copies: here.len() as u32,
            disk_bytes: sum(|report| report.disk_bytes),
            memory_bytes: sum(|report| report.memory_bytes),
            memory: status.memory.iter().find(|(of, _)| *of == node.id).map(|(_, memory)| *memory),
        }
    });
    let mut collections: Vec<CollectionSummary> = state
        .collections
        .values()
        .map(|collection| CollectionSummary {
            name: collection.spec.name.clone(),
            id: collection.id.0,
            shards: collection.spec.shard_count,
            rows_live: state
                .shards_of(collection.id)
                .filter_map(|group| reports.get(&group.primary_copy()?))
                .map(|report| report.rows_live)
                .sum(),
        })
        .collect();
    collections.sort_by(|left, right| left.name.cmp(&right.name));
    ClusterReply {
        cluster_id: state.cluster_id.clone(),
        state_version: state.version,
        metadata: MetadataBody {
            leader: Some(status.raft.leader).filter(|leader| *leader > 0),
            raft_term: status.raft.raft_term,
            last_log_index: status.raft.last_log_index,
            last_applied_index: status.raft.last_applied_index,
            voters: status.raft.voters.clone(),
        },
        nodes: nodes.collect(),
        collections,
        shards: state.shards.values().map(|group| shard_body(state, group, &reports)).collect(),
        moves: Vec::new(),
        audit: state.audit.iter().map(|(number, record)| audit_body(*number, record)).collect(),
    }
}

fn audit_body(number: u64, record: &AuditRecord) -> AuditBody {
    let last = |(copy, last): (&CopyId, &LogPosition)| LastSeenBody {
        copy: copy.0,
        last_term: last.term.0,
        last_seqno: last.seqno.0,
    };
    AuditBody {
        number,
        at_unix_ms: record.at_unix_ms,
        by: record.by.clone(),
        shard: record.shard.to_string(),
        copy: record.copy.0,
        lineage: record.lineage.0,
        former_in_sync: record.former_in_sync.iter().map(|copy| copy.0).collect(),
        last_seen: record.last_seen.iter().map(last).collect(),
        overrode_live: record.overrode_live,
    }
}

fn shard_body(state: &ClusterState, group: &ShardGroup, reports: &BTreeMap<CopyId, &CopyReport>) -> ShardBody {
    let collection = state.collections.get(&group.shard.collection);
    let (voters, read_replicas) = collection.map_or((1, 0), |known| (known.spec.copies, known.spec.read_replicas));
    let is_live = |node: NodeId| state.nodes.get(&node).is_some_and(|record| record.liveness == Liveness::Alive);
    let copies = group.copies.iter().map(|(copy, record)| {
        let role = match (record.role, record.phase) {
            _ if group.primary_copy() == Some(*copy) => "primary",
            (_, CopyPhase::Retiring) => "retiring",
            (_, CopyPhase::New) => "new",
            (_, CopyPhase::CatchingUp) => "catching_up",
            (CopyRole::ReadReplica, CopyPhase::InSync) => "read_replica",
            (CopyRole::Voter, CopyPhase::InSync) if group.in_sync.contains(copy) => "in_sync",
            (CopyRole::Voter, CopyPhase::InSync) => "catching_up",
        };
        let report = reports.get(copy).map(|report| ReportBody {
            last_seqno: report.last.seqno.0,
            applied: report.applied.0,
            global_checkpoint: report.global_checkpoint.0,
            generation: report.generation,
            index_state: report.index_state.clone(),
            reason: report.reason.clone(),
            rows_live: report.rows_live,
            rows_indexed: report.rows_indexed,
            rows_tail: report.rows_tail,
            disk_bytes: report.disk_bytes,
            memory_bytes: report.memory_bytes,
            memory: report.memory,
            recall_at_10: report.recall_at_10,
        });
        CopyBody { copy: copy.0, node: record.node.0, role, report }
    });
    ShardBody {
        shard: group.shard.to_string(),
        collection: collection.map(|collection| collection.spec.name.clone()).unwrap_or_default(),
        index: group.shard.index,
        version: group.version,
        primary_term: group.primary_term.0,
        primary: group.primary_copy().map(|copy| copy.0),
        in_sync: group.in_sync.iter().map(|copy| copy.0).collect(),
        min_in_sync: group.min_in_sync,
        lineage: group.lineage.0,
        health: quorum::health(group, voters, read_replicas, is_live),
        copies: copies.collect(),
    }
}
