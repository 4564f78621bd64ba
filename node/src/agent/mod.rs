//! This process' voice in the metadata group: it registers, sends heartbeats, follows the state, and asks about registers.
//!
//! A registration is one life (W1): grants of the primary role name its incarnation. When the group ends that life, because it took
//! the node for dead, the agent shows incarnation 0 until it has registered as a new one, and whoever holds a role steps down.

mod follow;
mod heartbeat;
mod register_client;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use cluster_config::cluster_state::{ClusterState, Liveness, NodeLifecycle, NodeRecord};
use cluster_config::ids::{CopyId, Incarnation, NodeId};
use cluster_config::memory::NodeMemory;
use cluster_config::node_config::NodeConfig;
use cluster_config::shard_group::ShardGroup;
use proto::v1;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metadata::command::FEATURE_LEVEL;
use crate::metadata::{Metadata, Route};

/// How long one attempt to register may take; an election fits in.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two attempts to register.
const REGISTER_PAUSE: Duration = Duration::from_millis(200);

/// Lists the copies on this node's disk. Blocks.
pub type CopiesOnDisk = Arc<dyn Fn() -> io::Result<BTreeSet<CopyId>> + Send + Sync>;

/// What a heartbeat tells of the process.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Its copies: the open ones, and those found corrupt. An open copy is listed only once it is durable on disk: that is what makes
    /// it count.
    pub copies: Vec<v1::CopyReport>,
    /// Retired copies whose files are gone.
    pub deleted: Vec<CopyId>,
    /// Peers whose port refused a connection within the last second.
    pub refused_peers: Vec<NodeId>,
    /// Its log could not be synced for longer than the node timeout.
    pub is_disk_stalled: bool,
    /// What its memory goes to.
    pub memory: NodeMemory,
}

/// Makes a [`Report`]. Called from the heartbeat tasks: short, and without waiting for the disk.
pub type Reporter = Arc<dyn Fn() -> Report + Send + Sync>;

/// The agent of this process. Cheap to clone.
#[derive(Clone)]
pub struct Agent {
    inner: Arc<Inner>,
}

struct Inner {
    metadata: Metadata,
    identity: NodeRecord,
    heartbeat_interval: Duration,
    copies_on_disk: CopiesOnDisk,
    incarnation: watch::Sender<Incarnation>,
    /// Heartbeat tasks send out of turn.
    nudge: Notify,
    /// Highest state version that any voter has shown.
    seen_version: AtomicU64,
    /// A voter said that this life is over.
    expired: mpsc::Sender<Incarnation>,
    stop: CancellationToken,
    /// Cancelled when this process is not to count as alive any more: no heartbeats, no further life.
    leaving: CancellationToken,
    tasks: TaskTracker,
}

impl Agent {
    /// Registers this process and begins to follow the state. Retries until the group answers; `http_address` is where health and metrics
    /// are bound.
    ///
    /// Cancel: dropping the call leaves at most a registration behind, which the next one supersedes.
    pub async fn register(
        metadata: Metadata,
        config: &NodeConfig,
        http_address: String,
        copies_on_disk: CopiesOnDisk,
    ) -> Self {
        let identity = NodeRecord {
            id: config.node_id,
            rpc_address: config.rpc_advertise.clone(),
            http_address,
            zone: config.zone.clone(),
            weight: config.weight,
            is_data: config.is_data(),
            incarnation: Incarnation(0),
            liveness: Liveness::Alive,
            lifecycle: NodeLifecycle::Active,
        };
        let (expired, expirations) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let agent = Self {
            inner: Arc::new(Inner {
                metadata,
                identity,
                heartbeat_interval: config.timing.heartbeat,
                copies_on_disk,
                incarnation: watch::channel(Incarnation(0)).0,
                nudge: Notify::new(),
                seen_version: AtomicU64::new(0),
                expired,
                leaving: stop.child_token(),
                stop,
                tasks: TaskTracker::new(),
            }),
        };
        if !agent.inner.metadata.is_voter() {
            agent.spawn(follow::run(agent.clone()));
        }
        agent.begin_life().await;
        agent.spawn_living(agent.clone().renew_lives(expirations));
        agent
    }

    /// Begins to send heartbeats to every voter; before this the node counts as alive for one node timeout.
    pub fn start_heartbeats(&self, reporter: Reporter) {
        for voter in self.inner.metadata.voters() {
            self.spawn_living(heartbeat::run(self.clone(), voter, reporter.clone()));
        }
    }

