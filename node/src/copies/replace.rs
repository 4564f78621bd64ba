//! A copy that its primary's log cannot continue is replaced by a snapshot of another copy: fetched beside it, made its own, and
//! put in its place, after which the log catches up.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cluster_config::cluster_state::ClusterState;
use cluster_config::error::ErrorKind;
use cluster_config::ids::CopyId;
use cluster_config::limits::{SNAPSHOT_LEASE, TRANSFERS_IN_MAX};
use cluster_config::seqno::SeqNo;
use cluster_config::shard_group::{CopyPhase, ShardGroup};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{COPY_DIR_PREFIX, Copies, Copy, Followed, REOPEN_INTERVAL};
use crate::error::Error;
use crate::replication::{CopyHandle, RegisterClient};
use crate::transfer::decide::FetchFrom;
use crate::transfer::fetch::{PinLog, blocking};
use crate::transfer::{Attempts, Fetch, Progress, SnapshotSource, Snapshots, decide_fetch, incoming};

/// How long a pin of [`Copies::pin_what_follows`] holds: some rounds of the loop that renews it.
const CATCH_UP_PIN: Duration = Duration::from_secs(3 * REOPEN_INTERVAL.as_secs());

/// How snapshots come and go.
pub struct Transfers {
    /// Where they are put together, on the file system of the copies.
    pub incoming_dir: PathBuf,
    /// How others' are reached.
    pub source: Arc<dyn SnapshotSource>,
    /// Those of this node.
    pub snapshots: Arc<Snapshots>,
}

/// Replacements under way, and what is known of earlier ones.
pub(super) struct Replacing {
    fetching: Mutex<BTreeMap<CopyId, Arc<Progress>>>,
    attempts: Mutex<Attempts>,
    /// Copies for which something may lie in the incoming directory.
    begun: Mutex<BTreeSet<CopyId>>,
    /// First entry that each copy lacked which was replaced and has not caught up since.
    replaced: Mutex<BTreeMap<CopyId, SeqNo>>,
    slots: Arc<Semaphore>,
}

impl Default for Replacing {
    fn default() -> Self {
        Self {
            fetching: Mutex::default(),
            attempts: Mutex::default(),
            begun: Mutex::default(),
            replaced: Mutex::default(),
            slots: Arc::new(Semaphore::new(TRANSFERS_IN_MAX)),
        }
    }
}

/// What one replacement needs to know.
struct Replacement {
    copy: Arc<Copy>,
    group: ShardGroup,
    from: FetchFrom,
    register: Arc<dyn RegisterClient>,
    progress: Arc<Progress>,
}

impl Copies {
    /// Deletes what former lives of the process left of snapshots, but for those that can go on.
    pub fn sweep_transfers(&self) -> std::io::Result<()> {
        let transfers = &self.context.transfers;
        transfers.snapshots.clear()?;
        incoming::sweep(&transfers.incoming_dir)?;
        if let Ok(entries) = std::fs::read_dir(&transfers.incoming_dir) {
            let ids = entries.flatten().filter_map(|entry| {
                entry.file_name().to_str()?.strip_prefix(COPY_DIR_PREFIX)?.parse().ok().map(CopyId)
            });
            self.replacing.begun.lock().extend(ids);
        }
        Ok(())
    }

    /// Percent of the snapshot that is on its way to a copy, if one is.
    pub fn fetched_percent(&self, copy: CopyId) -> Option<u64> {
        self.replacing.fetching.lock().get(&copy).map(|progress| progress.percent())
    }

    /// Begins to replace the copy if it must and may be.
    pub(super) fn replace_if_needed(
        self: &Arc<Self>,
        copy: &Arc<Copy>,
        state: &ClusterState,
        group: &ShardGroup,
        followed: &Followed,
    ) {
        let needs_snapshot = copy.handle.report().needs_snapshot;
        if !needs_snapshot {
            // One that was just opened has not heard yet what its primary's log lacks.
            let has_caught_up = group.copies.get(&copy.id).is_some_and(|record| record.phase == CopyPhase::InSync);
            if has_caught_up {
                self.replacing.attempts.lock().forget(copy.id);
                self.replacing.replaced.lock().remove(&copy.id);
                self.discard_incoming(copy.id);
            } else {
                let (copies, copy) = (Arc::clone(self), Arc::clone(copy));
                self.tasks.spawn(async move { copies.pin_what_follows(copy.id, &copy.handle).await });
            }
            return;
        }
        let Some(attempt) = self.replacing.attempts.lock().next(copy.id, Instant::now()) else { return };
        let Some(from) = decide_fetch(state, group, copy.id, needs_snapshot, attempt) else { return };
        if self.replacing.fetching.lock().contains_key(&copy.id) {
            return;
        }
        let Ok(slot) = Arc::clone(&self.replacing.slots).try_acquire_owned() else { return };
        let progress = Arc::new(Progress::default());
        self.replacing.fetching.lock().insert(copy.id, Arc::clone(&progress));
        self.replacing.begun.lock().insert(copy.id);
        let replacement = Replacement {
            copy: Arc::clone(copy),
            group: group.clone(),
            from,
            register: Arc::clone(&followed.register),
            progress,
        };
        let copies = Arc::clone(self);
        self.tasks.spawn(async move {
            copies.replace(replacement, attempt).await;
            drop(slot);
        });
    }

