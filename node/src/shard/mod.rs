//! One copy of a shard on disk and in memory: its log, its documents, its vectors and its index.
//!
//! It promises that what `persist` acknowledged survives the loss of power; that `apply` has the same effect on every copy; that a
//! search sees all of an entry or nothing of it; and that after any failure of the disk it answers nothing more until reopened. It
//! does not know about primaries, networks or clocks (but for two local matters: how long replaced texts are kept, and whether
//! writes have paused). All calls block and belong on a pool.
//!
//! The walk of a write: `persist` ([`log`]) > `apply` ([`apply`]) > the next [`view`]. The walk of a search: [`view`] > [`filter`]
//! > `vector::search_rows` > names of the hits ([`search`]).

mod apply;
mod bitmaps;
mod digest;
mod error;
mod fetch;
mod fields;
mod filter;
mod floor;
mod identity;
mod image;
mod index_blob;
mod index_steps;
mod keys;
mod label;
mod log;
mod maintenance;
mod metadata_scan;
pub mod operation;
mod recall;
mod reclaim;
mod record_file;
mod records;
mod recover;
mod scrub;
mod search;
mod snapshot;
mod stats;
mod store;
mod sync_watch;
mod train;
mod validate;
mod view;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cluster_config::collection::CollectionSpec;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, Lineage, OperationId, ShardId};
use cluster_config::seqno::{PrimaryTerm, SeqNo};
use parking_lot::{Mutex, RwLock};
use rocksdb::WriteBatch;

pub use digest::ShardDigest;
pub use error::ShardError;
pub use fetch::{ListedDocument, StoredChunk};
pub use maintenance::{Maintenance, MaintenanceInput, decide_maintenance};
pub use scrub::Scrubbed;
pub use snapshot::Checkpoint;
pub use stats::{IndexState, ShardStats};
pub use store::StorageResources;
pub use validate::validate_operations;

use self::apply::Parts;
use self::floor::Floor;
use self::identity::{Found, Identity};
use self::log::Log;
use self::operation::EncodedEntry;
use self::recall::RecallWatch;
use self::reclaim::Reclaimer;
use self::recover::Recovered;
use self::store::{Opening, Store};
use self::view::View;
use crate::replication::storage::{CopyStorage, LogWrite, StorageError, StoredState};
use crate::vector::{Generation, MappedVectors, VectorError, lists_wanted};

/// Directory of the database within that of its copy.
const DATABASE_DIR: &str = "rocksdb";

/// Which copy to open, and where.
#[derive(Clone)]
pub struct ShardOptions {
    /// Directory of this copy alone; created if absent.
    pub dir: PathBuf,
    /// The cluster it belongs to.
    pub cluster_id: String,
    /// The shard.
    pub shard: ShardId,
    /// The copy.
    pub copy: CopyId,
    /// Its lineage.
    pub lineage: Lineage,
    /// The collection's spec; part of the copy's identity.
    pub spec: CollectionSpec,
    /// Whether the copy may be created here. Only a copy that never served may be: the place of any other that is found empty is a
    /// lost copy, and an empty one in its stead would be missing what it acknowledged.
    pub may_create: bool,
    /// Memory shared by all copies of the process.
    pub resources: Arc<StorageResources>,
}

/// An open copy of a shard.
///
/// Invariants: the view is never ahead of what RocksDB and the mapped vectors hold, and `applied <= last` of the log. See also
/// [`Shard::check`].
pub struct Shard {
    identity: Identity,
    spec: CollectionSpec,
    store: Store,
    log: Log,
    floor: Floor,
    vectors: MappedVectors,
    view: RwLock<Arc<View>>,
    /// Written from before a batch is in RocksDB until its view is published.
    publication: RwLock<()>,
    /// Held by the one that applies.
    applier: Mutex<Reclaimer>,
    /// Held by the one that stores the index.
    saving: Mutex<()>,
    /// Rows of a training sample.
    training_rows_max: usize,
    is_training: AtomicBool,
    recall_watch: RecallWatch,
    last_scrub: Mutex<Option<Scrubbed>>,
    opened_at: Instant,
    /// Milliseconds after `opened_at` at which the last row was given out.
    grown_at_ms: AtomicU64,
}

