//! Zip packages (Office files, EPUB) with bounds: entries, and bytes unpacked over the whole package. A package that claims less
//! than it holds is caught while it is read.

use std::io::{Cursor, Read};

use cluster_config::limits;
use zip::ZipArchive;

use super::ParseError;

/// An open package.
pub(super) struct Package<'a> {
    archive: ZipArchive<Cursor<&'a [u8]>>,
    format: &'static str,
    unpacked: usize,
}

impl<'a> Package<'a> {
    /// Reads the directory of a package. Errors: `Malformed`, `Unpacked` (too many entries).
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let archive = ZipArchive::new(Cursor::new(bytes))
            .map_err(|error| ParseError::Malformed { format: "zip".into(), reason: error.to_string() })?;
        if archive.len() > limits::PACKAGE_ENTRIES_MAX {
            return Err(ParseError::Unpacked { what: "entries".into(), most: limits::PACKAGE_ENTRIES_MAX });
        }
        Ok(Self { archive, format: "zip", unpacked: 0 })
    }

    /// What errors call it from now on.
    pub(super) fn call(&mut self, format: &'static str) {
        self.format = format;
    }

    /// Whether there is an entry of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.archive.index_for_name(name).is_some()
    }

    /// An entry's text, unpacked. Errors: it is not there, is no UTF-8, or bounds are met.
    pub(super) fn text(&mut self, name: &str) -> Result<String, ParseError> {
        let bytes = self.bytes(name)?;
        let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").map(<[u8]>::to_vec).unwrap_or(bytes);
        String::from_utf8(bytes).map_err(|_| self.malformed(format!("{name} is not UTF-8")))
    }

    /// An entry's bytes, unpacked.
    pub(super) fn bytes(&mut self, name: &str) -> Result<Vec<u8>, ParseError> {
        let format = self.format;
        let failed =
            |error: String| ParseError::Malformed { format: format.into(), reason: format!("{name}: {error}") };
        let entry = self.archive.by_name(name).map_err(|error| failed(error.to_string()))?;
        let left = limits::PACKAGE_BYTES_MAX - self.unpacked;
        let mut bytes = Vec::new();
        entry.take(left as u64 + 1).read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
        if bytes.len() > left {
            return Err(ParseError::Unpacked { what: "bytes".into(), most: limits::PACKAGE_BYTES_MAX });
        }
        self.unpacked += bytes.len();
        Ok(bytes)
    }

    /// Unpacks every entry into nothing, for readers that unpack by themselves. Errors: bounds are met.
    pub(super) fn check_size(&mut self) -> Result<(), ParseError> {
        let format = self.format;
        let failed = |error: String| ParseError::Malformed { format: format.into(), reason: error };
        let mut left = limits::PACKAGE_BYTES_MAX as u64;
        for index in 0..self.archive.len() {
            let entry = self.archive.by_index(index).map_err(|error| failed(error.to_string()))?;
            let read = std::io::copy(&mut entry.take(left + 1), &mut std::io::sink());
            let read = read.map_err(|error| failed(error.to_string()))?;
            left = left
                .checked_sub(read)
                .ok_or(ParseError::Unpacked { what: "bytes".into(), most: limits::PACKAGE_BYTES_MAX })?;
        }
        Ok(())
    }

    /// A fault of this package.
    pub(super) fn malformed(&self, reason: impl Into<String>) -> ParseError {
        ParseError::Malformed { format: self.format.into(), reason: reason.into() }
    }
}

/// A target as a part names it, from the part's own folder, as an entry's name: `../slides/a.xml` seen from `ppt/x/b.xml`.
pub(super) fn resolve(part: &str, target: &str) -> String {
    if let Some(absolute) = target.strip_prefix('/') {
        return absolute.to_owned();
    }
    let mut segments: Vec<&str> = part.split('/').collect();
    segments.pop();
    for segment in target.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    segments.join("/")
}
