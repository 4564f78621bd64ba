//! The configuration of a node: TOML as written, then validated. Every error names its key and says what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config_text as text;
use crate::error::ConfigError;
use crate::ids::NodeId;
use crate::limits;
use crate::units::{self, ByteSize, WrittenDuration};

/// What a node does; most do both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Votes in the metadata group.
    Metadata,
    /// Holds shard copies.
    Data,
}

/// A validated node configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeConfig {
    /// Name of the cluster; messages of another one are refused.
    pub cluster_id: String,
    /// This node's id, from 1.
    pub node_id: NodeId,
    /// What the node does; never empty.
    pub roles: BTreeSet<Role>,
    /// Everything durable lies below it.
    pub data_dir: PathBuf,
    /// Where the gRPC services listen.
    pub rpc_listen: SocketAddr,
    /// `host:port` at which others reach the gRPC services.
    pub rpc_advertise: String,
    /// Where health and metrics listen. Port 0 takes any free port.
    pub http_listen: SocketAddr,
    /// Failure domain.
    pub zone: String,
    /// Share of the data relative to other nodes; 100 is one share.
    pub weight: u32,
    /// Checks and failpoints of the normal binary, where allowed.
    pub test_hooks: TestHooks,
    /// `host:port` of every voter of the metadata group; all nodes list the same.
    pub voters: BTreeMap<NodeId, String>,
    /// `[storage]`.
    pub storage: StorageConfig,
    /// `[search]`.
    pub search: NodeSearchConfig,
    /// `[timing]`.
    pub timing: TimingConfig,
    /// Where to dial a node instead of at its address.
    pub dial_overrides: BTreeMap<NodeId, String>,
}

/// Memory and threads of the stores of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageConfig {
    /// Block cache shared by all copies.
    pub block_cache: ByteSize,
    /// Memtables of all copies together.
    pub write_buffer: ByteSize,
    /// Threads that write and read logs and stores.
    pub storage_threads: usize,
    /// Newest entries of each shard's log that stay although nobody needs them.
    pub log_kept_min: ByteSize,
    /// A shard's log beyond this does not wait for copies that are not in sync.
    pub log_kept_max: ByteSize,
    /// Entries older than this do not wait for copies that are not in sync.
    pub log_kept_for: Duration,
    /// Between two looks through all of a copy for rotten bytes.
    pub scrub_interval: Duration,
    /// Share of the file system that may be in use before client writes are refused, percent.
    pub full_percent: u8,
    /// Anonymous memory of the process at which it takes no new copies; `None`: a share of the machine's.
    pub memory_budget: Option<ByteSize>,
}

/// The search pool of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSearchConfig {
    /// Threads that search; `None`: one per CPU.
    pub threads: Option<usize>,
    /// Searches waiting for a thread before `Overloaded`.
    pub queue_max: usize,
    /// Threads that train generations and measure recall, one shard each. They yield to searches.
    pub training_threads: usize,
    /// Memory that each of them may take for the sample it trains on.
    pub training_memory: ByteSize,
}

/// Clocks of liveness and replication. They decide how soon something is done, never whether it is safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimingConfig {
    /// Between two heartbeats of a node to the voters.
    pub heartbeat: Duration,
    /// Silence after which the metadata leader takes a node for dead.
    pub node_timeout: Duration,
    /// How long a primary waits for a copy before it asks for its removal (W9).
    pub ack_timeout: Duration,
    /// Between two heartbeats of the metadata leader.
    pub raft_heartbeat: Duration,
    /// Shortest silence after which a voter stands for election.
    pub election_min: Duration,
    /// Longest such silence; each voter draws between the two.
    pub election_max: Duration,
}

/// What tests may switch on in the normal binary, once `test_hooks = true` allows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TestHooks {
    /// Whether the configuration allows them.
    pub allowed: bool,
    /// Run the invariants' `check()` after each step (`SUSUI_CHECK=1`).
    pub check_invariants: bool,
    /// Failpoints to set, in the syntax of the `fail` crate (`SUSUI_FAILPOINTS`).
    pub failpoints: Option<String>,
    /// How far a coordinator's wall clock is ahead; below zero, behind (`SUSUI_CLOCK_SKEW_MS`). A node compares no wall clocks.
    pub clock_skew_ms: i64,
}

