//! What the rest of the node holds of a copy: writes and reads its position, and feeds it messages and registers.

use std::sync::Arc;
use std::time::Duration;

use cluster_config::ids::{CopyId, Incarnation, Lineage, OperationId, ShardId};
use cluster_config::limits;
use cluster_config::operation::Operation;
use cluster_config::search::CopyPosition;
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};
use cluster_config::shard_group::ShardGroup;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::error::ReplicationError;
use super::messages::{Append, AppendOutcome, AppendRefusal, AppendResult, WriteAck};
use super::storage::StorageError;
use proto::convert::operation::encode_payload;

/// Longest that a hand-off outlives its deadline: metadata was asked just before, and a question asked is waited for (W11).
const HAND_OFF_DECISION: Duration = Duration::from_secs(10);

/// One copy, open. Cheap to clone; all clones are the same copy.
#[derive(Clone, Debug)]
pub struct CopyHandle {
    pub(super) identity: Identity,
    pub(super) mailbox: mpsc::Sender<Message>,
    pub(super) group: Arc<watch::Sender<Option<Arc<ShardGroup>>>>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) closing: CancellationToken,
}

/// What never changes about a copy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) copy: CopyId,
    pub(super) shard: ShardId,
    pub(super) lineage: Lineage,
    pub(super) incarnation: Incarnation,
}

/// What handles ask of the copy's task.
#[derive(Debug)]
pub(super) enum Message {
    Write {
        operation_id: OperationId,
        payload: bytes::Bytes,
        reply: oneshot::Sender<Result<WriteAck, ReplicationError>>,
    },
    Append {
        append: Append,
        reply: oneshot::Sender<AppendResult>,
    },
    Confirm {
        reply: oneshot::Sender<PrimaryTerm>,
    },
    StrongRead {
        reply: oneshot::Sender<Result<SeqNo, ReplicationError>>,
    },
    HandOff {
        to: CopyId,
        patience_ms: u64,
        reply: oneshot::Sender<Result<(), ReplicationError>>,
    },
    PinLog {
        from: SeqNo,
        for_ms: u64,
    },
}

/// What the copy's task tells its handles after each step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status {
    /// The register as last learned, by whatever way: an answer of the metadata group may be ahead of the watch.
    pub(super) group: Option<Arc<ShardGroup>>,
    pub(super) term: PrimaryTerm,
    pub(super) is_primary: bool,
    pub(super) last: LogPosition,
    pub(super) local_checkpoint: SeqNo,
    pub(super) global_checkpoint: SeqNo,
    pub(super) applied: SeqNo,
    /// See [`Core::current_as_of_ms`](super::core::Core::current_as_of_ms).
    pub(super) current_as_of: Option<Instant>,
    pub(super) poisoned: Option<StorageError>,
    pub(super) needing_snapshot: Vec<CopyId>,
    pub(super) needs_snapshot: bool,
    pub(super) pinned: Option<SeqNo>,
    pub(super) recent_bytes: usize,
}

/// An acknowledged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteOutcome {
    /// Where the primary stood when it answered. `generation` is not known here and is 0.
    pub position: CopyPosition,
    /// Position of the write's entry.
    pub seqno: SeqNo,
    /// Copies on which it is durable, the primary included.
    pub copies_acked: u32,
    /// A retry: the operation had been taken before, at `seqno`.
    pub deduplicated: bool,
}

/// Soft report of one copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicationReport {
    /// The copy.
    pub copy: CopyId,
    /// The term it follows.
    pub term: PrimaryTerm,
    /// Whether it orders writes.
    pub is_primary: bool,
    /// End of its log.
    pub last: LogPosition,
    /// Durable up to here.
    pub local_checkpoint: SeqNo,
    /// Committed up to here, as far as it knows.
    pub global_checkpoint: SeqNo,
    /// Applied up to here.
    pub applied: SeqNo,
    /// Why it is of no use until reopened.
    pub poisoned: Option<String>,
    /// On a primary: copies that the log cannot help any more.
    pub needing_snapshot: Vec<CopyId>,
    /// This copy's log cannot be continued from its primary's, as far as the primary was last heard. A copy may be replaced by a snapshot
    /// only if this still holds **after** [`CopyHandle::close`]: only then has it acknowledged nothing since. The replacement keeps the
    /// highest term that this copy adopted.
    pub needs_snapshot: bool,
    /// The log is kept from here on for snapshots on their way; on a primary, to any copy.
    pub pinned: Option<SeqNo>,
    /// Bytes of the log entries it keeps in memory.
    pub recent_bytes: usize,
}

