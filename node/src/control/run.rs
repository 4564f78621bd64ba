//! The loop that every voter runs and only the leader acts in: look, decide, submit; again on every change and every tick.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::cluster_state::ClusterState;
use cluster_config::ids::{Incarnation, NodeId};
use cluster_config::node_config::TimingConfig;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::decide::{Patience, View, decide};
use crate::metadata::command::{Command, Response};
use crate::metadata::group::{Watching, is_leading};
use crate::metadata::types::Raft;
use crate::rpc::client::Peers;

/// Between two looks while nothing changes.
const TICK: Duration = Duration::from_millis(100);
/// Between the two probes of a suspect; one refusal may be a port between two owners.
const PROBE_PAUSE: Duration = Duration::from_millis(100);
/// A tick that comes later says that this process was suspended: it heard nobody, which is nobody else's silence.
const SUSPENDED_AFTER: Duration = Duration::from_secs(1);
/// A probe that takes longer says nothing: only a refusal is a proof.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// Missed heartbeats after which a node is probed without anybody's report.
const PROBE_AFTER_HEARTBEATS: u32 = 2;
/// How long the preferred first primary of a new shard may take.
const FIRST_GRANT: Duration = Duration::from_secs(2);
/// How long a node may be dead before its copies are built elsewhere.
const REPLACE_AFTER: Duration = Duration::from_secs(300);
/// How old a corrupt copy must be to be replaced.
const REPLACE_CORRUPT_AFTER: Duration = Duration::from_secs(5);
/// A command that takes longer is left to the next round.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// What the loop works with.
pub(crate) struct Leader {
    pub(crate) raft: Raft,
    pub(crate) watching: Arc<Watching>,
    pub(crate) state: watch::Receiver<Arc<ClusterState>>,
    pub(crate) peers: Peers,
    pub(crate) timing: TimingConfig,
}

/// Runs until cancelled.
pub(crate) async fn run(mut leader: Leader) {
    let patience = patience(&leader.timing);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leader_since_ms = None;
    let mut probing = None;
    loop {
        let waiting_since = Instant::now();
        tokio::select! {
            _ = tick.tick() => {}
            changed = leader.state.changed() => if changed.is_err() { return },
        }
        if waiting_since.elapsed() > SUSPENDED_AFTER {
            leader_since_ms = None;
        }
        let state = leader.state.borrow_and_update().clone();
        leader.watching.with(|observed, now_ms| observed.meet(&state, now_ms));
        if !is_leading(&leader.raft) {
            leader_since_ms = None;
            continue;
        }
        let since_ms = *leader_since_ms.get_or_insert_with(|| leader.watching.now_ms());
        probe_suspects(&leader, &state, &mut probing);
        let commands = leader.watching.with(|observed, now_ms| {
            decide(&View { state: &state, observed, now_ms, leader_since_ms: since_ms, patience: &patience })
        });
        for command in commands {
            submit(&leader.raft, command).await;
        }
    }
}

fn patience(timing: &TimingConfig) -> Patience {
    Patience {
        node_timeout_ms: millis(timing.node_timeout),
        first_grant_ms: millis(FIRST_GRANT),
        replace_after_ms: millis(REPLACE_AFTER),
        replace_corrupt_after_ms: millis(REPLACE_CORRUPT_AFTER),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn submit(raft: &Raft, command: Command) {
    let what = command.to_string();
    match tokio::time::timeout(SUBMIT_TIMEOUT, raft.client_write(command)).await {
        Ok(Ok(written)) => match written.data {
            Response::Reconfigured { refused } if refused.is_empty() => tracing::info!(command = what, "decided"),
            Response::Reconfigured { refused } => tracing::info!(command = what, ?refused, "decided in part"),
            Response::Refused { message, .. } => tracing::info!(command = what, reason = message, "refused"),
            _ => tracing::info!(command = what, "decided"),
        },
        // The next round decides again, here or at the next leader.
        Ok(Err(error)) => tracing::warn!(command = what, %error, "not decided"),
        Err(_) => tracing::warn!(command = what, "not decided in time"),
    }
}

/// Starts one round of probes unless one is under way. A round ends within a second.
fn probe_suspects(leader: &Leader, state: &ClusterState, probing: &mut Option<tokio::task::JoinHandle<()>>) {
    if probing.as_ref().is_some_and(|round| !round.is_finished()) {
        return;
    }
    let silence_ms = millis(leader.timing.heartbeat * PROBE_AFTER_HEARTBEATS);
    let this = leader.peers.self_node();
    let suspects: Vec<(NodeId, Incarnation)> =
        leader.watching.with(|observed, now_ms| observed.suspects(state, now_ms, silence_ms));
    let suspects: Vec<(NodeId, Incarnation, String)> = suspects
        .into_iter()
        .filter(|(node, _)| *node != this)
        .filter_map(|(node, incarnation)| Some((node, incarnation, leader.peers.address(node).ok()?)))
        .collect();
    if suspects.is_empty() {
        return;
    }
    let watching = leader.watching.clone();
    *probing = Some(tokio::spawn(async move {
        let probes = suspects.into_iter().map(|(node, incarnation, address)| {
            let watching = watching.clone();
            async move {
                let from_ms = watching.now_ms();
                if refuses(&address).await {
                    tokio::time::sleep(PROBE_PAUSE).await;
                    if refuses(&address).await {
                        watching.with(|observed, _| observed.confirm_refused(node, incarnation, from_ms));
                    }
                }
            }
        });
        futures::future::join_all(probes).await;
    }));
}

/// Whether nothing listens there. A timeout, a reset or an accepted connection prove nothing.
async fn refuses(address: &str) -> bool {
    match tokio::time::timeout(PROBE_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
        Ok(Ok(_)) | Err(_) => false,
    }
}
