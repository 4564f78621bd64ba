//! The replication protocol of one copy, without async, clock, randomness or I/O: `step(event)` returns what to do.
//!
//! The core keeps the rules W1 to W11 of the reference (section 3.5); whoever drives it (the task in `copy`, or the simulation)
//! only carries out actions and reports what came of them. The same events give the same actions, always. The core never reads
//! entries: it knows where each term of its log begins, which is all that the rules ask for.

#[cfg(test)]
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use cluster_config::ids::{CopyId, Incarnation, Lineage, OperationId, ShardId};
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};
use cluster_config::shard_group::{PrimaryGrant, ShardGroup};

use super::follower::{Diverged, Follower};
use super::log_view::LogView;
use super::messages::{
    Action, Append, AppendOutcome, AppendRefusal, AppendResult, Change, Event, Proposal, ProposalOutcome, RequestId,
    WriteRefusal,
};
use super::mutant::{Mutant, breaks};
use super::primary::Primary;
use super::proposer::Proposer;
use super::storage::{LogWrite, StorageError, StoredState};

/// How long the core waits for what. Timeouts decide when something is tried, never whether it is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A peer hears from its primary at least this often.
    pub heartbeat_ms: u64,
    /// A copy that is silent or behind for longer should leave the in-sync set (W9).
    pub ack_timeout_ms: u64,
    /// Pause after a failed message.
    pub retry_ms: u64,
    /// Pause after an answered proposal.
    pub proposal_pause_ms: u64,
}

impl Default for Timing {
    /// The reference's figures (3.5, 6.4).
    fn default() -> Self {
        Self { heartbeat_ms: 300, ack_timeout_ms: 2000, retry_ms: 100, proposal_pause_ms: 500 }
    }
}

/// What a copy starts from.
#[derive(Clone, Debug)]
pub struct CoreOptions {
    /// This life of the process.
    pub incarnation: Incarnation,
    /// Timeouts.
    pub timing: Timing,
    /// What the disk holds.
    pub stored: StoredState,
    /// Where each term of the log after `purged` begins, ascending.
    pub term_starts: Vec<(SeqNo, PrimaryTerm)>,
    /// Client operations after `applied`, ascending.
    pub unapplied: Vec<(SeqNo, OperationId)>,
    /// Payload of the entry that opens a term.
    pub barrier_payload: Bytes,
}

/// One copy.
#[derive(Clone, Debug)]
pub struct Core {
    local: Local,
    role: Role,
    barrier_payload: Bytes,
}

/// What a copy is at the moment.
#[derive(Clone, Debug)]
enum Role {
    /// Takes the stream of whoever is primary. Every copy starts so (W1).
    Follower(Follower),
    /// Orders writes.
    Primary(Primary),
    /// Its disk, or its agreement with the group, failed; of no use until reopened.
    Poisoned(StorageError),
}

/// What both roles share, and the actions of the step under way.
#[derive(Clone, Debug)]
pub(super) struct Local {
    pub(super) copy: CopyId,
    shard: ShardId,
    lineage: Lineage,
    incarnation: Incarnation,
    pub(super) timing: Timing,
    pub(super) now_ms: u64,
    group: Option<Arc<ShardGroup>>,
    pub(super) log: LogView,
    proposer: Proposer,
    pub(super) next_append_id: u64,
    pub(super) actions: Vec<Action>,
}

impl Core {
    /// A copy as it is after opening: a follower, whatever it was before (W1).
    pub fn new(options: CoreOptions) -> Self {
        let stored = &options.stored;
        let local = Local {
            copy: stored.copy,
            shard: stored.shard,
            lineage: stored.lineage,
            incarnation: options.incarnation,
            timing: options.timing,
            now_ms: 0,
            group: None,
            log: LogView::new(stored, options.term_starts, &options.unapplied),
            proposer: Proposer::default(),
            next_append_id: 1,
            actions: Vec::new(),
        };
        Self { local, role: Role::Follower(Follower::default()), barrier_payload: options.barrier_payload }
    }

