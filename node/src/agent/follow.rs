//! How a node that does not vote learns the state: from the watch of one voter, and of another one when that breaks or falls behind.

use std::sync::atomic::Ordering;
use std::time::Duration;

use cluster_config::cluster_state::ClusterState;
use cluster_config::ids::NodeId;
use cluster_config::limits;
use proto::v1;
use proto::v1::metadata_service_client::MetadataServiceClient;

use super::Agent;
use crate::rpc::client::Lane;

/// Between two attempts to watch.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// A watched voter that shows nothing new for so long although another one has newer is left.
const BEHIND_MAX: Duration = Duration::from_secs(2);

/// Follows until cancelled.
pub(super) async fn run(agent: Agent) {
    let voters: Vec<NodeId> = agent.inner.metadata.voters().collect();
    for voter in voters.iter().cycle() {
        if let Err(error) = watch(&agent, *voter).await {
            tracing::info!(%voter, error, "the state is watched elsewhere");
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Watches one voter for as long as it is worth it.
async fn watch(agent: &Agent, voter: NodeId) -> Result<(), String> {
    let metadata = &agent.inner.metadata;
    let peers = metadata.peers();
    let channel = peers.channel(voter, Lane::Control).map_err(|error| error.to_string())?;
    let known_version = metadata.state().borrow().version;
    let request = v1::WatchRequest { envelope: Some(peers.envelope(voter)), known_version };
    let mut replies = MetadataServiceClient::new(channel)
        .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
        .watch(request)
        .await
        .map_err(|status| status.message().to_owned())?
        .into_inner();
    loop {
        match tokio::time::timeout(BEHIND_MAX, replies.message()).await {
            Ok(Ok(Some(reply))) => {
                let leader = Some(NodeId(reply.leader)).filter(|leader| leader.0 != 0);
                metadata.hint_leader(leader);
                let state = reply.state.ok_or("a watch reply without a state")?;
                metadata.learn(ClusterState::try_from(state).map_err(|error| error.to_string())?);
            }
            Ok(Ok(None)) => return Err("the watch ended".into()),
            Ok(Err(status)) => return Err(status.message().to_owned()),
            Err(_) => {
                let known = metadata.state().borrow().version;
                if agent.inner.seen_version.load(Ordering::Relaxed) > known {
                    return Err("it fell behind the other voters".into());
                }
            }
        }
    }
}
