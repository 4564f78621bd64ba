//! When the texts and vectors of dead rows leave the disk.
//!
//! A search names rows; their texts are fetched a moment later. If a document is replaced in between, the fetch must still find
//! what the search found, so replaced rows keep their texts for a while. Deleted documents lose theirs with the delete itself.
//! This is a matter of one copy and its clock: which rows are live is decided by `apply` alone.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use rocksdb::WriteBatch;

use super::keys::{self, Family};
use super::store::Store;
use crate::replication::storage::StorageError;

/// Longer than any request may take between searching and fetching under default deadlines.
const REPLACED_ROWS_KEPT: Duration = Duration::from_secs(30);
/// Rows reclaimed with one batch, so that the batch stays small.
const ROWS_PER_BATCH_MAX: u64 = 4096;

/// Value of a tombstone whose row still has its text.
const KEPT: [u8; 1] = [0];
/// Value of a tombstone whose row is empty.
const RECLAIMED: [u8; 1] = [1];

/// Replaced rows whose texts are still there, oldest first.
#[derive(Default)]
pub(crate) struct Reclaimer {
    waiting: VecDeque<(Instant, Range<u64>)>,
}

impl Reclaimer {
    /// Rows that died now.
    pub(crate) fn remember(&mut self, rows: Vec<Range<u64>>) {
        let now = Instant::now();
        self.waiting.extend(rows.into_iter().map(|rows| (now, rows)));
    }

    /// Adds to the batch what has waited long enough.
    pub(crate) fn reclaim_due(&mut self, store: &Store, batch: &mut WriteBatch) {
        let now = Instant::now();
        self.reclaim(store, batch, |since| now.duration_since(since) >= REPLACED_ROWS_KEPT);
    }

    fn reclaim(&mut self, store: &Store, batch: &mut WriteBatch, is_due: impl Fn(Instant) -> bool) {
        let mut rows_left = ROWS_PER_BATCH_MAX;
        while let Some((since, rows)) = self.waiting.front_mut() {
            if !is_due(*since) || rows_left == 0 {
                return;
            }
            let end = rows.end.min(rows.start + rows_left);
            for row in rows.start..end {
                reclaim_row(store, batch, row);
            }
            rows_left -= end - rows.start;
            rows.start = end;
            if rows.is_empty() {
                self.waiting.pop_front();
            }
        }
    }

    /// Rough heap bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        (self.waiting.capacity() * size_of::<(Instant, Range<u64>)>()) as u64
    }
}

/// Marks a row as dead; its text stays.
pub(crate) fn mark_row(store: &Store, batch: &mut WriteBatch, row: u64) {
    batch.put_cf(store.family(Family::Tombstones), keys::row(row), KEPT);
}

/// Marks a row as dead and removes its text and vector. Its head stays, so that a search that began earlier can name its hits.
pub(crate) fn reclaim_row(store: &Store, batch: &mut WriteBatch, row: u64) {
    batch.put_cf(store.family(Family::Tombstones), keys::row(row), RECLAIMED);
    batch.delete_cf(store.family(Family::Docs), keys::row_body(row));
    batch.delete_cf(store.family(Family::Vectors), keys::row(row));
}

/// Reads all tombstones: the dead rows, and a reclaimer for those that still have their texts.
pub(crate) fn read_tombstones(store: &Store) -> Result<(roaring::RoaringTreemap, Reclaimer), StorageError> {
    let mut dead = roaring::RoaringTreemap::new();
    let mut kept: Vec<Range<u64>> = Vec::new();
    store.scan(Family::Tombstones, &[], None, |key, value| {
        let row = super::records::decode_u64("tombstone", key)?;
        dead.insert(row);
        if value == KEPT {
            match kept.last_mut() {
                Some(rows) if rows.end == row => rows.end = row + 1,
                _ => kept.push(row..row + 1),
            }
        }
        Ok(true)
    })?;
    dead.optimize();
    let mut reclaimer = Reclaimer::default();
    reclaimer.remember(kept);
    Ok((dead, reclaimer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::store::{Durability, Opening, StorageResources};

    #[test]
    fn replaced_rows_wait_in_pieces_and_survive_reopening() {
        let dir = tempfile::tempdir().expect("temp dir");
        let store = Store::open(dir.path(), Opening::Create, &StorageResources::new(1 << 20, 1 << 20)).expect("opens");
        let rows = ROWS_PER_BATCH_MAX + 10;
        let mut batch = WriteBatch::default();
        (0..rows).for_each(|row| mark_row(&store, &mut batch, row));
        store.write(batch, Durability::Buffered).expect("writes");

        let (dead, mut reclaimer) = read_tombstones(&store).expect("reads");
        assert_eq!(dead.len(), rows);
        let mut batch = WriteBatch::default();
        reclaimer.reclaim(&store, &mut batch, |_| false);
        assert!(batch.is_empty());
        reclaimer.reclaim(&store, &mut batch, |_| true);
        store.write(batch, Durability::Buffered).expect("writes");
        let (dead, mut reclaimer) = read_tombstones(&store).expect("reads");
        assert_eq!(dead.len(), rows);
        assert_eq!(reclaimer.waiting.len(), 1);
        assert_eq!(reclaimer.waiting[0].1, ROWS_PER_BATCH_MAX..rows);
        let mut batch = WriteBatch::default();
        reclaimer.reclaim(&store, &mut batch, |_| true);
        assert_eq!(batch.len(), 3 * 10);
        assert!(reclaimer.waiting.is_empty());
    }
}
