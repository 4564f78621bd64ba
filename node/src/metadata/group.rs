//! This process' part in the metadata group: a voter that runs Raft, or a node that knows where the voters are.
//!
//! Whoever holds a [`Metadata`] can read the state as known here, and have a command decided: it finds the leader, here or
//! elsewhere, within the caller's deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use cluster_config::cluster_state::ClusterState;
use cluster_config::error::ErrorKind;
use cluster_config::ids::NodeId;
use cluster_config::node_config::{NodeConfig, TimingConfig};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardToLeader, InitializeError, LinearizableReadError, RaftError};
use openraft::{BasicNode, Config, ReadPolicy, ServerState, SnapshotPolicy};
use parking_lot::{Mutex, RwLock};
use proto::convert::status::RemoteError;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Storage;
use super::command::{Command, Response};
use super::feed::Feed;
use super::network::Network;
use super::types::{Raft, TypeConfig};
use crate::control;
use crate::control::observe::Observed;
use crate::rpc::client::Peers;

/// Entries after which the log is replaced by a snapshot.
const SNAPSHOT_EVERY_ENTRIES: u64 = 5000;
/// Entries kept behind a snapshot, so that a voter that missed a little catches up from the log.
const ENTRIES_KEPT: u64 = 1000;
/// Time for a snapshot to be sent and installed.
const SNAPSHOT_TIMEOUT_MS: u64 = 60_000;
/// How long a leader that stops waits for another voter to lead.
const LEAD_TRANSFER: Duration = Duration::from_secs(1);
/// Between two attempts to found the group.
const FOUND_INTERVAL: Duration = Duration::from_millis(500);

/// Why the metadata group did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The database cannot be opened, or a stored thing cannot be read.
    #[error("metadata storage: {0}")]
    Storage(#[from] io::Error),
    /// openraft refuses the configuration, or has stopped.
    #[error("metadata group: {0}")]
    Raft(String),
    /// A call that was sent on once came to a node that does not lead.
    #[error("this node is not the metadata leader")]
    NotLeader,
    /// The leader refused, or nobody could be asked in time.
    #[error(transparent)]
    Refused(#[from] RemoteError),
}

impl MetadataError {
    /// As a caller may act on it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            MetadataError::Storage(_) => ErrorKind::Internal,
            MetadataError::Raft(_) | MetadataError::NotLeader => ErrorKind::Unavailable,
            MetadataError::Refused(error) => error.kind(),
        }
    }
}

impl From<MetadataError> for tonic::Status {
    fn from(error: MetadataError) -> Self {
        match error {
            MetadataError::Refused(error) => error.into(),
            other => RemoteError::new(other.kind(), other.to_string()).into(),
        }
    }
}

/// This process' handle on the metadata group. Cheap to clone.
#[derive(Clone)]
pub struct Metadata {
    inner: Arc<Inner>,
}

struct Inner {
    peers: Peers,
    voters: BTreeMap<NodeId, String>,
    feed: Feed,
    voter: Option<Voter>,
    /// Last leader heard of, where this node does not vote.
    leader_hint: RwLock<Option<NodeId>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct Voter {
    raft: Raft,
    watching: Arc<Watching>,
}

/// What this voter sees of the nodes, and the clock it sees them by.
pub(crate) struct Watching {
    started: Instant,
    observed: Mutex<Observed>,
    /// A node that has not heard this voter for longer is not believed when it calls others silent.
    pub(crate) deaf_after_ms: u64,
}

impl Watching {
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Runs `f` on what was seen. Short: it holds a lock that every heartbeat takes.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Observed, u64) -> T) -> T {
        f(&mut self.observed.lock(), self.now_ms())
    }
}

/// Why the local member did not answer.
pub(crate) enum NotHere {
    /// Somebody else leads, or nobody; nothing was submitted.
    NotLeader,
    /// The lead was lost underway: the command may have been decided, or may still be.
    Unknown,
    /// It leads and failed.
    Failed(MetadataError),
}

impl Metadata {
    /// Opens this node's part: the voter's storage and Raft, with the leader's control loop, or only the knowledge of where the
    /// voters are. Errors: storage of another cluster or node, damage, I/O.
    pub async fn open(config: &NodeConfig, peers: Peers) -> Result<Self, MetadataError> {
        let feed = Feed::new(&config.cluster_id, Some(peers.clone()));
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let voter = if config.is_voter() { Some(open_voter(config, &peers, &feed).await?) } else { None };
        let inner =
            Inner { peers, voters: config.voters.clone(), feed, voter, leader_hint: RwLock::default(), stop, tasks };
        let metadata = Self { inner: Arc::new(inner) };
        metadata.spawn_tasks(&config.timing);
        Ok(metadata)
    }

