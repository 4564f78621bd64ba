//! A copy's disk as a value. Writes are durable when [`Disk::persist`] returns; what is applied may be lost in a crash.

use cluster_config::ids::{CopyId, Lineage, OperationId};
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};

use super::world::SHARD;
use crate::replication::storage::{CopyStorage, EncodedEntry, LogWrite, StorageError, StoredState};

#[derive(Clone)]
pub(super) struct Disk {
    pub(super) copy: CopyId,
    pub(super) term: PrimaryTerm,
    /// Entry `n` has seqno `n + 1`. Purged entries stay here for the oracles; the copy is not shown them.
    pub(super) log: Vec<EncodedEntry>,
    pub(super) purged: usize,
    pub(super) applied: usize,
}

impl Disk {
    pub(super) fn new(copy: CopyId) -> Self {
        Self { copy, term: PrimaryTerm(0), log: Vec::new(), purged: 0, applied: 0 }
    }

    pub(super) fn entry(&self, seqno: usize) -> Option<&EncodedEntry> {
        self.log.get(seqno.checked_sub(1)?)
    }

    /// Errors: the write breaks the contract of the storage.
    pub(super) fn persist(&mut self, write: LogWrite) -> Result<(), String> {
        if let Some(term) = write.term {
            if term < self.term {
                return Err(format!("copy {} goes back from term {} to {term}", self.copy, self.term));
            }
            self.term = term;
        }
        if let Some(cut) = write.truncate_from {
            if cut.0 as usize <= self.applied {
                return Err(format!("copy {} cuts the applied entry {cut}", self.copy));
            }
            self.log.truncate(cut.0 as usize - 1);
        }
        for entry in write.entries {
            if entry.seqno.0 as usize != self.log.len() + 1 {
                return Err(format!("copy {} leaves a gap before entry {}", self.copy, entry.seqno));
            }
            self.log.push(entry);
        }
        Ok(())
    }

    /// Errors: what is to be applied is not on the disk.
    pub(super) fn apply(&mut self, up_to: SeqNo) -> Result<(), String> {
        if up_to.0 as usize > self.log.len() {
            return Err(format!("copy {} applies {up_to}, which is not durable", self.copy));
        }
        self.applied = self.applied.max(up_to.0 as usize);
        Ok(())
    }

    /// Errors: what goes is not applied.
    pub(super) fn purge(&mut self, up_to: SeqNo) -> Result<(), String> {
        if up_to.0 as usize > self.applied {
            return Err(format!("copy {} lets {up_to} go, which is not applied", self.copy));
        }
        self.purged = self.purged.max(up_to.0 as usize);
        Ok(())
    }

    /// Becomes a snapshot of `source`: what is applied there, and no log. The promise to older primaries stays.
    pub(super) fn adopt(&mut self, source: &Disk) {
        self.log = source.log[..source.applied].to_vec();
        (self.applied, self.purged) = (source.applied, source.applied);
        self.term = self.term.max(self.position(self.applied).term);
    }

    pub(super) fn find_operation(&self, id: OperationId) -> Option<SeqNo> {
        self.log[..self.applied].iter().find(|entry| entry.operation_id == id).map(|entry| entry.seqno)
    }

    fn position(&self, seqno: usize) -> LogPosition {
        self.entry(seqno).map_or(LogPosition::default(), |entry| LogPosition { term: entry.term, seqno: entry.seqno })
    }
}

/// What opening a copy reads. Writes go through [`Disk`] itself.
impl CopyStorage for Disk {
    fn state(&self) -> Result<StoredState, StorageError> {
        Ok(StoredState {
            copy: self.copy,
            shard: SHARD,
            lineage: Lineage(0),
            current_term: self.term,
            purged: self.position(self.purged),
            last: self.position(self.log.len()),
            applied: self.position(self.applied),
            floor: SeqNo::ZERO,
            log_bytes: (self.log.len() - self.purged) as u64,
        })
    }

    fn read(&self, from: SeqNo, entries_max: usize, _: usize) -> Result<Vec<EncodedEntry>, StorageError> {
        Ok(self.log.iter().skip(from.0 as usize - 1).take(entries_max).cloned().collect())
    }

    fn term_at(&self, seqno: SeqNo) -> Result<Option<PrimaryTerm>, StorageError> {
        let is_kept = seqno.0 as usize >= self.purged;
        Ok(self.entry(seqno.0 as usize).filter(|_| is_kept).map(|entry| entry.term))
    }

    fn find_operation(&self, id: OperationId) -> Result<Option<SeqNo>, StorageError> {
        Ok(Disk::find_operation(self, id))
    }

    fn persist(&self, _: LogWrite) -> Result<(), StorageError> {
        Err(StorageError::Refused("the model writes through Disk".into()))
    }

    fn apply(&self, _: &[EncodedEntry]) -> Result<(), StorageError> {
        Err(StorageError::Refused("the model writes through Disk".into()))
    }

    fn purge(&self, _: SeqNo) -> Result<(), StorageError> {
        Err(StorageError::Refused("the model writes through Disk".into()))
    }

    fn keep_floor(&self, _: SeqNo) -> Result<(), StorageError> {
        Err(StorageError::Refused("the model writes through Disk".into()))
    }
}
