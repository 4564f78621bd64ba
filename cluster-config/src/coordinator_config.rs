//! The configuration of a coordinator: TOML as written, overridden by the environment, then validated. Every error names its
//! key (or the environment variable it came from) and says what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::auth_config::{AuthConfig, WrittenAuth};
use crate::cache_config::{CacheConfig, WrittenCache};
use crate::config_text as text;
use crate::error::ConfigError;
use crate::ids::NodeId;
use crate::ingest_config::{IngestConfig, WrittenIngest};
use crate::limits;
use crate::llm_config::{LlmConfig, WrittenLlm};
use crate::node_config::TestHooks;
use crate::units::WrittenDuration;

/// A validated coordinator configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct CoordinatorConfig {
    /// Name of the cluster; nodes of another one refuse us.
    pub cluster_id: String,
    /// Where the HTTP API listens. Port 0 takes any free port.
    pub http_listen: SocketAddr,
    /// Some nodes of the cluster, `host:port`; the others are learned from them.
    pub nodes: Vec<String>,
    /// Holds the embedded catalog and the embedding model.
    pub data_dir: PathBuf,
    /// Where to dial a node instead of at its address.
    pub dial_overrides: BTreeMap<NodeId, String>,
    /// Failure domain that this process stands in; reads prefer copies there.
    pub zone: Option<String>,
    /// `[auth]`.
    pub auth: AuthConfig,
    /// `[catalog]`.
    pub catalog: CatalogConfig,
    /// `[embedder]`.
    pub embedder: EmbedderConfig,
    /// `[cache]`.
    pub cache: CacheConfig,
    /// `[llm]` and `[[llm.backends]]`.
    pub llm: LlmConfig,
    /// `[search]`.
    pub search: SearchConfig,
    /// `[ingest]`.
    pub ingest: IngestConfig,
    /// `[shutdown]`.
    pub shutdown: ShutdownConfig,
    /// What tests may switch on.
    pub test_hooks: TestHooks,
}

/// The catalog database and its pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogConfig {
    /// `sqlite:` or `postgres:` URL, `{data_dir}` already put in. May hold a password: not for the log.
    pub url: String,
    /// Connections kept.
    pub pool_size: u32,
    /// Further connections under load, closed when given back.
    pub max_overflow: u32,
    /// How long a caller waits for a connection before a 503.
    pub pool_timeout: Duration,
}

impl CatalogConfig {
    /// Most connections at once.
    pub fn connections_max(&self) -> u32 {
        self.pool_size + self.max_overflow
    }
}

/// The embedding model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbedderConfig {
    /// Name that collections refer to.
    pub name: String,
    /// Directory of the model's files, `{data_dir}` already put in.
    pub model_dir: PathBuf,
    /// Threads that embed; `None`: one per CPU.
    pub threads: Option<usize>,
    /// Most texts embedded together.
    pub batch_max: usize,
    /// Embeddings of query texts kept; 0 switches the cache off.
    pub cache_entries: u64,
}

/// Defaults of retrieval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchConfig {
    /// Deadline of a request that names none.
    pub default_timeout: Duration,
    /// How old an eventual read may be.
    pub max_staleness: Duration,
}

/// What a coordinator that is told to stop waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShutdownConfig {
    /// Requests under way get so long to end; then their connections are cut.
    pub drain_timeout: Duration,
}

/// A coordinator's TOML file as written. Public so that tools can write one that a coordinator will read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "as CoordinatorConfig; examples/coordinator.toml describes every key")]
pub struct WrittenCoordinatorConfig {
    pub cluster_id: Option<String>,
    pub http_listen: Option<String>,
    pub nodes: Vec<String>,
    pub data_dir: Option<PathBuf>,
    pub zone: Option<String>,
    pub test_hooks: Option<bool>,
    pub dial_overrides: BTreeMap<String, String>,
    pub auth: WrittenAuth,
    pub catalog: WrittenCatalog,
    pub embedder: WrittenEmbedder,
    pub cache: WrittenCache,
    pub llm: WrittenLlm,
    pub search: WrittenSearch,
    pub ingest: WrittenIngest,
    pub shutdown: WrittenShutdown,
}

/// `[catalog]` as written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "as CatalogConfig")]
pub struct WrittenCatalog {
    pub url: Option<String>,
    pub pool_size: Option<u32>,
    pub max_overflow: Option<u32>,
    pub pool_timeout: Option<WrittenDuration>,
}

/// `[embedder]` as written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "as EmbedderConfig")]
pub struct WrittenEmbedder {
    pub name: Option<String>,
    pub model_dir: Option<String>,
    pub threads: Option<usize>,
    pub batch_max: Option<usize>,
    pub cache_entries: Option<u64>,
}

