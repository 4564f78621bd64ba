//! Follows the cluster state: one watch stream from any node, another node when it breaks.
//!
//! Promises: versions only grow; a register learned from an error reply is kept until the watch has caught up with it. Does not
//! know what the state is used for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use cluster_config::cluster_state::{ClusterState, Liveness};
use cluster_config::ids::NodeId;
use cluster_config::shard_group::ShardGroup;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::client::{NodeClient, Peer, WatchUpdate};

/// Pause after all known peers refused, doubled up to [`RECONNECT_PAUSE_MAX`].
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// A new coordinator must not take long to notice a cluster that has just come up.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_millis(1000);
/// A node that has not shown a state by then is left for another one.
const FIRST_UPDATE_TIMEOUT: Duration = Duration::from_secs(1);
/// A requested refresh changes the peer at most this often.
const REFRESH_INTERVAL: Duration = Duration::from_millis(250);

/// The last state known, shared by everyone who plans.
///
/// Invariant: `state().version` never falls; no shard's register version ever falls.
pub struct ClusterView {
    state: ArcSwap<ClusterState>,
    leader: Mutex<Option<NodeId>>,
    /// Serialises writers of `state`.
    install: Mutex<()>,
    changed: watch::Sender<u64>,
    refresh: Notify,
}

impl Default for ClusterView {
    fn default() -> Self {
        Self {
            state: ArcSwap::from_pointee(ClusterState::default()),
            leader: Mutex::new(None),
            install: Mutex::new(()),
            changed: watch::Sender::new(0),
            refresh: Notify::new(),
        }
    }
}

impl ClusterView {
    /// The latest state; version 0 while nothing is known.
    pub fn state(&self) -> Arc<ClusterState> {
        self.state.load_full()
    }

    /// Whether a state has been received.
    pub fn is_known(&self) -> bool {
        self.state.load().version > 0
    }

    /// The metadata leader, as last heard.
    pub fn leader(&self) -> Option<NodeId> {
        *self.leader.lock()
    }

    /// Takes over a newer state. Registers learned meanwhile are kept where they are newer.
    pub fn install(&self, mut next: ClusterState) {
        let _guard = self.install.lock();
        let current = self.state.load();
        if next.version < current.version {
            return;
        }
        for (shard, known) in &current.shards {
            if let Some(register) = next.shards.get_mut(shard)
                && register.version < known.version
            {
                *register = known.clone();
            }
        }
        self.state.store(Arc::new(next));
        self.announce();
    }

    /// Takes over one shard's register that came with an error reply, so that a retry need not wait for the watch.
    pub fn learn(&self, register: &ShardGroup) {
        let _guard = self.install.lock();
        let current = self.state.load();
        let is_newer = current.shards.get(&register.shard).is_some_and(|known| known.version < register.version);
        if !is_newer || register.check().is_err() {
            return;
        }
        let mut next = ClusterState::clone(&current);
        next.shards.insert(register.shard, register.clone());
        self.state.store(Arc::new(next));
        self.announce();
    }

