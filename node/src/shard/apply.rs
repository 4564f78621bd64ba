//! Committed entries become documents, rows and index: deterministically, in order, one `WriteBatch` per group of entries.
//!
//! Everything an entry changes, with the applied position itself, is in one batch: after a crash an entry has happened or has not.
//! All copies give out the same row numbers, index the same rows and remember the same operation ids, because nothing here reads a
//! clock, a random number or anything that differs between copies.

mod generations;

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster_config::collection::CollectionSpec;
use cluster_config::ids::{DocumentKey, OperationId};
use cluster_config::limits;
use cluster_config::operation::{Chunk, Operation};
use cluster_config::seqno::{LogPosition, SeqNo};
use roaring::RoaringTreemap;
use rocksdb::WriteBatch;

use super::bitmaps::BitmapWriter;
use super::fields::declared_fields;
use super::keys::{self, BitmapKey, Family, MetaKey};
use super::label::{self, LABEL_BYTES};
use super::operation::EncodedEntry;
use super::reclaim::{self, Reclaimer};
use super::records::{
    AppliedState, DocumentRecord, EffortCurve, PendingGeneration, RowBody, RowHead, corrupt, decode,
    decode_operation_id, decode_u64, encode, encode_u64,
};
use super::storage_error;
use super::store::{Durability, Store};
use super::view::{Indexes, Tenants, View};
use crate::replication::storage::StorageError;
use crate::vector::MappedVectors;

/// A batch is written when it has grown to this, at the end of an entry.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// What applying works on; borrowed from the shard.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) store: &'a Store,
    pub(crate) vectors: &'a MappedVectors,
    pub(crate) spec: &'a CollectionSpec,
}

/// Applies entries that continue the view's position; earlier ones are skipped. `publish` is called with each next view, under the
/// lock that `write_then_publish` takes around it.
pub(crate) fn apply_entries(
    parts: Parts<'_>,
    mut view: Arc<View>,
    entries: &[EncodedEntry],
    reclaimer: &mut Reclaimer,
    write_then_publish: &mut dyn FnMut(WriteBatch, View) -> Result<Arc<View>, StorageError>,
) -> Result<(), StorageError> {
    let applied = view.applied.position.seqno;
    let mut entries = entries.iter().filter(|entry| entry.seqno > applied).peekable();
    while entries.peek().is_some() {
        let mut group = Group::begin(parts, &view);
        reclaimer.reclaim_due(parts.store, &mut group.batch);
        let mut replaced = Vec::new();
        while group.batch.size_in_bytes() < BATCH_BYTES {
            let Some(entry) = entries.next() else { break };
            group.apply_entry(entry, &mut replaced)?;
        }
        let (batch, next) = group.finish()?;
        view = write_then_publish(batch, next)?;
        reclaimer.remember(replaced);
    }
    Ok(())
}

/// Where an operation was applied, if it is remembered.
pub(crate) fn find_operation(store: &Store, id: OperationId) -> Result<Option<SeqNo>, StorageError> {
    let found = store.get(Family::Dedup, &keys::dedup_id(id))?;
    found.map(|value| decode_u64("remembered operation", &value).map(SeqNo)).transpose()
}

/// Entries on their way into one batch. Reads see the batch before the database.
struct Group<'a> {
    parts: Parts<'a>,
    batch: WriteBatch,
    applied: AppliedState,
    tombstones: Arc<RoaringTreemap>,
    indexes: Indexes,
    tenants: Tenants,
    documents: BTreeMap<Vec<u8>, Option<DocumentRecord>>,
    operations: BTreeMap<OperationId, SeqNo>,
    bitmaps: BitmapWriter,
    /// Read from disk when the first piece comes.
    pending: Option<Option<PendingGeneration>>,
    pieces: BTreeMap<u32, Vec<u8>>,
}

impl<'a> Group<'a> {
    fn begin(parts: Parts<'a>, view: &View) -> Self {
        Self {
            parts,
            batch: WriteBatch::default(),
            applied: view.applied,
            tombstones: view.tombstones.clone(),
            indexes: view.indexes.clone(),
            tenants: view.tenants.clone(),
            documents: BTreeMap::new(),
            operations: BTreeMap::new(),
            bitmaps: BitmapWriter::default(),
            pending: None,
            pieces: BTreeMap::new(),
        }
    }

    /// The finished batch and the view it leads to.
    fn finish(mut self) -> Result<(WriteBatch, View), StorageError> {
        self.bitmaps.write_into(self.parts.store, &mut self.batch)?;
        let meta = self.parts.store.family(Family::Meta);
        self.batch.put_cf(meta, MetaKey::Applied.encode(), self.applied.encode());
        let view = View::new(self.applied, self.tombstones, self.indexes, self.tenants);
        Ok((self.batch, view))
    }

