//! How metadata bytes are written, on disk and between voters: one format byte, then postcard.
//!
//! postcard is positional, so fields and enum variants may only be appended behind a new feature level, and a changed layout gets a
//! new format byte that knows how to read its predecessor.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The only layout there is so far.
const FORMAT: u8 = 1;

/// Bytes that do not decode.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Written by a newer build, or not ours.
    #[error("unknown format byte {0:?}")]
    Format(Option<u8>),
    /// The body is damaged or of another type.
    #[error("malformed bytes: {0}")]
    Body(#[from] postcard::Error),
}

impl From<CodecError> for std::io::Error {
    fn from(error: CodecError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// Encodes `value` behind the format byte. Errors: a value that postcard cannot express; none of ours.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    Ok(postcard::to_extend(value, vec![FORMAT])?)
}

/// The inverse of [`encode`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    match bytes.split_first() {
        Some((&FORMAT, body)) => Ok(postcard::from_bytes(body)?),
        other => Err(CodecError::Format(other.map(|(byte, _)| *byte))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_and_damaged_bytes_are_refused() {
        let bytes = encode(&(7u64, "x")).expect("encodes");
        assert_eq!(decode::<(u64, String)>(&bytes).expect("decodes"), (7, "x".to_owned()));
        assert!(matches!(decode::<u64>(&[]), Err(CodecError::Format(None))));
        assert!(matches!(decode::<u64>(&[9, 7]), Err(CodecError::Format(Some(9)))));
        assert!(matches!(decode::<(u64, String)>(&bytes[..2]), Err(CodecError::Body(_))));
    }
}