/// A node's TOML file as written. Public so that tools can write one that a node will read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are described where they are validated, and in examples/node.toml")]
pub struct WrittenNodeConfig {
    pub cluster_id: Option<String>,
    pub node_id: Option<u64>,
    pub roles: Option<Vec<Role>>,
    pub data_dir: Option<PathBuf>,
    pub rpc_listen: Option<String>,
    pub rpc_advertise: Option<String>,
    pub http_listen: Option<String>,
    pub zone: Option<String>,
    pub weight: Option<u32>,
    pub test_hooks: Option<bool>,
    pub metadata: WrittenMetadata,
    pub storage: WrittenStorage,
    pub search: WrittenNodeSearch,
    pub timing: WrittenTiming,
    pub dial_overrides: BTreeMap<String, String>,
}

/// `[metadata]` as written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WrittenMetadata {
    /// The voters of the metadata group.
    pub voters: Vec<WrittenVoter>,
}

/// One voter as written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenVoter {
    /// Its node id.
    pub node_id: u64,
    /// `host:port` of its gRPC services.
    pub address: String,
}

/// `[storage]` as written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "as StorageConfig")]
pub struct WrittenStorage {
    pub block_cache: Option<ByteSize>,
    pub write_buffer: Option<ByteSize>,
    pub storage_threads: Option<usize>,
    pub log_kept_min: Option<ByteSize>,
    pub log_kept_max: Option<ByteSize>,
    pub log_kept_for: Option<WrittenDuration>,
    pub scrub_interval: Option<WrittenDuration>,
    pub full_percent: Option<u8>,
    pub memory_budget: Option<ByteSize>,
}

/// `[search]` of a node as written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "as NodeSearchConfig")]
pub struct WrittenNodeSearch {
    pub threads: Option<usize>,
    pub queue_max: Option<usize>,
    pub training_threads: Option<usize>,
    pub training_memory: Option<ByteSize>,
}

/// `[timing]` as written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "as TimingConfig")]
pub struct WrittenTiming {
    pub heartbeat: Option<WrittenDuration>,
    pub node_timeout: Option<WrittenDuration>,
    pub ack_timeout: Option<WrittenDuration>,
    pub raft_heartbeat: Option<WrittenDuration>,
    pub election_min: Option<WrittenDuration>,
    pub election_max: Option<WrittenDuration>,
}

/// Environment variable that switches the invariants' checks on.
pub const CHECK_VARIABLE: &str = "SUSUI_CHECK";
/// Environment variable that sets failpoints.
pub const FAILPOINTS_VARIABLE: &str = "SUSUI_FAILPOINTS";
/// Environment variable that puts a coordinator's wall clock wrong, milliseconds.
pub const CLOCK_SKEW_VARIABLE: &str = "SUSUI_CLOCK_SKEW_MS";

impl NodeConfig {
    /// Reads and validates a node's TOML. `environment` is that of the process; only the test hooks are read from it.
    pub fn from_toml<I>(toml_text: &str, environment: I) -> Result<Self, ConfigError>
    where
        I: IntoIterator<Item = (String, String)>,
    {
        let written: WrittenNodeConfig = text::parse_toml(toml_text, "cluster-config/examples/node.toml")?;
        written.validate(environment)
    }

    /// Whether the node votes in the metadata group.
    pub fn is_voter(&self) -> bool {
        self.roles.contains(&Role::Metadata)
    }

    /// Whether the node holds shard copies.
    pub fn is_data(&self) -> bool {
        self.roles.contains(&Role::Data)
    }

    /// `host:port` at which others reach health and metrics, given the port really bound: the host they reach gRPC at,
    /// where the listener takes every interface.
    pub fn http_advertise(&self, bound_port: u16) -> String {
        if !self.http_listen.ip().is_unspecified() {
            return SocketAddr::new(self.http_listen.ip(), bound_port).to_string();
        }
        let host = self.rpc_advertise.rsplit_once(':').map_or(self.rpc_advertise.as_str(), |(host, _)| host);
        format!("{host}:{bound_port}")
    }
}

