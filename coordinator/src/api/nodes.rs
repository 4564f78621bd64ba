//! `POST /api/v1/nodes/{id}:drain` and `:undrain`: operators say what a node is for.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use cluster_config::cluster_state::{ClusterState, NodeLifecycle};
use cluster_config::error::ErrorKind;
use cluster_config::ids::NodeId;
use serde::Serialize;
use utoipa::ToSchema;

use super::cluster::{NODE_TIMEOUT, any_node};
use super::error::{ApiResult, ErrorBody};
use super::json::json;
use crate::error::{Error, Result};
use crate::services::Services;

/// What a node is to do now.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct LifecycleReply {
    /// The node.
    pub node: u64,
    /// `active` or `draining`.
    #[schema(value_type = String)]
    pub lifecycle: NodeLifecycle,
    /// False where it was so already.
    pub changed: bool,
    /// Shards whose primary is on the node now: what a draining node still has to hand over.
    pub primaries: u32,
    /// Version of the state in which it is so.
    pub state_version: u64,
}

/// Finds the action at the end of the path.
pub async fn post_node_action(
    State(services): State<Arc<Services>>,
    Path(action): Path<String>,
) -> ApiResult<Response> {
    let (id, verb) = action.rsplit_once(':').unwrap_or((&action, ""));
    match verb {
        "drain" => drain(services, id).await,
        "undrain" => undrain(services, id).await,
        _ => {
            let hint = "POST /api/v1/nodes/{id}:drain or :undrain";
            Err(Error::refused(ErrorKind::NotFound, format!("no action {action:?} on nodes"), hint).into())
        }
    }
}

/// Marks a node as draining: it hands its primaries over, is granted none while another copy can be primary, and takes no new copies. Its
/// copies stay and serve. It stays so, over restarts, until it is undrained. Safe to repeat.
#[utoipa::path(post, path = "/api/v1/nodes/{id}:drain", tag = "cluster",
    params(("id" = u64, Path, description = "the node")),
    responses((status = 200, body = LifecycleReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub(super) async fn drain(services: Arc<Services>, id: &str) -> ApiResult<Response> {
    set(&services, id, NodeLifecycle::Draining).await
}

/// Takes `:drain` back. Safe to repeat.
#[utoipa::path(post, path = "/api/v1/nodes/{id}:undrain", tag = "cluster",
    params(("id" = u64, Path, description = "the node")),
    responses((status = 200, body = LifecycleReply), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub(super) async fn undrain(services: Arc<Services>, id: &str) -> ApiResult<Response> {
    set(&services, id, NodeLifecycle::Active).await
}

async fn set(services: &Services, id: &str, lifecycle: NodeLifecycle) -> ApiResult<Response> {
    let node = find_node(&services.view.state(), id)?;
    let deadline = Instant::now() + services.default_timeout;
    let call = |peer, until| services.client.set_lifecycle(peer, node, lifecycle, until);
    let (changed, state_version) = any_node(services, deadline, NODE_TIMEOUT, call).await?;
    let is_there = |state: &ClusterState| state.version >= state_version;
    let state = services.view.wait_for(deadline, is_there).await.unwrap_or_else(|| services.view.state());
    let primaries = state.shards.values().filter(|group| group.primary_node() == Some(node)).count() as u32;
    Ok(json(StatusCode::OK, &LifecycleReply { node: node.0, lifecycle, changed, primaries, state_version }))
}

fn find_node(state: &ClusterState, id: &str) -> Result<NodeId> {
    let node = id.parse().ok().map(NodeId).filter(|node| state.nodes.contains_key(node));
    node.ok_or_else(|| {
        let known: Vec<String> = state.nodes.keys().map(|node| node.to_string()).collect();
        Error::field("id", format!("{id:?} is no node of this cluster"), format!("its nodes are {}", known.join(", ")))
    })
}
