//! The shard copies of this process: opened and closed as the cluster state says, found by the id that a message names.
//!
//! Promises: a copy is opened only where the register places it; files are deleted only when the register lists the copy as
//! retired on this node (absence is never a reason); training and indexing are proposed by the primary only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::cluster_state::ClusterState;
use cluster_config::collection::CollectionSpec;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, Lineage, NodeId, OperationId, ShardId};
use cluster_config::operation::Operation;
use cluster_config::search::CopyPosition;
use cluster_config::shard_group::{CopyPhase, CopyTarget, ShardGroup};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::Error;
use crate::pool::Pool;
use crate::replication::{CopyHandle, CopyOptions, RegisterClient, ReplicationTransport};
use crate::shard::{Maintenance, Shard, ShardOptions, StorageResources};
use crate::vector::Cancel;

/// Between two looks at what a primary's shard needs.
const MAINTENANCE_INTERVAL: Duration = Duration::from_millis(500);
/// A copy that could not be opened is tried again after this.
const REOPEN_INTERVAL: Duration = Duration::from_secs(2);
/// Longest wait for one maintenance entry to be acknowledged.
const MAINTENANCE_TIMEOUT: Duration = Duration::from_secs(60);

/// One open copy.
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
    stop: CancellationToken,
}

impl Copy {
    /// Where the copy stands, with the generation its index uses.
    pub fn position(&self) -> CopyPosition {
        CopyPosition { shard: Some(self.shard_id), generation: self.shard.stats().generation, ..self.handle.position() }
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
    /// For opening, closing and log work.
    pub storage_pool: Pool,
    /// For training; one thread.
    pub training_pool: Pool,
    /// How entries reach other copies.
    pub transport: Arc<dyn ReplicationTransport>,
    /// How registers are read and changed.
    pub register: Arc<dyn RegisterClient>,
    /// Options of every copy's replication.
    pub replication: CopyOptions,
}

/// The open copies.
pub struct Copies {
    context: CopiesContext,
    open: RwLock<BTreeMap<CopyId, Arc<Copy>>>,
    opening: Mutex<BTreeSet<CopyId>>,
    opened: Notify,
    failures: Mutex<BTreeMap<CopyId, (Instant, String)>>,
    tasks: TaskTracker,
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
        let parsed = name.to_str().and_then(|name| name.strip_prefix("copy-")).and_then(|id| id.parse().ok());
        match parsed {
            Some(id) => drop(copies.insert(CopyId(id))),
            None => tracing::warn!(?name, "unknown entry in the directory of the copies"),
        }
    }
    Ok(copies)
}

impl Copies {
    /// No copies yet; [`Copies::run`] opens them.
    pub fn new(context: CopiesContext) -> Arc<Self> {
        Arc::new(Self {
            context,
            open: RwLock::default(),
            opening: Mutex::default(),
            opened: Notify::new(),
            failures: Mutex::default(),
            tasks: TaskTracker::new(),
        })
    }

    /// All open copies, in id order.
    pub fn all(&self) -> Vec<Arc<Copy>> {
        self.open.read().values().cloned().collect()
    }

