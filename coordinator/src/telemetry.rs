//! Logs to stderr and metrics for Prometheus.
//!
//! Metric names of the mission are exact: `query_duration_seconds`, `cache_hit_rate`. Labels have bounded values: routes as written in
//! the router, never paths; outcomes, stages and tiers, never tenants or documents.

use std::io::IsTerminal;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cache::metrics::CacheMetrics;
use crate::catalog::PoolCounts;
use crate::cluster::stats::NodeStats;
use crate::retrieve::ShardCounts;

/// From one millisecond (a cached search) to two minutes (the longest request).
const DURATION_BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 10.0, 30.0, 120.0];

/// Logs to stderr, as text or JSON lines; `RUST_LOG` selects. Errors if called twice.
pub fn init_logs(json: bool) -> Result<(), tracing_subscriber::util::TryInitError> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    if json {
        registry.with(tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr)).try_init()
    } else {
        let ansi = std::io::stderr().is_terminal();
        registry.with(tracing_subscriber::fmt::layer().with_ansi(ansi).with_writer(std::io::stderr)).try_init()
    }
}

/// All series of this process. One per process life; tests make their own.
pub struct Metrics {
    registry: Registry,
    /// Time of a whole query, by route and outcome.
    pub query_duration: HistogramVec,
    /// Time of a stage of a query.
    pub stage_duration: HistogramVec,
    /// Requests by route and status class.
    pub requests: IntCounterVec,
    /// Requests being answered.
    pub requests_in_flight: IntGauge,
    /// All caches.
    pub cache: CacheMetrics,
    /// The board counts and ranks by itself.
    node_stats: OnceLock<Arc<NodeStats>>,
    node_rank: GaugeVec,
    node_ejected: IntGaugeVec,
    node_ejections: IntCounter,
    shard_requests: IntCounter,
    hedges: IntCounterVec,
    shard_answers: IntCounterVec,
    shard_coverage: Gauge,
    /// Repeated calls to nodes, by what was repeated.
    pub retries: IntCounterVec,
    /// Vectors acknowledged.
    pub points_written: IntCounter,
    /// Jobs by how they ended.
    pub jobs: IntCounterVec,
    /// Jobs by state.
    pub job_states: IntGaugeVec,
    catalog_connections: IntGaugeVec,
    catalog_pool_timeouts: IntCounter,
    catalog_upkeep: IntGaugeVec,
    /// Version of the cluster state.
    pub state_version: IntGauge,
    /// Nodes by liveness.
    pub nodes: IntGaugeVec,
    /// Shards by whether they have a primary.
    pub shards: IntGaugeVec,
}

