//! Logs to stderr and the metrics of this process. Labels are bounded: collections, shards and nodes, never documents or users.

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use tracing_subscriber::EnvFilter;

/// Starts logging to stderr; `RUST_LOG` overrides the level, `SUSUI_LOG=json` makes each line a JSON object.
pub fn start_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,openraft=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::env::var("SUSUI_LOG").is_ok_and(|format| format == "json") {
        builder.json().init();
    } else {
        builder.with_ansi(false).init();
    }
}

/// Buckets for work inside one node: 50 us to 2.5 s.
const SHORT_SECONDS: [f64; 15] =
    [0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Every metric of a node. Shard and Raft gauges are set when `/metrics` is read.
pub struct Metrics {
    /// Where they are registered.
    pub registry: Registry,
    /// Computing one shard's answer, without the queue.
    pub search_service_seconds: Histogram,
    /// Waiting for a search thread.
    pub search_queue_seconds: Histogram,
    /// Searches by outcome: `ok` or an error kind.
    pub searches: IntCounterVec,
    /// Writes at this node as primary by outcome.
    pub writes: IntCounterVec,
    /// Operations taken in by those writes.
    pub operations: IntCounter,
    /// A write at the primary from arrival to acknowledgement.
    pub write_seconds: Histogram,
    /// Jobs waiting, by pool.
    pub pool_queued: IntGaugeVec,
    /// Per shard copy: live rows.
    pub shard_rows_live: IntGaugeVec,
    /// Per shard copy: rows in the index.
    pub shard_rows_indexed: IntGaugeVec,
    /// Per shard copy: rows searched exactly.
    pub shard_rows_tail: IntGaugeVec,
    /// Per shard copy: applied seqno.
    pub shard_applied: IntGaugeVec,
    /// Per shard copy: 1 on the primary.
    pub shard_is_primary: IntGaugeVec,
    /// Per shard copy: primary term it follows.
    pub shard_term: IntGaugeVec,
    /// Per shard copy: recall@10 of sampled live queries at the default effort; absent while they are too few.
    pub recall_at_10: GaugeVec,
    /// Per shard copy and part of the ledger: bytes of memory.
    pub shard_memory_bytes: IntGaugeVec,
    /// Per part of the ledger: bytes of memory of the process.
    pub memory_bytes: IntGaugeVec,
    /// Bytes of snapshots, by direction: `in`, `out`.
    pub transfer_bytes: IntCounterVec,
    /// Attempts of this node to fetch a snapshot, by outcome: `ok` or an error kind.
    pub transfers: IntCounterVec,
    /// Snapshots kept here for other nodes.
    pub transfers_open: IntGauge,
    /// Bytes read to look for rotten ones.
    pub scrub_bytes: IntCounter,
    /// Looks through a whole copy, by outcome: `ok` or an error kind.
    pub scrubs: IntCounterVec,
    /// Per shard copy: seconds since all of it was last found right; absent before the first time.
    pub shard_scrub_age_seconds: IntGaugeVec,
    /// Share of the data directory's file system in use, percent.
    pub disk_used_percent: IntGauge,
    /// Raft term of the metadata group.
    pub raft_term: IntGauge,
    /// Last metadata log index applied.
    pub raft_applied: IntGauge,
    /// 1 where this process leads the metadata group.
    pub raft_is_leader: IntGauge,
    /// Version of the cluster state this process follows.
    pub state_version: IntGauge,
}

impl Metrics {
    /// Registers everything. Errors: a name registered twice, which is a bug.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let histogram = |name: &str, help: &str| -> prometheus::Result<Histogram> {
            let metric = Histogram::with_opts(HistogramOpts::new(name, help).buckets(SHORT_SECONDS.to_vec()))?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let counters = |name: &str, help: &str, label: &str| -> prometheus::Result<IntCounterVec> {
            let metric = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<IntGaugeVec> {
            let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let shard = ["collection", "shard"];
        let operations = IntCounter::new("susui_shard_operations_total", "operations taken in as primary")?;
        registry.register(Box::new(operations.clone()))?;
        let scrub_bytes = IntCounter::new("susui_scrub_bytes_total", "bytes read to look for rotten ones")?;
        registry.register(Box::new(scrub_bytes.clone()))?;
        let help = "share of the exact best 10 that sampled live queries at the default effort found";
        let recall_at_10 = GaugeVec::new(Opts::new("recall_at_10", help), &shard)?;
        registry.register(Box::new(recall_at_10.clone()))?;
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Self {
            search_service_seconds: histogram("susui_shard_search_seconds", "computing one shard's answer")?,
            search_queue_seconds: histogram("susui_shard_search_queue_seconds", "waiting for a search thread")?,
            searches: counters("susui_shard_searches_total", "shard searches by outcome", "outcome")?,
            writes: counters("susui_shard_writes_total", "writes as primary by outcome", "outcome")?,
            operations,
            write_seconds: histogram("susui_shard_write_seconds", "a write at its primary, to the acknowledgement")?,
            pool_queued: gauges("susui_pool_queued", "jobs waiting for a thread", &["pool"])?,
            shard_rows_live: gauges("susui_shard_rows_live", "live rows of the copy", &shard)?,
            shard_rows_indexed: gauges("susui_shard_rows_indexed", "rows in the index of the copy", &shard)?,
            shard_rows_tail: gauges("susui_shard_rows_tail", "rows of the copy searched exactly", &shard)?,
            shard_applied: gauges("susui_shard_applied_seqno", "applied seqno of the copy", &shard)?,
            shard_is_primary: gauges("susui_shard_is_primary", "1 where the copy is the primary", &shard)?,
            shard_term: gauges("susui_shard_primary_term", "primary term the copy follows", &shard)?,
            recall_at_10,
            shard_memory_bytes: gauges(
                "susui_shard_memory_bytes",
                "memory of the copy by part; rescoring and its tail are pages of a file",
                &["collection", "shard", "part"],
            )?,
            memory_bytes: gauges("susui_memory_bytes", "memory of the process by part of the ledger", &["part"])?,
            transfer_bytes: counters(
                "susui_transfer_bytes_total",
                "bytes of snapshots sent and received",
                "direction",
            )?,
            transfers: counters("susui_transfer_attempts_total", "snapshots fetched by outcome", "outcome")?,
            transfers_open: gauge("susui_transfer_open_snapshots", "snapshots kept for other nodes")?,
            scrub_bytes,
            scrubs: counters("susui_scrubs_total", "looks through a whole copy by outcome", "outcome")?,
            shard_scrub_age_seconds: gauges(
                "susui_shard_scrub_age_seconds",
                "since all of the copy was last found right",
                &shard,
            )?,
            disk_used_percent: gauge("susui_disk_used_percent", "of the file system of the data directory")?,
            raft_term: gauge("susui_raft_term", "term of the metadata group")?,
            raft_applied: gauge("susui_raft_applied_index", "last metadata log index applied")?,
            raft_is_leader: gauge("susui_raft_is_leader", "1 where this process leads the metadata group")?,
            state_version: gauge("susui_cluster_state_version", "version of the cluster state followed")?,
            registry,
        })
    }

    /// Forgets the shard gauges, so that copies that left this node do not linger in them.
    pub fn reset_shards(&self) {
        for gauge in [
            &self.shard_rows_live,
            &self.shard_rows_indexed,
            &self.shard_rows_tail,
            &self.shard_applied,
            &self.shard_is_primary,
            &self.shard_term,
            &self.shard_memory_bytes,
            &self.shard_scrub_age_seconds,
        ] {
            gauge.reset();
        }
        self.recall_at_10.reset();
    }
}

/// Makes a panic on any thread end the process: a half-dead node that still answers is worse than a dead one.
pub fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        tracing::error!(%panic, "this is a bug; the process ends");
        std::process::exit(EXIT_BUG);
    }));
}

/// Exit code after a panic (EX_SOFTWARE of sysexits.h).
const EXIT_BUG: i32 = 70;