    /// The open copy that a message means. Errors: `NotFound` where the copy is not here (the sender's picture is old),
    /// `TokenVoid` on another lineage.
    pub fn find(&self, target: &CopyTarget) -> Result<Arc<Copy>, Error> {
        let CopyTarget { shard, copy, lineage, .. } = *target;
        let found = self.open.read().get(&copy).cloned();
        let Some(found) = found.filter(|found| found.shard_id == shard) else {
            let message = format!("node {} has no open copy {copy} of shard {shard}", self.context.node);
            let reason = self.failures.lock().get(&copy).map(|(_, reason)| reason.clone());
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
    pub async fn run(self: Arc<Self>, mut state: watch::Receiver<Arc<ClusterState>>, stop: CancellationToken) {
        loop {
            let current = state.borrow_and_update().clone();
            self.reconcile(&current).await;
            tokio::select! {
                changed = state.changed() => if changed.is_err() { break },
                () = self.opened.notified() => {}
                () = tokio::time::sleep(REOPEN_INTERVAL) => {}
                () = stop.cancelled() => break,
            }
        }
        self.close_all().await;
    }

    async fn reconcile(self: &Arc<Self>, state: &ClusterState) {
        let mut wanted = BTreeSet::new();
        for group in state.shards.values() {
            let Some(collection) = state.collections.get(&group.shard.collection) else { continue };
            let mine = |(_, record): &(&CopyId, &cluster_config::shard_group::CopyRecord)| {
                record.node == self.context.node && record.phase != CopyPhase::Retiring
            };
            for (copy, _) in group.copies.iter().filter(mine) {
                wanted.insert(*copy);
                self.open_or_reconfigure(*copy, group, &collection.spec);
            }
        }
        for copy in self.all() {
            let retired = state.retired.get(&copy.id).is_some_and(|retired| retired.node == self.context.node);
            if retired && !wanted.contains(&copy.id) {
                self.open.write().remove(&copy.id);
                close(copy).await;
            }
        }
        for (copy, retired) in &state.retired {
            let in_use = self.open.read().contains_key(copy) || self.opening.lock().contains(copy);
            if retired.node == self.context.node && !in_use {
                self.delete_files(*copy).await;
            }
        }
    }

    /// An open copy learns the register; another is opened beside the others, because replaying a long log takes its time.
    fn open_or_reconfigure(self: &Arc<Self>, id: CopyId, group: &ShardGroup, spec: &CollectionSpec) {
        let known = self.open.read().get(&id).cloned();
        if let Some(copy) = known {
            copy.handle.reconfigure(Arc::new(group.clone()));
            return;
        }
        let recently = |(at, _): &(Instant, String)| at.elapsed() < REOPEN_INTERVAL;
        if self.failures.lock().get(&id).is_some_and(recently) || !self.opening.lock().insert(id) {
            return;
        }
        let (copies, group, spec) = (Arc::clone(self), group.clone(), spec.clone());
        self.tasks.spawn(async move {
            match copies.open(id, &group, &spec).await {
                Ok(copy) => {
                    tracing::info!(shard = %group.shard, copy = %id, applied = %copy.handle.position().applied, "copy opened");
                    copies.failures.lock().remove(&id);
                    copies.open.write().insert(id, copy);
                }
                Err(error) => {
                    tracing::error!(shard = %group.shard, copy = %id, %error, "copy cannot be opened");
                    copies.failures.lock().insert(id, (Instant::now(), error.to_string()));
                }
            }
            copies.opening.lock().remove(&id);
            copies.opened.notify_one();
        });
    }

    async fn open(self: &Arc<Self>, id: CopyId, group: &ShardGroup, spec: &CollectionSpec) -> Result<Arc<Copy>, Error> {
        let options = ShardOptions {
            dir: self.directory(id),
            cluster_id: self.context.cluster_id.clone(),
            shard: group.shard,
            copy: id,
            lineage: group.lineage,
            spec: spec.clone(),
            resources: Arc::clone(&self.context.resources),
        };
        let opened = self.context.storage_pool.run(move || Shard::open(options)).await?;
        let shard = Arc::new(opened?);
        let handle = CopyHandle::spawn(
            self.context.replication.clone(),
            Arc::new(group.clone()),
            Arc::clone(&shard) as _,
            Arc::clone(&self.context.transport),
            Arc::clone(&self.context.register),
        )
        .await
        .map_err(|error| Error::new(error.kind(), error.to_string()))?;
        let copy = Arc::new(Copy {
            id,
            shard_id: group.shard,
            spec: spec.clone(),
            lineage: group.lineage,
            shard,
            handle,
            stop: CancellationToken::new(),
        });
        self.tasks.spawn(maintain(Arc::clone(&copy), self.context.training_pool.clone()));
        Ok(copy)
    }

    fn directory(&self, copy: CopyId) -> PathBuf {
        self.context.dir.join(format!("copy-{copy}"))
    }

    async fn delete_files(&self, copy: CopyId) {
        let dir = self.directory(copy);
        let result = self.context.storage_pool.run(move || match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            result => result.map(|()| true),
        });
        match result.await {
            Ok(Ok(true)) => tracing::info!(%copy, "files of a retired copy deleted"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::warn!(%copy, %error, "files of a retired copy cannot be deleted"),
            Err(error) => tracing::warn!(%copy, %error, "files of a retired copy not deleted yet"),
        }
    }

    async fn close_all(&self) {
        while !self.opening.lock().is_empty() {
            self.opened.notified().await;
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
    let flushed = tokio::task::spawn_blocking(move || shard.flush()).await;
    match flushed {
        Ok(Ok(())) => tracing::info!(shard = %copy.shard_id, copy = %copy.id, "copy closed"),
        Ok(Err(error)) => tracing::error!(shard = %copy.shard_id, %error, "copy not flushed; its log will be replayed"),
        Err(error) => tracing::error!(shard = %copy.shard_id, %error, "flush panicked"),
    }
}

/// Trains and extends the index while the copy is primary; both are logged operations, so every copy follows.
async fn maintain(copy: Arc<Copy>, training_pool: Pool) {
    loop {
        let worked = match copy.handle.is_primary().then(|| copy.shard.next_maintenance()).flatten() {
            None => false,
            Some(Maintenance::IndexUpTo { generation, row_end }) => {
                log_operations(&copy, vec![Operation::IndexUpTo { generation, row_end }]).await
            }
            Some(Maintenance::Train) => train(&copy, &training_pool).await,
        };
        if copy.stop.is_cancelled() {
            return;
        }
        if !worked {
            tokio::select! {
                () = tokio::time::sleep(MAINTENANCE_INTERVAL) => {}
                () = copy.stop.cancelled() => return,
            }
        }
    }
}

async fn train(copy: &Arc<Copy>, training_pool: &Pool) -> bool {
    let started = Instant::now();
    let (shard, cancel) = (Arc::clone(&copy.shard), Cancel::new());
    let cancelled = cancel.clone();
    let trained = tokio::select! {
        trained = training_pool.run(move || shard.train(&cancel)) => trained,
        () = copy.stop.cancelled() => {
            cancelled.cancel();
            return false;
        }
    };
    match trained {
        Ok(Ok(pieces)) => {
            tracing::info!(shard = %copy.shard_id, seconds = started.elapsed().as_secs_f32(), "model generation trained");
            for piece in pieces {
                if !log_operations(copy, vec![piece]).await {
                    return false;
                }
            }
            true
        }
        Ok(Err(error)) => {
            tracing::warn!(shard = %copy.shard_id, %error, "training failed, the shard stays exact");
            false
        }
        // The pool has one thread; another shard is training.
        Err(_) => false,
    }
}

async fn log_operations(copy: &Copy, operations: Vec<Operation>) -> bool {
    let id = OperationId(uuid::Uuid::new_v4().as_u128());
    match copy.handle.write(id, operations, Instant::now() + MAINTENANCE_TIMEOUT).await {
        Ok(_) => true,
        Err(error) => {
            tracing::info!(shard = %copy.shard_id, %error, "maintenance put off");
            false
        }
    }
}
