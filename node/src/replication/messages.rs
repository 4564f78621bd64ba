//! What goes into and comes out of the replication core, and what copies say to each other (reference 3.4).

use std::sync::Arc;

use bytes::Bytes;
use cluster_config::ids::{CopyId, Incarnation, Lineage, NodeId, OperationId, ShardId};
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};
use cluster_config::shard_group::ShardGroup;

use super::storage::{EncodedEntry, LogWrite, StorageError};

/// Entries from a primary to one copy, or none: then it is a heartbeat that carries the checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Append {
    /// The shard.
    pub shard: ShardId,
    /// The copy that is meant.
    pub to_copy: CopyId,
    /// The primary.
    pub from_copy: CopyId,
    /// Copies of another lineage refuse.
    pub lineage: Lineage,
    /// The primary's term.
    pub term: PrimaryTerm,
    /// Version of the register the primary acts on.
    pub cfg_version: u64,
    /// The entry before the first one sent; the receiver must hold it.
    pub prev: LogPosition,
    /// Continue at `prev.seqno + 1`, without gaps.
    pub entries: Vec<EncodedEntry>,
    /// The primary's global checkpoint; may lie beyond the entries carried.
    pub global_checkpoint: SeqNo,
}

/// The answer to an [`Append`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendResult {
    /// Who answers.
    pub copy: CopyId,
    /// Which life of its process.
    pub incarnation: Incarnation,
    /// The term it follows.
    pub term: PrimaryTerm,
    /// Applied up to here.
    pub applied: SeqNo,
    /// What became of the entries.
    pub outcome: AppendOutcome,
}

/// What became of the entries of an [`Append`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppendOutcome {
    /// Durable, and equal to the primary's log up to here.
    Match(SeqNo),
    /// Not taken.
    Refused(AppendRefusal),
}

/// Why a copy did not take entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppendRefusal {
    /// A newer primary exists.
    StaleTerm,
    /// The entry before the first one is not in this log.
    Mismatch {
        /// Last position that may agree: the next attempt begins at or before it.
        hint: LogPosition,
    },
    /// No such copy here.
    UnknownCopy,
    /// The copy belongs to another lineage.
    Lineage,
    /// The copy's disk, or its agreement with the group, is broken. It must be rebuilt.
    Corrupt,
    /// Not now: the disk is full or failed, or the message was damaged on the way.
    Busy,
    /// The log before `prev` is purged; only a snapshot helps.
    NeedsSnapshot,
}

/// A primary's request to change the register, compare-and-set on `expect_version`, `by_copy` and `term`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Tells the answers of one core's proposals apart; not sent.
    pub id: u64,
    /// The shard.
    pub shard: ShardId,
    /// The register the primary acts on.
    pub expect_version: u64,
    /// The primary.
    pub by_copy: CopyId,
    /// Its term.
    pub term: PrimaryTerm,
    /// What it asks.
    pub change: Change,
}

/// What a primary may ask of the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// A caught-up copy enters the in-sync set (W8).
    Add {
        /// The copy.
        copy: CopyId,
        /// The life of its process that the acknowledgements came from.
        incarnation: Incarnation,
    },
    /// A failed or lagging copy leaves it (W9). The version must grow even if the copy is not in the set: that is how an
    /// `Add` of unknown outcome is ruled out.
    Remove(CopyId),
    /// The primary cannot go on.
    FailSelf,
}

/// What became of a proposal, as the metadata group decided it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProposalOutcome {
    /// Whether this proposal made the change.
    pub accepted: bool,
    /// Why not.
    pub reason: String,
    /// The register afterwards.
    pub register: ShardGroup,
}

