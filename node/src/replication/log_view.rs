//! What the core knows of its own log without reading it: where each term begins, and the watermarks.
//!
//! ```text
//!   purged <= applied <= global checkpoint <= local checkpoint <= last
//!     |          |              |                    |              |
//!     gone    visible    min(committed,           durable      in memory, fsync
//!                         durable)                               under way
//! ```
//! `committed` is what is known to be committed in the group; it may run ahead of what is durable here. Writes go to the disk in
//! the order of their ids; a write's effect is taken in at once, its durability when the disk says so.

use std::collections::{BTreeMap, VecDeque};
#[cfg(test)]
use std::hash::{Hash, Hasher};

use cluster_config::ids::OperationId;
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};

use super::mutant::{Mutant, breaks};
use super::storage::{LogWrite, StoredState};

/// A write whose fsync is under way.
#[derive(Clone, Copy, Debug)]
struct PendingWrite {
    id: u64,
    /// The log is durable up to here once the write is; lowered when a later write cuts below.
    end: SeqNo,
    term: PrimaryTerm,
}

/// The log as the core sees it.
#[derive(Clone, Debug)]
pub(super) struct LogView {
    current_term: PrimaryTerm,
    durable_term: PrimaryTerm,
    purged: LogPosition,
    /// First seqno of each term present after `purged`; both columns strictly ascending.
    runs: Vec<(SeqNo, PrimaryTerm)>,
    last: SeqNo,
    durable: SeqNo,
    committed: SeqNo,
    applied: SeqNo,
    apply_issued: SeqNo,
    last_write: u64,
    pending: VecDeque<PendingWrite>,
    unapplied: UnappliedOperations,
}

/// Client operations of the entries after `applied`. Together with the storage's window of applied operations this covers the
/// whole log, so that a retry is recognised wherever its first attempt stands (W3).
#[derive(Clone, Debug, Default)]
struct UnappliedOperations {
    by_id: BTreeMap<OperationId, SeqNo>,
    in_order: VecDeque<(SeqNo, OperationId)>,
}

impl LogView {
    pub(super) fn new(
        stored: &StoredState,
        runs: Vec<(SeqNo, PrimaryTerm)>,
        unapplied: &[(SeqNo, OperationId)],
    ) -> Self {
        let mut operations = UnappliedOperations::default();
        if !breaks(Mutant::UnappliedTailNotLoaded) {
            unapplied.iter().for_each(|(seqno, id)| operations.add(*seqno, *id));
        }
        Self {
            current_term: stored.current_term,
            durable_term: stored.current_term,
            purged: stored.purged,
            runs,
            last: stored.last.seqno,
            durable: stored.last.seqno,
            committed: stored.applied.seqno,
            applied: stored.applied.seqno,
            apply_issued: stored.applied.seqno,
            last_write: 0,
            pending: VecDeque::new(),
            unapplied: operations,
        }
    }

    pub(super) fn current_term(&self) -> PrimaryTerm {
        self.current_term
    }

    /// The adopted term that survives a crash: the only one to tell others.
    pub(super) fn durable_term(&self) -> PrimaryTerm {
        self.durable_term
    }

    pub(super) fn purged(&self) -> LogPosition {
        self.purged
    }

    pub(super) fn last(&self) -> SeqNo {
        self.last
    }

    pub(super) fn last_position(&self) -> LogPosition {
        LogPosition { term: self.term_at(self.last).unwrap_or_default(), seqno: self.last }
    }

    /// The local checkpoint.
    pub(super) fn durable(&self) -> SeqNo {
        self.durable
    }

    pub(super) fn committed(&self) -> SeqNo {
        self.committed
    }

    pub(super) fn global_checkpoint(&self) -> SeqNo {
        self.committed.min(if breaks(Mutant::OwnDiskNotCounted) { self.last } else { self.durable })
    }

    pub(super) fn applied(&self) -> SeqNo {
        self.applied
    }

    /// Term of an entry, of `purged` too. `None`: further purged, or beyond the end.
    pub(super) fn term_at(&self, seqno: SeqNo) -> Option<PrimaryTerm> {
        if seqno == self.purged.seqno {
            return Some(self.purged.term);
        }
        if seqno < self.purged.seqno || seqno > self.last {
            return None;
        }
        let run = self.runs.partition_point(|(first, _)| *first <= seqno);
        run.checked_sub(1).map(|run| self.runs[run].1)
    }

    /// The last entry at or before `seqno` whose term is at most `term`: the best guess of where another log agrees.
    pub(super) fn last_position_within(&self, seqno: SeqNo, term: PrimaryTerm) -> LogPosition {
        let mut end = seqno.min(self.last);
        for (first, run_term) in self.runs.iter().rev() {
            if *first > end {
                continue;
            }
            if *run_term <= term {
                return LogPosition { term: *run_term, seqno: end };
            }
            end = SeqNo(first.0.saturating_sub(1));
        }
        self.purged
    }

