//! The shard copies of this process: opened and closed as the cluster state says, found by the id that a message names.
//!
//! Promises: a copy is opened only where the register places it; files are deleted only when the state lists the copy as retired on
//! this node (absence is never a reason); a copy acts in one life of the process at a time, and is given a new handle when the
//! process had to register again.

mod renew;
mod replace;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::cluster_state::ClusterState;
use cluster_config::collection::CollectionSpec;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, Incarnation, Lineage, NodeId, ShardId};
use cluster_config::memory::CopyMemory;
use cluster_config::search::CopyPosition;
use cluster_config::shard_group::{CopyPhase, CopyTarget, ShardGroup};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::replace::Replacing;
pub use self::replace::Transfers;
use crate::error::Error;
use crate::maintenance;
use crate::pool::Pool;
use crate::replication::{
    CopyHandle, CopyOptions, DRAIN_TIMEOUT, RegisterClient, ReplicationTransport, Retention, StoragePool, Timing,
};
use crate::scrubbing::{self, Scrubbing};
use crate::shard::{Shard, ShardError, ShardOptions, StorageResources};
use crate::telemetry::Metrics;

/// A copy that could not be opened is tried again after this.
const REOPEN_INTERVAL: Duration = Duration::from_secs(2);
/// Directory name of a copy: this and its id.
const COPY_DIR_PREFIX: &str = "copy-";

/// One open copy, in one life of the process.
pub struct Copy {
    /// Its id.
    pub id: CopyId,
    /// Its shard.
    pub shard_id: ShardId,
    /// What the collection asked for.
    pub spec: CollectionSpec,
    /// Lineage it was opened under.
    pub lineage: Lineage,
    /// The store; its calls block.
    pub shard: Arc<Shard>,
    /// Its replication.
    pub handle: CopyHandle,
    incarnation: Incarnation,
    /// Cancelled when this life of the copy ends.
    pub stop: CancellationToken,
}

impl Copy {
    /// Where the copy stands, with the generation its index uses.
    pub fn position(&self) -> CopyPosition {
        CopyPosition { generation: self.shard.position().generation, ..self.handle.position() }
    }

    /// Its bytes in memory.
    pub fn memory(&self) -> CopyMemory {
        let memory = self.shard.memory();
        CopyMemory { log: memory.log + self.handle.report().recent_bytes as u64, ..memory }
    }
}

/// What every copy of the process shares.
pub struct CopiesContext {
    /// This node.
    pub node: NodeId,
    /// Directory of the copies.
    pub dir: PathBuf,
    /// Name of the cluster, stored with each copy.
    pub cluster_id: String,
    /// Block cache and write buffers.
    pub resources: Arc<StorageResources>,
    /// Where the copies' logs are written and their entries applied.
    pub storage_pool: StoragePool,
    /// For training and measuring.
    pub training_pool: Pool,
    /// How entries reach other copies.
    pub transport: Arc<dyn ReplicationTransport>,
    /// Timeouts of replication.
    pub timing: Timing,
    /// How much of a shard's log is kept.
    pub retention: Retention,
    /// How snapshots come and go.
    pub transfers: Transfers,
    /// When and how fast copies are looked through.
    pub scrubbing: Arc<Scrubbing>,
    /// Counted here.
    pub metrics: Arc<Metrics>,
    /// Whether invariants are checked after each step.
    pub check: bool,
}

/// What the copies follow.
pub struct Followed {
    /// The cluster state.
    pub state: watch::Receiver<Arc<ClusterState>>,
    /// The present life of the process; 0 while there is none.
    pub incarnation: watch::Receiver<Incarnation>,
    /// How registers are read and changed.
    pub register: Arc<dyn RegisterClient>,
    /// Told after a copy was opened, so that the metadata leader need not wait for the next heartbeat.
    pub opened: Arc<dyn Fn() + Send + Sync>,
}

