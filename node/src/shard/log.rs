//! The log of one copy: appended, cut and read by position. Says where it begins and ends and which term each entry is of.
//!
//! Invariants: seqnos are dense from `purged + 1` to `last`; terms do not fall along the log; the first seqno of each term is
//! recorded, so that the term of an entry is known without reading it.

use std::collections::BTreeMap;

use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};
use parking_lot::{Mutex, RwLock};
use rocksdb::WriteBatch;

use super::keys::{self, Family, MetaKey};
use super::operation::EncodedEntry;
use super::records::{corrupt, decode, decode_u64, encode, encode_u64};
use super::store::{Durability, Store};
use crate::replication::storage::{LogWrite, StorageError};

/// Where the log stands. Small, so it is kept in memory and changed only after the write that it describes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Bounds {
    current_term: PrimaryTerm,
    purged: LogPosition,
    last: LogPosition,
    /// First seqno of each term that the log holds entries of.
    term_starts: BTreeMap<SeqNo, PrimaryTerm>,
}

/// The log of one copy.
pub(crate) struct Log {
    bounds: RwLock<Bounds>,
    /// Held from before a write until the bounds tell of it.
    writing: Mutex<()>,
}

/// Where a log begins and ends, and the term its copy follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogState {
    pub(crate) current_term: PrimaryTerm,
    pub(crate) purged: LogPosition,
    pub(crate) last: LogPosition,
}

impl Log {
    /// Finds the log's bounds on disk. The last entry is read and checked; older ones are when they are used.
    pub(crate) fn open(store: &Store) -> Result<Self, StorageError> {
        let current_term = match store.get(Family::Meta, &MetaKey::CurrentTerm.encode())? {
            Some(value) => PrimaryTerm(decode_u64("current term", &value)?),
            None => PrimaryTerm(0),
        };
        let purged: LogPosition = match store.get(Family::Meta, &MetaKey::Purged.encode())? {
            Some(value) => decode("purged position", &value)?,
            None => LogPosition::default(),
        };
        let term_starts = read_term_starts(store)?;
        let last = match store.last(Family::Log, &[], None)? {
            None => purged,
            Some((key, value)) => {
                let seqno = SeqNo(decode_u64("log key", &key)?);
                let entry =
                    EncodedEntry::from_stored(seqno, &value).map_err(|e| StorageError::Corrupt(e.to_string()))?;
                LogPosition { term: entry.term, seqno }
            }
        };
        let bounds = Bounds { current_term, purged, last, term_starts };
        bounds.check().map_err(StorageError::Corrupt)?;
        Ok(Self { bounds: RwLock::new(bounds), writing: Mutex::new(()) })
    }

    pub(crate) fn state(&self) -> LogState {
        let bounds = self.bounds.read();
        LogState { current_term: bounds.current_term, purged: bounds.purged, last: bounds.last }
    }

    /// Makes a change of the log durable, all or nothing. One caller at a time.
    pub(crate) fn persist(&self, store: &Store, write: &LogWrite, applied: SeqNo) -> Result<(), StorageError> {
        store.check()?;
        if write.is_empty() {
            return Ok(());
        }
        let _writing = self.writing.lock();
        let _syncing = store.syncs().begin();
        let mut next = self.bounds.read().clone();
        let mut batch = WriteBatch::default();
        if let Some(term) = write.term {
            next.adopt(term)?;
            batch.put_cf(store.family(Family::Meta), MetaKey::CurrentTerm.encode(), encode_u64(term.0));
        }
        if let Some(cut) = write.truncate_from {
            let end = next.last.seqno.next();
            let removed_starts = next.truncate(cut, applied)?;
            batch.delete_range_cf(store.family(Family::Log), keys::log(cut), keys::log(end));
            for seqno in removed_starts {
                batch.delete_cf(store.family(Family::Meta), MetaKey::TermStart(seqno).encode());
            }
        }
        for entry in &write.entries {
            if next.append(entry)? {
                let key = MetaKey::TermStart(entry.seqno).encode();
                batch.put_cf(store.family(Family::Meta), key, encode_u64(entry.term.0));
            }
            batch.put_cf(store.family(Family::Log), keys::log(entry.seqno), entry.to_stored());
        }
        fail::fail_point!("shard-persist-before-write", |_| {
            Err(store.poison(StorageError::Io("fail point before the log write".into())))
        });
        store.write(batch, Durability::Synced)?;
        fail::fail_point!("shard-persist-after-write", |_| {
            Err(store.poison(StorageError::Io("fail point after the log write".into())))
        });
        *self.bounds.write() = next;
        Ok(())
    }