/// `[search]` of a coordinator as written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "as SearchConfig")]
pub struct WrittenSearch {
    pub default_timeout: Option<WrittenDuration>,
    pub max_staleness: Option<WrittenDuration>,
}

/// `[shutdown]` of a coordinator as written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "as ShutdownConfig")]
pub struct WrittenShutdown {
    pub drain_timeout: Option<WrittenDuration>,
}

impl CoordinatorConfig {
    /// Reads a coordinator's TOML, lets the environment override it, and validates the whole.
    pub fn from_toml<I>(toml_text: &str, environment: I) -> Result<Self, ConfigError>
    where
        I: IntoIterator<Item = (String, String)>,
    {
        let mut written: WrittenCoordinatorConfig =
            text::parse_toml(toml_text, "cluster-config/examples/coordinator.toml")?;
        let environment: Vec<(String, String)> = environment.into_iter().collect();
        let test_hooks = TestHooks::from_environment(written.test_hooks.unwrap_or(false), environment.clone())?;
        written.apply_environment(environment)?;
        Ok(Self { test_hooks, ..written.validate()? })
    }
}

impl WrittenCoordinatorConfig {
    /// As TOML.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        text::write_toml(self)
    }

    /// Overrides keys by the environment variables people know from the predecessor. An empty variable counts as unset.
    pub fn apply_environment<I>(&mut self, environment: I) -> Result<(), ConfigError>
    where
        I: IntoIterator<Item = (String, String)>,
    {
        for (name, value) in environment {
            let value = value.trim();
            if value.is_empty() {
                continue;
            }
            match name.as_str() {
                "REDIS_URL" => self.cache.redis_url = Some(value.to_owned()),
                "ENABLE_CACHING" => self.cache.enabled = Some(read_bool(&name, value)?),
                "CACHE_TTL_SECONDS" => self.cache.ttl = Some(read_seconds(&name, value)?),
                "DATABASE_URL" => self.catalog.url = Some(value.to_owned()),
                "DATABASE_POOL_SIZE" => self.catalog.pool_size = Some(read_number(&name, value)?),
                "DATABASE_MAX_OVERFLOW" => self.catalog.max_overflow = Some(read_number(&name, value)?),
                "DATABASE_POOL_TIMEOUT" => self.catalog.pool_timeout = Some(read_seconds(&name, value)?),
                _ => self.llm.apply_variable(&name, value)?,
            }
        }
        Ok(())
    }

    /// Fills in the defaults and checks every key.
    pub fn validate(self) -> Result<CoordinatorConfig, ConfigError> {
        let data_dir = text::required_path(
            "data_dir",
            self.data_dir,
            "give the directory for the embedded catalog and the embedding model",
        )?;
        let http_listen = self.http_listen.unwrap_or_else(|| "127.0.0.1:8000".to_owned());
        if let Some(zone) = &self.zone {
            text::check_word("zone", zone)?;
        }
        Ok(CoordinatorConfig {
            zone: self.zone,
            cluster_id: text::cluster_id(self.cluster_id)?,
            http_listen: text::listen_address("http_listen", &http_listen)?,
            nodes: validate_nodes(self.nodes)?,
            dial_overrides: text::dial_overrides(self.dial_overrides)?,
            auth: self.auth.validate()?,
            catalog: self.catalog.validate(&data_dir)?,
            embedder: self.embedder.validate(&data_dir)?,
            cache: self.cache.validate()?,
            llm: self.llm.validate()?,
            search: self.search.validate()?,
            ingest: self.ingest.validate()?,
            shutdown: self.shutdown.validate()?,
            test_hooks: TestHooks { allowed: self.test_hooks.unwrap_or(false), ..TestHooks::default() },
            data_dir,
        })
    }
}

fn validate_nodes(written: Vec<String>) -> Result<Vec<String>, ConfigError> {
    if written.is_empty() {
        return Err(ConfigError::new("nodes", "missing", "list host:port of at least one node, best of three"));
    }
    let mut seen = BTreeSet::new();
    for (position, address) in written.iter().enumerate() {
        let key = format!("nodes[{position}]");
        text::dial_address(&key, address)?;
        if !seen.insert(address) {
            return Err(ConfigError::new(key, format!("{address} is listed twice"), "list each node once"));
        }
    }
    Ok(written)
}