/// The open copies.
pub struct Copies {
    context: CopiesContext,
    open: RwLock<BTreeMap<CopyId, Arc<Copy>>>,
    /// Copies that a task is opening, or moving to another life.
    opening: Mutex<BTreeSet<CopyId>>,
    changed: Notify,
    failures: Mutex<BTreeMap<CopyId, Failure>>,
    replacing: Replacing,
    /// Copies listed as retired here whose files are gone.
    deleted: Mutex<BTreeSet<CopyId>>,
    tasks: TaskTracker,
}

/// Why a copy that belongs here is not open.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its shard.
    pub shard: ShardId,
    /// `Corrupt` or `NotFound` (its files are gone) where opening it again will not help.
    pub kind: ErrorKind,
    /// For operators.
    pub reason: String,
    at: Instant,
}

/// Copies whose directories lie below `dir`, for the registration of the process.
pub fn copies_on_disk(dir: &Path) -> std::io::Result<BTreeSet<CopyId>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let mut copies = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name();
        let parsed = name.to_str().and_then(|name| name.strip_prefix(COPY_DIR_PREFIX)).and_then(|id| id.parse().ok());
        match parsed {
            Some(id) => drop(copies.insert(CopyId(id))),
            None => tracing::warn!(?name, "unknown entry in the directory of the copies"),
        }
    }
    Ok(copies)
}

impl Failure {
    fn new(shard: ShardId, kind: ErrorKind, reason: String) -> Self {
        Self { shard, kind, reason, at: Instant::now() }
    }

    /// Whether opening the copy again is not worth trying now. Damage stays: a copy that opens in spite of it would serve until the
    /// damage is met again.
    fn holds(&self) -> bool {
        self.kind == ErrorKind::Corrupt || self.at.elapsed() < REOPEN_INTERVAL
    }
}

impl Copies {
    /// No copies yet; [`Copies::run`] opens them.
    pub fn new(context: CopiesContext) -> Arc<Self> {
        Arc::new(Self {
            replacing: Replacing::default(),
            context,
            open: RwLock::default(),
            opening: Mutex::default(),
            changed: Notify::new(),
            failures: Mutex::default(),
            deleted: Mutex::default(),
            tasks: TaskTracker::new(),
        })
    }

    /// All open copies, in id order.
    pub fn all(&self) -> Vec<Arc<Copy>> {
        self.open.read().values().cloned().collect()
    }

    /// The first copy that could not be opened, and why.
    pub fn failure(&self) -> Option<String> {
        let failures = self.failures.lock();
        failures.iter().next().map(|(copy, failure)| format!("copy {copy} cannot be opened: {}", failure.reason))
    }

    /// Copies that belong here and could not be opened.
    pub fn failures(&self) -> Vec<(CopyId, Failure)> {
        self.failures.lock().iter().map(|(copy, failure)| (*copy, failure.clone())).collect()
    }

    /// Copies listed as retired here whose files are gone.
    pub fn deleted(&self) -> Vec<CopyId> {
        self.deleted.lock().iter().copied().collect()
    }

    /// The open copy that a message means. Errors: `Unavailable` where the copy is not open here (it is being opened, or the sender's
    /// picture is old), `TokenVoid` on another lineage.
    pub fn find(&self, target: &CopyTarget) -> Result<Arc<Copy>, Error> {
        let CopyTarget { shard, copy, lineage, .. } = *target;
        let found = self.open.read().get(&copy).cloned();
        let Some(found) = found.filter(|found| found.shard_id == shard) else {
            let message = format!("node {} has no open copy {copy} of shard {shard}", self.context.node);
            let reason = self.failures.lock().get(&copy).map(|failure| failure.reason.clone());
            return Err(Error::new(ErrorKind::Unavailable, message)
                .with_hint(reason.unwrap_or_else(|| "refresh the cluster state and try another copy".into())));
        };
        if found.lineage != lineage {
            let message = format!("copy {copy} is of lineage {}, not {lineage}", found.lineage);
            return Err(Error::new(ErrorKind::TokenVoid, message));
        }
        Ok(found)
    }