    /// Takes in one event and returns what to do about it.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Tick(now_ms) => self.on_tick(now_ms),
            Event::Reconfigured(group) => self.learn(group),
            Event::Write { request, operation_id, payload } => match &mut self.role {
                Role::Primary(primary) => primary.on_write(&mut self.local, request, operation_id, payload),
                _ => self.local.actions.push(Action::RefuseWrite { request, refusal: WriteRefusal::NotPrimary }),
            },
            Event::OperationLookedUp { operation_id, term, seqno } => {
                if let Role::Primary(primary) = &mut self.role {
                    primary.on_lookup(&mut self.local, operation_id, term, seqno);
                }
            }
            Event::AppendReceived { request, append } => self.on_append(request, append),
            Event::AppendReplied { append_id, result } => {
                if let Role::Primary(primary) = &mut self.role
                    && let Some(term) = primary.on_reply(&self.local, append_id, result)
                {
                    self.step_down(term);
                }
            }
            Event::AppendFailed { to, append_id } => {
                if let Role::Primary(primary) = &mut self.role {
                    primary.on_append_failed(&self.local, to, append_id);
                }
            }
            Event::Persisted(write_id) => {
                self.local.log.persisted(write_id);
                if let Role::Follower(follower) = &mut self.role {
                    follower.answer(&mut self.local);
                }
            }
            Event::Applied(seqno) => {
                self.local.log.set_applied(seqno);
                if let Role::Primary(primary) = &mut self.role {
                    primary.on_applied(&mut self.local);
                }
            }
            Event::StorageFailed(error) => self.poison(error),
            Event::ProposalAnswered { id, outcome } => self.on_proposal(id, outcome),
            Event::RegisterRead(group) => {
                let pause_until = self.local.now_ms + self.local.timing.proposal_pause_ms;
                self.local.proposer.register_read(group.is_some(), pause_until);
                if let Some(group) = group {
                    self.learn(group);
                }
            }
        }
        if let Role::Primary(primary) = &mut self.role {
            primary.advance(&mut self.local);
        }
        self.apply_committed();
        std::mem::take(&mut self.local.actions)
    }

    fn on_tick(&mut self, now_ms: u64) {
        self.local.now_ms = self.local.now_ms.max(now_ms);
        let read_again = self.local.proposer.tick(self.local.now_ms);
        self.local.actions.extend(read_again);
        match &mut self.role {
            Role::Primary(primary) => primary.on_tick(&mut self.local),
            Role::Follower(_) | Role::Poisoned(_) => self.give_up_unusable_grant(),
        }
    }

    /// A register is learned. Older ones are ignored; versions only grow.
    fn learn(&mut self, group: Arc<ShardGroup>) {
        let local = &mut self.local;
        let is_older = local.group.as_ref().is_some_and(|known| group.version <= known.version)
            && !breaks(Mutant::OldRegistersLearned);
        if group.shard != local.shard || is_older {
            return;
        }
        local.group = Some(Arc::clone(&group));
        local.proposer.learned(&group);
        let is_granted = local.is_granted(&group);
        match &mut self.role {
            Role::Primary(primary) if is_granted && group.primary_term == primary.term() => {
                primary.on_group(local, group)
            }
            Role::Poisoned(_) => self.give_up_unusable_grant(),
            _ => {
                // W1: a grant counts once, in the life of the process it was given to. A term that was adopted before is
                // over, even if it was granted to this very copy: an earlier life may have written entries in it.
                let current_term = local.log.current_term();
                let is_new = group.primary_term > current_term
                    || breaks(Mutant::ResumeAfterRestart)
                    || breaks(Mutant::ResumeAfterReopening);
                if is_granted && is_new {
                    self.step_down(current_term);
                    self.become_primary(group);
                } else {
                    self.step_down(group.primary_term);
                }
            }
        }
    }

    fn become_primary(&mut self, group: Arc<ShardGroup>) {
        let primary = Primary::begin(&mut self.local, group, self.barrier_payload.clone());
        if let Role::Follower(follower) = std::mem::replace(&mut self.role, Role::Primary(primary)) {
            follower.end(&mut self.local, AppendRefusal::StaleTerm);
        }
    }

    /// Ends the primary role, if held, and adopts `term` if it is higher. The log's tail stays (W6).
    fn step_down(&mut self, term: PrimaryTerm) {
        if matches!(self.role, Role::Primary(_))
            && let Role::Primary(primary) =
                std::mem::replace(&mut self.role, Role::Follower(Follower::heard_at(self.local.now_ms)))
        {
            primary.end(&mut self.local);
        }
        if term > self.local.log.current_term() {
            let cut = self.local.log.committed().next();
            let truncate_from =
                (breaks(Mutant::TruncateOnNewTerm) && cut <= self.local.log.last()).then_some(cut);
            self.local.persist(LogWrite { term: Some(term), truncate_from, ..LogWrite::default() });
        }
    }

    fn on_append(&mut self, request: RequestId, append: Append) {
        let local = &mut self.local;
        let refusal = if append.shard != local.shard || append.to_copy != local.copy {
            Some(AppendRefusal::UnknownCopy)
        } else if append.lineage != local.lineage {
            Some(AppendRefusal::Lineage)
        } else if append.term < local.log.current_term() && !breaks(Mutant::OldTermsAccepted) {
            Some(AppendRefusal::StaleTerm)
        } else {
            match &self.role {
                Role::Poisoned(StorageError::Corrupt(_)) => Some(AppendRefusal::Corrupt),
                Role::Poisoned(_) => Some(AppendRefusal::Busy),
                // Nobody else orders this term; whoever says so is mistaken.
                Role::Primary(primary) if append.term == primary.term() => Some(AppendRefusal::Busy),
                Role::Primary(_) | Role::Follower(_) => None,
            }
        };
        if let Some(refusal) = refusal {
            return local.reply(request, AppendOutcome::Refused(refusal));
        }
        // A primary that hears a higher term steps down; the follower adopts it with the entries, in one write.
        let known = self.local.log.current_term();
        self.step_down(if breaks(Mutant::TruncateOnNewTerm) { append.term } else { known });
        if let Role::Follower(follower) = &mut self.role
            && let Err(Diverged(problem)) = follower.on_append(&mut self.local, request, append)
        {
            self.local.reply(request, AppendOutcome::Refused(AppendRefusal::Corrupt));
            self.poison(StorageError::Corrupt(problem));
        }
    }

    fn on_proposal(&mut self, id: u64, outcome: Option<ProposalOutcome>) {
        let pause_until = self.local.now_ms + self.local.timing.proposal_pause_ms;
        if let Some((change, read)) = self.local.proposer.answered(id, outcome.is_some(), pause_until) {
            self.local.actions.extend(read);
            if let Role::Primary(primary) = &mut self.role {
                primary.on_proposal(change, outcome.as_ref());
            }
        }
        if let Some(outcome) = outcome {
            self.learn(Arc::new(outcome.register));
        }
    }

    fn poison(&mut self, error: StorageError) {
        if matches!(self.role, Role::Poisoned(_)) {
            return;
        }
        let refusal =
            if matches!(error, StorageError::Corrupt(_)) { AppendRefusal::Corrupt } else { AppendRefusal::Busy };
        match std::mem::replace(&mut self.role, Role::Poisoned(error)) {
            Role::Primary(primary) => primary.end(&mut self.local),
            Role::Follower(follower) => follower.end(&mut self.local, refusal),
            Role::Poisoned(_) => {}
        }
        self.give_up_unusable_grant();
    }

    /// Asks metadata to take the role back: this copy holds a grant that it cannot act on, because its disk failed, or because
    /// it was reopened within the same process.
    fn give_up_unusable_grant(&mut self) {
        let Some(group) = self.local.group.clone() else { return };
        if self.local.is_granted(&group) && !self.is_primary() {
            self.local.propose(&group, Change::FailSelf);
        }
    }

    /// W7: in order, up to the global checkpoint only.
    fn apply_committed(&mut self) {
        if matches!(self.role, Role::Poisoned(_)) {
            return;
        }
        if let Some(target) = self.local.log.next_apply() {
            self.local.actions.push(Action::ApplyUpTo(target));
        }
    }
}