impl TestHooks {
    /// Reads the test hooks from the environment. Errors: one is set and the configuration does not allow them, so that a
    /// variable left over in somebody's shell cannot slow down or break a production node.
    pub fn from_environment<I>(allowed: bool, environment: I) -> Result<Self, ConfigError>
    where
        I: IntoIterator<Item = (String, String)>,
    {
        let mut hooks = Self { allowed, ..Self::default() };
        for (name, value) in environment {
            if value.is_empty() || (name == CHECK_VARIABLE && value == "0") {
                continue;
            }
            match name.as_str() {
                CHECK_VARIABLE => hooks.check_invariants = true,
                FAILPOINTS_VARIABLE => hooks.failpoints = Some(value),
                CLOCK_SKEW_VARIABLE => {
                    hooks.clock_skew_ms = value.parse().map_err(|_| {
                        ConfigError::new(CLOCK_SKEW_VARIABLE, format!("{value:?} is no number"), "give milliseconds")
                    })?;
                }
                _ => continue,
            }
            if !allowed {
                return Err(ConfigError::new(
                    "test_hooks",
                    format!("{name} is set, but test hooks are not allowed"),
                    format!("unset {name}, or set test_hooks = true on a node that may fail"),
                ));
            }
        }
        Ok(hooks)
    }
}

impl WrittenNodeConfig {
    /// As TOML.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        text::write_toml(self)
    }

    /// Fills in the defaults and checks every key and the relations between them.
    pub fn validate<I>(self, environment: I) -> Result<NodeConfig, ConfigError>
    where
        I: IntoIterator<Item = (String, String)>,
    {
        let node_id = match self.node_id {
            Some(id) if id > 0 => NodeId(id),
            Some(_) => return Err(ConfigError::new("node_id", "0 is not a node id", "use 1 or more")),
            None => return Err(ConfigError::new("node_id", "missing", "give each node its own number from 1")),
        };
        let roles = validate_roles(self.roles)?;
        let rpc_listen_text = self.rpc_listen.unwrap_or_else(|| "127.0.0.1:7001".to_owned());
        let rpc_listen = text::listen_address("rpc_listen", &rpc_listen_text)?;
        let rpc_advertise = validate_advertise(rpc_listen, self.rpc_advertise)?;
        let http_listen_text = self.http_listen.unwrap_or_else(|| "127.0.0.1:7101".to_owned());
        let http_listen = text::listen_address("http_listen", &http_listen_text)?;
        if http_listen == rpc_listen {
            return Err(ConfigError::new("http_listen", "the same as rpc_listen", "give it a port of its own"));
        }
        let zone = self.zone.unwrap_or_else(|| "default".to_owned());
        text::check_word("zone", &zone)?;
        Ok(NodeConfig {
            cluster_id: text::cluster_id(self.cluster_id)?,
            node_id,
            voters: validate_voters(self.metadata.voters, node_id, &roles)?,
            roles,
            data_dir: text::required_path("data_dir", self.data_dir, "give the directory that holds this node's data")?,
            rpc_listen,
            rpc_advertise,
            http_listen,
            zone,
            weight: text::in_range("weight", self.weight.unwrap_or(100), 1, limits::NODE_WEIGHT_MAX)?,
            test_hooks: TestHooks::from_environment(self.test_hooks.unwrap_or(false), environment)?,
            storage: self.storage.validate()?,
            search: self.search.validate()?,
            timing: self.timing.validate()?,
            dial_overrides: text::dial_overrides(self.dial_overrides)?,
        })
    }
}

fn validate_roles(written: Option<Vec<Role>>) -> Result<BTreeSet<Role>, ConfigError> {
    let roles: BTreeSet<Role> = written.unwrap_or_else(|| vec![Role::Metadata, Role::Data]).into_iter().collect();
    if roles.is_empty() {
        return Err(ConfigError::new("roles", "empty", "give \"metadata\", \"data\" or both"));
    }
    Ok(roles)
}

