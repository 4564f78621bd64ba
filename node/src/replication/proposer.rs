//! One question at a time to the metadata group, and what an unanswered one obliges to (W11).

#[cfg(test)]
use std::hash::{Hash, Hasher};

use cluster_config::shard_group::ShardGroup;

use super::messages::{Action, Change, Proposal};

/// The proposal slot of a copy. Proposals compare-and-set on the register's version, so a second one at a time could only lose.
#[derive(Clone, Debug, Default)]
pub(super) struct Proposer {
    last_id: u64,
    state: State,
    not_before_ms: u64,
}

#[derive(Clone, Debug, Default)]
enum State {
    #[default]
    Idle,
    /// Waiting for the decision.
    Asked(Proposal),
    /// The decision is unknown: the register is being read before anything is built on it.
    Reading(Proposal),
    /// The read failed too; it is repeated after a pause.
    MustRead(Proposal),
}

impl Proposer {
    /// Whether a proposal may be made now.
    pub(super) fn is_free(&self, now_ms: u64) -> bool {
        self.is_idle() && now_ms >= self.not_before_ms
    }

    /// Whether nothing is asked or being read.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Takes the slot.
    pub(super) fn ask(&mut self, mut proposal: Proposal) -> Action {
        self.last_id += 1;
        proposal.id = self.last_id;
        self.state = State::Asked(proposal.clone());
        Action::Propose(proposal)
    }

    /// The answer to the proposal `id`, if it is the one waited for. `decided` is false for an unknown outcome.
    pub(super) fn answered(&mut self, id: u64, decided: bool, pause_until_ms: u64) -> Option<(Change, Option<Action>)> {
        let State::Asked(proposal) = &self.state else { return None };
        if proposal.id != id {
            return None;
        }
        let proposal = proposal.clone();
        let change = proposal.change;
        self.not_before_ms = pause_until_ms;
        if decided {
            self.state = State::Idle;
            return Some((change, None));
        }
        self.state = State::Reading(proposal);
        Some((change, Some(Action::ReadRegister)))
    }

    /// The register was read, or could not be.
    pub(super) fn register_read(&mut self, answered: bool, pause_until_ms: u64) {
        self.state = match std::mem::take(&mut self.state) {
            State::Reading(_) if answered => State::Idle,
            State::Reading(proposal) => State::MustRead(proposal),
            other => other,
        };
        self.not_before_ms = pause_until_ms;
    }

    /// A newer register voids what was asked of an older one.
    pub(super) fn learned(&mut self, group: &ShardGroup) {
        let (State::Asked(proposal) | State::Reading(proposal) | State::MustRead(proposal)) = &self.state else {
            return;
        };
        if group.version > proposal.expect_version {
            self.state = State::Idle;
            self.not_before_ms = 0;
        }
    }

    /// Repeats a failed read once its pause is over.
    pub(super) fn tick(&mut self, now_ms: u64) -> Option<Action> {
        if now_ms < self.not_before_ms || !matches!(self.state, State::MustRead(_)) {
            return None;
        }
        if let State::MustRead(proposal) = std::mem::take(&mut self.state) {
            self.state = State::Reading(proposal);
        }
        Some(Action::ReadRegister)
    }
}

#[cfg(test)]
impl Proposer {
    pub(super) fn fingerprint(&self, now_ms: u64, hasher: &mut impl Hasher) {
        let Self { last_id: _, state, not_before_ms } = self;
        not_before_ms.saturating_sub(now_ms).hash(hasher);
        std::mem::discriminant(state).hash(hasher);
        if let State::Asked(proposal) | State::Reading(proposal) | State::MustRead(proposal) = state {
            (proposal.expect_version, proposal.term, proposal.change).hash(hasher);
        }
    }

    pub(super) fn awaits(&self, id: u64) -> bool {
        matches!(&self.state, State::Asked(proposal) if proposal.id == id)
    }
}