    fn apply_entry(
        &mut self,
        entry: &EncodedEntry,
        replaced: &mut Vec<std::ops::Range<u64>>,
    ) -> Result<(), StorageError> {
        let LogPosition { term, seqno } = self.applied.position;
        if entry.seqno != seqno.next() {
            return Err(StorageError::Refused(format!("entry {} cannot be applied after {seqno}", entry.seqno)));
        }
        if entry.term < term {
            return Err(corrupt("log", &format!("entry {} of term {} follows term {term}", entry.seqno, entry.term)));
        }
        let decoded = entry.decode().map_err(|error| StorageError::Corrupt(error.to_string()))?;
        let id = entry.operation_id;
        // A retry that slipped into the log twice has its effect once, on every copy.
        let is_repeat = id != OperationId(0) && self.find_operation(id)?.is_some();
        if !is_repeat {
            for operation in decoded.operations {
                self.apply_operation(entry.seqno, operation, replaced)?;
            }
            if id != OperationId(0) {
                self.remember_operation(id, entry.seqno);
            }
        }
        self.forget_operation(entry.seqno)?;
        self.applied.position = LogPosition { term: entry.term, seqno: entry.seqno };
        Ok(())
    }

    fn apply_operation(
        &mut self,
        seqno: SeqNo,
        operation: Operation,
        replaced: &mut Vec<std::ops::Range<u64>>,
    ) -> Result<(), StorageError> {
        match operation {
            Operation::Barrier => Ok(()),
            Operation::PutDocument { key, title, chunks } => {
                if let Some(earlier) = self.remove_document(&key)? {
                    self.bury(earlier.rows(), false);
                    replaced.push(earlier.rows());
                }
                self.put_document(seqno, &key, title, chunks)
            }
            Operation::DeleteDocument { key } => {
                if let Some(earlier) = self.remove_document(&key)? {
                    self.bury(earlier.rows(), true);
                }
                Ok(())
            }
            Operation::InstallGeneration { generation, piece, piece_count, bytes } => {
                self.take_piece(generation, piece, piece_count, bytes)
            }
            Operation::IndexUpTo { generation, row_end } => self.index_up_to(generation, row_end),
            Operation::SetEffortCurve { generation, row_end, rungs } => {
                self.set_efforts(EffortCurve { generation, row_end, rungs });
                Ok(())
            }
        }
    }

    // ---- documents ----

    fn put_document(
        &mut self,
        seqno: SeqNo,
        key: &DocumentKey,
        title: String,
        chunks: Vec<Chunk>,
    ) -> Result<(), StorageError> {
        let vector_bytes = 2 * self.parts.spec.dim as usize;
        if chunks.is_empty() || chunks.iter().any(|chunk| chunk.vector.len() != vector_bytes) {
            return Err(corrupt("log", &format!("entry {seqno} puts a document that was never valid")));
        }
        let chunk_count = chunks.len() as u32;
        let row_start = self.applied.row_end;
        let mut vectors = Vec::with_capacity(chunks.len() * (vector_bytes + LABEL_BYTES));
        for (row, chunk) in (row_start..).zip(chunks) {
            let head =
                RowHead { tenant: key.tenant.clone(), document_id: key.document_id.clone(), ordinal: chunk.ordinal };
            vectors.extend_from_slice(&chunk.vector);
            vectors.extend_from_slice(&label::encode(&head));
            self.put_row(seqno, row, &head, &title, chunk)?;
        }
        let len = self.parts.vectors.append(&vectors).map_err(storage_error)?;
        self.applied.row_end += u64::from(chunk_count);
        self.applied.rows_live += u64::from(chunk_count);
        self.applied.document_count += 1;
        if len != self.applied.row_end {
            return Err(corrupt("mapped vectors", &format!("{len} rows, expected {}", self.applied.row_end)));
        }
        self.tenants.add(&key.tenant);
        let record = DocumentRecord { title, row_start, chunk_count, seqno: seqno.0 };
        let document_key = keys::document(&key.tenant, &key.document_id);
        self.batch.put_cf(self.parts.store.family(Family::Documents), &document_key, encode(&record));
        self.documents.insert(document_key, Some(record));
        Ok(())
    }