    fn spawn_tasks(&self, timing: &TimingConfig) {
        let Inner { tasks, stop, peers, feed, voters, voter, .. } = &*self.inner;
        if let Some(Voter { raft, watching }) = voter {
            tasks.spawn(stop.clone().run_until_cancelled_owned(found(raft.clone(), voters.clone())));
            let leader = control::run::Leader {
                raft: raft.clone(),
                watching: watching.clone(),
                state: feed.subscribe(),
                peers: peers.clone(),
                timing: timing.clone(),
            };
            tasks.spawn(stop.clone().run_until_cancelled_owned(control::run::run(leader)));
        }
    }

    /// The state as known here, and every later one. Versions only grow; it may lag behind the leader's.
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.inner.feed.subscribe()
    }

    /// Shows a state learned from another voter, if it is newer. All of them are agreed ones, so their order is that of their versions.
    pub(crate) fn learn(&self, state: ClusterState) {
        self.inner.feed.show(&Arc::new(state));
    }

    /// Whether this node votes.
    pub fn is_voter(&self) -> bool {
        self.inner.voter.is_some()
    }

    /// The voters of the configuration.
    pub fn voters(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.inner.voters.keys().copied()
    }

    /// Who leads, as far as this node knows.
    pub fn leader(&self) -> Option<NodeId> {
        match &self.inner.voter {
            Some(voter) => voter.raft.metrics().borrow_watched().current_leader,
            None => *self.inner.leader_hint.read(),
        }
    }

    /// Remembers whom a voter named as the leader.
    pub(crate) fn hint_leader(&self, leader: Option<NodeId>) {
        *self.inner.leader_hint.write() = leader;
    }

    /// How this process reaches the others.
    pub fn peers(&self) -> &Peers {
        &self.inner.peers
    }

    pub(crate) fn raft(&self) -> Option<&Raft> {
        self.inner.voter.as_ref().map(|voter| &voter.raft)
    }

    pub(crate) fn watching(&self) -> Option<&Watching> {
        self.inner.voter.as_ref().map(|voter| &*voter.watching)
    }

    /// Raft's own figures, on a voter.
    pub fn raft_metrics(&self) -> Option<openraft::RaftMetrics<TypeConfig>> {
        self.raft().map(|raft| raft.metrics().borrow_watched().clone())
    }

    /// Has the local member decide `command`, if it leads.
    pub(crate) async fn submit_here(&self, command: Command) -> Result<Response, NotHere> {
        let raft = self.raft().ok_or(NotHere::NotLeader)?;
        match raft.client_write(command).await {
            Ok(written) => Ok(written.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(ForwardToLeader { .. }))) => {
                Err(NotHere::NotLeader)
            }
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => Err(NotHere::Unknown),
            Err(error) => Err(NotHere::Failed(MetadataError::Raft(error.to_string()))),
        }
    }

    /// The state with everything in it that was decided before the call, if the local member leads (W11).
    pub(crate) async fn read_here(&self) -> Result<Arc<ClusterState>, NotHere> {
        let raft = self.raft().ok_or(NotHere::NotLeader)?;
        match raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(_) => Ok(self.inner.feed.last()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => Err(NotHere::NotLeader),
            // It believes to lead but cannot reach a majority; by the time of the next attempt somebody else may.
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(NotHere::NotLeader),
            Err(error) => Err(NotHere::Failed(MetadataError::Raft(error.to_string()))),
        }
    }

    /// Takes a snapshot now and drops the log it covers; a voter that is behind gets the snapshot. Returns the last index covered.
    pub async fn compact(&self) -> Result<u64, MetadataError> {
        let failed = |error: &dyn std::fmt::Display| MetadataError::Raft(error.to_string());
        let raft = self.raft().ok_or(MetadataError::NotLeader)?;
        let applied = raft.metrics().borrow_watched().last_applied;
        raft.trigger().snapshot().await.map_err(|error| failed(&error))?;
        let waiting = raft.wait(Some(Duration::from_millis(SNAPSHOT_TIMEOUT_MS)));
        let done = waiting
            .metrics(|metrics| metrics.snapshot >= applied, "snapshot taken")
            .await
            .map_err(|error| failed(&error))?;
        let covered = done.snapshot.map_or(0, |last| last.index);
        raft.trigger().purge_log(covered).await.map_err(|error| failed(&error))?;
        raft.wait(Some(Duration::from_millis(SNAPSHOT_TIMEOUT_MS)))
            .metrics(|metrics| metrics.purged.is_some_and(|purged| purged.index >= covered), "log purged")
            .await
            .map_err(|error| failed(&error))?;
        Ok(covered)
    }

    /// Hands the lead to the voter that was heard last, if this process leads, so that nobody waits for an election when it stops. Waits
    /// at most [`LEAD_TRANSFER`]; an election is what is left then.
    pub async fn hand_lead_over(&self) {
        let Some(raft) = self.raft() else { return };
        let metrics = raft.metrics().borrow_watched().clone();
        let heard = metrics.heartbeat.filter(|_| metrics.state == ServerState::Leader).unwrap_or_default();
        let others = heard.into_iter().filter(|(voter, _)| *voter != metrics.id);
        let Some((to, _)) = others.max_by_key(|(_, at)| at.map(|at| *at)) else { return };
        if raft.trigger().transfer_leader(to).await.is_err() {
            return;
        }
        let led =
            |metrics: &openraft::RaftMetrics<TypeConfig>| metrics.current_leader.is_some_and(|id| id != metrics.id);
        match raft.wait(Some(LEAD_TRANSFER)).metrics(led, "another voter leads").await {
            Ok(_) => tracing::info!(%to, "the lead of the metadata group is handed over"),
            Err(error) => tracing::info!(%to, %error, "nobody took the lead of the metadata group over"),
        }
    }

    /// Resolves when [`Metadata::close`] is called, so that watch streams do not outlive the process' service.
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        self.inner.stop.clone().cancelled_owned()
    }

    /// Stops the tasks and Raft. Nothing acknowledged is lost by not calling it.
    pub async fn close(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        if let Some(voter) = &self.inner.voter
            && let Err(error) = voter.raft.shutdown().await
        {
            tracing::warn!(%error, "the metadata group did not shut down cleanly");
        }
    }
}

