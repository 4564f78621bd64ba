//! What this coordinator has learned of the nodes and shards by calling them: the one owner of ranks, health, latencies and the
//! hedge budget.
//!
//! [`Board`] is the pure part, time passed in; [`NodeStats`] shares it. All of it orders choices and times second requests; none of
//! it decides whether a shard can be read.
//!
//! Invariant: a node's `outstanding` is the number of its calls begun and not yet ended by one of [`Board::answered`],
//! [`Board::refused`], [`Board::beaten`] and [`Board::abandoned`].

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use cluster_config::cluster_state::ClusterState;
use cluster_config::ids::{NodeId, ShardId};
use parking_lot::{Mutex, MutexGuard};

use super::health::{Health, Standing};
use super::hedge::{HedgeBudget, Latencies};
use super::load::{Load, Sample, rank};

/// What a call that failed says about its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It speaks against the node: no connection, no answer, an error of its own.
    Failure,
    /// The node has too much to do.
    Overloaded,
    /// Its copy was behind what the reader had seen, after so long: as good as slow.
    Lagging(Duration),
    /// It says nothing about the node: the request, the role of a copy, or the caller's token is the reason.
    Neutral,
}

/// One node as seen from here.
#[derive(Clone, Debug)]
struct Node {
    load: Option<Load>,
    /// When `load` last changed.
    learned_at: Instant,
    outstanding: u32,
    health: Health,
    /// When anything was heard of it last.
    heard_at: Option<Instant>,
}

impl Node {
    fn new(now: Instant) -> Self {
        Self { load: None, learned_at: now, outstanding: 0, health: Health::new(now), heard_at: None }
    }

    fn learn_at_least(&mut self, now: Instant, waited: Duration) {
        let at_least = Sample { response: waited, queued_us: 0, service_us: 0 };
        self.load.get_or_insert_with(|| Load::first(at_least)).observe_at_least(waited);
        self.learned_at = now;
    }
}

/// Counts since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sub-requests sent, hedges included.
    pub requests: u64,
    /// Hedges sent.
    pub hedges_sent: u64,
    /// Hedges that answered first.
    pub hedges_won: u64,
    /// Hedges wanted and not in the budget.
    pub hedges_refused: u64,
    /// Ejections of nodes.
    pub ejections: u64,
}

/// Everything learned. Bounded by the nodes and shards of the cluster state, see [`Board::retain`].
#[derive(Debug)]
pub struct Board {
    start: Instant,
    nodes: HashMap<NodeId, Node>,
    latencies: HashMap<ShardId, Latencies>,
    budget: HedgeBudget,
    counters: Counters,
    retained_version: u64,
}

impl Board {
    /// Nothing known.
    pub fn new(now: Instant) -> Self {
        Self {
            start: now,
            nodes: HashMap::new(),
            latencies: HashMap::new(),
            budget: HedgeBudget::new(now),
            counters: Counters::default(),
            retained_version: 0,
        }
    }

    fn node(&mut self, node: NodeId) -> &mut Node {
        let start = self.start;
        self.nodes.entry(node).or_insert_with(|| Node::new(start))
    }

    /// A sub-request is being sent to a node. True if it is the node's trial.
    pub fn begin(&mut self, node: NodeId, now: Instant, is_hedge: bool) -> bool {
        self.counters.requests += 1;
        if is_hedge {
            self.counters.hedges_sent += 1;
        } else {
            self.budget.earn();
        }
        let node = self.node(node);
        node.outstanding += 1;
        node.health.begin(now)
    }

    /// A sub-request was answered well.
    pub fn answered(&mut self, node: NodeId, now: Instant, sample: Sample) {
        self.budget.note_reply(now, false);
        let node = self.node(node);
        node.outstanding = node.outstanding.saturating_sub(1);
        let is_back = node.health.succeed(now);
        match &mut node.load {
            Some(load) if !is_back => load.observe(sample),
            // How it was while it was ill says nothing about now.
            load => *load = Some(Load::first(sample)),
        }
        (node.learned_at, node.heard_at) = (now, Some(now));
    }