impl Metrics {
    /// Registers everything. Errors only by a name used twice.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let histogram = |name: &str, help: &str, labels: &[&str]| {
            let options = HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec());
            let histogram = HistogramVec::new(options, labels)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let cache = CacheMetrics::new();
        cache.register(&registry)?;
        let shard_coverage = Gauge::new("shard_coverage", "share of shards that answered the last search, 0 to 1")?;
        registry.register(Box::new(shard_coverage.clone()))?;
        let node_rank = GaugeVec::new(
            Opts::new(
                "node_rank_us",
                "C3 rank of each node as this coordinator sees it, microseconds; smaller is asked first",
            ),
            &["node"],
        )?;
        registry.register(Box::new(node_rank.clone()))?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let metrics = Self {
            query_duration: histogram(
                "query_duration_seconds",
                "time of a whole search or query",
                &["route", "outcome"],
            )?,
            stage_duration: histogram(
                "query_stage_duration_seconds",
                "time of one stage of a search or query",
                &["stage"],
            )?,
            requests: counters("http_requests_total", "requests answered", &["route", "method", "status"])?,
            requests_in_flight: gauge("http_requests_in_flight", "requests being answered")?,
            cache,
            node_stats: OnceLock::new(),
            node_rank,
            node_ejected: gauges("node_ejected", "1 while the node is asked last after failures", &["node"])?,
            node_ejections: counter("node_ejections_total", "times that a node was ejected after failures")?,
            shard_requests: counter("shard_requests_total", "shards asked of nodes, hedges and retries included")?,
            hedges: counters("hedges_total", "second requests to slow shards, by what became of them", &["outcome"])?,
            shard_answers: counters("shard_answers_total", "shards asked by searches, by outcome", &["outcome"])?,
            shard_coverage,
            retries: counters("node_call_retries_total", "repeated calls to nodes", &["call"])?,
            points_written: counter("points_written_total", "vectors acknowledged by the shards")?,
            jobs: counters("ingest_jobs_total", "ingestion jobs by how their run ended", &["outcome"])?,
            job_states: gauges("ingest_jobs", "ingestion jobs by state", &["state"])?,
            catalog_connections: gauges("catalog_pool_connections", "connections of the catalog's pool", &["state"])?,
            catalog_upkeep: gauges(
                "catalog_upkeep_last_run_timestamp_seconds",
                "when each regular task on the catalog was done last, by any coordinator; 0 is never",
                &["task"],
            )?,
            catalog_pool_timeouts: counter(
                "catalog_pool_timeouts_total",
                "waits for a connection while all were in use, or for the turn to write, that ended with a 503",
            )?,
            state_version: gauge("cluster_state_version", "version of the cluster state that is followed")?,
            nodes: gauges("cluster_nodes", "nodes by liveness", &["liveness"])?,
            shards: gauges("cluster_shards", "shards by whether they can be written", &["state"])?,
            registry,
        };
        // Present from the first scrape on, so that a rate has a beginning.
        for outcome in ["ok", "failed", "timed_out"] {
            metrics.shard_answers.with_label_values(&[outcome]);
        }
        for call in ["search", "search_lap", "write"] {
            metrics.retries.with_label_values(&[call]);
        }
        metrics.query_duration.with_label_values(&["/api/v1/search", "ok"]);
        Ok(metrics)
    }

    /// Where parts register series of their own.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Lets the series about nodes follow the board.
    pub fn follow_nodes(&self, stats: Arc<NodeStats>) {
        let _ = self.node_stats.set(stats);
    }

    /// Shows the catalog's pool: connections that are open, idle and in use, and the most there may be.
    pub fn show_catalog_pool(&self, counts: PoolCounts) {
        let in_use = counts.open.saturating_sub(counts.idle);
        for (state, count) in [("open", counts.open), ("idle", counts.idle), ("in_use", in_use), ("max", counts.max)] {
            self.catalog_connections.with_label_values(&[state]).set(i64::from(count));
        }
        self.catalog_pool_timeouts.inc_by(counts.timeouts.saturating_sub(self.catalog_pool_timeouts.get()));
    }

    /// Shows when each regular task on the catalog was done, Unix milliseconds.
    pub fn show_catalog_upkeep(&self, runs: &[(String, i64)]) {
        for (task, ran_ms) in runs {
            self.catalog_upkeep.with_label_values(&[task]).set(ran_ms / 1000);
        }
    }

    /// Copies the board's counts. Ranks are set anew, so that nodes that left the cluster leave the series.
    fn update_nodes(&self, stats: &NodeStats) {
        let (counters, ranks) = {
            let board = stats.lock();
            (board.counters(), board.ranks(Instant::now()))
        };
        let catch_up = |counter: &IntCounter, to: u64| counter.inc_by(to.saturating_sub(counter.get()));
        catch_up(&self.shard_requests, counters.requests);
        catch_up(&self.node_ejections, counters.ejections);
        catch_up(&self.hedges.with_label_values(&["sent"]), counters.hedges_sent);
        catch_up(&self.hedges.with_label_values(&["won"]), counters.hedges_won);
        catch_up(&self.hedges.with_label_values(&["refused"]), counters.hedges_refused);
        self.node_rank.reset();
        self.node_ejected.reset();
        for (node, (rank, is_ejected)) in ranks {
            let node = node.to_string();
            self.node_rank.with_label_values(&[&node]).set(rank);
            self.node_ejected.with_label_values(&[&node]).set(i64::from(is_ejected));
        }
    }

    /// Counts the shards of one scatter.
    pub fn shards_answered(&self, counts: &ShardCounts, retries: u64, laps: u64) {
        self.shard_answers.with_label_values(&["ok"]).inc_by(u64::from(counts.ok));
        self.shard_answers.with_label_values(&["failed"]).inc_by(u64::from(counts.failed));
        self.shard_answers.with_label_values(&["timed_out"]).inc_by(u64::from(counts.timed_out));
        self.shard_coverage.set(counts.coverage());
        self.retries.with_label_values(&["search"]).inc_by(retries);
        self.retries.with_label_values(&["search_lap"]).inc_by(laps);
    }

    /// Notes the time of one stage.
    pub fn stage(&self, stage: &'static str, took: Duration) {
        self.stage_duration.with_label_values(&[stage]).observe(took.as_secs_f64());
    }

    /// Everything in Prometheus' text format, process series included.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        if let Some(stats) = self.node_stats.get() {
            self.update_nodes(stats);
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::metrics::{Kind, Tier};

    #[test]
    fn the_mission_s_names_are_there_and_the_rate_moves() {
        let metrics = Metrics::new().expect("registers");
        metrics.cache.looked_up(Tier::Memory, Kind::Retrieval, 1, 1);
        let text = metrics.render().expect("renders");
        assert!(text.contains("cache_hit_rate{kind=\"retrieval\",tier=\"memory\"} 0.5"), "{text}");
        assert!(text.contains("# TYPE query_duration_seconds histogram"), "{text}");
    }
}
