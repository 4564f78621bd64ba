//! The whole life of a coordinator: everything that is started is started here, and stopped in the reverse order.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::serve::ListenerExt;
use cluster_config::auth_config::AuthConfig;
use cluster_config::coordinator_config::CoordinatorConfig;
use cluster_config::limits;
use futures::FutureExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::aliases::Aliases;
use crate::api;
use crate::cache::RetrievalCache;
use crate::cache::answers::AnswerCache;
use crate::cache::memory::MemoryTier;
use crate::cache::redis::{SharedCache, SharedWorker};
use crate::catalog::{Catalog, CatalogOptions, LEASE};
use crate::clock;
use crate::cluster::client::NodeClient;
use crate::cluster::remote::RemoteNodes;
use crate::cluster::stats::NodeStats;
use crate::cluster::view::ClusterView;
use crate::embed::Embedder;
use crate::embed::cache::{Bounds, CachedEmbedder};
use crate::embed::metrics::EmbedMetrics;
use crate::generate::metrics::PoolMetrics;
use crate::generate::pool::Pool;
use crate::ingest::sandbox::Sandbox;
use crate::ingest::write::Writer;
use crate::ingest::{Ingest, IngestOptions, failpoint, worker};
use crate::retrieve::Retriever;
use crate::services::Services;
use crate::telemetry::Metrics;
use crate::tenants::{TenantOptions, Tenants};

/// A stopping process waits so long for its jobs: the 8 s that a write under way gets, and a moment for the catalog to hear how it ended.
const JOBS_TIMEOUT: Duration = Duration::from_secs(9);
/// And for what is left then: background tasks, and the catalog's end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a starting coordinator keeps its port closed while it knows nothing of the cluster.
const FIRST_STATE_WAIT: Duration = Duration::from_secs(5);

/// Fewest bytes of the operator's key: its hash is not salted, so the key must be beyond guessing.
const OPERATOR_KEY_BYTES_MIN: usize = 32;

/// The parts that differ between a real process and a test.
pub struct Parts {
    /// Calls to nodes.
    pub client: Arc<dyn NodeClient>,
    /// `host:port` of any nodes.
    pub seeds: Vec<String>,
    /// Text to vector.
    pub embedder: Arc<dyn Embedder>,
    /// Language models; may be none.
    pub llm: Pool,
    /// Series; the parts above may have registered theirs.
    pub metrics: Arc<Metrics>,
    /// Where the catalog is.
    pub catalog: CatalogOptions,
    /// How callers are told apart.
    pub tenants: TenantOptions,
    /// `None`: caching is off.
    pub cache: Option<CacheOptions>,
    /// The Redis that coordinators share, where there is one.
    pub shared: Option<(SharedCache, SharedWorker)>,
    /// Deadline of requests that name none.
    pub default_timeout: Duration,
    /// Bound on the age of eventual reads.
    pub max_staleness: Duration,
    /// Where this coordinator stands: copies in the same zone are asked first.
    pub zone: Option<String>,
    /// Ingestion.
    pub ingest: IngestOptions,
    /// Requests under way at the stop signal get this long to end.
    pub drain_timeout: Duration,
}

/// Bounds of the caches of results and answers.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// Bytes of both.
    pub memory_bytes: u64,
    /// Age of an entry.
    pub ttl: Duration,
    /// Names the configuration of the language models, so that answers of another one are not served.
    pub backends: String,
}

/// The parts of the cache's memory that are for answers and for embeddings; the rest is for results, which are larger and more.
const ANSWERS_SHARE: u64 = 4;
const EMBEDDINGS_SHARE: u64 = 4;

/// A coordinator whose background work runs; it serves once [`serve`](Running::serve) is called.
pub struct Running {
    /// What the API works with.
    pub services: Arc<Services>,
    workers: Tasks,
    background: Tasks,
    drain_timeout: Duration,
}

/// Tasks that are told to end together. One that panics is a bug, and what it kept up is kept up no more: the process has to end.
#[derive(Default)]
struct Tasks {
    cancel: CancellationToken,
    panicked: CancellationToken,
    tracker: TaskTracker,
}

