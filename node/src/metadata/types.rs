//! openraft's types, as this cluster fills them in.

use cluster_config::ids::NodeId;
use openraft::BasicNode;

use super::command::{Command, Response};
use super::state_machine::StateMachine;

openraft::declare_raft_types!(
    /// The metadata group: commands in, responses out, nodes by their cluster-wide id.
    pub TypeConfig:
        D = Command,
        R = Response,
        NodeId = NodeId,
        Node = BasicNode,
);

/// The running group member.
pub type Raft = openraft::Raft<TypeConfig, StateMachine>;
/// An encoded snapshot, checksum included.
pub type SnapshotData = bytes::Bytes;

pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;
