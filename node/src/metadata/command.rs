//! What the metadata group can be asked to do. Commands are logged, so variants and fields are only ever appended, and each
//! names the feature level a cluster must have reached before it may be logged.

use std::collections::BTreeMap;
use std::fmt;

use cluster_config::cluster_state::NodeLifecycle;
use cluster_config::collection::{Collection, CollectionSpec};
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, Incarnation, NodeId, ShardId};
use cluster_config::seqno::{LogPosition, PrimaryTerm};
use cluster_config::shard_group::{CopyPhase, CopyRole, PrimaryGrant, ShardGroup};
use serde::{Deserialize, Serialize};

/// Highest feature level this build understands.
pub const FEATURE_LEVEL: u32 = 1;

/// A change to the agreed state. Everything that `apply` must decide is written out here: it has no clock and no dice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// A process announces itself.
    RegisterNode(RegisterNode),
    /// The leader believes that life of the node's process to be over.
    MarkDead {
        /// The node.
        node: NodeId,
        /// The life that ended; a newer one is not touched.
        incarnation: Incarnation,
    },
    /// A collection with an explicit place for every copy of every shard.
    CreateCollection {
        /// As asked for.
        spec: Box<CollectionSpec>,
        /// By shard index: where its copies go, preferred primary first.
        assignment: Vec<Vec<PlannedCopy>>,
    },
    /// Drops a collection; its copies are retired.
    DeleteCollection {
        /// Its name.
        name: String,
    },
    /// A primary asks to change its register.
    Propose(Proposal),
    /// The leader changes registers after a death, a registration, or a new copy's first report. Each part stands alone.
    Reconfigure(Vec<Reconfiguration>),
    /// One more copy of a shard, in phase `New`.
    AddCopy {
        /// The shard.
        shard: ShardId,
        /// Compare-and-set.
        expect_version: u64,
        /// Where to and in which role.
        copy: PlannedCopy,
    },
    /// Takes a copy that is neither primary nor the last in sync out of use for good.
    RetireCopy {
        /// The shard.
        shard: ShardId,
        /// Compare-and-set.
        expect_version: u64,
        /// The copy.
        copy: CopyId,
    },
    /// Puts a new copy in the place of one that is of no use any more, as [`Command::RetireCopy`] and [`Command::AddCopy`] would.
    ReplaceCopy {
        /// The shard.
        shard: ShardId,
        /// Compare-and-set.
        expect_version: u64,
        /// The useless copy.
        copy: CopyId,
    },
    /// Retired copies whose files are gone.
    ForgetRetired(Vec<CopyId>),
    /// An operator has a node give its primaries away, or takes that back.
    SetLifecycle {
        /// The node.
        node: NodeId,
        /// What it is to do.
        lifecycle: NodeLifecycle,
    },
    /// An operator makes a read replica a voter.
    PromoteReplica {
        /// The shard.
        shard: ShardId,
        /// Compare-and-set.
        expect_version: u64,
        /// The read replica.
        copy: CopyId,
    },
    /// An operator accepts the loss of data.
    ForcePromote(ForcePromote),
}

/// Begins a new lineage of a shard with one copy. What only other copies hold is lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForcePromote {
    /// The shard.
    pub shard: ShardId,
    /// Compare-and-set: the register that the operator decided on.
    pub expect_version: u64,
    /// The copy everything is recovered from, and the life of its process that the role is granted to.
    pub grant: PrimaryGrant,
    /// For the audit: when, by the leader's clock.
    pub at_unix_ms: u64,
    /// For the audit: who.
    pub by: String,
    /// For the audit: where the copies' logs ended, as far as the leader has seen.
    pub last_seen: BTreeMap<CopyId, LogPosition>,
    /// For the audit: a member of the in-sync set lived.
    pub overrode_live: bool,
}

/// Who registers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegisterNode {
    /// Operator-chosen id.
    pub node: NodeId,
    /// `host:port` of its gRPC services.
    pub rpc_address: String,
    /// `host:port` of its health and metrics.
    pub http_address: String,
    /// Failure domain.
    pub zone: String,
    /// Share of the data, 100 is one share.
    pub weight: u32,
    /// Whether it holds shards.
    pub is_data: bool,
    /// One life of the process: a retry with the same text gets the same incarnation.
    pub registration: String,
    /// Copies found on its disk; what the registers expect there and is missing was lost.
    pub copies_on_disk: Vec<CopyId>,
    /// Highest feature level of its build.
    pub feature_level: u32,
}