impl Tasks {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: impl FnOnce(CancellationToken) -> F) {
        let (task, panicked) = (task(self.cancel.clone()), self.panicked.clone());
        self.tracker.spawn(async move {
            // The panic's own text is on stderr already.
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                tracing::error!("a background task panicked: this is a bug; the process ends");
                panicked.cancel();
            }
        });
    }

    /// Tells them to end and waits until they have.
    async fn end(&self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// A future that ends at SIGTERM or SIGINT. From this call on, within a runtime, neither ends the process by itself.
///
/// Errors if the handlers cannot be installed.
pub fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
            _ = interrupt.recv() => tracing::info!("SIGINT: draining"),
        }
    })
}

/// Configuration > metrics > embedder > LLM pool > nodes > catalog > view > workers > HTTP, until `stop`, then back.
pub async fn run(config: CoordinatorConfig, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    if let Some(points) = &config.test_hooks.failpoints {
        failpoint::set(points)?;
    }
    clock::skew_by(config.test_hooks.clock_skew_ms);
    let metrics = Arc::new(Metrics::new()?);
    let embed_metrics = EmbedMetrics::new();
    embed_metrics.register(metrics.registry())?;
    let shared = open_shared_cache(&config, &metrics);
    let embedder_config = config.embedder.clone();
    tracing::info!(model = embedder_config.name, "loading the embedding model");
    let embedder = tokio::task::spawn_blocking(move || crate::embed::open(&embedder_config, &embed_metrics)).await??;
    let embedder = with_cache(embedder, &config, shared.as_ref().map(|(cache, _)| cache.clone()), &metrics);

    let pool_metrics = PoolMetrics::new();
    pool_metrics.register(metrics.registry())?;
    let llm = Pool::from_config(&config.llm, |name| std::env::var(name).ok(), pool_metrics)?;
    let client = Arc::new(RemoteNodes::new(config.cluster_id.clone(), config.dial_overrides.clone()));
    let parts = Parts {
        client,
        seeds: config.nodes.clone(),
        embedder,
        llm,
        metrics,
        catalog: CatalogOptions {
            url: config.catalog.url.clone(),
            pool_size: config.catalog.pool_size,
            max_overflow: config.catalog.max_overflow,
            pool_timeout: config.catalog.pool_timeout,
            lease: LEASE,
        },
        tenants: tenant_options(&config.auth, |name| std::env::var(name).ok())?,
        cache: config.cache.enabled.then(|| CacheOptions {
            memory_bytes: config.cache.memory.0,
            ttl: config.cache.ttl,
            backends: format!("{:?}", config.llm),
        }),
        shared,
        default_timeout: config.search.default_timeout,
        max_staleness: config.search.max_staleness,
        zone: config.zone.clone(),
        ingest: IngestOptions {
            workers: config.ingest.workers,
            sandbox: Sandbox::new(config.ingest.parse_memory.0, config.ingest.parse_time),
            priorities: config.ingest.tenant_priority.clone(),
        },
        drain_timeout: config.shutdown.drain_timeout,
    };
    let running = Running::start(parts).await?;
    running.wait_for_state().await;
    let listener = TcpListener::bind(config.http_listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.http_listen))?;
    let simd = cluster_config::cpu::simd_level();
    tracing::info!(address = %listener.local_addr()?, simd, "serving HTTP");
    running.serve(listener, stop).await?;
    tracing::info!("stopped");
    Ok(())
}

/// Redis, where one is configured. Without caching it still counts what tenants use.
fn open_shared_cache(config: &CoordinatorConfig, metrics: &Metrics) -> Option<(SharedCache, SharedWorker)> {
    let redis = config.cache.redis.as_ref()?;
    Some(SharedCache::new(redis, &config.cluster_id, config.cache.ttl, metrics.cache.clone()))
}

