//! What the shard's tests share: a directory with copies in it, a log that is written to them, and vectors from a seed.

#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod primary;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use cluster_config::collection::{CollectionSpec, FieldType};
use cluster_config::filter::Filter;
use cluster_config::ids::{CollectionId, CopyId, DocumentKey, Lineage, OperationId, ShardId};
use cluster_config::operation::{Chunk, Operation};
use cluster_config::search::{SearchKnobs, ShardQuery};
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use half::f16;
use node::replication::storage::{CopyStorage, LogWrite, StorageError};
use node::shard::operation::EncodedEntry;
use node::shard::{Shard, ShardError, ShardOptions, StorageResources};
use node::vector::init_thread;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

pub(crate) const TERM: PrimaryTerm = PrimaryTerm(1);

/// A directory in which copies of one shard are opened, closed and opened again.
pub(crate) struct Place {
    pub(crate) dir: TempDir,
    pub(crate) spec: CollectionSpec,
    pub(crate) resources: Arc<StorageResources>,
}

impl Place {
    pub(crate) fn new(spec: CollectionSpec) -> Self {
        init_thread();
        spec.validate().expect("the test's spec is valid");
        let resources = Arc::new(StorageResources::new(32 << 20, 16 << 20));
        Self { dir: tempfile::tempdir().expect("temp dir"), spec, resources }
    }

    pub(crate) fn options(&self, copy: u64) -> ShardOptions {
        ShardOptions {
            dir: self.dir.path().join(format!("copy-{copy}")),
            cluster_id: "test".into(),
            shard: ShardId { collection: CollectionId(1), index: 0 },
            copy: CopyId(copy),
            lineage: Lineage(1),
            spec: self.spec.clone(),
            may_create: true,
            resources: self.resources.clone(),
        }
    }

    pub(crate) fn try_open(&self, copy: u64) -> Result<Shard, ShardError> {
        Shard::open(self.options(copy))
    }

    pub(crate) fn open(&self, copy: u64) -> Shard {
        let shard = self.try_open(copy).expect("opens");
        shard.check().expect("invariants hold after opening");
        shard
    }
}

/// A small spec with one shard and one field of each type.
pub(crate) fn spec(dim: u32) -> CollectionSpec {
    let mut spec = CollectionSpec::new("test", dim);
    spec.shard_count = 1;
    let fields = [
        ("flag", FieldType::Bool),
        ("year", FieldType::Integer),
        ("price", FieldType::Float),
        ("tag", FieldType::Keyword),
        ("when", FieldType::Datetime),
    ];
    spec.fields = fields.into_iter().map(|(name, field_type)| (name.to_owned(), field_type)).collect();
    spec
}

/// The next entries of a log.
pub(crate) struct LogWriter {
    pub(crate) next: SeqNo,
    pub(crate) term: PrimaryTerm,
}

impl LogWriter {
    pub(crate) fn new() -> Self {
        Self { next: SeqNo(1), term: TERM }
    }

    pub(crate) fn entry(&mut self, operations: Vec<Operation>) -> EncodedEntry {
        let id = OperationId(1000 + u128::from(self.next.0));
        self.entry_of(id, operations)
    }

    pub(crate) fn entry_of(&mut self, id: OperationId, operations: Vec<Operation>) -> EncodedEntry {
        let entry = EncodedEntry::encode(self.next, self.term, id, operations);
        self.next = self.next.next();
        entry
    }
}

/// Makes entries durable.
pub(crate) fn persist(shard: &Shard, entries: &[EncodedEntry]) -> Result<(), StorageError> {
    let term = entries.last().map(|entry| entry.term);
    let adopted = shard.state()?.current_term;
    let term = term.filter(|term| *term > adopted);
    shard.persist(LogWrite { term, truncate_from: None, entries: entries.to_vec() })
}

/// Makes entries durable and applies them.
pub(crate) fn commit(shard: &Shard, entries: &[EncodedEntry]) {
    persist(shard, entries).expect("persists");
    shard.apply(entries).expect("applies");
    shard.check().expect("invariants hold after applying");
}

pub(crate) fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// A random unit vector, as f32 of the values that half precision keeps.
pub(crate) fn unit_vector(rng: &mut StdRng, dim: usize) -> Vec<f32> {
    let mut values: Vec<f32> = (0..dim).map(|_| rng.random_range(-1.0..1.0f32)).collect();
    let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
    for value in &mut values {
        *value = f16::from_f32(*value / length).to_f32();
    }
    values
}

pub(crate) fn to_half(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()
}

pub(crate) fn from_half(bytes: &[u8]) -> Vec<f16> {
    bytes.chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]])).collect()
}

pub(crate) fn chunk(ordinal: u32, text: &str, metadata_json: &str, vector: &[f32]) -> Chunk {
    Chunk {
        ordinal,
        text: text.to_owned(),
        metadata_json: metadata_json.to_owned(),
        span: 0..text.len() as u64,
        vector: to_half(vector),
    }
}

pub(crate) fn key(document_id: &str) -> DocumentKey {
    DocumentKey::new(document_id).expect("valid id")
}

/// Puts a document of one chunk.
pub(crate) fn put(document_id: &str, text: &str, vector: &[f32]) -> Operation {
    Operation::PutDocument {
        key: key(document_id),
        title: format!("title of {document_id}"),
        chunks: vec![chunk(0, text, "{}", vector)],
    }
}

pub(crate) fn delete(document_id: &str) -> Operation {
    Operation::DeleteDocument { key: key(document_id) }
}

pub(crate) fn query(vector: &[f32], fetch_k: u32) -> ShardQuery {
    ShardQuery {
        vector: vector.to_vec(),
        fetch_k,
        filter: Filter::default(),
        tenant: "default".into(),
        knobs: SearchKnobs::default(),
    }
}

/// What a killed process leaves behind: the files as the operating system has them.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("creates");
    for entry in fs::read_dir(from).expect("lists") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copies");
        }
    }
}