    /// A sub-request ended with an error. `was_heard`: the node itself said so.
    pub fn refused(&mut self, node: NodeId, now: Instant, refusal: Refusal, was_heard: bool, is_trial: bool) {
        self.budget.note_reply(now, refusal == Refusal::Overloaded);
        let known = self.node(node);
        known.outstanding = known.outstanding.saturating_sub(1);
        if was_heard {
            known.heard_at = Some(now);
        }
        match refusal {
            Refusal::Failure => self.note_failure(node, now, is_trial),
            Refusal::Overloaded => known.health.rest(now),
            Refusal::Lagging(waited) => known.learn_at_least(now, waited),
            Refusal::Neutral => {}
        }
        if is_trial && refusal != Refusal::Failure {
            self.node(node).health.abandon_trial();
        }
    }

    /// A sub-request that another copy answered first; it is cancelled after `waited`.
    pub fn beaten(&mut self, node: NodeId, now: Instant, waited: Duration, is_trial: bool) {
        let node = self.node(node);
        node.outstanding = node.outstanding.saturating_sub(1);
        node.learn_at_least(now, waited);
        if is_trial {
            node.health.abandon_trial();
        }
    }

    /// A sub-request that nobody waits for any more.
    pub fn abandoned(&mut self, node: NodeId, is_trial: bool) {
        let node = self.node(node);
        node.outstanding = node.outstanding.saturating_sub(1);
        if is_trial {
            node.health.abandon_trial();
        }
    }

    /// A failure of a node that ends no sub-request: silence, or a failed call of another kind.
    pub fn note_failure(&mut self, node: NodeId, now: Instant, is_trial: bool) {
        if self.node(node).health.fail(now, is_trial) {
            self.counters.ejections += 1;
            tracing::info!(%node, "node is ejected: asked last for a while");
        }
    }

    /// A good answer to a call of another kind.
    pub fn note_success(&mut self, node: NodeId, now: Instant) {
        let node = self.node(node);
        node.heard_at = Some(now);
        node.health.succeed(now);
    }

    /// When anything was heard of a node last.
    pub fn heard_at(&self, node: NodeId) -> Option<Instant> {
        self.nodes.get(&node).and_then(|node| node.heard_at)
    }

    /// Where a node stands.
    pub fn standing(&self, node: NodeId, now: Instant) -> Standing {
        self.nodes.get(&node).map_or(Standing::Good, |node| node.health.standing(now))
    }

    /// The rank of a node if `planned` more sub-requests were sent to it.
    pub fn rank(&self, node: NodeId, planned: u32) -> f64 {
        match self.nodes.get(&node) {
            Some(node) => rank(node.load.as_ref(), node.outstanding.saturating_add(planned)),
            None => rank(None, planned),
        }
    }

    /// `loser` was not chosen: what is known of it moves toward `winner`, so that it is tried again some day.
    pub fn drift(&mut self, loser: NodeId, winner: NodeId, now: Instant) {
        let Some(target) = self.nodes.get(&winner).and_then(|node| node.load) else { return };
        if let Some(node) = self.nodes.get_mut(&loser)
            && let Some(load) = &mut node.load
        {
            load.drift(&target, now.saturating_duration_since(node.learned_at));
            node.learned_at = now;
        }
    }

    /// A shard was answered after `took`, whoever answered.
    pub fn note_latency(&mut self, shard: ShardId, now: Instant, took: Duration) {
        self.latencies.entry(shard).or_default().note(now, took);
    }

    /// How long to wait for a shard before it is hedged; `None` while too little is known.
    pub fn hedge_delay(&self, shard: ShardId, now: Instant) -> Option<Duration> {
        self.latencies.get(&shard).and_then(|latencies| latencies.hedge_delay(now))
    }

    /// Takes one hedge from the budget, if there is one.
    pub fn spend_hedge(&mut self, now: Instant) -> bool {
        let may = self.budget.spend(now);
        self.counters.hedges_refused += u64::from(!may);
        may
    }

    /// A hedge answered first.
    pub fn note_hedge_won(&mut self) {
        self.counters.hedges_won += 1;
    }

    /// Counts since start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Forgets nodes and shards that are not in the state any more. Cheap while the state is the same.
    pub fn retain(&mut self, state: &ClusterState) {
        if self.retained_version == state.version {
            return;
        }
        self.retained_version = state.version;
        self.nodes.retain(|node, known| known.outstanding > 0 || state.nodes.contains_key(node));
        self.latencies.retain(|shard, _| state.shards.contains_key(shard));
    }

