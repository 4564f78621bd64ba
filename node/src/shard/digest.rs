//! A digest of one copy's applied state and log, for comparing copies: equal position, equal digests.

use cluster_config::search::CopyPosition;
use cluster_config::seqno::{LogPosition, SeqNo};
use xxhash_rust::xxh3::Xxh3;

use super::fetch::{parse_document_key, read_chunk};
use super::keys::{self, Family, MetaKey};
use super::operation::EncodedEntry;
use super::records::{AppliedState, DocumentRecord, corrupt, decode, decode_u64};
use super::store::Frozen;
use super::{Shard, ShardError};
use crate::replication::storage::StorageError;

/// What two copies at one position must agree on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardDigest {
    /// Where the copy stood.
    pub position: CopyPosition,
    /// XXH3-64 of every live chunk with its document key, text, metadata and vector, in key order.
    pub documents: u64,
    /// XXH3-64 of the live rows, of the rows in the indexes, and of what was measured of them.
    pub index_membership: u64,
    /// XXH3-64 of (seqno, term, CRC) of the entries after `log_from`, up to the applied one.
    pub log: u64,
    /// Entries up to here are purged.
    pub log_from: SeqNo,
    /// Live documents.
    pub document_count: u64,
    /// Live chunks.
    pub chunk_count: u64,
}

impl Shard {
    /// Computes the digest at one applied position. Cost: reads the whole copy, past the block cache.
    pub fn digest(&self) -> Result<ShardDigest, ShardError> {
        let compute = || {
            let frozen = self.store.freeze()?;
            let applied: AppliedState = match frozen.get(Family::Meta, &MetaKey::Applied.encode())? {
                Some(value) => AppliedState::decode(&value)?,
                None => AppliedState::default(),
            };
            let purged: LogPosition = match frozen.get(Family::Meta, &MetaKey::Purged.encode())? {
                Some(value) => decode("purged position", &value)?,
                None => LogPosition::default(),
            };
            let log_from = purged.seqno;
            let (documents, document_count, chunk_count) = digest_documents(&frozen)?;
            if (document_count, chunk_count) != (applied.document_count, applied.rows_live) {
                let found = format!("{document_count} documents, {chunk_count} chunks, but {applied:?}");
                return Err(corrupt("applied state", &found).into());
            }
            let mut position = self.position();
            position.applied = applied.position.seqno;
            position.generation = applied.generation;
            Ok(ShardDigest {
                position,
                documents,
                index_membership: digest_rows(&frozen, &applied)?,
                log: digest_log(&frozen, log_from, applied.position.seqno)?,
                log_from,
                document_count,
                chunk_count,
            })
        };
        self.guard(compute())
    }
}

fn digest_documents(frozen: &Frozen<'_>) -> Result<(u64, u64, u64), StorageError> {
    let mut hash = Xxh3::new();
    let (mut document_count, mut chunk_count) = (0, 0);
    frozen.scan(Family::Documents, &[], None, |key, value| {
        let document: DocumentRecord = decode("document", value)?;
        let named = parse_document_key(key)?;
        add(&mut hash, named.tenant.as_bytes());
        add(&mut hash, named.document_id.as_bytes());
        add(&mut hash, document.title.as_bytes());
        document_count += 1;
        for row in document.rows() {
            let stored = read_chunk(frozen, row, true)?;
            let stored = stored.ok_or_else(|| corrupt("document", &format!("its row {row} is missing")))?;
            if stored.key != named {
                return Err(corrupt("document", &format!("its row {row} is of another one")));
            }
            let chunk = stored.chunk;
            add(&mut hash, &chunk.ordinal.to_be_bytes());
            add(&mut hash, chunk.text.as_bytes());
            add(&mut hash, chunk.metadata_json.as_bytes());
            add(&mut hash, &chunk.span.start.to_be_bytes());
            add(&mut hash, &chunk.span.end.to_be_bytes());
            add(&mut hash, &chunk.vector);
            chunk_count += 1;
        }
        Ok(true)
    })?;
    Ok((hash.digest(), document_count, chunk_count))
}

/// Live rows are those given out without the dead, so the dead and the end say the same.
fn digest_rows(frozen: &Frozen<'_>, applied: &AppliedState) -> Result<u64, StorageError> {
    let mut hash = Xxh3::new();
    hash.update(&applied.row_end.to_be_bytes());
    frozen.scan(Family::Tombstones, &[], None, |key, _| {
        hash.update(key);
        Ok(true)
    })?;
    let renewal = applied.renewal.map(|renewal| (renewal.generation, renewal.indexed_row_end));
    for (generation, indexed_row_end) in [(applied.generation, applied.indexed_row_end)].into_iter().chain(renewal) {
        hash.update(&generation.to_be_bytes());
        hash.update(&indexed_row_end.to_be_bytes());
        let (start, end) = keys::reduced_of(generation);
        frozen.scan(Family::Reduced, &start, Some(end), |key, value| {
            hash.update(key);
            hash.update(value);
            Ok(true)
        })?;
    }
    if let Some(curve) = frozen.get(Family::Meta, &MetaKey::EffortCurve.encode())? {
        hash.update(&curve);
    }
    Ok(hash.digest())
}

fn digest_log(frozen: &Frozen<'_>, from: SeqNo, to: SeqNo) -> Result<u64, StorageError> {
    let mut hash = Xxh3::new();
    let end = keys::log(to.next()).to_vec();
    frozen.scan(Family::Log, &keys::log(from.next()), Some(end), |key, value| {
        let seqno = SeqNo(decode_u64("log key", key)?);
        let entry =
            EncodedEntry::from_stored(seqno, value).map_err(|error| StorageError::Corrupt(error.to_string()))?;
        hash.update(&seqno.0.to_be_bytes());
        hash.update(&entry.term.0.to_be_bytes());
        hash.update(&entry.crc32c.to_be_bytes());
        Ok(true)
    })?;
    Ok(hash.digest())
}

/// Adds a part with its length, so that parts cannot run into each other.
fn add(hash: &mut Xxh3, bytes: &[u8]) {
    hash.update(&(bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}
