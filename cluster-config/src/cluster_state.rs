//! The whole picture that the metadata group agrees on, and its version.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::audit::AuditRecord;
use crate::collection::Collection;
use crate::ids::{CollectionId, CopyId, Incarnation, NodeId, ShardId};
use crate::shard_group::ShardGroup;

/// Whether the metadata leader believes a node's process to be alive. Decides when to fail over, never whether it is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// Registered and heard from.
    Alive,
    /// Not heard from for the node timeout, or its port refuses connections.
    Dead,
}

/// Whether a node is to hold primaries and new copies. Set by operators, kept over restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeLifecycle {
    /// Takes part in everything.
    Active,
    /// Hands its primaries over, is granted none while another copy can be primary, and takes no new copies.
    Draining,
}

/// A node as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Operator-chosen id.
    pub id: NodeId,
    /// `host:port` of its gRPC services.
    pub rpc_address: String,
    /// `host:port` of its health and metrics.
    pub http_address: String,
    /// Failure domain.
    pub zone: String,
    /// Share of the data relative to other nodes, 100 is one share.
    pub weight: u32,
    /// Whether it holds shards.
    pub is_data: bool,
    /// Raised at each registration of the process.
    pub incarnation: Incarnation,
    /// As believed by the metadata leader.
    pub liveness: Liveness,
    /// Whether it is to hold primaries and new copies.
    pub lifecycle: NodeLifecycle,
}

/// Everything the metadata group agrees on. Ordered maps only: the same commands give the same bytes everywhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterState {
    /// From the configuration; every message between nodes carries it.
    pub cluster_id: String,
    /// Raised by every command that changed something.
    pub version: u64,
    /// Commands of a higher level are refused until every node supports it.
    pub feature_level: u32,
    /// Known nodes.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Collections by id.
    pub collections: BTreeMap<CollectionId, Collection>,
    /// Registers of all shards.
    pub shards: BTreeMap<ShardId, ShardGroup>,
    /// Copies whose files may be deleted, by node; absence from the state is never a reason to delete.
    pub retired: BTreeMap<CopyId, RetiredCopy>,
    /// Next collection id to allot.
    pub next_collection: u64,
    /// Next copy id to allot.
    pub next_copy: u64,
    /// Forced recoveries, numbered in their order; the last [`crate::limits::AUDIT_RECORDS_MAX`].
    pub audit: BTreeMap<u64, AuditRecord>,
}

/// A copy that metadata took out of use for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredCopy {
    /// Its shard.
    pub shard: ShardId,
    /// Where its files are.
    pub node: NodeId,
}

impl Default for ClusterState {
    /// An empty cluster. Ids are allotted from 1: 0 is "none" on the wire.
    fn default() -> Self {
        Self {
            cluster_id: String::new(),
            version: 0,
            feature_level: 0,
            nodes: BTreeMap::new(),
            collections: BTreeMap::new(),
            shards: BTreeMap::new(),
            retired: BTreeMap::new(),
            next_collection: 1,
            next_copy: 1,
            audit: BTreeMap::new(),
        }
    }
}

impl ClusterState {
    /// The collection of that name.
    pub fn collection_named(&self, name: &str) -> Option<&Collection> {
        self.collections.values().find(|collection| collection.spec.name == name)
    }

    /// Registers of one collection, in shard order.
    pub fn shards_of(&self, collection: CollectionId) -> impl Iterator<Item = &ShardGroup> {
        let first = ShardId { collection, index: 0 };
        let last = ShardId { collection, index: u32::MAX };
        self.shards.range(first..=last).map(|(_, group)| group)
    }

    /// Whether the node is alive in exactly this incarnation.
    pub fn is_alive_in(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.nodes
            .get(&node)
            .is_some_and(|record| record.liveness == Liveness::Alive && record.incarnation == incarnation)
    }

    /// Whether the node is to give its primaries away.
    pub fn is_draining(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|record| record.lifecycle == NodeLifecycle::Draining)
    }

    /// Data nodes that take new copies now.
    pub fn placeable(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes
            .values()
            .filter(|node| node.is_data && node.liveness == Liveness::Alive && node.lifecycle == NodeLifecycle::Active)
    }

    /// Checks the invariants over all registers; the text names the broken one.
    pub fn check(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for group in self.shards.values() {
            group.check()?;
            if !self.collections.contains_key(&group.shard.collection) {
                return Err(format!("shard {} belongs to no collection", group.shard));
            }
            for copy in group.copies.keys() {
                if !seen.insert(*copy) {
                    return Err(format!("copy {copy} stands in two registers"));
                }
                if copy.0 >= self.next_copy {
                    return Err(format!("copy {copy} was never allotted"));
                }
                if self.retired.contains_key(copy) {
                    return Err(format!("copy {copy} is both in use and retired"));
                }
            }
        }
        Ok(())
    }
}
