//! What replication needs of a copy's disk. Implemented by `shard::Shard`, and by a simulated disk in the tests.
//!
//! Every call blocks and runs on a storage pool, never on the reactor. `persist` has one caller at a time, and so have `apply` and `purge`;
//! they run **beside each other** (a slow `apply`, such as one that extends the index, must not hold up the log), and `read`,
//! `term_at` and `find_operation` run beside both. An error of any call poisons the copy until it is reopened: after a failed
//! fsync nobody knows what the disk holds.

use cluster_config::ids::{CopyId, Lineage, OperationId, ShardId};
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};

pub use crate::shard::operation::EncodedEntry;

/// What a copy finds on its disk when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredState {
    /// Identity of this physical copy.
    pub copy: CopyId,
    /// The shard it is a copy of.
    pub shard: ShardId,
    /// Copies of another lineage are void.
    pub lineage: Lineage,
    /// Highest term ever adopted.
    pub current_term: PrimaryTerm,
    /// Entries up to here are gone from the log (zero: none). They were committed and applied.
    pub purged: LogPosition,
    /// Last entry of the log; equal to `purged` when the log is empty.
    pub last: LogPosition,
    /// Applied up to here.
    pub applied: LogPosition,
    /// Committed up to here, as last remembered by [`CopyStorage::keep_floor`]. A log that ends before it has lost what was acknowledged.
    pub floor: SeqNo,
    /// Bytes that the log takes on disk, about.
    pub log_bytes: u64,
}

/// One durable change of the log: the term is adopted, the tail is cut, the entries are appended, in this order and all or nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogWrite {
    /// Term to adopt, if it changed.
    pub term: Option<PrimaryTerm>,
    /// First entry to remove, with everything after it.
    pub truncate_from: Option<SeqNo>,
    /// Entries that continue the log, without gaps.
    pub entries: Vec<EncodedEntry>,
}

impl LogWrite {
    /// Whether there is nothing to make durable.
    pub fn is_empty(&self) -> bool {
        self.term.is_none() && self.truncate_from.is_none() && self.entries.is_empty()
    }

    /// Adds a later write, so that both cost one fsync. The result has the effect of `self` followed by `later`.
    pub fn merge(&mut self, later: LogWrite) {
        self.term = later.term.or(self.term);
        if let Some(cut) = later.truncate_from {
            self.entries.retain(|entry| entry.seqno < cut);
            self.truncate_from = Some(self.truncate_from.map_or(cut, |earlier| earlier.min(cut)));
        }
        self.entries.extend(later.entries);
    }
}

/// Disk of one copy: a log, the applied state, and the window of applied operation ids.
pub trait CopyStorage: Send + Sync + 'static {
    /// What was found at opening, with every later `persist` and `apply` taken in.
    fn state(&self) -> Result<StoredState, StorageError>;

    /// Makes the write durable: on `Ok` it survives the loss of power. Entries that do not continue the log are refused with
    /// [`StorageError::Refused`], and so is a cut at or below `applied`.
    fn persist(&self, write: LogWrite) -> Result<(), StorageError>;

    /// Entries from `from` on, in order and checked against their CRC: at most `entries_max`, and at most `bytes_max` of payload
    /// unless the first alone is larger. Empty at the end of the log. Entries written by a `persist` still under way may be missing.
    fn read(&self, from: SeqNo, entries_max: usize, bytes_max: usize) -> Result<Vec<EncodedEntry>, StorageError>;

    /// Term of one entry; of `purged.seqno` as well. `None` where it is further purged or beyond the end.
    fn term_at(&self, seqno: SeqNo) -> Result<Option<PrimaryTerm>, StorageError>;

    /// Where the operation was applied, if it is in the window of remembered ids. Sees every finished `apply`.
    fn find_operation(&self, id: OperationId) -> Result<Option<SeqNo>, StorageError>;

    /// Applies committed entries that continue at `applied + 1`. Entries at or below `applied` are skipped, so that a replay after
    /// a crash is harmless. Not synced: the log is the redo.
    fn apply(&self, entries: &[EncodedEntry]) -> Result<(), StorageError>;

    /// Lets go of the entries up to `up_to`, all or nothing. What was applied up to there is durable before its redo is gone: after any
    /// crash the copy is found with `purged <= applied`. Runs beside all other calls. Refused beyond `applied`; nothing happens if
    /// the entries are gone already. The window of operation ids is not part of the log and stays.
    fn purge(&self, up_to: SeqNo) -> Result<(), StorageError>;

    /// Remembers that entries up to `floor` are committed and durable here. Must not be kept where the log is: what cuts the log short
    /// must not take this with it. Not synced; an older value found after a crash is as true.
    fn keep_floor(&self, floor: SeqNo) -> Result<(), StorageError>;
}

/// Why the disk failed a copy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// No space left.
    #[error("no space left for the copy")]
    Full,
    /// Bytes that fail their check, or state that contradicts itself.
    #[error("stored bytes are corrupt: {0}")]
    Corrupt(String),
    /// The operating system or RocksDB reported an error.
    #[error("storage failed: {0}")]
    Io(String),
    /// The call breaks the contract of [`CopyStorage`]; a bug of the caller.
    #[error("storage call refused: {0}")]
    Refused(String),
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn entry(seqno: u64, term: u64) -> EncodedEntry {
        EncodedEntry::seal(SeqNo(seqno), PrimaryTerm(term), OperationId(0), Bytes::new())
    }

    #[test]
    fn merged_writes_have_the_effect_of_both_in_turn() {
        let mut write = LogWrite {
            term: Some(PrimaryTerm(1)),
            truncate_from: Some(SeqNo(6)),
            entries: vec![entry(6, 1), entry(7, 1)],
        };
        write.merge(LogWrite { term: None, truncate_from: None, entries: vec![entry(8, 1)] });
        write.merge(LogWrite { term: Some(PrimaryTerm(2)), truncate_from: Some(SeqNo(7)), entries: vec![entry(7, 2)] });
        assert_eq!(write.term, Some(PrimaryTerm(2)));
        assert_eq!(write.truncate_from, Some(SeqNo(6)));
        let kept: Vec<_> = write.entries.iter().map(|e| (e.seqno.0, e.term.0)).collect();
        assert_eq!(kept, [(6, 1), (7, 2)]);

        write.merge(LogWrite { truncate_from: Some(SeqNo(3)), ..LogWrite::default() });
        assert_eq!(write.truncate_from, Some(SeqNo(3)));
        assert!(write.entries.is_empty());
        assert!(!write.is_empty());
    }
}
