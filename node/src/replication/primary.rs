//! A copy that orders the writes of one term: W2 to W5 and W8 to W10. Its strong reads and hand-offs are in files of their own.

use std::collections::{BTreeMap, VecDeque};
#[cfg(test)]
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use cluster_config::ids::{CopyId, OperationId};
use cluster_config::limits::{HAND_OFF_HOLD, WRITE_QUEUE_BYTES_MAX, WRITE_QUEUE_MAX};
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};
use cluster_config::shard_group::ShardGroup;

use super::core::Local;
use super::hand_off::{HandOff, HeldWrite, Phase};
use super::messages::{
    Action, AppendOutcome, AppendRefusal, AppendResult, Change, HandOffRefusal, ProposalOutcome, RequestId, SendAppend,
    WriteAck, WriteRefusal,
};
use super::mutant::{Mutant, breaks};
use super::retention::{Needs, decide_purge};
use super::storage::{EncodedEntry, LogWrite};
use super::strong_reads::{Asking, StrongReads};
use super::tracker::{Tracker, UnresolvedAdd};

/// The role, for one term. It ends with the first sign of another grant; what it did not finish is of unknown outcome.
#[derive(Clone, Debug)]
pub(super) struct Primary {
    term: PrimaryTerm,
    group: Arc<ShardGroup>,
    /// First entry of the term (W2).
    barrier: SeqNo,
    /// Nothing is sent before this write, which makes term and barrier durable. Were the term not durable, a reopened copy of
    /// this very process could be granted it again and fill it with other entries.
    granted_write: u64,
    /// Answers to older messages belong to an earlier term of this copy.
    first_append: u64,
    tracker: Tracker,
    /// Writes that wait for their entry to be committed and applied.
    waiters: BTreeMap<SeqNo, Vec<Waiter>>,
    /// Writes whose operation id is being looked up; retries that arrive meanwhile join.
    lookups: BTreeMap<OperationId, Vec<Lookup>>,
    /// Calls waiting in `waiters` and `lookups`, or held by a hand-off.
    waiting: usize,
    /// Payload bytes in `lookups`, held by a hand-off, and in entries that are not applied yet.
    bytes: usize,
    entry_bytes: VecDeque<(SeqNo, usize)>,
    reads: StrongReads,
    hand_off: Option<HandOff>,
}

#[derive(Clone, Debug)]
struct Waiter {
    request: RequestId,
    is_retry: bool,
}

#[derive(Clone, Debug)]
struct Lookup {
    request: RequestId,
    payload: Bytes,
}

impl Primary {
    /// W2: adopts the granted term and opens it with a barrier, both in one durable write.
    pub(super) fn begin(local: &mut Local, group: Arc<ShardGroup>, barrier_payload: Bytes) -> Self {
        let term = group.primary_term;
        let (before, barrier) = (local.log.last(), local.log.last().next());
        let entry = EncodedEntry::seal(barrier, term, OperationId(0), barrier_payload);
        let granted_write = local.persist(LogWrite { term: Some(term), truncate_from: None, entries: vec![entry] });
        let mut tracker = Tracker::new(local.copy);
        tracker.reconfigure(&group, before.next(), local.now_ms);
        Self {
            term,
            group,
            barrier,
            granted_write,
            first_append: local.next_message_id,
            tracker,
            waiters: BTreeMap::new(),
            lookups: BTreeMap::new(),
            waiting: 0,
            bytes: 0,
            entry_bytes: VecDeque::new(),
            reads: StrongReads::default(),
            hand_off: None,
        }
    }

    pub(super) fn term(&self) -> PrimaryTerm {
        self.term
    }

    /// A newer register that leaves the role and the term as they are.
    pub(super) fn on_group(&mut self, local: &Local, group: Arc<ShardGroup>) {
        self.tracker.reconfigure(&group, local.log.last().next(), local.now_ms);
        self.group = group;
    }