async fn open_voter(config: &NodeConfig, peers: &Peers, feed: &Feed) -> Result<Voter, MetadataError> {
    let dir = config.data_dir.join("metadata");
    let (cluster_id, node, checked) = (config.cluster_id.clone(), config.node_id, config.test_hooks.check_invariants);
    let shown = feed.clone();
    let storage = tokio::task::spawn_blocking(move || Storage::open_with(&dir, &cluster_id, node, checked, shown))
        .await
        .map_err(io::Error::other)??;
    let raft_config = raft_config(&config.timing).map_err(|error| MetadataError::Raft(error.to_string()))?;
    let network = Network { peers: peers.clone() };
    let raft = Raft::new(config.node_id, Arc::new(raft_config), network, storage.log, storage.machine)
        .await
        .map_err(|error| MetadataError::Raft(error.to_string()))?;
    let watching = Arc::new(Watching {
        started: Instant::now(),
        observed: Mutex::default(),
        deaf_after_ms: deaf_after_ms(&config.timing),
    });
    Ok(Voter { raft, watching })
}

/// A deaf primary misses acknowledgements from the moment on from which it misses answers to its heartbeats, so half of the ack timeout
/// tells it; two heartbeats are the least by which a hearing one is known.
fn deaf_after_ms(timing: &TimingConfig) -> u64 {
    let after = (timing.ack_timeout / 2).max(timing.heartbeat * 2);
    u64::try_from(after.as_millis()).unwrap_or(u64::MAX)
}

fn raft_config(timing: &TimingConfig) -> Result<Config, openraft::ConfigError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (election_min, election_max) = (millis(timing.election_min), millis(timing.election_max));
    Config {
        cluster_name: "susui".to_owned(),
        heartbeat_interval: millis(timing.raft_heartbeat),
        election_timeout_min: election_min,
        election_timeout_max: election_max,
        enable_pre_vote: Some(true),
        // An old leader that a bridge node still hears must fall silent, or nobody is ever elected (openraft#2080). The lease is
        // the longest election timeout.
        quorum_loss_probe_interval: Some(2 * election_max),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY_ENTRIES),
        max_in_snapshot_log_to_keep: ENTRIES_KEPT,
        install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
        ..Config::default()
    }
    .validate()
}

/// Founds the group where it is not founded yet. Every voter does so with the same members, which Raft allows; whoever is
/// late finds it done.
async fn found(raft: Raft, voters: BTreeMap<NodeId, String>) {
    let members: BTreeMap<NodeId, BasicNode> =
        voters.into_iter().map(|(node, address)| (node, BasicNode::new(address))).collect();
    loop {
        match raft.initialize(members.clone()).await {
            Ok(()) => {
                let voters: BTreeSet<NodeId> = members.keys().copied().collect();
                tracing::info!(?voters, "metadata group founded");
                return;
            }
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => return,
            Err(error) => tracing::warn!(%error, "the metadata group cannot be founded yet"),
        }
        tokio::time::sleep(FOUND_INTERVAL).await;
    }
}

/// Whether the member leads now.
pub(crate) fn is_leading(raft: &Raft) -> bool {
    raft.metrics().borrow_watched().state == ServerState::Leader
}
