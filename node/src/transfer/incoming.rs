//! A snapshot on its way to this disk, in a directory beside the copies: `manifest.json` and `copy/rocksdb/*`.
//!
//! What has arrived is judged by its checksums alone, so nothing has to be remembered about it, and whatever a crash left behind is
//! looked at in the same way. The copy's own directory stays untouched until the new one is complete, verified, durable and
//! this copy's own; then the two change places in one system call. The manifest goes first: a directory without one is what was
//! replaced, or will not be used, and is deleted when the node starts. All calls block.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cluster_config::limits::SNAPSHOT_PIECE_BYTES;
use cluster_config::seqno::{LogPosition, PrimaryTerm};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::manifest::{Manifest, is_database_file, sums_of};
use crate::shard::{Shard, ShardError, ShardOptions};

const MANIFEST: &str = "manifest.json";
const COPY_DIR: &str = "copy";
const DATABASE_DIR: &str = "rocksdb";

/// A piece that is not here yet, or is not right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingPiece {
    /// Its file.
    pub file: String,
    /// Its number.
    pub piece: u32,
    /// Its checksum.
    pub crc32c: u32,
    /// Its length.
    pub bytes: usize,
}

/// A snapshot that is being fetched.
#[derive(Debug)]
pub struct Incoming {
    dir: PathBuf,
    manifest: Manifest,
}

impl Incoming {
    /// The manifest of what an earlier attempt left in `dir`, if it can be read.
    pub fn begun(dir: &Path) -> Option<Manifest> {
        serde_json::from_slice(&fs::read(dir.join(MANIFEST)).ok()?).ok()
    }

    /// Prepares `dir` for the files of a manifest (validated by the caller). Files of the same name that an earlier attempt left stay;
    /// others go.
    pub fn begin(dir: PathBuf, manifest: Manifest) -> io::Result<Self> {
        let incoming = Self { dir, manifest };
        let database = incoming.copy_dir().join(DATABASE_DIR);
        fs::create_dir_all(&database)?;
        incoming.write_manifest()?;
        for entry in fs::read_dir(&database)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_wanted = name.to_str().is_some_and(|name| incoming.manifest.file(name).is_some());
            if !is_wanted {
                fs::remove_file(entry.path())?;
            }
        }
        for file in &incoming.manifest.files {
            debug_assert!(is_database_file(&file.name));
            let path = database.join(&file.name);
            OpenOptions::new().write(true).create(true).truncate(false).open(path)?.set_len(file.size)?;
        }
        Ok(incoming)
    }

    /// What it is made of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The pieces that are still to be fetched. Cost: reads what is there.
    pub fn missing(&self) -> io::Result<Vec<MissingPiece>> {
        let mut missing = Vec::new();
        for file in &self.manifest.files {
            let (_, sums) = sums_of(&self.path(&file.name))?;
            for (piece, (found, wanted)) in (0..).zip(sums.iter().zip(&file.pieces)) {
                if found != wanted {
                    let bytes = file.piece_bytes(piece);
                    missing.push(MissingPiece { file: file.name.clone(), piece, crc32c: *wanted, bytes });
                }
            }
        }
        Ok(missing)
    }

    /// Keeps a piece that was checked.
    pub fn write(&self, piece: &MissingPiece, data: &[u8]) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path(&piece.file))?;
        file.write_all_at(data, u64::from(piece.piece) * SNAPSHOT_PIECE_BYTES as u64)
    }

    /// Verifies all that has arrived and makes it the own of the copy that `options` names (but for its directory); durable on return. See
    /// [`Shard::adopt_snapshot`].
    pub fn adopt(&self, options: ShardOptions, promised: PrimaryTerm) -> Result<LogPosition, ShardError> {
        Shard::adopt_snapshot(ShardOptions { dir: self.copy_dir(), ..options }, promised)
    }

    /// Puts what was adopted in the place of the copy's directory, which must not be in use, and deletes what was there before.
    pub fn install(self, copy_dir: &Path) -> io::Result<()> {
        let parent = copy_dir.parent().unwrap_or(Path::new("."));
        fs::remove_file(self.dir.join(MANIFEST))?;
        File::open(&self.dir)?.sync_all()?;
        fail::fail_point!("install-before-exchange", |_| Err(io::Error::other("fail point")));
        renameat_with(CWD, self.copy_dir(), CWD, copy_dir, RenameFlags::EXCHANGE)?;
        fail::fail_point!("install-after-exchange", |_| Err(io::Error::other("fail point")));
        File::open(parent)?.sync_all()?;
        File::open(&self.dir)?.sync_all()?;
        fs::remove_dir_all(&self.dir)
    }

    fn copy_dir(&self) -> PathBuf {
        self.dir.join(COPY_DIR)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.copy_dir().join(DATABASE_DIR).join(name)
    }

    fn write_manifest(&self) -> io::Result<()> {
        let temporary = self.dir.join("manifest.new");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(&self.manifest)?)?;
        file.sync_all()?;
        fs::rename(&temporary, self.dir.join(MANIFEST))?;
        File::open(&self.dir)?.sync_all()
    }
}

/// Deletes what is of no use any more below the directory of all incoming snapshots: what was replaced, and what never began.
pub fn sweep(incoming: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(incoming) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if Incoming::begun(&path).is_none() {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// Gives up an attempt that is not needed any more.
pub fn discard(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
