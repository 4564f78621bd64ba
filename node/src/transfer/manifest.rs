//! What a snapshot consists of: names, sizes and checksums, as sent and as kept beside the pieces that have arrived.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use cluster_config::error::ErrorKind;
use cluster_config::ids::{Lineage, ShardId};
use cluster_config::limits::{SNAPSHOT_FILES_MAX, SNAPSHOT_PIECE_BYTES};
use cluster_config::seqno::LogPosition;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Names a snapshot while its source keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(pub u64);

/// The files of one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Where to read from.
    pub snapshot: SnapshotId,
    /// The shard it is of.
    pub shard: ShardId,
    /// Its lineage.
    pub lineage: Lineage,
    /// Applied up to here, and nothing beyond.
    pub base: LogPosition,
    /// Installed generation; 0: none.
    pub generation: u64,
    /// Every file of the database.
    pub files: Vec<SnapshotFile>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFile {
    /// Without a directory.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// CRC-32C of each piece of [`SNAPSHOT_PIECE_BYTES`]; the last one may be shorter.
    pub pieces: Vec<u32>,
}

impl Manifest {
    /// All bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// The file of that name.
    pub fn file(&self, name: &str) -> Option<&SnapshotFile> {
        self.files.iter().find(|file| file.name == name)
    }

    /// What a sender may not say: the names become paths, the sizes memory and disk. Errors: `InvalidArgument` naming the field.
    pub fn validate(&self) -> Result<(), Error> {
        let invalid = |problem: String| Err(Error::new(ErrorKind::InvalidArgument, format!("manifest.{problem}")));
        if self.files.len() > SNAPSHOT_FILES_MAX {
            return invalid(format!("files: {} of them, at most {SNAPSHOT_FILES_MAX}", self.files.len()));
        }
        let mut names = BTreeSet::new();
        for file in &self.files {
            if !is_database_file(&file.name) || !names.insert(&file.name) {
                return invalid(format!("files: {:?} is no file of a snapshot, or is there twice", file.name));
            }
            if file.pieces.len() as u64 != file.size.div_ceil(SNAPSHOT_PIECE_BYTES as u64) {
                return invalid(format!("files[{}]: {} pieces for {} bytes", file.name, file.pieces.len(), file.size));
            }
        }
        if self.file("CURRENT").is_none() {
            return invalid("files: CURRENT is missing".into());
        }
        Ok(())
    }
}

impl SnapshotFile {
    /// Reads a file's size and sums. Blocks.
    pub fn of(path: &Path, name: String) -> io::Result<Self> {
        let (size, pieces) = sums_of(path)?;
        Ok(Self { name, size, pieces })
    }

    /// Length of a piece.
    pub fn piece_bytes(&self, piece: u32) -> usize {
        let begin = u64::from(piece) * SNAPSHOT_PIECE_BYTES as u64;
        self.size.saturating_sub(begin).min(SNAPSHOT_PIECE_BYTES as u64) as usize
    }
}

/// Length and piece sums of a file.
pub(super) fn sums_of(path: &Path) -> io::Result<(u64, Vec<u32>)> {
    let mut file = File::open(path)?;
    let mut piece = Vec::with_capacity(SNAPSHOT_PIECE_BYTES);
    let (mut size, mut sums) = (0, Vec::new());
    loop {
        piece.clear();
        file.by_ref().take(SNAPSHOT_PIECE_BYTES as u64).read_to_end(&mut piece)?;
        if piece.is_empty() {
            return Ok((size, sums));
        }
        size += piece.len() as u64;
        sums.push(crc32c::crc32c(&piece));
    }
}

/// What belongs to a RocksDB database: table files, logs, CURRENT, MANIFEST, OPTIONS and IDENTITY. Not its lock and its diary.
pub(super) fn is_database_file(name: &str) -> bool {
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    match name {
        "CURRENT" | "IDENTITY" => true,
        _ => {
            let numbered = name.strip_prefix("MANIFEST-").or_else(|| name.strip_prefix("OPTIONS-"));
            let numbered = numbered.or_else(|| name.strip_suffix(".sst")).or_else(|| name.strip_suffix(".log"));
            numbered.is_some_and(is_number)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(files: Vec<SnapshotFile>) -> Manifest {
        Manifest {
            snapshot: SnapshotId(1),
            shard: ShardId { collection: cluster_config::ids::CollectionId(1), index: 0 },
            lineage: Lineage(0),
            base: LogPosition::default(),
            generation: 0,
            files,
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let file = |name: &str| SnapshotFile { name: name.into(), size: 3, pieces: vec![7] };
        let current = || file("CURRENT");
        for name in ["000012.sst", "000013.log", "MANIFEST-000005", "OPTIONS-000007", "IDENTITY"] {
            assert!(manifest(vec![current(), file(name)]).validate().is_ok(), "{name}");
        }
        for name in ["", "../x.sst", "a/1.sst", ".sst", "1.sst/", "LOCK", "LOG", "MANIFEST-", "witness", "\u{661}.sst"]
        {
            assert!(manifest(vec![current(), file(name)]).validate().is_err(), "{name:?}");
        }
        assert!(manifest(vec![current(), current()]).validate().is_err(), "twice");
        assert!(manifest(vec![file("1.sst")]).validate().is_err(), "without CURRENT");
        let short = SnapshotFile { name: "1.sst".into(), size: 2 << 20, pieces: vec![7] };
        assert!(manifest(vec![current(), short]).validate().is_err(), "too few sums");
    }

    #[test]
    fn pieces_cover_a_file() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("1.sst");
        for (size, pieces) in [(0, 0), (1, 1), (SNAPSHOT_PIECE_BYTES, 1), (SNAPSHOT_PIECE_BYTES + 1, 2)] {
            let bytes = vec![9; size];
            std::fs::write(&path, &bytes).expect("writes");
            let file = SnapshotFile::of(&path, "1.sst".into()).expect("reads");
            assert_eq!((file.size, file.pieces.len()), (size as u64, pieces));
            let lengths: usize = (0..pieces as u32).map(|piece| file.piece_bytes(piece)).sum();
            assert_eq!(lengths, size);
            assert_eq!(file.piece_bytes(pieces as u32), 0);
        }
    }
}
