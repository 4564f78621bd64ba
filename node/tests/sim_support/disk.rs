//! A copy's disk in memory. `persist` and `purge` are durable; applying is not, so a crash may take some of it back, though never what
//! lost its redo.

use std::ops::Range;

use bytes::Bytes;
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

/// The history is every entry ever held: the first `purged` of them live on in the applied state only, the others are the log.
#[derive(Default)]
struct Content {
    term: PrimaryTerm,
    history: Vec<EncodedEntry>,
    purged: usize,
    applied: usize,
    floor: SeqNo,
    fails: Option<StorageError>,
    /// What the disk gives back instead of the entry of this seqno, since a bit of it turned.
    flipped: Option<EncodedEntry>,
}

impl Content {
    fn position(&self, count: usize) -> LogPosition {
        match count.checked_sub(1) {
            Some(last) => LogPosition { term: self.history[last].term, seqno: self.history[last].seqno },
            None => LogPosition::default(),
        }
    }

    /// Entries as they are read, each against its CRC.
    fn read_back(&self, range: Range<usize>) -> Result<Vec<EncodedEntry>, StorageError> {
        let stored = |entry: &EncodedEntry| match &self.flipped {
            Some(flipped) if flipped.seqno == entry.seqno => flipped.clone(),
            _ => entry.clone(),
        };
        let entries: Vec<EncodedEntry> = self.history[range].iter().map(stored).collect();
        match entries.iter().find(|entry| !entry.verify()) {
            Some(rotten) => Err(StorageError::Corrupt(format!("entry {} fails its CRC", rotten.seqno))),
            None => Ok(entries),
        }
    }
}

impl SimDisk {
    pub(crate) fn new(copy: CopyId, shard: ShardId) -> Self {
        let content = Mutex::new(Content::default());
        Self { copy, shard, content, persists: Gate::default(), applies: Gate::default() }
    }

    /// All that the copy holds durably, in its log or in what became of it; entry `n` has seqno `n + 1`.
    pub(crate) fn history(&self) -> Vec<EncodedEntry> {
        self.content.lock().history.clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.content.lock().history.len()
    }

    /// The entry that the copy holds at a position, in its log or in what became of it.
    pub(crate) fn entry(&self, seqno: usize) -> Option<EncodedEntry> {
        self.content.lock().history.get(seqno - 1).cloned()
    }

    pub(crate) fn applied(&self) -> usize {
        self.content.lock().applied
    }

    pub(crate) fn purged(&self) -> usize {
        self.content.lock().purged
    }

    /// Loses what was applied but not synced: everything after `applied`, though nothing that is purged.
    pub(crate) fn lose_applied(&self, applied: usize) {
        let mut content = self.content.lock();
        content.applied = content.applied.min(applied.max(content.purged));
    }

    /// A snapshot: the state that was applied at this moment, without a log.
    pub(crate) fn snapshot(&self) -> Vec<EncodedEntry> {
        let content = self.content.lock();
        content.history[..content.applied].to_vec()
    }

    /// The copy is replaced by a snapshot of another. It goes on following the term that it followed.
    pub(crate) fn install(&self, snapshot: Vec<EncodedEntry>) {
        let mut content = self.content.lock();
        (content.purged, content.applied) = (snapshot.len(), snapshot.len());
        content.floor = SeqNo::ZERO;
        content.term = content.term.max(snapshot.last().map_or(PrimaryTerm(0), |entry| entry.term));
        content.history = snapshot;
        content.flipped = None;
    }

    pub(crate) fn is_failing(&self) -> bool {
        self.content.lock().fails.is_some()
    }

    /// One bit of a stored entry turns: in its payload, or where that is empty in its checksum.
    pub(crate) fn flip(&self, seqno: usize, bit: usize) {
        let mut content = self.content.lock();
        let mut entry = content.history[seqno - 1].clone();
        let mut payload = entry.payload.to_vec();
        if payload.is_empty() {
            entry.crc32c ^= 1 << (bit % 32);
        } else {
            let at = bit / 8 % payload.len();
            payload[at] ^= 1 << (bit % 8);
            entry.payload = Bytes::from(payload);
        }
        content.flipped = Some(entry);
    }

