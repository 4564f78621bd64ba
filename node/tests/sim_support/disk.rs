//! A copy's disk in memory. `persist` is durable; applying is not, so a crash may take some of it back.

use cluster_config::ids::{CopyId, Lineage, OperationId, ShardId};
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};
use node::replication::storage::{CopyStorage, EncodedEntry, LogWrite, StorageError, StoredState};
use parking_lot::{Condvar, Mutex};

pub(crate) struct SimDisk {
    copy: CopyId,
    shard: ShardId,
    content: Mutex<Content>,
    /// Calls of `persist`, which is to say fsyncs, pass here.
    pub(crate) persists: Gate,
    /// Calls of `apply` pass here.
    pub(crate) applies: Gate,
}

/// Calls pass one by one while it is open, and are counted.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<GateState>,
    opened: Condvar,
}

#[derive(Default)]
struct GateState {
    is_shut: bool,
    passed: usize,
}

impl Gate {
    pub(crate) fn shut(&self) {
        self.state.lock().is_shut = true;
    }

    pub(crate) fn open(&self) {
        self.state.lock().is_shut = false;
        self.opened.notify_all();
    }

    pub(crate) fn passed(&self) -> usize {
        self.state.lock().passed
    }

    fn pass(&self) {
        let mut state = self.state.lock();
        self.opened.wait_while(&mut state, |state| state.is_shut);
        state.passed += 1;
    }
}

#[derive(Default)]
struct Content {
    term: PrimaryTerm,
    log: Vec<EncodedEntry>,
    applied: usize,
    fails: Option<StorageError>,
}

impl SimDisk {
    pub(crate) fn new(copy: CopyId, shard: ShardId) -> Self {
        let content = Mutex::new(Content::default());
        Self { copy, shard, content, persists: Gate::default(), applies: Gate::default() }
    }

    /// The durable log; entry `n` has seqno `n + 1`.
    pub(crate) fn log(&self) -> Vec<EncodedEntry> {
        self.content.lock().log.clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.content.lock().log.len()
    }

    pub(crate) fn entry(&self, seqno: usize) -> Option<EncodedEntry> {
        self.content.lock().log.get(seqno - 1).cloned()
    }

    pub(crate) fn applied(&self) -> usize {
        self.content.lock().applied
    }

    /// Loses what was applied but not synced: everything after `applied`.
    pub(crate) fn lose_applied(&self, applied: usize) {
        let mut content = self.content.lock();
        content.applied = content.applied.min(applied);
    }

    /// Every later `persist` fails so, until told otherwise.
    pub(crate) fn fail_with(&self, error: Option<StorageError>) {
        self.content.lock().fails = error;
    }
}

impl CopyStorage for SimDisk {
    fn state(&self) -> Result<StoredState, StorageError> {
        let content = self.content.lock();
        let position = |count: usize| match count.checked_sub(1) {
            Some(last) => LogPosition { term: content.log[last].term, seqno: content.log[last].seqno },
            None => LogPosition::default(),
        };
        Ok(StoredState {
            copy: self.copy,
            shard: self.shard,
            lineage: Lineage(0),
            current_term: content.term,
            purged: LogPosition::default(),
            last: position(content.log.len()),
            applied: position(content.applied),
        })
    }

    fn persist(&self, write: LogWrite) -> Result<(), StorageError> {
        self.persists.pass();
        let mut content = self.content.lock();
        if let Some(error) = &content.fails {
            return Err(error.clone());
        }
        if let Some(term) = write.term {
            assert!(term >= content.term, "a term never goes back");
            content.term = term;
        }
        if let Some(cut) = write.truncate_from {
            assert!(cut.0 as usize > content.applied, "applied entries are never cut");
            content.log.truncate(cut.0 as usize - 1);
        }
        for entry in write.entries {
            assert_eq!(entry.seqno.0 as usize, content.log.len() + 1, "no gaps");
            assert!(entry.verify());
            content.log.push(entry);
        }
        Ok(())
    }

    fn read(&self, from: SeqNo, entries_max: usize, bytes_max: usize) -> Result<Vec<EncodedEntry>, StorageError> {
        let content = self.content.lock();
        let mut bytes = 0;
        let fits = |entry: &&EncodedEntry| {
            bytes += entry.payload.len();
            bytes <= bytes_max || bytes == entry.payload.len()
        };
        Ok(content.log.iter().skip(from.0 as usize - 1).take(entries_max).take_while(fits).cloned().collect())
    }

    fn term_at(&self, seqno: SeqNo) -> Result<Option<PrimaryTerm>, StorageError> {
        let content = self.content.lock();
        if seqno == SeqNo::ZERO {
            return Ok(Some(PrimaryTerm(0)));
        }
        Ok(content.log.get(seqno.0 as usize - 1).map(|entry| entry.term))
    }

    fn find_operation(&self, id: OperationId) -> Result<Option<SeqNo>, StorageError> {
        let content = self.content.lock();
        let applied = &content.log[..content.applied];
        Ok(applied.iter().find(|entry| entry.operation_id == id).map(|entry| entry.seqno))
    }

    fn apply(&self, entries: &[EncodedEntry]) -> Result<(), StorageError> {
        self.applies.pass();
        let mut content = self.content.lock();
        for entry in entries {
            let seqno = entry.seqno.0 as usize;
            assert!(seqno <= content.applied + 1, "applied without gaps");
            assert_eq!(content.log.get(seqno - 1), Some(entry), "only durable entries are applied");
            content.applied = content.applied.max(seqno);
        }
        Ok(())
    }
}