    fn announce(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Asks for a fresh state, from another node: the one followed may be cut off from the rest.
    pub fn request_refresh(&self) {
        self.refresh.notify_one();
    }

    /// Waits until `ready` holds for the state, or the deadline. Gives the state that satisfied it.
    pub async fn wait_for(
        &self,
        deadline: Instant,
        mut ready: impl FnMut(&ClusterState) -> bool,
    ) -> Option<Arc<ClusterState>> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let state = self.state();
            if ready(&state) {
                return Some(state);
            }
            match tokio::time::timeout_at(deadline.into(), changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return None,
            }
        }
    }

    /// Moves with every change from now on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Waits for any change, or the deadline.
    pub async fn wait_change(&self, deadline: Instant) {
        let mut changed = self.changed.subscribe();
        let _ = tokio::time::timeout_at(deadline.into(), changed.changed()).await;
    }

    /// Follows the state until cancelled. `seeds` are `host:port` of any nodes.
    pub async fn run(&self, client: Arc<dyn NodeClient>, seeds: Vec<String>, cancel: CancellationToken) {
        let mut pause = RECONNECT_PAUSE;
        let mut attempt = 0;
        while !cancel.is_cancelled() {
            let peers = self.peers(&seeds);
            let peer = peers[attempt % peers.len()].clone();
            attempt += 1;
            let received = tokio::select! {
                () = cancel.cancelled() => return,
                received = self.follow(client.as_ref(), peer) => received,
            };
            if received {
                pause = RECONNECT_PAUSE;
                continue;
            }
            if attempt % peers.len() == 0 {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(RECONNECT_PAUSE_MAX);
            }
        }
    }

    /// Nodes believed alive first, then the seeds, then the rest: at least one.
    fn peers(&self, seeds: &[String]) -> Vec<Peer> {
        let state = self.state();
        let (alive, dead): (Vec<_>, Vec<_>) = state.nodes.values().partition(|node| node.liveness == Liveness::Alive);
        let mut peers: Vec<Peer> = alive.iter().map(|node| Peer::Node(node.id)).collect();
        peers.extend(seeds.iter().cloned().map(Peer::Seed));
        peers.extend(dead.iter().map(|node| Peer::Node(node.id)));
        if peers.is_empty() {
            peers.push(Peer::Seed(String::new()));
        }
        peers
    }

    /// Takes updates from one peer until it breaks or a refresh is asked for. Whether any came.
    async fn follow(&self, client: &dyn NodeClient, peer: Peer) -> bool {
        let began = Instant::now();
        let mut updates = client.watch(peer.clone(), 0);
        let mut received = false;
        loop {
            let update = tokio::select! {
                update = updates.next() => update,
                () = tokio::time::sleep_until((began + FIRST_UPDATE_TIMEOUT).into()), if !received => return false,
                () = self.refresh.notified(), if received => {
                    tokio::time::sleep_until((began + REFRESH_INTERVAL).into()).await;
                    return true;
                }
            };
            match update {
                Some(Ok(WatchUpdate { state, leader })) => {
                    if !received {
                        tracing::info!(?peer, version = state.version, "following the cluster state");
                    }
                    received = true;
                    client.learn(&state);
                    *self.leader.lock() = leader;
                    self.install(state);
                }
                Some(Err(error)) => {
                    tracing::debug!(?peer, %error, "cluster state watch ended");
                    return received;
                }
                None => return received,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cluster_config::ids::{CollectionId, ShardId};

    use super::*;

    fn state(version: u64, register_version: u64) -> ClusterState {
        let shard = ShardId { collection: CollectionId(1), index: 0 };
        let mut state = ClusterState { version, ..ClusterState::default() };
        state.shards.insert(shard, register(shard, register_version));
        state
    }

    fn register(shard: ShardId, version: u64) -> ShardGroup {
        ShardGroup {
            shard,
            version,
            primary_term: Default::default(),
            primary: None,
            in_sync: Default::default(),
            copies: Default::default(),
            lineage: Default::default(),
            min_in_sync: 1,
        }
    }

    #[test]
    fn neither_versions_nor_registers_fall() {
        let view = ClusterView::default();
        let shard = ShardId { collection: CollectionId(1), index: 0 };
        view.install(state(5, 3));
        view.install(state(4, 9));
        assert_eq!((view.state().version, view.state().shards[&shard].version), (5, 3));
        view.learn(&register(shard, 7));
        view.learn(&register(shard, 6));
        assert_eq!(view.state().shards[&shard].version, 7);
        view.install(state(6, 5));
        assert_eq!((view.state().version, view.state().shards[&shard].version), (6, 7));
        view.install(state(7, 8));
        assert_eq!(view.state().shards[&shard].version, 8);
    }

    #[tokio::test]
    async fn waiting_ends_at_the_change_or_the_deadline() {
        let view = Arc::new(ClusterView::default());
        assert!(view.wait_for(Instant::now(), |state| state.version > 0).await.is_none());
        let waiter = {
            let view = Arc::clone(&view);
            tokio::spawn(async move {
                view.wait_for(Instant::now() + Duration::from_secs(60), |state| state.version > 1).await
            })
        };
        view.install(state(1, 1));
        view.install(state(2, 1));
        assert_eq!(waiter.await.expect("joins").expect("before the deadline").version, 2);
    }
}