    async fn replace(self: &Arc<Self>, replacement: Replacement, attempt: u32) {
        let (shard, copy, from) = (replacement.group.shard, replacement.copy.id, replacement.from);
        let progress = Arc::clone(&replacement.progress);
        let started = Instant::now();
        tracing::info!(%shard, %copy, source = %from.copy.copy, node = %from.node, attempt, "copy is replaced by a snapshot");
        let replaced = self.try_replace(replacement).await;
        let outcome = replaced.as_ref().map_or_else(|error| error.kind.as_str(), |()| "ok");
        self.context.metrics.transfers.with_label_values(&[outcome]).inc();
        let (bytes, seconds) = (progress.done.load(Ordering::Relaxed), started.elapsed().as_secs_f32());
        match replaced {
            Ok(()) => tracing::info!(%shard, %copy, bytes, seconds, "copy replaced, the log goes on from here"),
            Err(error) => tracing::warn!(%shard, %copy, bytes, seconds, %error, "copy not replaced, to be tried again"),
        }
        self.replacing.attempts.lock().made(copy, Instant::now());
        self.replacing.fetching.lock().remove(&copy);
        self.changed.notify_one();
    }

    async fn try_replace(self: &Arc<Self>, replacement: Replacement) -> Result<(), Error> {
        let Replacement { copy, group, from, register, progress } = replacement;
        let fetch = Fetch {
            source: Arc::clone(&self.context.transfers.source),
            from,
            pin: pin_through(copy.handle.clone()),
            copy: copy.id,
            dir: self.incoming_dir(copy.id),
            progress,
            bytes_received: self.context.metrics.transfer_bytes.with_label_values(&["in"]),
        };
        let incoming = tokio::select! {
            fetched = fetch.run() => fetched?,
            () = copy.stop.cancelled() => return Err(Error::new(ErrorKind::Cancelled, "the copy is being closed")),
        };
        let options = self.options(copy.id, &group, copy.spec.clone());
        let promised = copy.handle.position().term;
        let adopted =
            tokio::task::spawn_blocking(move || incoming.adopt(options, promised).map(|base| (incoming, base)));
        let (incoming, base) = adopted.await.map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))??;
        tracing::info!(shard = %copy.shard_id, copy = %copy.id, base = %base.seqno, "snapshot fetched and verified");

        // From here on the copy acknowledges nothing. If it still lacks what is purged, it has acknowledged nothing since it was found to:
        // the register alone could not tell, because a proposal to add the copy may be on its way.
        let id = copy.id;
        let busy = || Error::new(ErrorKind::Unavailable, "the copy is being opened or closed");
        let _claim = self.claim(id).ok_or_else(busy)?;
        let closed = copy.handle.clone();
        self.take_out(copy).await?;
        if !closed.report().needs_snapshot {
            return Err(Error::new(ErrorKind::Conflict, "the log has helped the copy meanwhile"));
        }
        may_be_replaced(&*register, &group, id).await?;
        let dir = self.directory(id);
        blocking(move || incoming.install(&dir)).await?;
        self.replacing.replaced.lock().insert(id, base.seqno.next());
        Ok(())
    }

    /// Keeps what follows a snapshot in the primary's log until the copy that was made of it has caught up, from its first answer on: one
    /// without the pin would let the log go, and the copy would need the next snapshot.
    pub(super) async fn pin_what_follows(&self, copy: CopyId, handle: &CopyHandle) {
        let from = self.replacing.replaced.lock().get(&copy).copied();
        if let Some(from) = from {
            // A closed copy needs none.
            let _ = handle.pin_log(from, CATCH_UP_PIN).await;
        }
    }

    fn incoming_dir(&self, copy: CopyId) -> PathBuf {
        self.context.transfers.incoming_dir.join(format!("{COPY_DIR_PREFIX}{copy}"))
    }

    /// Deletes what has arrived for a copy that needs no snapshot any more.
    pub(super) fn discard_incoming(&self, copy: CopyId) {
        if self.replacing.fetching.lock().contains_key(&copy) || !self.replacing.begun.lock().remove(&copy) {
            return;
        }
        let dir = self.incoming_dir(copy);
        self.tasks.spawn(async move {
            if let Err(error) = blocking(move || incoming::discard(&dir)).await {
                tracing::warn!(%copy, %error, "an unfinished snapshot cannot be deleted");
            }
        });
    }

    /// Ends the snapshots of this node whose lease has run out at `now`, or all of them.
    pub(super) async fn close_snapshots(&self, now: Option<Instant>) {
        let snapshots = &self.context.transfers.snapshots;
        self.context.metrics.transfers_open.set(snapshots.len() as i64);
        for snapshot in snapshots.due(now) {
            let snapshots = Arc::clone(snapshots);
            // Only a panic could fail it.
            let _ = tokio::task::spawn_blocking(move || snapshots.close(snapshot)).await;
        }
    }
}

/// The primary learns of the pin with the next answer to it.
fn pin_through(handle: CopyHandle) -> PinLog {
    Arc::new(move |from| {
        let handle = handle.clone();
        Box::pin(async move {
            // A closed copy needs none.
            let _ = handle.pin_log(from, SNAPSHOT_LEASE).await;
        })
    })
}

/// Errors: `Conflict` where the register of this moment has the copy in sync, or not at all; `Unavailable` where it cannot be read.
async fn may_be_replaced(register: &dyn RegisterClient, group: &ShardGroup, copy: CopyId) -> Result<(), Error> {
    let current = register.read_register(group.shard).await;
    let current = current.map_err(|error| Error::new(ErrorKind::Unavailable, error.to_string()))?;
    let is_ours = current.lineage == group.lineage && current.copies.contains_key(&copy);
    if !is_ours || current.in_sync.contains(&copy) {
        return Err(Error::new(ErrorKind::Conflict, "the copy's place in the register has changed"));
    }
    Ok(())
}