/// Names a call that waits for an answer: a client's write or a primary's append. Chosen by the caller of the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Everything that can happen to a copy.
#[derive(Clone, Debug)]
pub enum Event {
    /// Time passed; milliseconds from any fixed origin, never going back.
    Tick(u64),
    /// A register was learned, from the watch or from an answer. Older ones are ignored.
    Reconfigured(Arc<ShardGroup>),
    /// A client's write; the payload is an encoded `EntryPayload`.
    Write {
        /// Answered with [`Action::AckWrite`] or [`Action::RefuseWrite`].
        request: RequestId,
        /// Makes a retry recognisable; 0 for the shard's own entries.
        operation_id: OperationId,
        /// Opaque here.
        payload: Bytes,
    },
    /// Answer to [`Action::FindOperation`].
    OperationLookedUp {
        /// As asked.
        operation_id: OperationId,
        /// As asked: an answer to an earlier term is void.
        term: PrimaryTerm,
        /// Where it was applied.
        seqno: Option<SeqNo>,
    },
    /// A primary's message, its entries checked against their CRC.
    AppendReceived {
        /// Answered with [`Action::ReplyAppend`].
        request: RequestId,
        /// The message.
        append: Append,
    },
    /// Answer to [`Action::SendAppend`]; may come late or twice.
    AppendReplied {
        /// As sent.
        append_id: u64,
        /// The answer.
        result: AppendResult,
    },
    /// No answer to [`Action::SendAppend`], and none will be waited for.
    AppendFailed {
        /// To whom it went.
        to: CopyId,
        /// As sent.
        append_id: u64,
    },
    /// [`Action::Persist`] of this id and all before it are durable.
    Persisted(u64),
    /// Entries up to here are applied.
    Applied(SeqNo),
    /// Any storage call failed. The copy is of no use until reopened.
    StorageFailed(StorageError),
    /// Answer to [`Action::Propose`]. `None`: unknown, the change may have been made or may still be made.
    ProposalAnswered {
        /// The proposal's.
        id: u64,
        /// The decision.
        outcome: Option<ProposalOutcome>,
    },
    /// Answer to [`Action::ReadRegister`]; `None` if the metadata group did not answer.
    RegisterRead(Option<Arc<ShardGroup>>),
}

/// What the core wants done. Order matters only where an id says so.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make durable, in the order of the ids; several may share an fsync. Answered with [`Event::Persisted`].
    Persist {
        /// Grows by one.
        write_id: u64,
        /// The change of the log.
        write: LogWrite,
    },
    /// Send entries to a copy. Answered with [`Event::AppendReplied`] or [`Event::AppendFailed`].
    SendAppend(SendAppend),
    /// Answer a primary.
    ReplyAppend {
        /// Whom.
        request: RequestId,
        /// The answer.
        result: AppendResult,
    },
    /// Apply committed entries up to here, in order. Answered with [`Event::Applied`], in steps if convenient.
    ApplyUpTo(SeqNo),
    /// Look into the window of applied operations. Answered with [`Event::OperationLookedUp`].
    FindOperation {
        /// Which.
        operation_id: OperationId,
        /// To be given back.
        term: PrimaryTerm,
    },
    /// The write is durable on every in-sync copy, and applied here.
    AckWrite {
        /// Which.
        request: RequestId,
        /// The answer.
        ack: WriteAck,
    },
    /// The write is not acknowledged.
    RefuseWrite {
        /// Which.
        request: RequestId,
        /// Why.
        refusal: WriteRefusal,
    },
    /// Ask the metadata group. Submitted at most once. Answered with [`Event::ProposalAnswered`].
    Propose(Proposal),
    /// Read the register through the metadata leader (W11). Answered with [`Event::RegisterRead`].
    ReadRegister,
}

/// One message for a copy, without its entries: whoever sends it takes them from memory or disk, from `prev.seqno + 1` to at most
/// `up_to`, as many as one message may carry, provided the core is still primary in `term`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendAppend {
    /// To be given back.
    pub append_id: u64,
    /// The copy.
    pub to: CopyId,
    /// Where it lives.
    pub node: NodeId,
    /// The primary's term.
    pub term: PrimaryTerm,
    /// Version of the register the primary acts on.
    pub cfg_version: u64,
    /// The entry before the first one to send.
    pub prev: LogPosition,
    /// The last one that may be sent; equal to `prev.seqno` if there is none.
    pub up_to: SeqNo,
    /// The global checkpoint.
    pub global_checkpoint: SeqNo,
}

/// An acknowledged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteAck {
    /// Its position.
    pub seqno: SeqNo,
    /// Copies of the ack set on which it is durable, this one included.
    pub copies_acked: u32,
    /// It is a retry; `seqno` is where the first attempt went.
    pub deduplicated: bool,
}

/// Why a write is not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteRefusal {
    /// This copy does not order writes. The write was not taken.
    NotPrimary,
    /// W10. The write was not taken.
    NotEnoughCopies {
        /// In-sync copies as last learned.
        in_sync: usize,
        /// Fewest with which writes are taken.
        min_in_sync: u32,
    },
    /// Too many writes, or too many bytes, wait already. The write was not taken.
    Overloaded,
    /// The role was lost, or the disk failed, while the write was under way: its outcome is unknown.
    Interrupted,
}
