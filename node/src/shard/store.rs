//! One RocksDB per copy: how it is opened, how it is written, and how its errors end the copy's service.
//!
//! All families share one write-ahead log. A synced write therefore also makes durable every unsynced one before it, and
//! recovery brings all families back to the same point.
//!
//! Invariant: after one failed call every later call fails with the same error, until the copy is opened again. After a failed
//! fsync nobody knows what the disk holds, so nothing may be answered from it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cluster_config::limits::TRAINING_MEMORY_DEFAULT;
use cluster_config::units::ByteSize;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBPinnableSlice,
    DBRawIterator, DBRecoveryMode, FlushOptions, LogLevel, Options, ReadOptions, WriteBatch, WriteBufferManager,
    WriteOptions,
};

use super::keys::Family;
use super::record_file;
use super::sync_watch::SyncWatch;
use crate::replication::storage::StorageError;

/// Memtable of one family. The process-wide write buffer manager flushes earlier when the sum grows too large.
const WRITE_BUFFER_BYTES: usize = 16 * 1024 * 1024;
/// Write-ahead logs beyond this are cut by flushing the families that hold the oldest one.
const WAL_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Open table files per copy.
const OPEN_FILES_MAX: i32 = 256;
/// Bloom filter of the families that are read by key: 1 % false positives.
const BLOOM_BITS_PER_KEY: f64 = 10.0;

/// What all copies of a process share: one block cache, one limit for memtables charged to it, what a training may take, and one eye
/// on their syncs.
pub struct StorageResources {
    training_memory: ByteSize,
    cache: Cache,
    write_buffers: WriteBufferManager,
    syncs: Arc<SyncWatch>,
}

impl StorageResources {
    /// `block_cache_bytes` bounds cached blocks and memtables together, `write_buffer_bytes` the memtables among them.
    pub fn new(block_cache_bytes: usize, write_buffer_bytes: usize) -> Self {
        let cache = Cache::new_lru_cache(block_cache_bytes);
        let write_buffers =
            WriteBufferManager::new_write_buffer_manager_with_cache(write_buffer_bytes, false, cache.clone());
        Self { cache, write_buffers, training_memory: TRAINING_MEMORY_DEFAULT, syncs: Arc::default() }
    }

    /// With another bound for the memory of one training.
    pub fn with_training_memory(self, training_memory: ByteSize) -> Self {
        Self { training_memory, ..self }
    }

    /// Bound for the memory of one training.
    pub fn training_memory(&self) -> ByteSize {
        self.training_memory
    }

    /// For how long the oldest write of a log that has not finished has been under way.
    pub fn oldest_log_write(&self) -> Duration {
        self.syncs.oldest()
    }

    /// Bytes of cached blocks and memtables now.
    pub fn cache_usage_bytes(&self) -> usize {
        self.cache.get_usage()
    }
}

/// Whether there is a database already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// It is made, in a directory that holds nothing of worth.
    Create,
    /// It must be there, whole.
    Existing,
}

/// Whether a write must survive the loss of power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// fsync before returning.
    Synced,
    /// Survives the process; the log is the redo after a loss of power.
    Buffered,
}

/// A key and its value, taken out of the database.
pub(crate) type KeyAndValue = (Vec<u8>, Vec<u8>);

/// The open database of one copy.
pub(crate) struct Store {
    db: DB,
    dir: PathBuf,
    failed: OnceLock<StorageError>,
    syncs: Arc<SyncWatch>,
}