    fn put_row(
        &mut self,
        seqno: SeqNo,
        row: u64,
        head: &RowHead,
        title: &str,
        chunk: Chunk,
    ) -> Result<(), StorageError> {
        let store = self.parts.store;
        self.bitmaps.insert(store, &BitmapKey::Tenant { tenant: &head.tenant }, row)?;
        let fields = declared_fields(self.parts.spec, &chunk.metadata_json)
            .map_err(|problem| corrupt("log", &format!("entry {seqno} has invalid metadata: {}", problem.problem)))?;
        for (field, values) in fields {
            self.bitmaps.insert(store, &BitmapKey::Exists { field }, row)?;
            let field_type = self.parts.spec.fields[field];
            for value in &values {
                let value = keys::value(field_type, value).ok_or_else(|| corrupt("field value", "of another type"))?;
                self.bitmaps.insert(store, &BitmapKey::Value { field, value: &value }, row)?;
            }
        }
        let body = RowBody {
            title: title.to_owned(),
            text: chunk.text,
            metadata_json: chunk.metadata_json,
            span_start: chunk.span.start,
            span_end: chunk.span.end,
        };
        self.batch.put_cf(store.family(Family::Docs), keys::row_head(row), encode(head));
        self.batch.put_cf(store.family(Family::Docs), keys::row_body(row), encode(&body));
        self.batch.put_cf(store.family(Family::Vectors), keys::row(row), &chunk.vector);
        Ok(())
    }

    /// Takes a document out of the directory, if it is there.
    fn remove_document(&mut self, key: &DocumentKey) -> Result<Option<DocumentRecord>, StorageError> {
        let document_key = keys::document(&key.tenant, &key.document_id);
        let earlier = match self.documents.get(&document_key) {
            Some(known) => known.clone(),
            None => match self.parts.store.get(Family::Documents, &document_key)? {
                Some(value) => Some(decode("document", &value)?),
                None => None,
            },
        };
        if earlier.is_some() {
            self.applied.document_count -= 1;
            self.batch.delete_cf(self.parts.store.family(Family::Documents), &document_key);
            self.documents.insert(document_key, None);
        }
        Ok(earlier)
    }

    /// Marks rows as dead. Texts of a deleted document go at once; those of a replaced one stay for the searches that have just
    /// found them (see `reclaim`).
    fn bury(&mut self, rows: std::ops::Range<u64>, with_texts: bool) {
        self.applied.rows_live -= rows.end - rows.start;
        Arc::make_mut(&mut self.tombstones).insert_range(rows.clone());
        for row in rows {
            if with_texts {
                reclaim::reclaim_row(self.parts.store, &mut self.batch, row);
            } else {
                reclaim::mark_row(self.parts.store, &mut self.batch, row);
            }
        }
    }

    // ---- operation ids ----

    fn find_operation(&self, id: OperationId) -> Result<Option<SeqNo>, StorageError> {
        match self.operations.get(&id) {
            Some(seqno) => Ok(Some(*seqno)),
            None => find_operation(self.parts.store, id),
        }
    }

    fn remember_operation(&mut self, id: OperationId, seqno: SeqNo) {
        let dedup = self.parts.store.family(Family::Dedup);
        self.batch.put_cf(dedup, keys::dedup_id(id), encode_u64(seqno.0));
        self.batch.put_cf(dedup, keys::dedup_seqno(seqno), id.0.to_be_bytes());
        self.operations.insert(id, seqno);
    }

    /// Forgets the id that leaves the window as `seqno` enters it. The window is counted in entries, so that all copies agree.
    /// A batch is shorter than the window, so what leaves is in the database.
    fn forget_operation(&mut self, seqno: SeqNo) -> Result<(), StorageError> {
        let Some(left) = seqno.0.checked_sub(limits::DEDUP_WINDOW).map(SeqNo) else { return Ok(()) };
        let Some(value) = self.parts.store.get(Family::Dedup, &keys::dedup_seqno(left))? else { return Ok(()) };
        let dedup = self.parts.store.family(Family::Dedup);
        self.batch.delete_cf(dedup, keys::dedup_seqno(left));
        self.batch.delete_cf(dedup, keys::dedup_id(decode_operation_id(&value)?));
        Ok(())
    }
}

/// Writes a batch as `apply` does: not synced, because the log is the redo.
pub(crate) fn write(store: &Store, batch: WriteBatch) -> Result<(), StorageError> {
    fail::fail_point!("shard-apply-before-write", |_| {
        Err(store.poison(StorageError::Io("fail point before the apply batch".into())))
    });
    store.write(batch, Durability::Buffered)?;
    fail::fail_point!("shard-apply-after-write", |_| {
        Err(store.poison(StorageError::Io("fail point after the apply batch".into())))
    });
    Ok(())
}