    /// Lets go of the entries up to `up_to`, which must be applied.
    ///
    /// One synced batch. All families share the write-ahead log and this batch comes after those of `apply`, so what was applied is
    /// durable before its redo is gone.
    pub(crate) fn purge(&self, store: &Store, up_to: SeqNo, applied: SeqNo) -> Result<(), StorageError> {
        store.check()?;
        if up_to > applied {
            return Err(StorageError::Refused(format!("purge up to {up_to}, but only {applied} is applied")));
        }
        let _writing = self.writing.lock();
        let mut next = self.bounds.read().clone();
        let first = next.purged.seqno.next();
        if up_to < first {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        let meta = store.family(Family::Meta);
        for (seqno, begins) in next.purge(up_to)? {
            let key = MetaKey::TermStart(seqno).encode();
            match begins {
                Some(term) => batch.put_cf(meta, key, encode_u64(term.0)),
                None => batch.delete_cf(meta, key),
            }
        }
        batch.put_cf(meta, MetaKey::Purged.encode(), encode(&next.purged));
        batch.delete_range_cf(store.family(Family::Log), keys::log(first), keys::log(up_to.next()));
        fail::fail_point!("shard-purge-before-write", |_| {
            Err(store.poison(StorageError::Io("fail point before the purge".into())))
        });
        store.write(batch, Durability::Synced)?;
        fail::fail_point!("shard-purge-after-write", |_| {
            Err(store.poison(StorageError::Io("fail point after the purge".into())))
        });
        *self.bounds.write() = next;
        Ok(())
    }

    /// Entries from `from` on, each checked. At least one if there is one.
    pub(crate) fn read(
        &self,
        store: &Store,
        from: SeqNo,
        entries_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<EncodedEntry>, StorageError> {
        store.check()?;
        if let Some(entries) = self.read_once(store, from, entries_max, bytes_max)? {
            return Ok(entries);
        }
        // A cut may have come between reading the bounds and reading the entries; wait until both say the same.
        let _writing = self.writing.lock();
        let last = self.state().last.seqno;
        self.read_once(store, from, entries_max, bytes_max)?
            .ok_or_else(|| corrupt("log", &format!("an entry is missing from {from} on, the log ends at {last}")))
    }

    /// `None`: an entry that the bounds promise is not there.
    fn read_once(
        &self,
        store: &Store,
        from: SeqNo,
        entries_max: usize,
        bytes_max: usize,
    ) -> Result<Option<Vec<EncodedEntry>>, StorageError> {
        let LogState { purged, last, .. } = self.state();
        if from <= purged.seqno {
            let begin = purged.seqno;
            return Err(StorageError::Refused(format!("entry {from} is purged, the log begins after {begin}")));
        }
        let mut entries: Vec<EncodedEntry> = Vec::new();
        let mut bytes = 0;
        let mut expected = from;
        let mut is_dense = true;
        store.scan(Family::Log, &keys::log(from), Some(keys::log(last.seqno.next()).to_vec()), |key, value| {
            let seqno = SeqNo(decode_u64("log key", key)?);
            bytes += value.len();
            is_dense = seqno == expected;
            let is_full = entries.len() == entries_max.max(1) || (!entries.is_empty() && bytes > bytes_max);
            if is_full || !is_dense {
                return Ok(false);
            }
            entries.push(
                EncodedEntry::from_stored(seqno, value).map_err(|error| StorageError::Corrupt(error.to_string()))?,
            );
            expected = expected.next();
            Ok(true)
        })?;
        let is_complete = is_dense && !(entries.is_empty() && from <= last.seqno);
        Ok(is_complete.then_some(entries))
    }

    /// Term of an entry. `None`: purged or beyond the end.
    pub(crate) fn term_at(&self, seqno: SeqNo) -> Option<PrimaryTerm> {
        self.bounds.read().term_at(seqno)
    }

    /// Rough heap bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.bounds.read().term_starts.len() as u64 * 32
    }
}

fn read_term_starts(store: &Store) -> Result<BTreeMap<SeqNo, PrimaryTerm>, StorageError> {
    let mut starts = BTreeMap::new();
    let (start, end) = keys::term_starts();
    store.scan(Family::Meta, &start, Some(end), |key, value| {
        let seqno = keys::parse_last_number(key).ok_or_else(|| corrupt("term start", "short key"))?;
        starts.insert(SeqNo(seqno), PrimaryTerm(decode_u64("term start", value)?));
        Ok(true)
    })?;
    Ok(starts)
}

impl Bounds {
    fn term_at(&self, seqno: SeqNo) -> Option<PrimaryTerm> {
        if seqno == self.purged.seqno {
            return Some(self.purged.term);
        }
        if seqno < self.purged.seqno || seqno > self.last.seqno {
            return None;
        }
        self.term_starts.range(..=seqno).next_back().map(|(_, term)| *term)
    }

