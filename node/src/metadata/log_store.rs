//! The Raft log on RocksDB.
//!
//! An append is written to RocksDB at once, so that every reader sees it when `append` returns, and its callback is handed to the one
//! flusher thread: that takes all callbacks that wait, syncs the write-ahead log once for all of them, and calls them in the order of
//! their writes. A vote waits for the same thread. After a failed sync nothing is reported durable any more until the store is
//! reopened.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use cluster_config::limits;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use rocksdb::WriteBatch;
use tokio::sync::{mpsc, oneshot};

use super::codec::{decode, encode};
use super::store::{KEY_COMMITTED, KEY_PURGED, KEY_VOTE, Store};
use super::types::{Entry, LogId, TypeConfig, Vote};

/// Writes to the log. openraft owns the only one and calls it in order.
pub struct LogStore {
    store: Store,
    /// Taken only on drop, and with it the thread.
    flusher: Option<mpsc::Sender<Waiter>>,
    thread: Option<std::thread::JoinHandle<()>>,
    purged: Option<LogId>,
    last: Option<LogId>,
}

/// Reads the log; any number of them.
#[derive(Clone)]
pub struct LogReader {
    store: Store,
}

/// Somebody who waits until everything written so far is on the disk.
enum Waiter {
    Append(IOFlushed<TypeConfig>),
    Call(oneshot::Sender<io::Result<()>>),
}

impl Waiter {
    fn done(self, result: Result<(), &str>) {
        let result = result.map_err(|text| io::Error::other(text.to_owned()));
        match self {
            Waiter::Append(callback) => callback.io_completed(result),
            // The caller gave up waiting; there is nobody to tell.
            Waiter::Call(reply) => drop(reply.send(result)),
        }
    }
}

/// The flusher thread's loop. Ends when the log store is dropped.
fn flush(store: &Store, mut waiting: mpsc::Receiver<Waiter>) {
    let mut failed: Option<String> = None;
    let mut batch = Vec::with_capacity(limits::METADATA_FLUSH_QUEUE_MAX);
    while waiting.blocking_recv_many(&mut batch, limits::METADATA_FLUSH_QUEUE_MAX) > 0 {
        if failed.is_none()
            && let Err(error) = store.sync()
        {
            tracing::error!(%error, "the metadata log cannot be synced");
            failed = Some(format!("the metadata log could not be synced: {error}"));
        }
        for waiter in batch.drain(..) {
            waiter.done(failed.as_deref().map_or(Ok(()), Err));
        }
    }
}

impl LogStore {
    /// The log of an open database; starts the flusher thread. Errors: a log that does not decode, no thread.
    pub(crate) fn open(store: Store) -> io::Result<Self> {
        let purged: Option<LogId> = store.meta(KEY_PURGED)?;
        let last = match store.last_log_entry()? {
            Some(bytes) => Some(decode::<Entry>(&bytes)?.log_id()),
            None => None,
        };
        let (flusher, waiting) = mpsc::channel(limits::METADATA_FLUSH_QUEUE_MAX);
        let synced = store.clone();
        let thread = std::thread::Builder::new().name("metadata-log".into()).spawn(move || flush(&synced, waiting))?;
        Ok(Self { store, flusher: Some(flusher), thread: Some(thread), last: last.max(purged), purged })
    }

    async fn enqueue(&self, waiter: Waiter) -> io::Result<()> {
        let ended = || io::Error::other("the metadata log's flusher has ended");
        self.flusher.as_ref().ok_or_else(ended)?.send(waiter).await.map_err(|_| ended())
    }

    async fn sync(&self) -> io::Result<()> {
        let (reply, synced) = oneshot::channel();
        self.enqueue(Waiter::Call(reply)).await?;
        synced.await.map_err(|_| io::Error::other("the metadata log's flusher has ended"))?
    }

    /// Raft judges a log by its last entry alone, so a hole must never come to be (openraft#1795). An empty log may begin anywhere:
    /// openraft's own suite writes such logs, and after a snapshot the purge marker says where it begins.
    fn check_follows(&self, index: u64) -> io::Result<()> {
        let expected = self.last.map_or(index, |last| last.index + 1);
        if index != expected {
            let text = format!("entry {index} does not follow the log, which continues at {expected}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(())
    }
}

impl Drop for LogStore {
    /// Waits for the flusher, at most one sync long: once the last user is gone the database is closed and may be opened again.
    fn drop(&mut self) {
        self.flusher = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the metadata log's flusher panicked");
        }
    }
}

/// The half-open range of log indexes that `range` means.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let first = match range.start_bound() {
        Bound::Included(first) => *first,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (first, end)
}

impl LogReader {
    /// Entries in `first..end`, at least one if there is one, at most `bytes_max` bytes beyond it. Errors: a hole.
    fn entries(&self, first: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        if first >= end {
            return Ok(entries);
        }
        for item in self.store.log_entries(first, end) {
            let (index, encoded) = item?;
            bytes += encoded.len();
            if !entries.is_empty() && bytes > bytes_max {
                break;
            }
            let entry: Entry = decode(&encoded)?;
            let follows = entries.last().is_none_or(|before| before.index() + 1 == index);
            if entry.index() != index || !follows {
                let text = format!("the metadata log has a hole or a misplaced entry at {index}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            entries.push(entry);
        }
        Ok(entries)
    }
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (first, end) = bounds(&range);
        self.entries(first, end, usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.store.meta(KEY_VOTE)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.entries(start, end, limits::METADATA_APPEND_BYTES_MAX)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        Ok(LogState { last_purged_log_id: self.purged, last_log_id: self.last })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader { store: self.store.clone() }
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let mut batch = WriteBatch::default();
        self.store.put_meta(&mut batch, KEY_VOTE, vote)?;
        self.store.write(batch)?;
        self.sync().await
    }

    /// Not synced: it only shortens the replay after a restart.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let mut batch = WriteBatch::default();
        self.store.put_meta(&mut batch, KEY_COMMITTED, &committed)?;
        self.store.write(batch)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.store.meta::<Option<LogId>>(KEY_COMMITTED)?.flatten())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let before = self.last;
        let mut batch = WriteBatch::default();
        for entry in entries {
            let appended = self.check_follows(entry.index()).and_then(|()| Ok(encode(&entry)?));
            match appended {
                Ok(bytes) => self.store.put_log_entry(&mut batch, entry.index(), &bytes),
                Err(error) => {
                    self.last = before;
                    return Err(error);
                }
            }
            self.last = Some(entry.log_id());
        }
        if let Err(error) = self.store.write(batch) {
            self.last = before;
            return Err(error);
        }
        self.enqueue(Waiter::Append(callback)).await
    }

    /// Not synced by itself: nothing is acknowledged on top of it before a later append is, and that sync covers both.
    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        if last_log_id.is_some_and(|kept| self.last.is_none_or(|last| last.index <= kept.index)) {
            return Ok(());
        }
        let first = last_log_id.map_or(0, |last| last.index + 1);
        let mut batch = WriteBatch::default();
        self.store.delete_log_entries(&mut batch, first, u64::MAX);
        self.store.write(batch)?;
        self.last = last_log_id.max(self.purged);
        Ok(())
    }

    /// Marker and removal in one batch: a crash in between must not leave a log that begins before its own start.
    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let mut batch = WriteBatch::default();
        self.store.put_meta(&mut batch, KEY_PURGED, &log_id)?;
        self.store.delete_log_entries(&mut batch, 0, log_id.index + 1);
        self.store.write(batch)?;
        self.purged = self.purged.max(Some(log_id));
        self.last = self.last.max(self.purged);
        Ok(())
    }
}
