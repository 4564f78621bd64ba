//! How far each copy has come, and what that allows: pure arithmetic over acknowledgements, without messages.
//!
//! The **ack set** is the in-sync set as last learned from metadata, plus the copies that are *tracked* on their way into it (W4).
//! The global checkpoint is the smallest durable position of its members. A copy leaves the ack set only when metadata is known
//! to have removed it, or, while merely tracked, when no proposal to add it can come true any more.

use std::collections::{BTreeMap, BTreeSet};
#[cfg(test)]
use std::hash::{Hash, Hasher};

use cluster_config::ids::{CopyId, Incarnation, NodeId};
use cluster_config::limits::{LOG_PIN_MAX, TRACKING_LAG_ENTRIES_MAX};
use cluster_config::seqno::{LogPosition, SeqNo};
use cluster_config::shard_group::{CopyPhase, CopyRecord, CopyRole, ShardGroup};

#[cfg(test)]
use super::core::Timing;
#[cfg(test)]
use super::core::fingerprint::age;
use super::log_view::LogView;
use super::mutant::{Mutant, breaks};
use super::retention::Needs;

/// One other copy as its primary sees it, in this term.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) record: CopyRecord,
    /// First entry to send next.
    pub(super) next: SeqNo,
    /// Durable and equal to our log up to here; unknown until it answered in this term.
    pub(super) matched: Option<SeqNo>,
    /// Counted in the ack set although not in sync yet.
    pub(super) tracked: bool,
    /// A proposal to add this copy that may still come true.
    pub(super) add: Option<UnresolvedAdd>,
    /// Metadata refused to add this life of it under the present register: its node is dead there, or stops.
    refused: Option<Incarnation>,
    /// The life of its process that the acknowledgements come from.
    pub(super) incarnation: Incarnation,
    /// The one message under way.
    pub(super) outstanding: Option<u64>,
    pub(super) sent_ms: u64,
    pub(super) sent_checkpoint: SeqNo,
    /// Pause after a failure.
    pub(super) not_before_ms: u64,
    pub(super) heard_ms: u64,
    /// Until then it surely followed this term: when the last message that it took was sent.
    pub(super) followed_ms: u64,
    /// The last message failed: until it answers again, ask without entries.
    pub(super) probing: bool,
    /// An entry that it lacked, and since when.
    behind: Option<(SeqNo, u64)>,
    /// It said that its disk, or its agreement with us, is broken.
    pub(super) broken: bool,
    /// Our log no longer holds what it lacks.
    pub(super) needs_snapshot: bool,
    /// It fetches a snapshot that ends before this entry.
    pub(super) pinned: Option<SeqNo>,
}

/// A proposal to add a copy whose end is not known (W4: the copy must stay in the ack set meanwhile).
#[derive(Clone, Copy, Debug)]
pub(super) struct UnresolvedAdd {
    /// The proposal is void once the register is known to be newer than this.
    pub(super) expect_version: u64,
    /// An attempt at this version was never answered, so a refusal of a later attempt proves nothing.
    pub(super) unknown: bool,
}

/// All other copies of the shard.
#[derive(Clone, Debug)]
pub(super) struct Tracker {
    own: CopyId,
    pub(super) in_sync: BTreeSet<CopyId>,
    pub(super) peers: BTreeMap<CopyId, Peer>,
}

impl Tracker {
    pub(super) fn new(own: CopyId) -> Self {
        Self { own, in_sync: BTreeSet::new(), peers: BTreeMap::new() }
    }

    /// Takes in a newer register. New copies are probed from `next`.
    pub(super) fn reconfigure(&mut self, group: &ShardGroup, next: SeqNo, now_ms: u64) {
        self.in_sync.clone_from(&group.in_sync);
        self.peers.retain(|copy, _| group.copies.contains_key(copy));
        for (copy, record) in &group.copies {
            let retiring = record.phase == CopyPhase::Retiring && !group.in_sync.contains(copy);
            if *copy == self.own || retiring {
                self.peers.remove(copy);
                continue;
            }
            let peer = self.peers.entry(*copy).or_insert_with(|| Peer::new(*record, next, now_ms));
            peer.record = *record;
            peer.add = peer.add.filter(|add| group.version <= add.expect_version);
            peer.refused = None;
            if group.in_sync.contains(copy) {
                peer.tracked = false;
            }
        }
    }