impl Shard {
    /// Opens the copy in a directory, or creates it there.
    ///
    /// Cost: refills the mapped vectors and rebuilds the index where they do not agree with RocksDB.
    /// Errors: `Conflict` (the directory holds another copy), `NotFound` (nothing there, and it may not be created), `Corrupt`, `StorageFull`, `Unavailable`.
    pub fn open(options: ShardOptions) -> Result<Shard, ShardError> {
        let ShardOptions { dir, cluster_id, shard, copy, lineage, spec, may_create, resources } = options;
        let store = open_store(&dir, may_create, &resources)?;
        let identity = Identity::new(cluster_id, shard, copy, lineage, spec.clone());
        match identity.claim(&store, may_create)? {
            Found::Created | Found::Same => {}
            Found::OlderLineage(stored) => return Err(ShardError::OlderLineage { stored, asked: lineage }),
            Found::Other(difference) => {
                return Err(ShardError::Identity { dir: dir.display().to_string(), difference });
            }
            Found::Nothing => return Err(ShardError::Lost { dir: dir.display().to_string() }),
        }
        let training_rows_max = Generation::training_rows_within(spec.dim as usize, resources.training_memory());
        let Recovered { log, floor, vectors, view, reclaimer } = recover::recover(&store, &dir, &identity, &spec)?;
        Ok(Shard {
            identity,
            spec,
            store,
            log,
            floor,
            vectors,
            view: RwLock::new(Arc::new(view)),
            publication: RwLock::new(()),
            applier: Mutex::new(reclaimer),
            saving: Mutex::new(()),
            training_rows_max,
            is_training: AtomicBool::new(false),
            recall_watch: RecallWatch::new(),
            last_scrub: Mutex::new(None),
            opened_at: Instant::now(),
            grown_at_ms: AtomicU64::new(0),
        })
    }

    /// Takes a closed copy over into the newer lineage that `options` names, with all it holds. Only for the copy that a forced
    /// recovery chose, which the register of that lineage has alone in sync: another one may hold what is lost now.
    /// Safe to repeat.
    ///
    /// Errors: as [`Shard::open`].
    pub fn adopt_lineage(options: &ShardOptions) -> Result<(), ShardError> {
        let dir = &options.dir;
        let store = open_store(dir, false, &options.resources)?;
        let ShardOptions { cluster_id, shard, copy, lineage, spec, .. } = options;
        let identity = Identity::new(cluster_id.clone(), *shard, *copy, *lineage, spec.clone());
        let adopted = match identity.claim(&store, false)? {
            Found::OlderLineage(_) => Ok(identity.put(&store)?),
            Found::Same => Ok(()),
            Found::Other(difference) => Err(ShardError::Identity { dir: dir.display().to_string(), difference }),
            Found::Created | Found::Nothing => Err(ShardError::Lost { dir: dir.display().to_string() }),
        };
        store.close();
        adopted
    }

    /// The collection's spec.
    pub fn spec(&self) -> &CollectionSpec {
        &self.spec
    }

    /// Why the copy answers nothing until it is reopened.
    pub fn failure(&self) -> Option<StorageError> {
        self.store.check().err()
    }

    /// When all of it was last found right.
    pub fn last_scrub(&self) -> Option<Scrubbed> {
        *self.last_scrub.lock()
    }

    /// Work that should be logged if this copy is the primary.
    pub fn next_maintenance(&self) -> Option<Maintenance> {
        let grown_at = Duration::from_millis(self.grown_at_ms.load(Ordering::Relaxed));
        decide_maintenance(&self.maintenance_input(self.opened_at.elapsed().saturating_sub(grown_at)))
    }

    /// What [`decide_maintenance`] looks at, if the last row was given out `quiet` ago.
    pub fn maintenance_input(&self, quiet: Duration) -> MaintenanceInput {
        let view = self.view();
        let applied = &view.applied;
        let generation = view.indexes.serving.as_ref().map(|index| index.generation());
        let efforts = view.indexes.efforts.as_ref();
        let oversample = self.spec.index.oversample;
        MaintenanceInput {
            rows_live: applied.rows_live,
            training_floor: u64::from(self.spec.index.training_floor),
            generation: applied.generation,
            renewal: applied.renewal.map(|renewal| (renewal.generation, renewal.indexed_row_end)),
            lists: generation.map_or(0, |generation| generation.parameters().nlist),
            lists_wanted: lists_wanted(&self.spec, applied.rows_live, self.training_rows_max),
            installed_row_end: applied.installed_row_end,
            measured_row_end: efforts.map_or(0, |efforts| efforts.row_end),
            recall_trained: generation.and_then(|generation| generation.calibration().recall_default(oversample)),
            recall_measured: efforts.and_then(|efforts| efforts.table.recall_default(oversample)),
            row_end: applied.row_end,
            indexed_row_end: applied.indexed_row_end,
            rows_tail: view.rows_tail(),
            quiet,
        }
    }

    /// Makes durable all that opening would otherwise redo: applied state, mapped vectors, index. Not needed for safety.
    pub fn flush(&self) -> Result<(), ShardError> {
        let _saving = self.saving.lock();
        let flush = || {
            index_blob::save(&self.store, &self.view())?;
            self.vectors.flush().map_err(storage_error)?;
            Ok(self.store.sync()?)
        };
        self.guard(flush())
    }

    /// Flushes and ends the copy's service: every later call fails.
    pub fn close(&self) -> Result<(), ShardError> {
        let flushed = self.flush();
        self.store.close();
        flushed
    }

    /// Names a broken invariant, if there is one. Cheap enough to be called after every batch in tests.
    pub fn check(&self) -> Result<(), String> {
        let view = self.view();
        view.check()?;
        let last = self.log.state().last;
        if view.applied.position > last {
            return Err(format!("applied {:?} is beyond the log's end {last:?}", view.applied.position));
        }
        if self.vectors.len() < view.applied.row_end {
            return Err(format!("{} mapped vectors for {} rows", self.vectors.len(), view.applied.row_end));
        }
        Ok(())
    }