    /// W3: a retry of an operation in flight joins it; one that was applied gets its old position; all else is appended.
    pub(super) fn on_write(
        &mut self,
        local: &mut Local,
        request: RequestId,
        operation_id: OperationId,
        payload: Bytes,
    ) {
        let is_full = self.bytes > 0 && self.bytes + payload.len() > WRITE_QUEUE_BYTES_MAX;
        if self.waiting >= WRITE_QUEUE_MAX || is_full {
            local.actions.push(Action::RefuseWrite { request, refusal: WriteRefusal::Overloaded });
            return;
        }
        if operation_id == OperationId(0) {
            return self.admit(local, operation_id, request, payload);
        }
        if let Some(seqno) = local.log.find_unapplied(operation_id) {
            return self.wait(seqno, Waiter { request, is_retry: true });
        }
        self.waiting += 1;
        self.bytes += payload.len();
        let same = self.lookups.entry(operation_id).or_default();
        if same.is_empty() {
            local.actions.push(Action::FindOperation { operation_id, term: self.term });
        }
        same.push(Lookup { request, payload });
    }

    /// The window of applied operations was searched.
    pub(super) fn on_lookup(
        &mut self,
        local: &mut Local,
        operation_id: OperationId,
        term: PrimaryTerm,
        found: Option<SeqNo>,
    ) {
        if term != self.term && !breaks(Mutant::EarlierLookupCounts) {
            return;
        }
        for lookup in self.lookups.remove(&operation_id).unwrap_or_default() {
            self.waiting -= 1;
            self.bytes -= lookup.payload.len();
            if let Some(seqno) = found.filter(|_| !breaks(Mutant::AppliedWindowNotSearched)) {
                let ack = WriteAck { seqno, copies_acked: self.tracker.copies_holding(seqno), deduplicated: true };
                local.actions.push(Action::AckWrite { request: lookup.request, ack });
            } else if let Some(seqno) = local.log.find_unapplied(operation_id) {
                self.wait(seqno, Waiter { request: lookup.request, is_retry: true });
            } else {
                self.admit(local, operation_id, lookup.request, lookup.payload);
            }
        }
    }

    /// Appends a new operation, unless too few copies are in sync (W10) or the role is about to pass.
    fn admit(&mut self, local: &mut Local, operation_id: OperationId, request: RequestId, payload: Bytes) {
        if let Some(hand_off) = &mut self.hand_off {
            self.waiting += 1;
            self.bytes += payload.len();
            return hand_off.hold(request, operation_id, payload, local.now_ms);
        }
        let (in_sync, min_in_sync) = (self.group.in_sync.len(), self.group.min_in_sync);
        if in_sync < min_in_sync as usize {
            let refusal = WriteRefusal::NotEnoughCopies { in_sync, min_in_sync };
            local.actions.push(Action::RefuseWrite { request, refusal });
            return;
        }
        let seqno = local.log.last().next();
        self.bytes += payload.len();
        self.entry_bytes.push_back((seqno, payload.len()));
        let entry = EncodedEntry::seal(seqno, self.term, operation_id, payload);
        local.persist(LogWrite { entries: vec![entry], ..LogWrite::default() });
        self.wait(seqno, Waiter { request, is_retry: false });
    }

    fn wait(&mut self, seqno: SeqNo, waiter: Waiter) {
        self.waiting += 1;
        self.waiters.entry(seqno).or_default().push(waiter);
    }

    /// W5: a write is acknowledged once committed and applied here.
    pub(super) fn on_applied(&mut self, local: &mut Local) {
        let applied = local.log.applied();
        while let Some((seqno, waiters)) = self.waiters.pop_first() {
            if seqno > applied {
                self.waiters.insert(seqno, waiters);
                break;
            }
            let copies_acked = self.tracker.copies_holding(seqno);
            for Waiter { request, is_retry } in waiters {
                self.waiting -= 1;
                let ack = WriteAck { seqno, copies_acked, deduplicated: is_retry };
                local.actions.push(Action::AckWrite { request, ack });
            }
        }
        while let Some((_, bytes)) = self.entry_bytes.pop_front_if(|(seqno, _)| *seqno <= applied) {
            self.bytes -= bytes;
        }
    }