    /// Whether the copy is in sync, and not this one.
    pub(super) fn is_in_sync_peer(&self, copy: CopyId) -> bool {
        copy != self.own && self.in_sync.contains(&copy)
    }

    /// How far a copy is known to hold our log.
    pub(super) fn matched(&self, copy: CopyId) -> Option<SeqNo> {
        self.peers.get(&copy).and_then(|peer| peer.matched)
    }

    /// Members of the ack set other than this copy, with their nodes. Every in-sync copy exists, or the register would be broken.
    pub(super) fn ack_members(&self) -> BTreeMap<CopyId, NodeId> {
        let is_tracked = |peer: &Peer| peer.tracked && !breaks(Mutant::ReadWithoutTracked);
        let counts = |copy: &CopyId, peer: &Peer| is_tracked(peer) || self.in_sync.contains(copy);
        self.peers.iter().filter(|(copy, peer)| counts(copy, peer)).map(|(copy, peer)| (*copy, peer.node())).collect()
    }

    /// Who still needs the log, as far as the other copies go.
    pub(super) fn log_needs(&self) -> Needs {
        let can_be_helped =
            |copy: &CopyId, peer: &Peer| !peer.tracked && !self.in_sync.contains(copy) && !peer.needs_snapshot;
        let lagging = self.peers.iter().filter(|(copy, peer)| can_be_helped(copy, peer));
        Needs {
            ack_set: self.ack_peers().map(Option::unwrap_or_default).min(),
            lagging: lagging.map(|(_, peer)| peer.matched.unwrap_or_default()).min(),
            ..Needs::default()
        }
    }

    /// Until when all in-sync copies surely followed this term, and so nobody else could order writes; `None`: there are no others.
    pub(super) fn followed_ms(&self) -> Option<u64> {
        let others = self.in_sync.iter().filter(|copy| **copy != self.own);
        others.filter_map(|copy| self.peers.get(copy)).map(|peer| peer.followed_ms).min()
    }

    /// The lowest pin of a copy that was heard lately.
    pub(super) fn pinned(&self, now_ms: u64) -> Option<SeqNo> {
        let is_valid = |peer: &&Peer| peer.is_heard(now_ms, LOG_PIN_MAX.as_millis() as u64);
        self.peers.values().filter(is_valid).filter_map(|peer| peer.pinned).min()
    }

    /// Members of the ack set other than this copy. A member that is unknown counts as having nothing.
    fn ack_peers(&self) -> impl Iterator<Item = Option<SeqNo>> {
        let in_sync = self.in_sync.iter().filter(|copy| **copy != self.own);
        let in_sync = in_sync.map(|copy| self.peers.get(copy).and_then(|peer| peer.matched));
        in_sync.chain(self.peers.values().filter(|peer| peer.tracked).map(|peer| peer.matched))
    }

    /// W4: the commit point, the smallest durable position in the ack set.
    pub(super) fn global_checkpoint(&self, own_durable: SeqNo) -> SeqNo {
        if breaks(Mutant::MajorityAck) {
            let mut held: Vec<SeqNo> = self.ack_peers().map(Option::unwrap_or_default).chain([own_durable]).collect();
            held.sort_unstable();
            return held[held.len() / 2];
        }
        self.ack_peers().fold(own_durable, |least, matched| least.min(matched.unwrap_or_default()))
    }

    /// Members of the ack set on which an entry is durable, this copy included.
    pub(super) fn copies_holding(&self, seqno: SeqNo) -> u32 {
        1 + self.ack_peers().filter(|matched| matched.is_some_and(|matched| matched >= seqno)).count() as u32
    }

