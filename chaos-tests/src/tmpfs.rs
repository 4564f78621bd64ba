//! A file system of a few megabytes that can be filled up, where this process may mount one.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// Written at once when the disk is filled.
const BALLAST_PIECE_BYTES: usize = 64 * 1024;

/// A mounted tmpfs, unmounted when dropped.
#[derive(Debug)]
pub struct Tmpfs {
    path: PathBuf,
}

impl Tmpfs {
    /// Whether this process may mount. Errors: why not.
    pub fn allowed() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        // Unmounted before its directory is removed.
        Self::mount(&dir.path().join("probe"), 1 << 20).map(drop)
    }

    /// Mounts one at `path`, which is created.
    pub fn mount(path: &Path, bytes: u64) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path)?;
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(path)
            .output()
            .context("cannot run mount")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(Self { path: path.to_owned() })
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Fills it to the last byte. Returns how many bytes that took.
    pub fn fill(&self) -> anyhow::Result<u64> {
        let mut file = File::create(self.ballast())?;
        let piece = vec![0xA5; BALLAST_PIECE_BYTES];
        let mut filled = 0;
        loop {
            match file.write(&piece) {
                Ok(0) => return Ok(filled),
                Ok(count) => filled += count as u64,
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(filled),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives the space back.
    pub fn free(&self) -> anyhow::Result<()> {
        match std::fs::remove_file(self.ballast()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a process that was just killed may still be on its way out.
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.path).output();
        if !unmounted.is_ok_and(|output| output.status.success()) {
            println!("cannot unmount {}", self.path.display());
        }
    }
}
