//! What must hold after every step, judged from outside: by disks, registers and answers, not by what the cores think of themselves.
//!
//! The sketch in the reference (3.6): log matching (Inv1), every copy of the in-sync set holds every externalised entry (Inv2), only
//! committed entries are applied and those never change (Inv3). Beside them: one primary per term, acknowledgements are true, no
//! operation twice, and what was refused as not taken never appears.

use std::collections::BTreeMap;

use cluster_config::ids::OperationId;
use cluster_config::seqno::{PrimaryTerm, SeqNo};

use super::world::{FIRST_READ, Replica, World};
use crate::replication::messages::{RequestId, WriteRefusal};
use crate::replication::storage::StorageError;

#[derive(Clone, Default, Hash)]
pub(super) struct Oracle {
    /// Entries that some copy holds to be committed, in order.
    pub(super) externalised: Vec<(PrimaryTerm, OperationId)>,
    /// Who acted as primary in each term, in which life.
    primaries: BTreeMap<PrimaryTerm, (usize, u8)>,
    writes: BTreeMap<OperationId, Write>,
    /// Strong reads under way, and what they must not miss.
    reads: BTreeMap<RequestId, SeqNo>,
    /// The last position that was acknowledged, or shown to a strong read.
    seen: SeqNo,
    pub(super) reads_served: u8,
    broken: Option<String>,
}

#[derive(Clone, Copy, Default, Hash)]
struct Write {
    /// Attempts that were not refused as not taken.
    attempts: u8,
    acknowledged: Option<SeqNo>,
    interrupted: bool,
}

impl Oracle {
    pub(super) fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// Keeps the first thing that is broken.
    pub(super) fn report(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    pub(super) fn operations(&self) -> u128 {
        self.writes.len() as u128
    }

    /// Whether the client was left in the unknown about this operation and never told more.
    pub(super) fn is_unknown(&self, operation: OperationId) -> bool {
        self.writes.get(&operation).is_some_and(|write| write.interrupted && write.acknowledged.is_none())
    }

    /// Operations with an attempt that was not refused as not taken.
    pub(super) fn taken(&self) -> impl Iterator<Item = OperationId> + '_ {
        self.writes.iter().filter(|(_, write)| write.attempts > 0).map(|(operation, _)| *operation)
    }

    pub(super) fn acknowledgements(&self) -> usize {
        self.writes.values().filter(|write| write.acknowledged.is_some()).count()
    }

    // ---- the client --------------------------------------------------------------------------------------------------------

    pub(super) fn attempt(&mut self, operation: OperationId) {
        self.writes.entry(operation).or_default().attempts += 1;
    }

    pub(super) fn acknowledged(&mut self, primary: &Replica, operation: OperationId, seqno: SeqNo) {
        let entry = primary.disk.entry(seqno.0 as usize);
        if entry.is_none_or(|entry| entry.operation_id != operation) {
            self.report(format!("operation {operation} is acknowledged at {seqno}, where it does not stand"));
        }
        if (primary.disk.applied as u64) < seqno.0 {
            self.report(format!("operation {operation} is acknowledged at {seqno}, which is not applied"));
        }
        let write = self.writes.entry(operation).or_default();
        match write.acknowledged {
            Some(earlier) if earlier != seqno => {
                self.report(format!("operation {operation} is acknowledged at {seqno} and at {earlier}"));
            }
            _ => write.acknowledged = Some(seqno),
        }
        self.seen = self.seen.max(seqno);
    }

    pub(super) fn refused(&mut self, operation: OperationId, refusal: &WriteRefusal) {
        let write = self.writes.entry(operation).or_default();
        match refusal {
            WriteRefusal::Interrupted => write.interrupted = true,
            WriteRefusal::NotPrimary | WriteRefusal::NotEnoughCopies { .. } | WriteRefusal::Overloaded => {
                write.attempts -= 1;
            }
        }
    }

    /// A strong read begins; it gets the first number that is free.
    pub(super) fn begin_read(&mut self) -> RequestId {
        let is_free = |request: &RequestId| !self.reads.contains_key(request);
        let request = (FIRST_READ..).map(RequestId).find(is_free).unwrap_or(RequestId(FIRST_READ));
        self.reads.insert(request, self.seen);
        request
    }