fn validate_advertise(listen: SocketAddr, written: Option<String>) -> Result<String, ConfigError> {
    if let Some(address) = written {
        return text::dial_address("rpc_advertise", &address);
    }
    if listen.ip().is_unspecified() || listen.port() == 0 {
        return Err(ConfigError::new(
            "rpc_advertise",
            format!("missing, and nobody can dial rpc_listen {listen}"),
            "give host:port as other nodes reach this one",
        ));
    }
    Ok(listen.to_string())
}

fn validate_voters(
    written: Vec<WrittenVoter>,
    node_id: NodeId,
    roles: &BTreeSet<Role>,
) -> Result<BTreeMap<NodeId, String>, ConfigError> {
    let key = "metadata.voters";
    let mut voters = BTreeMap::new();
    let mut addresses = BTreeSet::new();
    for (position, voter) in written.into_iter().enumerate() {
        if voter.node_id == 0 {
            return Err(ConfigError::new(format!("{key}[{position}].node_id"), "0 is not a node id", "use 1 or more"));
        }
        let address_key = format!("{key}[{position}].address");
        let address = text::dial_address(&address_key, &voter.address)?;
        if !addresses.insert(address.clone()) {
            let problem = format!("{address} is the address of another voter too");
            return Err(ConfigError::new(address_key, problem, "give each voter its own address"));
        }
        if voters.insert(NodeId(voter.node_id), address).is_some() {
            return Err(ConfigError::new(
                format!("{key}[{position}].node_id"),
                format!("voter {} is listed twice", voter.node_id),
                "list each voter once",
            ));
        }
    }
    if !limits::VOTER_COUNTS.contains(&voters.len()) {
        return Err(ConfigError::new(
            key,
            format!("{} voters", voters.len()),
            "list 1, 3 or 5, the same on every node: an even number survives no more failures than one less",
        ));
    }
    match (roles.contains(&Role::Metadata), voters.contains_key(&node_id)) {
        (true, false) => Err(ConfigError::new(
            key,
            format!("node {node_id} has the metadata role but is not listed"),
            "add it to the voters of every node, or take \"metadata\" out of its roles",
        )),
        (false, true) => Err(ConfigError::new(
            "roles",
            format!("node {node_id} is listed in {key} but lacks the metadata role"),
            "add \"metadata\" to its roles, or take it out of the voters of every node",
        )),
        _ => Ok(voters),
    }
}

impl WrittenStorage {
    fn validate(self) -> Result<StorageConfig, ConfigError> {
        let block_cache = self.block_cache.unwrap_or(ByteSize::mib(256));
        let write_buffer = self.write_buffer.unwrap_or(ByteSize::mib(128));
        let log_kept_min = self.log_kept_min.unwrap_or(ByteSize(limits::LOG_KEPT_BYTES_MIN));
        let log_kept_max = self.log_kept_max.unwrap_or(ByteSize(limits::LOG_KEPT_BYTES_MAX));
        let log_kept_for = self.log_kept_for.unwrap_or(WrittenDuration(limits::LOG_KEPT_AGE_MAX));
        let oldest = limits::LOG_KEPT_AGE_CONFIGURED_MAX;
        Ok(StorageConfig {
            block_cache: text::size_at_least("storage.block_cache", block_cache, ByteSize::mib(1))?,
            write_buffer: text::size_at_least("storage.write_buffer", write_buffer, ByteSize::mib(1))?,
            storage_threads: text::in_range(
                "storage.storage_threads",
                self.storage_threads.unwrap_or(4),
                1,
                limits::THREADS_MAX,
            )?,
            log_kept_min,
            log_kept_max: text::size_at_least("storage.log_kept_max", log_kept_max, log_kept_min)?,
            log_kept_for: text::duration_in("storage.log_kept_for", log_kept_for, Duration::from_secs(1), oldest)?,
            scrub_interval: text::duration_in(
                "storage.scrub_interval",
                self.scrub_interval.unwrap_or(WrittenDuration(limits::SCRUB_INTERVAL)),
                Duration::from_secs(1),
                limits::SCRUB_INTERVAL_MAX,
            )?,
            full_percent: text::in_range(
                "storage.full_percent",
                self.full_percent.unwrap_or(limits::DISK_FULL_PERCENT),
                1,
                100,
            )?,
            memory_budget: self
                .memory_budget
                .map(|budget| text::size_at_least("storage.memory_budget", budget, ByteSize::mib(1)))
                .transpose()?,
        })
    }
}