impl Store {
    /// Opens the database in `dir`, or creates it there.
    ///
    /// Recovery tolerates a torn last record of the write-ahead log, which a crash in the middle of a write leaves behind, and
    /// refuses any other damage: the default would silently open with less data.
    pub(crate) fn open(dir: &Path, how: Opening, resources: &StorageResources) -> Result<Self, StorageError> {
        match how {
            Opening::Create => create_dir_durably(dir)?,
            Opening::Existing => record_file::verify_all(dir)?,
        }
        let mut options = Options::default();
        options.create_if_missing(how == Opening::Create);
        options.create_missing_column_families(how == Opening::Create);
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        options.set_track_and_verify_wals_in_manifest(true);
        options.set_paranoid_checks(true);
        options.set_write_buffer_manager(&resources.write_buffers);
        options.set_max_total_wal_size(WAL_BYTES_MAX);
        options.set_max_open_files(OPEN_FILES_MAX);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1024 * 1024);
        options.set_log_level(LogLevel::Warn);
        let families =
            Family::ALL.map(|family| ColumnFamilyDescriptor::new(family.name(), family_options(family, resources)));
        let db = DB::open_cf_descriptors(&options, dir, families).map_err(classify_at_opening)?;
        Ok(Self { db, dir: dir.to_path_buf(), failed: OnceLock::new(), syncs: Arc::clone(&resources.syncs) })
    }

    /// Where the log's writes are announced.
    pub(crate) fn syncs(&self) -> &SyncWatch {
        &self.syncs
    }

    /// Fails if an earlier call did.
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        match self.failed.get() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Ends the copy's service with this error, unless an earlier one did.
    pub(crate) fn poison(&self, error: StorageError) -> StorageError {
        if self.failed.set(error.clone()).is_ok() {
            tracing::error!(dir = %self.dir.display(), %error, "copy is poisoned until reopened");
        }
        error
    }

    fn fail(&self, error: rocksdb::Error) -> StorageError {
        self.poison(classify(error))
    }

    pub(crate) fn family(&self, family: Family) -> &ColumnFamily {
        self.db.cf_handle(family.name()).expect("every family was opened with the database")
    }

    pub(crate) fn get(&self, family: Family, key: &[u8]) -> Result<Option<DBPinnableSlice<'_>>, StorageError> {
        self.check()?;
        self.db.get_pinned_cf(self.family(family), key).map_err(|error| self.fail(error))
    }

    /// Values of many keys, in the keys' order.
    pub(crate) fn get_many(
        &self,
        family: Family,
        keys: &[Vec<u8>],
    ) -> Result<Vec<Option<DBPinnableSlice<'_>>>, StorageError> {
        self.check()?;
        self.db
            .batched_multi_get_cf(self.family(family), keys, false)
            .into_iter()
            .map(|found| found.map_err(|error| self.fail(error)))
            .collect()
    }

    pub(crate) fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), StorageError> {
        self.check()?;
        let mut options = WriteOptions::default();
        options.set_sync(durability == Durability::Synced);
        self.db.write_opt(batch, &options).map_err(|error| self.fail(error))
    }

    /// Visits keys in `start..end` in order until `visit` says `false`.
    pub(crate) fn scan(
        &self,
        family: Family,
        start: &[u8],
        end: Option<Vec<u8>>,
        visit: impl FnMut(&[u8], &[u8]) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        self.check()?;
        let mut options = ReadOptions::default();
        if let Some(end) = end {
            options.set_iterate_upper_bound(end);
        }
        let mut iterator = self.db.raw_iterator_cf_opt(self.family(family), options);
        iterator.seek(start);
        drive(&mut iterator, visit)?.map_err(|error| self.fail(error))
    }

    /// The last key below `end` that is not below `start`, with its value.
    pub(crate) fn last(
        &self,
        family: Family,
        start: &[u8],
        end: Option<Vec<u8>>,
    ) -> Result<Option<KeyAndValue>, StorageError> {
        self.check()?;
        let mut options = ReadOptions::default();
        if let Some(end) = end {
            options.set_iterate_upper_bound(end);
        }
        let mut iterator = self.db.raw_iterator_cf_opt(self.family(family), options);
        iterator.seek_to_last();
        let found = iterator.item().map(|(key, value)| (key.to_vec(), value.to_vec()));
        iterator.status().map_err(|error| self.fail(error))?;
        Ok(found.filter(|(key, _)| key.as_slice() >= start))
    }

    /// A consistent view of all families; keep it short, it holds back compaction.
    pub(crate) fn freeze(&self) -> Result<Frozen<'_>, StorageError> {
        self.check()?;
        Ok(Frozen { store: self, snapshot: self.db.snapshot() })
    }

    /// Links the files of this moment into `dir`, which must not exist. Memtables are flushed first.
    pub(crate) fn checkpoint(&self, dir: &Path) -> Result<(), StorageError> {
        self.check()?;
        let checkpoint = Checkpoint::new(&self.db).and_then(|checkpoint| checkpoint.create_checkpoint(dir));
        // A file that cannot be linked is not this database's failure.
        checkpoint.map_err(|error| match classify(error) {
            error @ StorageError::Corrupt(_) => self.poison(error),
            error => error,
        })
    }

    /// Directory of the database.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes of table files and write-ahead logs.
    pub(crate) fn disk_bytes(&self) -> u64 {
        let tables = Family::ALL.iter().filter_map(|family| {
            self.db.property_int_value_cf(self.family(*family), "rocksdb.total-sst-files-size").ok().flatten()
        });
        let logs = std::fs::read_dir(&self.dir).into_iter().flatten().flatten().filter_map(|file| {
            let is_log = file.path().extension().is_some_and(|extension| extension == "log");
            is_log.then(|| file.metadata().map_or(0, |metadata| metadata.len()))
        });
        tables.chain(logs).sum()
    }

    /// Moves everything out of the memtables into table files.
    pub(crate) fn flush(&self) -> Result<(), StorageError> {
        self.check()?;
        let families = Family::ALL.map(|family| self.family(family));
        let families: Vec<&&ColumnFamily> = families.iter().collect();
        self.db.flush_cfs_opt(&families, &FlushOptions::default()).map_err(|error| self.fail(error))
    }

    /// Bytes of one family, in table files and memory, about.
    pub(crate) fn family_bytes(&self, family: Family) -> u64 {
        let property = |name| self.db.property_int_value_cf(self.family(family), name).ok().flatten().unwrap_or(0);
        property("rocksdb.estimate-live-data-size") + property("rocksdb.cur-size-all-mem-tables")
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&self) -> Result<(), StorageError> {
        self.check()?;
        self.db.flush_wal(true).map_err(|error| self.fail(error))
    }

    /// Ends the copy's service in good order: later calls fail, background work has ended on return.
    pub(crate) fn close(&self) {
        if self.failed.set(StorageError::Io("the copy is closed".into())).is_ok() {
            self.db.cancel_all_background_work(true);
        }
    }
}

