//! What the core must know of the disk before its first step.

use cluster_config::ids::OperationId;
use cluster_config::limits::{APPEND_BYTES_MAX, APPEND_ENTRIES_MAX};
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};

use super::storage::{CopyStorage, StorageError, StoredState};

/// Where the terms of the log begin, and which client operations are not applied yet.
#[derive(Clone, Debug)]
pub struct Opened {
    /// What the disk says of itself.
    pub stored: StoredState,
    /// First entry of each term after `purged`.
    pub term_starts: Vec<(SeqNo, PrimaryTerm)>,
    /// Client operations after `applied`.
    pub unapplied: Vec<(SeqNo, OperationId)>,
}

/// Reads what the core starts from. Blocks. Cost: a few point reads per term, and one pass over the entries after `applied`.
pub fn open(storage: &dyn CopyStorage) -> Result<Opened, StorageError> {
    let stored = storage.state()?;
    let marks = [stored.purged.seqno, stored.applied.seqno, stored.last.seqno];
    if !marks.is_sorted() {
        return Err(StorageError::Corrupt(format!("purged, applied, last are out of order: {marks:?}")));
    }
    if stored.last.seqno < stored.floor {
        let (last, floor) = (stored.last.seqno, stored.floor);
        return Err(StorageError::Corrupt(format!(
            "the log ends at {last}, but entries up to {floor} were committed here"
        )));
    }
    let term_starts = find_term_starts(storage, stored.purged, stored.last)?;
    let mut unapplied = Vec::new();
    let mut from = stored.applied.seqno.next();
    while from <= stored.last.seqno {
        let entries = storage.read(from, APPEND_ENTRIES_MAX, APPEND_BYTES_MAX)?;
        let Some(last) = entries.last() else {
            return Err(StorageError::Corrupt(format!(
                "entry {from} is missing before the end at {}",
                stored.last.seqno
            )));
        };
        from = last.seqno.next();
        let operations = entries.iter().filter(|entry| entry.operation_id != OperationId(0));
        unapplied.extend(operations.map(|entry| (entry.seqno, entry.operation_id)));
    }
    Ok(Opened { stored, term_starts, unapplied })
}

/// Terms never fall along the log, so each one's end is found by halving.
fn find_term_starts(
    storage: &dyn CopyStorage,
    purged: LogPosition,
    last: LogPosition,
) -> Result<Vec<(SeqNo, PrimaryTerm)>, StorageError> {
    let term_at = |seqno: u64| {
        let missing = || StorageError::Corrupt(format!("entry {seqno} is missing before the end at {}", last.seqno));
        storage.term_at(SeqNo(seqno))?.ok_or_else(missing)
    };
    let mut starts = Vec::new();
    let mut first = purged.seqno.0 + 1;
    while first <= last.seqno.0 {
        let term = term_at(first)?;
        starts.push((SeqNo(first), term));
        if term >= last.term {
            break;
        }
        // `inside` has this term, `beyond` has a later one.
        let (mut inside, mut beyond) = (first, last.seqno.0);
        while beyond - inside > 1 {
            let middle = inside + (beyond - inside) / 2;
            if term_at(middle)? == term {
                inside = middle;
            } else {
                beyond = middle;
            }
        }
        first = beyond;
    }
    Ok(starts)
}