    pub(super) fn served(&mut self, request: RequestId, seqno: SeqNo, applied: SeqNo) {
        let Some(floor) = self.reads.remove(&request) else {
            return self.report("a strong read is answered twice".into());
        };
        if seqno < floor || applied < seqno {
            self.report(format!("a strong read is served at {seqno}, {applied} applied, which misses {floor}"));
        }
        self.seen = self.seen.max(seqno);
        self.reads_served += 1;
    }

    pub(super) fn refused_read(&mut self, request: RequestId) {
        self.reads.remove(&request);
    }

    // ---- after each step ---------------------------------------------------------------------------------------------------

    pub(super) fn check(&mut self, world: &World) {
        for replica in &world.copies {
            self.check_copy(world, replica);
        }
        self.check_in_sync(world);
        self.check_log_matching(world);
        self.check_writes();
    }

    fn check_copy(&mut self, world: &World, replica: &Replica) {
        let (core, disk) = (&replica.core, &replica.disk);
        if let Some(StorageError::Corrupt(why)) = core.poisoned() {
            self.report(format!("copy {} diverged: {why}", disk.copy));
        }
        if world.setting.mutant.is_none()
            && let Err(why) = core.check()
        {
            self.report(format!("copy {}: {why}", disk.copy));
        }
        for seqno in 1..=core.global_checkpoint().0 as usize {
            let Some(entry) = disk.entry(seqno) else {
                return self.report(format!("copy {} calls {seqno} committed, which is not on its disk", disk.copy));
            };
            let entry = (entry.term, entry.operation_id);
            match self.externalised.get(seqno - 1) {
                Some(known) if *known != entry => {
                    return self.report(format!("copy {} commits {entry:?} at {seqno}, others {known:?}", disk.copy));
                }
                Some(_) => {}
                None => self.externalised.push(entry),
            }
        }
        if disk.applied > self.externalised.len() {
            self.report(format!("copy {} applied {}, which nobody committed", disk.copy, disk.applied));
        }
        let mut applied = disk.log[..disk.applied].iter().zip(&self.externalised);
        if let Some((entry, _)) = applied.find(|(entry, known)| (entry.term, entry.operation_id) != **known) {
            self.report(format!("copy {} applied another entry at {}", disk.copy, entry.seqno));
        }
        // A term that is not durable yet has shown itself to nobody, and may be taken up again after a reopening.
        let term = core.confirmed_term();
        if core.is_primary_in(term) {
            let holder = (disk.copy.0 as usize, replica.life);
            if *self.primaries.entry(term).or_insert(holder) != holder {
                self.report(format!("two primaries in term {term}"));
            }
        }
    }

    /// Inv2: the register's in-sync copies hold, durably, whatever anyone holds to be committed.
    fn check_in_sync(&mut self, world: &World) {
        let Some(last) = self.externalised.last().copied() else { return };
        for copy in &world.group().in_sync {
            let disk = &world.copies[copy.0 as usize - 1].disk;
            let held = disk.entry(self.externalised.len()).map(|entry| (entry.term, entry.operation_id));
            if held != Some(last) {
                self.report(format!("in-sync copy {copy} lacks the committed entry {}", self.externalised.len()));
            }
        }
    }

    /// Inv1: where two logs have an entry of the same seqno and term, they are equal up to there.
    fn check_log_matching(&mut self, world: &World) {
        let logs: Vec<_> = world.copies.iter().map(|replica| replica.memory_log()).collect();
        for (n, a) in logs.iter().enumerate() {
            for b in &logs[..n] {
                let agreed = (0..a.len().min(b.len())).rev().find(|n| a[*n].term == b[*n].term);
                if agreed.is_some_and(|agreed| (0..=agreed).any(|n| a[n] != b[n])) {
                    self.report("two logs agree on the term of an entry but not on what comes before".into());
                }
            }
        }
    }

    fn check_writes(&mut self) {
        let mut seen = BTreeMap::new();
        for (n, (_, operation)) in self.externalised.iter().enumerate() {
            if *operation == OperationId(0) {
                continue;
            }
            if let Some(first) = seen.insert(*operation, n + 1) {
                return self.report(format!("operation {operation} is committed at {first} and at {}", n + 1));
            }
            if self.writes.get(operation).is_none_or(|write| write.attempts == 0) {
                return self.report(format!("operation {operation} was refused as not taken, yet it is committed"));
            }
        }
    }
}