impl Local {
    /// Records a change of the log and sends it to the disk.
    pub(super) fn persist(&mut self, write: LogWrite) -> u64 {
        let write_id = self.log.record(&write);
        self.actions.push(Action::Persist { write_id, write });
        write_id
    }

    /// Answers a primary. Only a durable term is told.
    pub(super) fn reply(&mut self, request: RequestId, outcome: AppendOutcome) {
        let (copy, incarnation) = (self.copy, self.incarnation);
        let result =
            AppendResult { copy, incarnation, term: self.log.durable_term(), applied: self.log.applied(), outcome };
        self.actions.push(Action::ReplyAppend { request, result });
    }

    /// Proposes a change, if no other proposal is under way. Returns whether it did.
    pub(super) fn propose(&mut self, group: &ShardGroup, change: Change) -> bool {
        if !self.proposer.is_free(self.now_ms) {
            return false;
        }
        let action = self.proposer.ask(Proposal {
            id: 0,
            shard: self.shard,
            expect_version: group.version,
            by_copy: self.copy,
            term: group.primary_term,
            change,
        });
        self.actions.push(action);
        true
    }

    fn is_granted(&self, group: &ShardGroup) -> bool {
        let own = PrimaryGrant { copy: self.copy, incarnation: self.incarnation };
        let is_own = group.primary == Some(own)
            || breaks(Mutant::ResumeAfterRestart) && group.primary_copy() == Some(self.copy);
        is_own && group.lineage == self.lineage
    }
}

/// What others may know of a copy.
impl Core {
    /// The copy.
    pub fn copy(&self) -> CopyId {
        self.local.copy
    }

