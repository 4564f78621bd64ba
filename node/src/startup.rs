//! The whole life of a node in one function: what is started is undone in reverse.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cluster_config::limits::{SCRUB_BYTES_PER_SECOND, TRANSFER_BYTES_PER_SECOND};
use cluster_config::node_config::{FAILPOINTS_VARIABLE, NodeConfig};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, Reporter};
use crate::copies::{Copies, CopiesContext, Followed, Transfers, copies_on_disk};
use crate::disk::DiskWatch;
use crate::handoff;
use crate::health::{NodeHealth, Reporting};
use crate::http;
use crate::memory::MemoryLedger;
use crate::metadata::Metadata;
use crate::metadata::raft_service::RaftEndpoint;
use crate::metadata::service::MetadataEndpoint;
use crate::pace::Pace;
use crate::pool::Pool;
use crate::replication::{Retention, StoragePool, Timing, break_rule};
use crate::rpc::admin_service::AdminEndpoint;
use crate::rpc::client::Peers;
use crate::rpc::replication_service::{GrpcTransport, ReplicationServer};
use crate::rpc::search_service::SearchServer;
use crate::rpc::server::{self, Services};
use crate::rpc::transfer_service::{GrpcSnapshotSource, TransferServer};
use crate::scrubbing::Scrubbing;
use crate::shard::StorageResources;
use crate::telemetry::Metrics;
use crate::transfer::Snapshots;
use crate::vector;

/// Jobs waiting for the training thread: shards that want training at once.
const TRAINING_QUEUE_MAX: usize = 64;
/// Longest call of one append. The copy's task gives up earlier, by the size of what it sent; this only ends what it forgot.
const APPEND_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a node that stops waits for others to take its primary roles, and for the metadata group to let it go; what is left then
/// fails over.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);
/// Applying jobs at a time; one that extends an index may take a second.
const APPLY_JOBS: usize = 2;

/// Niceness of the threads that train: what else wants the CPU gets nine tenths of it.
const TRAINING_NICENESS: i32 = 10;

/// Searches and writes go before training on a machine that is busy. On Linux niceness belongs to the thread.
fn init_training_thread() {
    vector::init_thread();
    if let Err(error) = rustix::process::nice(TRAINING_NICENESS) {
        tracing::warn!(%error, "training runs at the same priority as searches");
    }
}

/// Runs a node until SIGTERM or Ctrl-C. Errors: whatever keeps it from starting.
pub async fn run(config: NodeConfig) -> anyhow::Result<()> {
    if let Some(points) = &config.test_hooks.failpoints {
        set_failpoints(points)?;
    }
    let mut signals = Signals::listen()?;
    run_until(config, async move { signals.received().await }).await
}

/// Runs a node until `stopping` resolves. Errors: whatever keeps it from starting.
pub async fn run_until(config: NodeConfig, stopping: impl Future<Output = ()>) -> anyhow::Result<()> {
    let mut stopping = std::pin::pin!(stopping);
    let stop = CancellationToken::new();
    let metrics = Arc::new(Metrics::new()?);
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("data_dir: cannot create {}", config.data_dir.display()))?;
    let peers = Peers::new(&config.cluster_id, config.node_id, config.dial_overrides.clone(), config.voters.clone());
    let listener = TcpListener::bind(config.rpc_listen)
        .await
        .with_context(|| format!("rpc_listen: cannot listen on {}", config.rpc_listen))?;

    let search_threads = config.search.threads.unwrap_or_else(cpus);
    let search_pool = Pool::start("search", search_threads, config.search.queue_max, vector::init_thread)?;
    let training_threads = config.search.training_threads;
    let training_pool = Pool::start("training", training_threads, TRAINING_QUEUE_MAX, init_training_thread)?;
    let metadata = Metadata::open(&config, peers.clone()).await.context("metadata group")?;
    let disk = DiskWatch::new(config.data_dir.clone(), config.storage.full_percent, metrics.disk_used_percent.clone());
    let disk_task = tokio::spawn(disk.clone().run(stop.child_token()));
    let snapshots = Arc::new(Snapshots::new(config.data_dir.join("snapshots")));
    let context = copies_context(&config, &peers, &training_pool, &snapshots, &metrics)?;
    let resources = Arc::clone(&context.resources);
    let copies = Copies::new(context);
    copies.sweep_transfers().context("data_dir: cannot delete what was left of snapshots")?;

    let ledger = Arc::new(MemoryLedger::begin(config.storage.memory_budget));
    let health = Arc::new(NodeHealth::new(
        copies.clone(),
        metadata.clone(),
        BTreeMap::from([("search", search_pool.clone()), ("training", training_pool.clone())]),
        resources.clone(),
        ledger.clone(),
    ));
    let (http_port, http_server) = http::serve(config.http_listen, health.clone(), metrics.clone(), stop.child_token())
        .await
        .with_context(|| format!("http_listen: cannot listen on {}", config.http_listen))?;
    let services = Services {
        raft: metadata.is_voter().then(|| RaftEndpoint::new(metadata.clone())),
        metadata: MetadataEndpoint::new(metadata.clone()),
        admin: AdminEndpoint::new(metadata.clone()),
        replication: ReplicationServer {
            peers: peers.clone(),
            copies: copies.clone(),
            pool: search_pool.clone(),
            disk: disk.clone(),
            metrics: metrics.clone(),
        },
        search: SearchServer {
            peers: peers.clone(),
            copies: copies.clone(),
            pool: search_pool.clone(),
            metrics: metrics.clone(),
        },
        transfer: TransferServer {
            peers: peers.clone(),
            copies: copies.clone(),
            snapshots,
            pace: Arc::new(Pace::new(TRANSFER_BYTES_PER_SECOND)),
            metrics: metrics.clone(),
        },
    };
    let rpc_stop = CancellationToken::new();
    let rpc_server = tokio::spawn(server::serve(listener, services, rpc_stop.clone()));
    let simd = cluster_config::cpu::simd_level();
    tracing::info!(node = %config.node_id, rpc = %config.rpc_listen, http = http_port, simd, "node started");

    let on_disk = config.data_dir.join("copies");
    let list = Arc::new(move || copies_on_disk(&on_disk));
    let registration = Agent::register(metadata.clone(), &config, config.http_advertise(http_port), list);
    let agent = tokio::select! {
        agent = registration => Some(agent),
        () = &mut stopping => None,
    };
    if let Some(agent) = &agent {
        health.registered();
        let nudge = agent.clone();
        let reporting = Reporting::new(copies.clone(), peers.clone(), resources, ledger, config.timing.node_timeout);
        let followed = Followed {
            state: agent.state(),
            incarnation: agent.incarnation(),
            register: Arc::new(agent.clone()),
            opened: Arc::new(move || nudge.heartbeat_now()),
        };
        let copies_stop = CancellationToken::new();
        let copies_task = tokio::spawn(copies.clone().run(followed, copies_stop.clone()));
        let handing_off = handoff::run(copies.clone(), agent.state(), config.node_id, copies_stop.child_token());
        let handoff_task = tokio::spawn(handing_off);
        let reporter: Reporter = Arc::new(move || reporting.report());
        agent.start_heartbeats(reporter.clone());

        stopping.await;
        tracing::info!("stopping");
        let state = agent.state().borrow().clone();
        handoff::leave(&copies, &state, config.node_id, LEAVE_PATIENCE).await;
        agent.leave(&reporter, LEAVE_PATIENCE).await;
        copies_stop.cancel();
        handoff_task.await.context("handing roles off")?;
        copies_task.await.context("closing the copies")?;
        agent.close().await;
    }
    metadata.hand_lead_over().await;
    metadata.close().await;
    rpc_stop.cancel();
    rpc_server.await?.context("gRPC server")?;
    stop.cancel();
    disk_task.await?;
    http_server.await?.context("HTTP server")?;
    tokio::task::spawn_blocking(move || {
        search_pool.close();
        training_pool.close();
    })
    .await?;
    tracing::info!("stopped");
    Ok(())
}

