//! A whole copy as files: taken from an open copy, and made another copy's own.
//!
//! A RocksDB checkpoint is consistent over all families, and `apply` writes all of an entry in one batch together with the
//! position. So a checkpoint is at one applied position by construction, which is read back from the checkpoint itself: nothing
//! has to be stopped while it is taken. The mapped vectors are derived and do not travel.

use std::fs::{self, File};
use std::path::Path;

use cluster_config::seqno::{LogPosition, PrimaryTerm};
use rocksdb::WriteBatch;

use super::identity::Identity;
use super::image::Image;
use super::keys::{self, Family, MetaKey};
use super::records::{AppliedState, corrupt, decode_u64, encode, encode_u64};
use super::store::{Durability, Opening, Store};
use super::{DATABASE_DIR, Shard, ShardError, ShardOptions, index_blob};
use crate::replication::storage::StorageError;

/// Where a checkpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Applied up to here.
    pub base: LogPosition,
    /// Installed generation; 0: none.
    pub generation: u64,
}

impl Shard {
    /// Links this copy's files of one moment into `dir`, which must not exist but whose parent must, on the same file system.
    ///
    /// Cost: flushes the memtables; hard links. The disk space of files that compaction replaces later is held until `dir` is deleted.
    /// Errors: `Unavailable`, `StorageFull`, `Corrupt`; `dir` is gone then.
    pub fn checkpoint(&self, dir: &Path) -> Result<Checkpoint, ShardError> {
        let take = || -> Result<Checkpoint, ShardError> {
            {
                let _saving = self.saving.lock();
                index_blob::save(&self.store, &self.view())?;
            }
            fs::create_dir(dir).map_err(|error| io_error(dir, &error))?;
            self.store.checkpoint(&dir.join(DATABASE_DIR))?;
            let applied = Image::open(dir)?.applied()?;
            Ok(Checkpoint { base: applied.position, generation: applied.generation })
        };
        let taken = take();
        if taken.is_err() {
            let _ = fs::remove_dir_all(dir);
        }
        taken
    }

    /// Makes the checkpoint in `options.dir`, taken from another copy of the shard, this copy's own: reads and verifies all of it,
    /// writes this copy's identity, and begins the log after what is applied. The promise not to follow terms below `promised` is
    /// kept. Durable on return; may be repeated after a crash in the middle, on the checkpoint's original files.
    ///
    /// Errors: `Corrupt`, `Conflict` (of another shard, lineage or collection), `StorageFull`, `Unavailable`.
    pub fn adopt_snapshot(options: ShardOptions, promised: PrimaryTerm) -> Result<LogPosition, ShardError> {
        let ShardOptions { dir, cluster_id, shard, copy, lineage, spec, resources, .. } = options;
        Image::open(&dir)?.verify(|_| Ok::<_, StorageError>(()))?;
        let identity = Identity::new(cluster_id, shard, copy, lineage, spec);
        let store = Store::open(&dir.join(DATABASE_DIR), Opening::Existing, &resources)?;
        if let Some(difference) = identity.differs_but_for_copy(&store)? {
            return Err(ShardError::Identity { dir: dir.display().to_string(), difference });
        }
        let base = begin_log_after_applied(&store, &identity, promised)?;
        fail::fail_point!("adopt-before-flush", |_| Err(StorageError::Io("fail point".into()).into()));
        store.flush()?;
        store.close();
        drop(store);
        sync_all(&dir.join(DATABASE_DIR))?;
        sync_all(&dir)?;
        fail::fail_point!("adopt-after-sync", |_| Err(StorageError::Io("fail point".into()).into()));
        Ok(base)
    }
}

/// What came with the source's log may never have been committed; what is applied was.
fn begin_log_after_applied(
    store: &Store,
    identity: &Identity,
    promised: PrimaryTerm,
) -> Result<LogPosition, StorageError> {
    let applied: AppliedState = match store.get(Family::Meta, &MetaKey::Applied.encode())? {
        Some(value) => AppliedState::decode(&value)?,
        None => return Err(corrupt("applied state", "missing")),
    };
    let followed = match store.get(Family::Meta, &MetaKey::CurrentTerm.encode())? {
        Some(value) => PrimaryTerm(decode_u64("current term", &value)?),
        None => return Err(corrupt("current term", "missing")),
    };
    let base = applied.position;
    let term = followed.max(promised);
    let mut batch = WriteBatch::default();
    let meta = store.family(Family::Meta);
    identity.add_to(store, &mut batch)?;
    batch.put_cf(meta, MetaKey::CurrentTerm.encode(), encode_u64(term.0));
    batch.put_cf(meta, MetaKey::Purged.encode(), encode(&base));
    let (start, end) = keys::term_starts();
    batch.delete_range_cf(meta, start, end);
    let (start, end) = keys::whole_log();
    batch.delete_range_cf(store.family(Family::Log), start, end);
    store.write(batch, Durability::Synced)?;
    Ok(base)
}

/// Makes a directory and the files in it durable; RocksDB's checkpoint, and files that came over the wire, need not be.
fn sync_all(dir: &Path) -> Result<(), StorageError> {
    let sync = || {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_file() {
                File::open(path)?.sync_all()?;
            }
        }
        File::open(dir)?.sync_all()
    };
    sync().map_err(|error| io_error(dir, &error))
}

fn io_error(path: &Path, error: &std::io::Error) -> StorageError {
    match error.kind() {
        std::io::ErrorKind::StorageFull => StorageError::Full,
        _ => StorageError::Io(format!("{}: {error}", path.display())),
    }
}
