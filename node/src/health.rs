//! What a node tells of itself: readiness, gauges, and the reports in its heartbeats.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster_config::error::ErrorKind;
use cluster_config::ids::CopyId;
use cluster_config::memory::CopyMemory;
use proto::v1;

use crate::agent::Report;
use crate::control::observe::{INDEX_STATE_CORRUPT, INDEX_STATE_POISONED};
use crate::copies::{Copies, Copy, Failure};
use crate::http::Health;
use crate::memory::MemoryLedger;
use crate::metadata::Metadata;
use crate::pool::Pool;
use crate::rpc::client::Peers;
use crate::shard::StorageResources;
use crate::telemetry::Metrics;

/// Readiness and gauges of one process.
pub struct NodeHealth {
    copies: Arc<Copies>,
    metadata: Metadata,
    pools: BTreeMap<&'static str, Pool>,
    resources: Arc<StorageResources>,
    ledger: Arc<MemoryLedger>,
    is_registered: AtomicBool,
}

impl NodeHealth {
    /// Not ready until [`NodeHealth::registered`].
    pub fn new(
        copies: Arc<Copies>,
        metadata: Metadata,
        pools: BTreeMap<&'static str, Pool>,
        resources: Arc<StorageResources>,
        ledger: Arc<MemoryLedger>,
    ) -> Self {
        Self { copies, metadata, pools, resources, ledger, is_registered: AtomicBool::new(false) }
    }

    /// The metadata group knows this process.
    pub fn registered(&self) {
        self.is_registered.store(true, Ordering::Relaxed);
    }
}

impl Health for NodeHealth {
    fn ready(&self) -> Result<(), String> {
        if !self.is_registered.load(Ordering::Relaxed) {
            return Err("not registered yet: no majority of the metadata voters answers".into());
        }
        self.copies.failure().map_or(Ok(()), Err)
    }

    fn refresh(&self, metrics: &Metrics) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        for (name, pool) in &self.pools {
            metrics.pool_queued.with_label_values(&[name]).set(gauge(pool.queued() as u64));
        }
        let state = self.metadata.state().borrow().clone();
        metrics.state_version.set(gauge(state.version));
        if let Some(raft) = self.metadata.raft_metrics() {
            metrics.raft_term.set(gauge(raft.current_term));
            metrics.raft_applied.set(gauge(raft.last_applied.map_or(0, |id| id.index)));
            metrics.raft_is_leader.set(i64::from(raft.current_leader == Some(raft.id)));
        }
        let memory = self.ledger.read(&self.copies, &self.resources);
        let parts = [
            ("resident_anonymous", memory.resident_anonymous),
            ("resident_file", memory.resident_file),
            ("base", memory.base),
            ("caches", memory.caches),
            ("copies", memory.copies),
            ("allocator", memory.allocator),
            ("budget", memory.budget),
        ];
        for (part, bytes) in parts {
            metrics.memory_bytes.with_label_values(&[part]).set(gauge(bytes));
        }
        metrics.reset_shards();
        for copy in self.copies.all() {
            let name = state.collections.get(&copy.shard_id.collection).map_or("", |found| found.spec.name.as_str());
            let index = copy.shard_id.index.to_string();
            let labels = [name, index.as_str()];
            let (stats, position) = (copy.shard.stats(), copy.handle.position());
            metrics.shard_rows_live.with_label_values(&labels).set(gauge(stats.rows_live));
            metrics.shard_rows_indexed.with_label_values(&labels).set(gauge(stats.rows_indexed));
            metrics.shard_rows_tail.with_label_values(&labels).set(gauge(stats.rows_tail));
            metrics.shard_applied.with_label_values(&labels).set(gauge(position.applied.0));
            metrics.shard_is_primary.with_label_values(&labels).set(i64::from(copy.handle.is_primary()));
            metrics.shard_term.with_label_values(&labels).set(gauge(position.term.0));
            let CopyMemory { codes, row_sets, log, rescoring, tail } = copy.memory();
            let parts = [codes, row_sets, log, rescoring, tail];
            for (part, bytes) in ["codes", "row_sets", "log", "rescoring", "tail"].into_iter().zip(parts) {
                metrics.shard_memory_bytes.with_label_values(&[name, index.as_str(), part]).set(gauge(bytes));
            }
            if let Some(recall) = copy.shard.recall_at_10() {
                metrics.recall_at_10.with_label_values(&labels).set(recall);
            }
            if let Some(scrubbed) = copy.shard.last_scrub() {
                let age = scrubbed.at.elapsed().as_secs();
                metrics.shard_scrub_age_seconds.with_label_values(&labels).set(gauge(age));
            }
        }
    }
}