    fn adopt(&mut self, term: PrimaryTerm) -> Result<(), StorageError> {
        if term < self.current_term {
            return Err(StorageError::Refused(format!("term {term} is before the adopted {}", self.current_term)));
        }
        self.current_term = term;
        Ok(())
    }

    /// Cuts the log before `cut`; gives back the term starts that went with it.
    fn truncate(&mut self, cut: SeqNo, applied: SeqNo) -> Result<Vec<SeqNo>, StorageError> {
        if cut <= applied || cut <= self.purged.seqno {
            return Err(StorageError::Refused(format!("cut at {cut}, but entries up to {applied} are applied")));
        }
        if cut > self.last.seqno {
            return Ok(Vec::new());
        }
        let removed: Vec<SeqNo> = self.term_starts.range(cut..).map(|(seqno, _)| *seqno).collect();
        for seqno in &removed {
            self.term_starts.remove(seqno);
        }
        let seqno = SeqNo(cut.0 - 1);
        let term = self.term_at_or_purged(seqno)?;
        self.last = LogPosition { term, seqno };
        Ok(removed)
    }

    /// Cuts the log after `up_to`, at its beginning. Returns the term starts that change: to which term, or that they go.
    fn purge(&mut self, up_to: SeqNo) -> Result<Vec<(SeqNo, Option<PrimaryTerm>)>, StorageError> {
        let term = self.term_at_or_purged(up_to)?;
        let mut changed: Vec<_> = self.term_starts.range(..=up_to).map(|(seqno, _)| (*seqno, None)).collect();
        let first = up_to.next();
        if first <= self.last.seqno && !self.term_starts.contains_key(&first) {
            self.term_starts.insert(first, term);
            changed.push((first, Some(term)));
        }
        self.term_starts.retain(|seqno, _| *seqno > up_to);
        self.purged = LogPosition { term, seqno: up_to };
        Ok(changed)
    }

    fn term_at_or_purged(&self, seqno: SeqNo) -> Result<PrimaryTerm, StorageError> {
        self.term_at(seqno).ok_or_else(|| corrupt("log", &format!("the term of entry {seqno} is not recorded")))
    }

    /// Takes in the next entry. Returns whether it begins a term.
    fn append(&mut self, entry: &EncodedEntry) -> Result<bool, StorageError> {
        if entry.seqno != self.last.seqno.next() {
            let last = self.last.seqno;
            return Err(StorageError::Refused(format!("entry {} does not continue the log at {last}", entry.seqno)));
        }
        if entry.term < self.last.term || entry.term > self.current_term {
            return Err(StorageError::Refused(format!(
                "entry {} of term {} after term {}, while following term {}",
                entry.seqno, entry.term, self.last.term, self.current_term
            )));
        }
        if !entry.verify() {
            return Err(StorageError::Refused(format!("entry {} fails its checksum", entry.seqno)));
        }
        let begins_term = self.term_at(self.last.seqno) != Some(entry.term) || self.term_starts.is_empty();
        if begins_term {
            self.term_starts.insert(entry.seqno, entry.term);
        }
        self.last = LogPosition { term: entry.term, seqno: entry.seqno };
        Ok(begins_term)
    }

    /// Names the broken invariant.
    fn check(&self) -> Result<(), String> {
        if self.last < self.purged {
            return Err(format!("the log ends at {:?}, before it begins at {:?}", self.last, self.purged));
        }
        if self.last != self.purged && self.term_at(self.last.seqno) != Some(self.last.term) {
            return Err(format!("the last entry {:?} is not of the recorded term", self.last));
        }
        if self.last.term > self.current_term {
            return Err(format!(
                "the last entry is of term {}, but only {} was adopted",
                self.last.term, self.current_term
            ));
        }
        Ok(())
    }
}