/// A place for a copy that does not exist yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedCopy {
    /// The node.
    pub node: NodeId,
    /// Voter or read replica.
    pub role: CopyRole,
}

/// A primary's request, compare-and-set on version, primary and term (reference 3.5: W8, W9, hand-off).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The shard.
    pub shard: ShardId,
    /// The register the primary acts on.
    pub expect_version: u64,
    /// The primary.
    pub by_copy: CopyId,
    /// Its term.
    pub term: PrimaryTerm,
    /// What it asks.
    pub change: ProposedChange,
}

/// What a primary may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProposedChange {
    /// A caught-up copy enters the in-sync set.
    Add {
        /// The copy.
        copy: CopyId,
        /// The life of its process in which the primary began to track it.
        incarnation: Incarnation,
    },
    /// A failed or lagging copy leaves it.
    Remove(CopyId),
    /// The role passes to an in-sync copy that has everything.
    HandOff(CopyId),
    /// The primary's own disk failed.
    FailSelf,
}

/// One shard's part of [`Command::Reconfigure`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconfiguration {
    /// The shard.
    pub shard: ShardId,
    /// Compare-and-set.
    pub expect_version: u64,
    /// Copies that leave the in-sync set.
    pub drop: Vec<CopyId>,
    /// The copy that becomes primary under the next term, in which life of its process.
    pub grant: Option<PrimaryGrant>,
    /// Copies that move on in their life.
    pub phases: Vec<(CopyId, CopyPhase)>,
}

/// What a command came to. A refusal is a value: every voter refuses alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// A Raft entry without a command.
    Nothing,
    /// Whether the state changed.
    Done {
        /// False where it already was as asked.
        changed: bool,
    },
    /// The process has this incarnation now.
    Registered {
        /// See [`Incarnation`].
        incarnation: Incarnation,
    },
    /// The collection exists as asked.
    Collection(Box<Collection>),
    /// The register after a proposal.
    Register {
        /// Whether this call changed it.
        accepted: bool,
        /// Why not.
        reason: String,
        /// As it is now; none if the shard does not exist.
        register: Option<Box<ShardGroup>>,
    },
    /// Shards of a `Reconfigure` that were left as they were, and why.
    Reconfigured {
        /// Parts that were refused.
        refused: Vec<(ShardId, String)>,
    },
    /// Refused as a whole.
    Refused {
        /// As the caller may act on it.
        kind: ErrorKind,
        /// What is wrong.
        message: String,
    },
}

impl Command {
    /// The feature level a cluster must have before this may be logged.
    pub fn feature_level(&self) -> u32 {
        match self {
            Command::RegisterNode(_)
            | Command::MarkDead { .. }
            | Command::CreateCollection { .. }
            | Command::DeleteCollection { .. }
            | Command::Propose(_)
            | Command::Reconfigure(_)
            | Command::AddCopy { .. }
            | Command::RetireCopy { .. }
            | Command::ReplaceCopy { .. }
            | Command::ForgetRetired(_)
            | Command::SetLifecycle { .. }
            | Command::PromoteReplica { .. }
            | Command::ForcePromote(_) => 1,
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::RegisterNode(node) => write!(f, "register node {}", node.node),
            Command::MarkDead { node, incarnation } => write!(f, "mark node {node} dead in incarnation {incarnation}"),
            Command::CreateCollection { spec, .. } => write!(f, "create collection {}", spec.name),
            Command::DeleteCollection { name } => write!(f, "delete collection {name}"),
            Command::Propose(proposal) => {
                write!(f, "shard {}: copy {} proposes {:?}", proposal.shard, proposal.by_copy, proposal.change)
            }
            Command::Reconfigure(parts) => write!(f, "reconfigure {} shards", parts.len()),
            Command::AddCopy { shard, copy, .. } => write!(f, "shard {shard}: add a copy on node {}", copy.node),
            Command::RetireCopy { shard, copy, .. } => write!(f, "shard {shard}: retire copy {copy}"),
            Command::ReplaceCopy { shard, copy, .. } => write!(f, "shard {shard}: replace copy {copy}"),
            Command::ForgetRetired(copies) => write!(f, "forget {} retired copies", copies.len()),
            Command::SetLifecycle { node, lifecycle } => write!(f, "node {node} becomes {lifecycle:?}"),
            Command::PromoteReplica { shard, copy, .. } => write!(f, "shard {shard}: read replica {copy} votes"),
            Command::ForcePromote(forced) => {
                write!(f, "shard {}: copy {} is promoted by force", forced.shard, forced.grant.copy)
            }
        }
    }
}
