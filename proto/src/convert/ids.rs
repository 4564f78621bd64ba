//! Identities and positions.

use cluster_config::ids::{CollectionId, CopyId, DocumentKey, Lineage, OperationId, ShardId};
use cluster_config::search::CopyPosition;
use cluster_config::seqno::{LogPosition, PrimaryTerm, SeqNo};
use cluster_config::shard_group::CopyTarget;
use prost::bytes::Bytes;

use super::{WireError, required};
use crate::v1;

impl From<ShardId> for v1::ShardRef {
    fn from(shard: ShardId) -> Self {
        Self { collection: shard.collection.0, index: shard.index }
    }
}

impl From<v1::ShardRef> for ShardId {
    fn from(wire: v1::ShardRef) -> Self {
        Self { collection: CollectionId(wire.collection), index: wire.index }
    }
}

/// The shard named in `field`.
pub fn shard_id(field: &str, wire: Option<v1::ShardRef>) -> Result<ShardId, WireError> {
    wire.map(ShardId::from).ok_or_else(|| WireError::missing(field))
}

impl From<CopyTarget> for v1::CopyTarget {
    fn from(target: CopyTarget) -> Self {
        Self {
            shard: Some(target.shard.into()),
            copy_id: target.copy.0,
            lineage: target.lineage.0,
            cfg_version: target.cfg_version,
        }
    }
}

impl TryFrom<v1::CopyTarget> for CopyTarget {
    type Error = WireError;

    fn try_from(wire: v1::CopyTarget) -> Result<Self, WireError> {
        Ok(Self {
            shard: shard_id("shard", wire.shard)?,
            copy: CopyId(wire.copy_id),
            lineage: Lineage(wire.lineage),
            cfg_version: wire.cfg_version,
        })
    }
}

impl From<DocumentKey> for v1::DocumentKey {
    fn from(key: DocumentKey) -> Self {
        Self { tenant: key.tenant, document_id: key.document_id }
    }
}

impl TryFrom<v1::DocumentKey> for DocumentKey {
    type Error = WireError;

    fn try_from(wire: v1::DocumentKey) -> Result<Self, WireError> {
        DocumentKey::with_tenant(wire.tenant, wire.document_id)
            .map_err(|error| WireError::new("document_id", error.to_string()))
    }
}

impl From<LogPosition> for v1::LogPosition {
    fn from(position: LogPosition) -> Self {
        Self { term: position.term.0, seqno: position.seqno.0 }
    }
}

impl From<v1::LogPosition> for LogPosition {
    fn from(wire: v1::LogPosition) -> Self {
        Self { term: PrimaryTerm(wire.term), seqno: SeqNo(wire.seqno) }
    }
}

impl From<CopyPosition> for v1::CopyPosition {
    fn from(position: CopyPosition) -> Self {
        Self {
            shard: position.shard.map(v1::ShardRef::from),
            copy_id: position.copy.0,
            lineage: position.lineage.0,
            term: position.term.0,
            applied: position.applied.0,
            generation: position.generation,
            staleness_ms: position.staleness_ms,
        }
    }
}

impl From<v1::CopyPosition> for CopyPosition {
    fn from(wire: v1::CopyPosition) -> Self {
        Self {
            shard: wire.shard.map(ShardId::from),
            copy: CopyId(wire.copy_id),
            lineage: Lineage(wire.lineage),
            term: PrimaryTerm(wire.term),
            applied: SeqNo(wire.applied),
            generation: wire.generation,
            staleness_ms: wire.staleness_ms,
        }
    }
}

/// An operation id as sent: 16 bytes big-endian, or nothing for the shard's own entries (id 0).
pub fn operation_id_bytes(id: OperationId) -> Vec<u8> {
    if id == OperationId::default() { Vec::new() } else { id.0.to_be_bytes().to_vec() }
}

/// Reads an operation id as sent. Errors: neither 0 nor 16 bytes.
pub fn operation_id(bytes: &[u8]) -> Result<OperationId, WireError> {
    if bytes.is_empty() {
        return Ok(OperationId::default());
    }
    let array: [u8; 16] = bytes
        .try_into()
        .map_err(|_| WireError::new("operation_id", format!("{} bytes, expected 16 or none", bytes.len())))?;
    Ok(OperationId(u128::from_be_bytes(array)))
}

/// The target named in `field`.
pub fn copy_target(field: &str, wire: Option<v1::CopyTarget>) -> Result<CopyTarget, WireError> {
    required(field, wire)
}

/// Half floats of one vector as sent. Errors: an odd number of bytes.
pub(crate) fn half_vector(field: &str, bytes: Bytes) -> Result<Vec<u8>, WireError> {
    if !bytes.len().is_multiple_of(2) {
        return Err(WireError::new(field, format!("{} bytes are no half floats", bytes.len())));
    }
    // Takes the buffer over where it is not shared, which is the case for a message just decoded from a frame of its own.
    Ok(Vec::from(bytes))
}
