//! A copy whose disk failed, or whose log contradicts what was agreed, answers nothing until it is reopened. It is closed here, and
//! opened again by the next look at the registers, unless what it holds is damaged: then another takes its place.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster_config::error::ErrorKind;
use cluster_config::ids::CopyId;

use super::{Copies, Copy, Failure, Followed, close};
use crate::error::Error;
use crate::shard::{Shard, ShardError};

/// Longest wait for the calls that still use a closed copy.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks whether they have ended.
const RELEASE_INTERVAL: Duration = Duration::from_millis(10);

impl Copies {
    /// Closes the copy if it failed.
    pub(super) fn renew_if_failed(self: &Arc<Self>, copy: &Arc<Copy>, followed: &Followed) {
        let Some(error) = copy.shard.failure().or_else(|| copy.handle.failure()) else { return };
        let error = ShardError::from(error);
        let Some(claim) = self.claim(copy.id) else { return };
        tracing::error!(shard = %copy.shard_id, copy = %copy.id, %error, "copy failed and is closed");
        let failure = Failure::new(copy.shard_id, error.kind(), error.to_string());
        self.failures.lock().insert(copy.id, failure);
        let (copies, copy, opened) = (Arc::clone(self), Arc::clone(copy), Arc::clone(&followed.opened));
        self.tasks.spawn(async move {
            if let Err(error) = copies.take_out(copy).await {
                tracing::warn!(%error, "a closed copy is still in use");
            }
            drop(claim);
            opened();
        });
    }

    /// Closes an open copy, and waits until its files are not used any more. The caller holds the claim. Errors: `Unavailable` where the
    /// copy has moved on to another life of the process, or calls on it do not end.
    pub(super) async fn take_out(&self, copy: Arc<Copy>) -> Result<(), Error> {
        {
            let mut open = self.open.write();
            if !open.get(&copy.id).is_some_and(|current| Arc::ptr_eq(current, &copy)) {
                return Err(Error::new(ErrorKind::Unavailable, "the copy is not open any more in this life"));
            }
            open.remove(&copy.id);
        }
        let shard = Arc::clone(&copy.shard);
        close(copy).await;
        released(shard).await
    }

    /// Keeps everybody else from opening or moving the copy. `None`: somebody else is at it.
    pub(super) fn claim(self: &Arc<Self>, copy: CopyId) -> Option<Claim> {
        self.opening.lock().insert(copy).then(|| Claim { copies: Arc::clone(self), copy })
    }
}

/// Held by the one who opens or moves a copy.
pub(super) struct Claim {
    copies: Arc<Copies>,
    copy: CopyId,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.copies.opening.lock().remove(&self.copy);
        self.copies.changed.notify_one();
    }
}

/// Waits for the last of those who still use the shard, and lets go of it: RocksDB looks through its directory once more as it closes,
/// so nothing else may have taken its place by then.
async fn released(mut shard: Arc<Shard>) -> Result<(), Error> {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        match Arc::try_unwrap(shard) {
            Ok(last) => {
                let dropped = tokio::task::spawn_blocking(move || drop(last)).await;
                return dropped.map_err(|error| Error::new(ErrorKind::Internal, error.to_string()));
            }
            Err(shared) => shard = shared,
        }
        if Instant::now() >= deadline {
            return Err(Error::new(ErrorKind::Unavailable, "calls on the closed copy have not ended"));
        }
        tokio::time::sleep(RELEASE_INTERVAL).await;
    }
}