    /// What a copy answered. Returns the higher term, if there is one: the role ends.
    pub(super) fn on_reply(&mut self, local: &Local, append_id: u64, result: AppendResult) -> Option<PrimaryTerm> {
        if result.term > self.term {
            return Some(result.term);
        }
        if append_id < self.first_append && !breaks(Mutant::CountEarlierAnswers) {
            return None;
        }
        let peer = self.tracker.peers.get_mut(&result.copy)?;
        let is_awaited = peer.outstanding == Some(append_id);
        if is_awaited && matches!(result.outcome, AppendOutcome::Match(_)) {
            peer.followed_ms = peer.sent_ms;
        }
        let is_of_core = !matches!(
            result.outcome,
            AppendOutcome::Refused(AppendRefusal::Busy | AppendRefusal::UnknownCopy | AppendRefusal::Lineage)
        );
        if is_of_core {
            peer.pinned = result.pinned;
        }
        if let AppendOutcome::Match(seqno) = result.outcome {
            // True whenever it was said: a copy that follows this term never drops what it matched.
            peer.on_match(seqno.min(local.log.last()));
            peer.heard_ms = local.now_ms;
            if peer.incarnation != result.incarnation {
                // Tracking belongs to one life of the process; it starts again with another, unless it must go on (W4).
                peer.incarnation = result.incarnation;
                peer.tracked &= peer.add.is_some();
            }
        }
        if !is_awaited {
            return None;
        }
        peer.outstanding = None;
        peer.probing = false;
        let AppendOutcome::Refused(refusal) = result.outcome else { return None };
        match refusal {
            AppendRefusal::Mismatch { hint } => {
                peer.heard_ms = local.now_ms;
                peer.on_mismatch(hint, &local.log);
            }
            AppendRefusal::Corrupt | AppendRefusal::Lineage => peer.broken = true,
            AppendRefusal::NeedsSnapshot => {
                peer.heard_ms = local.now_ms;
                peer.on_needs_snapshot();
            }
            // Not heard as far as W9 is concerned: it is given the usual time, then removed.
            AppendRefusal::Busy | AppendRefusal::UnknownCopy | AppendRefusal::StaleTerm => {}
        }
        if !matches!(refusal, AppendRefusal::Mismatch { .. } | AppendRefusal::NeedsSnapshot) {
            peer.on_failure(local.now_ms + local.timing.retry_ms);
        }
        None
    }

    /// No answer came.
    pub(super) fn on_append_failed(&mut self, local: &Local, to: CopyId, append_id: u64) {
        if let Some(peer) = self.tracker.peers.get_mut(&to)
            && peer.outstanding == Some(append_id)
        {
            peer.outstanding = None;
            peer.on_failure(local.now_ms + local.timing.retry_ms);
        }
    }

    /// A read that no acknowledged write may be missing from.
    pub(super) fn on_strong_read(&mut self, local: &mut Local, request: RequestId) {
        self.reads.add(local, request);
    }

    /// What a copy answered to a strong read's question. Returns the higher term, if there is one: the role ends.
    pub(super) fn on_confirm(
        &mut self,
        local: &Local,
        round: u64,
        copy: CopyId,
        term: PrimaryTerm,
    ) -> Option<PrimaryTerm> {
        self.reads.on_reply(round, copy, term, self.term, local.now_ms + local.timing.retry_ms)
    }

    /// No answer came.
    pub(super) fn on_confirm_failed(&mut self, local: &Local, round: u64, copy: CopyId) {
        self.reads.on_failure(round, copy, local.now_ms + local.timing.retry_ms);
    }