    /// Follows the cluster state until `stop`, then closes every copy.
    pub async fn run(self: Arc<Self>, mut followed: Followed, stop: CancellationToken) {
        loop {
            let state = followed.state.borrow_and_update().clone();
            let incarnation = *followed.incarnation.borrow_and_update();
            if incarnation != Incarnation(0) {
                self.reconcile(&state, incarnation, &followed).await;
            }
            tokio::select! {
                changed = followed.state.changed() => if changed.is_err() { break },
                changed = followed.incarnation.changed() => if changed.is_err() { break },
                () = self.changed.notified() => {}
                () = tokio::time::sleep(REOPEN_INTERVAL) => {}
                () = stop.cancelled() => break,
            }
        }
        self.close_all().await;
        self.close_snapshots(None).await;
    }

    async fn reconcile(self: &Arc<Self>, state: &ClusterState, incarnation: Incarnation, followed: &Followed) {
        for group in state.shards.values() {
            let Some(collection) = state.collections.get(&group.shard.collection) else { continue };
            let mine = group
                .copies
                .iter()
                .filter(|(_, record)| record.node == self.context.node && record.phase != CopyPhase::Retiring);
            for (copy, _) in mine {
                self.open_or_reconfigure(*copy, state, group, &collection.spec, incarnation, followed);
            }
        }
        self.deleted.lock().retain(|copy| state.retired.contains_key(copy));
        for (copy, retired) in &state.retired {
            self.discard_incoming(*copy);
            let is_done = self.deleted.lock().contains(copy) || self.opening.lock().contains(copy);
            if retired.node == self.context.node && !is_done {
                self.retire(*copy).await;
            }
        }
        self.close_snapshots(Some(Instant::now())).await;
    }

    /// An open copy learns the register; another is opened beside the others, because replaying a long log takes its time.
    fn open_or_reconfigure(
        self: &Arc<Self>,
        id: CopyId,
        state: &ClusterState,
        group: &ShardGroup,
        spec: &CollectionSpec,
        incarnation: Incarnation,
        followed: &Followed,
    ) {
        let known = self.open.read().get(&id).cloned();
        let is_current = |copy: &&Arc<Copy>| copy.incarnation == incarnation && copy.lineage == group.lineage;
        if let Some(copy) = known.as_ref().filter(is_current) {
            copy.handle.reconfigure(Arc::new(group.clone()));
            self.renew_if_failed(copy, followed);
            self.replace_if_needed(copy, state, group, followed);
            return;
        }
        if self.failures.lock().get(&id).is_some_and(Failure::holds) || !self.opening.lock().insert(id) {
            return;
        }
        let (copies, group, spec) = (Arc::clone(self), group.clone(), spec.clone());
        let (register, opened) = (Arc::clone(&followed.register), Arc::clone(&followed.opened));
        self.tasks.spawn(async move {
            match copies.open(id, known, &group, spec, incarnation, register).await {
                Ok(copy) => {
                    let applied = copy.handle.position().applied;
                    tracing::info!(shard = %group.shard, copy = %id, %applied, %incarnation, "copy opened");
                    copies.failures.lock().remove(&id);
                    copies.open.write().insert(id, copy);
                    opened();
                }
                Err(error) => {
                    tracing::error!(shard = %group.shard, copy = %id, %error, "copy cannot be opened");
                    copies.failures.lock().insert(id, Failure::new(group.shard, error.kind, error.to_string()));
                    opened();
                }
            }
            copies.opening.lock().remove(&id);
            copies.changed.notify_one();
        });
    }