    /// Sends heartbeats now: something changed that the leader waits for, such as a copy that was opened.
    pub fn heartbeat_now(&self) {
        self.inner.nudge.notify_waiters();
    }

    /// The present life; 0 while there is none and no role may be held.
    pub fn incarnation(&self) -> watch::Receiver<Incarnation> {
        self.inner.incarnation.subscribe()
    }

    /// The cluster state as known here.
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.inner.metadata.state()
    }

    /// Says that this life is about to end, and waits, at most for `patience`, until the group has acted on it: then no write waits for a
    /// copy on this node, and nobody reads from it by choice. A copy that is the last in sync of its shard is not let go; nor is any where
    /// the group has no majority, which is not waited for.
    pub async fn leave(&self, reporter: &Reporter, patience: Duration) {
        self.inner.leaving.cancel();
        let incarnation = *self.inner.incarnation.borrow();
        let this = self.inner.identity.id;
        let is_let_go = |state: &Arc<ClusterState>| {
            let waits = |group: &ShardGroup| {
                group.in_sync.len() > 1 && group.in_sync.iter().any(|copy| group.node_of(*copy) == Some(this))
            };
            !state.is_alive_in(this, incarnation) && !state.shards.values().any(waits)
        };
        let leaving = async {
            heartbeat::say_goodbye(self, incarnation, reporter).await && self.state().wait_for(is_let_go).await.is_ok()
        };
        match tokio::time::timeout(patience, leaving).await {
            Ok(true) => tracing::info!(%incarnation, "let go by the metadata group"),
            Ok(false) | Err(_) => tracing::info!(%incarnation, "not let go, the group will notice the silence"),
        }
    }

    /// Ends the tasks. The group notices by silence, unless [`Agent::leave`] told it.
    pub async fn close(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.inner.tasks.spawn(self.inner.stop.clone().run_until_cancelled_owned(task));
    }

    /// For as long as this process is to count as alive.
    fn spawn_living(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.inner.tasks.spawn(self.inner.leaving.clone().run_until_cancelled_owned(task));
    }

    /// Registers as a new life until it succeeds.
    async fn begin_life(&self) {
        let process_id = uuid::Uuid::new_v4().to_string();
        loop {
            match self.try_register(&process_id).await {
                Ok(incarnation) => {
                    tracing::info!(%incarnation, "registered");
                    self.inner.metadata.peers().set_incarnation(incarnation);
                    self.inner.incarnation.send_replace(incarnation);
                    return;
                }
                Err(error) => tracing::warn!(error, "not registered yet"),
            }
            tokio::time::sleep(REGISTER_PAUSE).await;
        }
    }

    async fn try_register(&self, process_id: &str) -> Result<Incarnation, String> {
        let list = self.inner.copies_on_disk.clone();
        // Not knowing what is on the disk must not look like knowing that nothing is.
        let copies = tokio::task::spawn_blocking(move || list())
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| format!("the copies on disk cannot be listed: {error}"))?;
        let request = v1::RegisterRequest {
            envelope: None,
            node: Some(self.inner.identity.clone().into()),
            copies_on_disk: copies.into_iter().map(|copy| copy.0).collect(),
            feature_level: FEATURE_LEVEL,
            process_id: process_id.to_owned(),
        };
        let reply = self
            .inner
            .metadata
            .register(request, Route::within(REGISTER_TIMEOUT))
            .await
            .map_err(|error| error.to_string())?;
        let state = reply.state.ok_or("the reply has no state")?;
        self.inner.metadata.learn(ClusterState::try_from(state).map_err(|error| error.to_string())?);
        Ok(Incarnation(reply.incarnation))
    }

    /// Registers again whenever the group ends a life.
    async fn renew_lives(self, mut expirations: mpsc::Receiver<Incarnation>) {
        while let Some(ended) = expirations.recv().await {
            if *self.inner.incarnation.borrow() != ended {
                continue;
            }
            tracing::warn!(incarnation = %ended, "taken for dead, registering again");
            self.inner.metadata.peers().set_incarnation(Incarnation(0));
            self.inner.incarnation.send_replace(Incarnation(0));
            self.begin_life().await;
            self.heartbeat_now();
        }
    }

    /// A voter says that `incarnation` is over.
    fn expire(&self, incarnation: Incarnation) {
        // A full queue holds the same news already.
        let _ = self.inner.expired.try_send(incarnation);
    }
}