    /// Whether a bit of the stored log is turned; a cut, a purge or a snapshot takes it away with its entry.
    pub(crate) fn is_rotten(&self) -> bool {
        let content = self.content.lock();
        let log = content.purged + 1..=content.history.len();
        content.flipped.as_ref().is_some_and(|flipped| log.contains(&(flipped.seqno.0 as usize)))
    }

    pub(crate) fn mend(&self) {
        self.content.lock().flipped = None;
    }

    /// Reads a part of the log: entry `n` has seqno `n + 1`.
    pub(crate) fn read_range(&self, range: Range<usize>) -> Result<Vec<EncodedEntry>, StorageError> {
        self.content.lock().read_back(range)
    }

    /// Reads the whole log.
    pub(crate) fn scrub(&self) -> Result<(), StorageError> {
        let content = self.content.lock();
        content.read_back(content.purged..content.history.len()).map(drop)
    }

    /// Every later `persist` fails so, until told otherwise.
    pub(crate) fn fail_with(&self, error: Option<StorageError>) {
        self.content.lock().fails = error;
    }
}

impl CopyStorage for SimDisk {
    fn state(&self) -> Result<StoredState, StorageError> {
        let content = self.content.lock();
        Ok(StoredState {
            copy: self.copy,
            shard: self.shard,
            lineage: Lineage(0),
            current_term: content.term,
            purged: content.position(content.purged),
            last: content.position(content.history.len()),
            applied: content.position(content.applied),
            floor: content.floor,
            log_bytes: 64 * (content.history.len() - content.purged) as u64,
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
            content.history.truncate(cut.0 as usize - 1);
            content.flipped = content.flipped.take().filter(|flipped| flipped.seqno < cut);
        }
        for entry in write.entries {
            assert_eq!(entry.seqno.0 as usize, content.history.len() + 1, "no gaps");
            assert!(entry.verify());
            content.history.push(entry);
        }
        Ok(())
    }

    fn read(&self, from: SeqNo, entries_max: usize, bytes_max: usize) -> Result<Vec<EncodedEntry>, StorageError> {
        let content = self.content.lock();
        if from.0 as usize <= content.purged {
            return Err(StorageError::Refused(format!("entry {from} is purged")));
        }
        let mut bytes = 0;
        let fits = |entry: &&EncodedEntry| {
            bytes += entry.payload.len();
            bytes <= bytes_max || bytes == entry.payload.len()
        };
        let first = content.history.len().min(from.0 as usize - 1);
        let count = content.history[first..].iter().take(entries_max).take_while(fits).count();
        content.read_back(first..first + count)
    }

    fn term_at(&self, seqno: SeqNo) -> Result<Option<PrimaryTerm>, StorageError> {
        let (content, count) = (self.content.lock(), seqno.0 as usize);
        let is_known = content.purged <= count && count <= content.history.len();
        Ok(is_known.then(|| content.position(count).term))
    }

    fn find_operation(&self, id: OperationId) -> Result<Option<SeqNo>, StorageError> {
        let content = self.content.lock();
        let applied = &content.history[..content.applied];
        Ok(applied.iter().find(|entry| entry.operation_id == id).map(|entry| entry.seqno))
    }

    fn apply(&self, entries: &[EncodedEntry]) -> Result<(), StorageError> {
        self.applies.pass();
        let mut content = self.content.lock();
        for entry in entries {
            let seqno = entry.seqno.0 as usize;
            assert!(seqno <= content.applied + 1, "applied without gaps");
            assert_eq!(content.history.get(seqno - 1), Some(entry), "only durable entries are applied");
            content.applied = content.applied.max(seqno);
        }
        Ok(())
    }

    fn purge(&self, up_to: SeqNo) -> Result<(), StorageError> {
        let mut content = self.content.lock();
        assert!(up_to.0 as usize <= content.applied, "only what is applied is purged");
        content.purged = content.purged.max(up_to.0 as usize);
        Ok(())
    }

    fn keep_floor(&self, floor: SeqNo) -> Result<(), StorageError> {
        let mut content = self.content.lock();
        assert!(floor.0 as usize <= content.history.len(), "the floor is durable");
        content.floor = content.floor.max(floor);
        Ok(())
    }
}