    /// Opens the store, or takes over that of the copy's former life in the same lineage, and gives it a handle of this life.
    async fn open(
        self: &Arc<Self>,
        id: CopyId,
        former: Option<Arc<Copy>>,
        group: &ShardGroup,
        spec: CollectionSpec,
        incarnation: Incarnation,
        register: Arc<dyn RegisterClient>,
    ) -> Result<Arc<Copy>, Error> {
        if former.is_some() {
            self.open.write().remove(&id);
        }
        let shard = match former {
            Some(former) if former.lineage == group.lineage => {
                former.stop.cancel();
                former.handle.clone().close().await;
                Arc::clone(&former.shard)
            }
            Some(former) => {
                close(former).await;
                self.open_store(id, group, spec.clone()).await?
            }
            None => self.open_store(id, group, spec.clone()).await?,
        };
        let handle = CopyHandle::open(CopyOptions {
            storage: Arc::clone(&shard) as _,
            incarnation,
            timing: self.context.timing,
            retention: self.context.retention,
            pool: self.context.storage_pool.clone(),
            transport: Arc::clone(&self.context.transport),
            register,
            drain_timeout: DRAIN_TIMEOUT,
            check: self.context.check,
        })
        .await?;
        self.pin_what_follows(id, &handle).await;
        handle.reconfigure(Arc::new(group.clone()));
        let copy = Arc::new(Copy {
            id,
            shard_id: group.shard,
            spec,
            lineage: group.lineage,
            shard,
            handle,
            incarnation,
            stop: CancellationToken::new(),
        });
        self.tasks.spawn(maintenance::run(Arc::clone(&copy), self.context.training_pool.clone()));
        self.tasks.spawn(scrubbing::run(Arc::clone(&copy), Arc::clone(&self.context.scrubbing)));
        Ok(copy)
    }

    async fn open_store(&self, id: CopyId, group: &ShardGroup, spec: CollectionSpec) -> Result<Arc<Shard>, Error> {
        let options = self.options(id, group, spec);
        // The one that is alone in sync under a newer lineage is its origin; all others are made under it. The grant itself may have
        // been voided by a restart.
        let is_origin = group.in_sync.len() == 1 && group.in_sync.contains(&id);
        let opening = tokio::task::spawn_blocking(move || {
            crate::vector::init_thread();
            match Shard::open(options.clone()) {
                Err(ShardError::OlderLineage { stored, asked }) if is_origin => {
                    tracing::warn!(shard = %options.shard, copy = %id, %stored, %asked, "copy adopts a newer lineage");
                    Shard::adopt_lineage(&options)?;
                    Shard::open(options)
                }
                opened => opened,
            }
        });
        let opened = opening.await.map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
        Ok(Arc::new(opened?))
    }

    fn options(&self, id: CopyId, group: &ShardGroup, spec: CollectionSpec) -> ShardOptions {
        ShardOptions {
            dir: self.directory(id),
            cluster_id: self.context.cluster_id.clone(),
            shard: group.shard,
            copy: id,
            lineage: group.lineage,
            spec,
            may_create: group.copies.get(&id).is_some_and(|record| record.phase == CopyPhase::New),
            resources: Arc::clone(&self.context.resources),
        }
    }

    fn directory(&self, copy: CopyId) -> PathBuf {
        self.context.dir.join(format!("{COPY_DIR_PREFIX}{copy}"))
    }

    /// Closes the copy if it is open, and deletes its files if there are any.
    async fn retire(&self, id: CopyId) {
        let open = self.open.write().remove(&id);
        if let Some(copy) = open {
            close(copy).await;
        }
        self.failures.lock().remove(&id);
        let dir = self.directory(id);
        let deleted = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            result => result.map(|()| true),
        });
        match deleted.await {
            Ok(Ok(existed)) => {
                self.deleted.lock().insert(id);
                if existed {
                    tracing::info!(copy = %id, "files of a retired copy deleted");
                }
            }
            Ok(Err(error)) => tracing::warn!(copy = %id, %error, "files of a retired copy cannot be deleted"),
            Err(error) => tracing::warn!(copy = %id, %error, "deleting the files of a retired copy failed"),
        }
    }

    async fn close_all(&self) {
        while !self.opening.lock().is_empty() {
            self.changed.notified().await;
        }
        let open = std::mem::take(&mut *self.open.write());
        futures::future::join_all(open.into_values().map(close)).await;
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn close(copy: Arc<Copy>) {
    copy.stop.cancel();
    copy.handle.clone().close().await;
    let shard = Arc::clone(&copy.shard);
    match tokio::task::spawn_blocking(move || shard.close()).await {
        Ok(Ok(())) => tracing::info!(shard = %copy.shard_id, copy = %copy.id, "copy closed"),
        Ok(Err(error)) => tracing::error!(shard = %copy.shard_id, %error, "copy not flushed; its log will be replayed"),
        Err(error) => tracing::error!(shard = %copy.shard_id, %error, "closing a copy failed"),
    }
}