    /// Updates who is behind since when, and who is tracked. Called with the passing of time.
    pub(super) fn observe(&mut self, last: SeqNo, now_ms: u64, ack_timeout_ms: u64) {
        for (copy, peer) in &mut self.peers {
            let matched = peer.matched.unwrap_or_default();
            if peer.behind.is_none_or(|(target, _)| matched >= target) {
                peer.behind = (matched < last).then_some((last, now_ms));
            }
            if self.in_sync.contains(copy) {
                continue;
            }
            // Nobody has to wait for a copy on its way into the set: the first message without an answer ends it.
            let failing = peer.probing || peer.is_failing(now_ms, ack_timeout_ms);
            let may_leave = peer.add.is_none() || breaks(Mutant::UntrackWithAddInFlight);
            if peer.tracked && failing && may_leave {
                peer.tracked = false;
            } else if !peer.tracked && !failing && peer.may_enter() && !breaks(Mutant::AddUntracked) {
                peer.tracked = peer.matched.is_some_and(|matched| last.0 - matched.0 <= TRACKING_LAG_ENTRIES_MAX);
            }
        }
    }

    /// W8: a copy that may be proposed for the in-sync set now. `barrier` is the first entry of this term.
    pub(super) fn ready_to_add(&self, global_checkpoint: SeqNo, barrier: SeqNo) -> Option<(CopyId, Incarnation)> {
        if global_checkpoint < barrier && !breaks(Mutant::AddBeforeBarrier) {
            return None;
        }
        let is_counted = |peer: &Peer| peer.tracked || breaks(Mutant::AddUntracked) && peer.may_enter();
        let ready = |peer: &Peer| is_counted(peer) && peer.matched.is_some_and(|matched| matched >= global_checkpoint);
        self.peers.iter().find(|(_, peer)| ready(peer)).map(|(copy, peer)| (*copy, peer.incarnation))
    }

    /// W9: a copy that metadata should remove: it is in sync and failing, or an unresolved proposal holds it in the ack set.
    pub(super) fn to_remove(&self, now_ms: u64, ack_timeout_ms: u64) -> Option<CopyId> {
        let holds_up = |copy: &CopyId, peer: &Peer| self.in_sync.contains(copy) || peer.add.is_some();
        self.peers
            .iter()
            .find(|(copy, peer)| holds_up(copy, peer) && peer.is_failing(now_ms, ack_timeout_ms))
            .map(|(copy, _)| *copy)
    }

    /// Checks that the ack set is what W4 says; the text names what is broken.
    pub(super) fn check(&self, last: SeqNo) -> Result<(), String> {
        for (copy, peer) in &self.peers {
            if peer.tracked && self.in_sync.contains(copy) {
                return Err(format!("copy {copy} is tracked and in sync at once"));
            }
            if peer.add.is_some() && !peer.tracked && !self.in_sync.contains(copy) {
                return Err(format!("copy {copy} left the ack set while a proposal to add it may still come true"));
            }
            if peer.matched.is_some_and(|matched| matched > last || matched >= peer.next) {
                return Err(format!("copy {copy} matched {:?}, next {}, last {last}", peer.matched, peer.next));
            }
        }
        Ok(())
    }
}

impl Peer {
    fn new(record: CopyRecord, next: SeqNo, now_ms: u64) -> Self {
        Self {
            record,
            next,
            matched: None,
            tracked: false,
            add: None,
            refused: None,
            incarnation: Incarnation(0),
            outstanding: None,
            sent_ms: 0,
            sent_checkpoint: SeqNo::ZERO,
            not_before_ms: 0,
            heard_ms: now_ms,
            followed_ms: now_ms,
            probing: false,
            behind: None,
            broken: false,
            needs_snapshot: false,
            pinned: None,
        }
    }

    pub(super) fn node(&self) -> NodeId {
        self.record.node
    }

    fn may_enter(&self) -> bool {
        self.record.role == CopyRole::Voter
            && matches!(self.record.phase, CopyPhase::New | CopyPhase::CatchingUp)
            && self.refused != Some(self.incarnation)
    }

