//! Load at a fixed rate: every shard gets a write, and the cluster a search, every [`TICK`], whether or not earlier ones were
//! answered. A load that waits for answers would write nothing during the gap it is to measure.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cluster_config::ids::{CollectionId, DocumentKey};
use cluster_config::routing::{routing_hash, shard_index};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::history::{Key, Level};
use crate::observer::Look;
use crate::workload::documents::{Documents, id};

/// Dimension of the drill's vectors: the drill is about replication, not about distances.
pub const DIM: usize = 16;
/// Between two writes of a shard, and between two searches.
pub const TICK: Duration = Duration::from_millis(10);
/// Deadline of each call: beyond the longest gap promised.
pub const TIMEOUT_MS: u64 = 10_000;
/// Calls under way at once, for each shard and for the searches: as many as come in a deadline, so that none is held back.
const UNDER_WAY_MAX: usize = 1024;
/// Searches are for vectors of keys from here on, which nobody writes: each is new to every cache.
pub const SEARCH_KEYS: Key = 1 << 40;

/// Which shard a document belongs to, computed as every process of the cluster does.
#[derive(Clone, Debug)]
pub struct Routing {
    collection: CollectionId,
    shards: u32,
}

impl Routing {
    /// Of the collection named so.
    pub fn new(look: &Look, cluster: &Value, collection: &str, shards: u32) -> anyhow::Result<Self> {
        let all = cluster["shards"].as_array().context("no shards")?;
        let first =
            all.iter().find(|shard| shard["collection"] == collection).context("the collection has no shards")?;
        let name = first["shard"].as_str().context("no shard")?;
        anyhow::ensure!(look.registers.iter().any(|register| register.shard == name), "shard {name} has gone");
        let id = name.split('/').next().and_then(|id| id.parse().ok()).context("not COLLECTION/INDEX")?;
        Ok(Self { collection: CollectionId(id), shards })
    }

    /// The shard of a document.
    pub fn shard_of(&self, key: Key) -> u32 {
        let key = DocumentKey::new(id(key)).expect("k and a number is an id");
        shard_index(routing_hash(self.collection, &key), self.shards)
    }

    /// How many there are.
    pub fn shards(&self) -> u32 {
        self.shards
    }
}

/// The load of a drill.
pub struct Load {
    /// Where it goes, and where it is recorded.
    pub documents: Documents,
    /// Which key goes to which shard.
    pub routing: Routing,
    /// Read at level strong, too, as often as is searched.
    pub with_strong_reads: bool,
}

impl Load {
    /// Runs until `stop`, and then until every call has ended.
    pub async fn run(self, stop: CancellationToken) {
        let mut loads = JoinSet::new();
        let routing = Arc::new(self.routing);
        for shard in 0..routing.shards {
            let (documents, routing) =
                (Documents { process: u64::from(shard), ..self.documents.clone() }, Arc::clone(&routing));
            // Every key is written once: an acknowledged one must be there for ever.
            let mut keys = (0..).filter(move |key| routing.shard_of(*key) == shard);
            loads.spawn(every_tick(stop.clone(), move || {
                let key = keys.next().unwrap_or_default();
                let documents = documents.clone();
                async move { documents.put(&[(key, 1)]).await.map(drop).unwrap_or_default() }
            }));
        }
        let strong = self.with_strong_reads.then_some(Level::Strong);
        for (number, level) in [Level::Eventual].into_iter().chain(strong).enumerate() {
            let process = u64::from(routing.shards) + number as u64;
            let documents = Documents { process, ..self.documents.clone() };
            let mut keys = SEARCH_KEYS..;
            loads.spawn(every_tick(stop.clone(), move || {
                let key = keys.next().unwrap_or(SEARCH_KEYS);
                let documents = documents.clone();
                async move { documents.read(key, level, "").await.map(drop).unwrap_or_default() }
            }));
        }
        loads.join_all().await;
    }
}

/// Begins a call every tick until `stop`, then waits for those under way.
async fn every_tick<Call>(stop: CancellationToken, mut call: impl FnMut() -> Call)
where
    Call: Future<Output = ()> + Send + 'static,
{
    let under_way = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    let mut calls = JoinSet::new();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        while calls.try_join_next().is_some() {}
        if let Ok(permit) = Arc::clone(&under_way).try_acquire_owned() {
            let call = call();
            calls.spawn(async move {
                call.await;
                drop(permit);
            });
        }
    }
    calls.join_all().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_has_keys_of_its_own() {
        let routing = Routing { collection: CollectionId(3), shards: 4 };
        for shard in 0..4 {
            assert!((0..200).filter(|key| routing.shard_of(*key) == shard).count() > 20);
        }
    }
}