impl CopyHandle {
    /// Writes at the primary: durable on every in-sync copy and visible here when it returns.
    /// Errors: `InvalidArgument`, `TooLarge`, `NotPrimary`, `NotEnoughCopies`, `Overloaded`: nothing was written. `DeadlineExceeded`,
    /// `Unavailable`: the outcome is unknown, and a retry with the same operation id is safe.
    ///
    /// Cancel: dropping the future does not take the write back.
    pub async fn write(
        &self,
        operation_id: OperationId,
        operations: Vec<Operation>,
        deadline: Instant,
    ) -> Result<WriteOutcome, ReplicationError> {
        if operations.is_empty() {
            return Err(ReplicationError::Empty);
        }
        if !self.is_primary() {
            return Err(self.not_primary());
        }
        let payload = encode_payload(operations);
        if payload.len() > limits::ENTRY_BYTES_MAX {
            return Err(ReplicationError::TooLarge { bytes: payload.len() });
        }
        let (reply, answer) = oneshot::channel();
        let ack = self.ask(Message::Write { operation_id, payload, reply }, answer, deadline).await?;
        Ok(WriteOutcome {
            position: self.position(),
            seqno: ack.seqno,
            copies_acked: ack.copies_acked,
            deduplicated: ack.deduplicated,
        })
    }

    /// Takes a primary's entries. Answered when they are durable here.
    pub async fn append(&self, append: Append) -> AppendResult {
        if !append.entries.iter().all(|entry| entry.verify()) {
            tracing::warn!(shard = %self.identity.shard, copy = %self.identity.copy, "entries arrived damaged and are asked for again");
            return self.busy();
        }
        let (reply, answer) = oneshot::channel();
        if self.mailbox.try_send(Message::Append { append, reply }).is_err() {
            return self.busy();
        }
        answer.await.unwrap_or_else(|_| self.busy())
    }

    /// The term this copy follows, as far as it survives a crash; 0 if it follows none any more (closed or poisoned). A strong
    /// read needs every copy of the ack set to answer the primary's own `term`, which is not adopted here: only entries and
    /// registers carry terms.
    pub async fn confirm(&self, term: PrimaryTerm) -> PrimaryTerm {
        let (reply, answer) = oneshot::channel();
        if self.mailbox.send(Message::Confirm { reply }).await.is_err() {
            return PrimaryTerm(0);
        }
        let current = answer.await.unwrap_or_default();
        tracing::trace!(shard = %self.identity.shard, asked = %term, %current, "term confirmed");
        current
    }

    /// Makes a linearizable read of this shard possible: when it returns, every write that was acknowledged before the call is applied
    /// here, and the copy may be read. Many calls share one round of questions to the other copies.
    /// Errors: `NotPrimary`, `Overloaded`, `DeadlineExceeded`, `Unavailable`.
    pub async fn strong_read(&self, deadline: Instant) -> Result<SeqNo, ReplicationError> {
        if !self.is_primary() {
            return Err(self.not_primary());
        }
        let (reply, answer) = oneshot::channel();
        self.ask(Message::StrongRead { reply }, answer, deadline).await
    }

    /// Passes the primary role to another in-sync copy in good order: new writes wait, those under way finish, then metadata is asked.
    /// `Ok`: the role has left this copy, to `to` unless a failover came first. After an error the copy goes on as primary, if it was one,
    /// and takes the writes that waited. A write waits for a second at most, then is `Overloaded`.
    /// Errors: `NotPrimary`, `Conflict` (another hand-off, `to` is not in sync, not in time, refused), `DeadlineExceeded`, `Unavailable`.
    ///
    /// Cancel: dropping the future does not end the hand-off; the deadline does.
    pub async fn hand_off(&self, to: CopyId, deadline: Instant) -> Result<(), ReplicationError> {
        let (reply, answer) = oneshot::channel();
        let patience_ms = deadline.saturating_duration_since(Instant::now()).as_millis() as u64;
        self.ask(Message::HandOff { to, patience_ms, reply }, answer, deadline + HAND_OFF_DECISION).await
    }