    /// Metadata said no to that life of it, and no proposal to add it is under way: acknowledgements do not wait for it any longer (W4),
    /// until the register or the life of its process is another.
    pub(super) fn on_add_refused(&mut self, incarnation: Incarnation) {
        self.refused = Some(incarnation);
        self.tracked &= self.incarnation != incarnation;
    }

    fn is_heard(&self, now_ms: u64, ack_timeout_ms: u64) -> bool {
        now_ms.saturating_sub(self.heard_ms) <= ack_timeout_ms
    }

    /// Broken, silent, or lacking some entry, for longer than the timeout.
    fn is_failing(&self, now_ms: u64, ack_timeout_ms: u64) -> bool {
        let late = self.behind.is_some_and(|(_, since)| now_ms.saturating_sub(since) > ack_timeout_ms);
        self.broken || late || !self.is_heard(now_ms, ack_timeout_ms)
    }

    /// The message under way came to nothing; the next one comes after a pause.
    pub(super) fn on_failure(&mut self, not_before_ms: u64) {
        self.not_before_ms = not_before_ms;
        self.sent_checkpoint = SeqNo::ZERO;
        self.probing = true;
    }

    /// It holds our log up to here.
    pub(super) fn on_match(&mut self, seqno: SeqNo) {
        self.matched = self.matched.max(Some(seqno));
        self.next = self.next.max(seqno.next());
        self.needs_snapshot = false;
        self.broken = false;
    }

    /// It lacks what is purged here. A copy that lacks it has acknowledged nothing.
    pub(super) fn on_needs_snapshot(&mut self) {
        self.matched = None;
        self.needs_snapshot = true;
    }

    /// Its log ends, or differs, before what we sent: go back to where both may agree.
    pub(super) fn on_mismatch(&mut self, hint: LogPosition, log: &LogView) {
        let agreed = log.last_position_within(hint.seqno, hint.term);
        self.next = agreed.seqno.next();
        // In sync or not, a copy that lacks what it acknowledged has acknowledged nothing.
        self.matched = self.matched.filter(|matched| *matched < self.next);
        self.needs_snapshot = hint.seqno < log.purged().seqno;
    }
}

#[cfg(test)]
impl Tracker {
    pub(super) fn fingerprint(&self, now_ms: u64, timing: &Timing, hasher: &mut impl Hasher) {
        let Self { own: _, in_sync, peers } = self;
        in_sync.hash(hasher);
        for (copy, peer) in peers {
            let Peer {
                record: _,
                next,
                matched,
                tracked,
                add,
                refused,
                incarnation,
                outstanding,
                sent_ms,
                sent_checkpoint,
                not_before_ms,
                heard_ms,
                followed_ms: _,
                probing,
                behind,
                broken,
                needs_snapshot,
                pinned,
            } = peer;
            (copy, next, matched, tracked, refused, incarnation, outstanding.is_some()).hash(hasher);
            add.map(|add| (add.expect_version, add.unknown)).hash(hasher);
            let late_ms = timing.ack_timeout_ms + 1;
            (age(now_ms, *sent_ms, timing.heartbeat_ms), age(now_ms, *heard_ms, late_ms)).hash(hasher);
            behind.map(|(target, since)| (target, age(now_ms, since, late_ms))).hash(hasher);
            (sent_checkpoint, not_before_ms.saturating_sub(now_ms), probing, broken, needs_snapshot, pinned)
                .hash(hasher);
        }
    }
}

#[cfg(test)]
mod tests {
    use cluster_config::ids::{CollectionId, Lineage, ShardId};
    use cluster_config::seqno::PrimaryTerm;

    use super::*;

