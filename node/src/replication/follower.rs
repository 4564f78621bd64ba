//! A copy that takes the primary's stream: W6 and W7.

use std::collections::VecDeque;
#[cfg(test)]
use std::hash::{Hash, Hasher};

use cluster_config::limits::APPENDS_WAITING_MAX;
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};

use super::core::Local;
use super::messages::{Append, AppendOutcome, AppendRefusal, RequestId};
use super::mutant::{Mutant, breaks};
use super::storage::LogWrite;

/// What a follower holds besides its log: answers that wait for the disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Follower {
    waiting: VecDeque<Waiting>,
    /// As of when a primary whose log this one agrees with last told a checkpoint: not later than it surely was the primary.
    heard_ms: Option<u64>,
    /// The first entry that the primary can still send, as far as told.
    log_start: SeqNo,
    /// The primary can no longer send what this copy lacks.
    needs_snapshot: bool,
}

/// An answer that is true once the write is durable.
#[derive(Clone, Debug)]
struct Waiting {
    write_id: u64,
    request: RequestId,
    term: PrimaryTerm,
    outcome: AppendOutcome,
}

/// The copy's log contradicts what it knows to be committed. It must stop.
#[derive(Debug)]
pub(super) struct Diverged(pub(super) String);

impl Follower {
    /// A copy that was primary, surely until then.
    pub(super) fn heard_at(heard_ms: u64) -> Self {
        Self { heard_ms: Some(heard_ms), ..Self::default() }
    }

    /// W6. Takes entries of a primary whose identity was checked and whose term is not older than ours.
    pub(super) fn on_append(&mut self, local: &mut Local, request: RequestId, append: Append) -> Result<(), Diverged> {
        if self.waiting.len() >= APPENDS_WAITING_MAX || !is_well_formed(&append) {
            local.reply(request, AppendOutcome::Refused(AppendRefusal::Busy));
            return Ok(());
        }
        let mut write = LogWrite::default();
        if append.term > local.log.current_term() {
            // A higher term is adopted; the log's tail stays, for it may hold acknowledged entries.
            write.term = Some(append.term);
        }
        let outcome = match accept(local, &append, &mut write)? {
            Accepted::Match(seqno) => AppendOutcome::Match(seqno),
            Accepted::Mismatch(hint) if hint.seqno.next() < append.log_start => {
                AppendOutcome::Refused(AppendRefusal::NeedsSnapshot)
            }
            Accepted::Mismatch(hint) => AppendOutcome::Refused(AppendRefusal::Mismatch { hint }),
        };
        self.needs_snapshot = outcome == AppendOutcome::Refused(AppendRefusal::NeedsSnapshot);
        self.log_start = append.log_start;
        let write_id = if write.is_empty() { local.log.last_write() } else { local.persist(write) };
        if let AppendOutcome::Match(seqno) = outcome {
            // Capped by this message: what lies beyond may still be another primary's leftover.
            let cap = if breaks(Mutant::UncappedCheckpoint) { local.log.last() } else { seqno };
            local.log.commit(append.global_checkpoint.min(cap));
            self.heard_ms = self.heard_ms.max(Some(local.now_ms.saturating_sub(append.age_ms)));
        }
        self.waiting.push_back(Waiting { write_id, request, term: append.term, outcome });
        self.answer(local);
        Ok(())
    }

    /// Answers whatever the disk has caught up with.
    pub(super) fn answer(&mut self, local: &mut Local) {
        let early = breaks(Mutant::AnswerBeforeDurable);
        while let Some(waiting) = self.waiting.pop_front_if(|waiting| early || local.log.is_persisted(waiting.write_id))
        {
            let superseded = waiting.term != local.log.current_term();
            let stale = AppendOutcome::Refused(AppendRefusal::StaleTerm);
            local.reply(waiting.request, if superseded { stale } else { waiting.outcome });
        }
    }

    /// Refuses whatever still waits, because the role ends.
    pub(super) fn end(self, local: &mut Local, refusal: AppendRefusal) {
        for waiting in self.waiting {
            local.reply(waiting.request, AppendOutcome::Refused(refusal));
        }
    }

    /// What the primary has purged this copy may purge too, once it has applied it.
    pub(super) fn purgeable(&self, local: &Local) -> Option<SeqNo> {
        let up_to = SeqNo(self.log_start.0.saturating_sub(1));
        let is_pinned = local.pins.lowest().is_some_and(|from| from <= up_to);
        (local.log.purged().seqno < up_to && up_to <= local.log.applied() && !is_pinned).then_some(up_to)
    }

    pub(super) fn needs_snapshot(&self) -> bool {
        self.needs_snapshot
    }

    pub(super) fn heard_ms(&self) -> Option<u64> {
        self.heard_ms
    }
}

enum Accepted {
    Match(SeqNo),
    /// Where both logs may agree.
    Mismatch(LogPosition),
}

/// Compares the message with the log and fills in what must change.
fn accept(local: &Local, append: &Append, write: &mut LogWrite) -> Result<Accepted, Diverged> {
    let log = &local.log;
    let (prev, purged) = (append.prev, log.purged().seqno);
    if prev.seqno > log.last() {
        return Ok(Accepted::Mismatch(log.last_position()));
    }
    // What is purged was committed, so it agrees with every later primary.
    if prev.seqno >= purged && log.term_at(prev.seqno) != Some(prev.term) && !breaks(Mutant::NoPrevCheck) {
        if prev.seqno <= log.committed() {
            return Err(Diverged(format!("entry {} is committed here, but the primary has another", prev.seqno)));
        }
        let hint = log.last_position_within(SeqNo(prev.seqno.0 - 1), prev.term);
        return Ok(Accepted::Mismatch(hint));
    }
    let is_kept = |seqno: SeqNo| seqno <= purged || breaks(Mutant::KeepConflictingTail) && seqno <= log.last();
    let is_new = |seqno: SeqNo, term: PrimaryTerm| !is_kept(seqno) && log.term_at(seqno) != Some(term);
    if let Some(first) = append.entries.iter().position(|entry| is_new(entry.seqno, entry.term)) {
        let seqno = append.entries[first].seqno;
        if seqno <= log.last() {
            if seqno <= log.committed() {
                return Err(Diverged(format!("entry {seqno} is committed here, but the primary overwrites it")));
            }
            write.truncate_from = Some(seqno);
        }
        write.entries = append.entries[first..].to_vec();
    }
    Ok(Accepted::Match(SeqNo(prev.seqno.0 + append.entries.len() as u64)))
}

/// Entries follow `prev` without gaps, and no term goes back or beyond the sender's.
fn is_well_formed(append: &Append) -> bool {
    let mut before = append.prev;
    append.entries.iter().all(|entry| {
        let follows = entry.seqno == before.seqno.next() && entry.term >= before.term && entry.term <= append.term;
        before.seqno = entry.seqno;
        before.term = entry.term;
        follows
    }) && append.prev.term <= append.term
}

#[cfg(test)]
impl Follower {
    pub(super) fn fingerprint(&self, local: &Local, hasher: &mut impl Hasher) {
        let Self { waiting, heard_ms: _, log_start, needs_snapshot } = self;
        (log_start, needs_snapshot).hash(hasher);
        for Waiting { write_id, request, term, outcome } in waiting {
            (local.log.last_write() - write_id, request, term, outcome).hash(hasher);
        }
    }
}