    /// Whether it orders writes now.
    pub fn is_primary(&self) -> bool {
        matches!(self.role, Role::Primary(_))
    }

    /// Whether it is primary in exactly this term: what a message under way must still hold to be sent.
    pub fn is_primary_in(&self, term: PrimaryTerm) -> bool {
        matches!(&self.role, Role::Primary(primary) if primary.term() == term)
    }

    /// Why it is of no use any more.
    pub fn poisoned(&self) -> Option<&StorageError> {
        match &self.role {
            Role::Poisoned(error) => Some(error),
            _ => None,
        }
    }

    /// The register as last learned.
    pub fn group(&self) -> Option<&Arc<ShardGroup>> {
        self.local.group.as_ref()
    }

    /// The term it follows, as far as it survives a crash: the answer to a strong read's `Confirm`.
    pub fn confirmed_term(&self) -> PrimaryTerm {
        self.local.log.durable_term()
    }

    /// End of its log.
    pub fn last(&self) -> LogPosition {
        self.local.log.last_position()
    }

    /// Durable up to here.
    pub fn local_checkpoint(&self) -> SeqNo {
        self.local.log.durable()
    }

    /// Committed and durable up to here.
    pub fn global_checkpoint(&self) -> SeqNo {
        self.local.log.global_checkpoint()
    }

    /// Applied up to here.
    pub fn applied(&self) -> SeqNo {
        self.local.log.applied()
    }

    /// When a follower last heard a checkpoint, in the milliseconds of [`Event::Tick`]; `None` if never.
    pub fn heard_ms(&self) -> Option<u64> {
        match &self.role {
            Role::Follower(follower) => follower.heard_ms(),
            Role::Primary(_) | Role::Poisoned(_) => None,
        }
    }

    /// Writes that are not answered yet.
    pub fn writes_waiting(&self) -> usize {
        match &self.role {
            Role::Primary(primary) => primary.writes_waiting(),
            _ => 0,
        }
    }

    /// On the primary: copies that lack entries which are purged here.
    pub fn needing_snapshot(&self) -> Vec<CopyId> {
        match &self.role {
            Role::Primary(primary) => primary.needing_snapshot(),
            _ => Vec::new(),
        }
    }

    /// Entries up to here are needed by nobody: applied, and on every other copy if this one is primary.
    pub fn needed_by_nobody(&self) -> SeqNo {
        let applied = self.local.log.applied();
        match &self.role {
            Role::Primary(primary) => primary.held_by_all().map_or(applied, |held| held.min(applied)),
            _ => applied,
        }
    }

    /// Checks the invariants; the text names the broken one.
    pub fn check(&self) -> Result<(), String> {
        self.local.log.check()?;
        match &self.role {
            Role::Primary(primary) => primary.check(&self.local),
            Role::Follower(_) | Role::Poisoned(_) => Ok(()),
        }
    }
}

/// What tells two states of the model apart. A field that can influence a later step must be taken in, times as ages and ids as
/// what they stand for, so that histories that lead to the same future meet.
#[cfg(test)]
impl Core {
    pub(super) fn fingerprint(&self, hasher: &mut impl Hasher) {
        let Self { local, role, barrier_payload: _ } = self;
        let Local {
            copy,
            shard: _,
            lineage: _,
            incarnation,
            timing: _,
            now_ms,
            group,
            log,
            proposer,
            next_append_id: _,
            actions: _,
        } = local;
        (copy, incarnation, group.as_ref().map(|group| group.version)).hash(hasher);
        log.fingerprint(hasher);
        proposer.fingerprint(*now_ms, hasher);
        std::mem::discriminant(role).hash(hasher);
        match role {
            Role::Follower(follower) => follower.fingerprint(local, hasher),
            Role::Primary(primary) => primary.fingerprint(local, hasher),
            Role::Poisoned(error) => matches!(error, StorageError::Corrupt(_)).hash(hasher),
        }
    }

    /// What an answer to a message still means: nothing, or that it counts, or that it is awaited.
    pub(super) fn standing_of_append(&self, to: CopyId, append_id: u64) -> u8 {
        match &self.role {
            Role::Primary(primary) => primary.standing_of_append(to, append_id),
            _ => 0,
        }
    }

    /// Whether the decision on this proposal is awaited.
    pub(super) fn awaits_proposal(&self, id: u64) -> bool {
        self.local.proposer.awaits(id)
    }
}

/// How long ago something was, as far as anyone asks.
#[cfg(test)]
pub(super) fn age(now_ms: u64, then_ms: u64, limit_ms: u64) -> u64 {
    now_ms.saturating_sub(then_ms).min(limit_ms)
}