    /// The role is to pass to `to`.
    pub(super) fn on_hand_off(&mut self, local: &mut Local, request: RequestId, to: CopyId, patience_ms: u64) {
        let refusal = if self.hand_off.is_some() {
            HandOffRefusal::UnderWay
        } else if !self.tracker.is_in_sync_peer(to) {
            HandOffRefusal::NotInSync
        } else {
            self.hand_off = Some(HandOff::begin(request, to, local.now_ms + patience_ms));
            return;
        };
        local.actions.push(Action::EndHandOff { request, result: Err(refusal) });
    }

    /// What time brings: who is behind, and which writes have waited for a hand-off for too long.
    pub(super) fn on_tick(&mut self, local: &mut Local) {
        self.tracker.observe(local.log.last(), local.now_ms, local.timing.ack_timeout_ms);
        let late =
            self.hand_off.as_mut().map(|under_way| under_way.on_tick(local.now_ms, HAND_OFF_HOLD.as_millis() as u64));
        for write in late.unwrap_or_default() {
            self.release(&write);
            local.actions.push(Action::RefuseWrite { request: write.request, refusal: WriteRefusal::Overloaded });
        }
    }

    fn release(&mut self, write: &HeldWrite) {
        self.waiting -= 1;
        self.bytes -= write.payload.len();
    }

    /// The last entry to let go of now, if it is worth a write.
    pub(super) fn purgeable(&self, local: &Local) -> Option<SeqNo> {
        let needs = Needs { applied: local.log.applied(), pinned: self.pinned(local), ..self.tracker.log_needs() };
        decide_purge(&local.sizes, &needs, local.now_ms)
    }

    /// First entry that follows a snapshot on its way to, or from, any copy.
    pub(super) fn pinned(&self, local: &Local) -> Option<SeqNo> {
        self.tracker.pinned(local.now_ms).into_iter().chain(local.pins.lowest()).min()
    }

    fn propose(&mut self, local: &mut Local) {
        if let Some(copy) = self.tracker.to_remove(local.now_ms, local.timing.ack_timeout_ms) {
            if local.propose(&self.group, Change::Remove(copy)) && breaks(Mutant::LeaveBeforeConsent) {
                self.tracker.in_sync.remove(&copy);
            }
        } else if let Some(hand_off) = &mut self.hand_off {
            let (to, last) = (hand_off.to, local.log.last());
            let is_at_rest = local.log.applied() == last && self.tracker.matched(to) == Some(last);
            if hand_off.phase == Phase::Draining && is_at_rest && local.propose(&self.group, Change::HandOff(to)) {
                hand_off.phase = Phase::Asked { expect_version: self.group.version };
            }
        } else if let Some((copy, incarnation)) = self.tracker.ready_to_add(local.log.global_checkpoint(), self.barrier)
            && local.propose(&self.group, Change::Add { copy, incarnation })
            && let Some(peer) = self.tracker.peers.get_mut(&copy)
        {
            let unknown = peer.add.is_some_and(|add| add.unknown);
            peer.add = Some(UnresolvedAdd { expect_version: self.group.version, unknown });
        }
    }

    /// A proposal was decided, or its outcome is unknown. A register that came with the decision is learned separately.
    pub(super) fn on_proposal(&mut self, change: Change, outcome: Option<&ProposalOutcome>) {
        if let (Change::HandOff(_), Some(hand_off)) = (change, &mut self.hand_off) {
            hand_off.on_answer(outcome);
        }
        let Change::Add { copy, incarnation } = change else { return };
        let Some(peer) = self.tracker.peers.get_mut(&copy) else { return };
        match outcome {
            None => {
                if let Some(add) = &mut peer.add {
                    add.unknown = true;
                }
            }
            Some(decision) => {
                peer.add = peer.add.filter(|add| add.unknown && !breaks(Mutant::RefusalResolvesAdd));
                let is_same_register = decision.register.version == self.group.version;
                if !decision.accepted && is_same_register && peer.add.is_none() {
                    peer.on_add_refused(incarnation);
                }
            }
        }
    }

