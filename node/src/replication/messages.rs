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
    /// The first entry that the primary can still send. A copy that lacks an earlier one needs a snapshot; one that does not may purge
    /// as far, so that it could serve the same laggards as primary.
    pub log_start: SeqNo,
    /// Since when the primary, when it sent this, did not know for certain that it still was one.
    pub age_ms: u64,
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
    /// The log is wanted from here on: a snapshot that ends before it is being fetched (see [`Event::PinLog`]).
    pub pinned: Option<SeqNo>,
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
    /// The copy lacks entries before `log_start`; only a snapshot helps.
    NeedsSnapshot,
}

/// A primary's question to another copy, for a strong read: which term does it follow?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirm {
    /// The shard.
    pub shard: ShardId,
    /// The copy that is meant.
    pub to_copy: CopyId,
    /// Copies of another lineage refuse.
    pub lineage: Lineage,
    /// Version of the register the primary acts on.
    pub cfg_version: u64,
    /// The primary's term.
    pub term: PrimaryTerm,
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
    /// The role passes to an in-sync copy, under the next term; the primary stays in sync.
    HandOff(CopyId),
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

/// Names a call that waits for an answer: a write, a strong read, a hand-off, or a primary's append. Chosen by the caller of the core.
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
    /// A client wants to read what no acknowledged write is missing from. Answered with [`Action::ServeRead`] or [`Action::RefuseRead`].
    StrongRead {
        /// Chosen by the caller.
        request: RequestId,
    },
    /// Answer to [`Action::SendConfirm`]; may come late or twice.
    ConfirmReplied {
        /// As sent.
        round: u64,
        /// Who answers.
        copy: CopyId,
        /// The term that the copy follows, as far as it survives a crash; 0 if it follows none any more.
        term: PrimaryTerm,
    },
    /// No answer to [`Action::SendConfirm`].
    ConfirmFailed {
        /// As sent.
        round: u64,
        /// Who was asked.
        copy: CopyId,
    },
    /// The role is to pass to another copy, in good order. Answered with [`Action::EndHandOff`].
    HandOff {
        /// Chosen by the caller.
        request: RequestId,
        /// The next primary.
        to: CopyId,
        /// Given up if the copies have not come to rest by then.
        patience_ms: u64,
    },
    /// The log is to be kept from an entry on, here and at the primary, while a snapshot that ends before it is on its way.
    PinLog {
        /// First entry to keep.
        from: SeqNo,
        /// How long, unless asked again.
        for_ms: u64,
    },
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
    /// Let go of the log up to here. The core already holds the entries to be gone; there is no answer.
    Purge(SeqNo),
    /// Ask a copy for its term. Answered with [`Event::ConfirmReplied`] or [`Event::ConfirmFailed`].
    SendConfirm(SendConfirm),
    /// The copy may serve the read now.
    ServeRead {
        /// Which.
        request: RequestId,
        /// Every write acknowledged before the read began stands at or before this position, and it is applied.
        seqno: SeqNo,
    },
    /// The read cannot be served here.
    RefuseRead {
        /// Which.
        request: RequestId,
        /// Why.
        refusal: ReadRefusal,
    },
    /// The hand-off is over.
    EndHandOff {
        /// Which.
        request: RequestId,
        /// Whether this copy passed the role on.
        result: Result<(), HandOffRefusal>,
    },
}

/// One question of a round of strong reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendConfirm {
    /// To be given back.
    pub round: u64,
    /// The copy.
    pub to: CopyId,
    /// Where it lives.
    pub node: NodeId,
    /// The primary's term.
    pub term: PrimaryTerm,
    /// Version of the register the primary acts on.
    pub cfg_version: u64,
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
    /// The first entry that can still be sent.
    pub log_start: SeqNo,
    /// As in [`Append`].
    pub age_ms: u64,
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

/// Why a strong read is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadRefusal {
    /// This copy does not order writes, or lost the role before the read was confirmed.
    NotPrimary,
    /// Too many reads wait already.
    Overloaded,
}

/// Why a copy keeps the role, or lost it otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandOffRefusal {
    /// This copy does not order writes.
    NotPrimary,
    /// The role is being handed off already.
    UnderWay,
    /// The other copy is not in sync, or no longer.
    NotInSync,
    /// The copies did not come to rest in time.
    TimedOut,
    /// Metadata refused.
    Refused(String),
    /// Metadata did not answer. It may still decide.
    Undecided,
    /// The role was lost, or the disk failed, before anything was asked.
    Interrupted,
}
