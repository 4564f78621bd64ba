//! The snapshots that others fetch from this node: checkpoints under a lease, each in a directory of its own.
//!
//! Soft state: after a restart they are void and their directories are deleted. Opening, reading, closing and clearing block.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, Lineage, ShardId};
use cluster_config::limits::{SNAPSHOT_LEASE, SNAPSHOT_PIECE_BYTES, TRANSFERS_OUT_MAX};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::manifest::{Manifest, SnapshotFile, SnapshotId, is_database_file};
use crate::error::Error;
use crate::shard::Shard;

/// Directory of the database within a checkpoint.
const DATABASE_DIR: &str = "rocksdb";

/// The open snapshots of this process, at most [`TRANSFERS_OUT_MAX`].
pub struct Snapshots {
    dir: PathBuf,
    open: Mutex<BTreeMap<SnapshotId, Open>>,
    slots: Arc<Semaphore>,
}

struct Open {
    for_copy: CopyId,
    manifest: Arc<Manifest>,
    used_at: Instant,
    /// Given back with the snapshot.
    _slot: OwnedSemaphorePermit,
}

impl Snapshots {
    /// None yet. `dir` is this value's alone, on the file system of the copies.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, open: Mutex::default(), slots: Arc::new(Semaphore::new(TRANSFERS_OUT_MAX)) }
    }

    /// Deletes what a former process left.
    pub fn clear(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::create_dir_all(&self.dir),
        }
    }

    /// Takes a checkpoint of a copy and adds it up. Cost: reads all of its files once.
    ///
    /// What was opened before for the copy that is to be replaced is closed: it fetches one snapshot at a time, so it asks anew only if it
    /// does not know of that one. It gave up before the answer came, or the answer was lost.
    /// Errors: `Overloaded` (enough are open), and those of [`Shard::checkpoint`].
    pub fn open(
        &self,
        shard: &Shard,
        shard_id: ShardId,
        lineage: Lineage,
        for_copy: CopyId,
    ) -> Result<Arc<Manifest>, Error> {
        self.which(|open| open.for_copy == for_copy).into_iter().for_each(|forgotten| self.close(forgotten));
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| {
            Error::new(ErrorKind::Overloaded, format!("{TRANSFERS_OUT_MAX} snapshots are being fetched from this node"))
                .with_hint("try again later, or another copy")
        })?;
        let snapshot = SnapshotId(rand::random());
        let dir = self.directory(snapshot);
        let checkpoint = shard.checkpoint(&dir)?;
        let files = list(&dir.join(DATABASE_DIR)).map_err(|error| {
            delete(&dir);
            unavailable(&dir, &error)
        })?;
        let manifest = Arc::new(Manifest {
            snapshot,
            shard: shard_id,
            lineage,
            base: checkpoint.base,
            generation: checkpoint.generation,
            files,
        });
        let open = Open { for_copy, manifest: Arc::clone(&manifest), used_at: Instant::now(), _slot: slot };
        self.open.lock().insert(snapshot, open);
        Ok(manifest)
    }

    /// One piece of a file; renews the lease. Errors: `NotFound` (no such snapshot), `InvalidArgument` (no such piece), `Corrupt` (the
    /// file is not what it was), `Unavailable`.
    pub fn read(&self, snapshot: SnapshotId, name: &str, piece: u32) -> Result<Bytes, Error> {
        let manifest = {
            let mut open = self.open.lock();
            let open = open.get_mut(&snapshot).ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("snapshot {:016x} is not open here", snapshot.0))
            })?;
            open.used_at = Instant::now();
            Arc::clone(&open.manifest)
        };
        let no_piece = || Error::new(ErrorKind::InvalidArgument, format!("piece: {name:?} has no piece {piece}"));
        let file = manifest.file(name).ok_or_else(no_piece)?;
        let sum = *file.pieces.get(piece as usize).ok_or_else(no_piece)?;
        let path = self.directory(snapshot).join(DATABASE_DIR).join(name);
        let mut data = vec![0; file.piece_bytes(piece)];
        File::open(&path)
            .and_then(|file| file.read_exact_at(&mut data, u64::from(piece) * SNAPSHOT_PIECE_BYTES as u64))
            .map_err(|error| unavailable(&path, &error))?;
        if crc32c::crc32c(&data) != sum {
            let message = format!("{}: piece {piece} is not what it was when the snapshot was taken", path.display());
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok(data.into())
    }

    /// Ends a snapshot; one that is not open is none.
    pub fn close(&self, snapshot: SnapshotId) {
        let closed = self.open.lock().remove(&snapshot);
        if closed.is_some() {
            delete(&self.directory(snapshot));
        }
    }

    /// Snapshots whose lease has run out at `now`, or all of them; the caller closes them.
    pub fn due(&self, now: Option<Instant>) -> Vec<SnapshotId> {
        self.which(|open| now.is_none_or(|now| now.saturating_duration_since(open.used_at) > SNAPSHOT_LEASE))
    }

    fn which(&self, is_meant: impl Fn(&Open) -> bool) -> Vec<SnapshotId> {
        self.open.lock().iter().filter(|(_, open)| is_meant(open)).map(|(snapshot, _)| *snapshot).collect()
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.lock().len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn directory(&self, snapshot: SnapshotId) -> PathBuf {
        self.dir.join(format!("{:016x}", snapshot.0))
    }
}

fn list(dir: &Path) -> io::Result<Vec<SnapshotFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if let Some(name) = entry.file_name().to_str().filter(|name| is_database_file(name)) {
            files.push(SnapshotFile::of(&entry.path(), name.to_owned())?);
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

fn delete(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir) {
        tracing::warn!(dir = %dir.display(), %error, "a snapshot cannot be deleted");
    }
}

fn unavailable(path: &Path, error: &io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{}: {error}", path.display()))
}