    /// Moves everything that can move: the checkpoint, then proposals, then reads, then messages.
    pub(super) fn advance(&mut self, local: &mut Local) {
        // Nothing counts before the grant is durable: after a crash this copy would follow an older primary again, whose stream could
        // cut what it had committed alone; and a strong read in the term before, which this copy still confirms, could miss it.
        let is_granted = local.log.is_persisted(self.granted_write);
        if is_granted || breaks(Mutant::CommitBeforeGrantDurable) {
            let own = if breaks(Mutant::OwnDiskNotCounted) { local.log.last() } else { local.log.durable() };
            local.log.commit(self.tracker.global_checkpoint(own));
        }
        if !is_granted && !breaks(Mutant::SendBeforeGrantDurable) {
            return;
        }
        self.resume_if_not_handed_off(local);
        self.propose(local);
        if !self.reads.is_idle() {
            let asking = Asking { term: self.term, cfg_version: self.group.version, barrier: self.barrier };
            self.reads.advance(local, asking, &self.tracker.ack_members());
        }
        self.send(local);
    }

    /// A hand-off that came to nothing ends, and the writes that waited are taken.
    fn resume_if_not_handed_off(&mut self, local: &mut Local) {
        let Some(hand_off) = &mut self.hand_off else { return };
        hand_off.observe(&self.group, local.register_is_known());
        let Some(hand_off) = self.hand_off.take_if(|hand_off| matches!(hand_off.phase, Phase::Failed(_))) else {
            return;
        };
        if let Phase::Failed(refusal) = &hand_off.phase {
            let result = Err(refusal.clone());
            local.actions.push(Action::EndHandOff { request: hand_off.request, result });
        }
        for write in hand_off.into_held() {
            self.release(&write);
            self.on_write(local, write.request, write.operation_id, write.payload);
        }
    }

    fn send(&mut self, local: &mut Local) {
        let (last, checkpoint) = (local.log.last(), local.log.global_checkpoint());
        let age_ms = self.followed_ms().map_or(0, |followed_ms| local.now_ms.saturating_sub(followed_ms));
        for (copy, peer) in &mut self.tracker.peers {
            let beat_is_due = local.now_ms.saturating_sub(peer.sent_ms) >= local.timing.heartbeat_ms;
            let has_news = !peer.needs_snapshot && peer.next <= last
                || peer.matched.is_some() && checkpoint > peer.sent_checkpoint;
            if peer.outstanding.is_some() || local.now_ms < peer.not_before_ms || !(has_news || beat_is_due) {
                continue;
            }
            let before = SeqNo(peer.next.0 - 1);
            let before_term = local.log.term_at(before);
            peer.needs_snapshot |= before_term.is_none();
            let prev = match before_term {
                Some(term) if !peer.needs_snapshot => LogPosition { term, seqno: before },
                // What it lacks is purged: only ask how far it is.
                _ => local.log.last_position(),
            };
            let up_to = if peer.probing { prev.seqno } else { last };
            peer.outstanding = Some(local.next_message_id);
            peer.sent_ms = local.now_ms;
            peer.sent_checkpoint = checkpoint;
            local.actions.push(Action::SendAppend(SendAppend {
                append_id: local.next_message_id,
                to: *copy,
                node: peer.node(),
                term: self.term,
                cfg_version: self.group.version,
                prev,
                up_to,
                global_checkpoint: checkpoint,
                log_start: local.log.purged().seqno.next(),
                age_ms,
            }));
            local.next_message_id += 1;
        }
    }

    /// The role ends: it has left this copy (`left`), was granted anew, or the disk failed. What was appended is of unknown outcome; what
    /// was only being looked up, or waited, was not taken.
    pub(super) fn end(self, local: &mut Local, left: bool) {
        self.reads.end(local);
        let mut held = VecDeque::new();
        if let Some(hand_off) = self.hand_off {
            let request = hand_off.request;
            local.actions.push(Action::EndHandOff { request, result: hand_off.result_at_end(left) });
            held = hand_off.into_held();
        }
        let held = held.into_iter().map(|write| (write.request, WriteRefusal::NotPrimary));
        let appended = self.waiters.into_values().flatten().map(|waiter| (waiter.request, WriteRefusal::Interrupted));
        let looked_up = self.lookups.into_values().flatten().map(|lookup| (lookup.request, WriteRefusal::NotPrimary));
        let refused =
            appended.chain(looked_up).chain(held).map(|(request, refusal)| Action::RefuseWrite { request, refusal });
        local.actions.extend(refused);
    }