/// All families as they were at one moment.
pub(crate) struct Frozen<'a> {
    store: &'a Store,
    snapshot: rocksdb::Snapshot<'a>,
}

impl Frozen<'_> {
    pub(crate) fn get(&self, family: Family, key: &[u8]) -> Result<Option<DBPinnableSlice<'_>>, StorageError> {
        self.snapshot.get_pinned_cf(self.store.family(family), key).map_err(|error| self.store.fail(error))
    }

    pub(crate) fn scan(
        &self,
        family: Family,
        start: &[u8],
        end: Option<Vec<u8>>,
        visit: impl FnMut(&[u8], &[u8]) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        if let Some(end) = end {
            options.set_iterate_upper_bound(end);
        }
        let mut iterator = self.snapshot.raw_iterator_cf_opt(self.store.family(family), options);
        iterator.seek(start);
        drive(&mut iterator, visit)?.map_err(|error| self.store.fail(error))
    }
}

fn drive(
    iterator: &mut DBRawIterator<'_>,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool, StorageError>,
) -> Result<Result<(), rocksdb::Error>, StorageError> {
    while let Some((key, value)) = iterator.item() {
        if !visit(key, value)? {
            return Ok(Ok(()));
        }
        iterator.next();
    }
    Ok(iterator.status())
}

/// Creates a directory so that its name survives the loss of power: RocksDB syncs what is in its directory, not the way to it.
pub(crate) fn create_dir_durably(dir: &Path) -> Result<(), StorageError> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::StorageFull => StorageError::Full,
        _ => StorageError::Io(format!("{}: {error}", dir.display())),
    };
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_dir_durably(parent)?;
    }
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let parent = std::fs::File::open(parent.unwrap_or(Path::new("."))).map_err(failed)?;
    parent.sync_all().map_err(failed)
}

fn family_options(family: Family, resources: &StorageResources) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&resources.cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_block_size(16 * 1024);
    // From 6 on the footer has a checksum, and a block's checksum depends on its file and place.
    table.set_format_version(6);
    if matches!(family, Family::Documents | Family::Dedup | Family::Filters) {
        table.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
    }
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    // Vectors, codes and bitmaps do not compress; text does.
    let compressed = matches!(family, Family::Log | Family::Docs | Family::Documents);
    options.set_compression_type(if compressed { DBCompressionType::Lz4 } else { DBCompressionType::None });
    options
}

/// What a RocksDB error means to the copy. RocksDB's C interface hands over text only.
fn classify(error: rocksdb::Error) -> StorageError {
    let kind = error.kind();
    let text = error.into_string();
    if text.contains("No space left on device") || text.contains("NoSpace") {
        return StorageError::Full;
    }
    match kind {
        rocksdb::ErrorKind::Corruption => StorageError::Corrupt(text),
        _ => StorageError::Io(text),
    }
}

/// While a database that was there is opened, a missing file or contradicting options are damage: both are as we wrote them.
pub(crate) fn classify_at_opening(error: rocksdb::Error) -> StorageError {
    use rocksdb::ErrorKind::{InvalidArgument, NotFound, NotSupported};
    let contradicts = matches!(error.kind(), InvalidArgument | NotFound | NotSupported);
    match classify(error) {
        StorageError::Io(text) if contradicts || text.contains("No such file") => StorageError::Corrupt(text),
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_ends_the_service_with_the_first_error() {
        let dir = tempfile::tempdir().expect("temp dir");
        let store = Store::open(dir.path(), Opening::Create, &StorageResources::new(1 << 20, 1 << 20)).expect("opens");
        assert_eq!(store.check(), Ok(()));
        store.poison(StorageError::Full);
        store.poison(StorageError::Io("later".into()));
        assert_eq!(store.get(Family::Meta, b"x").err(), Some(StorageError::Full));
        assert_eq!(store.write(WriteBatch::default(), Durability::Synced), Err(StorageError::Full));
        assert_eq!(store.sync(), Err(StorageError::Full));
    }
}
