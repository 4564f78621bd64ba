//! Reading everything that a copy holds, slowly, to find what has rotted before a reader does.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::image::Image;
use super::record_file;
use super::{DATABASE_DIR, Shard, ShardError};
use crate::pace::Pace;
use crate::replication::storage::StorageError;
use crate::vector::Cancel;

/// One look at all of a copy.
#[derive(Clone, Copy, Debug)]
pub struct Scrubbed {
    /// When it ended.
    pub at: Instant,
    /// Bytes of keys, values and mapped vectors that were right.
    pub bytes: u64,
}

impl Shard {
    /// Reads every table block, record file and mapped vector of this copy and compares checksums. What is wrong ends the copy's
    /// service. `scratch` holds a checkpoint meanwhile: it must not exist, its parent must, on the same file system.
    ///
    /// Cost: reads the whole copy past the block cache, at the `pace`. Errors: `Corrupt` naming the file, `Cancelled`, `Unavailable`.
    pub fn scrub(&self, scratch: &Path, pace: &Pace, cancel: &Cancel) -> Result<Scrubbed, ShardError> {
        let mut bytes = 0;
        let mut visit = |more: u64| -> Result<(), ShardError> {
            bytes += more;
            self.store.check()?;
            Ok(pace.wait_blocking(more, cancel)?)
        };
        let mut look = || -> Result<(), ShardError> {
            record_file::verify_all(self.store.dir())?;
            let _gone_after = Scratch::create(scratch)?;
            self.store.checkpoint(&scratch.join(DATABASE_DIR))?;
            Image::open(scratch)?.verify(&mut visit)?;
            for piece in 0.. {
                match self.vectors.verify_piece(piece) {
                    Ok(Some(piece_bytes)) => visit(piece_bytes)?,
                    Ok(None) => break,
                    // Derived, and made anew when the copy is reopened: the copy itself is whole.
                    Err(error) => return Err(self.store.poison(StorageError::Io(error.to_string())).into()),
                }
            }
            Ok(())
        };
        look().inspect_err(|error| {
            // A scratch directory that cannot be made is not this copy's failure.
            if let ShardError::Storage(corrupt @ StorageError::Corrupt(_)) = error {
                self.store.poison(corrupt.clone());
            }
        })?;
        let scrubbed = Scrubbed { at: Instant::now(), bytes };
        *self.last_scrub.lock() = Some(scrubbed);
        Ok(scrubbed)
    }
}

struct Scratch(PathBuf);

impl Scratch {
    fn create(dir: &Path) -> Result<Self, StorageError> {
        fs::create_dir(dir).map_err(|error| StorageError::Io(format!("{}: {error}", dir.display())))?;
        Ok(Self(dir.to_path_buf()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(dir = %self.0.display(), %error, "the checkpoint of a scrub cannot be deleted");
        }
    }
}