    pub(super) fn writes_waiting(&self) -> usize {
        self.waiting
    }

    /// See [`Tracker::followed_ms`].
    pub(super) fn followed_ms(&self) -> Option<u64> {
        self.tracker.followed_ms()
    }

    /// Copies whose missing entries are purged here.
    pub(super) fn needing_snapshot(&self) -> Vec<CopyId> {
        self.tracker.peers.iter().filter(|(_, peer)| peer.needs_snapshot).map(|(copy, _)| *copy).collect()
    }

    /// The last entry that every other copy holds; unknown counts as nothing.
    pub(super) fn held_by_all(&self) -> Option<SeqNo> {
        self.tracker.peers.values().map(|peer| peer.matched.unwrap_or_default()).min()
    }

    /// Checks the invariants of the role; the text names the broken one.
    pub(super) fn check(&self, local: &Local) -> Result<(), String> {
        self.tracker.check(local.log.last())?;
        if self.term != local.log.current_term() || self.barrier > local.log.last() {
            return Err(format!("primary of term {} in term {}", self.term, local.log.current_term()));
        }
        self.reads.check()?;
        let waiting = self.waiters.values().map(Vec::len).sum::<usize>()
            + self.lookups.values().map(Vec::len).sum::<usize>()
            + self.hand_off.as_ref().map_or(0, HandOff::held);
        if waiting != self.waiting {
            return Err(format!("{waiting} writes wait, {} counted", self.waiting));
        }
        let outside = self.waiters.keys().find(|seqno| **seqno <= local.log.applied() || **seqno > local.log.last());
        outside.map_or(Ok(()), |seqno| Err(format!("a write waits for entry {seqno}, which is applied or absent")))
    }
}

#[cfg(test)]
impl Primary {
    pub(super) fn fingerprint(&self, local: &Local, hasher: &mut impl Hasher) {
        // How much waits follows from what waits; the model stays far below the limits.
        let Self {
            term,
            group,
            barrier,
            granted_write,
            first_append: _,
            tracker,
            waiters,
            lookups,
            waiting: _,
            bytes: _,
            entry_bytes: _,
            reads,
            hand_off,
        } = self;
        reads.fingerprint(local.now_ms, hasher);
        hand_off.as_ref().map(|hand_off| hand_off.fingerprint(local.now_ms)).hash(hasher);
        let grant_is_durable = local.log.is_persisted(*granted_write);
        (term, group.version, barrier, grant_is_durable).hash(hasher);
        (!grant_is_durable).then(|| local.log.last_write() - granted_write).hash(hasher);
        tracker.fingerprint(local.now_ms, &local.timing, hasher);
        for (seqno, waiters) in waiters {
            (seqno, waiters.len()).hash(hasher);
            waiters.iter().for_each(|waiter| (waiter.request, waiter.is_retry).hash(hasher));
        }
        for (operation, lookups) in lookups {
            (operation, lookups.len()).hash(hasher);
            lookups.iter().for_each(|lookup| lookup.request.hash(hasher));
        }
    }

    pub(super) fn awaits_round(&self, round: u64) -> bool {
        self.reads.awaits(round)
    }

    pub(super) fn standing_of_append(&self, to: CopyId, append_id: u64) -> u8 {
        let is_awaited = self.tracker.peers.get(&to).is_some_and(|peer| peer.outstanding == Some(append_id));
        u8::from(append_id >= self.first_append) + u8::from(is_awaited)
    }
}
