//! What this voter has seen of the nodes: soft state, never agreed on, never stored. Every node sends its heartbeats to every voter,
//! so a new leader already knows who lives and how far each copy is.
//!
//! Times are milliseconds since an arbitrary start of this process.

use std::collections::{BTreeMap, BTreeSet};

use cluster_config::cluster_state::{ClusterState, Liveness};
use cluster_config::ids::{CopyId, Incarnation, NodeId};
use cluster_config::memory::NodeMemory;
use cluster_config::seqno::{LogPosition, SeqNo};
use proto::v1;

/// One copy as its node last described it.
#[derive(Clone, Debug, PartialEq)]
pub struct CopySeen {
    /// End of its log.
    pub last: LogPosition,
    /// Applied up to here.
    pub applied: SeqNo,
    /// Committed up to here, as it knows.
    pub global_checkpoint: SeqNo,
    /// Its disk failed; it serves nothing until reopened.
    pub is_poisoned: bool,
    /// It is not open: what its disk holds is damaged or gone. The positions say nothing.
    pub is_corrupt: bool,
    /// When this life of its process first reported it.
    pub first_ms: u64,
    /// The whole report, for `Status`.
    pub report: v1::CopyReport,
}

/// One node in one life of its process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeSeen {
    /// The life this is about.
    pub incarnation: Incarnation,
    /// Last heartbeat, or when this life was first heard of.
    pub heard_ms: u64,
    /// When it last heard an answer of this voter, as it says.
    pub answered_ms: u64,
    /// Its log could not be synced for longer than the node timeout.
    pub is_disk_stalled: bool,
    /// Its copies, open or [`CopySeen::is_corrupt`].
    pub copies: BTreeMap<CopyId, CopySeen>,
    /// Retired copies whose files are gone.
    pub deleted: BTreeSet<CopyId>,
    /// What its memory goes to.
    pub memory: NodeMemory,
    /// Last time a peer reported that its port refuses connections.
    pub suspected_ms: Option<u64>,
    /// This process found its port refusing twice, and heard nothing since.
    pub is_refused: bool,
    /// It said that it stops, which ends this life.
    pub is_stopping: bool,
    /// When the agreed state first showed it dead.
    pub dead_since_ms: Option<u64>,
}

/// A heartbeat, read.
#[derive(Clone, Debug, Default)]
pub struct Heartbeat {
    /// The sender.
    pub node: NodeId,
    /// Its life.
    pub incarnation: Incarnation,
    /// Its copies, open or corrupt.
    pub copies: Vec<v1::CopyReport>,
    /// Retired copies whose files are gone.
    pub deleted: BTreeSet<CopyId>,
    /// Peers whose port refused it.
    pub refused_peers: Vec<NodeId>,
    /// See [`NodeSeen::is_disk_stalled`].
    pub is_disk_stalled: bool,
    /// See [`NodeSeen::is_stopping`].
    pub is_stopping: bool,
    /// How long it has not heard an answer of this voter.
    pub unanswered_ms: u64,
    /// What its memory goes to.
    pub memory: NodeMemory,
}

/// Everything seen.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    nodes: BTreeMap<NodeId, NodeSeen>,
}

/// `index_state` of a copy whose disk failed.
pub const INDEX_STATE_POISONED: &str = "poisoned";
/// `index_state` of a copy that cannot be opened because its files are damaged or gone.
pub const INDEX_STATE_CORRUPT: &str = "corrupt";

impl Observed {
    /// The node in exactly that life, if it was heard of.
    pub fn node(&self, node: NodeId, incarnation: Incarnation) -> Option<&NodeSeen> {
        self.nodes.get(&node).filter(|seen| seen.incarnation == incarnation)
    }

    /// Whether the node, in exactly that life, has not heard an answer of this voter for longer than `after_ms`. What it calls silent
    /// need not be so.
    pub fn is_deaf(&self, node: NodeId, incarnation: Incarnation, now_ms: u64, after_ms: u64) -> bool {
        self.node(node, incarnation).is_some_and(|seen| now_ms.saturating_sub(seen.answered_ms) > after_ms)
    }