    /// Each known node's rank and whether it is ejected.
    pub fn ranks(&self, now: Instant) -> BTreeMap<NodeId, (f64, bool)> {
        let ranked = self.nodes.iter().map(|(id, node)| {
            let is_ejected = node.health.standing(now) == Standing::Ejected;
            (*id, (rank(node.load.as_ref(), node.outstanding), is_ejected))
        });
        ranked.collect()
    }

    /// Sub-requests to a node without an end so far.
    pub fn outstanding(&self, node: NodeId) -> u32 {
        self.nodes.get(&node).map_or(0, |node| node.outstanding)
    }
}

/// The board of this process, shared by reads and writes. Held for single steps, never across an await.
#[derive(Debug)]
pub struct NodeStats {
    board: Mutex<Board>,
}

impl Default for NodeStats {
    fn default() -> Self {
        Self { board: Mutex::new(Board::new(Instant::now())) }
    }
}

impl NodeStats {
    /// The board, for one step.
    pub fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock()
    }

    /// Notes a broken or refused connection, or a node that kept silent.
    pub fn note_failure(&self, node: NodeId) {
        self.lock().note_failure(node, Instant::now(), false);
    }

    /// Notes a good answer.
    pub fn note_success(&self, node: NodeId) {
        self.lock().note_success(node, Instant::now());
    }

    /// Nodes that are to be tried last.
    pub fn ejected(&self) -> Vec<NodeId> {
        let ranks = self.lock().ranks(Instant::now());
        ranks.into_iter().filter(|(_, (_, is_ejected))| *is_ejected).map(|(node, _)| node).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::health::FAILURES_TO_EJECT;

    const NODE: NodeId = NodeId(1);

    fn sample(response_ms: u64) -> Sample {
        Sample { response: Duration::from_millis(response_ms), queued_us: 0, service_us: 100 }
    }

    #[test]
    fn every_end_of_a_call_ends_it() {
        let now = Instant::now();
        let mut board = Board::new(now);
        (0..5).for_each(|_| assert!(!board.begin(NODE, now, false)));
        board.answered(NODE, now, sample(1));
        board.refused(NODE, now, Refusal::Overloaded, true, false);
        board.refused(NODE, now, Refusal::Neutral, true, false);
        board.beaten(NODE, now, Duration::from_millis(9), false);
        board.abandoned(NODE, false);
        assert_eq!(board.outstanding(NODE), 0);
        assert_eq!(board.standing(NODE, now), Standing::Resting);
    }

    #[test]
    fn a_trial_without_a_verdict_leaves_the_node_due() {
        let start = Instant::now();
        let mut board = Board::new(start);
        (0..FAILURES_TO_EJECT).for_each(|_| board.note_failure(NODE, start, false));
        assert_eq!((board.standing(NODE, start), board.counters().ejections), (Standing::Ejected, 1));
        let due = start + crate::cluster::health::EJECTION;
        type End = fn(&mut Board, Instant);
        let ends: [End; 3] = [
            |board, _| board.abandoned(NODE, true),
            |board, now| board.beaten(NODE, now, Duration::ZERO, true),
            |board, now| board.refused(NODE, now, Refusal::Neutral, true, true),
        ];
        for end in ends {
            assert!(board.begin(NODE, due, false));
            assert_eq!(board.standing(NODE, due), Standing::Ejected, "one at a time");
            end(&mut board, due);
            assert_eq!(board.standing(NODE, due), Standing::Due);
        }
    }

    #[test]
    fn what_left_the_state_is_forgotten() {
        let now = Instant::now();
        let mut board = Board::new(now);
        let (mut state, collection) = crate::cluster::twin::test_state(3, 2, 2);
        for node in 1..=4 {
            board.begin(NodeId(node), now, false);
            board.answered(NodeId(node), now, sample(1));
        }
        for index in 0..4 {
            board.note_latency(ShardId { collection, index }, now, Duration::ZERO);
        }
        board.retain(&state);
        assert_eq!((board.nodes.len(), board.latencies.len()), (3, 2));
        state.nodes.remove(&NodeId(1));
        board.retain(&state);
        assert_eq!(board.nodes.len(), 3, "the same version is not looked at again");
        state.version += 1;
        board.retain(&state);
        assert_eq!(board.nodes.len(), 2);
    }
}
