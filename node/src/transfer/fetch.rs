//! One attempt to fetch a snapshot: open one at the source, pull the pieces that are missing, check each.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster_config::error::ErrorKind;
use cluster_config::ids::{CopyId, NodeId};
use cluster_config::seqno::SeqNo;
use futures::future::BoxFuture;
use prometheus::IntCounter;

use super::decide::FetchFrom;
use super::incoming::Incoming;
use super::manifest::{Manifest, SnapshotId};
use crate::error::Error;

/// The log is pinned again this often; a pin lasts for a snapshot lease.
const PIN_INTERVAL: Duration = Duration::from_secs(60);

/// How other nodes are asked for their snapshots.
pub trait SnapshotSource: Send + Sync + 'static {
    /// Opens a snapshot of a copy there, for a copy here.
    fn open(&self, from: FetchFrom, for_copy: CopyId) -> BoxFuture<'_, Result<Manifest, Error>>;
    /// Reads one piece.
    fn read<'a>(
        &'a self,
        node: NodeId,
        snapshot: SnapshotId,
        file: &'a str,
        piece: u32,
    ) -> BoxFuture<'a, Result<Bytes, Error>>;
    /// Ends a snapshot.
    fn close(&self, node: NodeId, snapshot: SnapshotId) -> BoxFuture<'_, Result<(), Error>>;
}

/// Keeps the log from an entry on, for a snapshot lease.
pub type PinLog = Arc<dyn Fn(SeqNo) -> BoxFuture<'static, ()> + Send + Sync>;

/// How far an attempt has come.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of the snapshot; 0 until it is known.
    pub total: AtomicU64,
    /// Bytes of it that are here and right.
    pub done: AtomicU64,
}

impl Progress {
    /// In percent.
    pub fn percent(&self) -> u64 {
        let total = self.total.load(Ordering::Relaxed).max(1);
        (self.done.load(Ordering::Relaxed) * 100 / total).min(100)
    }
}

/// One attempt.
pub struct Fetch {
    /// How sources are reached.
    pub source: Arc<dyn SnapshotSource>,
    /// Where from.
    pub from: FetchFrom,
    /// Keeps the log after the snapshot's base, without which the snapshot would be in vain.
    pub pin: PinLog,
    /// Which copy it is for.
    pub copy: CopyId,
    /// Where the pieces are kept.
    pub dir: PathBuf,
    /// Told as it goes.
    pub progress: Arc<Progress>,
    /// Counts what came over the wire.
    pub bytes_received: IntCounter,
}

impl Fetch {
    /// Pulls until all pieces are here. Errors: the source's, `Corrupt` (a piece arrived damaged), `Conflict` (it is of something
    /// else), `StorageFull`, `Unavailable`.
    ///
    /// Cancel: what has arrived stays, and the source keeps its snapshot for a lease, so a later attempt goes on there.
    pub async fn run(&self) -> Result<Incoming, Error> {
        let manifest = match self.begun().await? {
            Some(manifest) => manifest,
            None => self.source.open(self.from, self.copy).await?,
        };
        let snapshot = manifest.snapshot;
        let fetched = self.pull(manifest).await;
        // Best effort: it would end by itself.
        if let Err(error) = self.source.close(self.from.node, snapshot).await {
            tracing::debug!(node = %self.from.node, %error, "a snapshot was not closed at its source");
        }
        fetched
    }

    /// The snapshot of an earlier attempt, if the source still keeps it.
    async fn begun(&self) -> Result<Option<Manifest>, Error> {
        let dir = self.dir.clone();
        let Some(manifest) = blocking(move || Ok(Incoming::begun(&dir))).await? else { return Ok(None) };
        if self.check(&manifest).is_err() {
            return Ok(None);
        }
        let asked = self.source.read(self.from.node, manifest.snapshot, "CURRENT", 0).await;
        Ok(asked.is_ok().then_some(manifest))
    }

    fn check(&self, manifest: &Manifest) -> Result<(), Error> {
        manifest.validate()?;
        let wanted = (self.from.copy.shard, self.from.copy.lineage);
        if (manifest.shard, manifest.lineage) != wanted {
            let found = format!("the snapshot is of shard {}, lineage {}", manifest.shard, manifest.lineage);
            return Err(Error::new(ErrorKind::Conflict, found));
        }
        Ok(())
    }

    async fn pull(&self, manifest: Manifest) -> Result<Incoming, Error> {
        self.check(&manifest)?;
        let log_from = manifest.base.seqno.next();
        (self.pin)(log_from).await;
        let mut pinned_at = Instant::now();
        let dir = self.dir.clone();
        let total = manifest.bytes();
        let (incoming, missing) = blocking(move || {
            let incoming = Incoming::begin(dir, manifest)?;
            let missing = incoming.missing()?;
            Ok((Arc::new(incoming), missing))
        })
        .await?;
        let left: u64 = missing.iter().map(|piece| piece.bytes as u64).sum();
        self.progress.total.store(total, Ordering::Relaxed);
        self.progress.done.store(total - left, Ordering::Relaxed);
        let snapshot = incoming.manifest().snapshot;
        for piece in missing {
            let data = self.source.read(self.from.node, snapshot, &piece.file, piece.piece).await?;
            if data.len() != piece.bytes || crc32c::crc32c(&data) != piece.crc32c {
                let message = format!("piece {} of {} arrived damaged", piece.piece, piece.file);
                return Err(Error::new(ErrorKind::Corrupt, message));
            }
            self.bytes_received.inc_by(data.len() as u64);
            self.progress.done.fetch_add(data.len() as u64, Ordering::Relaxed);
            let keeping = Arc::clone(&incoming);
            blocking(move || keeping.write(&piece, &data)).await?;
            if pinned_at.elapsed() >= PIN_INTERVAL {
                (self.pin)(log_from).await;
                pinned_at = Instant::now();
            }
        }
        Arc::into_inner(incoming).ok_or_else(|| Error::new(ErrorKind::Internal, "a snapshot is still being written"))
    }
}

/// Runs file work off the reactor.
pub(crate) async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(job).await;
    done.map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?.map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull => ErrorKind::StorageFull,
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, error.to_string())
    })
}