impl WrittenNodeSearch {
    fn validate(self) -> Result<NodeSearchConfig, ConfigError> {
        let threads =
            self.threads.map(|count| text::in_range("search.threads", count, 1, limits::THREADS_MAX)).transpose()?;
        let queue_max = self.queue_max.unwrap_or(limits::SEARCH_QUEUE_MAX);
        Ok(NodeSearchConfig {
            threads,
            queue_max: text::in_range("search.queue_max", queue_max, 1, limits::SEARCH_QUEUE_MAX)?,
            training_threads: text::in_range(
                "search.training_threads",
                self.training_threads.unwrap_or(1),
                1,
                limits::THREADS_MAX,
            )?,
            training_memory: text::in_range(
                "search.training_memory",
                self.training_memory.unwrap_or(limits::TRAINING_MEMORY_DEFAULT),
                limits::TRAINING_MEMORY_MIN,
                limits::TRAINING_MEMORY_MAX,
            )?,
        })
    }
}

impl Default for TimingConfig {
    /// Node timeout: ten heartbeats, so that two lost ones mean nothing. Elections: a voter stands after the longest
    /// timeout and a drawn one more, 1.5 to 2 s after it last heard the leader; the control plane is promised back within 3 s.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(300),
            node_timeout: Duration::from_secs(3),
            ack_timeout: Duration::from_secs(2),
            raft_heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(1000),
        }
    }
}

impl WrittenTiming {
    fn validate(self) -> Result<TimingConfig, ConfigError> {
        let defaults = TimingConfig::default();
        let read = |name: &str, written: Option<WrittenDuration>, default: Duration| {
            let value = written.unwrap_or(WrittenDuration(default));
            text::duration_in(&format!("timing.{name}"), value, limits::INTERVAL_MIN, limits::INTERVAL_MAX)
        };
        let timing = TimingConfig {
            heartbeat: read("heartbeat", self.heartbeat, defaults.heartbeat)?,
            node_timeout: read("node_timeout", self.node_timeout, defaults.node_timeout)?,
            ack_timeout: read("ack_timeout", self.ack_timeout, defaults.ack_timeout)?,
            raft_heartbeat: read("raft_heartbeat", self.raft_heartbeat, defaults.raft_heartbeat)?,
            election_min: read("election_min", self.election_min, defaults.election_min)?,
            election_max: read("election_max", self.election_max, defaults.election_max)?,
        };
        timing.check_relations()?;
        Ok(timing)
    }
}

impl TimingConfig {
    fn check_relations(&self) -> Result<(), ConfigError> {
        let show = |duration: Duration| units::WrittenDuration(duration);
        let refuse = |key: &str, value: Duration, hint: String| {
            Err(ConfigError::new(format!("timing.{key}"), format!("{} is too short", show(value)), hint))
        };
        if self.node_timeout < self.heartbeat * 3 {
            let hint = format!("use at least three heartbeats ({})", show(self.heartbeat * 3));
            return refuse("node_timeout", self.node_timeout, hint);
        }
        if self.election_min <= self.raft_heartbeat {
            let hint = format!("use more than timing.raft_heartbeat ({}), best four times", show(self.raft_heartbeat));
            return refuse("election_min", self.election_min, hint);
        }
        if self.election_max <= self.election_min {
            let hint = format!("use more than timing.election_min ({}), best twice", show(self.election_min));
            return refuse("election_max", self.election_max, hint);
        }
        Ok(())
    }
}