/// What heartbeats are made of.
pub struct Reporting {
    copies: Arc<Copies>,
    peers: Peers,
    resources: Arc<StorageResources>,
    ledger: Arc<MemoryLedger>,
    /// A log write that takes longer means that the disk is stalled.
    sync_timeout: Duration,
}

impl Reporting {
    /// Reports on `copies`, whose logs share `resources`.
    pub fn new(
        copies: Arc<Copies>,
        peers: Peers,
        resources: Arc<StorageResources>,
        ledger: Arc<MemoryLedger>,
        sync_timeout: Duration,
    ) -> Self {
        Self { copies, peers, resources, ledger, sync_timeout }
    }

    /// What the next heartbeat says. It does not wait for the disk: a stalled one is among the news.
    pub fn report(&self) -> Report {
        let open = self.copies.all();
        let is_open = |id: &CopyId| open.iter().any(|copy| copy.id == *id);
        let failures = self.copies.failures();
        let corrupt = failures.iter().filter(|(id, _)| !is_open(id)).filter_map(|(id, failure)| corrupt(*id, failure));
        Report {
            copies: open.iter().map(|copy| self.copy_report(copy)).chain(corrupt).collect(),
            deleted: self.copies.deleted(),
            refused_peers: self.peers.refused_lately(),
            is_disk_stalled: self.resources.oldest_log_write() > self.sync_timeout,
            memory: self.ledger.read(&self.copies, &self.resources),
        }
    }

    fn copy_report(&self, copy: &Copy) -> v1::CopyReport {
        let (stats, replication) = (copy.shard.stats(), copy.handle.report());
        let index_state = match (&replication.poisoned, self.copies.fetched_percent(copy.id)) {
            (Some(_), _) => INDEX_STATE_POISONED.into(),
            (None, Some(percent)) => format!("fetching {percent} %"),
            (None, None) => stats.index_state.to_string(),
        };
        v1::CopyReport {
            shard: Some(copy.shard_id.into()),
            copy_id: copy.id.0,
            last: Some(replication.last.into()),
            applied: replication.applied.0,
            global_checkpoint: replication.global_checkpoint.0,
            generation: stats.generation,
            rows_indexed: stats.rows_indexed,
            rows_tail: stats.rows_tail,
            rows_live: stats.rows_live,
            index_state,
            disk_bytes: stats.disk_bytes,
            memory_bytes: copy.memory().total(),
            reason: replication.poisoned.unwrap_or_default(),
            memory: Some(copy.memory().into()),
            recall_at_10: copy.shard.recall_at_10().map(|recall| recall as f32),
        }
    }
}

/// A copy that will not be opened however often that is tried; others that failed to open are not reported at all.
fn corrupt(id: CopyId, failure: &Failure) -> Option<v1::CopyReport> {
    matches!(failure.kind, ErrorKind::Corrupt | ErrorKind::NotFound).then(|| v1::CopyReport {
        shard: Some(failure.shard.into()),
        copy_id: id.0,
        index_state: INDEX_STATE_CORRUPT.into(),
        reason: failure.reason.clone(),
        ..v1::CopyReport::default()
    })
}