fn copies_context(
    config: &NodeConfig,
    peers: &Peers,
    training_pool: &Pool,
    snapshots: &Arc<Snapshots>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<CopiesContext> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let timing = Timing { ack_timeout_ms: millis(config.timing.ack_timeout), ..Timing::default() };
    let retention = Retention {
        bytes_min: config.storage.log_kept_min.0,
        bytes_max: config.storage.log_kept_max.0,
        age_max_ms: millis(config.storage.log_kept_for),
    };
    let resources =
        StorageResources::new(config.storage.block_cache.as_usize(), config.storage.write_buffer.as_usize())
            .with_training_memory(config.search.training_memory);
    Ok(CopiesContext {
        node: config.node_id,
        dir: config.data_dir.join("copies"),
        cluster_id: config.cluster_id.clone(),
        resources: Arc::new(resources),
        storage_pool: StoragePool::new(config.storage.storage_threads, APPLY_JOBS, vector::init_thread),
        training_pool: training_pool.clone(),
        transport: Arc::new(GrpcTransport::new(peers.clone(), APPEND_TIMEOUT)),
        timing,
        retention,
        transfers: Transfers {
            incoming_dir: config.data_dir.join("incoming"),
            source: Arc::new(GrpcSnapshotSource::new(peers.clone())),
            snapshots: Arc::clone(snapshots),
        },
        scrubbing: Arc::new(Scrubbing {
            interval: config.storage.scrub_interval,
            pace: Pace::new(SCRUB_BYTES_PER_SECOND),
            dir: config.data_dir.join("scrub"),
            metrics: Arc::clone(metrics),
            turn: tokio::sync::Mutex::new(()),
        }),
        metrics: Arc::clone(metrics),
        check: config.test_hooks.check_invariants,
    })
}

/// `name=actions`, separated by semicolons. Errors: a part that the `fail` crate cannot read.
fn set_failpoints(points: &str) -> anyhow::Result<()> {
    for point in points.split(';').filter(|point| !point.trim().is_empty()) {
        let (name, actions) =
            point.split_once('=').with_context(|| format!("{FAILPOINTS_VARIABLE}: no = in {point}"))?;
        fail::cfg(name.trim(), actions)
            .map_err(|problem| anyhow::anyhow!("{FAILPOINTS_VARIABLE}: {point}: {problem}"))?;
    }
    tracing::warn!(points, "failpoints are set");
    if let Some(rule) = rule_to_break() {
        break_rule(&rule).map_err(|problem| anyhow::anyhow!("{FAILPOINTS_VARIABLE}: {problem}"))?;
    }
    Ok(())
}

/// Not a place to fail at, but a rule of replication to break: `break-a-rule=return(ApplyUncommitted)`.
fn rule_to_break() -> Option<String> {
    fail::fail_point!("break-a-rule", |rule| rule);
    None
}

/// Threads of the reactor: half of the cores. What computes or waits for a disk runs on pools of its own; idle reactor threads only wake
/// each other.
pub fn reactor_threads() -> usize {
    (cpus() / 2).max(1)
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// SIGTERM and Ctrl-C.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
