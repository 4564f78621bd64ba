//! Passing the role to another copy in good order (reference 3.10): writes wait, the copies come to rest, metadata is asked.
//!
//! Safety does not rest on the waiting: any in-sync copy may become primary at any time. It is what keeps a hand-off from interrupting
//! writes: when the role passes, none is under way, and those that wait were not taken.

use std::collections::VecDeque;

use bytes::Bytes;
use cluster_config::ids::{CopyId, OperationId};
use cluster_config::shard_group::ShardGroup;

use super::messages::{HandOffRefusal, ProposalOutcome, RequestId};

/// A hand-off under way at a primary.
#[derive(Clone, Debug)]
pub(super) struct HandOff {
    pub(super) request: RequestId,
    pub(super) to: CopyId,
    pub(super) phase: Phase,
    /// Until then the copies must have come to rest.
    give_up_ms: u64,
    held: VecDeque<HeldWrite>,
}

/// How far a hand-off has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Writes wait; those under way are finished.
    Draining,
    /// Metadata is asked, on this version of the register.
    Asked {
        /// Void once the register is newer.
        expect_version: u64,
    },
    /// Metadata did not answer: the register is read before anything else (W11).
    Undecided,
    /// The role stays here; why.
    Failed(HandOffRefusal),
}

/// A write that was not taken yet.
#[derive(Clone, Debug)]
pub(super) struct HeldWrite {
    pub(super) request: RequestId,
    pub(super) operation_id: OperationId,
    pub(super) payload: Bytes,
    held_ms: u64,
}

impl HandOff {
    pub(super) fn begin(request: RequestId, to: CopyId, give_up_ms: u64) -> Self {
        Self { request, to, phase: Phase::Draining, give_up_ms, held: VecDeque::new() }
    }

    pub(super) fn hold(&mut self, request: RequestId, operation_id: OperationId, payload: Bytes, now_ms: u64) {
        self.held.push_back(HeldWrite { request, operation_id, payload, held_ms: now_ms });
    }

    /// Gives up draining in time, and gives back the writes that have waited for too long.
    pub(super) fn on_tick(&mut self, now_ms: u64, hold_ms: u64) -> Vec<HeldWrite> {
        if self.phase == Phase::Draining && now_ms >= self.give_up_ms {
            self.phase = Phase::Failed(HandOffRefusal::TimedOut);
        }
        let mut late = Vec::new();
        while let Some(write) = self.held.pop_front_if(|write| now_ms.saturating_sub(write.held_ms) >= hold_ms) {
            late.push(write);
        }
        late
    }

    /// What metadata decided, or `None` if that is not known. If it agreed, the register that follows ends the role.
    pub(super) fn on_answer(&mut self, outcome: Option<&ProposalOutcome>) {
        let Phase::Asked { expect_version } = self.phase else { return };
        match outcome {
            None => self.phase = Phase::Undecided,
            Some(decision) if !decision.accepted && decision.register.version == expect_version => {
                self.phase = Phase::Failed(HandOffRefusal::Refused(decision.reason.clone()));
            }
            Some(_) => {}
        }
    }

    /// Compares the hand-off with the register, under which this copy is still primary.
    pub(super) fn observe(&mut self, group: &ShardGroup, register_is_known: bool) {
        match self.phase {
            // Another change came first, so this one cannot come any more.
            Phase::Asked { expect_version } if group.version > expect_version => self.phase = Phase::Draining,
            Phase::Undecided if register_is_known => self.phase = Phase::Failed(HandOffRefusal::Undecided),
            _ => {}
        }
        if self.phase == Phase::Draining && !group.in_sync.contains(&self.to) {
            self.phase = Phase::Failed(HandOffRefusal::NotInSync);
        }
    }

    /// What the end of the role means for whoever wanted it to pass.
    pub(super) fn result_at_end(&self, left: bool) -> Result<(), HandOffRefusal> {
        let was_asked = matches!(self.phase, Phase::Asked { .. } | Phase::Undecided);
        if left && was_asked { Ok(()) } else { Err(HandOffRefusal::Interrupted) }
    }

    /// All writes that wait.
    pub(super) fn into_held(self) -> VecDeque<HeldWrite> {
        self.held
    }

    pub(super) fn held(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
impl HandOff {
    /// What it hashes to: the request, its aim, how far it has come, how much patience is left, and who waits since when.
    pub(super) fn fingerprint(&self, now_ms: u64) -> impl std::hash::Hash + use<> {
        let Self { request, to, phase, give_up_ms, held } = self;
        let expect_version = if let Phase::Asked { expect_version } = phase { Some(*expect_version) } else { None };
        let waiting: Vec<_> = held.iter().map(|write| (write.request, now_ms.saturating_sub(write.held_ms))).collect();
        (*request, *to, std::mem::discriminant(phase), expect_version, give_up_ms.saturating_sub(now_ms), waiting)
    }
}