/// The embedder behind its cache, unless that is switched off.
fn with_cache(
    embedder: Arc<dyn Embedder>,
    config: &CoordinatorConfig,
    shared: Option<SharedCache>,
    metrics: &Metrics,
) -> Arc<dyn Embedder> {
    let (entries, cache) = (config.embedder.cache_entries, &config.cache);
    if entries == 0 || !cache.enabled {
        return embedder;
    }
    let bounds = Bounds { entries, bytes: cache.memory.0 / EMBEDDINGS_SHARE, ttl: cache.ttl };
    Arc::new(CachedEmbedder::new(embedder, bounds, shared, metrics.cache.clone()))
}

/// Reads the operator's key, which stands in no file. Errors: it is too short to be a secret.
fn tenant_options(config: &AuthConfig, read: impl Fn(&str) -> Option<String>) -> anyhow::Result<TenantOptions> {
    let key = read(&config.operator_key_env).filter(|key| !key.is_empty());
    if let Some(key) = &key {
        let is_long = key.len() >= OPERATOR_KEY_BYTES_MIN;
        anyhow::ensure!(is_long, "{} has fewer than {OPERATOR_KEY_BYTES_MIN} bytes", config.operator_key_env);
    }
    Ok(TenantOptions {
        keys_required: config.keys_required,
        operator_key_hash: key.map(|key| crate::tenants::key_hash(&key)),
    })
}

impl Running {
    /// Opens the catalog and starts following the cluster and working on jobs.
    pub async fn start(parts: Parts) -> anyhow::Result<Self> {
        let (jobs, background) = (Tasks::default(), Tasks::default());
        let catalog = Catalog::open(&parts.catalog).await?;
        catalog.register(parts.metrics.registry())?;
        let view = Arc::new(ClusterView::default());
        let stats = Arc::new(NodeStats::default());
        parts.metrics.follow_nodes(Arc::clone(&stats));
        let (shared, shared_worker) = parts.shared.unzip();
        let caches = parts.cache.map(|options| {
            let CacheOptions { memory_bytes, ttl, backends } = options;
            let answers_bytes = memory_bytes / ANSWERS_SHARE;
            let results_bytes = memory_bytes - answers_bytes - memory_bytes / EMBEDDINGS_SHARE;
            let metrics = &parts.metrics.cache;
            let memory = MemoryTier::new(results_bytes, ttl);
            let results = RetrievalCache::new(memory, shared.clone(), metrics.clone());
            let answers = AnswerCache::new(answers_bytes, ttl, backends, shared.clone(), metrics.clone());
            (Arc::new(results), Arc::new(answers))
        });
        let (cache, answers) = caches.unzip();
        if let Some(worker) = shared_worker {
            background.spawn(|cancel| worker.run(cancel));
        }
        let retriever = Arc::new(Retriever::new(
            Arc::clone(&parts.client),
            Arc::clone(&view),
            Arc::clone(&stats),
            cache.clone(),
            Arc::clone(&parts.metrics),
            parts.zone,
        ));
        let writer = Arc::new(Writer::new(
            Arc::clone(&parts.client),
            Arc::clone(&view),
            Arc::clone(&stats),
            cache,
            Arc::clone(&parts.metrics),
        ));
        let workers = parts.ingest.workers;
        let ingest = Arc::new(Ingest::new(
            catalog.clone(),
            Arc::clone(&view),
            Arc::clone(&parts.embedder),
            writer,
            Arc::clone(&retriever),
            parts.ingest,
        ));

        let (followed, client) = (Arc::clone(&view), Arc::clone(&parts.client));
        background.spawn(|cancel| async move { followed.run(client, parts.seeds, cancel).await });
        for _ in 0..workers {
            jobs.spawn(|cancel| worker::run(Arc::clone(&ingest), Arc::clone(&parts.metrics), cancel));
        }
        let tenants = Arc::new(Tenants::new(catalog.clone(), parts.tenants, shared.clone()));
        let counted = Arc::clone(&tenants);
        background.spawn(|cancel| async move { counted.run(cancel).await });
        let aliases = Arc::new(Aliases::open(catalog.clone()).await?);
        let read_anew = Arc::clone(&aliases);
        background.spawn(|cancel| async move { read_anew.run(cancel).await });
        let kept_up = catalog.clone();
        background.spawn(|cancel| async move { kept_up.run_upkeep(cancel).await });
        let watched = parts.llm.clone();
        background.spawn(|cancel| async move { watched.watch(cancel).await });
        let services = Arc::new(Services {
            stats,
            view,
            client: parts.client,
            retriever,
            catalog,
            ingest,
            embedder: parts.embedder,
            llm: parts.llm,
            answers,
            aliases,
            tenants,
            metrics: parts.metrics,
            admission: Arc::new(Semaphore::new(limits::REQUESTS_IN_FLIGHT_MAX)),
            token_counts: Arc::new(Semaphore::new(limits::TOKEN_COUNTS_AT_ONCE_MAX)),
            body_budget: Default::default(),
            default_timeout: parts.default_timeout,
            max_staleness: parts.max_staleness,
            draining: AtomicBool::new(false),
        });
        Ok(Self { services, workers: jobs, background, drain_timeout: parts.drain_timeout })
    }

