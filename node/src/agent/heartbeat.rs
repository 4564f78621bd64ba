//! One task per voter that tells it, again and again, that this process lives and how its copies stand. A slow voter delays nobody
//! else's heartbeat.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cluster_config::ids::{Incarnation, NodeId};
use futures::future::join_all;
use proto::v1;
use proto::v1::metadata_service_client::MetadataServiceClient;
use tokio::time::MissedTickBehavior;
use tonic::Request;

use super::{Agent, Reporter};
use crate::rpc::client::Lane;

/// A voter that takes longer has missed it; the next one follows anyway.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(1000);

/// Sends heartbeats to `voter` until cancelled.
pub(super) async fn run(agent: Agent, voter: NodeId, reporter: Reporter) {
    let mut tick = tokio::time::interval(agent.inner.heartbeat_interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_heard = true;
    let mut answered_at = Instant::now();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = agent.inner.nudge.notified() => {}
            () = agent.inner.metadata.peers().newly_refused() => {}
        }
        let incarnation = *agent.inner.incarnation.borrow();
        if incarnation == Incarnation(0) {
            continue;
        }
        let message = alive(&agent, voter, incarnation, answered_at.elapsed(), &reporter);
        match send(&agent, voter, message).await {
            Ok(reply) => {
                answered_at = Instant::now();
                agent.inner.seen_version.fetch_max(reply.state_version, Ordering::Relaxed);
                if reply.must_register {
                    agent.expire(incarnation);
                }
                was_heard = true;
            }
            Err(error) => {
                if was_heard {
                    tracing::info!(%voter, error, "heartbeat not answered");
                }
                was_heard = false;
            }
        }
    }
}

/// Tells every voter that `incarnation` is about to end. Returns whether enough of them heard it to act on it.
pub(super) async fn say_goodbye(agent: &Agent, incarnation: Incarnation, reporter: &Reporter) -> bool {
    let goodbye =
        |voter| v1::HeartbeatRequest { stopping: true, ..alive(agent, voter, incarnation, Duration::ZERO, reporter) };
    let told = join_all(agent.inner.metadata.voters().map(|voter| send(agent, voter, goodbye(voter)))).await;
    let heard = told.iter().filter(|answer| answer.is_ok()).count();
    2 * heard > told.len()
}

fn alive(
    agent: &Agent,
    voter: NodeId,
    incarnation: Incarnation,
    unanswered: Duration,
    reporter: &Reporter,
) -> v1::HeartbeatRequest {
    let metadata = &agent.inner.metadata;
    let peers = metadata.peers();
    let report = reporter();
    v1::HeartbeatRequest {
        envelope: Some(peers.envelope(voter)),
        incarnation: incarnation.0,
        copies: report.copies,
        state_version: metadata.state().borrow().version,
        refused_peers: report.refused_peers.into_iter().map(|peer| peer.0).collect(),
        disk_stalled: report.is_disk_stalled,
        deleted_copies: report.deleted.into_iter().map(|copy| copy.0).collect(),
        memory: Some(report.memory.into()),
        stopping: false,
        unanswered_ms: unanswered.as_millis() as u64,
    }
}

async fn send(agent: &Agent, voter: NodeId, message: v1::HeartbeatRequest) -> Result<v1::HeartbeatReply, String> {
    let metadata = &agent.inner.metadata;
    let peers = metadata.peers();
    if voter == peers.self_node() {
        return metadata.hear(message).ok_or_else(|| "this node does not vote, the configuration says it does".into());
    }
    let channel = peers.channel(voter, Lane::Control).map_err(|error| error.to_string())?;
    let mut request = Request::new(message);
    request.set_timeout(HEARTBEAT_TIMEOUT);
    let answered =
        tokio::time::timeout(HEARTBEAT_TIMEOUT, async { MetadataServiceClient::new(channel).heartbeat(request).await });
    match answered.await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => {
            peers.note_failure(voter, &status);
            Err(status.message().to_owned())
        }
        Err(_) => Err("timed out".into()),
    }
}