    fn group(version: u64, in_sync: &[u64]) -> ShardGroup {
        let phase = |copy: u64| if in_sync.contains(&copy) { CopyPhase::InSync } else { CopyPhase::CatchingUp };
        let record = |copy: u64| CopyRecord { node: NodeId(copy), role: CopyRole::Voter, phase: phase(copy) };
        ShardGroup {
            shard: ShardId { collection: CollectionId(1), index: 0 },
            version,
            primary_term: PrimaryTerm(1),
            primary: None,
            in_sync: in_sync.iter().map(|copy| CopyId(*copy)).collect(),
            copies: (1..=4).map(|copy| (CopyId(copy), record(copy))).collect(),
            lineage: Lineage(0),
            min_in_sync: 1,
        }
    }

    fn tracker(in_sync: &[u64], matched: &[(u64, u64)]) -> Tracker {
        let mut tracker = Tracker::new(CopyId(1));
        tracker.reconfigure(&group(1, in_sync), SeqNo(1), 0);
        for (copy, seqno) in matched {
            tracker.peers.get_mut(&CopyId(*copy)).expect("a copy of the group").on_match(SeqNo(*seqno));
        }
        tracker
    }

    #[test]
    fn the_checkpoint_is_the_smallest_of_the_ack_set_and_of_nobody_else() {
        // (in sync, tracked, matched, own durable, expected)
        type Case = (&'static [u64], &'static [u64], &'static [(u64, u64)], u64, u64);
        let cases: [Case; 7] = [
            (&[1], &[], &[], 9, 9),
            (&[1, 2], &[], &[(2, 5)], 9, 5),
            (&[1, 2], &[], &[(2, 9)], 5, 5),
            (&[1, 2, 3], &[], &[(2, 9), (3, 4)], 9, 4),
            (&[1, 2, 3], &[], &[(2, 9)], 9, 0),
            (&[1, 2], &[], &[(2, 9), (3, 1)], 9, 9),
            (&[1, 2], &[3], &[(2, 9), (3, 7)], 9, 7),
        ];
        for (in_sync, tracked, matched, durable, expected) in cases {
            let mut tracker = tracker(in_sync, matched);
            for copy in tracked {
                tracker.peers.get_mut(&CopyId(*copy)).expect("a copy of the group").tracked = true;
            }
            assert_eq!(
                tracker.global_checkpoint(SeqNo(durable)),
                SeqNo(expected),
                "{in_sync:?} {tracked:?} {matched:?}"
            );
        }
    }

    #[test]
    fn a_copy_is_tracked_once_it_is_near_and_untracked_once_it_fails() {
        let mut tracker = tracker(&[1], &[(2, 10)]);
        tracker.observe(SeqNo(10 + TRACKING_LAG_ENTRIES_MAX + 1), 0, 2000);
        assert!(!tracker.peers[&CopyId(2)].tracked, "too far behind");
        tracker.observe(SeqNo(10 + TRACKING_LAG_ENTRIES_MAX), 100, 2000);
        assert!(tracker.peers[&CopyId(2)].tracked);
        assert!(!tracker.peers[&CopyId(3)].tracked, "never answered");
        tracker.observe(SeqNo(10 + TRACKING_LAG_ENTRIES_MAX), 2101, 2000);
        assert!(!tracker.peers[&CopyId(2)].tracked, "silent");
    }

    #[test]
    fn a_refused_attempt_after_an_unanswered_one_keeps_the_copy_in_the_ack_set() {
        let mut tracker = tracker(&[1], &[(2, 10)]);
        tracker.observe(SeqNo(10), 0, 2000);
        tracker.peers.get_mut(&CopyId(2)).expect("a copy").add =
            Some(UnresolvedAdd { expect_version: 1, unknown: true });
        tracker.observe(SeqNo(10), 10_000, 2000);
        assert!(tracker.peers[&CopyId(2)].tracked, "it may still be added");
        assert_eq!(tracker.to_remove(10_000, 2000), Some(CopyId(2)), "so metadata is asked to rule that out");
        tracker.reconfigure(&group(2, &[1]), SeqNo(1), 10_000);
        tracker.observe(SeqNo(10), 10_100, 2000);
        assert!(!tracker.peers[&CopyId(2)].tracked, "a newer register voids the proposal");
    }
}