    /// Live chunks.
    pub fn rows_live(&self) -> u64 {
        self.view().applied.rows_live
    }

    fn view(&self) -> Arc<View> {
        self.view.read().clone()
    }

    /// Ends the copy's service if its disk failed the call.
    fn guard<T>(&self, result: Result<T, ShardError>) -> Result<T, ShardError> {
        if let Err(ShardError::Storage(error)) = &result
            && !matches!(error, StorageError::Refused(_))
        {
            self.store.poison(error.clone());
        }
        result
    }

    fn guard_storage<T>(&self, result: Result<T, StorageError>) -> Result<T, StorageError> {
        result.inspect_err(|error| {
            if !matches!(error, StorageError::Refused(_)) {
                self.store.poison(error.clone());
            }
        })
    }

    /// Writes a batch of `apply` and publishes what it leads to.
    fn write_then_publish(&self, batch: WriteBatch, next: View) -> Result<Arc<View>, StorageError> {
        let next = Arc::new(next);
        let _publishing = self.publication.write();
        apply::write(&self.store, batch)?;
        let earlier = std::mem::replace(&mut *self.view.write(), next.clone());
        if next.applied.row_end > earlier.applied.row_end {
            self.grown_at_ms.store(self.opened_at.elapsed().as_millis() as u64, Ordering::Relaxed);
        }
        Ok(next)
    }
}

impl CopyStorage for Shard {
    fn state(&self) -> Result<StoredState, StorageError> {
        self.store.check()?;
        let applied = self.view().applied.position;
        let log = self.log.state();
        Ok(StoredState {
            copy: self.identity.copy,
            shard: self.identity.shard,
            lineage: self.identity.lineage,
            current_term: log.current_term,
            purged: log.purged,
            last: log.last,
            applied,
            floor: self.floor.get(),
            log_bytes: self.store.family_bytes(keys::Family::Log),
        })
    }

    fn persist(&self, write: LogWrite) -> Result<(), StorageError> {
        let applied = self.view().applied.position.seqno;
        self.guard_storage(self.log.persist(&self.store, &write, applied))
    }

    fn read(&self, from: SeqNo, entries_max: usize, bytes_max: usize) -> Result<Vec<EncodedEntry>, StorageError> {
        self.guard_storage(self.log.read(&self.store, from, entries_max, bytes_max))
    }

    fn term_at(&self, seqno: SeqNo) -> Result<Option<PrimaryTerm>, StorageError> {
        self.store.check()?;
        Ok(self.log.term_at(seqno))
    }

    fn find_operation(&self, id: OperationId) -> Result<Option<SeqNo>, StorageError> {
        self.guard_storage(apply::find_operation(&self.store, id))
    }

    fn apply(&self, entries: &[EncodedEntry]) -> Result<(), StorageError> {
        self.store.check()?;
        let mut reclaimer = self.applier.lock();
        let last = self.log.state().last.seqno;
        if let Some(entry) = entries.last()
            && entry.seqno > last
        {
            return Err(StorageError::Refused(format!(
                "entry {} is not in the log, which ends at {last}",
                entry.seqno
            )));
        }
        let parts = Parts { store: &self.store, vectors: &self.vectors, spec: &self.spec };
        let applied = apply::apply_entries(parts, self.view(), entries, &mut reclaimer, &mut |batch, next| {
            self.write_then_publish(batch, next)
        });
        self.guard_storage(applied)
    }

    fn purge(&self, up_to: SeqNo) -> Result<(), StorageError> {
        let applied = self.view().applied.position.seqno;
        self.guard_storage(self.log.purge(&self.store, up_to, applied))
    }

    fn keep_floor(&self, floor: SeqNo) -> Result<(), StorageError> {
        self.store.check()?;
        self.guard_storage(self.floor.raise(floor))
    }
}

/// Opens the database that is there, whole, or begins anew where nothing of worth can be.
fn open_store(dir: &Path, may_create: bool, resources: &StorageResources) -> Result<Store, ShardError> {
    let database = dir.join(DATABASE_DIR);
    let failed = |error: std::io::Error| StorageError::Io(format!("{}: {error}", database.display()));
    if database.join("CURRENT").try_exists().map_err(failed)? {
        return Ok(Store::open(&database, Opening::Existing, resources)?);
    }
    match (database.try_exists().map_err(failed)?, may_create) {
        (true, false) => return Err(records::corrupt("CURRENT", "missing").into()),
        (false, false) => return Err(ShardError::Lost { dir: dir.display().to_string() }),
        // A crash in the middle of creating it.
        (true, true) => std::fs::remove_dir_all(&database).map_err(failed)?,
        (false, true) => {}
    }
    Ok(Store::open(&database, Opening::Create, resources)?)
}

/// What a failure of the vector engine means to a copy's storage.
fn storage_error(error: VectorError) -> StorageError {
    match error.kind() {
        ErrorKind::StorageFull => StorageError::Full,
        ErrorKind::Corrupt => StorageError::Corrupt(error.to_string()),
        _ => StorageError::Io(error.to_string()),
    }
}