    /// Takes in a change of the log, and returns the id under which it goes to the disk.
    pub(super) fn record(&mut self, write: &LogWrite) -> u64 {
        if let Some(term) = write.term {
            self.current_term = term;
        }
        if let Some(cut) = write.truncate_from {
            self.truncate(cut);
        }
        for entry in &write.entries {
            if self.runs.last().is_none_or(|(_, term)| *term != entry.term) {
                self.runs.push((entry.seqno, entry.term));
            }
            self.last = entry.seqno;
            self.unapplied.add(entry.seqno, entry.operation_id);
        }
        self.last_write += 1;
        self.pending.push_back(PendingWrite { id: self.last_write, end: self.last, term: self.current_term });
        if breaks(Mutant::AckBeforeFsync) {
            self.persisted(self.last_write);
        }
        self.last_write
    }

    fn truncate(&mut self, cut: SeqNo) {
        self.last = SeqNo(cut.0 - 1);
        if !breaks(Mutant::DurableNotLowered) {
            self.durable = self.durable.min(self.last);
        }
        while self.runs.last().is_some_and(|(first, _)| *first > self.last) {
            self.runs.pop();
        }
        for write in &mut self.pending {
            write.end = write.end.min(self.last);
        }
        self.unapplied.truncate(cut);
    }

    /// Lets go of the entries up to `up_to`, which are applied.
    pub(super) fn purge(&mut self, up_to: SeqNo) {
        let (Some(term), next) = (self.term_at(up_to), self.term_at(up_to.next())) else { return };
        self.purged = LogPosition { term, seqno: up_to };
        self.runs.retain(|(first, _)| *first > up_to);
        if let Some(next) = next
            && self.runs.first().is_none_or(|(first, _)| *first > up_to.next())
        {
            self.runs.insert(0, (up_to.next(), next));
        }
    }

    /// Id of the newest write handed to the disk.
    pub(super) fn last_write(&self) -> u64 {
        self.last_write
    }

    /// Whether this write and all before it are durable.
    pub(super) fn is_persisted(&self, write_id: u64) -> bool {
        self.pending.front().is_none_or(|write| write.id > write_id)
    }

    pub(super) fn persisted(&mut self, write_id: u64) {
        while let Some(write) = self.pending.pop_front_if(|write| write.id <= write_id) {
            self.durable = self.durable.max(write.end);
            self.durable_term = self.durable_term.max(write.term);
        }
    }

    pub(super) fn commit(&mut self, up_to: SeqNo) {
        self.committed = self.committed.max(up_to);
    }

    /// The next target of the applier, if it moved.
    pub(super) fn next_apply(&mut self) -> Option<SeqNo> {
        let target = if breaks(Mutant::ApplyUncommitted) { self.durable } else { self.global_checkpoint() };
        (target > self.apply_issued).then(|| {
            self.apply_issued = target;
            target
        })
    }

    pub(super) fn set_applied(&mut self, up_to: SeqNo) {
        self.applied = self.applied.max(up_to);
        self.unapplied.forget(self.applied);
    }

    /// Where an operation stands in the part of the log that is not applied yet.
    pub(super) fn find_unapplied(&self, id: OperationId) -> Option<SeqNo> {
        let found = self.unapplied.by_id.get(&id).copied();
        found.filter(|_| !breaks(Mutant::RetryAppendedAgain))
    }

    /// Checks the order of the watermarks; the text names what is broken.
    pub(super) fn check(&self) -> Result<(), String> {
        let marks = [self.purged.seqno, self.applied, self.global_checkpoint(), self.durable, self.last];
        if !marks.is_sorted() {
            return Err(format!("purged, applied, global, local, last are out of order: {marks:?}"));
        }
        if self.applied > self.apply_issued {
            return Err(format!("applied {} beyond what was asked, {}", self.applied, self.apply_issued));
        }
        if !self.runs.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1) {
            return Err(format!("terms do not ascend: {:?}", self.runs));
        }
        if self.runs.is_empty() != (self.last == self.purged.seqno) || self.last_position().term > self.current_term {
            return Err(format!("log ends at {:?} in term {}", self.last_position(), self.current_term));
        }
        if self.durable_term > self.current_term {
            return Err(format!("durable term {} beyond the current {}", self.durable_term, self.current_term));
        }
        Ok(())
    }
}

impl UnappliedOperations {
    fn add(&mut self, seqno: SeqNo, id: OperationId) {
        if id != OperationId(0) {
            self.by_id.insert(id, seqno);
            self.in_order.push_back((seqno, id));
        }
    }

    fn truncate(&mut self, cut: SeqNo) {
        while let Some((_, id)) = self.in_order.pop_back_if(|(seqno, _)| *seqno >= cut) {
            self.by_id.remove(&id);
        }
    }

    fn forget(&mut self, applied: SeqNo) {
        while let Some((_, id)) = self.in_order.pop_front_if(|(seqno, _)| *seqno <= applied) {
            self.by_id.remove(&id);
        }
    }
}

#[cfg(test)]
impl LogView {
    pub(super) fn fingerprint(&self, hasher: &mut impl Hasher) {
        let Self {
            current_term,
            durable_term,
            purged,
            runs,
            last,
            durable,
            committed,
            applied,
            apply_issued,
            last_write,
            pending,
            unapplied,
        } = self;
        (current_term, durable_term, purged, runs, last, durable, committed, applied, apply_issued).hash(hasher);
        pending.len().hash(hasher);
        for PendingWrite { id, end, term } in pending {
            (last_write - id, end, term).hash(hasher);
        }
        unapplied.in_order.hash(hasher);
    }
}