impl WrittenCatalog {
    fn validate(self, data_dir: &Path) -> Result<CatalogConfig, ConfigError> {
        let url = self.url.unwrap_or_else(|| "sqlite://{data_dir}/catalog.db".to_owned());
        if !["sqlite:", "postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(ConfigError::new(
                "catalog.url",
                "not a database this build speaks",
                "use sqlite://PATH ({data_dir} stands for the data directory) or postgres://USER:PASSWORD@HOST/DATABASE, without a +driver",
            ));
        }
        let pool_size = self.pool_size.unwrap_or(20);
        let max_overflow = self.max_overflow.unwrap_or(40);
        text::in_range("catalog.pool_size", pool_size, 1, limits::POOL_CONNECTIONS_MAX)?;
        text::in_range("catalog.max_overflow", max_overflow, 0, limits::POOL_CONNECTIONS_MAX - pool_size)?;
        let pool_timeout = self.pool_timeout.unwrap_or(WrittenDuration(Duration::from_secs(30)));
        Ok(CatalogConfig {
            url: put_in_data_dir(&url, data_dir),
            pool_size,
            max_overflow,
            pool_timeout: text::duration_in(
                "catalog.pool_timeout",
                pool_timeout,
                limits::INTERVAL_MIN,
                limits::INTERVAL_MAX,
            )?,
        })
    }
}

impl WrittenEmbedder {
    fn validate(self, data_dir: &Path) -> Result<EmbedderConfig, ConfigError> {
        let name = self.name.unwrap_or_else(|| "all-MiniLM-L6-v2".to_owned());
        text::check_word("embedder.name", &name)?;
        let model_dir = self.model_dir.unwrap_or_else(|| format!("{{data_dir}}/models/{name}"));
        if model_dir.is_empty() {
            return Err(ConfigError::new("embedder.model_dir", "empty", "give the directory of the model's files"));
        }
        let threads =
            self.threads.map(|count| text::in_range("embedder.threads", count, 1, limits::THREADS_MAX)).transpose()?;
        let cache_entries = self.cache_entries.unwrap_or(10_000);
        Ok(EmbedderConfig {
            name,
            model_dir: put_in_data_dir(&model_dir, data_dir).into(),
            threads,
            batch_max: text::in_range("embedder.batch_max", self.batch_max.unwrap_or(32), 1, limits::EMBED_BATCH_MAX)?,
            cache_entries: text::in_range("embedder.cache_entries", cache_entries, 0, limits::EMBED_CACHE_ENTRIES_MAX)?,
        })
    }
}

impl WrittenSearch {
    fn validate(self) -> Result<SearchConfig, ConfigError> {
        let default_timeout =
            self.default_timeout.unwrap_or(WrittenDuration(Duration::from_millis(limits::TIMEOUT_MS_DEFAULT)));
        let max_staleness = self.max_staleness.unwrap_or(WrittenDuration(Duration::from_secs(10)));
        let timeout_max = Duration::from_millis(limits::TIMEOUT_MS_MAX);
        Ok(SearchConfig {
            default_timeout: text::duration_in(
                "search.default_timeout",
                default_timeout,
                limits::INTERVAL_MIN,
                timeout_max,
            )?,
            max_staleness: text::duration_in(
                "search.max_staleness",
                max_staleness,
                limits::STALENESS_KNOWN,
                limits::INTERVAL_MAX,
            )?,
        })
    }
}

impl WrittenShutdown {
    fn validate(self) -> Result<ShutdownConfig, ConfigError> {
        // With what follows it stays below the 30 s that Kubernetes gives a process.
        let drain_timeout = self.drain_timeout.unwrap_or(WrittenDuration(Duration::from_secs(15)));
        let (min, max) = (limits::INTERVAL_MIN, limits::INTERVAL_MAX);
        Ok(ShutdownConfig { drain_timeout: text::duration_in("shutdown.drain_timeout", drain_timeout, min, max)? })
    }
}

fn put_in_data_dir(pattern: &str, data_dir: &Path) -> String {
    pattern.replace("{data_dir}", &data_dir.to_string_lossy())
}

pub(crate) fn read_bool(name: &str, value: &str) -> Result<bool, ConfigError> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(ConfigError::new(name, format!("{value:?} is neither true nor false"), "use true or false")),
    }
}

/// The predecessor's variables are whole seconds; a written unit is taken too.
fn read_seconds(name: &str, value: &str) -> Result<WrittenDuration, ConfigError> {
    if let Ok(seconds) = value.parse() {
        return Ok(WrittenDuration(Duration::from_secs(seconds)));
    }
    value.parse().map_err(|_| {
        ConfigError::new(name, format!("{value:?} is not a number of seconds"), "use a number, such as 30")
    })
}

pub(crate) fn read_number<N: std::str::FromStr>(name: &str, value: &str) -> Result<N, ConfigError> {
    value
        .parse()
        .map_err(|_| ConfigError::new(name, format!("{value:?} is not such a number"), "use a number, or unset it"))
}
