//! Linearizable reads at the primary, without clocks (reference 3.8).
//!
//! A read notes the global checkpoint and asks every other member of the ack set for its term. Whoever could have acknowledged a newer
//! write under a later term is, or had the answer of, a member of that set, and tells the later term; so if all still follow this
//! one, nothing acknowledged before the read began is missing here. Reads that arrive during a round share the next one: a round's
//! questions must be asked after the read began.

use std::collections::{BTreeMap, VecDeque};
#[cfg(test)]
use std::hash::{Hash, Hasher};

use cluster_config::ids::{CopyId, NodeId};
use cluster_config::limits::STRONG_READS_MAX;
use cluster_config::seqno::{PrimaryTerm, SeqNo};

use super::core::Local;
use super::messages::{Action, ReadRefusal, RequestId, SendConfirm};
use super::mutant::{Mutant, breaks};

/// The reads of one term.
#[derive(Clone, Debug, Default)]
pub(super) struct StrongReads {
    /// For the next round.
    arrived: Vec<RequestId>,
    round: Option<Round>,
    /// Confirmed; their positions ascend and are not applied yet.
    confirmed: VecDeque<(SeqNo, Vec<RequestId>)>,
    /// Reads in all of these.
    waiting: usize,
}

/// One question to each member of the ack set, for all the reads that had arrived.
#[derive(Clone, Debug)]
struct Round {
    id: u64,
    /// The global checkpoint when it began.
    seqno: SeqNo,
    reads: Vec<RequestId>,
    /// Who has not confirmed yet, and when to ask; `None` while a question is under way.
    unconfirmed: BTreeMap<CopyId, Option<u64>>,
}

/// What a question of this role says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking {
    pub(super) term: PrimaryTerm,
    pub(super) cfg_version: u64,
    /// First entry of the term: before it is committed, the primary does not know what is.
    pub(super) barrier: SeqNo,
}

impl StrongReads {
    pub(super) fn add(&mut self, local: &mut Local, request: RequestId) {
        if self.waiting >= STRONG_READS_MAX {
            local.actions.push(Action::RefuseRead { request, refusal: ReadRefusal::Overloaded });
            return;
        }
        self.waiting += 1;
        self.arrived.push(request);
    }

    /// Whether nobody waits.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting == 0
    }

    /// A copy told its term. Returns it if it is higher than ours: the role ends.
    pub(super) fn on_reply(
        &mut self,
        round: u64,
        copy: CopyId,
        term: PrimaryTerm,
        own_term: PrimaryTerm,
        retry_at_ms: u64,
    ) -> Option<PrimaryTerm> {
        if term > own_term {
            return Some(term);
        }
        let round = self.round.as_mut().filter(|current| current.id == round)?;
        if term == own_term {
            round.unconfirmed.remove(&copy);
        } else if let Some(ask_at) = round.unconfirmed.get_mut(&copy) {
            // It has not heard of this term yet, or is of no use at the moment.
            *ask_at = Some(retry_at_ms);
        }
        None
    }

    pub(super) fn on_failure(&mut self, round: u64, copy: CopyId, retry_at_ms: u64) {
        if let Some(round) = self.round.as_mut().filter(|current| current.id == round)
            && let Some(ask_at) = round.unconfirmed.get_mut(&copy)
        {
            *ask_at = Some(retry_at_ms);
        }
    }

    /// Begins, goes on with and ends rounds, and serves what is confirmed and applied. `members`: the ack set without this copy, now.
    pub(super) fn advance(&mut self, local: &mut Local, asking: Asking, members: &BTreeMap<CopyId, NodeId>) {
        loop {
            let checkpoint = local.log.global_checkpoint();
            let knows_what_is_committed = checkpoint >= asking.barrier || breaks(Mutant::ReadBeforeBarrier);
            if self.round.is_none() && !self.arrived.is_empty() && knows_what_is_committed {
                let asked = members.keys().filter(|_| !breaks(Mutant::ReadUnconfirmed));
                let unconfirmed = asked.map(|copy| (*copy, Some(0))).collect();
                let (id, reads) = (local.next_message_id, std::mem::take(&mut self.arrived));
                local.next_message_id += 1;
                self.round = Some(Round { id, seqno: checkpoint, reads, unconfirmed });
            }
            let Some(round) = &mut self.round else { break };
            // Whoever metadata removed cannot have become primary before; who came later need not be asked.
            round.unconfirmed.retain(|copy, _| members.contains_key(copy));
            for (copy, ask_at) in &mut round.unconfirmed {
                if ask_at.take_if(|ask_at_ms| *ask_at_ms <= local.now_ms).is_some() {
                    local.actions.push(Action::SendConfirm(SendConfirm {
                        round: round.id,
                        to: *copy,
                        node: members[copy],
                        term: asking.term,
                        cfg_version: asking.cfg_version,
                    }));
                }
            }
            let Some(done) = self.round.take_if(|round| round.unconfirmed.is_empty()) else { break };
            self.confirmed.push_back((done.seqno, done.reads));
        }
        self.serve(local);
    }

    fn serve(&mut self, local: &mut Local) {
        let applied = local.log.applied();
        while let Some((seqno, reads)) = self.confirmed.pop_front_if(|(seqno, _)| *seqno <= applied) {
            self.waiting -= reads.len();
            local.actions.extend(reads.into_iter().map(|request| Action::ServeRead { request, seqno }));
        }
    }

    /// The role ends.
    pub(super) fn end(self, local: &mut Local) {
        let in_round = self.round.into_iter().flat_map(|round| round.reads);
        let confirmed = self.confirmed.into_iter().flat_map(|(_, reads)| reads);
        let reads = self.arrived.into_iter().chain(in_round).chain(confirmed);
        let refusal = ReadRefusal::NotPrimary;
        local.actions.extend(reads.map(|request| Action::RefuseRead { request, refusal }));
    }

    /// Names the broken invariant.
    pub(super) fn check(&self) -> Result<(), String> {
        let in_round = self.round.as_ref().map_or(0, |round| round.reads.len());
        let confirmed: usize = self.confirmed.iter().map(|(_, reads)| reads.len()).sum();
        let waiting = self.arrived.len() + in_round + confirmed;
        if waiting != self.waiting {
            return Err(format!("{waiting} strong reads wait, {} counted", self.waiting));
        }
        Ok(())
    }
}

#[cfg(test)]
impl StrongReads {
    pub(super) fn fingerprint(&self, now_ms: u64, hasher: &mut impl Hasher) {
        let Self { arrived, round, confirmed, waiting: _ } = self;
        (arrived, confirmed).hash(hasher);
        if let Some(Round { id: _, seqno, reads, unconfirmed }) = round {
            (seqno, reads).hash(hasher);
            for (copy, ask_at_ms) in unconfirmed {
                (copy, ask_at_ms.map(|ask_at_ms| ask_at_ms.saturating_sub(now_ms))).hash(hasher);
            }
        }
    }

    pub(super) fn awaits(&self, round: u64) -> bool {
        self.round.as_ref().is_some_and(|current| current.id == round)
    }
}
