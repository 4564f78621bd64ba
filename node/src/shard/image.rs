//! A checkpoint of a copy's database, opened for reading only and past every cache: what is read here was read from its files.

use std::path::Path;

use rocksdb::{BlockBasedOptions, ColumnFamilyDescriptor, DB, Options, ReadOptions};

use super::keys::Family;
use super::operation::EncodedEntry;
use super::record_file;
use super::records::{AppliedState, corrupt, decode_u64};
use super::store::classify_at_opening;
use super::{DATABASE_DIR, keys};
use crate::replication::storage::StorageError;
use cluster_config::seqno::SeqNo;

/// Read ahead this much, because everything is read in order.
const READ_AHEAD_BYTES: usize = 1024 * 1024;
/// Visits are told of at least this many bytes at a time.
const VISIT_BYTES: u64 = 256 * 1024;

/// The open checkpoint.
pub(crate) struct Image {
    db: DB,
}

impl Image {
    /// Opens the checkpoint of a copy's directory. Errors: `Corrupt`, `Io`.
    pub(crate) fn open(copy_dir: &Path) -> Result<Self, StorageError> {
        let dir = copy_dir.join(DATABASE_DIR);
        record_file::verify_all(&dir)?;
        let mut table = BlockBasedOptions::default();
        table.disable_cache();
        let mut options = Options::default();
        options.set_block_based_table_factory(&table);
        options.set_paranoid_checks(true);
        // As in the open database; without it RocksDB 11.8 dereferences a null pointer where logs are tracked (`DBImpl::Recover`).
        options.set_track_and_verify_wals_in_manifest(true);
        let families = Family::ALL.map(|family| ColumnFamilyDescriptor::new(family.name(), options.clone()));
        let db = DB::open_cf_descriptors_read_only(&options, &dir, families, false).map_err(classify_at_opening)?;
        Ok(Self { db })
    }

    /// What `apply` had counted at the moment of the checkpoint.
    pub(crate) fn applied(&self) -> Result<AppliedState, StorageError> {
        let value = self.db.get_cf(self.family(Family::Meta)?, keys::MetaKey::Applied.encode());
        match value.map_err(classify_at_opening)? {
            Some(value) => AppliedState::decode(&value),
            None => Ok(AppliedState::default()),
        }
    }

    /// Reads every block of every table file that holds something, each checked against its checksum, and every log entry against
    /// its own. `visit` is told how many bytes were read since it was last told.
    pub(crate) fn verify<E: From<StorageError>>(&self, mut visit: impl FnMut(u64) -> Result<(), E>) -> Result<(), E> {
        let mut bytes = 0;
        for family in Family::ALL {
            let mut options = ReadOptions::default();
            options.set_readahead_size(READ_AHEAD_BYTES);
            let mut iterator = self.db.raw_iterator_cf_opt(self.family(family)?, options);
            iterator.seek_to_first();
            while let Some((key, value)) = iterator.item() {
                if family == Family::Log {
                    let seqno = SeqNo(decode_u64("log key", key)?);
                    EncodedEntry::from_stored(seqno, value)
                        .map_err(|error| StorageError::Corrupt(error.to_string()))?;
                }
                bytes += (key.len() + value.len()) as u64;
                if bytes >= VISIT_BYTES {
                    visit(bytes)?;
                    bytes = 0;
                }
                iterator.next();
            }
            iterator.status().map_err(classify_at_opening)?;
        }
        visit(bytes)
    }

    fn family(&self, family: Family) -> Result<&rocksdb::ColumnFamily, StorageError> {
        self.db.cf_handle(family.name()).ok_or_else(|| corrupt("MANIFEST", &format!("no family {}", family.name())))
    }
}