    /// Everything, by node.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &NodeSeen)> {
        self.nodes.iter().map(|(node, seen)| (*node, seen))
    }

    /// Takes a heartbeat in. One of a former life changes nothing.
    pub fn hear(&mut self, heartbeat: Heartbeat, now_ms: u64) {
        let seen = self.nodes.entry(heartbeat.node).or_default();
        if heartbeat.incarnation < seen.incarnation {
            return;
        }
        if heartbeat.incarnation > seen.incarnation {
            *seen = NodeSeen { incarnation: heartbeat.incarnation, ..NodeSeen::default() };
        }
        let former = std::mem::take(&mut seen.copies);
        seen.heard_ms = now_ms;
        seen.answered_ms = seen.answered_ms.max(now_ms.saturating_sub(heartbeat.unanswered_ms));
        seen.is_disk_stalled = heartbeat.is_disk_stalled;
        seen.deleted = heartbeat.deleted;
        // Heartbeats under way may arrive after the goodbye.
        seen.is_stopping |= heartbeat.is_stopping;
        seen.memory = heartbeat.memory;
        seen.is_refused = false;
        seen.suspected_ms = None;
        for report in heartbeat.copies {
            let copy = CopyId(report.copy_id);
            let first_ms = former.get(&copy).map_or(now_ms, |before| before.first_ms);
            let entry = CopySeen {
                last: report.last.map(LogPosition::from).unwrap_or_default(),
                applied: SeqNo(report.applied),
                global_checkpoint: SeqNo(report.global_checkpoint),
                is_poisoned: report.index_state == INDEX_STATE_POISONED,
                is_corrupt: report.index_state == INDEX_STATE_CORRUPT,
                first_ms,
                report,
            };
            seen.copies.insert(copy, entry);
        }
        for peer in heartbeat.refused_peers {
            if let Some(seen) = self.nodes.get_mut(&peer) {
                seen.suspected_ms = Some(now_ms);
            }
        }
    }

    /// Takes in what the agreed state says of lives and deaths, so that a node that has just registered counts as heard from.
    pub fn meet(&mut self, state: &ClusterState, now_ms: u64) {
        self.nodes.retain(|node, _| state.nodes.contains_key(node));
        for record in state.nodes.values() {
            let seen = self.nodes.entry(record.id).or_default();
            if seen.incarnation < record.incarnation {
                *seen = NodeSeen {
                    incarnation: record.incarnation,
                    heard_ms: now_ms,
                    answered_ms: now_ms,
                    ..NodeSeen::default()
                };
            }
            if record.liveness == Liveness::Alive {
                seen.dead_since_ms = None;
            } else if seen.dead_since_ms.is_none() {
                seen.dead_since_ms = Some(now_ms);
            }
        }
    }

    /// This process found the node's port refusing connections, twice.
    pub fn confirm_refused(&mut self, node: NodeId, incarnation: Incarnation, probed_from_ms: u64) {
        if let Some(seen) = self.nodes.get_mut(&node)
            && seen.incarnation == incarnation
            && seen.heard_ms <= probed_from_ms
        {
            seen.is_refused = true;
        }
    }

    /// Nodes whose memory is full: they are given no new copies.
    pub fn full_nodes(&self) -> BTreeSet<NodeId> {
        self.nodes.iter().filter(|(_, seen)| seen.memory.is_full()).map(|(node, _)| *node).collect()
    }

    /// Nodes worth a probe: reported refusing, or silent for longer than `silence_ms`.
    pub fn suspects(&self, state: &ClusterState, now_ms: u64, silence_ms: u64) -> Vec<(NodeId, Incarnation)> {
        state
            .nodes
            .values()
            .filter(|record| record.liveness == Liveness::Alive)
            .filter_map(|record| Some((record.id, self.node(record.id, record.incarnation)?)))
            .filter(|(_, seen)| !seen.is_refused)
            .filter(|(_, seen)| seen.suspected_ms.is_some() || now_ms.saturating_sub(seen.heard_ms) > silence_ms)
            .map(|(node, seen)| (node, seen.incarnation))
            .collect()
    }
}