    /// Keeps the log from an entry on, here and at the primary, while a snapshot that ends before it is on its way: to this copy, or from
    /// it. To be asked again well before `duration`, at most [`limits::LOG_PIN_MAX`], is over. Lost when the copy closes.
    pub async fn pin_log(&self, from: SeqNo, duration: Duration) -> Result<(), ReplicationError> {
        let pin = Message::PinLog { from, for_ms: duration.as_millis() as u64 };
        self.mailbox.send(pin).await.map_err(|_| ReplicationError::Unavailable)
    }

    async fn ask<T>(
        &self,
        message: Message,
        answer: oneshot::Receiver<Result<T, ReplicationError>>,
        deadline: Instant,
    ) -> Result<T, ReplicationError> {
        self.mailbox.try_send(message).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ReplicationError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => ReplicationError::Unavailable,
        })?;
        let answer = timeout_at(deadline, answer).await.map_err(|_| ReplicationError::DeadlineExceeded)?;
        answer.unwrap_or(Err(ReplicationError::Interrupted))
    }

    /// Where the copy stands. `generation` is not known here and is 0; staleness is `u64::MAX` until a primary was heard. A primary is as
    /// stale as the last word of its quietest in-sync copy, which may follow another one since, and its copies count from there.
    pub fn position(&self) -> CopyPosition {
        let status = self.status.borrow();
        let staleness = |as_of: Instant| as_of.elapsed().as_millis() as u64;
        CopyPosition {
            shard: Some(self.identity.shard),
            copy: self.identity.copy,
            lineage: self.identity.lineage,
            term: status.term,
            applied: status.applied,
            generation: 0,
            staleness_ms: status.current_as_of.map_or(if status.is_primary { 0 } else { u64::MAX }, staleness),
        }
    }

    /// Why the copy is of no use any more: its disk failed, or what it holds contradicts what was agreed.
    pub fn failure(&self) -> Option<StorageError> {
        self.status.borrow().poisoned.clone()
    }

    /// Whether the copy orders writes.
    pub fn is_primary(&self) -> bool {
        self.status.borrow().is_primary
    }

    /// Waits until an entry is applied here, and returns how far the copy has come. Errors: `DeadlineExceeded`, `Unavailable`.
    pub async fn wait_applied(&self, seqno: SeqNo, deadline: Instant) -> Result<SeqNo, ReplicationError> {
        let mut status = self.status.clone();
        let reached = timeout_at(deadline, status.wait_for(|status| status.applied >= seqno)).await;
        match reached {
            Ok(Ok(status)) => Ok(status.applied),
            Ok(Err(_)) => Err(ReplicationError::Unavailable),
            Err(_) => Err(ReplicationError::DeadlineExceeded),
        }
    }

    /// Tells the copy a register that was learned. Older ones are ignored.
    pub fn reconfigure(&self, group: Arc<ShardGroup>) {
        self.group.send_if_modified(|known| {
            let is_newer = known.as_ref().is_none_or(|known| group.version > known.version);
            if is_newer {
                *known = Some(group);
            }
            is_newer
        });
    }

    /// How the copy fares.
    pub fn report(&self) -> ReplicationReport {
        let status = self.status.borrow().clone();
        ReplicationReport {
            copy: self.identity.copy,
            term: status.term,
            is_primary: status.is_primary,
            last: status.last,
            local_checkpoint: status.local_checkpoint,
            global_checkpoint: status.global_checkpoint,
            applied: status.applied,
            poisoned: status.poisoned.map(|error| error.to_string()),
            needing_snapshot: status.needing_snapshot,
            needs_snapshot: status.needs_snapshot,
            pinned: status.pinned,
            recent_bytes: status.recent_bytes,
        }
    }

    /// Stops taking writes, lets those under way finish for a while, lets the disk finish what it began, and ends the task. The
    /// storage is not used any more when it returns.
    pub async fn close(self) {
        self.closing.cancel();
        let mailbox = self.mailbox.clone();
        drop(self);
        mailbox.closed().await;
    }

    fn not_primary(&self) -> ReplicationError {
        let told = self.group.borrow().clone();
        let learned = self.status.borrow().group.clone();
        let newest = told.into_iter().chain(learned).max_by_key(|group| group.version);
        ReplicationError::NotPrimary { register: newest.map(|group| Box::new(ShardGroup::clone(&group))) }
    }

    fn busy(&self) -> AppendResult {
        let status = self.status.borrow();
        AppendResult {
            copy: self.identity.copy,
            incarnation: self.identity.incarnation,
            term: status.term,
            applied: status.applied,
            pinned: None,
            outcome: AppendOutcome::Refused(AppendRefusal::Busy),
        }
    }
}