    /// Waits until the cluster is known, at most [`FIRST_STATE_WAIT`]: a balancer that finds the port open sends requests.
    async fn wait_for_state(&self) {
        let deadline = Instant::now() + FIRST_STATE_WAIT;
        if self.services.view.wait_for(deadline, |state| state.version > 0).await.is_none() {
            tracing::warn!("no node has told the cluster's state yet; /readyz says so until one does");
        }
    }

    /// Serves HTTP until `stop`; then lets requests end, stops background work and closes the catalog. Errors: the server failed, or a
    /// background task panicked, which stops it as well.
    pub async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let router = api::router(Arc::clone(&self.services));
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let accepting = CancellationToken::new();
        let server = {
            let accepting = accepting.clone();
            tokio::spawn(async move {
                // Without it, small writes wait 40 ms for the other side's delayed acknowledgement.
                let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
                axum::serve(listener, service).with_graceful_shutdown(accepting.cancelled_owned()).await
            })
        };
        let abort = server.abort_handle();
        tokio::pin!(server);
        let served = tokio::select! {
            served = &mut server => Some(served),
            () = stop => None,
            () = self.workers.panicked.cancelled() => None,
            () = self.background.panicked.cancelled() => None,
        };
        self.services.draining.store(true, Ordering::Relaxed);
        self.services.ingest.announce();
        accepting.cancel();
        let served = match served {
            Some(served) => served,
            None => match tokio::time::timeout(self.drain_timeout, server).await {
                Ok(served) => served,
                Err(_) => {
                    let requests = limits::REQUESTS_IN_FLIGHT_MAX - self.services.admission.available_permits();
                    tracing::warn!(requests, after = ?self.drain_timeout, "requests and streams did not end in time and are cut");
                    abort.abort();
                    Ok(Ok(()))
                }
            },
        };
        let has_panicked = self.workers.panicked.is_cancelled() || self.background.panicked.is_cancelled();
        self.close().await;
        served.context("the HTTP server panicked")?.context("the HTTP server failed")?;
        anyhow::ensure!(!has_panicked, "a background task panicked");
        Ok(())
    }

    /// Stops what is left. Jobs in hand go back to the queue; one whose write is under way is waited for, and so are edits, both within a
    /// bound and while the cluster is still followed. Then background work ends, and the catalog is closed.
    pub async fn close(self) {
        let jobs = tokio::time::timeout(JOBS_TIMEOUT, self.workers.end());
        let (jobs, ()) = tokio::join!(jobs, self.services.ingest.close());
        if jobs.is_err() {
            tracing::warn!(after = ?JOBS_TIMEOUT, "jobs did not end in time and are left; their claims lapse");
        }
        let rest = async {
            self.background.end().await;
            self.services.catalog.close().await;
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, rest).await.is_err() {
            tracing::warn!(after = ?CLOSE_TIMEOUT, "background work did not end in time and is left");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_heard_of_and_the_others_still_end() {
        let tasks = Tasks::default();
        tasks.spawn(|cancel| async move { cancel.cancelled().await });
        assert!(!tasks.panicked.is_cancelled());
        tasks.spawn(|_| async { panic!("a bug, as this test wants it") });
        tasks.panicked.cancelled().await;
        tasks.end().await;
    }
}
