//! Identities. Numbers are given out by the metadata group and never reused; names are chosen by callers.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::InvalidName;
use crate::limits;

macro_rules! numeric_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                Self(value)
            }
        }
    };
}

numeric_id!(
    /// A process that is a metadata voter, a data node, or both. Chosen by the operator, unique in the cluster.
    NodeId
);
numeric_id!(
    /// A collection, allotted by the metadata state machine. A collection created again under an old name gets a new id.
    CollectionId
);
numeric_id!(
    /// One physical copy of a shard, allotted by the metadata state machine and stored on disk with the data. A copy that was
    /// wiped or created anew gets a new id, so a stale disk can never pass for a current one.
    CopyId
);
numeric_id!(
    /// Raised by the metadata group each time a process registers.
    Incarnation
);
numeric_id!(
    /// Changes only when an operator forces a recovery with data loss; tokens and copies of another lineage are void.
    Lineage
);

/// A hash slice of a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId {
    /// The collection it belongs to.
    pub collection: CollectionId,
    /// Position in `0..shard_count`.
    pub index: u32,
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.collection, self.index)
    }
}

impl std::str::FromStr for ShardId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName::new("shard", text, "COLLECTION_ID/INDEX, for example 1/0");
        let (collection, index) = text.split_once('/').ok_or_else(invalid)?;
        Ok(Self {
            collection: CollectionId(collection.parse().map_err(|_| invalid())?),
            index: index.parse().map_err(|_| invalid())?,
        })
    }
}

/// Identity of one client operation, so that a retry is recognised. Made by the writer (a UUID), opaque here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(pub u128);

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Tenant used until a caller names one.
pub const DEFAULT_TENANT: &str = "default";

/// A document within a collection. Together with the collection it is the whole routing key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DocumentKey {
    /// Owner of the document; [`DEFAULT_TENANT`] until tenants exist.
    pub tenant: String,
    /// Chosen by the caller, or a UUIDv7 made by the server.
    pub document_id: String,
}

impl DocumentKey {
    /// A document of the default tenant. Errors: `InvalidName` if the id is empty, too long, or has control characters.
    pub fn new(document_id: impl Into<String>) -> Result<Self, InvalidName> {
        Self::with_tenant(DEFAULT_TENANT, document_id)
    }

    /// A document of the given tenant. Errors: as [`DocumentKey::new`], for either part.
    pub fn with_tenant(tenant: impl Into<String>, document_id: impl Into<String>) -> Result<Self, InvalidName> {
        let key = Self { tenant: tenant.into(), document_id: document_id.into() };
        check_opaque("tenant", &key.tenant, limits::TENANT_BYTES_MAX)?;
        check_opaque("document id", &key.document_id, limits::DOCUMENT_ID_BYTES_MAX)?;
        Ok(key)
    }
}

/// The id of chunk `ordinal` of a document: `{document_id}#{ordinal}`. A point is a document of one chunk, number 0.
pub fn chunk_id(document_id: &str, ordinal: u32) -> String {
    format!("{document_id}#{ordinal}")
}

/// Checks a collection name: 1 to 64 of `a-z 0-9 _ -`, beginning with a letter or digit.
pub fn check_collection_name(name: &str) -> Result<(), InvalidName> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let begins_well = name.chars().next().is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if begins_well && name.len() <= limits::COLLECTION_NAME_BYTES_MAX && name.chars().all(allowed) {
        return Ok(());
    }
    Err(InvalidName::new("collection", name, "1 to 64 of a-z, 0-9, _ and -, beginning with a letter or digit"))
}

fn check_opaque(what: &'static str, value: &str, bytes_max: usize) -> Result<(), InvalidName> {
    if value.is_empty() || value.len() > bytes_max {
        return Err(InvalidName::new(what, value, format!("1 to {bytes_max} bytes")));
    }
    if value.chars().any(char::is_control) {
        return Err(InvalidName::new(what, value, "text without control characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_id_reads_what_it_prints() {
        let shard = ShardId { collection: CollectionId(7), index: 3 };
        assert_eq!(shard.to_string().parse::<ShardId>().expect("parses"), shard);
        assert!("7".parse::<ShardId>().is_err());
    }

    #[test]
    fn names_are_checked() {
        for good in ["a", "cran", "0-x_y"] {
            assert!(check_collection_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a/b", &"x".repeat(65)] {
            assert!(check_collection_name(bad).is_err(), "{bad}");
        }
        assert!(DocumentKey::new("").is_err());
        assert!(DocumentKey::new("a\nb").is_err());
        assert!(DocumentKey::new("x".repeat(limits::DOCUMENT_ID_BYTES_MAX + 1)).is_err());
        assert!(DocumentKey::new("ключ #7").is_ok());
    }
}
