//! The replication protocol of one copy, without async, clock, randomness or I/O: `step(event)` returns what to do.
//!
//! The core keeps the rules W1 to W11 of the reference (section 3.5); whoever drives it (the task in `copy`, or the simulation)
//! only carries out actions and reports what came of them. The same events give the same actions, always. The core never reads
//! entries: it knows where each term of its log begins, which is all that the rules ask for.

#[cfg(test)]
pub(super) mod fingerprint;
mod inspect;

use std::sync::Arc;

use bytes::Bytes;
use cluster_config::ids::{CopyId, Incarnation, Lineage, OperationId, ShardId};
use cluster_config::limits::LOG_PIN_MAX;
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use cluster_config::shard_group::{PrimaryGrant, ShardGroup};

use super::follower::{Diverged, Follower};
use super::log_view::LogView;
use super::messages::{
    Action, Append, AppendOutcome, AppendRefusal, AppendResult, Change, Event, HandOffRefusal, Proposal,
    ProposalOutcome, ReadRefusal, RequestId, WriteRefusal,
};
use super::mutant::{Mutant, breaks};
use super::primary::Primary;
use super::proposer::Proposer;
use super::retention::{LogSizes, Pins, Retention};
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
    /// How much of the log is kept.
    pub retention: Retention,
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
    Primary(Box<Primary>),
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
    pub(super) sizes: LogSizes,
    pub(super) pins: Pins,
    proposer: Proposer,
    /// Appends and rounds of strong reads, over all terms of this life.
    pub(super) next_message_id: u64,
    pub(super) actions: Vec<Action>,
}

impl Core {
    /// A copy as it is after opening: a follower, whatever it was before (W1).
    pub fn new(options: CoreOptions) -> Self {
        let stored = &options.stored;
        let (purged, last) = (stored.purged.seqno, stored.last.seqno);
        let local = Local {
            copy: stored.copy,
            shard: stored.shard,
            lineage: stored.lineage,
            incarnation: options.incarnation,
            timing: options.timing,
            now_ms: 0,
            group: None,
            log: LogView::new(stored, options.term_starts, &options.unapplied),
            sizes: LogSizes::new(options.retention, purged, last, stored.log_bytes),
            pins: Pins::default(),
            proposer: Proposer::default(),
            next_message_id: 1,
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
            Event::StrongRead { request } => match &mut self.role {
                Role::Primary(primary) => primary.on_strong_read(&mut self.local, request),
                _ => self.local.actions.push(Action::RefuseRead { request, refusal: ReadRefusal::NotPrimary }),
            },
            Event::ConfirmReplied { round, copy, term } => {
                if let Role::Primary(primary) = &mut self.role
                    && let Some(term) = primary.on_confirm(&self.local, round, copy, term)
                {
                    self.step_down(term);
                }
            }
            Event::ConfirmFailed { round, copy } => {
                if let Role::Primary(primary) = &mut self.role {
                    primary.on_confirm_failed(&self.local, round, copy);
                }
            }
            Event::HandOff { request, to, patience_ms } => match &mut self.role {
                Role::Primary(primary) => primary.on_hand_off(&mut self.local, request, to, patience_ms),
                _ => {
                    let result = Err(HandOffRefusal::NotPrimary);
                    self.local.actions.push(Action::EndHandOff { request, result });
                }
            },
            Event::PinLog { from, for_ms } => {
                let for_ms = for_ms.min(LOG_PIN_MAX.as_millis() as u64);
                self.local.pins.set(from, self.local.now_ms + for_ms);
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
        self.local.pins.expire(self.local.now_ms);
        self.purge();
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
                    self.end_primary(false);
                    self.become_primary(group);
                } else {
                    self.step_down(group.primary_term);
                }
            }
        }
    }

    fn become_primary(&mut self, group: Arc<ShardGroup>) {
        let primary = Primary::begin(&mut self.local, group, self.barrier_payload.clone());
        if let Role::Follower(follower) = std::mem::replace(&mut self.role, Role::Primary(Box::new(primary))) {
            follower.end(&mut self.local, AppendRefusal::StaleTerm);
        }
    }

    /// Ends the primary role, if held, and adopts `term` if it is higher. The log's tail stays (W6).
    fn step_down(&mut self, term: PrimaryTerm) {
        self.end_primary(true);
        if term > self.local.log.current_term() {
            let cut = self.local.log.committed().next();
            let truncate_from = (breaks(Mutant::TruncateOnNewTerm) && cut <= self.local.log.last()).then_some(cut);
            self.local.persist(LogWrite { term: Some(term), truncate_from, ..LogWrite::default() });
        }
    }

    /// `left`: the role is somebody else's, or nobody's, now.
    fn end_primary(&mut self, left: bool) {
        let Role::Primary(primary) = &self.role else { return };
        let heard_ms = primary.followed_ms().unwrap_or(self.local.now_ms);
        let follower = Role::Follower(Follower::heard_at(heard_ms));
        if let Role::Primary(primary) = std::mem::replace(&mut self.role, follower) {
            primary.end(&mut self.local, left);
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
            Role::Primary(primary) => primary.end(&mut self.local, false),
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

    /// Lets go of the part of the log that nobody needs.
    fn purge(&mut self) {
        let up_to = match &self.role {
            Role::Primary(primary) => primary.purgeable(&self.local),
            Role::Follower(follower) => follower.purgeable(&self.local),
            Role::Poisoned(_) => None,
        };
        if let Some(up_to) = up_to {
            self.local.log.purge(up_to);
            self.local.sizes.purged(up_to);
            self.local.actions.push(Action::Purge(up_to));
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
        self.sizes.record(&write, self.now_ms);
        self.actions.push(Action::Persist { write_id, write });
        write_id
    }

    /// Answers a primary. Only a durable term is told.
    pub(super) fn reply(&mut self, request: RequestId, outcome: AppendOutcome) {
        let (copy, incarnation) = (self.copy, self.incarnation);
        let (term, applied, pinned) = (self.log.durable_term(), self.log.applied(), self.pins.lowest());
        let result = AppendResult { copy, incarnation, term, applied, pinned, outcome };
        self.actions.push(Action::ReplyAppend { request, result });
    }

    /// Proposes a change, if no other proposal is under way. Returns whether it did.
    pub(super) fn propose(&mut self, group: &ShardGroup, change: Change) -> bool {
        // Writes wait for a hand-off, so it does not wait out a pause; it is asked once per register.
        let is_urgent = matches!(change, Change::HandOff(_));
        if !(self.proposer.is_free(self.now_ms) || is_urgent && self.proposer.is_idle()) {
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

    /// Whether no proposal is under way, nor one whose outcome must be read from the register first (W11).
    pub(super) fn register_is_known(&self) -> bool {
        self.proposer.is_idle()
    }

    fn is_granted(&self, group: &ShardGroup) -> bool {
        let own = PrimaryGrant { copy: self.copy, incarnation: self.incarnation };
        let is_own =
            group.primary == Some(own) || breaks(Mutant::ResumeAfterRestart) && group.primary_copy() == Some(self.copy);
        is_own && group.lineage == self.lineage
    }
}
