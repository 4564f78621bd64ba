//! Row sets of the `filters` family: one roaring bitmap per set and 65,536 rows.
//!
//! Rows enter a set when they are given out and never leave it: dead rows are masked by the tombstones. So for the rows below a
//! view's `row_end` a set read now says the same as when the view was made.

use std::collections::BTreeMap;

use roaring::{RoaringBitmap, RoaringTreemap};
use rocksdb::WriteBatch;

use super::keys::{self, BitmapKey, Family, ROWS_PER_BITMAP_BITS};
use super::records::corrupt;
use super::store::Store;
use crate::replication::storage::StorageError;

/// Bitmaps that one batch changes: read once, written once.
#[derive(Default)]
pub(crate) struct BitmapWriter {
    changed: BTreeMap<Vec<u8>, RoaringBitmap>,
}

impl BitmapWriter {
    /// Adds a row to a set.
    pub(crate) fn insert(&mut self, store: &Store, key: &BitmapKey<'_>, row: u64) -> Result<(), StorageError> {
        let chunk_key = keys::bitmap_chunk(&key.prefix(), row >> ROWS_PER_BITMAP_BITS);
        let bitmap = match self.changed.entry(chunk_key) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let stored = match store.get(Family::Filters, entry.key())? {
                    Some(value) => parse(&value)?,
                    None => RoaringBitmap::new(),
                };
                entry.insert(stored)
            }
        };
        bitmap.insert(low(row));
        Ok(())
    }

    /// Puts the changed bitmaps into the batch.
    pub(crate) fn write_into(self, store: &Store, batch: &mut WriteBatch) -> Result<(), StorageError> {
        for (key, mut bitmap) in self.changed {
            // Rows come in runs, so most bitmaps shrink to a few bytes.
            bitmap.optimize();
            let mut value = Vec::with_capacity(bitmap.serialized_size());
            bitmap.serialize_into(&mut value).map_err(|error| StorageError::Io(error.to_string()))?;
            batch.put_cf(store.family(Family::Filters), key, value);
        }
        Ok(())
    }
}

/// Reads one set.
pub(crate) fn read_set(store: &Store, key: &BitmapKey<'_>) -> Result<RoaringTreemap, StorageError> {
    let prefix = key.prefix();
    let mut set = RoaringTreemap::new();
    store.scan(Family::Filters, &prefix, keys::after_prefix(&prefix), |key, value| {
        union_chunk(&mut set, key, value)?;
        Ok(true)
    })?;
    Ok(set)
}

/// Reads the union of the sets whose keys lie in `start..end`. `keep_going` is asked now and then.
pub(crate) fn read_union<E: From<StorageError>>(
    store: &Store,
    start: &[u8],
    end: Option<Vec<u8>>,
    mut keep_going: impl FnMut() -> Result<(), E>,
) -> Result<RoaringTreemap, E> {
    /// A full range condition over a million distinct values takes about a second; this often it looks at the deadline.
    const KEYS_BETWEEN_CHECKS: u64 = 1024;
    let mut set = RoaringTreemap::new();
    let mut visited = 0;
    let mut stopped = None;
    store.scan(Family::Filters, start, end, |key, value| {
        visited += 1;
        if visited % KEYS_BETWEEN_CHECKS == 0
            && let Err(error) = keep_going()
        {
            stopped = Some(error);
            return Ok(false);
        }
        union_chunk(&mut set, key, value)?;
        Ok(true)
    })?;
    stopped.map_or(Ok(set), Err)
}

fn union_chunk(set: &mut RoaringTreemap, key: &[u8], value: &[u8]) -> Result<(), StorageError> {
    let chunk = keys::parse_bitmap_chunk(key).ok_or_else(|| corrupt("bitmap", "short key"))?;
    let high = (chunk >> (32 - ROWS_PER_BITMAP_BITS)) as u32;
    *set |= RoaringTreemap::from_bitmaps([(high, parse(value)?)]);
    Ok(())
}

fn parse(value: &[u8]) -> Result<RoaringBitmap, StorageError> {
    RoaringBitmap::deserialize_from(value).map_err(|error| corrupt("bitmap", &error.to_string()))
}

fn low(row: u64) -> u32 {
    (row & u64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::store::{Durability, Opening, StorageResources};

    #[test]
    fn sets_grow_over_batches_and_chunks_and_stay_apart() {
        let dir = tempfile::tempdir().expect("temp dir");
        let store = Store::open(dir.path(), Opening::Create, &StorageResources::new(1 << 20, 1 << 20)).expect("opens");
        let a = BitmapKey::Value { field: "f", value: &[1] };
        let b = BitmapKey::Value { field: "f", value: &[2] };
        let rows = [0, 1, 65_535, 65_536, 200_000, (1 << 32) + 5];
        for row in rows {
            let mut writer = BitmapWriter::default();
            writer.insert(&store, &a, row).expect("inserts");
            writer.insert(&store, &b, row + 1).expect("inserts");
            let mut batch = WriteBatch::default();
            writer.write_into(&store, &mut batch).expect("serialises");
            store.write(batch, Durability::Buffered).expect("writes");
        }
        assert_eq!(read_set(&store, &a).expect("reads").iter().collect::<Vec<_>>(), rows);
        let prefix = keys::value_prefix("f");
        let both: RoaringTreemap =
            read_union::<StorageError>(&store, &prefix, keys::after_prefix(&prefix), || Ok(())).expect("reads");
        assert_eq!(both, rows.into_iter().flat_map(|row| [row, row + 1]).collect());
        let absent = BitmapKey::Exists { field: "f" };
        assert!(read_set(&store, &absent).expect("reads").is_empty());
    }
}
